"""Looking into JSON and finding pictures for the formats: every complaint names the file and the id."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bvlm_utils.checks import brief, is_visible, is_wording, label
from bvlm_utils.data import contents
from bvlm_utils.data.picture_files import check_picture
from bvlm_utils.errors import InputError

KINDS = {str: "a text", int: "a whole number", (int, str): "a whole number or a text", list: "a list"}


def entries(content: Any, key: str, file: Path) -> list[Mapping[str, Any]]:
    """The list of objects under `key` of a JSON object."""
    items = content.get(key) if isinstance(content, dict) else None
    if not isinstance(items, list) or not all(isinstance(entry, dict) for entry in items):
        raise InputError(f"{file} has no list of objects {key!r}; it may be a file of another kind.")
    return items


def value(entry: Mapping[str, Any], key: str, kind: type | tuple[type, ...], name: str, file: Path) -> Any:
    """`entry[key]`, which must be of `kind`; `name` says which entry it is, e.g. "annotation 7"."""
    if key not in entry:
        raise InputError(f"{file}: {name} has no {key!r}.")
    item = entry[key]
    if not isinstance(item, kind) or isinstance(item, bool):
        raise InputError(f"{file}: {key!r} of {name} is {brief(item)}; it must be {KINDS[kind]}.")
    return item


def wording(entry: Mapping[str, Any], key: str, name: str, file: Path) -> str:
    """`entry[key]`, which must be a text with something in it."""
    text = value(entry, key, str, name, file)
    if not is_visible(text):
        raise InputError(f"{file}: {key!r} of {name} is {brief(text)}; it must be a text that is not blank.")
    return text


def number(entry: Mapping[str, Any], key: str, name: str, file: Path) -> str:
    """An id, as text: 7 and "7" are one."""
    identifier = value(entry, key, (int, str), name, file)
    if not is_wording(brief(identifier) if isinstance(identifier, int) else identifier):
        raise InputError(
            f"{file}: {key!r} of {name} is {brief(identifier)}; give a number, or a text that is not blank."
        )
    return label(identifier)


class Pictures:
    """Finds and checks pictures in the first of `folders` that has one, each looked at once. file: names them."""

    def __init__(self, folders: Sequence[Path], file: Path):
        self.folders = [folder.resolve() for folder in dict.fromkeys(folders)]
        self.file = file
        self._root: Path | None = None
        self._checked: dict[str, tuple[str, str]] = {}

    def find(self, name: str, owner: str) -> dict[str, str]:
        """The path of the picture `name`, and its part in the folder. InputError if it leaves that or is no picture."""
        if name not in self._checked:
            self._checked[name] = self._find(name, owner)
        return dict(zip(("image", "picture_id"), self._checked[name], strict=True))

    def _find(self, name: str, owner: str) -> tuple[str, str]:
        if "\0" in name or Path(name).is_absolute():
            raise InputError(f"{self.file}: the picture of {owner} is {brief(name)}; it must be a path in a folder.")
        for root in [self._root] if self._root else self.folders:
            try:
                path = (root / name).resolve()
                exists = path.is_file()
            except (OSError, RuntimeError) as error:  # a name too long, a link to itself
                raise InputError(
                    f"{self.file}: the picture of {owner} is {brief(name)}, no path of a file ({type(error).__name__})."
                ) from None
            if not path.is_relative_to(root):
                link = "" if ".." in Path(name).parts else " by a link in it; only the folder itself may be a link"
                raise InputError(f"{self.file}: the picture {brief(name)} of {owner} leaves its folder {root}{link}.")
            if exists:
                self._root = root
                if not contents.checked(str(path)):
                    check_picture(path, f"{owner} in {self.file}")
                return str(path), path.relative_to(root).as_posix()
        folders = self._root or " nor ".join(map(str, self.folders))
        raise InputError(f"The picture {brief(name)} of {owner} in {self.file} is not in {folders}.")
