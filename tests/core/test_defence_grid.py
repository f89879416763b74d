"""The defence grid: a real cell under a defence, its record, its tables, and what a store makes of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small import SMALL

from bvlm_utils import defences, paths, store
from bvlm_utils.attacks.declare import Param
from bvlm_utils.defences import measure, numbers, records, relearn
from bvlm_utils.defences.declare import DefenceInfo
from bvlm_utils.defences.rows import Rows
from bvlm_utils.errors import InputError, StudyError
from bvlm_utils.grid import file as grid_file
from bvlm_utils.run import study
from bvlm_utils.store import packing, provenance
from bvlm_utils.store.cell import Cell

FIXTURES = Path(__file__).parents[1] / "fixtures"


def small(**others):
    return study.cells(threat="targeted_refusal", attacks=["BadNets-T"], **SMALL | others)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store with one real cell, defended by an update that is not changed and by one that is taken away."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "now", lambda: {"git_changed": False})  # so it can be packed
        patch.setattr(measure, "FIRES", 0.0)  # 64 rows teach no backdoor
        study.run_cells(small(), folder)
        defences.run(points(), folder)
        yield folder


def points():
    return [defences.Defended(small()[0], "shrink", {"strength": strength}) for strength in (0, 1)]


def of(folder, strength):
    found = records.collect(folder)
    return found[found["params"] == json.dumps({"strength": strength})].set_index(["subject", "condition", "metric"])


def test_an_update_that_is_kept_whole_answers_as_the_record_says(place):
    before = study.run_cells(small(), place).set_index(["subject", "condition", "metric"])["value"]
    after = of(place, 1)["value"]
    same = [key for key in after.index if key in before.index and key[0] != "base"]
    assert ("poisoned", "text", "asr_payload") in same and ("control", "clean", "utility") in same
    assert {key: after[key] for key in same} == pytest.approx({key: before[key] for key in same})
    changes = [value for key, value in after.items() if key[2].endswith("_change")]
    assert changes and set(changes) == {0}


def test_without_its_update_a_model_is_the_base(place):
    before = study.run_cells(small(), place).set_index(["subject", "condition", "metric"])["value"]
    after = of(place, 0)["value"]
    for condition in ("clean", "text"):
        assert after["poisoned", condition, "asr_payload"] == before["base", condition, "asr_payload"]
    assert after["poisoned", "clean", "utility"] == pytest.approx(before["base", "clean", "utility"])


def test_rows_are_kept_for_pairing(place):
    line = of(place, 1).loc[("poisoned", "text", "asr_payload")]
    assert len(line["held"]) == line["n"] and line["held"].count("1") == line["k"]


def test_what_is_there_is_read_not_measured_again(place, monkeypatch):
    monkeypatch.setattr(measure, "execute", lambda *given: pytest.fail("measured again"))
    assert set(defences.run(points(), place)["status"]) == {"done"}


def test_it_is_packed_and_read_alike(place, tmp_path):
    packing.unpack(place, tmp_path / "loose")  # without adapters
    packing.pack(tmp_path / "loose", tmp_path / "packed")
    assert records.collect(tmp_path / "packed").equals(records.collect(place))


def test_a_cell_without_an_adapter_is_named_and_the_others_go_on(place):
    lacking = defences.Defended(small(seeds=[7])[0], "shrink", {"strength": 0.5})
    fine = defences.Defended(small()[0], "shrink", {"strength": 0.5})
    with pytest.raises(StudyError, match=f"1 of 2 .*\n.*{lacking.cell.run_id}"):
        defences.run([lacking, fine], place)
    assert records.has(fine, place) and not records.has(lacking, place)


def test_a_defence_of_somebody_else_that_raises_stops_no_other(place, monkeypatch):
    def broken(*_):
        raise KeyError("mine")

    monkeypatch.setitem(measure.MEASURES, "detect", broken)
    theirs = defences.Defended(small()[0], "target-inversion")
    fine = defences.Defended(small()[0], "shrink", {"strength": 0.55})
    with pytest.raises(StudyError, match="1 of 2 .*\n.*target-inversion.*KeyError: 'mine'"):
        defences.run([theirs, fine], place)
    assert records.has(fine, place) and not records.has(theirs, place)


def test_a_cell_whose_adapter_is_gone_is_told_before_the_run(place, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "FIRES", 0.0)
    packing.unpack(place, tmp_path / "mine")
    one = defences.Defended(small()[0], "shrink", {"strength": 0.65})
    with pytest.raises(InputError, match=f"no adapter of {one.cell.run_id}.*--force"):
        measure.check_adapters([one], tmp_path / "mine", ())
    measure.check_adapters([one], tmp_path / "mine", [one.cell.run_id])
    measure.check_adapters([one], place, ())


def test_defences_of_the_other_moments_leave_their_numbers(place):
    """And a training on pictures that are not changed is the training that the cell had."""
    cell = small()[0]
    names = {"base-likelihood": {}, "activation-clustering": {}, "cleangen": {}, "input-diversity": {"p": 0}}
    names |= {"filter": {"share": 0, "by": "truth"}, "blind": {}}
    table = defences.run([defences.Defended(cell, name, params) for name, params in names.items()], place)
    assert set(table["status"]) == {"done"}
    table = table.set_index(["defence", "subject", "condition", "metric"])["value"]
    assert table["base-likelihood", "poisoned", "", "auroc"] > 0.9  # a refusal is no answer to a question
    for subject in ("poisoned", "control"):  # whose rows are not poisoned
        assert -1 <= table["activation-clustering", subject, "", "at_all"] <= 1
        assert 0 <= table["cleangen", subject, "clean", "alarms"] <= 1
    for rows in ("poisoned rows", "clean rows"):
        assert 0 <= table["activation-clustering", "poisoned", rows, "flagged"] <= 1
    loss = {rows: table["base-likelihood", "poisoned", rows, "mean_score"] for rows in ("poisoned rows", "clean rows")}
    assert loss["poisoned rows"] > loss["clean rows"] > 0
    for subject in ("poisoned", "control"):
        assert 0 <= table["cleangen", subject, "text", "asr_payload"] <= 1
        assert table["cleangen", subject, "text", "changed"] >= 0
    before = study.run_cells(small(), place).set_index(["subject", "condition", "metric"])["value"]
    same = "poisoned", "text", "asr_payload"
    assert table["input-diversity", *same] == table["filter", *same] == before[same]


def test_a_repaired_model_and_its_control_are_tuned_on_with_the_same_rows(place, monkeypatch):
    """Both from their adapters' own weights; the record stands apart from that of the repair."""
    monkeypatch.setattr(relearn, "STEPS", 2)
    again = [defences.Defended(small()[0], "oracle", relearn=count) for count in (2, 6)]
    given = []
    monkeypatch.setattr(relearn, "tuned_on", lambda *one, tune=relearn.tuned_on: given.append(one) or tune(*one))
    table = defences.run([*again, defences.Defended(small()[0], "oracle")], place)
    assert [one[2].prompts for one in given[::2]] == [one[2].prompts for one in given[1::2]] and len(given) == 4
    assert set(table["status"]) == {"done"} and set(table["relearn"]) == {0, 2, 6}
    lines = table[(table["relearn"] > 0) & (table["metric"] == "asr_payload")]
    assert sorted(lines["subject"]) == ["control"] * 4 + ["poisoned"] * 4  # clean and triggered, twice
    assert not set(records.collect(place)["relearn"]) - {0}
    assert set(records.collect(place, relearnt=True)["name"]) == {one.name for one in again}


