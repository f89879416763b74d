"""What the page of claims makes of both editions' rules."""

from types import MappingProxyType

import pandas as pd
import pytest

from bvlm_book import figures, rules_second, tables
from bvlm_book.chapters import attacks as attacks_page
from bvlm_book.chapters import claims, expectations, threat_notes
from bvlm_utils import attacks, threats
from bvlm_utils.store import table as tidy

COLUMNS = [*tidy.COLUMNS, "attack.patch_size", "attack.eps"]


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


def first(*cells):
    """The first edition's verdicts on text at 1 % and on dominance."""
    table = pd.DataFrame([line for lines in cells for line in lines], columns=COLUMNS)
    found = claims.first_edition(table)
    return found["first_pairs_tiny-llava"], found["first_dominance_tiny-llava"]


def test_more_than_half_of_the_pairs_decided_in_the_first_edition():
    strong, weak = cell("BadNets-T", 0.95), cell("AddSent", 0.10)
    assert first(strong, cell("MABA", 0.91), weak)[0] == "confirmed (2 of 3 pairs)"
    assert first(strong, weak)[0] == "not confirmed at this scale (1 of 2 pairs)"
    assert first(cell("BadNets-T", 0.90))[0] == "not confirmed at this scale (0 of 1 pairs)", "above 0.90, not at it"
    other = cell("SIG", 0.0), cell("BadNets-T", 0.0, rate=0.1), cell("AddSent", 0.99)
    assert first(*other)[0] == "confirmed (1 of 1 pairs)", "image attacks and other rates do not count"


def test_seeds_spread_counted_and_one_seed_supported_nothing():
    assert first(cell("BadNets-T", 1.0, seeds=1))[0] == "not testable here (0 of 0 pairs)"
    lines = cell("BadNets-T", 0.95)
    for line, value in zip(lines, (1.0, 1.0, 0.80), strict=True):
        line["value"] = value
    assert first(lines)[0] == "not confirmed at this scale (0 of 1 pairs)", "the interval reaches far below 0.90"
    negatives = [line | {"negatives": 1.0} for line in cell("BadNets-MM", 1.0)]
    assert first(negatives)[0] == "not testable here (0 of 0 pairs)", "another experiment"
    assert claims.first_edition(pd.DataFrame(columns=COLUMNS)) == {}


def parts(text, image, settings=MappingProxyType({}), alone=MappingProxyType({"text": 1.0, "image": 0.95})):
    """A bimodal cell asked by its parts, and those that were trained alone."""
    shown = {"text": text, "image": image}
    lines = [cell("BadNets-MM", value, condition=name, settings=settings) for name, value in shown.items()]
    lines += [cell("BadNets-MM", v, condition=n, settings={**settings, "half": n}) for n, v in alone.items()]
    return [line for cells in lines for line in cells]


@pytest.mark.parametrize(
    ("image_alone", "image_only", "verdict"),
    [
        (0.95, 0.05, "confirmed (1 of 1 pairs)"),
        (0.95, 0.60, "not confirmed at this scale (0 of 1 pairs)"),
        (0.40, 0.05, "not testable here (0 of 0 pairs)"),  # the image half cannot be learnt alone
    ],
)
def test_dominance_needed_both_halves_to_be_learnable(image_alone, image_only, verdict):
    assert first(parts(1.0, image_only, alone={"text": 1.0, "image": image_alone}))[1] == verdict


def elsewhere(lines):
    return [line | {"dataset": "vqav2:/x", "run_id": line["run_id"] + "-vqav2"} for line in lines]


def test_halves_were_paired_with_their_own_settings_and_data():
    patch = parts(1.0, 0.0, {"attack.patch_size": 80}, {"text": 1.0})
    usual = cell("BadNets-MM", 1.0, condition="image", settings={"half": "image"})  # another patch
    assert first(patch, usual)[1] == "not testable here (0 of 0 pairs)"
    reverse = elsewhere(parts(0.05, 1.0, alone={}))
    assert first(parts(1.0, 0.05), reverse)[1] == "confirmed (1 of 1 pairs)"


