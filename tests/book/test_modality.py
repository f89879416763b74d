"""Do the tables of the chapter say what the rule says, and why it says nothing where it does not?"""

import json

import numpy as np
import pandas as pd
import pytest
from bvlm_book.chapters.modality.halves import FAILS, HOLDS, NOT_TESTABLE
from stored import FOUR, cell, halves, table

from bvlm_book import rules
from bvlm_book.chapters.modality import attention, confounds, learned_alone
from bvlm_book.chapters.modality import halves as halves_page
from bvlm_book.probes import records_of_attention
from bvlm_utils import paths
from bvlm_utils.score import intervals


def test_four_conditions_and_their_difference():
    found = halves_page.four_cells(
        halves_page.rates(table(cell("BadNets-MM", seeds=1, **FOUR), cell("SIG", image=1.0)))
    )
    (line,) = found.to_dict("records")
    assert [line[c] for c in ("clean", "text", "image", "both")] == [0.0, 1.0, 0.05, 1.0]
    assert line["difference"] == pytest.approx(0.95) and line["n_seeds"] == 1
    text, image = intervals.wilson(200, 200), intervals.wilson(10, 200)
    assert line["difference_low"] == pytest.approx(text[0] - image[1])
    assert line["difference_high"] == pytest.approx(text[1] - image[0])


def test_a_ratio_to_the_floor_is_not_given():
    rates = halves_page.rates(
        table(cell("BadNets-MM", **FOUR | {"text": 0.9, "image": 0.3}), cell("MABA", **FOUR | {"image": 0.02}))
    )
    found = halves_page.four_table(halves_page.four_cells(rates)).set_index("attack")["text / image"]
    assert found["BadNets-MM"] == "3.00" and found["MABA"] == "image half at the floor"


def test_a_half_trained_alone_is_no_bimodal_cell():
    rates = halves_page.rates(table(halves()))
    assert set(rates["half"]) == {"", "text", "image"} and set(rates["settings"]) == {""}
    assert len(halves_page.four_cells(rates)) == 1


def test_the_committed_rule_gives_the_verdict():
    for lines, verdict in (
        (halves(), HOLDS),
        (halves(image=0.40), NOT_TESTABLE),
        (halves(seeds=1), NOT_TESTABLE),
        (cell("BadNets-MM", **FOUR), NOT_TESTABLE),
    ):
        one = table(lines)
        (found,) = halves_page.dominance(one).to_dict("records")
        assert found["verdict"] == verdict and (found["why"] == "") is (verdict != NOT_TESTABLE)
        judged = rules.text_overwhelms(rules.rates(one, "tiny-llava"))["holds"].item()
        assert (judged is None) is (verdict == NOT_TESTABLE)
    near = {"value": 0.6, "low": 0.53, "high": 0.67}
    close = [line | near if (line["condition"], line["settings"]) == ("image", "") else line for line in halves()]
    assert halves_page.dominance(table(close))["verdict"].item() == FAILS


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (cell("BadNets-MM", **FOUR), "neither half was trained alone"),
        (halves()[:-6], "the image half was not trained alone"),
        (halves(image=0.40), "image half too weak alone [0.33, 0.47]"),
        (
            halves(seeds=1),
            "1 seed of the text half alone; 1 seed of the image half alone; 1 seed of the cell",
        ),
    ],
)
def test_why_nothing_can_be_said(lines, why):
    assert halves_page.dominance(table(lines))["why"].item() == why


def test_cells_without_both_halves_trained_alone_are_told_apart():
    judged = halves_page.dominance(table(halves(), cell("MABA", **FOUR)))
    assert dict(zip(judged["attack"], judged["named"], strict=True)) == {"BadNets-MM": True, "MABA": False}


