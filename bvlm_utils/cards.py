"""What can the base models do, and how were they made? Model cards, for the models' chapter.

Reads data/models/NAME/card.json, which `check_models` writes. Free of torch.
"""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from bvlm_utils import paths, report
from bvlm_utils.errors import InputError

SKILLS = ["model", "name", "value", "threshold", "n", "low", "high"]


def names() -> list[str]:
    """The folders under data/models that hold a model, the surrogate CLIP included."""
    return sorted(path.parent.name for path in paths.MODELS.glob("*/config.json"))


def skills(models: Sequence[str] | None = None) -> pd.DataFrame:
    """One row per model and measured skill (columns `SKILLS`); `threshold` is NaN where none was set.

    Empty where nothing was measured yet.
    """
    rows = [
        {"model": name} | {key: skill.get(key) for key in SKILLS[1:]}
        for name in _chosen(models)
        for skill in _card(name).get("skills", [])
    ]
    return pd.DataFrame(rows, columns=SKILLS).astype({key: float for key in ("value", "threshold", "n", "low", "high")})


def skills_table(rows: pd.DataFrame) -> pd.DataFrame:
    """`skills` as a table to read."""
    return pd.DataFrame(
        [
            {
                "model": r["model"],
                "skill": r["name"],
                "measured": report.number(r["value"], r["low"], r["high"], digits=3),
                "required": report.number(r["threshold"]),
                "held-out cases": "n/a" if pd.isna(r["n"]) else f"{int(r['n'])}",
                "passed": "n/a" if pd.isna(r["threshold"]) else "yes" if r["value"] >= r["threshold"] else "no",
            }
            for r in rows.to_dict("records")
        ]
    )


def skills_words(rows: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption for `plots.thresholds`."""
    asked = rows[rows["threshold"].notna()]
    if asked.empty:
        nothing = "No model card with a skill that was asked for was found."
        return {"alt": nothing, "caption": nothing}
    closest = asked.loc[(asked["value"] - asked["threshold"]).idxmin()]
    reached = int((asked["value"] >= asked["threshold"]).sum())
    return {
        "alt": f"Dot plot, one panel per model: {len(rows)} measured skills, {len(asked)} required values.",
        "caption": f"{reached} of {len(asked)} required skills (bar) are reached. "
        f"The smallest margin is that of {closest['model']}, {closest['name']}: "
        f"{report.number(closest['value'], digits=3)} where {report.number(closest['threshold'])} was asked.",
    }


def recipes(models: Sequence[str] | None = None) -> pd.DataFrame:
    """How each model was made, one row per round of training: class, size, time, device and settings."""
    lines = []
    for name in _chosen(models):
        card = _card(name)
        for number, made in enumerate(card.get("training", [{}]), 1):
            seconds = made.get("seconds", made.get("tower_seconds"))
            lines.append(
                {
                    "model": name,
                    "round": number if card else None,
                    "class": card.get("class"),
                    "parameters": f"{card['parameters']:,}" if card else None,
                    "training time": f"{seconds / 60:.0f} min" if seconds else None,
                    "device": made.get("device"),
                    "settings": ", ".join(f"{key} = {value}" for key, value in made.get("recipe", {}).items()) or None,
                }
            )
    return pd.DataFrame(lines)


def _chosen(models: Sequence[str] | None) -> list[str]:
    known = names()
    for name in models or []:
        if name not in known:
            raise InputError(f"There is no model {name!r} under data/models; choose from: {', '.join(known)}.")
    return list(models or known)


def _card(name: str) -> dict[str, Any]:
    place = paths.MODELS / name / "card.json"
    return json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
