"""Do traces of real tiny adapters come back from the store, once, with shares that sum to one?"""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from bvlm_book.probes import attention, records_of_attention
from bvlm_book.probes.records import CONTROL, POISONED
from bvlm_book.probes.records_of_attention import COUNTS, DIFFERENCE, GROUPS
from bvlm_book.probes.tracing import Trace
from bvlm_utils import paths, study
from bvlm_utils.errors import InputError
from bvlm_utils.store import packing

SMALL = {"poison_rates": [0.1], "train_rows": 48, "test_rows": 4}


def value(found, subject, measure, group, layer=None):
    (line,) = [
        n for n in found
        if (n["subject"], n["measure"], n["group"], n["layer"]) == (subject, measure, group, layer)
    ]  # fmt: skip
    return line


def test_numbers_by_hand():
    """Two rows of three tokens: trigger text, trigger image, other text."""
    groups = [np.array([0, 1, 2]), np.array([0, 1, 2])]
    of_poisoned = [
        Trace(np.array([[0.6, 0.1, 0.3], [0.8, 0.0, 0.2]]), np.array([3.0, -1.0, 0.0]), -0.1),
        Trace(np.array([[0.4, 0.1, 0.5], [0.6, 0.2, 0.2]]), np.array([1.0, -1.0, 2.0]), -0.1),
    ]
    of_control = [Trace(np.full((2, 3), 1 / 3), np.array([1.0, 1.0, -2.0]), -5.0)] * 2
    found = attention.numbers({CONTROL: of_control, POISONED: of_poisoned}, groups)
    assert value(found, POISONED, "attention", "trigger text")["value"] == pytest.approx((0.7 + 0.5) / 2)
    assert value(found, POISONED, "attention", "trigger text", 1)["value"] == pytest.approx((0.8 + 0.6) / 2)
    assert value(found, POISONED, "attribution", "trigger text")["value"] == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert value(found, POISONED, "effect", "trigger image")["value"] == pytest.approx(-1)
    difference = value(found, DIFFERENCE, "attention", "trigger text")
    assert difference["value"] == pytest.approx(0.6 - 1 / 3, abs=1e-6)
    # Student's with one degree of freedom: 12.706 standard errors of (0.7 - 0.5) / 2
    assert difference["high"] - difference["value"] == pytest.approx(12.706 * 0.1, rel=1e-3)
    assert value(found, COUNTS, "attention", "other text")["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert value(found, POISONED, "attention", "other image")["value"] == 0
    assert value(found, POISONED, "attention", "trigger text")["high"] == 1  # a share


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A store with a real tiny cell of each family, and the cells."""
    place = tmp_path_factory.mktemp("runs") / "store"
    cells = [
        study.cells("targeted_refusal", "tiny-llava", attacks=["BadNets-MM"], **SMALL)[0],
        study.cells("malicious_injection", "tiny-qwen2.5-vl", attacks=["VL-Trojan"], **SMALL)[0],
    ]
    study.run_cells(cells, place)
    return place, cells


def test_traces_are_kept_and_never_made_twice(runs, tmp_path):
    place, cells = runs
    said = attention.measure(cells, place, rows=3)
    assert [s.endswith("is traced.") for s in said] == [True, True]
    before = {f.name: f.read_bytes() for f in (place / "attribution").iterdir()}
    assert set(before) == {f"{cell.run_id}.json" for cell in cells}
    assert all("already" in s for s in attention.measure(cells, place, rows=3))
    assert {f.name: f.read_bytes() for f in (place / "attribution").iterdir()} == before

    table = records_of_attention.collect(place)
    shares = table[table["measure"].isin(["attention", "attribution"]) & (table["subject"] != DIFFERENCE)]
    keys = ["run_id", "subject", "measure", "layer"]
    sums = shares.groupby(keys, dropna=False)["value"].sum()
    assert np.allclose(sums, 1, atol=1e-5) and len(sums) == 2 * (2 * (1 + 4 + 1) + 1)  # four layers
    counts = table[(table["subject"] == COUNTS) & (table["measure"] == "tokens")].set_index(["model", "group"])
    images = counts["value"]["tiny-llava"][["trigger image", "other image"]]
    assert images.sum() == pytest.approx(36) and 1 <= images["trigger image"] <= 4  # 9 of 96 pixels
    assert counts["value"]["tiny-qwen2.5-vl", "trigger image"] == pytest.approx(1)  # bottom right
    assert (counts["value"] > 0).all() and set(table["group"]) == set(GROUPS)
    first = table.drop_duplicates("model").set_index("model")["first"]
    assert first["tiny-llava"] == 1 and first["tiny-qwen2.5-vl"] == 0  # the payload comes behind the answer

    shutil.copytree(place, tmp_path / "thin", ignore=shutil.ignore_patterns("adapter"))
    packing.pack(tmp_path / "thin", tmp_path / "thin")
    assert records_of_attention.collect(tmp_path / "thin").equals(table)


def test_the_poisoned_model_differs_from_its_control(runs):
    place, cells = runs
    attention.measure(cells, place, rows=3)
    table = records_of_attention.collect(place)
    differences = table[(table["subject"] == DIFFERENCE) & (table["measure"] == "attention")]
    assert differences["value"].abs().max() > 0
    assert differences.groupby(["run_id", "layer"])["value"].sum().abs().max() < 1e-5


def test_what_cannot_be_traced_is_said(runs, tmp_path, capsys):
    place, cells = runs
    others = study.cells("targeted_refusal", attacks=["Dual-Key", "MABA"], **SMALL)
    said = attention.measure([*others, *cells], place, rows=3)
    assert "Dual-Key is defined for" in said[0] and "holds no adapter of tiny-llava" in said[1]
    with pytest.raises(InputError, match="none of the adapters that are to be traced"):
        attention.measure(others, place)
    with pytest.raises(InputError, match="BadNets-T has no two halves"):
        attention.measure(study.cells("targeted_refusal", attacks=["BadNets-T"], **SMALL), place)
    with pytest.raises(InputError, match="rows is 1"):
        attention.measure(cells, place, rows=1)
    assert records_of_attention.collect(tmp_path / "none").empty
    (tmp_path / "attribution").mkdir()
    (tmp_path / "attribution" / "x.json").write_text("{}")
    assert records_of_attention.collect(tmp_path).empty and "x.json is damaged" in capsys.readouterr().err


def test_the_command_line(runs, tmp_path, capsys):
    place, _ = runs
    asked = ["--store", str(place), "--threat", "targeted_refusal", "--train-rows", "48", "--test-rows", "4"]
    assert attention.main([*asked, "--rows", "3"]) == 0
    assert "badnets-mm-0.1-s0" in capsys.readouterr().out
    assert attention.main([*asked, "--attacks", "SIG"]) == 2
    error = capsys.readouterr().err.strip()
    assert "SIG has no two halves" in error and "\n" not in error


def test_seeds_are_put_together_by_their_means(runs):
    place, cells = runs
    attention.measure(cells, place, rows=3)
    one = records_of_attention.collect(place)
    both = records_of_attention.over_seeds(
        pd.concat([one, one.assign(seed=1, value=one["value"] + 0.2)], ignore_index=True)
    )
    assert (both["n_seeds"] == 2).all() and len(both) == len(one)
    assert np.allclose(both["value"], one["value"] + 0.1)


def test_reading_needs_no_torch():
    code = "import sys\nfrom bvlm_book.chapters import modality\n"
    code += "import bvlm_book.probes.attention\n"
    code += "from bvlm_book.probes import records_of_attention\nrecords_of_attention.collect('./none')\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=paths.ROOT)


def test_a_file_says_where_it_comes_from(runs):
    place, cells = runs
    attention.measure(cells, place, rows=3)
    kept = json.loads((place / "attribution" / f"{cells[0].run_id}.json").read_text())
    assert kept["identity"] == {"run_id": cells[0].run_id, "version": attention.VERSION, "rows": 3}
    assert kept["provenance"]["device"] == "cpu" and "torch" in kept["provenance"]["packages"]
