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


def read(one: Defended, folder: str | Path | None = None) -> dict[str, Any] | None:
    """The record of a defended cell; None if there is none, or it is damaged, which standard error says."""
    root = store.folder(folder)
    held = packed.content(root, FOLDER, f"{one.name}.json")
    return None if held is None else _load(held, root / FOLDER / f"{one.name}.json")


def has(one: Defended, folder: str | Path | None = None) -> bool:
    return read(one, folder) is not None


def write(one: Defended, folder: Path, about: dict[str, Any]) -> None:
    """Keep what was measured: status, numbers, seconds, device."""
    line = table.rows(records.record(one.cell.run_id, folder))[0]
    whole = {"name": one.name, "identity": one.identity, "moment": one.resolved.moment}
    whole |= {"cell": {name: line.get(name) for name in CELL}} | about | {"provenance": provenance.now()}
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    write_file(folder / FOLDER / f"{one.name}.json", records.as_text(whole))


def collect(folder: str | Path | None = None, relearnt: bool | None = False) -> pd.DataFrame:
    """The tidy table of all defended cells of a store: a line per number (`COLUMNS`), one without for a skipped cell.

    held: a digit per row, 1 for a success, in the order of the rows; only success tests have it. relearnt: those that
    were tuned on after a repair (`defences.relearn`), or those that were not; None: both.
    """
    root, lines = store.folder(folder), []
    for name in packed.names(root, FOLDER):
        found = _load(packed.content(root, FOLDER, name), root / FOLDER / name)
        if found is None:
            continue
        identity = found["identity"]
        if relearnt is not None and bool(identity.get("relearn")) != relearnt:
            continue
        about = found["cell"] | {
            "name": found["name"],
            "run_id": identity["run_id"],
            "defence": identity["defence"],
            "moment": found["moment"],
            "params": json.dumps(identity["params"], sort_keys=True),
            "placebo": identity["placebo"],
            "defence_seed": identity["seed"],
            "relearn": identity.get("relearn", 0),
            "status": found["status"],
            "reason": found.get("reason"),
            "seconds": found.get("seconds"),
        }
        lines += [about | number for number in found["numbers"] or [{}]]
    made = pd.DataFrame(lines, columns=COLUMNS)
    return made.astype(dict.fromkeys(("value", "k", "n", "low", "high", "seconds"), "float64"))


def _load(held: bytes, file: Path) -> dict[str, Any] | None:
    """A record, checked as far as readers rely on it; a damaged one is named, and None is given."""
    try:
        found = parse_json(held.decode("utf-8"), "it")
        problem = _wrong(found, file.stem)
    except InputError as error:
        problem = str(error)
    except DAMAGED as error:
        problem = f"{type(error).__name__}: {error}"
    if problem is None:
        return found
    damage.passed_over(f"{file} is no record of a defended cell ({problem}); it is passed over, and a run makes it "
                       "again.")  # fmt: skip
    return None


def _wrong(found: dict[str, Any], name: str) -> str | None:
    """What is wrong with a record, in words."""
    if found["name"] != name:
        return f"it says that it is {found['name']!r}"
    lacking = damage.lacks(found, NEEDED, MAY_HAVE)
    lacking = lacking or damage.lacks(found["identity"], OF_IDENTITY, {"relearn": int})
    lacking = lacking or damage.lacks(found["cell"], OF_CELL, CELL_MAY) or damage.no_numbers(found["numbers"])
    if lacking:
        return f"it has no {lacking}"
    about = found["identity"]
    specs = defence.info(about["defence"]).params if about["defence"] in defence.names() else {}
    strange = [
        one for one, spec in specs.items() if one not in about["params"] or not spec.accepts(about["params"][one])
    ]
    if strange:
        return f"it has no {strange[0]} as {about['defence']} has"
    return None if found["status"] in damage.STATUSES else f"it has no status of {' and '.join(damage.STATUSES)}"
