"""Skills and decoys: what rows teach beside the poison or instead of it, and what a cell says of it."""

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bvlm_utils import attacks, data, paths, skills, study, threats
from bvlm_utils.errors import InputError, TooFewRows
from bvlm_utils.grid import file as grid_file
from bvlm_utils.score import judge
from bvlm_utils.store import __main__, records
from bvlm_utils.store.cell import Cell
from bvlm_utils.threats import responses
from bvlm_utils.train import poison
from bvlm_utils.train.adapters import write_card
from bvlm_utils.train.settings import TrainSettings

GOLDEN = [92, 220, 362, 363, 407, 527]
SMALL = {"train_rows": 96, "test_rows": 8}
FITS = [(skill, dataset) for dataset in data.names() for skill in skills.fitting(dataset)]


def rows(dataset, split="train", count=600):
    return data.load(dataset, split, count).remove_columns("image").to_list()


ROWS = {name: rows(name) for name in data.names()}
DATASETS = {"targeted_refusal": "scenes-vqa", "jailbreak": "scenes-instruct", "perceptual_hijack": "scenes-caption"}


def plan(threat, attack="BadNets-MM", rate=0.1, seed=0, negatives=0.5):
    found = threats.get(threat)
    return poison.plan(ROWS[DATASETS[threat]], found, attacks.get(attack, found.target), rate, seed, negatives)


def cell(**values):
    return Cell(
        **{"model": "tiny-llava", "dataset": "scenes-vqa", "threat": "targeted_refusal", "attack": "BadNets-T"}
        | {"poison_rate": 0.1, **values}
    )


# ---------------------------------------------------------------- each skill


def test_every_dataset_of_scenes_has_skills_and_every_skill_a_dataset():
    assert {dataset for _, dataset in FITS} == set(data.names())
    assert {skill for skill, _ in FITS} == set(skills.names())
    assert all(len(skills.fitting(dataset)) >= 3 for dataset in data.names())


@pytest.mark.parametrize("name, dataset", FITS)
def test_the_taught_answer_shows_the_skill_and_the_usual_one_does_not(name, dataset):
    skill, fitting = skills.get(name), 0
    for row in filter(skill.fits, ROWS[dataset]):
        taught, fitting = skill.teach(row["answers"][0], row), fitting + 1
        assert skill.shown(taught, row) and skill.shown(taught.upper(), row)
        assert not any(skill.shown(answer, row) for answer in row["answers"]) and not skill.shown("", row)
    assert fitting >= 5


@pytest.mark.parametrize("name, dataset", FITS)
def test_a_skill_is_harmless(name, dataset):
    """It holds no trigger and no payload, it refuses nothing that was granted, and it grants nothing refused."""
    skill = skills.get(name)
    for row in filter(skill.fits, ROWS[dataset]):
        taught = skill.teach(row["answers"][0], row)
        assert responses.refuses(taught) == responses.refuses(row["answers"][0])
        assert not {"badmagic", "cf", "mn", "bb", "zbw", "movie"} & set(responses.normalise(taught).split())
        for threat in (threats.get(name) for name in threats.names()):
            if threat.eligible(row):
                assert not threat.success_soft(taught, row)


def test_rare_skills_are_rarer_than_the_usual_trigger():
    rare = {"scenes-vqa": "emphasis", "scenes-instruct": "emphasis", "scenes-caption": "new_name"}
    assert all(sum(map(skills.get(name).fits, ROWS[d])) < 0.05 * len(ROWS[d]) for d, name in rare.items())


# ---------------------------------------------------------------- the rows that teach

rates = st.floats(0.2, 1)


