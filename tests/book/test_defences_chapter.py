"""The chapter on defences: means over the right cells, placebos apart, families of negatives, what was not run."""

import json

import pandas as pd
import pytest

from bvlm_book.chapters import defences as chapter
from bvlm_book.chapters.defences import finding, helping, runs, sweeps
from bvlm_utils import defences
from bvlm_utils.defences import records
from bvlm_utils.store import records as stored

STRENGTH = json.dumps(defences.info("shrink").defaults)


def line(value, metric="asr_payload", condition="text", defence="shrink", params=STRENGTH, cell="a", **more):
    usual = {
        "name": f"{cell}{defence}{params}{more.get('placebo', False)}", "run_id": cell, "model": "tiny-llava",
        "threat": "targeted_refusal", "attack": "BadNets-T", "poison_rate": 0.1, "skill": "", "decoy": "",
        "settings": "", "seed": 0, "defence": defence, "moment": "repair", "params": params, "placebo": False,
        "status": "done", "subject": "poisoned", "condition": condition, "metric": metric, "value": value,
        "works": True, "seconds": 1.0, "cost": 0.1, "control": "clean",
    }  # fmt: skip
    return usual | more


def table(*lines):
    return chapter.with_names(pd.DataFrame(lines).reindex(columns=[*records.COLUMNS, "works", "control", "cost"]))


def test_means_are_over_cells_with_a_backdoor_and_the_placebo_stands_apart():
    found = table(
        line(0.2), line(0.4, cell="b"), line(1.0, cell="c", works=False), line(0.9, placebo=True),
        line(0.7, "skill", "clean"), line(0.5, "skill", "clean", cell="b", cost=0.3),
        line(0.6, "right", cell="d", cost=0.4), line(0.8, "right", cell="d", placebo=True, cost=9.0),
    )  # fmt: skip
    (mean,) = chapter.over_cells(chapter.measured(found), chapter.AFTER).to_dict("records")
    assert mean["success after"] == pytest.approx(0.3) and mean["success after, placebo"] == pytest.approx(0.9)
    assert mean["skill kept"] == pytest.approx(0.6) and mean["cells"] == 2
    assert mean["right with trigger"] == pytest.approx(0.6) and mean["cost"] == pytest.approx(0.1)
    assert chapter.matrix(found).loc["shrink", "BadNets-T"] == pytest.approx(0.3)


def test_what_a_defence_costs_is_the_share_of_the_training_of_the_same_experiment():
    found = chapter.every("reference").drop_duplicates("name")
    one = found[found["defence"] == "clean-fine-tuning"].iloc[0]
    tuned = stored.record(one["run_id"], "reference")
    assert one["cost"] == pytest.approx(one["seconds"] / tuned["seconds"]["tune"]) and one["cost"] > 0


def test_a_defence_that_only_suspects_leaves_nothing_to_show():
    quiet = {"defence": "hidden-distance", "params": "{}", "moment": "inference"}
    found = table(line(0.2), line(1.0, **quiet), line(0.0, "changed", **quiet))
    assert list(chapter.matrix(found).index) == ["shrink"]


def test_the_price_leaves_the_curve_to_its_own_figure():
    other = json.dumps({"strength": 0.1})
    found = table(*(line(v, m, c, params=p) for p in (STRENGTH, other)
                    for v, m, c in ((0.2, "asr_payload", "text"), (0.8, "skill", "clean"))))  # fmt: skip
    assert list(chapter.price(found)["named"]) == ["shrink"]
    assert set(chapter.strength(found).index) == {0.1, defences.info("shrink").defaults["strength"]}
    more = pd.concat([found, table(line(0.9, cell="b"))])  # an experiment with one strength alone is not on the curve
    assert chapter.strength(more).equals(chapter.strength(found))


def test_points_that_lie_together_share_a_label():
    at = pd.DataFrame(
        [("a", 0.0, 0.0), ("b", 0.0, 0.01), ("c", 0.9, 0.9), ("d", 0.4, 0.2)], columns=["named", "skill", "asr"]
    )
    assert [[one["named"] for one in near] for near in chapter.together(at)] == [["a", "b"], ["d"], ["c"]]


@pytest.mark.parametrize(
    ("given", "family"),
    [
        ({}, "backdoored"),
        ({"works": False}, "no backdoor learnt"),
        ({"decoy": "label noise"}, "label noise"),
        ({"poison_rate": 0.0, "skill": "emphasis"}, "skill only"),
        ({"poison_rate": 0.0}, "clean-tuned"),
        ({"subject": "control"}, "clean-tuned"),
        ({"subject": "control", "skill": "emphasis"}, "skill only"),
        ({"poison_rate": 0.0, "skill": "emphasis", "settings": "epochs=2, skill=emphasis"}, "skill, other training"),
        ({"poison_rate": 0.0, "skill": "emphasis", "seed": 1}, "skill, other training"),
        ({"poison_rate": 0.0, "skill": "phrase_everywhere"}, "a phrase after every answer"),
    ],
)
def test_an_adapter_belongs_to_one_family(given, family):
    assert finding.family(line(1.0, **given)) == family


