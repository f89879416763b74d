"""Packing a store with a folder per cell into the few files of `store.packed`, and unpacking it. Free of torch.

TO keeps what it has, and the cells of FROM are added; so results get into the committed reference. Adapters stay.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from bvlm_utils.atomic import DAMAGED, partial_name, write_file
from bvlm_utils.documents import parse_json
from bvlm_utils.errors import InputError
from bvlm_utils.store import damage, packed, records
from bvlm_utils.store import table as tidy
from bvlm_utils.store.packed import Rows

LOCK = ".pack.lock"
Files = Mapping[str, bytes]  # content by path in the store
NAMED = 5  # cells in a message
NUMBERS = itemgetter("status", "metrics")  # of a record
ASKED = tuple(f"{folder}/" for folder in records.ASKED)  # files that tell what a cell's adapter was asked
RESULT = {"asked", "value", "k", "n", "low", "high", "held", "unit"}  # fields of a number; the others say of what
DEFENDED = "defences/"  # records of defended cells, beside the cells


def pack(source: str | Path | None, target: str | Path, replace: bool = False) -> list[str]:
    """Add what `source` has to `target`, which is packed then; the run_ids that are new there.

    A cell that both have must have the same numbers, or with `replace` gives way to that of `source`; a new one must
    not be of a changed working tree, whose code nobody could find, nor have numbers without the responses that they
    follow from: InputError. A process that is killed here leaves `target` as it was.
    """
    source_root, target_root = records.folder(source), records.folder(target)
    _check_any(source_root)
    records.clean(target_root)
    tuned = [file.parent.parent for file in target_root.glob("[!.]*/adapter/adapter_config.json")]
    if tuned and not packed.is_packed(target_root):
        raise InputError(f"{target_root} holds adapters ({_some(f.name for f in tuned)}), and a packed store has none; "
                         "pack it into another folder.")  # fmt: skip
    with _alone(target_root):
        packed.finish(target_root)
        cells, files, added = _chosen(source_root, target_root, replace)
        _write(cells, files, target_root)
        _remove_loose(target_root)
    return added


def _check_any(root: Path) -> None:
    """InputError for a folder without a cell: somebody has another one in mind."""
    if not packed.run_ids(root):
        raise InputError(f"The folder {root} holds no results of any cell; name a store that has some.")


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Nobody else packs into `root`, which is made, while the block runs. If nothing is put there, nothing is left."""
    created = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / LOCK):
            try:
                yield
            finally:  # while it is held: whoever waits for it sees that the file is gone, and makes a new one
                (root / LOCK).unlink(missing_ok=True)
    finally:
        for folder in created:
            with suppress(OSError):
                folder.rmdir()  # unless something is in it


def _chosen(source: Path, target: Path, replace: bool) -> tuple[dict[str, Path], Files, list[str]]:
    """What `target` is to hold: cells by the stores that they are taken from, and files; and the run_ids new there."""
    ours = {record["run_id"]: record for record in records.records(source)}
    theirs = {record["run_id"]: record for record in records.records(target)} if source != target else ours
    differ = [i for i in ours if i in theirs and NUMBERS(ours[i]) != NUMBERS(theirs[i])]
    our_files, their_files = _files(source), _files(target)
    if not replace:
        remedy = f"say --replace if those of {source} are to stand"
        _check_same(differ, _other_numbers(our_files, their_files), source, target, remedy)
    added = [run_id for run_id in ours if run_id not in theirs] + differ
    staying, unpacked = theirs, theirs
    if packed.is_packed(target):
        staying, unpacked = packed.run_ids(target), {}  # the answers of a damaged record may be whole
    new = unpacked | {run_id: ours[run_id] for run_id in added}
    if changed := [run_id for run_id, record in new.items() if record["provenance"].get("git_changed")]:
        raise InputError(
            f"{len(changed)} cells to be packed were run from a changed working tree ({_some(changed)}), so nobody can "
            "find the code that made them; commit it and run them again with --force (it keeps clean-tuned controls: "
            "move their folders away)."
        )
    if unbacked := [i for i in added if ours[i]["metrics"] and not packed.has_rows(source, i, "responses")]:
        raise InputError(
            f"{len(unbacked)} cells to be packed have numbers and no responses.parquet ({_some(unbacked)}), so nobody "
            "could check them; copy those files to them, or run the cells again with --force."
        )
    # what the adapter of a cell that gives way was asked is forgotten with it
    outdated = {path for path in their_files if path.startswith(ASKED) and any(run_id in path for run_id in differ)}
    their_files = {path: content for path, content in their_files.items() if path not in outdated}
    cells = dict.fromkeys(staying, target) | dict.fromkeys(added, source)
    return cells, _merged(our_files, their_files, replace), added