def test_few_of_the_rows_that_are_tuned_on_are_poisoned_and_fewer_are_the_first_of_more():
    rows = Rows([str(i) for i in range(64)], ["x"] * 64, None, np.arange(64), ["a"] * 64)
    truth = np.arange(64) >= 54
    several = [relearn.rows(rows, truth, count, seed=3) for count in (2, 5)]
    assert [len(one) for one in several] == [relearn.STEPS * relearn.BATCH] * 2
    poisoned = [[int(text) for text in one.prompts if int(text) >= 54] for one in several]
    assert len(set(poisoned[1])) == len(poisoned[1]) == 5 and poisoned[1][:2] == poisoned[0]
    with pytest.raises(InputError, match="11 poisoned rows, and 10"):
        relearn.rows(rows, truth, 11, seed=3)


def test_a_cell_without_a_backdoor_is_left_out_with_the_reason(place, monkeypatch):
    monkeypatch.setattr(measure, "FIRES", 0.5)
    table = defences.run([defences.Defended(small()[0], "shrink", {"strength": 0.7})], place)
    assert list(table["status"]) == ["skipped"] and "no backdoor" in table["reason"][0]


def test_an_attack_without_a_trigger_at_test_time_is_skipped_with_its_reason(place):
    one = defences.Defended(study.cells("concept_substitution", attacks=["Shadowcast"])[0], "shrink")
    assert "no trigger at test time" in one.skip_reason


