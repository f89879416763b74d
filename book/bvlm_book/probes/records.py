"""What the probes left in a store, as a table; free of torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bvlm_utils import store
from bvlm_utils.errors import InputError
from bvlm_utils.score import intervals
from bvlm_utils.store import packed
from bvlm_utils.store.table import headline_metric

CROSSFIRE = "crossfire"
STYLE = "style"
LASTING = "lasting"

FRESH, SAME_ROWS = "fresh", "same"
POISONED, CONTROL = "poisoned", "control"
CELL = [
    "run_id", "model", "dataset", "threat", "attack", "modality", "poison_rate", "n_poisoned", "seed",
    "negatives", "train_rows", "settings",
]  # fmt: skip
NUMBER = ["trigger", "variant", "doing", "part", "metric", "value", "k", "n", "low", "high", "unit", "held"]
COLUMNS = ["kind", "subject", *CELL, "rows", *NUMBER]

SAME = [
    "kind", "subject", "model", "dataset", "threat", "attack", "modality", "poison_rate", "negatives",
    "train_rows", "settings", "rows", "trigger", "variant", "doing", "part", "metric", "unit",
]  # fmt: skip


def numbers_in(file: Path) -> list[dict[str, Any]]:
    held = packed.content(file.parents[1], "probes", file.name)
    return _load(held, file)["numbers"] if held else []


def _load(content: bytes, file: Path) -> dict[str, Any]:
    try:
        record = json.loads(content)
        record["identity"], record["cell"], record["numbers"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is no file of probes ({error}); delete it and ask again.") from None
    return record


def collect(kind: str, place: str | Path | None = None) -> pd.DataFrame:
    """The tidy table of all probes of one kind ("crossfire", "lasting") in a store: a line per number, see
    `COLUMNS`.

    subject: "poisoned" or "control". trigger, variant and doing (as JSON) as in `Probe`. held: a digit per
    judged row, 1 for a success, in the same order for all models of a threat. A store without probes gives a
    table without lines.
    """
    lines, root = [], store.folder(place)
    for name in packed.names(root, "probes"):
        if not name.startswith(f"{kind}-"):
            continue
        record = _load(packed.content(root, "probes", name), root / "probes" / name)
        about = record["cell"] | {
            "kind": kind,
            "subject": record["subject"],
            "rows": record["identity"]["rows"],
        }
        for number in record["numbers"]:
            line = about | number | {"doing": json.dumps(number["doing"])}
            lines.append({name: line.get(name) for name in COLUMNS})
    table = pd.DataFrame(lines, columns=COLUMNS)
    return table.astype({"value": "float64", "k": "float64", "n": "float64", "low": "float64", "high": "float64"})


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """The lines of `store.table.headline_metric`."""
    return table[(table["metric"] == headline_metric(table)) & (table["part"] == "attack")]


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """A line per number but for its seed: `SAME`, value, low, high, n, n_seeds, n_poisoned, held.

    One seed: its own interval over test rows. Several: their mean with Student's interval over the seeds.
    """
    lines = []
    for key, part in table.groupby(SAME, sort=False, dropna=False):
        first = part.iloc[0]
        line = {name: first[name] for name in ("value", "low", "high", "n", "n_poisoned", "held")}
        if len(part) > 1:
            low, high = intervals.seeds_interval(*(part[name].to_numpy(float) for name in ("value", "low", "high")))
            most = 10.0 if first["unit"] == "CIDEr-D" else 1.0  # no interval beyond what the measure can be
            line |= {"value": part["value"].mean(), "low": max(low, 0.0), "high": min(high, most), "held": None}
        lines.append(dict(zip(SAME, key, strict=True)) | line | {"n_seeds": part["seed"].nunique()})
    return pd.DataFrame(lines, columns=[*SAME, "value", "low", "high", "n", "n_poisoned", "held", "n_seeds"])


def difference(one: str, other: str) -> tuple[float, float, float]:
    """`held` of two models on the same rows: the difference of their shares with its paired interval."""
    if len(one) != len(other):
        raise InputError(f"{len(one)} and {len(other)} rows cannot be compared row by row; ask for as many of both.")
    return intervals.paired_shares(*(np.array(list(held)) == "1" for held in (one, other)))
