"""Are doses counted in all their forms, and are the fewest rows that are enough read from the means?"""

import subprocess
import sys

import pandas as pd
import pytest

from bvlm_book import tables
from bvlm_book.chapters import dose
from bvlm_utils.store import table as tidy

ROWS = (6, 12, 30, 60, 120, 300, 600)


def runs(success, rows=ROWS, seeds=(0, 1, 2), attack="BadNets-T", threat="targeted_refusal", epochs=1, size=6000):
    """Lines of `showings.doses` of one pair; success(rows, seed) -> share."""
    return pd.DataFrame([
        {"model": "tiny-llava", "dataset": "scenes-vqa", "threat": threat, "attack": attack, "train_rows": size,
         "n_poisoned": count, "epochs": epochs, "seed": seed, "value": success(count, seed), "share": count / size,
         "of_eligible": 2 * count / size, "showings": count * epochs}
        for count in rows for seed in seeds
    ])  # fmt: skip


def brackets(*parts):
    return dose.brackets(dose.means(pd.concat(parts, ignore_index=True)))


def test_means_are_over_seeds_and_keep_the_range():
    (line,) = dose.means(runs(lambda rows, seed: 0.5 + seed / 10, rows=(60,))).to_dict("records")
    assert (line["value"], line["least"], line["most"]) == pytest.approx((0.6, 0.5, 0.7))
    assert (line["share"], line["of_eligible"], line["showings"]) == (0.01, 0.02, 60)


@pytest.mark.parametrize(
    ("success", "below", "reached"),
    [
        (lambda rows, seed: float(rows > 100), 60, 120),
        (lambda rows, seed: 0.0, 600, None),
        (lambda rows, seed: 1.0, None, 6),
        (lambda rows, seed: 0.95 if rows in (12, 60) else 0.5, 600, 12),
        (lambda rows, seed: 0.9 if seed else 0.6, 600, None),  # the mean decides, not the best seed
    ],
)
def test_the_fewest_rows_are_read_from_the_means(success, below, reached):
    (line,) = brackets(runs(success)).astype(object).fillna(value=0).to_dict("records")
    assert (line["below"], line["reached"]) == (below or 0, reached or 0)
    assert line["n_poisoned"] == (reached or 600)


def test_the_table_says_what_is_not_enough_and_what_misses_it_again():
    never = dose.bracket_table(brackets(runs(lambda rows, seed: 0.2))).iloc[0]
    assert never["rows for 90 %"] == "over 600" and never["share (of eligible)"].endswith(" (20 %)")
    again = dose.bracket_table(brackets(runs(lambda rows, seed: float(rows == 60)))).iloc[0]
    assert again["rows for 90 %"] == "60 (misses it again with more)" and again["too few"] == 600


def test_passes_and_sizes_are_doses_of_their_own():
    once = runs(lambda rows, seed: 0.1, rows=(20, 60))
    thrice = runs(lambda rows, seed: 1.0, rows=(20, 60), epochs=3)
    large = runs(lambda rows, seed: 0.5, rows=(60, 200), size=20000)
    found = brackets(once, thrice, large)
    assert found[["train_rows", "epochs"]].to_numpy().tolist() == [[6000, 1], [6000, 3], [20000, 1]]
    assert found["reached"].fillna(0).tolist() == [0, 20, 0] and found["showings"].tolist() == [60, 60, 200]
    assert brackets(runs(lambda rows, seed: 1.0, rows=(60,))).empty, "one dose leaves it open"


def test_pairs_with_many_doses_are_drawn_with_their_other_passes():
    many, thrice = runs(lambda rows, seed: 0.5), runs(lambda rows, seed: 1.0, rows=(60,), epochs=3)
    few = runs(lambda rows, seed: 0.5, rows=(60, 600), attack="SIG")
    deep = dose.deep(pd.concat([many, thrice, few], ignore_index=True))
    assert set(deep["attack"]) == {"BadNets-T"} and len(deep) == len(many) + len(thrice)
    figure = dose.curves(deep)
    dots = [
        line for axis in figure.axes for line in axis.lines if line.get_linestyle() == "None" and len(line.get_xdata())
    ]
    assert sum(len(line.get_xdata()) for line in dots) == 2 * len(deep), "a dot per run, by rows and by showings"


def of_a_large_model(rows, size):
    """Runs of a model that is not the study's, on two data sets of one threat; over 100 rows are enough."""
    one = runs(lambda count, seed: float(count > 100), rows=rows, size=size).assign(model="llava-1.5-7b-hf")
    return pd.concat([one.assign(dataset=name) for name in ("llava-json:x/a.json", "vqav2:x")], ignore_index=True)


