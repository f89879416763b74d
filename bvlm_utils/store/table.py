"""The tidy table: one line per number, with the cell that it belongs to. All figures and tables start from it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from bvlm_utils import attacks, threats
from bvlm_utils.checks import content_key
from bvlm_utils.store.cell import MAX_NEW_TOKENS, canonical
from bvlm_utils.train.settings import TrainSettings

# How a cell was made, a column each, with what is usual. `run` tells records apart that nothing else does.
SETTINGS: dict[str, Any] = {
    "run": "", **asdict(TrainSettings()), "max_new_tokens": MAX_NEW_TOKENS, "trigger_seed": 0, "surrogate": "",
    "four_bit": False, "picture_last": False, "half": "", "dtype": "",
    "decoy": "", "skill": "", "skill_rate": 1.0,
}  # fmt: skip
# Parameters of attacks and threats have columns of their own, such as "attack.patch_size", since some are called like
# training settings. The table has those that some cell of it sets.
ATTACK, THREAT = "attack.", "threat."
# One line of the tidy table: the cell, then the number.
CELL_COLUMNS = [
    "run_id", "model", "dataset", "threat", "attack", "modality", "poison_rate", "n_poisoned", "seed", "negatives",
    "train_rows", "test_rows", "settings", *SETTINGS, "experiment", "status", "reason",
]  # fmt: skip
# What readers of the table tell cells apart by.
TOLD_APART = [
    "model", "dataset", "threat", "attack", "poison_rate", "seed", "negatives", "train_rows", "settings",
]  # fmt: skip
NUMBER_COLUMNS = ["subject", "condition", "metric", "value", "k", "n", "low", "high", "unit"]
COLUMNS = CELL_COLUMNS + NUMBER_COLUMNS
FIRES = 0.5  # a backdoor, or half of a trigger, fires if it does so on more than this share of the inputs


def table(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Records as one table: a line per (cell, subject, condition, metric).

    Two experiments may differ in what no column shows: a data file or a checkpoint that was edited between them, an
    attack of a newer version, other test rows. The newest keeps its name for all its seeds, and the settings of the
    others say which experiment they are.
    """
    cells = [(str(record["provenance"].get("written", "")), rows(record)) for record in records]
    newest = {_told_apart(group): group[0]["experiment"] for _, group in sorted(cells, key=lambda cell: cell[0])}
    parameters = sorted({name for _, group in cells for name in group[0] if _is_parameter(name)})
    lines = []
    for _, group in cells:
        first, extra = group[0], {}
        if newest[_told_apart(group)] != first["experiment"]:
            extra = {"run": first["experiment"]}
            extra["settings"] = ", ".join(filter(None, [text(extra), first["settings"]]))
        usual = usual_parameters(first["attack"], first["threat"])
        extra |= {name: first.get(name, usual.get(name)) for name in parameters}
        lines += [line | extra for line in group]
    frame = pd.DataFrame(lines, columns=[*COLUMNS, *parameters])
    kinds = {"value": "float64", "k": "float64", "n": "float64", "low": "float64", "high": "float64"}
    # parameters of several attacks may have one name and be numbers here, words there
    mixed = [
        name for name in parameters if frame[name].dropna().map(type).nunique() > 1 and frame[name].dtype == object
    ]
    return frame.astype(kinds | dict.fromkeys(mixed, "str"))


def rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the tidy table that a record gives: one per number; one without number if the cell was
    skipped. Of the parameters of attack and threat, those that differ from the definitions.
    """
    config = record["config"]
    cell = {name: config[name] for name in CELL_COLUMNS if name in config}
    cell |= {name: record.get(name) for name in ("run_id", "modality", "n_poisoned", "status")}
    cell["reason"] = record.get("reason") or ""
    settings = {f"{ATTACK}{name}": value for name, value in config.get("attack_params", {}).items()}
    settings |= {f"{THREAT}{name}": value for name, value in config.get("threat_params", {}).items()}
    settings |= {name: (config.get("train", {}) | config).get(name, usual) for name, usual in SETTINGS.items()}
    cell |= {name: value for name, value in settings.items() if name in SETTINGS}
    # What of attack, threat and training differs from the definitions: such a cell is another experiment.
    differences = differing(settings | {"attack": config["attack"], "threat": config["threat"]})
    cell |= {name: value for name, value in differences.items() if _is_parameter(name)}
    cell["settings"] = text(differences)
    # the same for all rates and seeds of an experiment, another one where anything else differs
    identity = {name: value for name, value in record["identity"].items() if name not in ("poison_rate", "seed")}
    cell["experiment"] = content_key(canonical(identity))[:8]
    names = [*COLUMNS, *(name for name in cell if _is_parameter(name))]
    lines = [cell | number for number in record.get("metrics") or [{}]]
    return [{name: line.get(name) for name in names} for line in lines]


# ---------------------------------------------------------------- settings


def differing(line: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a cell that are not the usual ones, by column, equal numbers written alike: 0.0 as 0.

    line: a line of the table with its settings, attack and threat. What is missing is as usual.
    """
    line = dict(line)
    usual = SETTINGS | usual_parameters(line["attack"], line["threat"])
    names = dict.fromkeys(["run", *sorted(filter(_is_parameter, line)), *SETTINGS])
    values = {name: _alike(line.get(name)) for name in names}
    return {
        name: value
        for name, value in values.items()
        if not pd.isna(value) and (name not in usual or value != _alike(usual[name]))
    }


def text(settings: Mapping[str, Any]) -> str:
    """Settings to read: "patch_size=80, half=text"; a parameter that shares its name with another setting is written
    in full, "attack.epochs=2".
    """
    short = {name: name.removeprefix(ATTACK).removeprefix(THREAT) for name in settings}
    uses = Counter([*SETTINGS, *(short[name] for name in settings if _is_parameter(name))])
    return ", ".join(f"{short[name] if uses[short[name]] == 1 else name}={value}" for name, value in settings.items())


def usual_parameters(attack: str, threat: str) -> dict[str, Any]:
    """What parameters of an attack and of a threat are if a cell does not set them, by column; none for one that only
    the store knows, as controls and the definitions of others.
    """
    usual: dict[str, Any] = {}
    if attack in attacks.names():
        usual |= {f"{ATTACK}{name}": _alike(value) for name, value in attacks.info(attack).defaults.items()}
    if threat in threats.names():
        usual |= {f"{THREAT}{name}": _alike(value) for name, value in threats.get(threat).params.items()}
    return usual


def _is_parameter(name: str) -> bool:
    return name.startswith((ATTACK, THREAT))


def _alike(value: Any) -> Any:
    """Equal values in one form, which a column can hold: 0.0 as 0, a list as its text."""
    if isinstance(value, list | tuple | dict):
        return str(list(value) if isinstance(value, tuple) else value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _told_apart(lines: list[dict[str, Any]]) -> tuple[Any, ...]:
    """What readers of the table tell an experiment by, whatever its rates and seeds. lines: the `rows` of a record."""
    return tuple(lines[0][name] for name in TOLD_APART if name not in ("poison_rate", "seed"))


def rules() -> str:
    """Changes with what the table says of the same records: with this code, and with what the usual settings are."""
    of_attacks = {name: attacks.info(name).defaults for name in attacks.names()}
    of_threats = {name: threats.get(name).params for name in threats.names()}
    return content_key(Path(__file__).read_text(encoding="utf-8"), of_attacks, of_threats, SETTINGS)


def headline_metric(table: pd.DataFrame) -> pd.Series:
    """For every row the metric that its cell's success is read from: the headline of its threat. Where that was not
    measured, since nobody can say which answers are right (free captions, conversations), strict success alone.
    """
    headlines = table["threat"].map({name: headline(name) for name in table["threat"].unique()})
    judged = table.loc[table["metric"] == headlines, "run_id"]
    return headlines.where(table["run_id"].isin(judged)).fillna("asr")


def headline(threat: str) -> str:
    """The declared headline of a threat; the strict test for one that only the store knows."""
    return threats.THREATS.get(threat).headline if threat in threats.THREATS else "asr"
