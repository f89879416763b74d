"""Do the verdicts follow from the rules, on tables whose verdict is plain?"""

import html
from types import MappingProxyType

import pandas as pd
import pytest

from bvlm_book import page, rules
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


def of(*cells, models=("tiny-llava",)):
    table = pd.DataFrame([line for lines in cells for line in lines], columns=COLUMNS)
    return rules.verdicts(table, models), table


def test_the_overview_has_a_row_per_claim_with_its_rule_verdict_and_counts():
    few = cell("BadNets-T", 0.02, rate=0.002, poisoned=12), cell("SIG", 0.6, rate=0.002, poisoned=12)
    single = cell("AddSent", 0.02, rate=0.002, poisoned=12, seeds=1)
    found, table = of(*few, single)
    shown = claims.overview(found, table)
    assert len(shown) == len(rules.CLAIMS)
    for claim, (_, row) in zip(rules.CLAIMS, shown.iterrows(), strict=True):
        said = html.unescape(row["what is said"])
        assert claim.says in said and claim.source in said
        assert row["the rule"] == claim.rule and f'href="#claim-{claim.key}"' in row["evidence"]
        assert row["7B models"].startswith("<strong>untested</strong>")
    judged = shown.loc[[claim.key == "few" for claim in rules.CLAIMS], "tiny-llava"].item()
    assert "not confirmed at this scale" in judged
    assert "holds in 1 of 2 judged pairs (1 more cannot be judged); ASR 0.02 to 0.60" in judged
    assert "not testable here</strong>: the store has no such pair" in shown["tiny-llava"].iloc[1]


def test_a_claim_on_seven_billion_parameters_is_untested_until_there_is_a_record():
    for name, large in (("llava-1.5-7b-hf", True), ("Qwen2.5-VL-7B-Instruct", True), ("smolvlm-2.7b", False),
                        ("tiny-llava", False), ("model-17b", False)):  # fmt: skip
        found, table = of([line | {"model": name} for line in cell("BadNets-T", 1.0)])
        assert (claims.of_seven_billion(table) == [name]) is large
        assert ("7B models" in claims.overview(found, table)) is not large
        assert ("untested" in claims.large_models(table)) is not large
        assert found["text_1"][name].verdict == rules.CONFIRMED  # whatever its size, it has its own verdicts
        assert found["text_1"]["tiny-llava"].verdict in (rules.CONFIRMED, rules.UNTESTABLE)
    skipped = [line | {"model": "llava-1.5-7b-hf", "status": "skipped"} for line in cell("BadNets-T", 1.0)]
    assert "untested" in claims.large_models(of(skipped)[1])


def test_evidence_says_what_could_not_be_judged():
    found, _ = of(cell("BadNets-T", 0.95), cell("AddSent", 0.95, seeds=1), cell("MABA", 0.5))
    table = claims.evidence_table(found["text_1"]["tiny-llava"]).set_index("attack")
    assert table["holds"].to_dict() == {"BadNets-T": "yes", "AddSent": "cannot be judged", "MABA": "no"}
    assert table.loc["BadNets-T", "ASR"] == "0.95 [0.95, 0.95]" and table.loc["AddSent", "seeds"] == 1
    found, _ = of(
        cell("BadNets-MM", 1.0, condition="text"), cell("BadNets-MM", 0.05, condition="image"),
        cell("BadNets-MM", 1.0, condition="text", settings={"half": "text"}),
        cell("BadNets-MM", 0.9, condition="image", settings={"half": "image"}, seeds=1),
    )  # fmt: skip
    (line,) = claims.evidence_table(found["dominance"]["tiny-llava"]).to_dict("records")
    assert (line["difference"], line["text half alone"]) == ("0.95 [0.95, 0.95]", "1.00")
    assert (line["image half alone"], line["holds"]) == ("0.90", "cannot be judged")


def test_shadowcasts_evidence_stands_beside_its_control():
    threat = {"threat": "concept_substitution"}
    found, _ = of(cell("Shadowcast", 0.40, **threat), cell("Shadowcast", 0.30, settings={"attack.eps": 0}, **threat))
    of_model = found["memorised"]["tiny-llava"]
    assert claims.behind(of_model).endswith("; ASR 0.40, intervals within 0.40 and 0.40; unperturbed 0.30")
    assert claims.evidence_table(of_model)["unperturbed"].item() == "0.30 [0.30, 0.30]"


def test_sentences_count_verdicts_and_the_points_that_could_support_one():
    found, table = of(cell("BadNets-T", 1.0), cell("SIG", 1.0, seeds=1), models=("tiny-llava", "tiny-qwen2.5-vl"))
    llava, qwen, seeds = claims.sentences(found, table)
    assert "1 confirmed, 0 not confirmed at this scale, 4 not testable here" in llava
    assert "0 confirmed" in qwen and "1 of the 2 points" in seeds


def test_a_chapter_is_linked_only_if_the_book_has_it(tmp_path, monkeypatch):
    assert set(claims.CHAPTERS) == set(RULES)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert page.chapter_title("dose") is None
    (tmp_path / "_toc.yml").write_text("chapters:\n  - file: notebooks/dose\n")
    assert page.chapter_title("dose") == "How little poison is enough?"
    assert page.chapter_title("modality") is None
    links = claims.overview(*of(cell("BadNets-T", 1.0)))["evidence"]
    assert 'href="dose.html"' in links.iloc[0] and "modality" not in links.iloc[1]


def test_the_chapter_shows_every_claim():
    text = (paths.NOTEBOOKS / "claims.ipynb").read_text()
    for key in RULES:
        assert f'show_claim(\\"{key}\\"' in text and f'show_evidence(\\"{key}\\"' in text


def test_more_passes_are_counted_apart_by_both_tests():
    lines = [line for value, settings in ((0.2, {}), (0.95, {"epochs": 3})) for line in cell(
        "BadNets-T", value, settings=MappingProxyType(settings))]  # fmt: skip
    usual = [line | {"epochs": line["epochs"] or 1} for line in lines]
    theirs = [line | {"metric": "asr_published", "value": line["value"] + 0.04} for line in usual]
    table = pd.DataFrame([*usual, *theirs], columns=COLUMNS)
    assert "0 of 1 by ours and 0 of 1 by theirs" in claims.one_percent(table)
    assert "with 3 passes they are 1 of 1 by ours and 1 of 1 by theirs" in claims.more_passes(table)
    assert claims.more_passes(table[table["settings"] == ""]) == ""