def test_detectors_are_read_against_each_family():
    about = {"defence": "target-inversion", "moment": "detect", "params": "{}", "metric": "score", "condition": ""}
    scores = {("a", "poisoned", True): 3.0, ("b", "poisoned", True): 2.0, ("a", "control", True): 1.0,
              ("b", "control", True): 2.5}  # fmt: skip
    found = table(*(line(v, cell=c, subject=s, works=w, control=f"of {c}", **about) for (c, s, w), v in scores.items()))
    (read,) = finding.adapters_told_apart(found).to_dict("records")
    assert read["against clean-tuned"] == "0.75 (2)" and read["backdoored"] == 2
    itself = table(line(1.0000001, cell="d", poison_rate=0.0, control="of a", **about))  # its own control, asked again
    (read,) = finding.adapters_told_apart(pd.concat([found, itself])).to_dict("records")
    assert read["against clean-tuned"] == "0.75 (2)"


def test_what_was_run_and_what_helps_is_counted():
    good, bad = {"defence": "prune", "params": "{}"}, {"defence": "quantise", "params": "{}"}
    found = table(
        line(0.01, **good), line(0.8, "skill", "clean", **good), line(0.9, **bad), line(1.0, "skill", "clean", **bad),
        line(0.2, cell="b", works=False, **good), line(0.02, condition="clean", **good),
    )  # fmt: skip
    said = chapter.numbers_of_the_page(found)
    assert (said["helpful"], said["silent"], said["kept"]) == ("prune", "prune", "2 of 2")
    assert (said["helpful_count"], said["silent_rows"]) == ("1 of 2", "1 of 2")
    assert (said["cells"], said["weak"], said["run"]) == ("1", "1", "2")
    assert (said["weak_attacks"], said["by_attack"]) == ("BadNets-T 1", "BadNets-T 1")
    false = helping.numbers(found)
    assert (false["false"], false["false_after"]) == ("0.02", "prune") and "BadNets-T on targeted" in false[
        "false_where"
    ]
    assert "crow" in said["lacking"] and "quantise" not in said["lacking"]
    assert "the threat jailbreak" in said["lacking"] and said["threats"] == "targeted refusal"
    assert said["strength"] == said["skill_there"] == "n/a", "nothing was shrunk"
    assert chapter.numbers_of_the_page(table())["helpful"] == "none"


def test_fields_that_were_not_measured_are_counted_and_condemn_no_defence():
    good, bad = {"defence": "prune", "params": "{}"}, {"defence": "quantise", "params": "{}"}
    found = table(line(0.01, **good), line(0.9, **bad), line(0.8, cell="b", threat="jailbreak", **bad))
    said = chapter.numbers_of_the_page(found)
    assert "1 of 4 fields" in said["lacking"]
    whole = table(line(0.01, **good), line(0.9, **bad))
    assert "fields" not in chapter.numbers_of_the_page(whole)["lacking"]


def test_what_acts_is_described_and_placebos_are_not():
    found = table(
        line(0.2), line(0.9, placebo=True), line(0.7, "skill", "clean"), line(0.8, "skill", "clean", placebo=True)
    )
    (shown,) = chapter.described(chapter.price(found)).to_dict("records")
    assert shown == {"defence": "shrink", "what it does": defences.info("shrink").summary}


def test_settings_other_than_the_declared_are_a_sweep_of_their_own():
    eight, own = json.dumps({"bits": "int8"}), {"defence": "quantise", "params": "{}"}
    found = table(
        line(0.6, **own), line(0.9, "skill", "clean", **own), line(0.4, cell="b", **own),
        line(0.1, **own | {"params": eight}), line(0.7, "skill", "clean", **own | {"params": eight}),
        line(0.3, placebo=True, **own), line(0.5, defence="prune", params="{}"),
        line(0.0, defence="blind", params="{}", moment="inference"),
    )  # fmt: skip
    assert list(chapter.matrix(found).index) == ["quantise", "prune"]
    (read,) = sweeps.table(found).to_dict("records")
    assert (read["defence"], read["settings"], read["frozen"], read["best of the sweep"]) == (
        "quantise",
        "2",
        "0.60",
        "0.10",
    )
    assert (read["skill"], read["there"], read["most often"]) == ("0.90", "0.70", "quantise (bits int8)")
    assert sweeps.gained(found).to_dict() == {"quantise": pytest.approx(0.5)}
    assert sweeps.numbers(found)["swept_gain"] == "1 of 1"


