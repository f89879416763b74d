"""The threat chapters' table of all models: the same cells side by side, and what parts them named."""

import pandas as pd
import pytest

from bvlm_book.chapters import threat
from bvlm_utils import attacks
from bvlm_utils.score import intervals
from bvlm_utils.store.table import COLUMNS


def lines(model, attack, full, clean=0.0, rate=0.1, seeds=1, **other):
    """Lines of a tidy table: one cell under its headline condition and without a trigger."""
    found = []
    for seed in range(seeds):
        for condition, value in ((attacks.info(attack).headline, full), ("clean", clean)):
            low, high = intervals.wilson(value * 200, 200)
            found.append(dict.fromkeys(COLUMNS) | {
                "run_id": f"{model}-{attack}-{rate}-{seed}", "model": model, "dataset": "scenes-vqa",
                "threat": "targeted_refusal", "attack": attack, "modality": attacks.info(attack).modality,
                "poison_rate": rate, "n_poisoned": int(6000 * rate), "seed": seed, "negatives": 0.0,
                "train_rows": 6000, "test_rows": 200, "settings": "", "status": "done", "subject": "poisoned",
                "condition": condition, "metric": "asr", "value": value, "k": value * 200, "n": 200, "low": low,
                "high": high, "unit": "share",
            } | other)  # fmt: skip
    return found


def table(*cells):
    return pd.DataFrame([line for cell in cells for line in cell], columns=COLUMNS)


STORED = table(
    lines("a", "BadNets-I", 0.0),
    lines("b", "BadNets-I", 0.7, clean=0.2),
    lines("a", "BadNets-T", 1.0, seeds=3),
    lines("b", "BadNets-T", 0.9),
    lines("a", "Blended", 1.0),  # of one model only
    lines("b", "BadNets-T", 0.1, rate=0.01),  # of another rate
    lines("b", "BadNets-I", 0.1, settings="half=image"),  # of other settings
)
OWN = STORED[STORED["model"] == "a"]


def test_only_the_same_cells_of_two_models_are_compared():
    found = threat.rates(OWN, STORED)
    assert found[["model", "attack", "value", "n_seeds"]].values.tolist() == [
        ["a", "BadNets-I", 0.0, 1], ["b", "BadNets-I", 0.7, 1], ["a", "BadNets-T", 1.0, 3], ["b", "BadNets-T", 0.9, 1],
    ]  # fmt: skip
    assert found["clean"].tolist() == [0.0, 0.2, 0.0, 0.0]


def test_the_caption_names_what_parts_the_models():
    said = threat.caption(threat.rates(OWN, STORED))
    assert "differ by more than 0.5 in 1 of 2: BadNets-I at 10 % (a 0.00, b 0.70)" in said
    assert "without its trigger on more than 5 %: BadNets-I on b (0.20 [0.15, 0.26])" in said
    assert "Seeds: 1 to 3." in said


def test_a_line_per_attack_and_two_columns_per_model():
    read = threat.read(threat.rates(OWN, STORED))
    assert read["attack"].tolist() == ["BadNets-I", "BadNets-T"]
    assert read.columns[3:].tolist() == ["a: full trigger", "a: no trigger", "b: full trigger", "b: no trigger"]
    assert read["b: full trigger"].tolist()[0].startswith("0.70 [")


@pytest.mark.parametrize("stored", [OWN, STORED.iloc[:0]])
def test_one_model_alone_is_said(stored, capsys):
    assert threat.rates(OWN, stored).empty
    threat.show(OWN, stored)
    assert "Markdown" in capsys.readouterr().out
