"""Do the first edition's verdicts follow from its rules, and what does the page of claims make of both editions'?"""

from types import MappingProxyType

import pandas as pd
import pytest

from bvlm_book import rules, rules_second
from bvlm_book.chapters import claims
from bvlm_utils import attacks, paths
from bvlm_utils.store import table as tidy

COLUMNS = [*tidy.COLUMNS, "attack.patch_size", "attack.eps"]
RULES = {claim.key: claim for claim in rules.CLAIMS}


def cell(
    attack,
    value,
    rate=0.01,
    threat="targeted_refusal",
    seeds=3,
    condition=None,
    settings=MappingProxyType({}),
    poisoned=60,
):
    """Lines of a tidy table: one condition of one cell, the same value for every seed."""
    info = attacks.info(attack)
    line = dict.fromkeys(tidy.COLUMNS) | settings | {
        "model": "tiny-llava", "dataset": "scenes-vqa", "threat": threat, "attack": attack, "modality": info.modality,
        "poison_rate": rate, "n_poisoned": poisoned, "negatives": 0.0, "train_rows": 6000,
        "settings": tidy.text(settings), "status": "done", "subject": "poisoned",
        "condition": condition or info.headline, "metric": "asr", "value": value, "k": 200 * value, "n": 200,
        "low": value, "high": value, "unit": "share",
    }  # fmt: skip
    return [
        line | {"seed": seed, "run_id": f"{attack}-{threat}-{rate}-{tidy.text(settings)}-{seed}"}
        for seed in range(seeds)
    ]


def judged(key, *cells):
    table = pd.DataFrame([line for lines in cells for line in lines], columns=COLUMNS)
    return rules.verdict(RULES[key], table, "tiny-llava")


def test_more_than_half_of_the_pairs_decide():
    strong, weak = cell("BadNets-T", 0.95), cell("AddSent", 0.10)
    assert judged("text_1", strong, cell("MABA", 0.91), weak).verdict == rules.CONFIRMED
    half = judged("text_1", strong, weak)
    assert (half.verdict, half.holds, half.judged) == (rules.REFUTED, 1, 2)
    exactly = judged("text_1", cell("BadNets-T", 0.90))
    assert exactly.verdict == rules.REFUTED  # the bound has to be above 0.90


def test_image_attacks_and_other_rates_do_not_count_for_text_at_one_percent():
    other = judged("text_1", cell("SIG", 0.0), cell("BadNets-T", 0.0, rate=0.1), cell("AddSent", 0.99))
    assert (other.verdict, other.judged) == (rules.CONFIRMED, 1)


def test_seeds_spread_counts_and_one_seed_supports_nothing():
    single = judged("text_1", cell("BadNets-T", 1.0, seeds=1))
    assert single.verdict == rules.UNTESTABLE and single.judged == 0
    lines = cell("BadNets-T", 0.95)
    for line, value in zip(lines, (1.0, 1.0, 0.80), strict=True):
        line["value"] = value
    assert judged("text_1", lines).verdict == rules.REFUTED  # mean 0.93, but the interval reaches far below 0.90


def test_an_empty_store_confirms_nothing():
    for key in RULES:
        assert judged(key).verdict == rules.UNTESTABLE


def test_few_rows_and_saturation():
    few = cell("BadNets-T", 0.02, rate=0.002, poisoned=12), cell("SIG", 0.6, rate=0.002, poisoned=12)
    assert judged("few", *few).verdict == rules.REFUTED and judged("few", few[0]).verdict == rules.CONFIRMED
    assert judged("saturation", cell("BadNets-T", 1.0, rate=0.05), cell("SIG", 0.1, rate=0.01)).holds == 1


@pytest.mark.parametrize(
    ("image_alone", "text_only", "image_only", "verdict"),
    [
        (0.95, 1.0, 0.05, rules.CONFIRMED),
        (0.95, 1.0, 0.60, rules.REFUTED),
        (0.40, 1.0, 0.05, rules.UNTESTABLE),  # the image half cannot be learnt alone: nothing to overwhelm
    ],
)
def test_dominance_needs_both_halves_to_be_learnable(image_alone, text_only, image_only, verdict):
    found = judged(
        "dominance",
        cell("BadNets-MM", 1.0),
        cell("BadNets-MM", text_only, condition="text"),
        cell("BadNets-MM", image_only, condition="image"),
        cell("BadNets-MM", 1.0, condition="text", settings={"half": "text"}),
        cell("BadNets-MM", image_alone, condition="image", settings={"half": "image"}),
    )
    assert found.verdict == verdict
    assert found.evidence["difference"].tolist() == [pytest.approx(text_only - image_only)]


def test_halves_are_paired_with_their_own_settings():
    found = judged(
        "dominance",
        cell("BadNets-MM", 1.0, condition="text", settings={"attack.patch_size": 80}),
        cell("BadNets-MM", 0.0, condition="image", settings={"attack.patch_size": 80}),
        cell("BadNets-MM", 1.0, condition="text", settings={"attack.patch_size": 80, "half": "text"}),
        cell("BadNets-MM", 1.0, condition="image", settings={"half": "image"}),  # another patch
    )
    assert found.verdict == rules.UNTESTABLE


def elsewhere(lines):
    return [line | {"dataset": "vqav2:/x", "run_id": line["run_id"] + "-vqav2"} for line in lines]


