"""Re-activation, attackers who know the defence, and spectra: what the pages on defences say beside the main grid."""

import json

import numpy as np
import pandas as pd
import pytest

from bvlm_book import tables
from bvlm_book.chapters import defences as chapter
from bvlm_book.chapters.defences import expected, finding, helping, knowing, reactivation, spectra
from bvlm_utils import defences, paths
from bvlm_utils.defences import records

STRENGTH = json.dumps(defences.info("shrink").defaults)


def line(value, cell="a", defence="shrink", **more):
    usual = {
        "run_id": cell, "model": "tiny-llava", "threat": "targeted_refusal", "attack": "BadNets-T", "poison_rate": 0.1,
        "skill": "counts_in_words", "decoy": "", "settings": "skill=counts_in_words", "defence": defence,
        "moment": "repair", "params": STRENGTH if defence == "shrink" else "{}", "placebo": False, "relearn": 0,
        "status": "done", "subject": "poisoned", "condition": "text", "metric": "asr_payload", "value": value,
        "works": True, "asr_before": 0.9,
    } | more  # fmt: skip
    return usual | {"name": f"{cell}{usual['defence']}{usual['relearn']}{usual['placebo']}"}


def table(*lines):
    return chapter.with_names(
        pd.DataFrame(lines).reindex(columns=[*records.COLUMNS, "works", "asr_before", "control", "cost"])
    )


def test_a_backdoor_comes_back_where_it_is_relearnt_faster_than_a_new_one(monkeypatch):
    def pair(ours, theirs, **more):
        return line(ours, **more), line(theirs, subject="control", **more)

    again = table(
        *pair(0.8, 0.0, relearn=20), *pair(0.6, 0.1, relearn=20, cell="b"), *pair(0.2, 0.0, relearn=5),
        *pair(0.05, 0.0, relearn=20, defence="restore"), *pair(0.5, 0.0, relearn=20, defence="oracle"),
    )  # fmt: skip
    monkeypatch.setattr(chapter, "collect", lambda place, relearnt: again)
    found = table(line(0.3), line(0.1, cell="b"), line(1.0, placebo=True))
    lines = reactivation.means(reactivation.collect(), found)
    (most,) = lines[(lines["defence"] == "shrink") & (lines["relearn"] == 20)].to_dict("records")
    assert [most[name] for name in ("right", "value", "never", "cells")] == pytest.approx([0.2, 0.7, 0.05, 2])
    said = reactivation.numbers(lines)  # the oracle is no repair
    assert (said["repairs"], said["back"], said["back_names"], said["rows"]) == ("2", "1", "shrink", "5 or 20")
    shown = reactivation.table(lines).set_index("repair")
    assert shown.loc["shrink", "after 20 rows"] == "0.70 (0.05)" and shown.loc["restore", "after 5 rows"] == "n/a"


def test_a_store_without_it_has_nothing_to_say():
    empty = reactivation.means(table(line(0.1))[:0].assign(never=0.0), table(line(0.1)))
    assert reactivation.table(empty).empty and reactivation.numbers(empty)["repairs"] == "0"
    skipped = table(line(None, status="skipped", metric=None, subject=None, condition=None))
    none = chapter.with_names(skipped[:0]).assign(never=0.0)
    assert reactivation.means(none, skipped).empty, "no backdoor of the store works"
    lines = knowing.read(table(line(0.1)))
    assert knowing.table(lines).empty and knowing.numbers(lines) == {"evaded": "0 of 0", "evaded_models": "n/a"}


def test_an_attacker_of_settings_of_its_own_stands_beside_the_usual_one():
    informed = {"settings": "epochs=2, skill=counts_in_words", "cell": "c", "asr_before": 1.0}
    found = table(
        line(0.2), line(0.4, cell="b"), line(0.7, **informed), line(0.9, cell="d", threat="jailbreak"),
        line(0.0, cell="e", poison_rate=0.0, settings="epochs=2", moment="detect", metric="score"),
    )  # fmt: skip
    assert list(found.loc[chapter.adaptive(found), "run_id"]) == ["c"]
    lines = knowing.read(found)
    assert knowing.numbers(lines) == {"evaded": "1 of 1", "evaded_models": "tiny-llava"}
    (shown,) = knowing.table(lines).to_dict("records")
    assert shown["attacker"] == "BadNets-T on targeted refusal, 10 %, epochs=2"
    assert (shown["usual attacker"], shown["this attacker"], shown["measure"]) == ("0.30", "0.70", "success after")