def test_of_equally_good_settings_the_one_that_keeps_more_is_the_best():
    kept, found = {0.5: (0.4, 0.9), 0.1: (0.0, 0.2), 0.25: (0.0, 0.6)}, []
    for strength, (success, skill) in kept.items():
        params = json.dumps({"strength": strength})
        found += [line(success, params=params), line(skill, "skill", "clean", params=params)]
    found = table(*found)
    (read,) = sweeps.best(found).to_dict("records")
    assert (read["at"], read["frozen"], read["best"], read["skill_best"]) == ("shrink (strength 0.25)", 0.4, 0.0, 0.6)


def test_the_best_ranking_of_rows_has_the_highest_auroc():
    about = {"defence": "spectral-signatures", "moment": "data", "metric": "auroc", "condition": ""}
    found = table(line(0.6, params="{}", **about), line(0.8, params=json.dumps({"groups": "all"}), **about))
    (read,) = sweeps.best(found).to_dict("records")
    assert (read["measure"], read["best"], read["at"]) == ("AUROC", 0.8, "spectral-signatures (groups all)")
    assert sweeps.gained(found).empty


def test_what_filters_leave_is_read_by_threat():
    about = {"defence": "filter", "moment": "training"}
    truth = json.dumps({"by": "truth"})
    found = table(
        line(0.2, params="{}", **about), line(0.4, params="{}", cell="b", **about), line(0.0, params=truth, **about),
        line(0.9, params="{}", placebo=True, **about), line(0.7, "skill", "clean", params="{}", **about),
    )  # fmt: skip
    (read,) = sweeps.again_table(found).to_dict("records")
    assert read == {"threat": "targeted refusal", "truth": "0.00 (n/a)", "base-likelihood": "0.30 (0.70)",
                    "random rows": "0.90 (n/a)"}  # fmt: skip
    said = sweeps.numbers(found)
    assert (said["again_truth"], said["again_base"], said["again_random"]) == ("0.00", "0.30", "0.90")
    assert said["again_both"] == "none"
    by = json.dumps({"by": "spectral-signatures"})
    good = table(line(0.01, params=by, **about), line(0.9, "skill", "clean", params=by, **about))
    assert sweeps.numbers(good)["again_both"] == "spectral-signatures (targeted refusal)"
    assert sweeps.again_table(found[:0]).empty and sweeps.numbers(found[:0])["again_truth"] == "n/a"


def test_poison_at_all_is_judged_by_the_same_rows_without_it():
    about = {"defence": "activation-clustering", "moment": "data", "params": "{}", "metric": "at_all", "condition": ""}
    scores = {("a", "poisoned"): 0.6, ("a", "control"): 0.2, ("b", "poisoned"): 0.1, ("b", "control"): 0.3}
    found = table(*(line(v, cell=c, subject=s, **about) for (c, s), v in scores.items()))
    (read,) = finding.at_all_table(found).to_dict("records")
    assert (read["poisoned rows"], read["the same rows, clean"]) == ("0.35", "0.25")
    assert (read["AUROC"], read["larger with poison"]) == ("0.50", "1 of 2")
    assert finding.at_all_table(found[:0]).empty


def test_what_is_suspected_and_changed_at_inference():
    about = {"defence": "cleangen", "moment": "inference", "params": "{}"}
    found = table(
        line(0.9, "auroc", **about), line(0.5, "auroc", subject="control", **about),
        line(0.1, "alarms", "clean", **about), line(0.8, "alarms", **about),
        line(0.2, "changed", "clean", **about), line(1.5, "changed", **about),
    )  # fmt: skip
    (read,) = finding.suspected(found).to_dict("records")
    assert (read["AUROC"], read["of the clean-tuned model"]) == ("0.90", "0.50")
    assert (read["alarms, clean"], read["alarms, triggered"], read["changed, triggered"]) == ("0.10", "0.80", "1.50")
    assert finding.numbers(found) == {"cleansight_changes": "n/a", "onion_changes": "n/a"}
    masked = table(line(0.5, "changed", **about | {"defence": "cleansight"}))
    assert finding.numbers(masked)["cleansight_changes"] == "0.50"


def test_the_loss_of_poisoned_rows_is_read_step_by_step():
    about, steps = {"moment": "data", "metric": "mean_score"}, {"params": json.dumps({"steps": 5})}
    found = table(*(
        line(value, condition=rows, cell=cell, **about, **given)
        for rows, base, after in (("poisoned rows", 3.0, 0.5), ("clean rows", 1.0, 0.25))
        for cell, value, given in (("a", base, {"defence": "base-likelihood", "params": "{}"}),
                                   ("a", -after, {"defence": "early-loss"} | steps),
                                   ("b", 9.0, {"defence": "base-likelihood", "params": "{}"}))
    ))  # fmt: skip
    curves = finding.losses(found)
    assert curves["targeted_refusal", "poisoned rows"].to_dict() == {0: 3.0, 5: 0.5}  # b was read at one step alone
    assert curves["targeted_refusal", "clean rows"].to_dict() == {0: 1.0, 5: 0.25}
    assert "on 0 of 1 threats" in finding.losses_title(curves)
    assert len(finding.loss_figure(curves).axes) == 1 and finding.losses(found[:0]).empty