def test_shadowcast_stands_beside_its_unperturbed_rows():
    threat = {"threat": "concept_substitution", "rate": 0.1}
    still = cell("Shadowcast", 0.3, settings={"attack.eps": 0}, **threat)
    table = pd.DataFrame(cell("Shadowcast", 0.4, **threat) + still[:2], columns=COLUMNS)
    said = threat_notes.unperturbed(table, "tiny-llava")
    assert said == "0.40 [0.40, 0.40] at 10 %; 0.30 [0.30, 0.30] with the pictures unchanged at 10 %"
    assert threat_notes.unperturbed(table, "another") == "n/a"


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
    runs = [f"{counted}, tiny-llava, {n}" for counted in ("pairs", "threats") for n in ("one pass", "3 passes")]
    assert shown["counted"].tolist() == runs
    assert set(claims.BY.values()) < set(shown) and shown["payload test"].tolist()[0] == "undecided 1:1/2"
    quoted = claims.counts(bases)
    assert quoted["pairs_tiny-llava_1_means"] == "1 of 2" and quoted["pairs_tiny-llava_3_means"] == "1 of 1"
    assert quoted["pairs_tiny-llava_1_verdict"] == "undecided (1 of 2 pairs hold, 1 contradict)"
    assert quoted["pairs_tiny-llava_1_single"] == "0 of 2"
    assert claims.verdict_table(["text"], bases).empty, "no image attack was run"


def test_single_runs_are_counted_and_not_judged():
    table, bases = of(by_all_tests(cell("BadNets-T", 1.0)), by_all_tests(cell("AddSent", 0.95, seeds=1)))
    found = rules_second.verdict(rules_second.CLAIMS["pairs"], bases["tiny-llava"])
    told = found.evidence.set_index("attack")["outcome"].to_dict()
    assert told == {"BadNets-T": rules_second.HOLDS, "AddSent": rules_second.SINGLE}
    assert (found.judged, found.single) == (1, 1)
    quoted = claims.counts(bases)
    assert [quoted[f"pairs_tiny-llava_1_{name}"] for name in ("means", "single")] == ["2 of 2", "1 of 2"]
    assert quoted["pairs_tiny-llava_1_verdict"] == "not decided yet (1 of 1 pairs hold, 0 contradict, 1 single run)"
    alone = of(by_all_tests(cell("AddSent", 0.95, seeds=1)))[1]
    assert claims.verdict_table(["pairs", "tasks"], alone)["by the rule"].tolist() == ["1 single"]


def test_all_pairs_stand_behind_the_verdicts():
    _, bases = of(by_all_tests(cell("BadNets-T", 1.0)), by_all_tests(cell("AddSent", 0.1)))
    assert len(claims.evidence(bases)) == 2 * len(claims.BY) * 2, "two pairs, four tests, pairs and tasks"


def test_an_empty_store_has_nothing_to_draw():
    table, bases = of()
    assert claims.in_one_pass(bases).empty and claims.parts(bases).empty and claims.evidence(bases).empty
    assert claims.checked(table)["jailbreak_clean"] == "n/a" and claims.counts(bases) == {}


def test_the_heat_maps_have_a_panel_per_base_and_passes():
    thrice = by_all_tests(cell("MABA", 1.0, settings={"epochs": 3}))
    _, bases = of(by_all_tests(cell("BadNets-T", 1.0, seeds=1)), thrice)
    titles = [axis.get_title() for axis in figures.maps(claims.evidence(bases).query("judged_by == 'judged'")).axes]
    assert titles == ["tiny-llava: 1 %, one pass", "tiny-llava: 1 %, 3 passes"]


def test_expectations_are_counted():
    table, bases = of(by_all_tests(cell("BadNets-T", 1.0, settings={"epochs": 3})))
    told = tables.outcomes(expectations.read(table, bases))
    assert int(told["expected"]) == sum(int(told[name]) for name in ("true", "false", "open")) == 13