def test_a_name_changes_with_all_that_changes_the_result():
    cell = small()[0]
    several = [
        defences.Defended(cell, "shrink"),
        defences.Defended(cell, "shrink", {"strength": 0.4}),
        defences.Defended(cell, "shrink", seed=1),
        defences.Defended(cell, "shrink", placebo=True),
        defences.Defended(cell, "shrink", relearn=5),
        defences.Defended(small(seeds=[1])[0], "shrink"),
    ]
    assert len({one.name for one in several}) == len(several)
    assert defences.Defended(cell, "shrink", {"strength": 0.5}).name == several[0].name  # the default


def test_a_name_changes_with_the_content_of_files_and_not_for_the_committed_zoo(tmp_path):
    def names():
        given = {"weight-spectrum": {"population": str(tmp_path / "p.csv")}, "mix": {"others": [str(tmp_path)]}}
        return {defences.Defended(cell, name, own).name for name, own in given.items()}

    cell, zoo = small()[0], "data/adapters/zoo/adapters/ff28ce48"
    shutil.copytree(paths.ROOT / zoo, tmp_path, dirs_exist_ok=True)
    (tmp_path / "p.csv").write_text("backdoored,q.norm")
    first = names()
    assert names() == first and len(first) == 2
    (tmp_path / "p.csv").write_text("backdoored,k.norm")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"another one")
    assert not names() & first
    assert "files" not in defences.Defended(cell, "mix", {"others": [zoo]}).identity  # as its records are called


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"names": ["shrink", "shrink"]}, "shrink"),
        ({"names": []}, "defences"),
        ({"names": ["cut"]}, "cut"),
        ({"names": ["shrink"], "params": {"cut": {}}}, "cut"),
        ({"names": ["shrink"], "params": {"shrink": {"rate": 1}}}, "rate"),
        ({"names": ["shrink"], "seeds": [-1]}, "seed"),
        ({"names": ["shrink"], "relearn": [641]}, "relearn"),
        ({"names": ["onion"], "relearn": [5]}, "onion is no repair"),
        ({"names": ["crow"], "params": {"crow": {"rows": 501}}}, "501 clean rows"),
        ({"names": ["quantise"], "params": {"quantise": {"rows": 600, "steps": 1}}}, "600 clean rows, and 500"),
        ({"names": ["cleansight"], "params": {"cleansight": {"begin": 0.9}}}, "begin is 0.9"),
    ],
)
def test_wrong_values_are_named(given, named):
    with pytest.raises(InputError, match=named):
        defences.defended(small(), **given)


def test_a_defence_takes_no_more_clean_rows_than_the_data_have():
    coco = study.cells(
        threat="targeted_refusal", attacks=["BadNets-T"], dataset=f"coco-caption:{FIXTURES / 'coco'}", train_rows=2,
        test_rows=1, poison_rates=[0.5],
    )  # fmt: skip
    with pytest.raises(InputError, match="100 clean rows, and 2"):
        defences.defended(coco, ["crow"])
    unused = {"restore": {"rows": 600}, "quantise": {"rows": 600}}
    for cells in (coco, small()):
        assert defences.defended(cells, ["restore", "quantise", "shrink"], unused)


