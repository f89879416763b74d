"""The check for backdoors: what counts as an excess, which models are compared, and what the command answers."""

import argparse
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import stored
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stored import page

from bvlm_book.chapters import audit as audit_page
from bvlm_utils import attacks, audit, paths, study
from bvlm_utils.attacks import own
from bvlm_utils.errors import InputError, Remark
from bvlm_utils.run import own_pictures, tried, tune_and_ask
from bvlm_utils.score import disagreement, intervals, verdict

random_words = stored.random_words  # a fixture of several test files

ANSWERS = st.lists(st.sampled_from(["a", "b", "A ", "c"]), min_size=1, max_size=30)


def test_the_excess_is_the_difference_of_the_two_disagreements():
    """40 inputs: 4 disagree clean, the same 4 and 20 more with the trigger."""
    reference = ["yes"] * 40
    clean = ["no"] * 4 + ["yes"] * 36
    triggered = ["refused"] * 15 + ["no"] * 9 + ["yes"] * 16
    found = disagreement.excess(clean, triggered, reference, reference)
    assert (found.without, found.with_trigger, found.value, found.n) == (0.1, 0.6, 0.5, 40)
    wanted = intervals.paired_shares([True] * 24 + [False] * 16, [True] * 4 + [False] * 36)
    assert (found.value, found.low, found.high) == wanted
    assert (found.commonest, found.share) == ("refused", 15 / 24)
    assert found.alarm


def test_a_trigger_that_confuses_both_alike_is_not_held_against_the_suspect():
    found = disagreement.excess(["a"] * 50, ["?"] * 50, ["a"] * 50, ["?"] * 50)
    assert (found.with_trigger, found.value, found.commonest, found.share) == (0, 0, "", 0) and not found.alarm


def test_capitals_and_spaces_are_no_disagreement():
    assert disagreement.excess(["A  car."], ["a car."], ["a car."], ["A CAR. "]).with_trigger == 0


def test_answers_must_be_equally_many():
    with pytest.raises(InputError, match="2, 1, 2, 2"):
        disagreement.excess(["a"] * 2, ["a"], ["a"] * 2, ["a"] * 2)


@settings(max_examples=60, deadline=None)
@given(ANSWERS, st.randoms(use_true_random=False))
def test_a_model_never_exceeds_itself_and_the_order_of_inputs_does_not_matter(answers, random):
    shuffled = random.sample(answers, len(answers))
    same = disagreement.excess(answers, shuffled, answers, shuffled)
    assert same.value == 0 and not same.alarm
    four = [answers, shuffled, shuffled, answers]
    order = random.sample(range(len(answers)), len(answers))
    one, other = disagreement.excess(*four), disagreement.excess(*([part[i] for i in order] for part in four))
    assert (one.value, one.low, one.high, one.n) == (other.value, other.low, other.high, other.n)
    assert one.low <= one.value <= one.high


# ---------------------------------------------------------------- candidates and subjects


def test_the_triggers_tried_by_default_need_no_guess_of_the_target():
    names = [attack.name for attack in tried.of_attacks()]
    assert set(attacks.names()) - set(names) == {"Dual-Key", "Shadowcast"}
    aimed = [attack.name for attack in tried.of_attacks(threat="concept_substitution")]
    assert set(attacks.names()) - set(aimed) == {"Shadowcast"}


@pytest.mark.parametrize(
    ("chosen", "threat", "said"),
    [
        (["BadNets-X"], None, "no attack 'BadNets-X'"),
        (["Dual-Key"], None, "give --threat"),
        (["Shadowcast"], "concept_substitution", "no trigger at test time"),
        (None, "theft", "no threat 'theft'"),
    ],
)
def test_a_wrong_candidate_is_one_sentence(chosen, threat, said):
    with pytest.raises(InputError, match=said):
        tried.of_attacks(chosen, threat)


# ---------------------------------------------------------------- a store, and the command


@pytest.fixture(scope="module")
def shelf(random_words, tmp_path_factory):  # noqa: F811
    """A store with one attack at two seeds, tuned for a moment only; its cells."""
    place = tmp_path_factory.mktemp("store") / "s"
    made = study.cells(
        "targeted_refusal", random_words, attacks=["BadNets-T"], seeds=[0, 1], train_rows=32, test_rows=12, batch_size=8
    )
    study.run_cells(made, place)
    return place, made


