"""The records of what has been measured: one folder per cell, complete or absent. Free of torch.

A store is a folder: `data/results/NAME` for a name ("local", "reference", "smoke"), or any path with a
slash in it. One that is written to looks like this; the committed reference is packed into a few files instead, see
`store.packed`, and everything here reads both.

    RUN_ID/record.json         what was run (config, identity), metrics, timings, versions, device
    RUN_ID/responses.parquet   every judged response
    RUN_ID/manifest.parquet    which training rows were poisoned, and how
    RUN_ID/adapter/            the tuned adapter in PEFT's format, for those who talk to it
    examples/                  what triggers look like, see `examples`
    probes/                    what tuned adapters were asked later on, see `probes.ask`
    defences/                  what is left of them under a defence, see `defences.records`
    attribution/               where tuned adapters look, measured for the first edition
    failures/RUN_ID.json       why a cell could not be run
    locks/                     who is tuning a control that several jobs need, see `store.locks`, or writing probes
    attacks/                   all attacks on the same pictures and prompts, see `probes.exhibit`
    cache/                     responses of base and clean-tuned models, shared by cells; may be deleted

A cell's folder is written under another name and renamed when it is complete, so a process that is killed
leaves no half of one.
"""

import errno
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from bvlm_utils import paths
from bvlm_utils.atomic import DAMAGED, PARTIAL, partial_name, read_if_whole, write_file
from bvlm_utils.checks import same_content
from bvlm_utils.errors import InputError
from bvlm_utils.models import files
from bvlm_utils.store import damage, packed, provenance, table
from bvlm_utils.store.cell import Cell
from bvlm_utils.train import poison

VARIABLE = "BVLM_STORE"
REFERENCE = "reference"
ASKED = ("probes", "attribution", "defences")  # folders of what tuned adapters were asked, forgotten with the adapter
SET_ASIDE = "damaged"  # folder with what could not be read when its cell was made again
STALE = 24 * 3600  # seconds after which a partial folder of another machine is left over


# ---------------------------------------------------------------- places


def folder(store: str | Path | None = None) -> Path:
    """The folder of a store; None means $BVLM_STORE, else "local". InputError for a name that is none."""
    if store == "" or not isinstance(store, str | Path | None):
        raise InputError(f"store is {store!r}; it must be a name such as local, or a folder such as ./mine.")
    name = str(store or os.environ.get(VARIABLE) or "local")
    if "/" in name or os.sep in name:
        root = paths.named(name, "store").resolve()
    elif name.startswith((".", "~")) or name != name.strip():
        raise InputError(
            f"store is {name!r}; give a name such as local, or a folder with a slash in it, such as ./mine."
        )
    else:
        root = paths.named(paths.RESULTS / name, "store")
    if root.exists() and not root.is_dir():
        raise InputError(f"The store {root} is a file; name a folder.")
    return root


def read_only(store: str | Path | None = None) -> bool:
    """Is this the committed reference, or packed? Nothing is trained into such a store; `pack` alone adds to it."""
    root = folder(store).resolve()
    return root == folder(REFERENCE).resolve() or packed.is_packed(root)


def writable(store: str | Path | None = None) -> Path:
    """The folder of a store that may be written to; InputError for the reference, packed and read-only stores."""
    root = folder(store)
    if read_only(store):
        which = "packed" if packed.is_packed(root) else "the committed reference"
        raise InputError(f"The store {root} is {which}, so it is only read; take another store.")
    return paths.check_writable(root)


def make(store: str | Path | None = None) -> Path:
    """The folder of a store that is to be written to, made; InputError if it cannot be."""
    root = writable(store)
    root.mkdir(parents=True, exist_ok=True)
    return root


def has(cell: Cell, store: str | Path | None = None) -> bool:
    """Is there a complete record?"""
    return read(cell, store) is not None


def read(cell: Cell, store: str | Path | None = None) -> dict[str, Any] | None:
    """The record of a cell; None if there is none, or it is damaged or another cell's, which standard error says."""
    if (saved := record(cell, store)) is None:
        return None
    theirs, ours = saved["identity"], cell.identity
    if theirs != json.loads(json.dumps(ours)):
        differ = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
        _pass_over(folder(store), cell.run_id, f"it is another cell's, which differs in {', '.join(differ)}")
        return None
    return saved


def record(cell: Cell | str, store: str | Path | None = None) -> dict[str, Any] | None:
    """The record of that name, None if there is none that can be read. `read` checks that it is the cell's own, too."""
    root, run_id = folder(store), _run_id(cell)
    if (text := packed.record(root, run_id)) is None:
        return None
    loaded = damage.record(text, run_id)
    if isinstance(loaded, str):
        _pass_over(root, run_id, loaded)
        return None
    return loaded


