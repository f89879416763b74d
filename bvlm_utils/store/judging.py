"""Stored responses judged again with today's code, to check a store or to renew its numbers. Free of torch.

`check` says which verdicts and numbers of the records are not those that the responses give. A number that a record
lacks, since it was written before that number was thought of, is no difference; such cells are counted.

`rejudge` keeps today's verdicts and numbers, after a test of success has changed or a new number was thought of. No
model is trained or asked: a cell's run_id, its adapter and what was asked of it later stay.
"""

import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from bvlm_utils import data, skills, threats
from bvlm_utils.atomic import DAMAGED, partial_name, write_file, written
from bvlm_utils.command import FULL
from bvlm_utils.errors import InputError
from bvlm_utils.score import judge
from bvlm_utils.store import packed, packing, records
from bvlm_utils.store.cell import digest_of

SAME = 1e-9  # another version of numpy may sum in another order
EVERY = 20  # seconds between two looks at the progress
VERDICTS = ("judged", "success", "success_soft", "right", "payload", "published", "published_soft")
NUMBERS = ("value", "k", "n", "low", "high", "unit")
FAILED = "cells that cannot be judged again"


def judged_again(config: Mapping[str, Any], stored: pd.DataFrame) -> tuple[pd.DataFrame, list[judge.Metric]]:
    """The responses with today's verdicts, and today's numbers; InputError if the data have other rows now, or were in
    files. config: of a record, which keeps no places: its model need not be here, nor is it asked for.
    """
    dataset, skill = config["dataset"], config.get("skill")
    if dataset not in data.names():
        raise InputError(
            f"its rows were files of the format {dataset}, and a record does not keep where; `grid run` with --rescore "
            "judges them again"
        )
    samples = _rows(dataset)
    missing = [name for name in stored["row_id"].unique() if name not in samples]
    if missing:
        raise InputError(f"{dataset} has no test row {missing[0]}")
    threat = threats.get(config["threat"], **config["threat_params"])
    return judge.judge_all(stored, samples, threat, skills.get(skill) if skill else None)


@lru_cache(maxsize=4)
def _rows(dataset: str) -> dict[str, dict[str, Any]]:
    """The test rows by their names, without pictures."""
    return {row["row_id"]: row for row in data.load(dataset, "test").remove_columns("image").to_list()}


def _other_verdicts(before: pd.Series, after: pd.Series) -> int:
    """How many verdicts differ; a missing one differs from any."""
    before, after = before.astype("boolean"), after.astype("boolean")
    return int((before.isna() != after.isna()).sum() + (before != after).fillna(False).sum())