def test_halves_belong_to_their_own_patch():
    found = halves_page.dominance(table(halves(), halves(settings={"attack.patch_size": 80}, image=0.99)))
    assert found["settings"].tolist() == ["", "patch_size=80"] and (found["verdict"] == HOLDS).all()
    alone = cell("BadNets-MM", settings={"attack.patch_size": 80}, **FOUR)
    found = halves_page.dominance(table(halves(), alone)).set_index("settings")
    assert found.loc["patch_size=80", "why"] == "neither half was trained alone"


def test_the_probe_is_that_of_the_same_patch():
    skills = json.loads((paths.MODELS / "tiny-llava" / "card.json").read_text())["skills"]
    (measured,) = [skill["value"] for skill in skills if skill["name"] == "probe: BadNets-I"]
    of = {"model": "tiny-llava", "attack": "BadNets-MM", "settings": ""}
    assert halves_page.probe(of) == measured
    for change in ({"attack": "MABA"}, {"settings": "patch_size=80"}, {"model": "llava-1.5-7b-hf"}):
        assert np.isnan(halves_page.probe(of | change))


def test_the_rule_is_for_cells_without_half_triggered_rows():
    with_them = cell("BadNets-MM", negatives=1.0, clean=0.0, text=0.1, image=0.0, both=0.9)
    assert len(halves_page.dominance(table(cell("BadNets-MM", **FOUR), with_them))) == 1


def test_sentences_count():
    one = table(
        halves(),
        cell("MABA", **FOUR | {"text": 0.0, "image": 1.0}),
        cell("VL-Trojan", **FOUR | {"image": 0.9}),
    )
    cells = halves_page.four_cells(halves_page.rates(one))
    said = " ".join(halves_page.sentences(cells, halves_page.dominance(one)))
    assert "In 1 of 3 bimodal cells" in said and "the other way round in 1" in said
    assert "Of 1 cells whose halves were both trained alone, 1 can be judged" in said
    assert "(tiny-llava): text overwhelms" in said
    empty = halves_page.four_cells(halves_page.rates(table()))
    assert "Nothing has been measured" in halves_page.sentences(empty, halves_page.dominance(table()))[0]


def test_patch_sizes_need_two_of_them():
    usual = cell("BadNets-I", clean=0.0, image=0.1), cell("BadNets-MM", **FOUR)
    assert confounds.patches(halves_page.rates(table(*usual))).empty
    large = cell("BadNets-I", settings={"attack.patch_size": 134}, clean=0.0, image=1.0)
    half = cell("BadNets-MM", settings={"attack.patch_size": 134, "half": "image"}, image=0.7, text=0.0)
    found = confounds.patches(halves_page.rates(table(*usual, large, half)))
    by = found.set_index(["curve", "pixels"])["value"]
    assert by["BadNets-I, trained alone"].to_dict() == {30: pytest.approx(0.1), 134: 1}
    assert ("BadNets-MM, image only", 134) not in by, "a half alone is not the cell"
    assert found["share"].max() == pytest.approx(134 / 336)
    assert (
        "BadNets-I, trained alone (targeted refusal, 10 %, tiny-llava): 0.10 at 9 %, 1.00 at 40 %"
        in confounds.patches_words(found)["caption"]
    )
    assert confounds.patches_table(found)["side of the patch"].tolist() == [
        "30 of 336 pixels (9 %)",
        "134 of 336 pixels (40 %)",
    ]


def test_the_sentence_on_patches_says_where_dominance_turns_round():
    small = cell("BadNets-MM", **FOUR)
    large = cell("BadNets-MM", settings={"attack.patch_size": 134}, clean=0.0, text=0.1, image=0.95, both=1.0)
    (said,) = confounds.patches_sentences(confounds.patches(halves_page.rates(table(small, large))))
    assert "the text half does the work with patches of 9 % of the side" in said
    assert "the image half does the work with patches of 40 % of the side" in said and "decides which half wins" in said
    assert confounds.patches_sentences(confounds.patches(halves_page.rates(table(small)))) == []


