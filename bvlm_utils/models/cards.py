"""The measured skills of the committed models, as their cards hold them."""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from bvlm_utils import paths
from bvlm_utils.errors import InputError

SKILLS = ["model", "name", "value", "threshold", "n", "low", "high"]


def names() -> list[str]:
    """The folders under data/models that hold a model, the surrogate CLIP included."""
    return sorted(path.parent.name for path in paths.MODELS.glob("*/config.json"))


def skills(models: Sequence[str] | None = None) -> pd.DataFrame:
    """One row per model and measured skill (columns `SKILLS`); `threshold` is NaN where none was set."""
    rows = [
        {"model": name} | {key: skill.get(key) for key in SKILLS[1:]}
        for name in chosen_names(models)
        for skill in read_card(name).get("skills", [])
    ]
    return pd.DataFrame(rows, columns=SKILLS).astype({key: float for key in ("value", "threshold", "n", "low", "high")})


def chosen_names(models: Sequence[str] | None) -> list[str]:
    committed = names()
    for name in models or []:
        if name not in committed:
            raise InputError(f"There is no model {name!r} under data/models; choose from: {', '.join(committed)}.")
    return list(models or committed)


def read_card(name: str) -> dict[str, Any]:
    file = paths.MODELS / name / "card.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
