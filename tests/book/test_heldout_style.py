"""Are stored adapters asked about pictures in the held-out style, once, beside their control?"""

import pytest

from bvlm_book.probes import held_out_style, records
from bvlm_utils import study
from bvlm_utils.errors import InputError

SMALL = {"poison_rates": [0.1], "train_rows": 48, "test_rows": 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A store with a real tiny cell that was asked, and the cell."""
    place = tmp_path_factory.mktemp("runs") / "store"
    cells = study.cells("targeted_refusal", attacks=["BadNets-MM"], **SMALL)
    study.run_cells(cells, place)
    held_out_style.measure(cells, place, rows=3)
    return place, cells


def test_all_conditions_and_the_utility_are_asked_of_both_models(runs):
    place, _ = runs
    kept = records.collect(records.STYLE, place)
    attack = kept[(kept["part"] == "attack") & (kept["metric"] == "asr")]
    assert sorted(attack["variant"]) == sorted(["clean", "text", "image", "both"] * 2)
    assert (attack["n"] == 3).all() and set(attack["subject"]) == {"poisoned", "control"}
    assert set(kept.loc[kept["part"] == "utility", "subject"]) == {"poisoned", "control"}
    assert set(kept["doing"]) == {'["test_style"]'}


def test_nothing_is_asked_twice(runs):
    place, cells = runs
    before = {file.name: file.read_bytes() for file in (place / "probes").iterdir()}
    held_out_style.measure(cells, place, rows=3)
    assert {file.name: file.read_bytes() for file in (place / "probes").iterdir()} == before


def test_data_without_that_style_is_refused(tmp_path):
    class Cell:
        dataset = "vqav2:somewhere"

    with pytest.raises(InputError, match="has no split test_style"):
        held_out_style.measure([Cell()], tmp_path)


def test_the_command_line_says_what_is_missing(runs, capsys):
    place, _ = runs
    assert held_out_style.main(["--store", str(place), "--threat", "targeted_refusal"]) == 2
    assert "holds no adapter" in capsys.readouterr().err
