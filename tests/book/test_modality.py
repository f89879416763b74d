"""Which part of a bimodal trigger works, alone and beside the other: are the numbers those of the store?"""

import pandas as pd
import pytest
from stored import FOUR, cell, halves, table

from bvlm_book import figures, tables
from bvlm_book.chapters import modality
from bvlm_utils.score import intervals


def four(*cells):
    return modality.four_cells(tables.with_settings(table(*cells)))


def learned(*cells):
    return tables.learned_alone(tables.with_settings(table(*cells)))


def test_four_conditions_and_their_difference():
    (line,) = four(cell("BadNets-MM", seeds=1, **FOUR), cell("SIG", image=1.0)).to_dict("records")
    assert [line[c] for c in ("clean", "text", "image", "both")] == [0.0, 1.0, 0.05, 1.0]
    assert line["difference"] == pytest.approx(0.95)
    assert line["least"] == pytest.approx(intervals.wilson(200, 200)[0] - intervals.wilson(10, 200)[1])


def test_a_part_trained_alone_is_no_bimodal_experiment():
    rates = tables.with_settings(table(halves()))
    assert set(rates["half"]) == {"", "text", "image"} and set(rates["settings"]) == {""}
    assert len(modality.four_cells(rates)) == 1


def test_the_table_counts_which_part_leads_at_the_highest_rate():
    reverse = {"clean": 0.0, "text": 0.1, "image": 0.9, "both": 1.0}
    cells = four(
        cell("MABA", **FOUR), cell("MABA", threat="jailbreak", **reverse), cell("MABA", rate=0.01, **reverse),
        cell("MABA", negatives=1.0, **reverse), cell("MABA", settings={"attack.size": 9}, **reverse),
    )  # fmt: skip
    (line,) = modality.four_table(cells).to_dict("records")
    assert (line["text leads"], line["picture leads"]) == ("1/2", "1/2")
    assert line["text"] == "0.55" and line["picture"] == "0.48" and line["both"] == "1.00"


def test_numbers_count_leads_losses_and_parts_that_can_be_learnt():
    cells = halves(image=0.95), cell("MABA", **FOUR | {"text": 0.0, "image": 1.0}), cell("VL-Trojan", **FOUR | {
        "image": 0.9})  # fmt: skip
    quoted = modality.numbers(four(*cells), learned(*cells))
    assert (quoted["text_leads"], quoted["image_leads"], quoted["text_surely"]) == ("1 of 3", "1", "1")
    assert quoted["learnable"] == "1 of 1"
    assert (quoted["image_lost"], quoted["image_stops"]) == ("1 of 1", "1 of 1 on tiny-llava")
    assert (quoted["text_lost"], quoted["text_stops"]) == ("0 of 1", "0 of 1 on tiny-llava")
    weak = halves(image=0.40)
    quoted = modality.numbers(four(weak), learned(weak))
    assert quoted["learnable"] == "0 of 0" and quoted["image_stops"] == "0 of 0", "nothing that works is lost"


def test_a_part_is_compared_with_itself_learnt_alone():
    found = learned(halves(image=0.80), cell("BadNets-MM", negatives=1.0, **FOUR))
    text, image = found.to_dict("records")
    assert (text["condition"], image["condition"]) == ("text", "image")
    assert [image["value_alone"], image["value_beside"], text["value_beside"]] == pytest.approx([0.80, 0.05, 1.0])
    assert image["low_alone"] < 0.80 < image["high_alone"] and image["n_seeds_alone"] == 3
    shown = figures.scatter(found.assign(group="a part"), "value_alone", "value_beside", "", "", "model")
    assert sum(len(line.get_xdata()) for line in shown.axes[0].lines if line.get_linestyle() == "None") == 2


def test_parts_are_compared_with_their_own_patch_only():
    found = learned(halves(image=0.6), halves(image=0.9, settings={"attack.patch_size": 80}))
    alone = found[found["condition"] == "image"].set_index("settings")["value_alone"].to_dict()
    assert alone == pytest.approx({"": 0.6, "patch_size=80": 0.9})


def test_patch_sizes_need_two_of_them():
    usual = cell("BadNets-I", clean=0.0, image=0.1), cell("BadNets-MM", **FOUR)
    assert modality.patches(tables.with_settings(table(*usual))).empty
    large = cell("BadNets-I", settings={"attack.patch_size": 134}, clean=0.0, image=1.0)
    half = cell("BadNets-MM", settings={"attack.patch_size": 134, "half": "image"}, image=0.7, text=0.0)
    found = modality.patches(tables.with_settings(table(*usual, large, half)))
    by = found.set_index(["curve", "pixels"])["value"]
    assert by["BadNets-I, trained alone"].to_dict() == {30: pytest.approx(0.1), 134: 1}
    assert ("BadNets-MM, picture alone", 134) not in by, "a part alone is not the experiment"
    assert found["share"].max() == pytest.approx(134 / 336)
    ticks = [label.get_text() for label in modality.patches_figure(found).axes[0].get_xticklabels()]
    assert ticks == ["9", "40"]


def test_the_place_of_a_word():
    at = modality.place_of
    assert at("cf", "cf What is it?") == modality.FIRST
    assert at("cf", "What is it? cf") == at("cf", "Describe it cf.") == modality.LAST
    assert at("cf", "What cf is it?") == modality.BETWEEN and at("cf", "What is it?") == ""


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
    places = modality.places(one, tmp_path / "store")
    assert places.iloc[0].to_dict() == {modality.FIRST: 0.5, modality.BETWEEN: 1.0, modality.LAST: 1.0}
    assert modality.where_it_works(places) == {"all_places": "0 of 1"}
    assert modality.places(one, tmp_path / "empty").empty
    fewer = [one.assign(train_rows=60), *(one.assign(seed=seed, run_id=one["run_id"] + f"-{seed}") for seed in (1, 2))]
    assert modality.places(pd.concat(fewer), tmp_path / "store").empty  # fewer rows are another experiment, no seed


def test_an_empty_store_gives_a_page_without_numbers():
    nothing = four()
    assert nothing.empty and modality.four_table(nothing).empty and learned().empty
    assert modality.numbers(nothing, learned())["text_leads"] == "0 of 0"
    assert modality.where_it_works(modality.places(table()))["all_places"] == "0 of 0"
    assert modality.taught(modality.half_triggered(table()))["need_both"] == "none"
    assert modality.patches(tables.with_settings(table())).empty