def population(shift):
    """40 adapters; the leading singular value of backdoored ones is higher by `shift` spreads."""
    draws = np.random.default_rng(0)
    truth = np.tile([0, 1], 20)
    about = {
        "backdoored": truth, "kind": np.where(truth, "backdoored", "skill only"), "norm": 1.0,
        "model": np.repeat(["one", "two"], 20),
        "attack": np.tile(["A", "A", "B", "B"], 10), "threat": np.tile(["x"] * 4 + ["y"] * 4, 5),
    }  # fmt: skip
    size = np.repeat([1.0, 10.0], 20)  # the second model's are larger
    return pd.DataFrame(
        about | {"q.leading": size * (draws.normal(size=40) + shift * truth), "q.norm": draws.random(40)}
    )


def test_spectra_that_differ_are_told_apart_whatever_is_left_out_and_alike_ones_are_not():
    for by in spectra.LEFT_OUT:
        far, alike = population(8.0), population(0.0)
        assert spectra.area(far, spectra.scores(far, by), "skill only") == (1.0, 20)
        assert spectra.area(alike, spectra.scores(alike, by), "skill only")[0] < 0.8
    shown = spectra.table(population(8.0)).set_index("detector")["against skill only"]
    assert shown["norm (placebo)"] == "0.50 (20)" and len(shown) == 4
    assert spectra.table(population(0.0)[:0]).empty


def probes():
    """Areas of two adapters asked about as another threat, and of one as another attack."""
    return pd.DataFrame({
        "left_out": ["threat", "threat", "attack"], "attack": ["BadNets-T", "Blended", "BadNets-T"],
        "model": "tiny-llava", "backdoored": [0.98, 0.96, 0.9], "control": [0.7, 0.6, 0.5], "placebo": 0.5,
    })  # fmt: skip


def test_probes_are_shown_by_what_was_left_out_and_kind_of_trigger():
    shown = spectra.probe_table(probes()).set_index(["probe asked about", "trigger"])
    assert shown.loc[("another threat", "image"), ["adapters", "backdoored", "control"]].tolist() == [1, "0.96", "0.60"]
    assert len(shown) == 3 and spectra.probe_table(spectra.read(paths.ROOT / "nothing.csv")).empty


def test_threats_and_models_are_told_apart():
    found = table(
        line(0.2), line(0.4, cell="b", attack="Blended", condition="image"), line(0.01, cell="c", model="tiny-other"),
        line(0.02, defence="restore"), line(0.03, cell="c", model="tiny-other", defence="restore"),
        line(0.0, defence="oracle"),
    )  # fmt: skip
    grid = chapter.matrix(found, "threat")
    assert list(grid) == ["targeted refusal, tiny-llava", "targeted refusal, tiny-other"]
    assert grid.loc["shrink"].tolist() == pytest.approx([0.3, 0.01]) and pd.isna(grid.loc["oracle"].iloc[1])
    beside = chapter.matrix(found, "threat", undefended=True)
    assert list(beside.index)[-1] == "no defence" and beside.iloc[-1].tolist() == pytest.approx([0.9, 0.9])


def test_a_defence_helps_where_it_beats_its_placebo_and_keeps_the_skill():
    def measured(cell, passed, passed_placebo, skill, **more):
        sides = {False: passed, True: passed_placebo}
        return [
            *(line(k / 20, cell, held="1" * k + "0" * (20 - k), placebo=side, **more) for side, k in sides.items()),
            line(skill, cell, metric="skill", condition="clean", **more),
        ]  # fmt: skip

    found = table(
        *measured("a", 0, 18, 0.8), *measured("b", 0, 18, 0.4), *measured("c", 9, 10, 0.8),
        *measured("d", 0, 18, 0.8, threat="jailbreak"), *measured("a", 0, 18, 0.8, defence="oracle"),
    )  # fmt: skip
    helped = helping.helped(found).set_index("run_id")["helps"]
    assert helped.to_dict() == {"a": True, "b": False, "c": False, "d": True}, "skill lost; no difference"
    said = helping.numbers(found)
    assert (said["helps_most"], said["helps_count"]) == ("shrink", "2 of 4")
    assert (said["both_threats"], said["both"]) == ("jailbreak", "shrink")
    assert helping.numbers(found[:0])["helps_most"] == "n/a" and helping.numbers(found[:0])["both"] == "none"


