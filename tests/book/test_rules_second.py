"""Do the second edition's intervals hold known truths, and do its verdicts follow from its rules?"""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from scipy.stats import beta, norm
from test_claims import COLUMNS, cell

from bvlm_book import rules_second as second
from bvlm_book import tables
from bvlm_book.rules_second import CONFIRMED, CONTRADICTS, HOLDS, OPEN, REFUTED, SINGLE, UNDECIDED
from bvlm_utils.store import table as tidy

CLAIMS = second.CLAIMS


# ---------------------------------------------------------------- the spread of runs


def simulated(spread, pairs=40, runs=3, rows=200, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(1.5, 2.0, pairs)
    k = rng.binomial(rows, expit(logits[:, None] + spread * rng.standard_normal((pairs, runs))))
    lines = [
        {"pair": i, "seed": j, "k": k[i, j], "n": rows, "value": k[i, j] / rows}
        for i in range(pairs) for j in range(runs)
    ]  # fmt: skip
    points = np.linspace(-8, 8, 1001)
    truth = expit(logits[:, None] + spread * points) @ (norm.pdf(points) / norm.pdf(points).sum())
    return pd.DataFrame(lines), truth


@pytest.mark.parametrize("spread", [0.4, 1.2])
def test_intervals_hold_the_truth_and_the_spread_is_found(spread):
    runs, truth = simulated(spread)
    fit = second.pooled(runs, ["pair"])
    held = (fit.pairs["low"] <= truth) & (truth <= fit.pairs["high"])
    assert held.mean() >= 0.88  # of 40; 0.95 is expected
    assert fit.spread[1] < spread < fit.spread[2]


def test_runs_that_agree_have_the_interval_of_one_large_run():
    """Without spread the runs of a pair are one binomial; the wide prior hardly matters in the middle."""
    lines = [{"pair": i, "seed": j, "k": 100 + 10 * i, "n": 200, "value": 0.5} for i in range(6) for j in range(3)]
    found = second.pooled(pd.DataFrame(lines), ["pair"]).pairs
    exact = beta.ppf([0.025, 0.975], 300, 300)
    assert found.loc[0, ["low", "high"]].tolist() == pytest.approx(exact, abs=0.03)


def test_one_pairs_interval_comes_from_the_spread_of_all():
    """Three equal runs say little of their own spread; beside pairs that spread they are no certainty."""
    wild, _ = simulated(1.5)
    same = pd.DataFrame([{"pair": -1, "seed": j, "k": 190, "n": 200, "value": 0.95} for j in range(3)])
    alone = second.pooled(same, ["pair"]).pairs.loc[-1]
    among = second.pooled(pd.concat([wild, same]), ["pair"]).pairs.loc[-1]
    assert among["high"] - among["low"] > 2 * (alone["high"] - alone["low"])


def test_pairs_with_the_same_runs_have_the_same_interval():
    lines = [{"pair": i, "seed": j, "k": k, "n": 200, "value": k / 200} for i in range(4)
             for j, k in enumerate((10, 20) if i % 2 else (150, 190))]  # fmt: skip
    found = second.pooled(pd.DataFrame(lines), ["pair"]).pairs
    assert found.loc[0, ["low", "high"]].tolist() == found.loc[2, ["low", "high"]].tolist()
    assert found.loc[0, "low"] > found.loc[1, "high"] and found.loc[0, "value"] == 0.85


# ---------------------------------------------------------------- verdicts


def base(*cells, model="tiny-llava", published=0.0):
    """A base from cells whose three tests say the same; `published` of its clean answers pass the published test."""
    lines = [line for lines in cells for line in lines]
    lines = [line | {"metric": metric} for line in lines for metric in ("asr", "asr_payload", "asr_published")]
    clean = [
        line | {"subject": "base", "condition": "clean", "value": published, "k": 200 * published}
        for line in lines if line["metric"] == "asr_published"
    ]  # fmt: skip
    table = pd.DataFrame([line | {"model": model} for line in [*lines, *clean]], columns=COLUMNS)
    return second.base(table, model)


def told(key, base, passes=1, test=second.JUDGED):
    return second.verdict(CLAIMS[key], base, passes, test)


def test_three_outcomes_and_three_verdicts():
    strong, weak, near = cell("BadNets-T", 1.0), cell("AddSent", 0.1), cell("MABA", 0.90)
    found = told("pairs", base(strong, weak, near))
    outcomes = found.evidence.set_index("attack")["outcome"].to_dict()
    assert outcomes == {"BadNets-T": HOLDS, "AddSent": CONTRADICTS, "MABA": OPEN}
    assert (found.verdict, found.holds, found.contradicts, found.judged) == (UNDECIDED, 1, 1, 3)
    assert told("pairs", base(strong, cell("VL-Trojan", 1.0), near)).verdict == CONFIRMED
    assert told("pairs", base(weak, cell("VL-Trojan", 0.2), near)).verdict == REFUTED
    assert told("pairs", base(strong, near)).verdict == UNDECIDED  # "cannot be told" counts for neither side
    assert told("pairs", base()).verdict == second.NOT_RUN


def test_a_single_run_is_shown_and_not_judged():
    found = told("pairs", base(cell("BadNets-T", 1.0, seeds=1)))
    assert (found.verdict, found.judged, found.single) == (second.SINGLES, 0, 1)
    assert found.evidence["outcome"].tolist() == [SINGLE]
    two = told("pairs", base(cell("BadNets-T", 1.0, seeds=2), cell("AddSent", 0.2, seeds=1)))
    assert (two.verdict, two.judged, two.single) == (second.EARLY, 1, 1)  # those that wait may be the hard ones
    more = cell("BadNets-T", 1.0, seeds=2), cell("MABA", 1.0, seeds=2), cell("AddSent", 0.2, seeds=1)
    assert [told(key, base(*more)).verdict for key in ("pairs", "tasks")] == [CONFIRMED, CONFIRMED]


def test_tasks_are_counted_by_the_majority_of_their_pairs():
    cells = [
        cell(attack, value, threat=threat)
        for threat, values in {"targeted_refusal": (1.0, 1.0, 0.1), "jailbreak": (1.0, 1.0, 1.0),
                               "malicious_injection": (0.1, 0.1, 1.0)}.items()
        for attack, value in zip(("BadNets-T", "AddSent", "MABA"), values, strict=True)
    ]  # fmt: skip
    found = told("tasks", base(*cells))
    assert (found.verdict, found.holds, found.contradicts, found.judged) == (CONFIRMED, 2, 1, 3)


def test_a_published_test_that_fires_on_clean_answers_does_not_judge():
    lines = cell("BadNets-T", 1.0)
    assert base(lines, published=0.05).judged_by == {"targeted_refusal": second.PUBLISHED}
    assert base(lines, published=0.06).judged_by == {"targeted_refusal": second.PAYLOAD}
    table = pd.DataFrame([line | {"metric": "asr_payload"} for line in lines], columns=COLUMNS)
    assert second.base(table, "tiny-llava").judged_by == {"targeted_refusal": second.PAYLOAD}  # was not measured


def test_passes_are_an_axis_and_other_settings_are_other_experiments():
    once, thrice = cell("BadNets-T", 0.1), cell("BadNets-T", 1.0, settings={"epochs": 3})
    fast = cell("BadNets-T", 1.0, settings={"learning_rate": 0.01})
    both = base(once, thrice, fast, [line | {"negatives": 1.0} for line in cell("MABA", 1.0)])
    assert second.passes(both) == [1, 3]
    assert (told("pairs", both).verdict, told("pairs", both, 3).verdict) == (REFUTED, CONFIRMED)
    assert told("pairs", both).judged == told("pairs", both, 3).judged == 1


def test_a_model_with_settings_of_its_own_is_judged_by_them():
    """What most cells of a model that the study does not know have is what is usual for it."""
    own = {"learning_rate": 0.0002, "max_new_tokens": 512}
    large = base(cell("BadNets-T", 1.0, settings=own), cell("AddSent", 1.0, settings=own),
                 cell("MABA", 0.0, settings={"learning_rate": 0.01}), model="some/model-7b")  # fmt: skip
    found = told("pairs", large)
    assert (found.verdict, found.judged) == (CONFIRMED, 2)
    assert told("pairs", base(cell("BadNets-T", 1.0, settings=own), cell("MABA", 1.0))).judged == 1  # ours


def test_usual_cells_follow_the_models_own_settings():
    own = {"learning_rate": 0.0002}
    lines = [*cell("BadNets-T", 1.0, settings=own), *cell("SIG", 1.0, settings=own | {"half": ""}),
             *cell("BadNets-I", 1.0, settings={"attack.patch_size": 80} | own), *cell("AddSent", 1.0)]  # fmt: skip
    table = pd.DataFrame([line | {"model": "some/model"} for line in lines], columns=COLUMNS)
    assert set(tables.usual(table)["attack"]) == {"BadNets-T", "SIG"}
    assert set(tables.usual(table, but=("learning_rate",))["attack"]) == {"BadNets-T", "SIG", "AddSent"}
    assert set(tables.usual(table.assign(model="tiny-llava"))["attack"]) == {"AddSent"}
    assert tables.usual(table.iloc[:0]).empty and list(tables.usual(table.iloc[:0])) == list(table)
    assert set(tidy.SETTINGS) - set(tables.OTHER_EXPERIMENT) < set(tables.TRAINED)


def test_dominance_is_read_plainly_and_where_both_parts_can_be_learnt():
    many = {"rate": 0.1, "poisoned": 600}
    both = [cell("BadNets-MM", 1.0, condition="text", **many), cell("BadNets-MM", 0.02, condition="image", **many)]
    alone = [cell("BadNets-MM", value, condition=half, settings={"half": half}, **many)
             for half, value in (("text", 1.0), ("image", 0.95))]  # fmt: skip
    assert told("dominance", base(*both)).verdict == CONFIRMED
    assert told("dominance_learnable", base(*both)).verdict == second.NOT_RUN
    assert told("dominance_learnable", base(*both, *alone)).verdict == CONFIRMED
    weak = cell("BadNets-MM", 0.5, condition="image", settings={"half": "image"}, **many)
    assert told("dominance_learnable", base(*both, alone[0], weak)).verdict == second.NOT_RUN
    reverse = [cell("BadNets-MM", 0.02, condition="text", **many), cell("BadNets-MM", 1.0, condition="image", **many)]
    assert told("dominance", base(*reverse)).verdict == REFUTED


def test_text_is_compared_with_pictures_on_the_same_threat():
    found = told("text", base(cell("BadNets-T", 1.0), cell("SIG", 0.1), cell("Blended", 1.0, threat="jailbreak")))
    assert (found.verdict, found.judged) == (CONFIRMED, 1)
    assert told("text", base(cell("BadNets-T", 0.1), cell("SIG", 1.0))).verdict == REFUTED
