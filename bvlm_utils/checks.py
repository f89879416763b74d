"""Tests of values that people give, and a stable key of what was given."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bvlm_utils.errors import InputError


def known(given: Mapping[str, Any], names: list[str], what: str) -> None:
    """InputError for the first name in `given` that is none of `names`."""
    if not isinstance(given, Mapping):
        raise InputError(f"The {what}s are {given!r}; a table of names and values is needed.")
    for name in given:
        if name not in names:
            raise InputError(f"There is no {what} {name!r}; choose from: {', '.join(names)}.")


def known_name(make: Any) -> Any:
    """A registry's KeyError (unknown name) as what it is to the user."""
    try:
        return make()
    except KeyError as error:
        raise InputError(error.args[0]) from None


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_whole(settings: Any, name: str, low: int, high: int = 2**31 - 1) -> None:
    value = getattr(settings, name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{name} is {value!r}; it must be a whole number from {low} to {high}.")


def check_number(settings: Any, name: str, low: float, high: float) -> None:
    value = getattr(settings, name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not (low <= value <= high and value < math.inf):
        wants = f"from {low:g} to {high:g}" if high < math.inf else f"{low:g} or more"
        raise InputError(f"{name} is {value!r}; it must be a number {wants}.")


def content_key(*parts: Any) -> str:
    """A name for what can be computed again from `parts` (JSON values)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
