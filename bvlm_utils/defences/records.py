"""What defences did to cells, as records of a store. Free of torch.

    STORE/defences/NAME.json    what was defended how, its numbers, seconds, provenance

A record is written when it is complete; a cell that is trained anew forgets the records of its old adapter.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from bvlm_utils import store
from bvlm_utils.atomic import DAMAGED, write_file
from bvlm_utils.defences import defence
from bvlm_utils.defences.cell import Defended
from bvlm_utils.documents import parse_json
from bvlm_utils.errors import InputError
from bvlm_utils.store import damage, packed, provenance, records, table

FOLDER = "defences"
# What readers need of a record and of what was defended.
NEEDED = {"identity": dict, "cell": dict, "moment": str, "status": str, "numbers": list}
MAY_HAVE = {"seconds": (*damage.NUMBER, type(None)), "reason": (str, type(None))}
OF_CELL = {"model": str, "dataset": str, "threat": str, "attack": str, "poison_rate": damage.NUMBER, "seed": int}
CELL_MAY = dict.fromkeys(("modality", "skill", "decoy", "settings"), (str, type(None)))
OF_IDENTITY = {"run_id": str, "defence": str, "params": dict, "placebo": bool, "seed": int}
CELL = ["modality", "n_poisoned", "skill", "decoy", *table.TOLD_APART]
NUMBER = ["subject", "condition", "metric", "value", "k", "n", "low", "high", "unit", "held"]
COLUMNS = [
    "name", "run_id", *CELL, "defence", "moment", "params", "placebo", "defence_seed", "relearn", "status", "reason",
    "seconds", *NUMBER,
]  # fmt: skip


def read(point: Defended, folder: str | Path | None = None) -> dict[str, Any] | None:
    """The record of a defended cell; None if there is none, or it is damaged, which standard error says."""
    root = store.folder(folder)
    content = packed.content(root, FOLDER, f"{point.name}.json")
    return None if content is None else _load(content, root / FOLDER / f"{point.name}.json")


def has(point: Defended, folder: str | Path | None = None) -> bool:
    return read(point, folder) is not None


def write(point: Defended, folder: Path, results: dict[str, Any]) -> None:
    """Keep what was measured: status, numbers, seconds, device."""
    line = table.rows(records.record(point.cell.run_id, folder))[0]
    record = {"name": point.name, "identity": point.identity, "moment": point.resolved.moment}
    record |= {"cell": {name: line.get(name) for name in CELL}} | results | {"provenance": provenance.now()}
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    write_file(folder / FOLDER / f"{point.name}.json", records.as_text(record))


def collect(folder: str | Path | None = None, relearnt: bool | None = False) -> pd.DataFrame:
    """The tidy table of all defended cells of a store: a line per number (`COLUMNS`), one without for a skipped cell.

    held: a digit per row, 1 for a success, in the order of the rows; only success tests have it. relearnt: those that
    were tuned on after a repair (`defences.relearn`), or those that were not; None: both.
    """
    root, lines = store.folder(folder), []
    for name in packed.names(root, FOLDER):
        record = _load(packed.content(root, FOLDER, name), root / FOLDER / name)
        if record is None:
            continue
        identity = record["identity"]
        if relearnt is not None and bool(identity.get("relearn")) != relearnt:
            continue
        fields = record["cell"] | {
            "name": record["name"],
            "run_id": identity["run_id"],
            "defence": identity["defence"],
            "moment": record["moment"],
            "params": json.dumps(identity["params"], sort_keys=True),
            "placebo": identity["placebo"],
            "defence_seed": identity["seed"],
            "relearn": identity.get("relearn", 0),
            "status": record["status"],
            "reason": record.get("reason"),
            "seconds": record.get("seconds"),
        }
        lines += [fields | number for number in record["numbers"] or [{}]]
    frame = pd.DataFrame(lines, columns=COLUMNS)
    return frame.astype(dict.fromkeys(("value", "k", "n", "low", "high", "seconds"), "float64"))


def _load(content: bytes, file: Path) -> dict[str, Any] | None:
    """A record, checked as far as readers rely on it; a damaged one is named, and None is given."""
    try:
        record = parse_json(content.decode("utf-8"), "it")
        problem = _wrong(record, file.stem)
    except InputError as error:
        problem = str(error)
    except DAMAGED as error:
        problem = f"{type(error).__name__}: {error}"
    if problem is None:
        return record
    damage.passed_over(f"{file} is no record of a defended cell ({problem}); it is passed over, and a run makes it "
                       "again.")  # fmt: skip
    return None


def _wrong(record: dict[str, Any], name: str) -> str | None:
    """What is wrong with a record, in words."""
    if record["name"] != name:
        return f"it says that it is {record['name']!r}"
    missing = damage.lacks(record, NEEDED, MAY_HAVE)
    missing = missing or damage.lacks(record["identity"], OF_IDENTITY, {"relearn": int})
    missing = missing or damage.lacks(record["cell"], OF_CELL, CELL_MAY) or damage.no_numbers(record["numbers"])
    if missing:
        return f"it has no {missing}"
    identity = record["identity"]
    specs = defence.info(identity["defence"]).params if identity["defence"] in defence.names() else {}
    bad = [
        key for key, spec in specs.items() if key not in identity["params"] or not spec.accepts(identity["params"][key])
    ]
    if bad:
        return f"it has no {bad[0]} as {identity['defence']} has"
    return None if record["status"] in damage.STATUSES else f"it has no status of {' and '.join(damage.STATUSES)}"
