"""The files of a store, in either of its two forms; every reader of a store asks here. Free of torch.

A local store has a folder per cell, which is what can be written cell by cell. A packed store, such as the committed
reference, has a handful of Parquet files for all cells together, a tenth of the size:

    records.parquet    a line per cell: run_id, the text of its record.json, and how many rows it has in the next two
    responses.parquet  the judged responses of all cells, one cell after the other in the order of records.parquet
    manifests.parquet  the poisoned training rows, likewise
    probes.parquet     path and content of the files in probes/ and attribution/; defences.parquet: in defences/
    pictures.parquet   path and content of the files in examples/ and attacks/
    table.parquet      the tidy table, see `store.collect`
    index.json         the SHA-256 of each of these files: damage is found before anything is read

`store.packing` writes all files of a packed store into one folder. The only moment at which the new store takes the
place of the old one is when that folder is renamed to `.next`: a file that is there counts before the file of the same
name beside it. `finish` moves them to where people look for them.
"""

import errno
import hashlib
import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bvlm_utils.checks import file_digest
from bvlm_utils.errors import InputError

INDEX, NEXT, FORMAT = "index.json", ".next", 1
RECORDS, TABLE = "records.parquet", "table.parquet"
FRAMES = {"responses": "responses.parquet", "manifest": "manifests.parquet"}  # by the name in a cell's folder
FILES = {"probes": "probes.parquet", "attribution": "probes.parquet", "defences": "defences.parquet",
         "examples": "pictures.parquet", "attacks": "pictures.parquet"}  # fmt: skip
ROWS = 100_000  # in a row group, or a little more: cells are not cut, and a reader of one cell reads one group
WRITTEN = {"compression": "zstd", "compression_level": 19}
Stamp = tuple[int, ...]  # of an index: where it is another one, nothing is true that is kept in memory


@dataclass(frozen=True)
class Rows:
    """The responses or the manifest of one cell: the table, its columns' pandas types, and the frame's `.attrs`."""

    table: pa.Table
    kinds: Mapping[str, str]
    attrs: Mapping[str, Any]

    def frame(self) -> pd.DataFrame:
        frame = self.table.to_pandas().astype({name: self.kinds[name] for name in self.table.column_names})
        frame.attrs = dict(self.attrs)
        return frame


# ---------------------------------------------------------------- reading either form


def is_packed(root: Path) -> bool:
    return stamp(root) is not None


def run_ids(root: Path) -> list[str]:
    """The cells that have a record, in order."""
    if version := stamp(root):
        return list(_cells(root, version))
    return sorted(file.parent.name for file in root.glob("[!.]*/record.json"))