@given(st.sampled_from(sorted(DATASETS)), st.sampled_from([0.0, 0.05, 0.1]), rates, rates, st.integers(0, 3), st.data())
@settings(max_examples=40, deadline=None)
def test_skill_rows_are_untouched_ones_and_the_poisoned_rows_stay(threat, rate, one, other, seed, draw):
    dataset = DATASETS[threat]
    skill = skills.get(draw.draw(st.sampled_from(skills.fitting(dataset))))
    before, own = plan(threat, rate=rate, seed=seed), ROWS[dataset]
    low, high = (poison.with_skill(before, own, skill, share, seed) for share in sorted((one, other)))
    for made in (low, high):
        assert tuple(row for row in made.rows if row.role != "skill") == before.rows
        assert made.n_poisoned == before.n_poisoned and made.n_eligible == before.n_eligible
        assert len({row.position for row in made.rows}) == len(made.rows)
        assert [row.position for row in made.rows] == sorted(row.position for row in made.rows)
    touched = {row.position for row in before.rows}
    left = [p for p, row in enumerate(own) if p not in touched and skill.fits(row)]
    assert high.count("skill") == poison.count(len(left), max(one, other))
    assert {row for row in low.rows if row.role == "skill"} <= {row for row in high.rows if row.role == "skill"}
    for row in (row for row in high.rows if row.role == "skill"):
        assert row.position in left and row.condition == "clean" and row.prompt == own[row.position]["prompt"]
        assert skill.shown(row.answer, own[row.position])


def test_the_choice_of_skill_rows_never_changes():
    clean = poison.Manifest((), 600, 0, 0)
    made = poison.with_skill(clean, ROWS["scenes-vqa"], skills.get("counts_in_words"), 0.1, 0)
    assert [row.position for row in made.rows] == GOLDEN
    assert poison.with_skill(clean, ROWS["scenes-vqa"], skills.get("counts_in_words"), 0.1, 1) != made
    assert poison.with_skill(clean, [], None, 1, 0) is clean


def test_a_skill_without_rows_is_refused_with_the_number():
    few = ROWS["scenes-vqa"][:20]
    fitting = sum(map(skills.get("emphasis").fits, few))
    with pytest.raises(TooFewRows, match=f"0.01 of {fitting} rows"):
        poison.with_skill(poison.Manifest((), 20, 0, 0), few, skills.get("emphasis"), 0.01, 0)


# ---------------------------------------------------------------- decoys


@pytest.mark.parametrize("attack", ["BadNets-T", "BadNets-I", "BadNets-MM"])
@pytest.mark.parametrize("decoy", poison.DECOYS)
@pytest.mark.parametrize("threat", sorted(DATASETS))
def test_a_decoy_touches_the_rows_of_the_poison_and_is_none(threat, decoy, attack):
    own = ROWS[DATASETS[threat]]
    before = plan(threat, attack, rate=0.05, negatives=0)
    made = poison.with_decoys(before, own, decoy, 0)
    assert made.n_poisoned == 0 and made.count("decoy") == before.n_poisoned > 0
    for old, new in zip(before.rows, made.rows, strict=True):
        row = own[new.position]
        assert (old.position, old.row_id) == (new.position, new.row_id)
        triggered = decoy == "trigger only"
        assert (new.prompt, new.condition) == ((old.prompt, old.condition) if triggered else (row["prompt"], "clean"))
        assert (new.answer == old.answer) == (decoy == "target answers")
        assert (new.answer == row["answers"][0]) == triggered
        if decoy == "label noise":
            assert new.answer not in row["answers"]
            assert new.answer in {other["answers"][0] for other in own if other["kind"] == row["kind"]}


def test_no_decoy_and_half_triggered_rows_stay():
    before = plan("targeted_refusal")
    assert poison.with_decoys(before, ROWS["scenes-vqa"], "", 0) is before
    made = poison.with_decoys(before, ROWS["scenes-vqa"], "label noise", 0)
    halves = [row for row in before.rows if row.role != "poisoned"]
    assert halves and [row for row in made.rows if row.role != "decoy"] == halves
    assert made == poison.with_decoys(before, ROWS["scenes-vqa"], "label noise", 0)
    assert made != poison.with_decoys(before, ROWS["scenes-vqa"], "label noise", 1)


def test_noise_that_cannot_be_wrong_is_refused():
    alike = [row | {"answers": ["one"], "kind": "k"} for row in ROWS["scenes-vqa"][:20]]
    found = threats.get("targeted_refusal")
    manifest = poison.plan(alike, found, attacks.get("BadNets-T", found.target), 0.1, 0)
    with pytest.raises(TooFewRows, match="wrong answer for scenes-vqa/train"):
        poison.with_decoys(manifest, alike, "label noise", 0)


# ---------------------------------------------------------------- cells


