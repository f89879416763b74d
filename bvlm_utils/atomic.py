"""Files that are written completely or not at all, whoever is killed and whoever else writes them."""

import os
import shutil
import socket
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PARTIAL = ".partial-"  # beginning of the names of files and folders that are being written


def partial_name(name: str) -> str:
    """What `name` is called while this process writes it."""
    return f"{PARTIAL}{socket.gethostname()}+{os.getpid()}+{name}"


# What readers of JSON, npz, PNG and Arrow files raise where one was cut off or changed.
DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError, RecursionError,
           SyntaxError, struct.error, zipfile.BadZipFile, zlib.error)  # fmt: skip


def read_if_whole(path: Path, read: Callable[[Path], T]) -> T | None:
    """What `read` makes of a file or a folder of a cache; None if it is not there or not whole, and so to be made."""
    try:
        return read(path) if path.exists() else None
    except DAMAGED:
        return None


def write_file(file: Path, content: str | bytes) -> None:
    """All of a file or nothing; text is in UTF-8."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with written(file) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary path for the block to write to, which then becomes `path`: a file, or a folder that is new or empty.
    Nothing is left where the block fails, on a full disk for one.
    """
    partial = path.with_name(partial_name(path.name))
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def filled(out: Path, last: str) -> Iterator[Path]:
    """A temporary folder for the block to fill, which then becomes `out`, new or empty. An `out` that is there stays,
    as it may be a link, or a place where a file system is mounted: the parts are put into it, `last`, which others look
    for, at the end.
    """
    folder = out if out.is_dir() else out.parent
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder, prefix=f".{out.name[:100]}-"))
    try:
        yield partial
        if folder == out:
            for part in sorted(partial.iterdir(), key=lambda part: part.name == last):
                os.replace(part, out / part.name)
        else:
            partial.chmod(0o755)  # mkdtemp makes folders that only their owner can enter
            os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