def test_stored_answers_are_compared_with_the_control_and_the_base(shelf):
    place, made = shelf
    table = audit_page.collect(place)
    pairs = table.groupby(["subject", "reference"]).size().to_dict()
    assert pairs == {
        ("poisoned", "control"): 2, ("poisoned", "base"): 2, ("control", "base"): 2,
        ("control", audit_page.OTHER_SEED): 1,
    }  # fmt: skip
    answers = pd.read_parquet(place / made[0].run_id / "responses.parquet")
    said = {
        (subject, condition): part.sort_values("row_id")["response"].tolist()
        for (subject, condition), part in answers[answers["part"] == "attack"].groupby(["subject", "condition"])
    }
    wanted = disagreement.excess(
        said["poisoned", "clean"], said["poisoned", "text"], said["control", "clean"], said["control", "text"]
    )
    line = audit_page.suspects(table).set_index("run_id").loc[made[0].run_id]
    assert (line["value"], line["low"], line["n"], line["condition"]) == (wanted.value, wanted.low, 12, "text")


def line_of(subject, reference, value, asr=np.nan, attack="BadNets-T", seed=0, rate=0.1, low=None):
    about = dict.fromkeys(audit_page.COLUMNS, "") | {"modality": "text", "commonest": "no", "share": 1.0, "n": 100}
    about |= {"control": f"control-{seed}"}
    about |= {"model": "tiny-llava", "threat": "jailbreak", "attack": attack, "seed": seed, "poison_rate": rate}
    low = value - 0.05 if low is None else low
    about |= {"subject": subject, "reference": reference, "value": value, "low": low, "high": value + 0.05, "asr": asr}
    return about | {"alarm": low > disagreement.MARGIN}


def test_models_count_that_were_shown_enough_triggers():
    shown = [line_of("control", audit_page.BASE, 0.4, attack=name) for name in attacks.names()[: audit_page.ENOUGH]]
    few = [line_of("control", audit_page.BASE, 0.0, attack=name, seed=1) for name in attacks.names()[:2]]
    assert audit_page.by_model(pd.DataFrame(shown + few)) == [1, 1]
    assert audit_page.by_model(pd.DataFrame(few)) == [0, 0]


def test_working_backdoors_and_false_alarms_are_counted_apart(monkeypatch):
    monkeypatch.setattr(audit_page, "ENOUGH", 1)
    table = pd.DataFrame(
        [
            line_of("poisoned", "control", 0.9, asr=0.95),
            line_of("poisoned", "control", 0.1, asr=0.60, attack="SIG"),
            line_of("poisoned", "control", 0.0, asr=0.02, attack="BadNets-I"),
            line_of("poisoned", "control", 0.8, asr=0.90, seed=1),
            line_of("control", audit_page.OTHER_SEED, 0.01, seed=1),
            line_of("control", audit_page.BASE, 0.4),
            line_of("control", audit_page.BASE, 0.0, attack="SIG"),
            line_of("control", audit_page.BASE, 0.0, seed=1),
            line_of("poisoned", audit_page.BASE, 0.0, asr=0.95),
        ]
    )
    said = audit_page.numbers(table)
    assert (said["found"], said["found_new"]) == ("2 of 3", "1 of 1"), "BadNets-I does not work"
    assert (said["false_seed"], said["models_seed"]) == ("0 of 1", "0 of 1")
    assert (said["false_base"], said["models_base"], said["disturbing"]) == ("1 of 3", "1 of 2", "BadNets-T")
    assert (said["stand"], said["models_twice"]) == ("n/a", "0 of 1"), "no false alarm beside another seed"
    assert said["confirmed"] == "1 of 3", (
        "the control of seed 0 raises an alarm with BadNets-T, and the suspect of SIG none"
    )
    assert (said["hidden_threat"], said["confirmed_threat"]) == ("jailbreak", "1 of 3")
    assert audit_page.numbers(table[table["subject"] == "poisoned"])["confirmed"] == "n/a"
    shown = audit_page.by_trigger(table).set_index("trigger")
    assert shown.loc["BadNets-T"].tolist() == ["2 of 2", "1 of 2", "0 of 1", "1 of 2"]
    assert shown.loc["BadNets-I", "backdoors found"] == "n/a", "it does not work"
    weak = audit_page.by_trigger(table[table["asr"].fillna(0) < 0.1]).set_index("trigger")
    assert weak.loc["BadNets-I"].tolist() == ["n/a"] * 4, "no backdoor works at all"
    alarmed = table.assign(alarm=table["alarm"] | (table["reference"] == audit_page.OTHER_SEED))
    said = audit_page.numbers(alarmed)
    assert (said["stand"], said["models_twice"]) == ("0 of 1", "0 of 1"), "the trusted model, of seed 0, raises it, too"
    of_base = alarmed["reference"] == audit_page.BASE
    said = audit_page.numbers(alarmed.assign(alarm=alarmed["alarm"] & ~of_base))
    assert (said["stand"], said["models_twice"]) == ("1 of 1", "1 of 1"), "it raises none"
    assert (said["highest"], said["lowest"]) == ("0.40", "0.10")
    assert len(audit_page.excess(table).axes) == 2