def _pass_over(root: Path, run_id: str, reason: str) -> None:
    where = f"{run_id} in {root / packed.RECORDS}" if packed.is_packed(root) else root / run_id / "record.json"
    damage.passed_over(f"{where} is no record of this cell ({reason}); it is passed over, and a run makes it again.")


# ---------------------------------------------------------------- writing


def write(
    cell: Cell,
    store: str | Path | None,
    record: dict[str, Any],
    responses: pd.DataFrame | None = None,
    manifest: poison.Manifest | None = None,
    save_adapter: Callable[[Path], None] | None = None,
    replace: bool = False,
) -> Path:
    """Put a finished cell into the store, all of it or nothing, and forget its earlier failure.

    record: what was measured; identity and provenance are added. save_adapter(folder) writes the adapter. A cell that
    is there stays unless `replace` is true; then what was asked of its adapter is forgotten, unless the new one is the
    same.
    """
    root = make(store)
    partial, final = root / partial_name(cell.run_id), root / cell.run_id
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        if responses is not None:
            write_frame(partial / "responses.parquet", responses)
        if manifest is not None:
            write_frame(partial / "manifest.parquet", manifest.to_frame())
        if save_adapter:
            save_adapter(partial / "adapter")
        full = {"run_id": cell.run_id, "config": cell.config(), "identity": cell.identity} | record
        full["config"] |= {"model": full["identity"]["model"], "dataset": full["identity"]["dataset"]}
        (partial / "record.json").write_text(as_text(full), encoding="utf-8")
        # looked at twice: another process may be putting its own there
        if all(packed.record(root, cell.run_id) is not None and read(cell, root) is None for _ in range(2)):
            with suppress(OSError):  # somebody may know what it was that cannot be read
                (root / SET_ASIDE).mkdir(exist_ok=True)
                os.replace(final, root / SET_ASIDE / f"{final.name}-{time.time_ns()}")
        weights = [folder / "adapter" / "adapter_model.safetensors" for folder in (partial, final)]
        if replace and not same_content(*weights):
            for file in (file for name in ASKED for file in (root / name).glob(f"*{cell.run_id}*.json")):
                file.unlink(missing_ok=True)
        put(partial, final, replace)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for leftover in (root / "failures" / f"{cell.run_id}.json", root / "cache" / f"{asked_name(cell)}.json"):
        with suppress(OSError):  # the record counts, whatever lies there
            leftover.unlink()
    return final


def as_text(record: Mapping[str, Any]) -> str:
    """What a record.json holds; numpy's numbers as JSON knows them."""
    return json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False, default=np.generic.item) + "\n"