def record(root: Path, run_id: str) -> str | None:
    """The text of a cell's record.json; None if there is none, an empty text if it cannot be read."""
    if version := stamp(root):
        return _cells(root, version).get(run_id, {}).get("record")
    try:
        return (root / run_id / "record.json").read_text(encoding="utf-8", errors="backslashreplace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:  # a folder of that name
        return ""


def has_rows(root: Path, run_id: str, kind: str) -> bool:
    """Does the store hold the "responses" or the "manifest" of a cell?"""
    if version := stamp(root):
        return _cells(root, version).get(run_id, {}).get(kind) is not None
    return (root / run_id / f"{kind}.parquet").is_file()


def rows(root: Path, run_id: str, kind: str, names: Sequence[str] | None = None) -> Rows | None:
    """The "responses" or the "manifest" of a cell, all columns or some; None if the store has none."""
    if not has_rows(root, run_id, kind):
        return None
    if version := stamp(root):
        return _packed_rows(root, version, run_id, kind, names)
    table = _checked(file := root / run_id / f"{kind}.parquet", lambda: pq.ParquetFile(file).read())
    _checked(file, lambda: table.validate(full=True))  # changed bytes may make a text that is no UTF-8
    metadata = table.schema.pandas_metadata or {}
    kinds = {column["name"]: column["numpy_type"] for column in metadata.get("columns", [])}
    stored = [name for name in table.column_names if name in kinds and not name.startswith("__index")]
    chosen = table.select(stored if names is None else names)
    return Rows(chosen.replace_schema_metadata(None), kinds, metadata.get("attributes") or {})


def names(root: Path, folder: str) -> list[str]:
    """The names of the files in a folder beside the cells (`FILES`), in order."""
    if version := stamp(root):
        paths = _files(root, version, FILES[folder])
        return [path.partition("/")[2] for path in paths if path.startswith(f"{folder}/")]
    return sorted(file.name for file in (root / folder).glob("[!.]*") if file.is_file())


def content(root: Path, folder: str, name: str) -> bytes | None:
    """What is in such a file; None if there is none."""
    if version := stamp(root):
        return _files(root, version, FILES[folder]).get(f"{folder}/{name}")
    try:
        return (root / folder / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:  # a folder of that name, or one that may not be read: no content that anybody can use
        return b""


def table(root: Path, version: Stamp, rules: str) -> pd.DataFrame | None:
    """The tidy table of a packed store; None unless it was made of these very records by these `rules`."""
    parquet = _open(root, version, TABLE)
    metadata = parquet.schema_arrow.metadata
    if (metadata[b"records"].decode(), metadata[b"rules"].decode()) != (_index(root, version)[RECORDS], rules):
        return None
    return _checked(root / TABLE, parquet.read).to_pandas()


def _checked(file: Path, read: Any) -> Any:
    """What `read` gives; InputError names the file where Parquet cannot be read."""
    try:
        return read()
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{file} cannot be read ({reason}); take it from git or from its run again.") from None


# ---------------------------------------------------------------- the packed form


def stamp(root: Path) -> Stamp | None:
    """Changes whenever a packed store does; None for a store with a folder per cell."""
    for file in (root / NEXT / INDEX, root / INDEX):
        with suppress(FileNotFoundError, NotADirectoryError):
            state = file.stat()
            return state.st_mtime_ns, state.st_ino, state.st_size
    if (root / RECORDS).exists():
        raise InputError(f"{root / INDEX} is missing, and {RECORDS} is there; take it from git or pack again.")
    return None


def _bytes(root: Path, name: str) -> bytes:
    """A file of a packed store. Files move from the first place to the second and nowhere else."""
    for file in (root / NEXT / name, root / name):
        with suppress(FileNotFoundError):
            return file.read_bytes()
    raise InputError(f"{root / name} is missing; a packed store has it, so take it from git or pack the store again.")


@lru_cache(maxsize=8)
def _index(root: Path, version: Stamp) -> dict[str, str]:
    """File name -> SHA-256."""
    try:
        index = json.loads(_bytes(root, INDEX))
        if index["format"] == FORMAT:
            return dict(index["sha256"])
        reason = f"its format is {index['format']!r}, and this version knows {FORMAT}"
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error)
    raise InputError(f"{root / INDEX} is no index of a packed store ({reason}); take it from git again.")


@lru_cache(maxsize=32)
def _open(root: Path, version: Stamp, name: str) -> pq.ParquetFile:
    """InputError if the file is not what was packed."""
    index, data = _index(root, version), _bytes(root, name)
    if hashlib.sha256(data).hexdigest() != index.get(name):
        raise InputError(f"{root / name} is damaged: it is not what {INDEX} says was packed; take it from git again.")
    texts = None
    if name in FRAMES.values():  # their columns hold few texts many times
        schema = pq.read_schema(pa.BufferReader(data))
        texts = [field.name for field in schema if pa.types.is_large_string(field.type)]
    return _checked(root / name, lambda: pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts))


@lru_cache(maxsize=8)
def _cells(root: Path, version: Stamp) -> dict[str, dict[str, Any]]:
    """run_id -> its line in records.parquet; responses and manifest as (first row, number of rows), or None."""
    lines = _checked(root / RECORDS, lambda: _open(root, version, RECORDS).read().to_pylist())
    _check_names(root / RECORDS, [line["run_id"] for line in lines], 1)
    for kind in FRAMES:
        ends = list(accumulate((line[kind] or 0 for line in lines), initial=0))
        for line, start in zip(lines, ends, strict=False):
            line[kind] = None if line[kind] is None else (start, line[kind])
    return {line["run_id"]: line for line in lines}


def _packed_rows(root: Path, version: Stamp, run_id: str, kind: str, names: Sequence[str] | None) -> Rows:
    cell, (kinds, ends) = _cells(root, version)[run_id], _groups(root, version, kind)
    start, count = cell[kind]
    number = min(bisect_right(ends, start), len(ends) - 1)
    group = _group(root, version, kind, number)
    group = group if names is None else group.select(names)
    cell_rows = group.slice(start - (ends[number] - len(group)), count)
    plain = pa.schema([(f.name, pa.large_string() if pa.types.is_dictionary(f.type) else f.type) for f in group.schema])
    attrs = json.loads(cell["attrs"]) if kind == "manifest" else {}
    return Rows(cell_rows.cast(plain), kinds, attrs)