def _check_same(cells: Sequence[str], defended: Sequence[str], source: Path, target: Path, remedy: str) -> None:
    """InputError if some cells, or defended cells, have other numbers in two stores."""
    for differ, kind in ((cells, "cells"), (defended, "defended cells")):
        if differ:
            numbers = f"{target} has other numbers of {len(differ)} {kind} of {source} ({_some(differ)})"
            raise InputError(f"{numbers}; {remedy}.")


def _some(run_ids: Iterable[str]) -> str:
    names = sorted(run_ids)
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _files(root: Path) -> Files:
    paths = [(folder, name) for folder in packed.FILES for name in packed.names(root, folder)]
    return {f"{folder}/{name}": packed.content(root, folder, name) for folder, name in paths}


def _defended(content: bytes) -> tuple[Any, Any] | None:
    """What a defended cell's record says it measured; None where it cannot be read."""
    try:
        record = parse_json(content.decode(), "it")
        return record["status"], record["numbers"]
    except DAMAGED:  # InputError among them
        return None


def _other_numbers(ours: Files, theirs: Files) -> list[str]:
    """The defended cells of which two stores have other numbers, not only more of them."""
    shared = [path for path in ours if path.startswith(DEFENDED) and ours[path] != theirs.get(path, ours[path])]
    pairs = {path: (_defended(ours[path]), _defended(theirs[path])) for path in shared}
    return [
        path for path, pair in pairs.items()
        if all(pair) and not (_holds(*pair) or _holds(*reversed(pair)))
    ]  # fmt: skip


def _holds(first: tuple[Any, Any], second: tuple[Any, Any]) -> bool:
    """Does the first of two records say all that the second says?"""
    return first[0] == second[0] and all(number in first[1] for number in second[1])


def _merged(ours: Files, theirs: Files, replace: bool) -> Files:
    """Files of two stores. A defended cell's record gives way where `replace` says so, it is damaged, or the other one
    says more besides; what else an adapter was asked is added up.
    """
    merged = dict(theirs)
    for path, content in ours.items():
        if path not in merged or (replace and path.startswith("attacks/")):
            merged[path] = content
        elif path.startswith(DEFENDED):
            mine, known = _defended(content), _defended(merged[path])
            if mine and (replace or not known or (_holds(mine, known) and mine != known)):
                merged[path] = content
        elif path.startswith(ASKED):
            merged[path] = _added_up(content, merged[path])
    return merged


def _added_up(ours: bytes, theirs: bytes) -> bytes:
    """The larger of two files with numbers of one adapter, and the numbers that only the smaller one has."""
    small, large = sorted((ours, theirs), key=len)
    try:
        rest, record = (parse_json(content.decode(), "it") for content in (small, large))
        known = [_question(number) for number in record["numbers"]]
        new = [number for number in rest["numbers"] if _question(number) not in known]
        if not new or rest["identity"] != record["identity"]:
            return large
    except DAMAGED:  # InputError among them
        return large
    return records.as_text(record | {"numbers": record["numbers"] + new}).encode()


