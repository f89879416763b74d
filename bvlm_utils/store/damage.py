"""Files of a store that were cut off or changed, and what is wrong with them: one of them never stops the others."""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

from bvlm_utils.atomic import DAMAGED

# What everybody reads of a record, of its configuration and of each of its numbers.
NEEDED = {"config": dict, "identity": dict, "status": str, "metrics": list, "provenance": dict}
OF_CONFIG = {"threat": str, "attack": str}
OF_NUMBER = {"subject": str, "condition": str, "metric": str}
TABLES = ("train", "attack_params", "threat_params")  # of a configuration, where they are given
COUNTS = ("value", "k", "n", "low", "high")  # of a number: numbers, or none
STATUSES = ("done", "skipped")


@cache
def passed_over(sentence: str) -> None:
    """Say once on standard error which file could not be used."""
    print(" ".join(sentence.split()), file=sys.stderr)


def record(text: str, run_id: str) -> dict[str, Any] | str:
    """The record of a cell, or what is wrong with its text."""
    try:
        found = json.loads(text)
        if found["run_id"] != run_id:
            return f"it says that it is {found['run_id']!r}"
        problem = _lacking(found)
        return found if problem is None else f"it has no {problem}"
    except DAMAGED as error:
        return f"{type(error).__name__}: {error}"


def _lacking(found: dict[str, Any]) -> str | None:
    """What a record does not have and needs, in words."""
    for name, kind in NEEDED.items():
        if not isinstance(found.get(name), kind):
            return name
    config, numbers = found["config"], found["metrics"]
    if found["status"] not in STATUSES:
        return f"status of {' and '.join(STATUSES)}"
    for name, kind in [*OF_CONFIG.items(), *((name, dict) for name in TABLES if name in config)]:
        if not isinstance(config.get(name), kind):
            return f"{name} in its config"
    if not all(isinstance(one, dict) and _is_number(one) for one in numbers):
        return "number in each of its metrics"
    return None


def _is_number(one: dict[str, Any]) -> bool:
    """Is it a line of metrics?"""
    counts = (one.get(name) for name in COUNTS)
    return all(isinstance(one.get(name), kind) for name, kind in OF_NUMBER.items()) and all(
        count is None or (isinstance(count, int | float) and not isinstance(count, bool)) for count in counts
    )


def failure(file: Path) -> str:
    """Why a cell failed, as its file says."""
    try:
        return str(json.loads(file.read_bytes())["error"]).strip() or "unknown"
    except DAMAGED:
        return f"why is not known: {file} cannot be read"


def texts(file: Path) -> list[str] | None:
    """A list of texts; None if the file holds something else."""
    try:
        found = json.loads(file.read_bytes())
    except DAMAGED:
        return None
    return found if isinstance(found, list) and all(isinstance(text, str) for text in found) else None