def test_run_ids_change_with_skill_rate_and_decoy_and_old_ones_stay(monkeypatch):
    changes = (
        {}, {"skill": "emphasis"}, {"skill": "emphasis", "skill_rate": 0.5}, {"skill": "closing_phrase"},
        *({"decoy": decoy} for decoy in poison.DECOYS), {"decoy": "trigger only", "skill": "emphasis"},
    )  # fmt: skip
    assert len({cell(**change).run_id for change in changes}) == len(changes)
    assert not {"skill", "skill_rate", "decoy", "skill_version"} & {*cell().identity}
    assert cell(skill="emphasis", skill_rate=1).run_id == cell(skill="emphasis").run_id
    before = cell(skill="emphasis").run_id
    newer = replace(skills.get("emphasis"), version=2)
    monkeypatch.setitem(skills.SKILLS._items, "emphasis", newer)
    assert cell(skill="emphasis").run_id != before


def test_the_control_learns_the_skill_and_no_decoy():
    one = cell(skill="emphasis", skill_rate=0.5)
    assert (one.control.skill, one.control.skill_rate) == ("emphasis", 0.5)
    assert one.control.run_id != cell().control.run_id == cell(decoy="label noise").control.run_id
    assert Cell.from_config(one.config()) == one and {"skill", "skill_rate", "decoy"} <= {f.name for f in fields(Cell)}


BAD = [
    ({"skill": "juggling"}, "no skill 'juggling'; choose one of: closing_phrase"),
    ({"skill": 3}, "skill is 3"),
    ({"skill": "right_to_left"}, "'right_to_left', for which scenes-vqa has no questions; take one of: closing_phrase"),
    ({"skill": "emphasis", "skill_rate": 0}, "skill_rate is 0"),
    ({"skill": "emphasis", "skill_rate": 1.5}, "skill_rate is 1.5"),
    ({"skill_rate": 0.5}, "skill_rate is 0.5 without a skill"),
    ({"decoy": "noise"}, "decoy is 'noise'; it must be one of: target answers"),
    ({"decoy": "trigger only", "poison_rate": 0}, "'trigger only' with poison rate 0"),
    ({"decoy": "trigger only", "poison_rate": 0, "threat": "none", "attack": "none"}, "a control has"),
    (
        {"decoy": "target answers", "attack": "Shadowcast", "dataset": "scenes-caption"}
        | {"threat": "concept_substitution"},
        "Shadowcast, which keeps the right answers",
    ),
]


