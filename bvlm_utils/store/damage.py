"""Files of a store that were cut off or changed, and what is wrong with them: one of them never stops the others."""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

NEEDED = {"config": dict, "identity": dict, "status": str, "metrics": list}  # in every record
BAD_JSON = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)


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
        lacking = [name for name, kind in NEEDED.items() if not isinstance(found.get(name), kind)]
        return f"it has no {lacking[0]}" if lacking else found
    except BAD_JSON as error:
        return f"{type(error).__name__}: {error}"


def failure(file: Path) -> str:
    """Why a cell failed, as its file says."""
    try:
        return str(json.loads(file.read_bytes())["error"]).strip() or "unknown"
    except (*BAD_JSON, OSError):
        return f"why is not known: {file} cannot be read"


def texts(file: Path) -> list[str] | None:
    """A list of texts; None if the file holds something else."""
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(text, str) for text in found) else None
