"""Tests of values that people give, and a stable key of what was given."""

import filecmp
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from bvlm_utils.errors import InputError

LONGEST_SHOWN = 200  # characters of a value in a message
LARGEST_SEED = 2**63 - 1
_SURROGATE = re.compile("[\ud800-\udfff]")
_POWER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", re.ASCII)


def known(table: Mapping[str, Any], names: list[str], kind: str) -> None:
    """InputError for the first name in a table that is none of `names`. kind: what the names are, for the message."""
    if not isinstance(table, Mapping):
        raise InputError(f"The {kind}s are {brief(table)}; a table of names and values is needed.")
    for name in table:
        if name not in names:
            raise InputError(f"There is no {kind} {brief(name)}; choose from: {', '.join(names)}.")


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def file_state(file: str | Path) -> tuple[int, int, int]:
    """Size and times of a file: as long as they stay, its content does. The last cannot be set by hand."""
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def same_content(first: Path, second: Path) -> bool:
    """Are two files there, both with the same content?"""
    return first.is_file() and second.is_file() and filecmp.cmp(first, second, shallow=False)


@lru_cache(maxsize=16)
def files_digest(folder: Path, states: tuple[tuple[Path, tuple[int, int, int]], ...]) -> str:
    """Hex digest of files' names in a folder and of their contents; their states only tell when to read again."""
    lines = [f"{file.relative_to(folder).as_posix()} {file_digest(file)}\n" for file, _ in states]
    listing = "".join(lines).encode("utf-8", "surrogateescape")  # a file may have a name that is no UTF-8
    return hashlib.sha256(listing).hexdigest()


def is_text(value: Any) -> bool:
    """Is it a text that UTF-8 can hold? Half of a surrogate pair, as JSON can write it, is none."""
    return isinstance(value, str) and not _SURROGATE.search(value)


def is_wording(value: Any) -> bool:
    """Is it a text with something to read in it?"""
    return is_text(value) and bool(value.strip())


def is_visible(value: Any) -> bool:
    """Is it a text with a letter that can be seen? A space of no width is none."""
    return is_text(value) and any(letter.isprintable() and not letter.isspace() for letter in value)


def check_text(value: Any, name: str) -> None:
    """InputError unless `value` is a text that UTF-8 can hold."""
    if not is_text(value):
        raise InputError(f"{name} is {brief(value)}; it must be a text of whole characters (no lone surrogates).")


def is_number(value: Any, low: float, high: float, whole: bool = False) -> bool:
    """Is it a number from low to high, both included? True and False are none, nor is what is not finite."""
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool) and low <= value <= high


def a_number(low: float, high: float, whole: bool = False) -> str:
    """What `is_number` accepts, in words."""
    return f"a whole number from {low} to {high}" if whole else f"a number from {low:g} to {high:g}"


def check_number(value: Any, name: str, low: float, high: float, whole: bool = False) -> None:
    """InputError unless `is_number` holds."""
    if not is_number(value, low, high, whole):
        raise InputError(f"{name} is {brief(value)}; it must be {a_number(low, high, whole)}{as_number(value, whole)}.")


def as_number(value: Any, whole: bool = False) -> str:
    """How to write a number that YAML takes for a text: with a point, and a sign after the e; or as a whole one."""
    if not isinstance(value, str) or not _POWER.fullmatch(value):
        return ""
    if whole:
        return f" (YAML takes it for a text, so write {float(value):.0f})" if float(value).is_integer() else ""
    digits, power = value.lower().split("e")
    digits, power = digits if "." in digits else f"{digits}.0", power if power[0] in "+-" else f"+{power}"
    return f" (YAML takes it for a text, so write {digits}e{power})"


def brief(value: Any) -> str:
    """A value as messages show it: on one line, and not all of it where it is long."""
    text = _written(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} and so on"


def _written(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a whole number of thousands of digits"


def label(name: Any) -> str:
    """An id or a path as messages show it: without quotes where it is plain, and on one line."""
    text = name if isinstance(name, str) else brief(name)
    return text if text.isprintable() else repr(text)


def harmless(text: str) -> str:
    """A text of many lines as a terminal may show it: what would steer the terminal is written out."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)


def once(values: Sequence[Any], name: str) -> None:
    """InputError if a value stands twice in a list; 0 and 0.0 are one value."""
    if len({value if isinstance(value, int | float) else _written(value) for value in values}) < len(values):
        raise InputError(f"{name} is {brief(list(values))}; name each value once.")


def content_key(*parts: Any) -> str:
    """A name for what can be computed again from `parts` (JSON values)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