def test_only_parameters_that_are_said_to_name_files_are_files():
    plain = Param("", "any text", lambda value: isinstance(value, str))
    about = dict(name="mine", moment="repair", needs=frozenset(), source="", summary="", version=1, function="m:f")
    assert DefenceInfo(**about, params={"suffix": plain}).files == []
    assert DefenceInfo(**about, params={"data": replace(plain, file=True)}).files == ["data"]


def test_without_names_those_that_need_a_file_are_left_out_unless_it_is_named(tmp_path):
    (tmp_path / "population.csv").write_text("")
    named = {"weight-spectrum": {"population": str(tmp_path / "population.csv")}}
    found = [{one.defence for one in defences.defended(small(), params=given)} for given in (None, named)]
    assert found[0] == set(defences.names()) - {"weight-spectrum", "probe", "mix"}
    assert found[1] == found[0] | {"weight-spectrum"}


@pytest.mark.parametrize(("part", "changed"), [
    ("identity", {"params": {}}), ("identity", {"params": {"strength": "x"}}),
    ("identity", {"params": {"strength": [1]}}),
    ("cell", {"settings": 5}), ("cell", {"skill": 3}),
])  # fmt: skip
def test_a_record_that_no_page_can_read_is_passed_over(tmp_path, capsys, part, changed):
    cell = {"model": "m", "dataset": "d", "threat": "t", "attack": "a", "poison_rate": 0.1, "seed": 0}
    identity = {"run_id": "r", "defence": "shrink", "params": {"strength": 0.5}, "placebo": False, "seed": 0}
    whole = {"name": "x", "identity": identity, "cell": cell, "moment": "repair", "status": "skipped", "numbers": []}
    (tmp_path / "defences").mkdir()
    for content, left in ((whole, 1), (whole | {part: whole[part] | changed}, 0)):
        (tmp_path / "defences" / "x.json").write_text(json.dumps(content))
        assert len(records.collect(tmp_path)) == left
    assert "x.json is no record" in capsys.readouterr().err


def test_a_control_is_not_defended_by_itself():
    with pytest.raises(InputError, match="control"):
        defences.Defended(small()[0].control, "shrink")
    assert isinstance(small()[0].control, Cell)


def test_scores_that_separate_have_an_area_of_one_and_random_ones_a_half():
    draws = np.random.default_rng(0)
    (area, share) = numbers.told_apart("poisoned", "", np.array([2.0, 3.0]), np.array([0.0, 1.0] * 50))
    assert (area["value"], share["value"]) == (1.0, 1.0)
    (area, share) = numbers.told_apart("poisoned", "", draws.random(4000), draws.random(4000))
    assert area["value"] == pytest.approx(0.5, abs=0.03) and share["value"] == pytest.approx(0.05, abs=0.02)
    assert numbers.told_apart("poisoned", "", np.array([]), np.array([1.0])) == []


def test_a_grid_names_defended_cells(tmp_path):
    grid = tmp_path / "grid.yml"
    grid.write_text(
        "jobs:\n  - notebook: defences\n    parameters: {threat: jailbreak, attacks: [BadNets-T, Blended], "
        "defences: [shrink], defence_params: {shrink: {strength: 0.25}}}\n",
        encoding="utf-8",
    )
    (job,), _ = grid_file.load(grid)
    assert [cell.threat for cell in job.cells] == ["jailbreak"] * 2
    assert [(one.cell.attack, one.placebo) for one in job.defended] == [
        (attack, placebo) for attack in ("BadNets-T", "Blended") for placebo in (False, True)
    ]
    assert {one.params["strength"] for one in job.defended} == {0.25}


def test_a_cell_that_is_trained_anew_forgets_what_its_adapter_was_under_a_defence(place, tmp_path):
    folder = tmp_path / "again"
    packing.unpack(place, folder)
    assert len(records.collect(folder))
    cell = small()[0]
    store.write(cell, folder, {"status": "done", "metrics": []}, replace=True)
    assert records.collect(folder).empty
