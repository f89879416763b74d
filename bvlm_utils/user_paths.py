"""Paths that a user names, checked before any work is done."""

import os
from pathlib import Path

from bvlm_utils import paths
from bvlm_utils.errors import InputError


def check_writable(path: Path) -> None:
    """InputError if no file or folder can be made at `path`: told before any work is done."""
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if above != path and not above.is_dir():
        raise InputError(f"{path} cannot be made: {above} is a file; name a place in a folder.")
    if not os.access(above, os.W_OK | (os.X_OK if above.is_dir() else 0)):
        raise InputError(f"{path} cannot be written: {above} is read-only; name a place that may be written to.")


def new_file(name: str | Path) -> Path:
    """A file that is to be written, in a folder that is there; checked before any work is done."""
    path = paths.named(name, "file")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file in it.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.absolute().parent}; make it first.")
    check_writable(path)
    return path


def new_folder(name: str | Path) -> Path:
    """A folder that is to be made, or an empty one; checked before any work is done."""
    path = paths.named(name, "folder")
    if ".." in path.parts:  # of a folder that is not there yet, what is above it may be
        path = path.resolve()
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path} exists already; give a folder that is new or empty.")
    check_writable(path)
    return path
