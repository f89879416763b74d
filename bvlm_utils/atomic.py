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
def written(place: Path) -> Iterator[Path]:
    """Where the block may write what then stands at `place`: a file, or a folder that is new or empty. Nothing is left
    where the block fails, on a full disk for one.
    """
    partial = place.with_name(partial_name(place.name))
    try:
        yield partial
        os.replace(partial, place)
    except BaseException:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def filled(out: Path, last: str) -> Iterator[Path]:
    """Where the block may write what the folder `out`, new or empty, then holds. One that is there stays, as it may be
    a link, or a place where a file system is mounted: its parts are put into it, at last `last`, which others look for.
    """
    place = out if out.is_dir() else out.parent
    place.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=place, prefix=f".{out.name[:100]}-"))
    try:
        yield partial
        if place == out:
            for part in sorted(partial.iterdir(), key=lambda part: part.name == last):
                os.replace(part, out / part.name)
        else:
            partial.chmod(0o755)  # mkdtemp makes folders that only their owner can enter
            os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