def test_rankings_are_told_apart_by_threat():
    def share(value, **more):
        kind = {"moment": "data", "metric": "true_positives", "condition": "", "defence": "spectral-signatures"}
        return line(value, **kind | more)

    found = table(share(0.9), share(0.1, cell="b", threat="jailbreak"), share(0.2, defence="onion-rows"))
    said = "Found, by threat: spectral-signatures 0.10 (jailbreak) to 0.90 (targeted refusal)."
    assert finding.found_by_threat(found) == said and finding.found_by_threat(found[:0]) == ""


def test_what_was_expected_of_attackers_is_judged_whole_or_waits():
    strong = {"settings": "attack.alpha=0.4, skill=counts_in_words", "moment": "training", "defence": "input-diversity"}
    found = table(line(0.2), line(0.3, cell="b"), line(0.97, cell="c", **strong))
    told = {text: came for text, _, came in knowing.expected(found)}
    assert [came for text, came in told.items() if "strong picture" in text] == [True]
    assert [came for text, came in told.items() if "strong picture" not in text] == [None] * 4
    weak = table(line(0.2), line(0.3, cell="b"), line(0.90, cell="c", **strong))
    assert [came for text, _, came in knowing.expected(weak) if "strong picture" in text] == [False]
    part = {"metric": "score", "moment": "detect", "defence": "target-inversion", "params": "{}"}
    scores = table(
        line(0.2), line(0.3, cell="b"), *(
            line(value, cell=cell, subject=subject, placebo=placebo, asr_before=1.0, **part | more)
            for cell, subject, placebo, value, more in [
                ("c", "poisoned", False, 0.84, {"settings": "epochs=2"}),
                ("c", "poisoned", True, 6.0, {"settings": "epochs=2"}),
                ("a", "poisoned", False, 0.86, {}), ("a", "poisoned", True, 9.0, {}),
                ("a", "control", False, 0.89, {}), ("a", "control", True, 10.0, {}),
            ])
    )  # fmt: skip
    ((measured, came),) = [(said, came) for text, said, came in knowing.expected(scores) if "smaller update" in text]
    assert came is True and measured == "norm 6.00 against 10.00, score 0.840 against 0.860 (0.890)"


def test_expectations_come_true_or_not_or_wait_for_runs():
    def told(*lines, again=None, probed=None):
        found = table(*lines)
        again = reactivation.means(found[:0].assign(never=0.0), found) if again is None else again
        probed = spectra.read(paths.ROOT / "nothing.csv") if probed is None else probed
        made = expected.table(found, again, population(0.0)[:0], probed)
        return made.set_index("expected")

    params = json.dumps(defences.info("prune").defaults, sort_keys=True)
    prune = {"defence": "prune", "params": params}
    one = told(line(0.2, **prune), line(0.0, defence="oracle"), line(0.3, defence="crow"))
    survives = one.filter(like="survive prune", axis=0).iloc[0]
    assert survives["came true"] == "not all run yet" and survives["measured"] == "0.200"  # there is a second model
    assert one.loc[one.index.str.startswith("without the update"), "came true"].item() == "yes"
    both = told(line(0.2, **prune), line(0.4, **prune, model="tiny-other", cell="b"))
    assert both.filter(like="survive prune", axis=0)["came true"].item() == "no"
    score = {"defence": "target-inversion", "moment": "detect", "metric": "score", "condition": ""}
    asked = told(line(0.9, **score), line(0.5, **score, subject="control"))
    assert asked.filter(like="inversion on refusal", axis=0)[["measured", "came true"]].iloc[0].tolist() == [
        "1.000",
        "yes",
    ]
    again = pd.DataFrame({"defence": ["shrink", "oracle"], "relearn": 20, "value": [0.5, 0.1], "never": 0.05})
    assert told(again=again)["came true"].tail(2).tolist() == ["yes", "yes"]
    counted = tables.outcomes(both)
    assert int(counted["expected"]) == sum(int(counted[name]) for name in ("true", "false", "open"))
    states = told(line(0.2), probed=probes())
    assert states.filter(regex="^a probe|^of it", axis=0)["came true"].tolist() == ["yes", "no", "no"]
    other = {"defence": "mix", "params": json.dumps({"others": ["a"]})}
    skill = {"metric": "skill", "condition": "clean"}
    mixed = told(line(0.2), line(0.3, **other), line(0.5, **skill), line(0.7, **other, **skill))
    assert mixed.filter(like="mix with", axis=0)["came true"].item() == "no"