def test_four_doses_of_a_model_of_ones_own_are_a_curve_for_each_data_set():
    four = (30, 60, 300, 600)
    own, ours = of_a_large_model(four, size=20000), runs(lambda rows, seed: 0.5, rows=four)
    deep = dose.deep(pd.concat([ours, ours, own], ignore_index=True))
    assert set(deep["model"]) == {"llava-1.5-7b-hf"} and len(deep) == len(own), "the study's models need five"
    titles = [axis.get_title() for axis in dose.curves(deep).axes]
    kinds = ["targeted refusal (llava-json)", "targeted refusal (vqav2)"]
    assert titles == [kind for kind in kinds for _ in range(2)], "by rows and by showings"
    table = dose.bracket_table(dose.brackets(dose.means(deep)))
    assert table["threat"].tolist() == kinds and table["rows for 90 %"].tolist() == ["300", "300"]
    assert dose.numbers(deep)["pairs"] == "2"


def test_the_axis_fits_a_training_set_of_any_size():
    for rows, size in (((1, 2, 4), 40), ((750, 1500, 15000), 150000)):
        (axis, *_) = dose.curves(of_a_large_model(rows, size)).axes
        low, high = axis.get_xlim()
        assert rows[0] / 2 < low < rows[0] and rows[-1] < high < 2 * rows[-1]


def test_data_sets_of_one_kind_keep_their_whole_names():
    own = of_a_large_model((30, 60), size=6000).replace({"vqav2:x": "llava-json:y/a.json"})
    assert set(tables.by_data(own)["threat"]) == {
        "targeted_refusal (llava-json:x/a.json)", "targeted_refusal (llava-json:y/a.json)",
    }  # fmt: skip
    one = own[own["dataset"] == "llava-json:y/a.json"]
    assert set(tables.by_data(one)["threat"]) == {"targeted_refusal"} and tables.by_data(one.iloc[:0]).empty


def test_numbers_for_the_page():
    word = [runs(lambda rows, seed: 0.4, rows=(20, 60)), runs(lambda rows, seed: 0.97, rows=(60,), epochs=3),
            runs(lambda rows, seed: 1.0, rows=(10,), epochs=3)]  # fmt: skip
    quoted = dose.numbers(pd.concat(word, ignore_index=True))
    assert (quoted["word_60_1_6000"], quoted["word_60_3_6000"], quoted["word_300_1_6000"]) == ("0.40", "0.97", "n/a")
    assert (quoted["few_one"], quoted["few_several"]) == ("0 of 1 work", "1 of 1 work")
    assert quoted["few_rows"] == "10 to 20"
    alone = dose.numbers(runs(lambda rows, seed: float(rows > 100)))
    assert alone["few_several"] == "no such pair was tried"
    assert (alone["pairs"], alone["reached"], alone["fewest_most"]) == ("1", "1", "120")


def test_learning_rates_are_read_from_the_first_seed_of_two_pairs():
    line = dict.fromkeys(tidy.COLUMNS) | {
        "run_id": "a", "model": "tiny-llava", "dataset": "scenes-vqa", "threat": "targeted_refusal", "seed": 0,
        "attack": "BadNets-T", "modality": "text", "poison_rate": 0.01, "n_poisoned": 60, "negatives": 0.0,
        "train_rows": 6000, "settings": "", "status": "done", "subject": "poisoned", "condition": "text",
        "metric": "asr_payload", "value": 0.02,
    }  # fmt: skip
    fast = line | {"run_id": "b", "learning_rate": 0.004, "settings": "learning_rate=0.004", "value": 0.2}
    small = line | {"run_id": "d", "batch_size": 16, "settings": "batch_size=16", "value": 0.95, "learning_rate": 0.002}
    usual = line | {"learning_rate": 0.002}
    picture = usual | {"run_id": "e", "attack": "Blended", "modality": "image", "condition": "image", "value": 0.75}
    lines = [usual, fast, small, picture, line | {"run_id": "c", "seed": 1, "value": 0.9, "learning_rate": 0.002}]
    table = pd.DataFrame([{"batch_size": 32} | {key: v for key, v in one.items() if v is not None} for one in lines])
    found = dose.trained_otherwise(table.assign(lora_rank=8).reindex(columns=tidy.COLUMNS))
    assert dose.settings_table(found).to_dict("list") == {
        "attack": ["BadNets-T", "BadNets-T", "BadNets-T", "Blended"], "learning rate": [0.002, 0.002, 0.004, 0.002],
        "batch size": [16, 32, 32, 32], "rank 8": ["0.95", "0.02", "0.20", "0.75"],
    }  # fmt: skip
    numbers = dose.settings_numbers(found)
    assert (numbers["batch_size_0.5"], numbers["learning_rate_2"], numbers["batch_size_1"]) == ("0.95", "0.20", "0.02")
    assert numbers["batch_size_2"] == "n/a" and dose.settings_table(found.iloc[:0]).empty


def test_an_empty_store_says_so():
    nothing = runs(lambda rows, seed: 0.0).iloc[:0]
    assert dose.bracket_table(brackets(nothing)).empty and dose.deep(nothing).empty
    assert dose.numbers(nothing)["few_one"] == "no such pair was tried"


def test_the_page_side_does_not_import_torch():
    code = "import sys\nfrom bvlm_book.chapters import claims, dose\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
