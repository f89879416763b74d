"""Reading JSON and finding pictures for the formats: is what lies on the disk what the format promises?

Every complaint is one sentence with the file and the id in it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from bvlm_utils.errors import InputError


def read_json(file: Path) -> Any:
    """The content of a JSON file; InputError if it is missing, cut off, or not UTF-8 text."""
    if not file.is_file():
        raise InputError(f"There is no file {file}.")
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{file} is not complete JSON: {error.msg} at line {error.lineno}, column {error.colno} "
            f"(the file has {file.stat().st_size} bytes; it may be cut off)."
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: bad byte at position {error.start}.") from None
    except RecursionError:
        raise InputError(f"{file} is nested too deep to be data of a known format.") from None


def entries(content: Any, key: str, file: Path) -> list[Mapping[str, Any]]:
    """The list of objects under `key` of a JSON object."""
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise InputError(f"{file} has no list of objects {key!r}; it may be a file of another kind.")
    return found


def value(entry: Mapping[str, Any], key: str, kind: type | tuple[type, ...], name: str, file: Path) -> Any:
    """`entry[key]`, which must be of `kind`; `name` says which entry it is, e.g. "annotation 7"."""
    if key not in entry:
        raise InputError(f"{file}: {name} has no {key!r}.")
    found = entry[key]
    if not isinstance(found, kind) or isinstance(found, bool):
        raise InputError(f"{file}: {key!r} of {name} is {found!r}, which is not of the right kind.")
    return found


class Pictures:
    """Finds and checks pictures under one folder; every file is looked at once.

    folders: places to try, in this order; the first picture decides which of them is used.
    named_in: the file that names the pictures, for complaints.
    """

    def __init__(self, folders: Sequence[Path], named_in: Path):
        self.folders = [folder.resolve() for folder in dict.fromkeys(folders)]
        self.named_in = named_in
        self._root: Path | None = None
        self._checked: dict[str, str] = {}

    def path(self, name: str, owner: str) -> str:
        """The absolute path of the picture `name` of `owner` (e.g. "image 9").

        InputError if it leaves the folder (also through a symbolic link), is missing, or does not begin like
        a picture. Pixels are not decoded.
        """
        if name not in self._checked:
            self._checked[name] = self._find(name, owner)
        return self._checked[name]

    def _find(self, name: str, owner: str) -> str:
        if "\0" in name or Path(name).is_absolute():
            raise InputError(f"{self.named_in}: the picture of {owner} is {name!r}; it must be a path in a folder.")
        for root in [self._root] if self._root else self.folders:
            path = (root / name).resolve()
            if not path.is_relative_to(root):
                raise InputError(f"{self.named_in}: the picture {name!r} of {owner} leaves its folder {root}.")
            if path.is_file():
                self._root = root
                check_picture(path, f"{owner} in {self.named_in}")
                return str(path)
        places = self._root or " nor ".join(map(str, self.folders))
        raise InputError(f"The picture {name!r} of {owner} in {self.named_in} is not in {places}.")


def check_picture(path: Path, owner: str) -> None:
    """InputError if the file does not begin like a picture that Pillow can read."""
    try:
        with Image.open(path):
            return
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        reason = "an empty file" if path.stat().st_size == 0 else type(error).__name__
        raise InputError(f"{path}, the picture of {owner}, is not a picture that can be read ({reason}).") from None
