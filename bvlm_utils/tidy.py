"""What do readers see of a record? The tidy table: one line per number, with the cell that it belongs to.

Called by `store.collect` and by `study`; all figures and tables start from it.
"""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from bvlm_utils import attacks, threats
from bvlm_utils.cells import MAX_NEW_TOKENS, YOUNGER, TrainSettings, content_key

# One line of the tidy table: the cell, then the number.
CELL_COLUMNS = [
    "run_id", "model", "dataset", "threat", "attack", "modality", "poison_rate", "n_poisoned", "seed", "negatives",
    "train_rows", "test_rows", "settings", "experiment", "status", "reason",
]  # fmt: skip
# What readers of the table tell cells apart by.
TOLD_APART = [
    "model", "dataset", "threat", "attack", "poison_rate", "seed", "negatives", "train_rows", "settings",
]  # fmt: skip
NUMBER_COLUMNS = ["subject", "condition", "metric", "value", "k", "n", "low", "high", "unit"]
COLUMNS = CELL_COLUMNS + NUMBER_COLUMNS


def table(found: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Records as one table: a line per (cell, subject, condition, metric).

    Two records may differ in what no column shows: a data file or a checkpoint that was edited between them, an attack
    of a newer version, other test rows. The newest keeps its name, and the settings of the others say which run they
    are.
    """
    parts = [(record["provenance"].get("written", ""), rows(record)) for record in found]
    newest = {_told_apart(own): own[0]["run_id"] for _, own in sorted(parts, key=lambda part: part[0])}
    lines = []
    for _, own in parts:
        told = "" if newest[_told_apart(own)] == own[0]["run_id"] else f"run={own[0]['run_id'][-8:]}"
        lines += [line | {"settings": ", ".join(filter(None, [told, line["settings"]]))} for line in own]
    made = pd.DataFrame(lines, columns=COLUMNS)
    kinds = {"value": "float64", "k": "float64", "n": "float64", "low": "float64", "high": "float64"}
    return made.astype(kinds)


def rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the tidy table that a record gives: one per number; one without number if the cell was
    skipped.
    """
    config = record["config"]
    about = {name: config[name] for name in CELL_COLUMNS if name in config}
    about |= {name: record.get(name) for name in ("run_id", "modality", "n_poisoned", "status")}
    about["reason"] = record.get("reason") or ""
    # What of attack, threat and training differs from the definitions: such a cell is another experiment.
    attack, threat = config["attack"], config["threat"]
    settings = _unusual(config.get("attack_params", {}), attacks.info(attack).defaults if _known(attack) else {})
    settings |= _unusual(
        config.get("threat_params", {}), threats.get(threat).params if threat in threats.names() else {}
    )
    settings |= _unusual(config.get("train", {}), asdict(TrainSettings()))
    settings |= _unusual({"max_new_tokens": config.get("max_new_tokens", MAX_NEW_TOKENS)}, YOUNGER)
    # half stays last, see `modality.HALF`
    rare = ("trigger_seed", "surrogate", "four_bit", "picture_last", "half")
    settings |= {name: config[name] for name in rare if config.get(name)}
    about["settings"] = ", ".join(f"{name}={value}" for name, value in settings.items())
    # the same for all rates and seeds of an experiment, another one where anything else differs
    shared = {name: value for name, value in record["identity"].items() if name not in ("poison_rate", "seed")}
    about["experiment"] = content_key(shared)[:8]
    numbers = record.get("metrics") or [{}]
    return [{name: (about | number).get(name) for name in COLUMNS} for number in numbers]


def _known(attack: str) -> bool:
    return attack in attacks.names()  # controls have none, and others declare attacks of their own


def _unusual(given: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """Settings that are not the usual ones, equal numbers written alike: 0.0 as 0, as in a cell's name."""
    differ = {name: value for name, value in given.items() if name not in usual or value != usual[name]}
    return {n: int(v) if isinstance(v, float) and v.is_integer() else v for n, v in differ.items()}


def _told_apart(own: list[dict[str, Any]]) -> tuple[Any, ...]:
    """What readers of the table tell a record by. own: its `rows`."""
    return tuple(own[0][name] for name in TOLD_APART)


def rules() -> str:
    """Changes with what the table says of the same records: with this code, and with what the usual settings are."""
    of_attacks = {name: attacks.info(name).defaults for name in attacks.names()}
    of_threats = {name: threats.get(name).params for name in threats.names()}
    return content_key(
        Path(__file__).read_text(encoding="utf-8"), of_attacks, of_threats, asdict(TrainSettings()), YOUNGER
    )
