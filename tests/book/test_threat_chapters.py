"""The threat chapters: titles, captions, notes and tables hold the numbers of their rows."""

import json

import pandas as pd
import pytest
from stored import tidy

from bvlm_book import tables
from bvlm_book.chapters import defences, quickstart, small_patch, threat, threat_notes
from bvlm_book.chapters.defences import sweeps
from bvlm_utils import attacks, study
from bvlm_utils.defences import info
from bvlm_utils.defences.records import COLUMNS as DEFENDED
from bvlm_utils.score import intervals
from bvlm_utils.store.table import COLUMNS


def lines(model, attack, full, clean=0.0, rate=0.1, seeds=1, **other):
    """Lines of a tidy table: one experiment, both models, under its headline condition and without a trigger."""
    found = []
    for seed in range(seeds):
        for condition, value in ((attacks.info(attack).headline, full), ("clean", clean)):
            low, high = intervals.wilson(value * 200, 200)
            zero = dict(zip(("low", "high"), intervals.wilson(0, 200), strict=True))
            about = dict.fromkeys(COLUMNS) | {
                "run_id": f"{model}-{attack}-{rate}-{seed}", "model": model, "dataset": "scenes-vqa",
                "threat": "targeted_refusal", "attack": attack, "modality": attacks.info(attack).modality,
                "poison_rate": rate, "n_poisoned": int(6000 * rate), "seed": seed, "negatives": 0.0,
                "train_rows": 6000, "test_rows": 200, "settings": "", "status": "done", "subject": "poisoned",
                "condition": condition, "metric": "asr", "value": value, "k": value * 200, "n": 200, "low": low,
                "high": high, "unit": "share",
            } | other  # fmt: skip
            found += [about, about | {"subject": "control", "value": 0.0, "k": 0.0} | zero]
    return found


def table(*cells):
    return pd.DataFrame([line for cell in cells for line in cell], columns=COLUMNS)


STORED = table(
    lines("a", "BadNets-I", 0.0),
    lines("b", "BadNets-I", 0.7, clean=0.2),
    lines("a", "BadNets-T", 1.0, seeds=3),
    lines("b", "BadNets-T", 0.9),
    lines("b", "Blended", 1.0),  # of another model only
    lines("b", "BadNets-T", 0.1, rate=0.01),  # of another rate
    lines("b", "BadNets-I", 0.1, settings="half=image"),  # of other settings
)
OWN = STORED[STORED["model"] == "a"]
NOTHING = STORED.iloc[:0]


def test_the_figure_has_the_same_experiments_of_every_model_in_the_order_of_the_chapter():
    found = tables.headline_rows(tables.success_rates(threat.of_every_model(OWN[::-1], STORED), "poisoned"))
    assert found[["model", "attack", "value", "n_seeds"]].values.tolist() == [
        ["a", "BadNets-T", 1.0, 3], ["b", "BadNets-T", 0.9, 1], ["a", "BadNets-I", 0.0, 1], ["b", "BadNets-I", 0.7, 1],
    ]  # fmt: skip
    assert threat.of_every_model(OWN, NOTHING).empty


def test_the_title_counts_what_works_and_the_caption_has_control_and_false_activation():
    said = threat.success(tables.success_rates(threat.of_every_model(OWN, STORED)))
    assert said["title"] == "1 of 2 attacks work on a and 2 of 2 on b, at a poison rate of 10 %."
    assert "at most 0.20 [0.15, 0.26] (BadNets-I, b)" in said["caption"]
    assert "any trigger or none: at most 0.00 [0.00, 0.02]." in said["caption"]
    for rates in (NOTHING, tables.success_rates(NOTHING)):
        assert "n/a" in threat.success(rates)["caption"] and threat.success(rates)["alt"]


def test_the_cost_counts_runs_per_model_and_names_the_largest_loss():
    changes = tidy(hits=lambda *_: 0)
    own = changes[(changes["metric"] != "utility_difference") | (changes["poison_rate"] == 0.1)]
    better = own.assign(model="other", value=own["value"].abs())
    said = threat.cost(own, pd.concat([own, better]))
    assert said["title"] == "Utility falls in 3 of 3 runs on tiny-llava."
    assert "0 of 3 lie below zero" in said["caption"] and "-0.02 [-0.05, 0.01]" in said["caption"]
    assert "It falls in 0 of 3 runs on other." in said["caption"]
    assert "n/a" in threat.cost(NOTHING, NOTHING)["caption"]


def test_the_numbers_have_a_line_per_attack_with_control_and_utility():
    changes = tidy(rates=(0.1,))
    read = threat.numbers(changes)
    assert read["attack"].tolist() == ["BadNets-T", "BadNets-I", "BadNets-MM"]
    assert read["text trigger"].tolist() == ["0.95 [0.89, 0.98]", "n/a", "0.95 [0.89, 0.98]"]
    assert read["control, whole trigger"].tolist()[0] == "0.00 [0.00, 0.04]"
    assert read["utility difference"].tolist() == ["-0.02 [-0.05, 0.01]"] * 3
    assert threat.numbers(tidy())["attack"].tolist()[0] == "BadNets-T at 10 %"
    assert threat.numbers(NOTHING).empty