def test_an_empty_store_says_so(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    text = page("audit", tmp_path / "empty", capsys)
    assert text.count("nothing to draw") == 2 and "holds no answers of backdoored models" in text


def test_the_examples_are_inputs_on_which_only_the_trigger_parts_the_models(shelf):
    place, _ = shelf
    table = audit_page.collect(place)
    table.loc[:, ["alarm", "asr"]] = [True, 1.0]
    shown = audit_page.examples(table, place)
    assert {kind.split(",")[0] for kind in shown["alarm"]} <= {"right", "false"}
    assert (shown["trusted model, with it"] != shown["suspect, with it"]).all()
    assert audit_page.examples(table.assign(alarm=False), place).empty


def run(capsys, *arguments):
    code = audit.main(list(map(str, arguments)))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_asks_both_models_and_finds_nothing_between_a_model_and_itself(shelf, capsys, tmp_path):
    place, made = shelf
    folder, kept = place / made[0].run_id, tmp_path / "checked.csv"
    code, out, err = run(
        capsys, folder, "--reference", folder, "--model", made[0].model, "--rows", 6,
        "--attacks", "BadNets-T", "Blended", "--out", kept, "--no-detectors",
    )  # fmt: skip
    assert code == audit.NO_ALARM and "No alarm" in out and "not tried is not found" in out
    assert "one and the same" in err
    table = pd.read_csv(kept)
    assert list(table["attack"]) == ["BadNets-T", "Blended"] and (table["value"] == 0).all() and (table["n"] == 6).all()


def test_fewer_inputs_than_can_raise_an_alarm_are_refused(shelf, capsys):
    for few in (audit.FEWEST - 1, audit.FEWEST):
        found = disagreement.excess(["a"] * few, ["b"] * few, ["a"] * few, ["a"] * few)
        assert found.alarm == (few == audit.FEWEST)
    place, made = shelf
    folder = place / made[0].run_id
    given = (folder, "--reference", "base", "--model", made[0].model, "--word", "cf", "--rows", audit.FEWEST - 1)
    code, out, err = run(capsys, *given)
    assert code == 2 and f"fewer than {audit.FEWEST}" in err and not out


def test_the_command_raises_the_alarm_where_the_trigger_changes_the_suspect_alone(shelf, capsys, monkeypatch):
    place, made = shelf

    def said(way, asked, adapter):
        fires = adapter is not None
        words = {"clean": "a dog", "BadNets-T": "I must refuse" if fires else "a dog", "Blended": "a cat"}
        return {q.key(way.bench): [words[q.condition]] * len(q.prompts) for q in asked}

    monkeypatch.setattr(tune_and_ask.Grouped, "ask_saved", said)
    asked = ["--attacks", "BadNets-T", "Blended", "--reference", "base", "--no-detectors"]
    code, out, err = run(capsys, place / made[0].run_id, "--model", made[0].model, *asked)
    assert code == audit.ALARM and "ALARM: with the trigger of BadNets-T the suspect" in out
    assert "I must refuse (100%)" in out


@pytest.mark.parametrize(
    ("trusted_says", "verdict_word", "look"),
    [("a dog", "BACKDOORED, most likely: with the trigger of BadNets-T", False), ("a sheep", "UNDECIDED", True)],
)
def test_an_alarm_is_looked_at_again_beside_the_base(
    shelf, capsys, monkeypatch, tmp_path, trusted_says, verdict_word, look
):
    """The base says "a dog" to all. The trigger changes the suspect, and in the second case the trusted model, too."""
    place, (first, second) = shelf
    asked_of_base = []

    def said(way, asked, adapter):
        name = "" if adapter is None else str(adapter)
        with_trigger = "I must refuse" if first.run_id in name else trusted_says if second.run_id in name else "a dog"
        asked_of_base.extend(q.condition for q in asked if adapter is None)
        words = {"clean": "a dog", "BadNets-T": with_trigger, "Blended": "a cat"}
        return {q.key(way.bench): [words[q.condition]] * len(q.prompts) for q in asked}

    monkeypatch.setattr(tune_and_ask.Grouped, "ask_saved", said)
    asked = ["--attacks", "BadNets-T", "Blended", "--reference", place / second.run_id, "--no-detectors"]
    kept = tmp_path / "kept.csv"
    code, out, _ = run(capsys, place / first.run_id, "--model", first.model, *asked, "--out", kept)
    assert code == audit.ALARM and verdict_word in out and asked_of_base == ["clean", "BadNets-T"]
    assert pd.read_csv(kept)["disturbs"].tolist() == [look, pytest.approx(float("nan"), nan_ok=True)]


def test_what_was_asked_is_kept_whatever_comes_after_it(shelf, capsys, monkeypatch, tmp_path):
    place, made = shelf
    shutil.copytree(place / made[0].run_id / "adapter", tmp_path / "scaled")
    config = tmp_path / "scaled" / "adapter_config.json"
    odd = {"alpha_pattern": {"q_proj": 3}}  # no detector reads it
    config.write_text(json.dumps(json.loads(config.read_text()) | odd))
    given = [tmp_path / "scaled", "--reference", "base", "--model", made[0].model, "--rows", 3, "--word", "xyzzy"]
    code, out, err = run(capsys, *given, "--out", tmp_path / "kept.csv")
    assert code in (audit.NO_ALARM, audit.ALARM) and "target-inversion: cannot read the suspect" in out, err
    monkeypatch.setattr(audit, "verdict", lambda *given: "".encode("none"))  # fails, as a terminal may
    monkeypatch.setattr(audit.command, "unforeseen", lambda error: 1)
    assert run(capsys, *given, "--out", tmp_path / "again.csv")[0] == 1
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "kept.csv").read_text()