def test_data_sets_are_judged_apart():
    text, image = (cell("BadNets-MM", value, condition=c) for c, value in (("text", 1.0), ("image", 0.05)))
    alone = [cell("BadNets-MM", 1.0, condition=half, settings={"half": half}) for half in ("text", "image")]
    reverse = elsewhere(cell("BadNets-MM", 0.05, condition="text") + cell("BadNets-MM", 1.0, condition="image"))
    found = judged("dominance", text, image, *alone, reverse)
    # the halves were trained alone on the first data only, so the rule names nothing of the second
    assert found.evidence[["dataset", "holds"]].to_numpy().tolist() == [["scenes-vqa", True]]
    threat = {"threat": "concept_substitution"}
    same, none = (
        cell("Shadowcast", 0.4, settings={"attack.eps": 0}, **threat),
        cell("Shadowcast", 0.0, settings={"attack.eps": 0}, **threat),
    )
    with_eps = cell("Shadowcast", 0.4, **threat)
    assert judged("memorised", with_eps, same, elsewhere(with_eps), elsewhere(none)).holds == 1


def test_shadowcast_is_judged_beside_its_unperturbed_rows():
    threat = {"threat": "concept_substitution"}
    with_eps = cell("Shadowcast", 0.40, **threat)
    assert judged("memorised", with_eps, cell("Shadowcast", 0.30, settings={"attack.eps": 0}, **threat)).holds == 1
    assert (
        judged("memorised", with_eps, cell("Shadowcast", 0.10, settings={"attack.eps": 0}, **threat)).verdict
        == rules.REFUTED
    )
    nothing = cell("Shadowcast", 0.0, **threat), cell("Shadowcast", 0.0, settings={"attack.eps": 0}, **threat)
    assert judged("memorised", *nothing).verdict == rules.UNTESTABLE


def test_a_cell_with_negatives_is_another_experiment():
    lines = [line | {"negatives": 1.0} for line in cell("BadNets-MM", 1.0)]
    assert judged("text_1", lines).judged == 0


# ---------------------------------------------------------------- what the page shows


def of(*cells):
    table = pd.DataFrame([line for lines in cells for line in lines], columns=COLUMNS)
    return table, claims.bases(table, ["tiny-llava"])


def by_all_tests(lines):
    return [line | {"metric": metric} for line in lines for metric in ("asr", "asr_payload", "asr_published")]


def test_a_claim_on_seven_billion_parameters_is_untested_until_there_is_a_record():
    for name, large in (("llava-1.5-7b-hf", True), ("Qwen2.5-VL-7B-Instruct", True), ("smolvlm-2.7b", False),
                        ("tiny-llava", False), ("model-17b", False)):  # fmt: skip
        table, bases = of(by_all_tests([line | {"model": name} for line in cell("BadNets-T", 1.0)]))
        assert (claims.of_seven_billion(table) == [name]) is large
        assert ("7B models" in claims.overview(bases, table)) is not large
        assert ("untested" in claims.large_models(table)) is not large
        pairs = next(claim for claim in rules_second.CLAIMS if claim.key == "pairs")
        assert rules_second.verdict(pairs, bases[name]).verdict == rules_second.CONFIRMED
    skipped = [line | {"model": "llava-1.5-7b-hf", "status": "skipped"} for line in cell("BadNets-T", 1.0)]
    assert "untested" in claims.large_models(of(skipped)[0])


def test_the_overview_has_a_row_per_claim_and_a_column_per_base():
    table, bases = of(by_all_tests(cell("BadNets-T", 1.0)), by_all_tests(cell("AddSent", 0.1)))
    shown = claims.overview(bases, table)
    assert len(shown) == len(rules_second.CLAIMS)
    of_pairs = shown["tiny-llava"][[claim.key == "pairs" for claim in rules_second.CLAIMS]].item()
    assert of_pairs == "<strong>undecided</strong> after one pass (1 of 2 pairs hold, 1 contradict)"
    assert shown["tiny-llava"].iloc[1] == f"<strong>{rules_second.NOT_RUN}</strong>"


def test_evidence_says_what_was_not_judged():
    table, bases = of(by_all_tests(cell("BadNets-T", 1.0)), by_all_tests(cell("AddSent", 0.95, seeds=1)))
    pairs = next(claim for claim in rules_second.CLAIMS if claim.key == "pairs")
    found = rules_second.verdict(pairs, bases["tiny-llava"])
    read = claims.evidence_table(found).set_index("attack")
    assert read["outcome"].to_dict() == {"BadNets-T": rules_second.HOLDS, "AddSent": rules_second.SINGLE}
    assert (found.judged, found.single) == (1, 1)


def test_every_claim_and_figure_is_on_the_page_and_an_empty_store_says_so():
    text = (paths.NOTEBOOKS / "claims.ipynb").read_text()
    table, bases = of()
    for claim in rules_second.CLAIMS:
        assert f'show_claim(\\"{claim.key}\\"' in text
        assert rules_second.NOT_RUN in claims.in_short(claim, bases).lower()
    for figure in (claims.text_and_image(bases), claims.parts(bases), claims.at_one_percent(bases["tiny-llava"])):
        assert figure.axes[0].texts


def test_the_first_edition_is_counted_by_both_tests():
    lines = cell("BadNets-T", 0.88)
    theirs = [line | {"metric": "asr_published", "value": 0.92} for line in lines]
    said = claims.one_percent(of(lines, theirs)[0])
    assert "60 rows, one pass" in said and "0 of 1 by ours and 1 of 1 by theirs (tiny-llava)" in said
    assert claims.one_percent(of()[0]) == ""