def put(partial: Path, final: Path, replace: bool) -> None:
    """Give a complete folder its name. Where another process put the same cell there meanwhile, that one stays."""
    old = final.with_name(partial_name(f"{final.name}-old"))
    if replace:
        with suppress(FileNotFoundError):
            os.replace(final, old)
    try:
        os.replace(partial, final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            with suppress(OSError):
                os.replace(old, final)  # what was there is better than nothing
            raise
    finally:
        old.unlink() if old.is_symlink() else shutil.rmtree(old, ignore_errors=True)


def write_failure(cell: Cell, store: str | Path | None, text: str) -> Path:
    """Keep why a cell failed; the next success removes it."""
    file = folder(store) / "failures" / f"{cell.run_id}.json"
    record = {"run_id": cell.run_id, "config": cell.config(), "error": text, "provenance": provenance.now()}
    write_file(file, as_text(record))
    return file


def failures(store: str | Path | None = None) -> dict[str, str]:
    """run_id -> traceback of the cells that failed at their last try."""
    reasons = {}
    for file in sorted((folder(store) / "failures").glob("*.json")):
        try:
            reasons[file.stem] = str(json.loads(file.read_bytes())["error"]).strip() or "unknown"
        except DAMAGED:
            reasons[file.stem] = f"why is not known: {file} cannot be read"
    return reasons


def clean(store: str | Path | None = None) -> None:
    """Remove what killed processes left half-written. Those at work on this machine are recognised and left alone; how
    old another machine's work is, the file server's clock tells, as ours may be a day ahead.
    """
    root = folder(store)
    for path in root.glob(f"**/{PARTIAL}*+[0-9]*+*"):  # as `partial_name` has it: other files are somebody's
        host, pid, name = path.name.removeprefix(PARTIAL).split("+", 2)
        if host == socket.gethostname() and re.fullmatch("[0-9]{1,9}", pid):
            stale = int(pid) != os.getpid() and not psutil.pid_exists(int(pid))
        else:
            with tempfile.TemporaryFile(dir=root) as file:
                now = os.fstat(file.fileno()).st_mtime  # of the machine that holds the folder
            stale = path.exists() and now - path.stat().st_mtime > STALE
        if stale and name.endswith("-old") and not (final := path.with_name(name.removesuffix("-old"))).exists():
            with suppress(OSError):  # killed between two renamings; another process may see it, too
                os.replace(path, final)
        elif stale:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write_frame(file: Path, frame: pd.DataFrame) -> None:
    """Zstandard takes a third less room than Parquet's usual Snappy: hundreds of these files are committed."""
    frame.to_parquet(file, index=False, compression="zstd", compression_level=19)


# ---------------------------------------------------------------- reading


def records(store: str | Path | None = None) -> list[dict[str, Any]]:
    """Every complete record, ordered by run_id; standard error names a file that cannot be one."""
    root = folder(store)
    loaded = (record(run_id, root) for run_id in packed.run_ids(root))
    return [content for content in loaded if content is not None]


def collect(store: str | Path | None = None) -> pd.DataFrame:
    """The tidy table of all cells of a store; controls are in the lines of their cells (subject "control").

    That of a packed store is made once in a process. InputError for a store that is named and not there; without a
    name, a place where nothing was run yet has no lines.
    """
    root = folder(store)
    if store is not None and not root.is_dir():
        raise InputError(f"There is no store {root}; name one that a run has made, or reference.")
    stamp = packed.stamp(root)
    return _collect(root) if stamp is None else _collected(root, stamp).copy()


def _collect(root: Path) -> pd.DataFrame:
    return table.table(record for record in records(root) if record["config"]["attack"] != "none")


@lru_cache(maxsize=2)
def _collected(root: Path, stamp: packed.Stamp) -> pd.DataFrame:
    stored = packed.table(root, stamp, table.rules())
    return _collect(root) if stored is None else stored


def has_responses(cell: Cell | str, store: str | Path | None = None) -> bool:
    return packed.has_rows(folder(store), _run_id(cell), "responses")


def responses(cell: Cell | str, store: str | Path | None = None) -> pd.DataFrame:
    """The judged responses of a cell: see `score.judge.COLUMNS`. InputError if the store has none of it."""
    return _frame(cell, store, "responses")


def manifest(cell: Cell | str, store: str | Path | None = None) -> poison.Manifest:
    """Which training rows were poisoned. InputError if the store has no manifest of the cell."""
    return poison.Manifest.from_frame(_frame(cell, store, "manifest"))


def _frame(cell: Cell | str, store: str | Path | None, kind: str) -> pd.DataFrame:
    if (rows := packed.rows(folder(store), _run_id(cell), kind)) is None:
        raise InputError(f"The store {folder(store)} has no {kind} of cell {_run_id(cell)}; run the cell first.")
    return rows.frame()


def adapter(cell: Cell | str, store: str | Path | None = None) -> Path | None:
    """The folder of a cell's adapter; None where there is none, or it is damaged, which standard error says."""
    adapter = folder(store) / _run_id(cell) / "adapter"
    if not (adapter / "adapter_config.json").is_file():
        return None
    if files.has_adapter(adapter):
        return adapter
    damage.passed_over(f"{adapter} is damaged; it is passed over, and a run that needs it tunes it again.")
    return None


def _run_id(cell: Cell | str) -> str:
    return cell if isinstance(cell, str) else cell.run_id


def cached(store: str | Path | None, key: str) -> list[str] | None:
    """A list of texts from the store's cache; None if it is not there, or damaged, which standard error says."""
    file = folder(store) / "cache" / f"{key}.json"
    if not file.is_file():
        return None
    texts = read_if_whole(file, lambda file: json.loads(file.read_bytes()))
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        return texts
    damage.passed_over(f"{file} is damaged; it is made again.")
    return None


def asked_name(cell: Cell) -> str:
    """What the cache keeps the answers of a cell's adapter by until its record has them."""
    return f"asked-{cell.run_id}"


def cache_texts(store: str | Path | None, key: str, texts: list[str]) -> None:
    """Keep a list of texts in the store's cache."""
    write_file(folder(store) / "cache" / f"{key}.json", json.dumps(texts, ensure_ascii=False))