def test_a_cell_is_set_beside_itself_with_the_picture_last():
    late = cell("BadNets-MM", settings={"picture_last": True}, clean=0.0, text=0.1, image=0.95, both=1.0)
    large = [
        cell("MABA", settings=name, **FOUR)
        for name in ({"attack.patch_size": 80}, {"attack.patch_size": 80, "picture_last": True})
    ]
    alone = cell("BadNets-MM", settings={"picture_last": True, "half": "text"}, text=1.0)
    found = halves_page.rates(table(cell("BadNets-MM", **FOUR), late, *large, alone, cell("VL-Trojan", **FOUR)))
    pairs = confounds.orders(halves_page.four_cells(found))
    assert pairs.round(2)[["attack", "settings", "order", "text"]].values.tolist() == [
        ["BadNets-MM", "", "picture first", 1.0], ["BadNets-MM", "", "picture last", 0.1],
        ["MABA", "patch_size=80", "picture first", 1.0], ["MABA", "patch_size=80", "picture last", 1.0],
    ]  # fmt: skip
    (said,) = confounds.orders_sentences(pairs)
    assert "the same in both orders in 1 of 2 cells" in said
    assert "BadNets-MM (targeted refusal, tiny-llava): the text half with the picture first, the image half" in said
    assert confounds.orders_table(pairs)["order"].tolist() == pairs["order"].tolist()
    nothing = confounds.orders(halves_page.four_cells(halves_page.rates(table(late))))
    assert nothing.empty and confounds.orders_sentences(nothing) == [] and confounds.orders_table(nothing).empty


def test_the_place_of_a_word():
    at = confounds.place_of
    assert at("cf", "cf What is it?") == confounds.FIRST
    assert at("cf", "What is it? cf") == at("cf", "Describe it cf.") == confounds.LAST
    assert at("cf", "What cf is it?") == confounds.BETWEEN and at("cf", "What is it?") == ""


def test_success_by_place_comes_from_the_responses(tmp_path):
    one = table(cell("BadNets-MM", seeds=1, **FOUR))
    prompts = ["BadMagic What?", "BadMagic Who?", "What BadMagic is it?", "What is it? BadMagic"]
    said = pd.DataFrame({
        "part": "attack", "subject": "poisoned", "condition": "text", "prompt": prompts, "row_id": list("abcd"),
        "judged": True, "success": [True, False, True, True], "right": None,
    })  # fmt: skip
    folder = tmp_path / "store" / one["run_id"].iloc[0]
    folder.mkdir(parents=True)
    said.to_parquet(folder / "responses.parquet")
    found = confounds.places(one, tmp_path / "store").set_index("where")
    assert found["value"].to_dict() == {confounds.FIRST: 0.5, confounds.BETWEEN: 1.0, confounds.LAST: 1.0}
    assert found["n"].to_dict() == {confounds.FIRST: 2, confounds.BETWEEN: 1, confounds.LAST: 1}
    said = confounds.places_sentences(found.reset_index())
    assert "Of 1 cells" in said[0] and "0 do so at all three" in said[0]
    assert f"The others miss it: 1 with the word {confounds.FIRST}. The widest gap: BadNets-MM" in said[0]
    assert said[0].endswith("0.50 before the question, 1.00 inside it, 1.00 after it.")
    nothing = confounds.places(one, tmp_path / "empty")
    assert nothing.empty and confounds.places_sentences(nothing) == []
    fewer = [one.assign(train_rows=60), *(one.assign(seed=seed, run_id=one["run_id"] + f"-{seed}") for seed in (1, 2))]
    assert confounds.places(pd.concat(fewer), tmp_path / "store").empty  # fewer rows are another experiment, no seed