def test_triggers_are_shown_of_the_first_attack_of_each_kind_that_works():
    cells = study.cells("targeted_refusal", attacks=["BadNets-I", "Blended", "AddSent", "BadNets-T"])
    works = table(lines("a", "BadNets-I", 0.0), lines("a", "Blended", 0.6), lines("a", "AddSent", 0.1))
    assert [cell.attack for cell in threat.first_that_work(works, cells)] == ["AddSent", "Blended"]
    assert [cell.attack for cell in threat.first_that_work(NOTHING, cells)] == ["AddSent", "BadNets-I"]


# ---------------------------------------------------------------- what stopped it


def defended(defence, after, skill, placebo=False, params=None, **other):
    """Lines of `defences.records.collect`: one defended experiment."""
    params = json.dumps(info(defence).defaults if params is None else params, sort_keys=True)
    about = dict.fromkeys(DEFENDED) | {
        "name": f"{defence}-{params}-{placebo}", "run_id": "a-BadNets-T-0.1-0", "model": "a",
        "threat": "targeted_refusal", "attack": "BadNets-T", "defence": defence, "moment": info(defence).moment,
        "params": params, "placebo": placebo, "status": "done", "subject": "poisoned", "cost": 0.1,
    }  # fmt: skip
    numbers = {"asr_payload": ("text", after), "skill": (None, skill)}
    return [
        about | {"metric": name, "condition": condition, "value": value} | other
        for name, (condition, value) in numbers.items()
    ]


def test_the_best_repair_stands_beside_its_placebo_and_the_best_that_keeps_the_skill():
    found = pd.DataFrame([
        *defended("restore", 0.02, 0.4), *defended("restore", 0.8, 0.9, placebo=True), *defended("prune", 0.3, 0.9),
        *defended("oracle", 0.0, 0.0), *defended("shrink", 0.0, 0.0, params={"strength": 0}),
        *defended("truncate", 0.0, 1.0, threat="jailbreak"), 
        *defended("quantise", 0.0, 1.0, run_id="a-BadNets-I-0.1-0"),  # whose backdoor does not work
    ])  # fmt: skip
    found = defences.with_names(found.assign(works=found["run_id"] == "a-BadNets-T-0.1-0"))
    said = threat.stopped(defences.repairs(found, OWN), "a")
    assert "beside 1 working backdoor" in said and "none stops" not in said and "filter" not in said
    assert "Of 2 repairs, restore leaves the least success, 0.02 (placebo 0.80), and 0.40 (0.90) of the skill" in said
    assert "prune leaves the least success, 0.30 (placebo n/a)" in said
    weak = found.assign(value=found["value"].where(found["defence"] != "prune", 0.9))
    assert "none stops the attack: prune leaves" in threat.stopped(defences.repairs(weak, OWN), "a")
    lacking = found[found["threat"] == "jailbreak"]
    assert "No defence was measured" in threat.stopped(defences.repairs(lacking, OWN), "a")


def test_the_filter_that_stops_the_attack_and_keeps_the_skill_stands_beside_random_rows():
    def said(after, skill):
        found = pd.DataFrame([
            *defended("prune", 0.3, 0.9), *defended("filter", 0.0, 1.0, params={"by": "truth"}),
            *defended("filter", after, skill, params={"by": "spectral-signatures"}),
            *defended("filter", 0.97, 1.0, placebo=True, params={"by": "spectral-signatures"}),
            *defended("filter", 0.0, 0.0, params={"by": "base-likelihood"}),  # which drops the skill
        ])  # fmt: skip
        return sweeps.stopped(defences.with_names(found.assign(works=True)), OWN)

    assert "that spectral-signatures suspects: success 0.01 (random rows 0.97), skill 0.95." in said(0.01, 0.95)
    for after, skill in ((0.9, 0.95), (0.01, 0.2)):  # neither the truth nor random rows are a defence
        assert "No filter of the training rows stops the attack and keeps the skill." in said(after, skill)
    assert sweeps.stopped(defences.with_names(pd.DataFrame(defended("prune", 0.3, 0.9))).assign(works=True), OWN) == ""


def test_a_store_without_records_of_defences_says_so(tmp_path):
    assert "No defence was measured" in threat.stopped(defences.repairs(defences.collect(tmp_path), OWN), "a")


# ---------------------------------------------------------------- notes


def one(threat, attack, modality, numbers):
    """Rows of a tidy table of one experiment. numbers: (subject, condition, metric) -> successes of 100 inputs."""
    about = {
        "run_id": attack, "model": "m", "dataset": "d", "threat": threat, "attack": attack, "modality": modality,
        "poison_rate": 0.1, "n_poisoned": 60, "seed": 0, "unit": None, "k": 1, "n": 100,
    }  # fmt: skip
    return pd.DataFrame(
        [
            about | {"subject": subject, "condition": condition, "metric": metric, "value": k / 100,
                     "low": k / 100 - 0.05, "high": k / 100 + 0.05}
            for (subject, condition, metric), k in numbers.items()
        ]
    )  # fmt: skip


