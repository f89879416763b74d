"""What the probes left in a store, as a table; free of torch."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bvlm_utils import store
from bvlm_utils.atomic import DAMAGED
from bvlm_utils.errors import InputError
from bvlm_utils.score import intervals
from bvlm_utils.store import damage, packed
from bvlm_utils.store.table import TOLD_APART, headline_metric

CROSSFIRE = "crossfire"
LASTING = "lasting"

FRESH, SAME_ROWS = "fresh", "same"
POISONED, CONTROL = "poisoned", "control"
CELL = ["run_id", "modality", "n_poisoned", *TOLD_APART]
ASKED = ["trigger", "variant", "doing", "part", "metric"]
VALUES = ["value", "k", "n", "low", "high"]
COLUMNS = ["kind", "subject", *CELL, "rows", *ASKED, *VALUES, "unit", "held"]
SAME = ["kind", "subject", "modality", *(name for name in TOLD_APART if name != "seed"), "rows", *ASKED, "unit"]


def numbers_in(file: Path) -> list[dict[str, Any]]:
    """The numbers in a file of probes, each with what was asked; none where it is not there, or damaged."""
    return read(file, lambda record: [number | {"asked": number["asked"]} for number in record["numbers"]])


def read(file: Path, lines: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What `lines` makes of a file of probes (maybe packed); nothing of a damaged one, which standard error names."""
    content = packed.content(file.parents[1], file.parent.name, file.name)
    if content is None:
        return []
    try:
        return lines(json.loads(content))
    except DAMAGED as error:
        reason = f"{type(error).__name__}: {error}"
        damage.passed_over(f"{file} is damaged ({reason}); it is passed over, and asking again makes it again.")
        return []


def collect(kind: str, place: str | Path | None = None) -> pd.DataFrame:
    """All probes of one kind in a store, a line per number; held: a digit per judged row, 1 for a success."""
    root = store.folder(place)
    names = [name for name in packed.names(root, "probes") if name.startswith(f"{kind}-")]
    lines = [line for name in names for line in read(root / "probes" / name, lambda record: _lines(record, kind))]
    return pd.DataFrame(lines, columns=COLUMNS).astype(dict.fromkeys(VALUES, "float64"))


def _lines(record: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    fields = record["cell"] | {"kind": kind, "subject": record["subject"], "rows": record["identity"]["rows"]}
    lines = [fields | number | {"doing": json.dumps(number["doing"])} for number in record["numbers"]]
    values = [line.get(name) for line in lines for name in VALUES]
    if not all(value is None or isinstance(value, damage.NUMBER) for value in values):
        raise TypeError("a value is no number")
    if len({tuple(line[name] for name in ASKED) for line in lines}) < len(lines):
        raise ValueError("a number is there twice")
    return [{name: line.get(name) for name in COLUMNS} for line in lines]


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """The lines of `store.table.headline_metric`."""
    return table[(table["metric"] == headline_metric(table)) & (table["part"] == "attack")]


def over_seeds(
    table: pd.DataFrame, key: Sequence[str] = SAME, more: Sequence[str] = ("n", "n_poisoned", "held")
) -> pd.DataFrame:
    """A line per number but for its seed: `key`, value, low, high, n_seeds, and `more` as the first seed has it.

    One seed: its own interval. Several: their mean with Student's interval over the seeds, never their rows pooled; k
    and held, which belong to one seed, are missing then.
    """
    # Plain dictionaries: a DataFrame for each of the hundreds of groups would take most of a chapter's time.
    columns = list(dict.fromkeys([*key, "value", "low", "high", "seed", *more]))
    numbers = table.groupby(list(key), sort=False, dropna=False).ngroup().to_numpy()
    groups = pd.Series(table[columns].to_dict("records"), dtype=object).groupby(numbers).agg(list)
    lines = [lines[0] | _mean(lines) for lines in groups]
    return pd.DataFrame(lines, columns=[*key, "value", "low", "high", *more, "n_seeds"])


def _mean(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if len(lines) == 1:
        return {"n_seeds": 1}
    values, lows, highs = (np.array([line[name] for line in lines], float) for name in ("value", "low", "high"))
    low, high = intervals.seeds_interval(values, lows, highs)
    if not lines[0]["metric"].endswith("difference"):  # no interval beyond what the measure can be
        low, high = max(low, 0.0), min(high, 10.0 if lines[0]["unit"] == "CIDEr-D" else 1.0)
    mean = {"value": values.mean(), "low": low, "high": high, "k": np.nan, "held": None}
    return mean | {"n_seeds": len({line["seed"] for line in lines})}


def difference(ours: str, theirs: str) -> tuple[float, float, float]:
    """`held` of two models on the same rows: the difference of their shares with its paired interval."""
    if len(ours) != len(theirs):
        raise InputError(f"{len(ours)} and {len(theirs)} rows cannot be compared row by row; ask for as many of both.")
    return intervals.paired_shares(*(np.array(list(digits)) == "1" for digits in (ours, theirs)))