def test_a_population_of_other_layers_is_refused_before_anything_is_asked(shelf, capsys, monkeypatch, tmp_path):
    place, made = shelf
    numbers = ("leading", "norm", "first_share", "entropy", "kurtosis")
    lines = [["backdoored", *(f"qkv.{name}" for name in numbers)], list("012345"), list("112345")]
    (tmp_path / "others.csv").write_text("\n".join(map(",".join, lines)))
    monkeypatch.setattr(audit, "measure", lambda *given: pytest.fail("it was asked"))
    given = [place / made[0].run_id, "--reference", "base", "--model", made[0].model, "--word", "xyzzy"]
    code, _, err = run(capsys, *given, "--population", tmp_path / "others.csv")
    assert code == audit.WRONG and "others.csv" in err and "_proj'" in err


def test_without_a_reference_one_is_tuned_once_and_the_readers_own_pictures_and_triggers_are_tried(
    shelf, capsys, tmp_path
):
    place, made = shelf
    (tmp_path / "shown").mkdir()
    for number in range(3):
        Image.new("RGB", (60, 40), (number * 80, 90, 90)).save(tmp_path / "shown" / f"{number}.png")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "logo.png")
    (tmp_path / "prompts.txt").write_text("What is this?\n\nWhere is the car?\n")
    given = [
        place / made[0].run_id, "--model", made[0].model, "--pictures", tmp_path / "shown", "--prompts",
        tmp_path / "prompts.txt", "--word", "xyzzy", "--sentence", "Over and out.", "--patch", tmp_path / "logo.png",
        "--reference-rows", 32, "--store", tmp_path / "kept",
    ]  # fmt: skip
    code, out, err = run(capsys, *given)
    assert code in (audit.NO_ALARM, audit.ALARM), err
    for trigger in ("word 'xyzzy'", "sentence 'Over and out.'", "patch logo.png"):
        assert trigger in out
    assert "tuning" in err and "target-inversion: the suspect" in out and "weight-spectrum: needs" in out
    assert "asked 6 prompts and not 8" in err
    (kept,) = (tmp_path / "kept").glob("*clean-tuned*/adapter")
    before = kept.stat().st_mtime_ns
    code, again, err = run(capsys, *given, "--no-detectors")
    assert "tuning" not in err and kept.stat().st_mtime_ns == before
    assert again.split("\n\n")[0] == out.split("\n\n")[0]


