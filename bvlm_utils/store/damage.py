"""Files of a store that were cut off or changed, and what is wrong with them: one of them never stops the others."""

import sys
from functools import cache
from typing import Any

from bvlm_utils.atomic import DAMAGED
from bvlm_utils.documents import parse_json
from bvlm_utils.errors import InputError

# What everybody reads of a record, and of its configuration: those that it must have, and those that it may have.
NEEDED = {"config": dict, "identity": dict, "status": str, "metrics": list, "provenance": dict}
OF_CONFIG, MAY_HAVE = {"threat": str, "attack": str}, {"train": dict, "attack_params": dict, "threat_params": dict}
METRIC = ("subject", "condition", "metric", "value", "k", "n", "low", "high")  # three words; then numbers, or none
STATUSES = ("done", "skipped")


@cache
def passed_over(sentence: str) -> None:
    """Say once on standard error which file could not be used."""
    print(" ".join(sentence.split()), file=sys.stderr)


def record(text: str, run_id: str) -> dict[str, Any] | str:
    """The record of a cell, or what is wrong with its text."""
    try:
        found = parse_json(text, "it")
        if found["run_id"] != run_id:
            return f"it says that it is {found['run_id']!r}"
        problem = _lacking(found)
        return found if problem is None else f"it has no {problem}"
    except InputError as error:
        return str(error)
    except DAMAGED as error:
        return f"{type(error).__name__}: {error}"


def _lacking(found: dict[str, Any]) -> str | None:
    """What a record does not have and needs, in words."""
    for name, kind in NEEDED.items():
        if not isinstance(found.get(name), kind):
            return name
    config = found["config"]
    if found["status"] not in STATUSES:
        return f"status of {' and '.join(STATUSES)}"
    for name, kind in (OF_CONFIG | {name: kind for name, kind in MAY_HAVE.items() if name in config}).items():
        if not isinstance(config.get(name), kind):
            return f"{name} in its config"
    for metric in found["metrics"]:
        words = isinstance(metric, dict) and all(isinstance(metric.get(key), str) for key in METRIC[:3])
        if not words or not all(type(metric.get(key)) in (int, float, type(None)) for key in METRIC[3:]):
            return "number in each of its metrics"
    return None