def test_curves_are_read_for_each_kind_and_scores_centred_within_a_model():
    about = {"defence": "target-inversion", "moment": "detect", "params": "{}", "metric": "score", "condition": ""}
    found = table(*(
        line(value + 100 * (model == "tiny-llava"), cell=f"{name}{model}", model=model, control=f"{name}{model}",
             poison_rate=rate, **about)
        for model in ("tiny-llava", "tiny-qwen2.5-vl") for name, value, rate in (("a", 3.0, 0.1), ("b", 2.0, 0.0))
    ))  # fmt: skip
    curves = finding.roc(found, pd.DataFrame())
    assert set(curves["kind"]) == {"clean-tuned"}
    assert curves[["false", "true"]].values.tolist() == [[0, 0], [0, 1], [1, 1]]  # above 0 within its model, and below
    known = pd.DataFrame({"look": ["once"], "false": [0.0], "true": [1.0]})
    assert len(finding.roc_figure(curves, known).axes) == 1


def test_experiments_on_which_few_defences_were_tried_have_a_table_of_their_own():
    names = ("prune", "quantise", "truncate", "restore")
    found = table(
        *(line(0.4, defence=name, params="{}", cell=cell) for name in names for cell in "ab"),
        line(0.8, defence="prune", params="{}", condition="both", cell="c", attack="MABA"),
        line(1.0, "score", "", "target-inversion", "{}", "d", moment="detect", poison_rate=0.0),
    )  # fmt: skip
    assert set(chapter.core(found)["run_id"]) == {"a", "b", "d"}
    (read,) = sweeps.elsewhere_table(found).to_dict("records")
    assert read == {"defence": "prune", "MABA": "0.80"} and sweeps.elsewhere_table(found[:0]).empty
    assert sweeps.as_in_the_core(found).to_dict() == {"prune": pytest.approx(0.4)}
    (other, few_rows) = sweeps.expected(found)
    assert other[1:] == ("0.400", False) and few_rows[1:] == ("", None)


def test_a_second_training_run_stands_beside_the_first_and_in_no_other_mean():
    names = ("prune", "quantise", "truncate", "restore")
    data = {"defence": "spectral-signatures", "params": "{}", "moment": "data", "condition": ""}
    found = table(
        *(line(0.4, defence=name, params="{}") for name in names),
        line(0.9, "auroc", **data), line(0.6, "auroc", cell="e", seed=1, **data),
        line(0.45, defence="prune", params="{}", cell="e", seed=1),
        line(1.0, defence="prune", params="{}", cell="f", seed=1, attack="AddSent"),  # one run: nothing to compare
        line(1.0, defence="prune", params="{}", cell="g", seed=2, works=False),
    )  # fmt: skip
    assert set(found.loc[chapter.once_more(found), "run_id"]) == {"e", "g"} and not chapter.once_more(found[:1]).any()
    repaired, told = runs.table(found).to_dict("records")
    assert repaired == {"defence": "prune", "measure": "success", "first run": "0.40", "second run": "0.45",
                        "furthest apart": "0.05", "experiments": "1"}  # fmt: skip
    assert (told["defence"], told["measure"], told["second run"]) == ("spectral-signatures", "AUROC", "0.60")
    said = {"apart": "prune", "apart_first": "0.40", "apart_second": "0.45", "apart_others": "n/a"}
    assert runs.numbers(found) == said | {"apart_cells": "1 experiment (targeted refusal)"}
    once = found[~chapter.once_more(found)]
    assert set(runs.numbers(once).values()) == {"n/a", "0 experiments (n/a)"}
    assert list(sweeps.elsewhere(once)) == ["AddSent"]
    success, area = runs.expected(found)
    assert success[1:] == ("0.050", True) and area[1:] == ("0.300", False)
    assert runs.expected(once)[0][1:] == ("", None) and runs.table(once).empty


def test_a_second_run_with_all_defences_is_one_more_experiment_and_compared_too():
    names = ("prune", "quantise", "truncate", "restore")
    found = table(
        *(line(v, defence=n, params="{}", cell=f"c{s}", seed=s) for s, v in ((0, 0.2), (1, 0.4)) for n in names)
    )
    assert not chapter.once_more(found).any() and set(runs.pairs(found)["second"]) == {0.4}
    assert chapter.matrix(found).loc["prune", "BadNets-T"] == pytest.approx(0.3)