def _by_name(metrics: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Metrics by subject, condition and name."""
    return {(metric["subject"], metric["condition"], metric["metric"]): metric for metric in metrics}


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, int | float) and isinstance(other, int | float):
        return math.isclose(value, other, rel_tol=SAME, abs_tol=SAME)
    return value == other


def check(store: str | Path | None = None) -> int:
    """Check a store; differences go to stdout, progress to stderr. 1 if anything differs or is damaged, else 0."""
    readable = records.records(store)
    measured = [record for record in readable if record["metrics"]]
    damaged = len(packed.run_ids(records.folder(store))) - len(readable)  # named by `records.records`
    if not measured and not damaged:
        raise InputError(f"The store {records.folder(store)} has no numbers to check; name one that has records.")
    differ, incomplete = 0, 0
    for record in tqdm(measured, unit="cell", mininterval=EVERY, delay=EVERY, file=sys.stderr):
        sentences, lacking = _differences(record, store)
        differ, incomplete = differ + bool(sentences), incomplete + bool(lacking)
        for sentence in sentences:
            print(f"{record['run_id']}: {sentence}")
    print(f"{len(measured) - differ} of {len(measured)} cells have the numbers that their responses give.")
    if incomplete:
        print(f"{incomplete} of them were written before some number that today's code gives, and lack it.")
    if damaged:
        print(f"{damaged} records cannot be read.")
    return int(differ + damaged > 0)


def _differences(record: Mapping[str, Any], store: str | Path | None) -> tuple[list[str], list[str]]:
    """What a record says otherwise than its responses, one sentence each; and the names of the numbers it lacks."""
    if not records.has_responses(record["run_id"], store):
        return ["it has numbers and no responses"], []
    try:
        stored = records.responses(record["run_id"], store)
        frame, metrics = judged_again(record["config"], stored)
        counts = {name: _other_verdicts(stored[name], frame[name]) for name in VERDICTS if name in stored}
        recorded, computed = _by_name(record["metrics"]), _by_name(metrics)
        phrase = f"of {len(stored)} responses have another verdict in column"
        sentences = [f"{count} {phrase} {name}" for name, count in counts.items() if count]
        sentences += [*_own_words(record, store), *_compared(recorded, computed)]
        return sentences, [" ".join(key) for key in computed if key not in recorded]
    except DAMAGED as error:  # an InputError, or a column is missing, or a value is of another kind
        reason = error if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        return [f"it cannot be judged again ({reason})"], []


def _own_words(record: Mapping[str, Any], store: str | Path | None) -> Iterator[str]:
    """Where a record contradicts its name or its manifest."""
    run_id = record["run_id"]
    if not run_id.endswith(digest_of(record["identity"])):
        yield "its name was not made from its identity"
    if packed.has_rows(records.folder(store), run_id, "manifest"):
        count = records.manifest(run_id, store).n_poisoned
        if count != record["n_poisoned"]:
            yield f"n_poisoned is {record['n_poisoned']}, and its manifest has {count} poisoned rows"


def _compared(recorded: Mapping[tuple, Mapping], computed: Mapping[tuple, Mapping]) -> Iterator[str]:
    for key, before in recorded.items():
        name = " ".join(key)
        if key not in computed:
            yield f"{name} is in the record, and its responses do not give it"
            continue
        for number in NUMBERS:
            if not _same(before[number], after := computed[key][number]):
                yield f"{name}: {number} is {before[number]} in the record, and its responses give {after}"


def rejudge(store: str | Path | None = None) -> int:
    """Judge a store again and print what has changed; 1 if some cell could not be. A packed one changes as a whole."""
    root = records.folder(store)
    if not any(record["metrics"] for record in records.records(root)):
        raise InputError(f"The store {root} has no numbers to judge again; name one that has records.")
    if not packed.is_packed(root):
        changes = _rejudge_all(root)
    else:
        unpacked = root / partial_name("rejudge")
        shutil.rmtree(unpacked, ignore_errors=True)
        try:
            packing.unpack(root, unpacked)
            changes = _rejudge_all(unpacked)
            packing.swap(unpacked, root)
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
    for change, count in sorted((+changes).items()):
        print(f"{change}: {count}")
    return int(changes[FAILED] > 0)


def _rejudge_all(root: Path) -> Counter[str]:
    """Judge all cells of a store of folders; what has changed, counted."""
    readable = records.records(root)
    changes = Counter({FAILED: len(packed.run_ids(root)) - len(readable)})  # named by `records.records`
    measured = [record for record in readable if record["metrics"]]
    for record in tqdm(measured, unit="cell", mininterval=EVERY, delay=EVERY, file=sys.stderr):
        try:
            changes += _rejudge_one(record, root)
        except DAMAGED as error:  # InputError among them: no answers, or rows that the data no longer have
            if getattr(error, "errno", None) in FULL:  # no fault of this cell
                raise
            print(f"{record['run_id']} cannot be judged again, and stays ({error}).", file=sys.stderr)
            changes[FAILED] += 1
    return changes


def _rejudge_one(record: Mapping[str, Any], root: Path) -> Counter[str]:
    config, stored = record["config"], records.responses(record["run_id"], root)
    threat = threats.get(config["threat"], **config["threat_params"])
    frame, metrics = judged_again(config, stored)
    changes: Counter[str] = Counter()
    for name in VERDICTS:
        if name not in stored or stored[name].isna().all() != frame[name].isna().all():
            changes[f"{threat.name}, {name}: responses with a first verdict"] = int(frame[name].notna().sum())
        else:
            count = _other_verdicts(stored[name], frame[name])
            changes[f"{threat.name}, {name}: responses with another verdict"] = count
    old, new = _by_name(record["metrics"]), _by_name(metrics)
    for key in {*old, *new}:
        if key not in old:
            changes[f"{threat.name}, {key[2]}: new numbers"] += 1
        elif key not in new:
            changes[f"{threat.name}, {key[2]}: numbers gone"] += 1
        elif not _same(old[key]["value"], new[key]["value"]):
            changes[f"{threat.name}, {key[2]}: numbers changed"] += 1
    changes = +changes
    renewed = dict(record) | {"judge_version": threat.judge_version, "metrics": metrics}
    if renewed != record or changes:
        # the responses first: whoever is killed in between finds the old numbers, and judges again
        file = root / record["run_id"] / "responses.parquet"
        with written(file) as partial:
            records.write_frame(partial, frame)
        write_file(file.with_name("record.json"), records.as_text(renewed))
    return changes