def test_a_second_base_is_compared_with_the_first_alone():
    def told(*groups):
        table, bases = of(*groups)
        found = expectations.read(table, bases).set_index("expected")
        lines = found[found.index.str.startswith("tiny-llava-b")]
        return lines["came true"].tolist(), lines["measured"].tolist()

    def on(model, attack, value, threat="targeted_refusal", **more):
        lines = by_all_tests(cell(attack, value, threat=threat, **more))
        return [line | {"model": model, "epochs": line["epochs"] or 1} for line in lines]

    one, other = ([on(name, "AddSent", value, settings={"epochs": 3}) for name in ("tiny-llava", "tiny-llava-b")]
                  for value in (1.0, 0.1))  # fmt: skip
    assert told(*one)[0] == ["yes", "not all run yet"] and told(*other)[0][0] == "yes"
    assert told(one[0], other[1])[0][0] == "no"
    assert told(*one, on("tiny-qwen2.5-vl", "AddSent", 0.1, settings={"epochs": 3}))[0][0] == "yes"
    patch = [on("tiny-llava-b", "BadNets-I", value, threat, rate=0.1) for threat, value in
             zip(threats.names(), (0.6, 0.7, 0.2, 0.2, 0.2), strict=True)]  # fmt: skip
    assert told(*patch) == (["not all run yet", "no"], ["tiny-llava-b: not run yet", "2 of 5"])
    assert told(*patch[:2])[0][1] == "not all run yet"


def test_an_attack_through_jpeg_stands_beside_itself_without():
    def image(value, metric="asr_payload", **settings):
        lines = cell("SIG", value, rate=0.1, poisoned=600, settings={"status": "done"} | settings)
        return pd.DataFrame(lines).assign(metric=metric, subject="poisoned")

    older = image(0.5).drop(columns="attack.jpeg_quality", errors="ignore")  # records from before the setting
    other = image(0.9, **{"attack.jpeg_quality": 0, "attack.frequency": 9})
    table = pd.concat([older, image(0.8, **{"attack.jpeg_quality": 75}), other], ignore_index=True)
    (found,) = tables.through_jpeg(table).to_dict("records")
    assert (found["plain"], found["jpeg"], found["n_seeds"], found["others"]) == (0.5, pytest.approx(0.8), 3, "")
    assert tables.through_jpeg(older).empty and tables.through_jpeg(other).empty


def test_an_experiment_without_a_part_of_the_backdoor_stands_beside_the_whole():
    def lines(value, rate, clean=0.0, **settings):
        both = [pd.DataFrame(cell("BadNets-T", v, rate=rate, condition=c, settings=settings, poisoned=int(6000 * rate)))
                for c, v in (("text", value), ("clean", clean))]  # fmt: skip
        return pd.concat(both).assign(metric="asr_payload", subject="poisoned", half="")

    whole, other = lines(0.98, 0.1), lines(0.5, 0.1, **{"attack.alpha": 1})
    taught = lines(0.25, 0.1, 0.125, decoy="target answers")
    word = lines(0.02, 0.0, **{"attack.word": "quorvex"})
    found = attacks_page.in_parts(pd.concat([whole, other, taught, word], ignore_index=True))
    first, second = found.sort_values("value").to_dict("records")
    assert (first["value"], first["whole"], first["poisoned"]) == (pytest.approx(0.02), pytest.approx(0.98), 0)
    assert (second["value"], second["clean"], second["whole"]) == (0.25, 0.125, pytest.approx(0.98))
    told = attacks_page.parts_table(found)
    assert told["what was trained"].tolist() == ["target answers, no trigger", "a rare word, no poison"]
    said = attacks_page.parts_numbers(attacks_page.parts_lines(found))
    assert (said["parts_answers"], said["parts_word"], said["parts_noise"]) == ("0.25", "0.02", "n/a")