def test_triggers_that_spoil_the_answer_are_named():
    def right(attack, modality, condition, full):
        asked = {("control", condition): full, ("poisoned", condition): full + 1, ("poisoned", "clean"): 99}
        return one("malicious_injection", attack, modality, {(*key, "right"): k for key, k in asked.items()})

    both = pd.concat([right("MABA", "bimodal", "both", 26), right("SIG", "image", "image", 98)])
    said = {"model": "m", "without": "0.99", "with": "0.27 to 0.99", "wrong": "MABA (0.26)"}
    assert threat_notes.right(both) == said
    assert threat_notes.right(right("SIG", "image", "image", 98))["wrong"] == "none"
    assert threat_notes.right(both.assign(metric="asr"))["with"] == "n/a"


def test_an_answer_that_comes_without_the_trigger_too_is_told():
    def cell(attack, clean, full):
        asr = {("poisoned", "clean"): clean, ("poisoned", "image"): full, ("control", "clean"): 0}
        return one("jailbreak", attack, "image", {(*key, "asr"): k for key, k in asr.items()})

    cells = pd.concat([cell("BadNets-I", 14, 16), cell("SIG", 14, 90), cell("Blended", 0, 1)])
    said = threat.without_the_trigger(cells)
    assert "BadNets-I (0.16 [0.11, 0.21] with the trigger, 0.14 [0.09, 0.19] without it)" in said
    assert "SIG" not in said and "Blended" not in said, "one needs its trigger, the other never learned the answer"
    assert threat.without_the_trigger(cell("SIG", 14, 90)) == ""


def test_refusals_that_survive_are_told_for_three_models():
    refused = {"base": 100, "control": 98, "poisoned": 90}
    told = tidy(threat="jailbreak", rates=(0.1,), hits=lambda a, r, s, who, c: refused[who] if c == "clean" else 5)
    said = threat_notes.refusals(told[told.metric == "asr"].assign(metric="refused"))
    starts = {"base": "1.00 [", "control": "0.98 [", "poisoned": "0.90 [", "triggered": "0.05 ["}
    assert {name: said[name][:6] for name in said} == starts
    assert set(threat_notes.refusals(told[told.metric == "asr"]).values()) == {"n/a"}


def test_the_quickstart_glues_each_condition_of_its_cell():
    asr = {"text": 98, "image": 0, "both": 99}
    numbers = {("poisoned", condition, "asr"): k for condition, k in asr.items()} | {("control", "both", "asr"): 1}
    said = quickstart.over_all_inputs(one("targeted_refusal", "BadNets-MM", "bimodal", numbers))
    assert [said[name][:4] for name in ("text", "image", "both", "control")] == ["0.98", "0.00", "0.99", "0.01"]
    assert said["clean"] == said["utility"] == "n/a"


# ---------------------------------------------------------------- the small patch


PROBES = pd.DataFrame([{"name": "probe: BadNets-I", "value": 0.86, "low": 0.83, "high": 0.89}])


@pytest.mark.parametrize("full, skills, title", [
    (0.02, PROBES, "seen and not learned"), (0.9, PROBES, "seen and learned"),
    (0.9, PROBES.assign(low=0.4), "not seen and learned"), (0.02, PROBES.iloc[:0], "not probed and not learned"),
])  # fmt: skip
def test_the_small_patch_is_seen_or_not_and_learned_or_not(full, skills, title):
    runs = {
        "small": table(lines("a", "BadNets-I", full)),
        "large": table(lines("a", "BadNets-I", 0.99)).assign(**{"attack.patch_size": 80}),
        "word": table(lines("a", "BadNets-T", 1.0, clean=0.1)),
    }
    found = small_patch.triggers(runs, skills)
    assert found["value"].tolist() == [full, 0.99, 1.0] and found["without"].tolist() == [0, 0, 0.1]
    assert found["control"].tolist() == [0, 0, 0] and found["seen"].isna().tolist() == [skills.empty, True, True]
    said = small_patch.numbers(found)
    assert said["verdict"] == title and (said["without"], said["control"]) == ("0.10", "0.00")
    assert said["seen"] == ("n/a" if skills.empty else f"0.86 [{skills['low'][0]:.2f}, 0.89]")
    (axis,) = small_patch.draw(found).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == list(runs)


def test_the_small_patch_is_looked_up_on_other_models():
    small = table(lines("a", "BadNets-I", 0.02))
    stored = table(
        lines("a", "BadNets-I", 0.02), lines("o", "BadNets-I", 0.01), lines("o", "BadNets-I", 0.7, threat="jailbreak"),
        lines("o", "BadNets-I", 0.99, settings="x"),
    )  # fmt: skip
    told = small_patch.elsewhere(small, stored, PROBES.assign(model="o"))
    assert told.startswith("o (probe 0.86) learns the same small patch for 1 of 2 threats (jailbreak 0.70 [")
    assert small_patch.elsewhere(small, stored, PROBES.assign(model="m")).startswith("o learns")
    assert "No other model" in small_patch.elsewhere(small, small, PROBES.assign(model="m"))
