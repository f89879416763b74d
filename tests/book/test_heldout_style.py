"""Are stored adapters asked about pictures in the held-out style, once, beside their control?"""

import subprocess
import sys

import pandas as pd
import pytest

from bvlm_book.chapters.modality import halves
from bvlm_book.chapters.modality.held_out_style import collect, sentences, shared_seeds, style_table
from bvlm_book.probes import held_out_style, records
from bvlm_utils import paths, store, study
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


def test_the_table_sets_both_styles_side_by_side(runs):
    place, _ = runs
    cells = halves.four_cells(halves.rates(store.collect(place)))
    found = collect(place)
    (line,) = style_table(found, cells).to_dict("records")
    usual, held_out = (
        cells["both"].item(),
        found.set_index(["subject", "variant"])["value"]["poisoned", "both"],
    )
    assert line["both triggers: usual, held-out style"].startswith(f"{usual:.2f}, {held_out:.2f} [")
    finding, said = sentences(found, records.collect(records.STYLE, place), cells)
    assert "either style" in finding and "VQA accuracy" in said and "targeted refusal" in said
    (alone,) = style_table(found, cells.iloc[:0]).to_dict("records")
    assert alone["both triggers: usual, held-out style"].startswith("n/a, ")


def test_without_answers_the_page_says_so(tmp_path):
    nothing = collect(tmp_path)
    cells = halves.four_cells(halves.rates(store.collect(tmp_path)))
    assert style_table(nothing, cells).empty
    assert "Nobody has been asked" in sentences(nothing, nothing, cells)[0]


def test_the_finding_counts_what_fires_in_both_styles():
    key = {"model": "m", "threat": "jailbreak", "attack": "MABA", "poison_rate": 0.1}
    usual = [key | {"negatives": 0, "settings": "", "text": 0.9, "image": 0.1, "both": 0.8, "clean": 0.0}]
    line = key | {"subject": "poisoned", "low": 0.3, "high": 0.7, "n": 9}
    asked = [line | {"variant": name, "value": value} for name, value in (("text", 0.4), ("image", 0.2), ("both", 0.9))]
    control = pd.DataFrame(columns=["subject", "part", "model", "threat"])
    finding, _ = sentences(pd.DataFrame(asked), control, pd.DataFrame(usual))
    assert "Of 2 combinations" in finding and "1 do so in the held-out one" in finding
    assert "The largest change is -0.50 (MABA, text trigger: 0.40 [0.30, 0.70]" in finding


def test_only_the_seeds_that_were_asked_are_compared():
    key = {"model": "m", "threat": "jailbreak", "attack": "MABA", "poison_rate": 0.1}
    table = pd.DataFrame([key | {"seed": seed} for seed in (0, 1)])
    assert shared_seeds(table, pd.DataFrame([key | {"seed": 1}] * 3))["seed"].tolist() == [1]


def test_data_without_that_style_is_refused(tmp_path):
    class Cell:
        dataset = "vqav2:somewhere"

    with pytest.raises(InputError, match="has no split test_style"):
        held_out_style.measure([Cell()], tmp_path)


def test_the_command_line_says_what_is_missing(runs, capsys):
    place, _ = runs
    assert held_out_style.main(["--store", str(place), "--threat", "targeted_refusal"]) == 2
    assert "holds no adapter" in capsys.readouterr().err


def test_reading_needs_no_torch():
    code = "import sys\nfrom bvlm_book.chapters.modality import held_out_style\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=paths.ROOT)
