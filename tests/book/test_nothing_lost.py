"""Is everything that was measured still there? Digests of the committed reference: numbers, answers, manifests, probes.

They are taken through the functions that readers of a store use, and of values alone, so they stay the same when
settings are written otherwise, modules move, or the reference is packed into other files. Where results were added on
purpose, `python -m tests.book.test_nothing_lost --write` writes the digests anew; `git diff` then shows which cells
are new (an added line) and that no old one has changed.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bvlm_book.probes.records import collect
from bvlm_utils import store
from bvlm_utils.score import judge
from bvlm_utils.store import packed, records

FILE = Path(__file__).parents[1] / "fixtures" / "reference_digest.json"
NUMBERS = ["run_id", "threat", "attack", "subject", "condition", "metric", "value", "n", "low", "high"]
PROBES = [
    "kind", "threat", "run_id", "subject", "rows", "trigger", "variant", "doing", "part", "metric", "value", "k", "n",
    "low", "high", "unit", "held",
]  # fmt: skip
TRACES = ["run_id", "subject", "measure", "group", "layer", "value", "low", "high", "n", "first"]
KINDS = ("crossfire", "lasting", "style")


def digest(frame: pd.DataFrame, columns: list[str]) -> str:
    """16 hex digits of the values of some columns: lines in any order, numbers to 12 significant digits, missing
    values alike, whatever type a column has.
    """
    lines = sorted(zip(*(_written(frame[name]) for name in columns), strict=True))
    return hashlib.sha256("\n".join(map("\x1f".join, lines)).encode()).hexdigest()[:16]


def _written(column: pd.Series) -> list[str]:
    """Every value as text; true is 1. Each distinct value is written once."""
    codes, values = pd.factorize(column, use_na_sentinel=False)
    if pd.api.types.is_numeric_dtype(column):
        texts = [f"{value:.12g}" for value in pd.Series(values).astype("float64")]
    else:
        texts = ["" if pd.isna(value) else str(value) for value in values]
    return np.array(texts, dtype=object)[codes].tolist()


def cells(table: pd.DataFrame, columns: list[str]) -> dict[str, str]:
    """The digest of every cell's lines, by the last part of its run_id, which no two cells share."""
    found = {name[-8:]: digest(lines, columns) for name, lines in table.groupby("run_id")}
    assert len(found) == table["run_id"].nunique()
    return found


def measured() -> dict[str, dict[str, str]]:
    """What the reference holds now, in the form of the committed file."""
    table = store.collect(records.REFERENCE)
    done = table.loc[table["status"] == "done", "run_id"].unique()
    found = {"numbers": cells(table, NUMBERS), "answers": {}, "manifests": {}}
    for name in sorted(done):
        found["answers"][name[-8:]] = digest(store.responses(name, records.REFERENCE), judge.COLUMNS)
        manifest = store.manifest(name, records.REFERENCE)
        rows = manifest.to_frame().assign(n=manifest.n_rows, eligible=manifest.n_eligible, seed=manifest.trigger_seed)
        found["manifests"][name[-8:]] = digest(rows, list(rows))
    for kind in KINDS:
        found[kind] = cells(collect(kind, records.REFERENCE), PROBES)
    return found | {"traces": cells(traces(), TRACES)}


def traces() -> pd.DataFrame:
    """Where tuned models look: measured for the first edition, and shown by no page since."""
    root = store.folder(records.REFERENCE)
    stored = [json.loads(packed.content(root, "attribution", name)) for name in packed.names(root, "attribution")]
    lines = [one["cell"] | {"first": one["first"]} | number for one in stored for number in one["numbers"]]
    return pd.DataFrame(lines).astype({"layer": "float64", "value": "float64"})


@pytest.fixture(scope="module")
def now():
    return measured()


@pytest.mark.parametrize("part", ["numbers", "answers", "manifests", *KINDS, "traces"])
def test_every_committed_result_is_still_there(now, part):
    then = json.loads(FILE.read_text())[part]
    assert len(then) > 0
    changed = {cell for cell in then if now[part].get(cell) != then[cell]}
    assert not changed, f"{part} of {len(changed)} cells are lost or changed, such as {sorted(changed)[:5]}"
    assert not set(now[part]) - set(then), "new results: write the digests anew, see the head of this file"


def test_a_digest_tells_values_and_not_forms_apart():
    frame = pd.DataFrame({"a": ["x", None], "b": [1.0, float("nan")], "c": [True, False]})
    same = pd.DataFrame({"c": [0.0, 1.0], "b": [None, 1 + 1e-14], "a": [None, "x"]})
    assert digest(frame, ["a", "b", "c"]) == digest(same.astype({"b": "Float64"}), ["a", "b", "c"])
    for name, value in (("a", "y"), ("b", 1.00001), ("c", False)):
        assert digest(frame.assign(**{name: [value, frame[name][1]]}), ["a", "b", "c"]) != digest(frame, list("abc"))


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    FILE.write_text(json.dumps(measured(), indent=0, sort_keys=True) + "\n")
