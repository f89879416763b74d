"""Contributed lines of the leaderboard: a JSON file each, checked when it is read; nothing in it is opened or run."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bvlm_utils import atomic, paths
from bvlm_utils.checks import LARGEST_SEED, brief, content_key, is_number, is_text
from bvlm_utils.documents import read_json
from bvlm_utils.errors import InputError
from bvlm_utils.score import intervals
from bvlm_utils.score.judge import SUBJECTS
from bvlm_utils.store.table import NUMBER_COLUMNS

FOLDER = paths.DATA / "contributed"
LARGEST = 200_000  # bytes of an entry
LONGEST = 300  # letters of a text
MOST_NUMBERS = 200
KINDS = ("attack", "defence", "control")
# What an entry is about. A text of at most LONGEST letters where nothing else is said.
ABOUT = ("name", "by", "source", "note", "kind", "model", "dataset", "threat", "attack", "n_poisoned", "seed",
         "settings")  # fmt: skip
MAY_BE_EMPTY = ("note", "source")
MADE = ("from", "compared_with", "package", "model_digest", "data_digest", "threat_version", "judge_version",
        "attack_version")  # fmt: skip
NUMBER = ("number", "test", *NUMBER_COLUMNS)
CONDITIONS = ("both", "text", "image", "clean")
# The metrics that are no share of rows, with the units that they may have and the largest value in each.
OF_UTILITY = {"VQA accuracy": 1, "object F1": 1, "exact match": 1, "CIDEr-D": 10}
UNITS = {"utility": OF_UTILITY, "utility_difference": OF_UTILITY, "asr_difference": {"difference of shares": 1}}


def check_about(about: Any, name: str) -> None:
    """InputError for the first field that is missing or wrong. name: whose fields they are, for complaints."""
    _fields(about, ABOUT, name)
    for field in ABOUT:
        value = about[field]
        if field == "settings":
            if not isinstance(value, dict):
                raise InputError(f"{name}: settings is {brief(value)}; it must be a table of names and values.")
            _no_paths(value, name)
        elif field in ("n_poisoned", "seed"):
            if value is not None and not is_number(value, 0, LARGEST_SEED, whole=True):
                raise InputError(f"{name}: {field} is {brief(value)}; it must be a whole number, or null if unknown.")
        else:
            _text(value, field, name)
    if about["kind"] not in KINDS:
        raise InputError(f"{name}: kind is {brief(about['kind'])}; it must be one of: {', '.join(KINDS)}.")


def _text(value: Any, field: str, name: str) -> None:
    if not is_text(value) or len(value) > LONGEST or (value and not value.isprintable()):
        raise InputError(f"{name}: {field} is {brief(value)}; it must be a text of at most {LONGEST} letters.")
    if not value.strip() and field not in MAY_BE_EMPTY:
        raise InputError(f"{name}: {field} is empty; fill it in.")


def _fields(value: Any, fields: tuple[str, ...], name: str) -> None:
    if not isinstance(value, dict):
        raise InputError(f"{name} is {brief(value)}; it must be an object with {', '.join(fields)}.")
    if missing := [field for field in fields if field not in value]:
        raise InputError(f"{name} has no {missing[0]!r}; it needs {', '.join(fields)}.")
    if others := [field for field in value if field not in fields]:
        raise InputError(f"{name} has {brief(others[0])}, which is none of: {', '.join(fields)}.")


def _no_paths(value: Any, name: str) -> None:
    """An entry comes from somebody else: whatever reads like a path is refused."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _no_paths(item, name)
    elif isinstance(value, str) and (re.search(r"[/\\]", value) or value.startswith((".", "~"))):
        raise InputError(f"{name}: the setting {brief(value)} reads like a path; an entry names no files.")


def check(entry: Any, name: str) -> None:
    """InputError for the first thing in an entry that is wrong."""
    _fields(entry, ("about", "made", "numbers"), name)
    check_about(entry["about"], name)
    _fields(entry["made"], MADE, f"{name}: made")
    for field in MADE:
        if not is_number(entry["made"][field], 0, 10**6, whole=True):
            _text(entry["made"][field], field, name)
    numbers = entry["numbers"]
    if not isinstance(numbers, list) or not 0 < len(numbers) <= MOST_NUMBERS:
        raise InputError(f"{name}: numbers must be a list of 1 to {MOST_NUMBERS} numbers.")
    positions: dict[tuple[str, ...], int] = {}
    for position, number in enumerate(numbers, start=1):
        _number(number, f"{name}, number {position}")
        first = positions.setdefault(tuple(number[field] for field in ("subject", "condition", "metric")), position)
        if first != position:
            raise InputError(
                f"{name}, number {position}: number {first} is the same metric, {brief(number['metric'])}, of the same "
                "subject and condition; give it once."
            )


