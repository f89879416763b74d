"""Files of a store that were cut off or changed, and what is wrong with them: one of them never stops the others."""

import os
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from bvlm_utils import paths
from bvlm_utils.atomic import DAMAGED
from bvlm_utils.documents import parse_json
from bvlm_utils.errors import InputError

NUMBER = (int, float)
# What everybody reads of a record, of its configuration and of its training: what it must have, and what it may have.
NEEDED = {"config": dict, "identity": dict, "status": str, "metrics": list, "provenance": dict}
MAY_HAVE = {"seconds": dict, "modality": str, "control": str, "device": str, "peak_memory_of_process": dict,
            "n_poisoned": (int, type(None)), "reason": (str, type(None))}  # fmt: skip
OF_CONFIG = {"model": str, "dataset": str, "threat": str, "attack": str, "poison_rate": NUMBER, "seed": int,
             "train_rows": int, "train": dict}  # fmt: skip
CONFIG_MAY = {"attack_params": dict, "threat_params": dict, "test_rows": int, "max_new_tokens": int,
              "trigger_seed": int, "negatives": NUMBER, "skill_rate": NUMBER, "half": str, "decoy": str, "skill": str,
              "surrogate": str, "dtype": str, "four_bit": bool, "picture_last": bool}  # fmt: skip
ALIKE = ("threat", "attack", "poison_rate", "seed", "train_rows", "train")  # in the identity, too
OF_TRAIN = {"epochs": int, "learning_rate": NUMBER, "lora_rank": int, "batch_size": int}
TRAIN_MAY = {"lora_alpha": NUMBER, "warmup_ratio": NUMBER, "weight_decay": NUMBER, "max_grad_norm": NUMBER,
             "schedule": str}  # fmt: skip
OF_METRIC = {"subject": str, "condition": str, "metric": str}
METRIC_MAY = {"unit": str} | dict.fromkeys(("value", "k", "n", "low", "high"), (*NUMBER, type(None)))
LARGEST = 1e300  # of a number: larger whole numbers fit into no table
STATUSES = ("done", "skipped")
FOLDERS = ("cache", "defences", "examples", "failures", "locks", "notebooks")  # that a run writes into


def check_folders(root: Path) -> None:
    """InputError for a folder that cannot be written, as a link to a disk that is away: else all is trained first."""
    for folder in (root / name for name in FOLDERS):
        if os.path.lexists(folder) and not folder.is_dir():
            raise InputError(f"{folder} is no folder, or a link to none; a run writes into it: restore or remove it.")
        paths.check_writable(folder)


@cache
def passed_over(sentence: str) -> None:
    """Say once on standard error which file could not be used."""
    print(" ".join(sentence.split()), file=sys.stderr)


def record(text: str, run_id: str) -> dict[str, Any] | str:
    """The record of a cell, or what is wrong with its text."""
    try:
        content = parse_json(text, "it")
        if content["run_id"] != run_id:
            return f"it says that it is {content['run_id']!r}"
        problem = _lacking(content)
        return content if problem is None else f"it has no {problem}"
    except DAMAGED as error:
        return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def _lacking(content: dict[str, Any]) -> str | None:
    """What a record does not have and needs, in words."""
    if problem := lacks(content, NEEDED, MAY_HAVE):
        return problem
    if content["status"] not in STATUSES:
        return f"status of {' and '.join(STATUSES)}"
    config = content["config"]
    if problem := lacks(config, OF_CONFIG, CONFIG_MAY) or lacks(config["train"], OF_TRAIN, TRAIN_MAY):
        return f"{problem} in its config"
    identity = content["identity"]
    if differing := [name for name in ALIKE if name in identity and identity[name] != config[name]]:
        return f"single {differing[0]} in its config and its identity"
    if not all(_fits(value, NUMBER) for value in content.get("seconds", {}).values()):
        return "number in each of its seconds"
    return no_numbers(content["metrics"])


def lacks(values: dict[str, Any], needed: dict[str, Any], may_have: dict[str, Any]) -> str | None:
    """The first name whose value is not there or of another kind; those of `may_have` may be missing."""
    kinds = needed | {name: kind for name, kind in may_have.items() if name in values}
    return next((name for name, kind in kinds.items() if name not in values or not _fits(values[name], kind)), None)


def no_numbers(metrics: list[Any]) -> str | None:
    """What a list of a record's numbers lacks, in words."""
    if not all(isinstance(metric, dict) and lacks(metric, OF_METRIC, METRIC_MAY) is None for metric in metrics):
        return "number in each of its metrics"
    names = Counter(tuple(metric[key] for key in OF_METRIC) for metric in metrics)
    repeated = next((name for name, count in names.items() if count > 1), None)
    return None if repeated is None else f"single number for {' '.join(filter(None, repeated))}"


def _fits(value: Any, kind: Any) -> bool:
    """Is a value of a kind? A truth value is no number, nor is one that is too large for a table."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind) and (not isinstance(value, NUMBER) or abs(value) <= LARGEST)
