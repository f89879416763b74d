"""Where tuned models look, as `probes.attention` has traced it; free of torch."""

from pathlib import Path
from typing import Any

import pandas as pd

from bvlm_book.probes import records
from bvlm_utils import store
from bvlm_utils.store import packed
from bvlm_utils.store.table import TOLD_APART

FOLDER = "attribution"
GROUPS = ("trigger text", "trigger image", "other text", "other image")
DIFFERENCE, COUNTS = "difference", "token counts"
CELL = ["run_id", "n_poisoned", *TOLD_APART]
NUMBER = ["subject", "measure", "group", "layer", "value", "low", "high", "n"]
COLUMNS = [*CELL, "first", *NUMBER]


def collect(place: str | Path | None = None) -> pd.DataFrame:
    """The tidy table of all traces of a store, a line per number (`COLUMNS`); without lines where there are none.

    subject: "poisoned", "control", their paired "difference", or "token counts". layer: NaN for the mean over layers.
    first: share of rows where the deciding token is the answer's first.
    """
    root = store.folder(place)
    names = packed.names(root, FOLDER)
    lines = [line for name in names for line in records.read(root / FOLDER / name, _lines)]
    return pd.DataFrame(lines, columns=COLUMNS).astype({"layer": "float64", "value": "float64"})


def _lines(record: dict[str, Any]) -> list[dict[str, Any]]:
    about = record["cell"] | {"first": record["first"]}
    return [{name: (about | number)[name] for name in COLUMNS} for number in record["numbers"]]


SAME = [name for name in COLUMNS if name not in ("run_id", "seed", "first", "value", "low", "high", "n")]


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """A line per number but for its seed: `SAME`, value, low, high, n, n_seeds; see `probes.records`."""
    return records.seeds_together(table, SAME)