def _number(number: Any, name: str) -> None:
    """Shares must be what k, n and Wilson's interval make them; of others the interval holds the value."""
    _fields(number, NUMBER, name)
    for field in ("number", "test", "metric"):
        _text(number[field], field if field != "test" else "note", name)
    units = UNITS.get(number["metric"], {"share": 1})
    for field, allowed in (("subject", SUBJECTS), ("condition", CONDITIONS), ("unit", tuple(units))):
        if number[field] not in allowed:
            raise InputError(f"{name}: {field} is {brief(number[field])}; it must be one of: {', '.join(allowed)}.")
    most = units[number["unit"]]
    least = -most if number["metric"].endswith("_difference") else 0
    value, low, high, k, n = (number[field] for field in ("value", "low", "high", "k", "n"))
    if not is_number(n, 1, 10**9) or n != int(n):
        raise InputError(f"{name}: n is {brief(n)}; it must be a whole number from 1 to {10**9}.")
    if number["unit"] == "share" or k is not None:
        counted = is_number(k, 0, n) and k == int(k)
        if not counted or not is_number(value, 0, 1) or abs(value - k / n) > 1e-9:
            raise InputError(
                f"{name}: value is {brief(value)}; it must be k / n, {brief(k)} of {brief(n)}, and k a whole number."
            )
    if not is_number(value, least, most):
        raise InputError(f"{name}: value is {brief(value)}; as {number['unit']} it must be from {least} to {most}.")
    successes = value * n if k is None and (number["metric"], most) == ("utility", 1) else k  # of scores from 0 to 1
    _interval((low, high), value, successes, int(n), name)


def _interval(bounds: tuple[Any, Any], value: float, successes: float | None, n: int, name: str) -> None:
    """successes: of Wilson's interval; None: it is Student's, which one row alone does not have."""
    if successes is not None:
        expected = intervals.wilson(successes, n)
        if not all(is_number(a, -1, 2) and abs(a - b) < 1e-6 for a, b in zip(bounds, expected, strict=True)):
            raise InputError(f"{name}: the interval is {brief(bounds)}; Wilson's is {brief(expected)}.")
    elif None in bounds and not (n == 1 and bounds == (None, None)):
        raise InputError(f"{name}: low and high are {brief(bounds)}, which is no interval; give both its ends.")
    for bound, side in zip(bounds, (1, -1), strict=True):
        if bound is not None and not (is_number(bound, -1e9, 1e9) and side * (value - bound) >= -1e-9):
            raise InputError(f"{name}: the interval {brief(bounds)} does not hold the value {brief(value)}.")


def read(file: Path) -> dict[str, Any]:
    """An entry; InputError names what is wrong with it."""
    if file.is_file() and file.stat().st_size > LARGEST:
        raise InputError(f"{file} has {file.stat().st_size} bytes; an entry has at most {LARGEST}.")
    entry = read_json(file)
    check(entry, str(file))
    return entry


def write(entry: Mapping[str, Any], folder: Path = FOLDER) -> Path:
    """Keep an entry under a name that follows from what it is about; an older one of that name is replaced."""
    check(entry, "The entry")
    file = folder / file_name(entry["about"])
    atomic.write_file(file, json.dumps(entry, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return file


def file_name(about: Mapping[str, Any]) -> str:
    """What the file of an entry is called: entries about the same have the same name."""
    key = content_key({name: about[name] for name in ABOUT if name not in ("note", "source")})[:8]
    slug = re.sub(r"[^a-z0-9]+", "-", f"{about['name']}-{about['threat']}-{about['attack']}".lower()).strip("-")[:80]
    return f"{slug}-{key}.json"


def entries(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """All entries of a folder, by the names of their files; InputError for the first that is wrong, or a copy."""
    checked = []
    for file in sorted(folder.glob("[!.]*.json")):  # others are being written right now
        entry = read(file)
        if file.name != (name := file_name(entry["about"])):
            raise InputError(
                f"{file} is about what the entry {name} is about; give it that name, or remove it if it is a copy."
            )
        checked.append(entry)
    return checked
