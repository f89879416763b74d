"""The folders of the project, and the paths that a user names, which are checked before any work is done."""

import os
import re
import tempfile
from pathlib import Path

from bvlm_utils.checks import is_text
from bvlm_utils.errors import InputError

# BVLM_ROOT lets an installed copy of the package work on a checkout elsewhere.
ROOT = Path(os.environ.get("BVLM_ROOT", Path(__file__).resolve().parent.parent)).resolve()

DATA = ROOT / "data"
GRIDS = DATA / "grids"
SPRITES = DATA / "sprites"
MODELS = DATA / "models"
RESULTS = DATA / "results"
CACHE = DATA / "cache"  # rebuilt at will, never committed
NOTEBOOKS = ROOT / "notebooks"
BOOK = ROOT / "book"

_CONTROL = re.compile(r"[\0-\x1f\x7f]")  # nobody means them in a name


def named(name: str | Path, kind: str) -> Path:
    """The absolute path of a file or folder (`kind`, in words), there or not; InputError if none can be called so."""
    text = os.fspath(name) if isinstance(name, str | Path) else None
    if not text or not text.strip() or _CONTROL.search(text) or not is_text(text):
        raise InputError(f"The {kind} is named {text or name!r}; a name or a path in plain text is needed.")
    try:
        path = Path(text).expanduser().absolute()
        path.resolve()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition(":")[0].rstrip(".")
        short = text if len(text) <= 80 else f"{text[:80]}..."
        raise InputError(f"No {kind} can be at {short!r}: {reason}.") from None
    return path


def check_writable(path: Path) -> Path:
    """`path`; InputError if no file or folder can be made there."""
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if nearest != path and not nearest.is_dir():
        raise InputError(f"{path} cannot be made: {nearest} is a file; name a place in a folder.")
    if not os.access(nearest, os.W_OK | (os.X_OK if nearest.is_dir() else 0)):
        raise InputError(f"{path} cannot be written: {nearest} is read-only; name a place that may be written to.")
    if nearest.is_dir():  # some file systems, /proc for one, allow by their permissions what they then refuse
        try:
            with tempfile.TemporaryFile(dir=nearest, buffering=0) as file:
                file.write(bytes(4096))  # a full disk makes empty files
        except OSError as error:
            reason = f"nothing can be made in {nearest} ({error.strerror})"
            raise InputError(f"{path} cannot be written: {reason}; name a place that may be written to.") from None
    return path


def new_file(name: str | Path) -> Path:
    """A file that is to be written, in a folder that is there."""
    path = named(name, "file")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}; make it first.")
    return check_writable(path)


def folder_for(name: str | Path) -> Path:
    """A folder that something is to be written into, which may be there."""
    path = named(name, "folder")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; name a folder.")
    return check_writable(path)


def new_folder(name: str | Path) -> Path:
    """A folder that is to be made, or an empty one."""
    path = named(name, "folder")
    # Of a folder that is not there yet, what is above it may be; and no folder can take the place of a link.
    if ".." in path.parts or (path.is_symlink() and path.is_dir()):
        path = path.resolve()
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path} exists already; give a folder that is new or empty.")
    return check_writable(path)