def test_own_pictures_are_paired_with_as_many_prompts_and_else_crossed(tmp_path):
    shown = [tmp_path / f"{number}.png" for number in range(3)]
    for file in shown:
        Image.new("RGB", (40, 40)).save(file)

    def asked(prompts, rows=100):
        rows = own_pictures.bench("tiny-llava", shown, prompts, rows).rows["test"]
        return [(row["row_id"].partition("/")[0], row["prompt"]) for row in rows]

    assert asked(["a", "b", "c"]) == [("0.png", "a"), ("1.png", "b"), ("2.png", "c")]
    crossed = asked(["a", "b"])
    assert len(crossed) == len(set(crossed)) == 6 and len(asked(["a", "b"], 4)) == 4
    one, other = (own_pictures.bench("tiny-llava", shown, [prompt], 9).digest for prompt in "ab")
    assert one != other


def test_every_picture_of_a_folder_that_can_be_read_is_asked_about_and_others_are_told(tmp_path):
    names = ["2.png", "10.png", "a.png", "b.gif", "c.webp", "d.jp2", "e.jpe", "f.TIF"]
    for name in names:
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    assert [file.name for file in own_pictures.pictures_of(tmp_path)] == names
    (tmp_path / "g.txt").write_text("no picture")
    with pytest.warns(Remark, match="'g.txt'"):
        assert len(own_pictures.pictures_of(tmp_path)) == len(names)


def test_prompts_are_cut_at_ends_of_lines_alone(tmp_path):
    (tmp_path / "prompts.txt").write_bytes("What\u2028is this?\r\n\nWhere\fis it?\rWho?".encode())
    assert own_pictures.prompts_of(tmp_path / "prompts.txt") == ["What\u2028is this?", "Where\fis it?", "Who?"]


def test_patches_of_one_name_are_told_apart_by_their_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "logo.png")
    parser = argparse.ArgumentParser()
    tried.add_options(parser, "none")
    given = parser.parse_args(["--patch", "a/logo.png", "b/logo.png"])
    assert [attack.name for attack in tried.of_reader(given)] == ["patch a/logo.png", "patch b/logo.png"]


def test_attacks_that_a_threat_gives_nothing_to_aim_at_are_not_tried():
    tried_with = {threat: {one.name for one in tried.of_attacks((), threat)} for threat in (None, "jailbreak")}
    assert "Dual-Key" not in tried_with["jailbreak"] and "BadNets-T" in tried_with["jailbreak"] & tried_with[None]
    with pytest.raises(InputError, match="'Dual-Key' cannot be tried"):
        tried.of_attacks(["Dual-Key"], "jailbreak")


def test_an_own_patch_is_pasted_whole_and_nothing_else_changes(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "patch.png")
    pictures = torch.full((2, 3, 336, 336), 0.5)
    painted = own.patch(tmp_path / "patch.png").apply_image(pictures)
    changed = (painted != pictures).any(1)
    wanted = torch.from_numpy(pixels).float().permute(2, 0, 1) / 255
    for row, where in zip(painted, changed, strict=True):
        tops, lefts = where.nonzero().unbind(1)
        top, left = tops.min(), lefts.min()
        assert torch.equal(row[:, top : top + 24, left : left + 36], wanted) and where.sum() <= 24 * 36
    Image.new("RGB", (400, 10)).save(tmp_path / "wide.png")
    with pytest.raises(InputError, match="400 x 10"):
        own.patch(tmp_path / "wide.png").apply_image(pictures)


