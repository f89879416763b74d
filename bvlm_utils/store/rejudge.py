"""Judges the stored responses of a store again, and keeps today's verdicts and numbers. Free of torch.

`python -m bvlm_utils.store rejudge STORE`, after a test of success has changed or a new number was thought of. Nothing
is trained and no model is asked: what a cell was and what its models said stays, with its run_id, its adapter and what
was asked of it later. The last lines say which verdicts and which old numbers have changed.
"""

import math
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bvlm_utils.atomic import DAMAGED, partial_name, write_file
from bvlm_utils.errors import InputError
from bvlm_utils.store import packed, packing, records
from bvlm_utils.store.cell import Cell
from bvlm_utils.store.recheck import SAME, VERDICTS, by_name, judged_again, other_verdicts

FAILED = "cells that cannot be judged again"


def rejudge(place: str | Path | None = None) -> int:
    """Judge a store again, of either form; what has changed goes to stdout, and 1 says that a cell could not be judged.

    A packed store changes as a whole.
    """
    root = records.folder(place)
    if not any(record["metrics"] for record in records.records(root)):
        raise InputError(f"The store {root} has no numbers to judge again; name one that has records.")
    if not packed.is_packed(root):
        changes = _cells(root)
    else:
        loose = root / partial_name("rejudge")
        shutil.rmtree(loose, ignore_errors=True)
        try:
            packing.unpack(root, loose)
            changes = _cells(loose)
            packing.swap(loose, root)
        finally:
            shutil.rmtree(loose, ignore_errors=True)
    for what, count in sorted((+changes).items()):
        print(f"{what}: {count}")
    return int(changes[FAILED] > 0)


def _cells(root: Path) -> Counter[str]:
    """Judge all cells of a store of folders; what has changed, counted."""
    whole = records.records(root)
    changes = Counter({FAILED: len(packed.run_ids(root)) - len(whole)})  # named by `records.records`
    for record in (record for record in whole if record["metrics"]):
        try:
            changes += _cell(record, root)
        except DAMAGED as error:  # InputError among them: no answers, or rows that the data no longer have
            print(f"{record['run_id']} cannot be judged again, and stays ({error}).", file=sys.stderr)
            changes[FAILED] += 1
    return changes


def _cell(record: Mapping[str, Any], root: Path) -> Counter[str]:
    cell, stored = Cell.from_config(record["config"]), records.responses(record["run_id"], root)
    frame, metrics = judged_again(cell, stored)
    changes = _verdicts(cell.threat, stored, frame) + _numbers(cell.threat, record["metrics"], metrics)
    newer = dict(record) | {"judge_version": cell.resolved_threat.judge_version, "metrics": metrics}
    if newer != record or changes:
        # the responses first: whoever is killed in between finds the old numbers, and judges again
        file = root / record["run_id"] / "responses.parquet"
        partial = file.with_name(partial_name(file.name))
        records.write_frame(partial, frame)
        partial.replace(file)
        write_file(file.with_name("record.json"), records.as_text(newer))
    return changes


def _verdicts(threat: str, stored: pd.DataFrame, frame: pd.DataFrame) -> Counter[str]:
    changes: Counter[str] = Counter()
    for name in VERDICTS:
        if name not in stored or stored[name].isna().all() != frame[name].isna().all():
            changes[f"{threat}, {name}: responses with a first verdict"] += int(frame[name].notna().sum())
        else:
            changes[f"{threat}, {name}: responses with another verdict"] += other_verdicts(stored[name], frame[name])
    return +changes


def _numbers(threat: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Counter[str]:
    """Numbers that a record had and that have another value now, or none; the others, by their names."""
    old, new, changes = by_name(before), by_name(after), Counter()
    for key in {*old, *new}:
        if key not in old:
            changes[f"{threat}, {key[2]}: new numbers"] += 1
        elif key not in new:
            changes[f"{threat}, {key[2]}: numbers gone"] += 1
        elif not math.isclose(old[key]["value"], new[key]["value"], rel_tol=SAME, abs_tol=SAME):
            changes[f"{threat}, {key[2]}: numbers changed"] += 1
    return changes
