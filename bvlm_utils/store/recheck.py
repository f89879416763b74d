"""The check of a store: every number computed again from its stored responses with today's code. Free of torch.

`python -m bvlm_utils.store check STORE`. All responses are judged again (`score.judge.judge`, `score.judge.grade`),
and every metric is computed again from them (`score.judge.measure`). What differs from the record is said. A number
that the record lacks, since it was written before that number was thought of, is no difference; such cells are counted.
"""

import math
import sys
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from bvlm_utils import data
from bvlm_utils.atomic import DAMAGED
from bvlm_utils.errors import InputError
from bvlm_utils.score import judge
from bvlm_utils.store import packed, records
from bvlm_utils.store.cell import Cell

SAME = 1e-9  # another version of numpy may sum in another order
EVERY = 20  # seconds between two lines of progress
VERDICTS = ("judged", "success", "success_soft", "right", "payload", "published", "published_soft")
NUMBERS = ("value", "k", "n", "low", "high", "unit")


def report(store: str | Path | None = None) -> int:
    """Check a store; differences go to stdout, progress to stderr. 1 if anything differs or is damaged, else 0."""
    whole = records.records(store)
    measured = [record for record in whole if record["metrics"]]
    damaged = len(packed.run_ids(records.folder(store))) - len(whole)  # named by `records.records`
    if not measured and not damaged:
        raise InputError(f"The store {records.folder(store)} has no numbers to check; name one that has records.")
    differ, younger, started, last = 0, 0, time.monotonic(), time.monotonic()
    for count, record in enumerate(measured, 1):
        sentences, more = differences(record, store)
        differ, younger = differ + bool(sentences), younger + bool(more)
        for sentence in sentences:
            print(f"{record['run_id']}: {sentence}")
        if time.monotonic() - last > EVERY:
            last = time.monotonic()
            left = (last - started) / count * (len(measured) - count)
            print(f"{count} of {len(measured)} cells checked, about {left / 60:.1f} min left", file=sys.stderr)
    print(f"{len(measured) - differ} of {len(measured)} cells have the numbers that their responses give.")
    if younger:
        print(f"{younger} of them were written before some number that today's code gives, and lack it.")
    if damaged:
        print(f"{damaged} records cannot be read.")
    return int(differ + damaged > 0)


def differences(record: Mapping[str, Any], store: str | Path | None = None) -> tuple[list[str], list[str]]:
    """What a record says otherwise than its responses, one sentence each; and the names of the numbers it lacks."""
    if not records.has_responses(record["run_id"], store):
        return ["it has numbers and no responses"], []
    try:
        return _differences(record, records.responses(record["run_id"], store))
    except InputError as error:
        return [f"it cannot be judged again ({error})"], []
    except DAMAGED as error:  # a column is missing, or a value is of another kind
        return [f"it cannot be judged again ({type(error).__name__}: {error})"], []


def _differences(record: Mapping[str, Any], stored: pd.DataFrame) -> tuple[list[str], list[str]]:
    frame, metrics = judged_again(Cell.from_config(record["config"]), stored)
    found = []
    for name in (name for name in VERDICTS if name in stored):
        if other := other_verdicts(stored[name], frame[name]):
            found.append(f"{other} of {len(stored)} responses have another verdict in column {name}")
    recorded, again = by_name(record["metrics"]), by_name(metrics)
    return found + list(_compared(recorded, again)), [" ".join(key) for key in again if key not in recorded]


def other_verdicts(before: pd.Series, after: pd.Series) -> int:
    """How many verdicts differ; a missing one differs from any."""
    before, after = before.astype("boolean"), after.astype("boolean")
    return int((before.isna() != after.isna()).sum() + (before != after).fillna(False).sum())


def judged_again(cell: Cell, stored: pd.DataFrame) -> tuple[pd.DataFrame, list[judge.Metric]]:
    """The responses of a cell with today's verdicts, in their order, and today's numbers.

    InputError if the data have other rows now.
    """
    samples = _rows(cell.dataset)
    lost = [name for name in stored["row_id"].unique() if name not in samples]
    if lost:
        raise InputError(f"{cell.dataset} has no test row {lost[0]}")
    return judge.judge_all(stored, samples, cell.resolved_threat, cell.resolved_skill)


@lru_cache(maxsize=4)
def _rows(dataset: str) -> dict[str, dict[str, Any]]:
    """The test rows by their names, without pictures."""
    return {row["row_id"]: row for row in data.load(dataset, "test").remove_columns("image").to_list()}


def by_name(metrics: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Metrics by subject, condition and name."""
    return {(line["subject"], line["condition"], line["metric"]): line for line in metrics}


def _compared(recorded: Mapping[tuple, Mapping], again: Mapping[tuple, Mapping]) -> Iterator[str]:
    for key, before in recorded.items():
        name = " ".join(key)
        if key not in again:
            yield f"{name} is in the record, and its responses do not give it"
            continue
        for number in NUMBERS:
            if not _same(before[number], again[key][number]):
                yield (
                    f"{name}: {number} is {before[number]} in the record, and its responses give {again[key][number]}"
                )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=SAME, abs_tol=SAME)
    return one == other
