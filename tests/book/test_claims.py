"""Do the first edition's verdicts follow from its rules, and what does the page of claims make of both editions'?"""

from types import MappingProxyType

import pandas as pd
import pytest

from bvlm_book import figures, rules, rules_second
from bvlm_book.chapters import claims, expectations
from bvlm_utils import attacks
from bvlm_utils.store import table as tidy

COLUMNS = [*tidy.COLUMNS, "attack.patch_size", "attack.eps"]
RULES = {"text_1": rules.PAPER["pairs"], "dominance": rules.PAPER["dominance"], "memorised": rules.memorised}


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
    return rules.verdict(RULES[key](rules.rates(table, "tiny-llava")))


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


def test_models_of_seven_billion_parameters_are_named_once_they_have_a_record():
    for name, large in (("llava-1.5-7b-hf", True), ("Qwen2.5-VL-7B-Instruct", True), ("smolvlm-2.7b", False),
                        ("tiny-llava", False), ("model-17b", False)):  # fmt: skip
        table, bases = of(by_all_tests([line | {"model": name} for line in cell("BadNets-T", 1.0)]))
        assert (claims.of_seven_billion(table) == [name]) is large
        assert rules_second.verdict(rules_second.CLAIMS["pairs"], bases[name]).verdict == rules_second.CONFIRMED
    skipped = [line | {"model": "llava-1.5-7b-hf", "status": "skipped"} for line in cell("BadNets-T", 1.0)]
    assert claims.of_seven_billion(of(skipped)[0]) == []


def test_tables_have_a_line_per_claim_base_and_passes_and_a_column_per_test():
    thrice = by_all_tests(cell("MABA", 1.0, settings={"epochs": 3}))
    table, bases = of(by_all_tests(cell("BadNets-T", 1.0)), by_all_tests(cell("AddSent", 0.1)), thrice)
    shown = claims.verdict_table(["pairs", "tasks"], bases)
    assert shown[["counted", "passes"]].to_numpy().tolist() == [["pairs", 1], ["pairs", 3], ["threats", 1],
                                                               ["threats", 3]]  # fmt: skip
    assert set(claims.BY.values()) < set(shown) and shown["payload test"].tolist()[0] == "undecided 1:1/2"
    quoted = claims.counts(bases)
    assert quoted["pairs_tiny-llava_1"] == "undecided (1 hold, 1 contradict, of 2)"
    assert quoted["pairs_tiny-llava_1_means"] == "1 of 2" and quoted["pairs_tiny-llava_3_means"] == "1 of 1"
    assert claims.verdict_table(["text"], bases).empty, "no image attack was run"


def test_single_runs_are_counted_and_not_judged():
    table, bases = of(by_all_tests(cell("BadNets-T", 1.0)), by_all_tests(cell("AddSent", 0.95, seeds=1)))
    found = rules_second.verdict(rules_second.CLAIMS["pairs"], bases["tiny-llava"])
    told = found.evidence.set_index("attack")["outcome"].to_dict()
    assert told == {"BadNets-T": rules_second.HOLDS, "AddSent": rules_second.SINGLE}
    assert (found.judged, found.single) == (1, 1)
    alone = of(by_all_tests(cell("AddSent", 0.95, seeds=1)))[1]
    assert claims.verdict_table(["pairs", "tasks"], alone)["by the rule"].tolist() == ["1 single"]


def test_all_pairs_behind_the_verdicts_are_written_as_files(tmp_path, monkeypatch):
    monkeypatch.delenv("BVLM_DOWNLOADS", raising=False)
    table, bases = of(by_all_tests(cell("BadNets-T", 1.0)), by_all_tests(cell("AddSent", 0.1)))
    assert claims.offer({"claims.csv": claims.evidence(bases)}) == ""
    monkeypatch.setenv("BVLM_DOWNLOADS", str(tmp_path / "files"))
    assert "claims.csv" in claims.offer({"claims.csv": claims.evidence(bases)})
    written = pd.read_csv(tmp_path / "files" / "claims.csv")
    assert len(written) == 2 * len(claims.BY) * 2, "two pairs, four tests, pairs and tasks"


def test_an_empty_store_has_figures_that_say_so():
    table, bases = of()
    for figure in (claims.text_and_image(bases), figures.scatter(claims.parts(bases), "value_text", "value_image", "",
                                                                 ""), claims.at_one_percent(bases)):  # fmt: skip
        assert figure.axes[0].texts
    assert claims.checked(table)["jailbreak_clean"] == "n/a" and claims.counts(bases) == {}


def test_the_heat_maps_have_a_panel_per_base_and_passes():
    thrice = by_all_tests(cell("MABA", 1.0, settings={"epochs": 3}))
    _, bases = of(by_all_tests(cell("BadNets-T", 1.0, seeds=1)), thrice)
    titles = [axis.get_title() for axis in claims.at_one_percent(bases).axes]
    assert titles == ["tiny-llava, one pass", "tiny-llava, 3 passes"]


def test_expectations_are_counted():
    table, bases = of(by_all_tests(cell("BadNets-T", 1.0, settings={"epochs": 3})))
    told = expectations.counts(expectations.read(table, bases))
    assert int(told["expected"]) == sum(int(told[name]) for name in ("true", "false", "open")) == 10


def test_the_first_edition_is_computed_as_it_was():
    table, _ = of(cell("BadNets-T", 0.88), cell("MABA", 0.95))
    assert claims.first_edition(table)["first_pairs_tiny-llava"] == "not confirmed at this scale (1 of 2 pairs)"
    assert claims.first_edition(table)["first_dominance_tiny-llava"] == "not testable here (0 of 0 pairs)"