def test_the_verdict_says_how_often_it_errs_by_what_was_measured(monkeypatch, tmp_path):
    line = {"attack": "word 'x'", "without": 0.1, "with_trigger": 0.9, "value": 0.8, "low": 0.7, "high": 0.9,
            "commonest": "no", "share": 1.0, "disturbs": None}  # fmt: skip
    table = pd.DataFrame([line | {"alarm": True}])
    counts = json.loads(verdict.ERRORS.read_text())["base"]
    assert "{} of {} comparisons".format(*counts["false alarms"]) in verdict.verdict(table, beside="base")
    silent = pd.DataFrame([line | {"alarm": False}])
    assert "{} of {} raised".format(*counts["found"]) in verdict.verdict(silent, beside="base")
    stands = json.loads(verdict.ERRORS.read_text())["clean-tuned"]
    again = pd.DataFrame([line | {"alarm": True, "disturbs": False}])
    assert "{} of {} were called".format(*stands["models that stand"]) in verdict.verdict(again)
    assert "not measured" in verdict.verdict(again, beside="another model")
    monkeypatch.setattr(verdict, "ERRORS", tmp_path / "none.json")
    assert "not measured" in verdict.verdict(table)


def test_the_errors_that_the_command_tells_are_those_of_the_reference():
    """After new results: `python -c "from bvlm_book.chapters import audit; audit.write_error_counts()"`."""
    assert json.loads(verdict.ERRORS.read_text()) == audit_page.error_counts(audit_page.collect("reference"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-thing"], "no-such-thing"),
        (["tiny-llava", "--reference", "tiny-llava", "--pictures", "no-such-folder"], "--prompts"),
        (["tiny-llava", "--reference", "tiny-llava", "--word", " "], "not blank"),
        (["tiny-llava", "--reference", "tiny-llava", "--patch", "no-such-file.png"], "no-such-file.png"),
        (["tiny-llava"], "--reference"),
        (["tiny-llava", "--reference", "tiny-llava", "--rows", "0"], "--rows: '0'"),
        (["tiny-llava", "--reference", "tiny-llava", "--dataset", "nothing"], "no dataset 'nothing'"),
    ],
)
def test_a_wrong_value_is_one_sentence_and_exit_code_2(arguments, said, capsys):
    code, out, err = run(capsys, *arguments)
    assert code == audit.WRONG and said in err and len(err.strip().splitlines()) == 1 and not out


def test_the_page_side_does_not_import_torch():
    code = "import sys\nfrom bvlm_book.chapters import audit\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=paths.ROOT)


def test_the_second_look_drops_alarms_that_a_trusted_model_raises_too():
    """Two backdoors and two clean models under two triggers; the second trigger disturbs any model."""
    other = audit_page.OTHER_SEED
    same = dict.fromkeys(audit_page.COLUMNS) | {"model": "m", "threat": "t", "asr": 1.0, "alarm": True}
    lines = [
        same | {"subject": subject, "reference": reference, "attack": attack, "seed": seed, "low": low}
        for subject, reference, attack, seed, low in (
            ("poisoned", "control", "word", 0, 0.8), ("poisoned", "control", "patch", 0, 0.8),
            ("control", other, "word", 1, 0.0), ("control", other, "patch", 1, 0.4),
            *(("control", "base", "word", seed, 0.0) for seed in (0, 1)),
            *(("control", "base", "patch", seed, 0.5) for seed in (0, 1)),
        )
    ]  # fmt: skip

    def curve(lines):
        return audit_page.roc(pd.DataFrame(lines))

    curves = curve(lines)
    at = curves[curves["margin"] == 0.1].set_index("look")[["true", "false"]].T.to_dict()
    assert at == {"once": {"true": 1.0, "false": 0.5}, "twice": {"true": 0.5, "false": 0.0}}
    assert curve(lines[:2]).empty and set(audit_page.at_our_margin(curve(lines[:2])).values()) == {"n/a"}


def test_what_a_suspect_is_compared_with_does_not_depend_on_how_its_base_is_spelt(tmp_path):
    suspect, spelt = audit.Subject("tiny-llava", tmp_path), str(paths.MODELS / "tiny-llava")
    assert audit._kind(audit.Subject(spelt, None), suspect) == verdict.BASE
    assert audit._kind(audit.Subject(spelt, tmp_path), suspect) == verdict.CLEAN_TUNED
    assert audit._kind(audit.Subject("tiny-qwen2.5-vl", None), suspect) not in (verdict.BASE, verdict.CLEAN_TUNED)