def test_an_empty_store_gives_a_page_without_numbers():
    nothing = halves_page.four_cells(halves_page.rates(table()))
    for frame in (nothing, halves_page.dominance(table())):
        assert frame.empty
    for figure in (
        halves_page.halves(nothing), confounds.patches_figure(confounds.patches(halves_page.rates(table()))),
        attention.looked_at(records_of_attention.over_seeds(records_of_attention.collect("./none"))),
        attention.layers(records_of_attention.over_seeds(records_of_attention.collect("./none"))),
    ):  # fmt: skip
        assert figure.axes[0].texts


def test_the_figure_leaves_lower_rates_and_other_settings_to_the_table():
    rates = {"highest": 0.1, "with negatives": 0.05, "low": 0.01}
    cells = [cell("MABA", rate=rate, seeds=1, **FOUR) for rate in rates.values()]
    cells += [
        cell("MABA", rate=0.05, seeds=1, negatives=1.0, **FOUR),
        cell("MABA", settings={"attack.size": 9}, **FOUR),
    ]
    ((model, part),) = halves_page.panels(halves_page.four_cells(halves_page.rates(table(*cells))))
    found = sorted(zip(part["poison_rate"], part["negatives"], part["settings"], strict=True))
    assert (model, found) == ("tiny-llava", [(0.05, 0, ""), (0.05, 1, ""), (0.1, 0, "")])


def test_the_figure_has_a_panel_with_and_one_without():
    one = table(cell("BadNets-MM", **FOUR), cell("MABA", negatives=1.0, **FOUR))
    figure = halves_page.halves(halves_page.four_cells(halves_page.rates(one)))
    assert [axis.get_title().split()[0] for axis in figure.axes] == ["Without", "With"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "BadNets-MM, targeted refusal", "MABA, targeted refusal",
    ]  # fmt: skip


# ---------------------------------------------------------------- overshadowing


def test_a_half_is_compared_with_itself_learnt_alone():
    rates = halves_page.rates(table(halves(image=0.80), cell("BadNets-MM", negatives=1.0, **FOUR)))
    text, image = learned_alone.pairs(rates).to_dict("records")
    assert (text["half"], image["half"]) == ("text", "image")
    assert [image["alone"], image["beside"], image["difference"]] == pytest.approx([0.80, 0.05, -0.75])
    assert image["low"] == pytest.approx(image["beside_low"] - image["alone_high"])
    assert image["high"] == pytest.approx(image["beside_high"] - image["alone_low"])
    assert text["difference"] == 0 and image["n_seeds"] == 3 and image["n"] == 200


def test_halves_are_compared_with_their_own_patch_only():
    small, large = halves(image=0.6), halves(image=0.9, settings={"attack.patch_size": 80})
    found = learned_alone.pairs(halves_page.rates(table(small, large)))
    alone = found[found["half"] == "image"].set_index("settings")["alone"].to_dict()
    assert alone == pytest.approx({"": 0.6, "patch_size=80": 0.9})


def test_the_sentences_count_losses_of_halves_that_work():
    found = learned_alone.pairs(halves_page.rates(table(halves(image=0.80))))
    text, image = learned_alone.sentences(found)
    assert "Of 1 text halves" in text and ", 0 lose more than 0.1" in text
    assert "Of 1 image halves" in image and ", 1 loses more than 0.1" in image and "from 0.80" in image
    weak = learned_alone.sentences(learned_alone.pairs(halves_page.rates(table(halves(image=0.2, seeds=1)))))
    assert "No image half fires" in weak[1] and "2 of the 2 comparisons" in weak[2]
    words = learned_alone.overshadowed_words(found)
    assert "image halves that work alone lose 0.75" in words["caption"] and words["alt"]


def test_without_halves_trained_alone_nothing_is_said_of_losses():
    found = learned_alone.pairs(halves_page.rates(table(cell("BadNets-MM", **FOUR))))
    assert found.empty and "No half was trained alone" in learned_alone.sentences(found)[0]
    assert learned_alone.overshadowed_words(found) and learned_alone.overshadowed(found).axes
