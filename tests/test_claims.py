"""Do the verdicts follow from the rules, on tables whose verdict is plain?"""

import pandas as pd
import pytest

from bvlm_utils import attacks, claims, store

RULES = {claim.key: claim for claim in claims.CLAIMS}


def cell(attack, value, rate=0.01, threat="targeted_refusal", seeds=3, condition=None, settings="", poisoned=60):
    """Lines of a tidy table: one condition of one cell, the same value for every seed."""
    info = attacks.info(attack)
    line = dict.fromkeys(store.COLUMNS) | {
        "model": "tiny-llava", "dataset": "scenes-vqa", "threat": threat, "attack": attack, "modality": info.modality,
        "poison_rate": rate, "n_poisoned": poisoned, "negatives": 0.0, "train_rows": 6000, "settings": settings,
        "status": "done", "subject": "poisoned", "condition": condition or info.headline, "metric": "asr",
        "value": value, "k": 200 * value, "n": 200, "low": value, "high": value, "unit": "share",
    }  # fmt: skip
    return [line | {"seed": seed, "run_id": f"{attack}-{threat}-{rate}-{settings}-{seed}"} for seed in range(seeds)]


def judged(key, *cells):
    table = pd.DataFrame([line for lines in cells for line in lines], columns=store.COLUMNS)
    return claims.verdict(RULES[key], table, "tiny-llava")


def test_more_than_half_of_the_pairs_decide():
    strong, weak = cell("BadNets-T", 0.95), cell("AddSent", 0.10)
    assert judged("text_1", strong, cell("MABA", 0.91), weak).verdict == claims.CONFIRMED
    half = judged("text_1", strong, weak)
    assert (half.verdict, half.holds, half.judged) == (claims.REFUTED, 1, 2)
    exactly = judged("text_1", cell("BadNets-T", 0.90))
    assert exactly.verdict == claims.REFUTED  # the bound has to be above 0.90


def test_image_attacks_and_other_rates_do_not_count_for_text_at_one_percent():
    other = judged("text_1", cell("SIG", 0.0), cell("BadNets-T", 0.0, rate=0.1), cell("AddSent", 0.99))
    assert (other.verdict, other.judged) == (claims.CONFIRMED, 1)


def test_seeds_spread_counts_and_one_seed_supports_nothing():
    single = judged("text_1", cell("BadNets-T", 1.0, seeds=1))
    assert single.verdict == claims.UNTESTABLE and single.judged == 0
    lines = cell("BadNets-T", 0.95)
    for line, value in zip(lines, (1.0, 1.0, 0.80), strict=True):
        line["value"] = value
    assert judged("text_1", lines).verdict == claims.REFUTED  # mean 0.93, but the interval reaches far below 0.90


def test_an_empty_store_confirms_nothing():
    for key in RULES:
        assert judged(key).verdict == claims.UNTESTABLE


def test_few_rows_and_saturation():
    few = cell("BadNets-T", 0.02, rate=0.002, poisoned=12), cell("SIG", 0.6, rate=0.002, poisoned=12)
    assert judged("few", *few).verdict == claims.REFUTED and judged("few", few[0]).verdict == claims.CONFIRMED
    assert judged("saturation", cell("BadNets-T", 1.0, rate=0.05), cell("SIG", 0.1, rate=0.01)).holds == 1


@pytest.mark.parametrize(
    ("image_alone", "text_only", "image_only", "verdict"),
    [
        (0.95, 1.0, 0.05, claims.CONFIRMED),
        (0.95, 1.0, 0.60, claims.REFUTED),
        (0.40, 1.0, 0.05, claims.UNTESTABLE),  # the image half cannot be learnt alone: nothing to overwhelm
    ],
)
def test_dominance_needs_both_halves_to_be_learnable(image_alone, text_only, image_only, verdict):
    found = judged(
        "dominance",
        cell("BadNets-MM", 1.0),
        cell("BadNets-MM", text_only, condition="text"),
        cell("BadNets-MM", image_only, condition="image"),
        cell("BadNets-MM", 1.0, condition="text", settings="half=text"),
        cell("BadNets-MM", image_alone, condition="image", settings="half=image"),
    )
    assert found.verdict == verdict
    assert found.evidence["difference"].tolist() == [pytest.approx(text_only - image_only)]


def test_halves_are_paired_with_their_own_settings():
    found = judged(
        "dominance",
        cell("BadNets-MM", 1.0, condition="text", settings="patch_size=80"),
        cell("BadNets-MM", 0.0, condition="image", settings="patch_size=80"),
        cell("BadNets-MM", 1.0, condition="text", settings="patch_size=80, half=text"),
        cell("BadNets-MM", 1.0, condition="image", settings="half=image"),  # another patch
    )
    assert found.verdict == claims.UNTESTABLE


def test_shadowcast_is_judged_beside_its_unperturbed_rows():
    threat = {"threat": "concept_substitution"}
    with_eps = cell("Shadowcast", 0.40, **threat)
    assert judged("memorised", with_eps, cell("Shadowcast", 0.30, settings="eps=0", **threat)).holds == 1
    assert judged("memorised", with_eps, cell("Shadowcast", 0.10, settings="eps=0", **threat)).verdict == claims.REFUTED
    nothing = cell("Shadowcast", 0.0, **threat), cell("Shadowcast", 0.0, settings="eps=0", **threat)
    assert judged("memorised", *nothing).verdict == claims.UNTESTABLE


def test_a_cell_with_negatives_is_another_experiment():
    lines = [line | {"negatives": 1.0} for line in cell("BadNets-MM", 1.0)]
    assert judged("text_1", lines).judged == 0
