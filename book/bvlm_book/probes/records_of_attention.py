"""Where do tuned models look? Reads what `probes.attention` has traced, for the chapter on modalities. Free of
torch.

`collect` gives the numbers of a store, `over_seeds` puts seeds together, the rest says what they hold.
Figures are in `chapters.modality.halves`.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from bvlm_utils import store
from bvlm_utils.errors import InputError
from bvlm_utils.score import intervals
from bvlm_utils.store import packed

FOLDER = "attribution"
GROUPS = ("trigger text", "trigger image", "other text", "other image")
POISONED, CONTROL, DIFFERENCE, COUNTS = "poisoned", "control", "difference", "token counts"
CELL = [
    "run_id", "model", "dataset", "threat", "attack", "poison_rate", "n_poisoned", "seed", "negatives",
    "train_rows", "settings",
]  # fmt: skip
NUMBER = ["subject", "measure", "group", "layer", "value", "low", "high", "n"]
COLUMNS = [*CELL, "first", *NUMBER]


def load(content: bytes, file: Path) -> dict[str, Any]:
    """What is in a file of traces; InputError if it is none."""
    try:
        record = json.loads(content)
        record["identity"], record["cell"], record["numbers"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is no file of traces ({error}); delete it and trace again.") from None
    return record


def collect(place: str | Path | None = None) -> pd.DataFrame:
    """The tidy table of all traces of a store, a line per number (`COLUMNS`); without lines where there are
    none.

    subject: "poisoned", "control", their paired "difference", or "token counts". layer: NaN for the mean
    over layers. first: share of rows where the deciding token is the answer's first.
    """
    lines, root = [], store.folder(place)
    for name in packed.names(root, FOLDER):
        record = load(packed.content(root, FOLDER, name), root / FOLDER / name)
        about = record["cell"] | {"first": record["first"]}
        lines += [{name: (about | number)[name] for name in COLUMNS} for number in record["numbers"]]
    return pd.DataFrame(lines, columns=COLUMNS).astype({"layer": "float64", "value": "float64"})


SAME = [name for name in COLUMNS if name not in ("run_id", "seed", "first", "value", "low", "high", "n")]


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """A line per number but for its seed: `SAME`, value, low, high, n, n_seeds.

    One seed: its own interval over rows. Several: their mean with Student's interval over the seeds.
    """
    lines = []
    for key, part in table.groupby(SAME, sort=False, dropna=False):
        line = {name: part[name].iloc[0] for name in ("value", "low", "high", "n")}
        if len(part) > 1:
            low, high = intervals.seeds_interval(*(part[name].to_numpy(float) for name in ("value", "low", "high")))
            line |= {"value": part["value"].mean(), "low": low, "high": high}
        lines.append(dict(zip(SAME, key, strict=True)) | line | {"n_seeds": part["seed"].nunique()})
    return pd.DataFrame(lines, columns=[*SAME, "value", "low", "high", "n", "n_seeds"])