@lru_cache(maxsize=8)
def _groups(root: Path, version: Stamp, kind: str) -> tuple[dict[str, str], list[int]]:
    """The pandas types of the columns, and after which row each row group ends."""
    parquet = _open(root, version, FRAMES[kind])
    sizes = (parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups))
    return json.loads(parquet.schema_arrow.metadata[b"kinds"]), list(accumulate(sizes))


@lru_cache(maxsize=64)
def _group(root: Path, version: Stamp, kind: str, number: int) -> pa.Table:
    parquet = _open(root, version, FRAMES[kind])
    return _checked(root / FRAMES[kind], lambda: parquet.read_row_group(number)).replace_schema_metadata(None)


@lru_cache(maxsize=8)
def _files(root: Path, version: Stamp, name: str) -> dict[str, bytes]:
    lines = _checked(root / name, lambda: _open(root, version, name).read().to_pydict())
    _check_names(root / name, lines["path"], 2)
    return dict(zip(lines["path"], lines["content"], strict=True))


def _check_names(file: Path, names: Iterable[str], parts: int) -> None:
    """What a stranger packed stays in its store when it is unpacked: no name leads out of a folder."""
    for name in names:
        if not re.fullmatch("/".join([r"[^./\\\0][^/\\\0]*"] * parts), str(name)):
            raise InputError(f"{file} has an entry {name!r}, which is no name of a file in a store; do not unpack it.")


# ---------------------------------------------------------------- writing the packed form


def write_files(file: Path, contents: Mapping[str, bytes]) -> None:
    """path -> content as a table."""
    paths = sorted(contents)
    table = {"path": pa.array(paths, pa.string()), "content": pa.array([contents[path] for path in paths], pa.binary())}
    pq.write_table(pa.table(table), file, **WRITTEN)


def write_rows(file: Path, cells: Iterable[Rows], schema: pa.Schema) -> None:
    """The rows of many cells, one cell after the other; those that lack a column of the schema have no value there."""
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(file, schema, **WRITTEN) as writer:
        for cell in cells:
            filled = cell.table
            for field in schema:
                if field.name not in filled.column_names:
                    filled = filled.append_column(field.name, pa.nulls(len(filled), field.type))
            waiting.append(filled.select(schema.names).cast(schema))
            if sum(map(len, waiting)) >= ROWS:
                writer.write_table(pa.concat_tables(waiting).combine_chunks(), row_group_size=1 << 30)
                waiting = []
        last = pa.concat_tables([schema.empty_table(), *waiting]).combine_chunks()
        writer.write_table(last, row_group_size=1 << 30)


def write_table(folder: Path, tidy: pd.DataFrame, rules: str) -> None:
    """The tidy table, with what it was made of and how (see `table`)."""
    table = pa.Table.from_pandas(tidy, preserve_index=False)
    metadata = {b"records": file_digest(folder / RECORDS), b"rules": rules}
    pq.write_table(table.replace_schema_metadata(table.schema.metadata | metadata), folder / TABLE, **WRITTEN)


def write_index(folder: Path) -> None:
    """Say what was packed, and see that all of it is on the disk: the last thing before `put`."""
    digests = {file.name: file_digest(file) for file in sorted(folder.iterdir())}
    text = json.dumps({"format": FORMAT, "sha256": digests}, indent=1) + "\n"
    (folder / INDEX).write_text(text, encoding="utf-8")
    for path in [*folder.iterdir(), folder]:
        _to_disk(path)


def put(folder: Path, root: Path) -> None:
    """Make a complete folder of packed files the store at `root`; until the rename, the store is the old one."""
    try:
        os.replace(folder, root / NEXT)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise InputError(f"Another process has packed into {root} meanwhile; give the command again.") from None
        raise
    _to_disk(root)
    finish(root)


def finish(root: Path) -> None:
    """Move the files of `.next` to where people look for them; also those of a process that was killed meanwhile."""
    pending = root / NEXT
    if not pending.is_dir():
        return
    # The index moves last: while it is in `.next`, the files there count.
    for file in sorted(pending.iterdir(), key=lambda file: file.name == INDEX):
        os.replace(file, root / file.name)
    pending.rmdir()
    _to_disk(root)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
