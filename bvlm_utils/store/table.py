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


def table(found: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Records as one table: a line per (cell, subject, condition, metric).

    Two experiments may differ in what no column shows: a data file or a checkpoint that was edited between them, an
    attack of a newer version, other test rows. The newest keeps its name for all its seeds, and the settings of the
    others say which experiment they are.
    """
    parts = [(str(record["provenance"].get("written", "")), rows(record)) for record in found]
    newest = {_told_apart(own): own[0]["experiment"] for _, own in sorted(parts, key=lambda part: part[0])}
    parameters = sorted({name for _, own in parts for name in own[0] if _is_parameter(name)})
    lines = []
    for _, own in parts:
        first, more = own[0], {}
        if newest[_told_apart(own)] != first["experiment"]:
            more = {"run": first["experiment"]}
            more["settings"] = ", ".join(filter(None, [text(more), first["settings"]]))
        usual = usual_parameters(first["attack"], first["threat"])
        more |= {name: first.get(name, usual.get(name)) for name in parameters}
        lines += [line | more for line in own]
    made = pd.DataFrame(lines, columns=[*COLUMNS, *parameters])
    kinds = {"value": "float64", "k": "float64", "n": "float64", "low": "float64", "high": "float64"}
    # parameters of several attacks may have one name and be numbers here, words there
    mixed = [name for name in parameters if made[name].dropna().map(type).nunique() > 1 and made[name].dtype == object]
    return made.astype(kinds | dict.fromkeys(mixed, "str"))


def rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the tidy table that a record gives: one per number; one without number if the cell was
    skipped. Of the parameters of attack and threat, those that differ from the definitions.
    """
    config = record["config"]
    about = {name: config[name] for name in CELL_COLUMNS if name in config}
    about |= {name: record.get(name) for name in ("run_id", "modality", "n_poisoned", "status")}
    about["reason"] = record.get("reason") or ""
    given = {f"{ATTACK}{name}": value for name, value in config.get("attack_params", {}).items()}
    given |= {f"{THREAT}{name}": value for name, value in config.get("threat_params", {}).items()}
    given |= {name: (config.get("train", {}) | config).get(name, usual) for name, usual in SETTINGS.items()}
    about |= {name: value for name, value in given.items() if name in SETTINGS}
    # What of attack, threat and training differs from the definitions: such a cell is another experiment.
    apart = differing(given | {"attack": config["attack"], "threat": config["threat"]})
    about |= {name: value for name, value in apart.items() if _is_parameter(name)}
    about["settings"] = text(apart)
    # the same for all rates and seeds of an experiment, another one where anything else differs
    shared = {name: value for name, value in record["identity"].items() if name not in ("poison_rate", "seed")}
    about["experiment"] = content_key(canonical(shared))[:8]
    names = [*COLUMNS, *(name for name in about if _is_parameter(name))]
    lines = [about | number for number in record.get("metrics") or [{}]]
    return [{name: line.get(name) for name in names} for line in lines]


# ---------------------------------------------------------------- settings


def differing(line: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a cell that are not the usual ones, by column, equal numbers written alike: 0.0 as 0.

    line: a line of the table with its settings, attack and threat. What is missing is as usual.
    """
    line = dict(line)
    usual = SETTINGS | usual_parameters(line["attack"], line["threat"])
    names = dict.fromkeys(["run", *sorted(filter(_is_parameter, line)), *SETTINGS])
    given = {name: _alike(line.get(name)) for name in names}
    return {
        name: value
        for name, value in given.items()
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
    found: dict[str, Any] = {}
    if attack in attacks.names():
        found |= {f"{ATTACK}{name}": _alike(value) for name, value in attacks.info(attack).defaults.items()}
    if threat in threats.names():
        found |= {f"{THREAT}{name}": _alike(value) for name, value in threats.get(threat).params.items()}
    return found


def _is_parameter(name: str) -> bool:
    return name.startswith((ATTACK, THREAT))


def _alike(value: Any) -> Any:
    """Equal values in one form, which a column can hold: 0.0 as 0, a list as its text."""
    if isinstance(value, list | tuple | dict):
        return str(list(value) if isinstance(value, tuple) else value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _told_apart(own: list[dict[str, Any]]) -> tuple[Any, ...]:
    """What readers of the table tell an experiment by, whatever its rates and seeds. own: the `rows` of a record."""
    return tuple(own[0][name] for name in TOLD_APART if name not in ("poison_rate", "seed"))


def rules() -> str:
    """Changes with what the table says of the same records: with this code, and with what the usual settings are."""
    of_attacks = {name: attacks.info(name).defaults for name in attacks.names()}
    of_threats = {name: threats.get(name).params for name in threats.names()}
    return content_key(Path(__file__).read_text(encoding="utf-8"), of_attacks, of_threats, SETTINGS)


def headline_metric(table: pd.DataFrame) -> pd.Series:
    """For every row the metric that its cell's success is read from: the headline of its threat. Where that was not
    measured, since nobody can say which answers are right (free captions, conversations), strict success alone.
    """
    wanted = table["threat"].map({name: headline(name) for name in table["threat"].unique()})
    judged = table.loc[table["metric"] == wanted, "run_id"]
    return wanted.where(table["run_id"].isin(judged)).fillna("asr")


def headline(threat: str) -> str:
    """The declared headline of a threat; the strict test for one that only the store knows."""
    return threats.THREATS.get(threat).headline if threat in threats.THREATS else "asr"