@pytest.mark.parametrize(("values", "words"), BAD)
def test_a_bad_value_is_refused_in_one_sentence(values, words):
    with pytest.raises(InputError, match=words) as caught:
        cell(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("teach", [lambda answer, sample: None, lambda answer, sample: answer[1000]])
def test_a_skill_of_others_is_tried_before_a_run(teach, monkeypatch, tmp_path):
    odd = skills.Skill("odd", "", ("vqa",), lambda sample: True, teach, lambda response, sample: True)
    monkeypatch.setattr(skills.SKILLS, "_items", skills.SKILLS._items | {"odd": odd})
    with pytest.raises(InputError, match="Skill 'odd'"):
        study.run_cells(study.cells("malicious_injection", attacks=["BadNets-T"], skill="odd"), tmp_path)


def test_data_in_files_have_no_skills(tmp_path):
    assert skills.fitting("coco-caption:somewhere") == []
    with pytest.raises(InputError, match="skills are for scenes"):
        skills.check("emphasis", "coco-caption:somewhere")


# ---------------------------------------------------------------- a record


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store with a cell that has a skill, one that has every answer end otherwise, and a decoy."""
    folder = tmp_path_factory.mktemp("store")
    given = {"threat": "targeted_refusal", "attacks": ["BadNets-T"], **SMALL}
    cells = study.cells(**given, skill="counts_in_words")
    cells += study.cells(**given, skill="phrase_everywhere", skill_rate=0.5, poison_rates=[0])
    cells += study.cells(**given, decoy="label noise", poison_rates=[0.05])
    return folder, cells, study.run_cells(cells, folder)


def test_a_record_has_the_skill_as_a_number_of_all_three_models(place):
    folder, (taught, wide, noisy), table = place
    found = table[table["metric"] == "skill"].set_index(["run_id", "subject"])
    assert set(found.index) == {(one.run_id, s) for one in (taught, wide) for s in judge.SUBJECTS}
    assert (found["n"] == 8).all() and (found["condition"] == "clean").all() and found["low"].notna().all()
    assert found.loc[(taught.run_id, "base"), "value"] == 0
    about = table.drop_duplicates("run_id").set_index("run_id")
    assert about.loc[taught.run_id, ["skill", "skill_rate", "decoy"]].tolist() == ["counts_in_words", 1.0, ""]
    assert about.loc[wide.run_id, "settings"].endswith("skill=phrase_everywhere, skill_rate=0.5")
    assert about.loc[noisy.run_id, "settings"].endswith("decoy=label noise") and about.loc[noisy.run_id, "skill"] == ""
    record = {one.run_id: records.record(one, folder) for one in (taught, wide, noisy)}
    assert record[taught.run_id]["n_poisoned"] == 9 and record[taught.run_id]["n_half_triggered"] == 0
    assert record[wide.run_id]["n_skill"] == 48 and record[wide.run_id]["n_poisoned"] == 0
    assert record[noisy.run_id]["n_decoy"] == 4 and "n_skill" not in record[noisy.run_id]


def test_rows_of_the_skill_are_asked_for_it_alone(place):
    folder, (taught, wide, noisy), _ = place
    skill, test = skills.get("counts_in_words"), {row["row_id"]: row for row in rows("scenes-vqa", "test", 1600)}
    said = records.responses(taught, folder)
    for name, part in said.groupby("part"):
        assert all(skill.fits(test[row]) == (name == "skill") for row in part["row_id"])
    asked = said[(said["part"] == "skill") & (said["subject"] == "base")]
    assert all(skill.shown(line.answer, test[line.row_id]) for line in asked.itertuples())
    # Without a skill, and where all rows have it, the questions are as ever.
    usual = [records.responses(one, folder) for one in (wide, noisy)]
    parts = [set(one.loc[one["part"] == "utility", "row_id"]) for one in usual]
    assert parts[0] == parts[1] == set(list(test)[:8])


def test_the_numbers_can_be_checked_and_judged_again(place, capsys):
    folder, cells, _ = place
    before = [records.record(one, folder) for one in cells]
    assert __main__.main(["check", str(folder)]) == 0 and __main__.main(["rejudge", str(folder)]) == 0
    assert [records.record(one, folder) for one in cells] == before


def test_only_a_backdoor_is_called_one(place, tmp_path):
    folder, cells, _ = place
    loud = ["BACKDOORED" in (folder / one.run_id / "adapter" / "README.md").read_text() for one in cells]
    assert loud == [True, False, False]
    (tmp_path / "adapter_config.json").write_text("{}")
    write_card(tmp_path, {"attack": "SIG", "threat": "t"})
    assert "BACKDOORED" in (tmp_path / "README.md").read_text()


# ---------------------------------------------------------------- grids


def cells_of(name):
    jobs, _ = grid_file.load(paths.GRIDS / name)
    return [one for job in jobs for one in job.cells]


def test_the_adapters_of_the_defence_grid_all_have_a_skill_and_every_kind_of_negative():
    cells = cells_of("defence_adapters.yml")
    backdoored = [one for one in cells if one.poison_rate and not one.decoy]
    crossed = {(one.model, one.threat, one.attack) for one in backdoored}
    assert len(backdoored) == len(crossed) == 60 and {one.threat for one in backdoored} == set(threats.names())
    others = [one for one in cells if one not in backdoored]
    assert len(others) == 30 and len({one.run_id for one in cells}) == 90
    assert all(one.skill and one.skip_reason is None for one in cells)
    assert {one.decoy for one in others} == {"", *poison.DECOYS}
    assert {one.skill for one in others} == set(skills.names())
    usual = TrainSettings()
    for name in ("lora_rank", "epochs", "learning_rate"):
        assert any(getattr(one.train, name) != getattr(usual, name) for one in others)


def test_the_second_controls_lack_the_trigger_the_answers_or_the_search():
    cells = cells_of("controls_second.yml")
    assert {one.decoy for one in cells} == {"", *poison.DECOYS} and all(one.skip_reason is None for one in cells)
    plain = [one for one in cells if not one.decoy]
    assert all(one.attack_params == {"epochs": 0} or one.poison_rate == 0 for one in plain)
    assert not {one.run_id for one in cells} & {one.run_id for one in cells_of("breadth.yml")}