def _question(number: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a number of a probe or an attribution was measured of, without the result."""
    return {name: value for name, value in number.items() if name not in RESULT}


def _write(cells: Mapping[str, Path], files: Files, root: Path) -> None:
    """All packed files beside the store, then in its place. cells: by the store that each is taken from."""
    folder = root / partial_name("pack")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        cells = dict(sorted(cells.items()))
        texts = {run_id: packed.record(store, run_id) for run_id, store in cells.items()}
        _write_records(folder / packed.RECORDS, cells, texts)
        for kind, name in packed.FRAMES.items():
            packed.write_rows(folder / name, (rows for _, rows in _rows(cells, kind)), _schema(cells, kind))
        for name in dict.fromkeys(packed.FILES.values()):
            contents = {path: c for path, c in files.items() if packed.FILES[path.partition("/")[0]] == name}
            packed.write_files(folder / name, contents)
        parsed = (damage.record(text, run_id) for run_id, text in texts.items())
        readable = (record for record in parsed if isinstance(record, dict))  # a damaged one is kept as it is
        table = tidy.table(record for record in readable if record["config"]["attack"] != "none")
        packed.write_table(folder, table, tidy.rules())
        packed.write_index(folder)
        packed.put(folder, root)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rows(cells: Mapping[str, Path], kind: str) -> Iterator[tuple[str, Rows]]:
    """run_id and rows of the cells that have such rows; read anew each time, as all together may not fit in memory."""
    for run_id, store in cells.items():
        if (rows := packed.rows(store, run_id, kind)) is not None:
            yield run_id, rows


def _write_records(file: Path, cells: Mapping[str, Path], texts: Mapping[str, str]) -> None:
    lines = []
    for run_id, store in cells.items():
        rows = {kind: packed.rows(store, run_id, kind) for kind in packed.FRAMES}
        attrs = json.dumps(dict(rows["manifest"].attrs)) if rows["manifest"] else None
        counts = {kind: len(kind_rows.table) for kind, kind_rows in rows.items() if kind_rows}
        lines.append({"run_id": run_id, "record": texts[run_id]} | counts | {"attrs": attrs})
    kinds = {"run_id": pa.string(), "record": pa.string(), "responses": pa.int64(), "manifest": pa.int64(),
             "attrs": pa.string()}  # fmt: skip
    pq.write_table(pa.Table.from_pylist(lines, pa.schema(kinds)), file, **packed.WRITTEN)


def _schema(cells: Mapping[str, Path], kind: str) -> pa.Schema:
    """The columns of all cells together, in the order in which they come up; InputError where two do not agree."""
    types, kinds, first = {}, {}, {}
    for run_id, rows in _rows(cells, kind):
        for field in rows.table.schema:
            pair = (field.type, rows.kinds[field.name])
            if (types.setdefault(field.name, pair[0]), kinds.setdefault(field.name, pair[1])) != pair:
                raise InputError(
                    f"The {kind} of {run_id} have {pair[1]} in column {field.name}, and those of {first[field.name]} "
                    f"have {kinds[field.name]}; run one of the two again."
                )
            first.setdefault(field.name, run_id)
    return pa.schema(types, metadata={"kinds": json.dumps(kinds)})


def _remove_loose(root: Path) -> None:
    """What is in the packed files now has no folder of its own any more; what is not, stays where it is."""
    for run_id in packed.run_ids(root):
        file = root / run_id / "record.json"
        if file.is_file() and file.read_text(encoding="utf-8") == packed.record(root, run_id):
            shutil.rmtree(root / run_id)
    for path, content in _files(root).items():
        if (root / path).is_file() and (root / path).read_bytes() == content:
            (root / path).unlink()
    for folder in packed.FILES:
        with suppress(OSError):
            (root / folder).rmdir()  # unless something is left in it


def swap(source: Path, target: Path) -> None:
    """The cells of the packed store `target` give way to those of the same names in `source`; all else stays."""
    with _alone(target):
        packed.finish(target)
        cells = dict.fromkeys(packed.run_ids(target), target) | dict.fromkeys(packed.run_ids(source), source)
        _write(cells, _files(target), target)


def unpack(source: str | Path, target: str | Path) -> list[str]:
    """Give each cell of a store its folder in `target`, byte for byte the same record; the run_ids that were new.

    A cell that both have must have the same numbers: InputError, and nothing is written.
    """
    source_root, target_root = records.folder(source), records.writable(target)
    _check_any(source_root)
    shared = [run_id for run_id in packed.run_ids(source_root) if (target_root / run_id).exists()]
    pairs = {run_id: [records.record(run_id, root) for root in (source_root, target_root)] for run_id in shared}
    differ = [i for i, (ours, theirs) in pairs.items() if ours and theirs and NUMBERS(ours) != NUMBERS(theirs)]
    files = _files(source_root)
    defended = _other_numbers(files, _files(target_root))
    _check_same(differ, defended, source_root, target_root, "unpack it into another folder")
    added = []
    for run_id in packed.run_ids(source_root):
        if (target_root / run_id).exists():
            continue
        partial_folder = target_root / partial_name(run_id)
        shutil.rmtree(partial_folder, ignore_errors=True)
        partial_folder.mkdir(parents=True)
        for kind in packed.FRAMES:
            if (rows := packed.rows(source_root, run_id, kind)) is not None:
                records.write_frame(partial_folder / f"{kind}.parquet", rows.frame())
        (partial_folder / "record.json").write_text(packed.record(source_root, run_id), encoding="utf-8")
        records.put(partial_folder, target_root / run_id, replace=False)
        added.append(run_id)
    for path, content in files.items():
        if not (target_root / path).exists():
            write_file(target_root / path, content)
    return added
