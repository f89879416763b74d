"""What can the base models do, and how were they made? Model cards, for the models' chapter.

Reads data/models/NAME/card.json, which `pretraining.check` writes. Free of torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import tables, words
from bvlm_book.figures import legend_below, name_rows, new_figure, nothing
from bvlm_utils.models.cards import chosen_names, read_card


def skills_table(rows: pd.DataFrame) -> pd.DataFrame:
    """`models.cards.skills` as a table to read."""

    def passed(r: Mapping[str, Any]) -> str:
        return "n/a" if pd.isna(r["threshold"]) else "yes" if r["value"] >= r["threshold"] else "no"

    return tables.readable(rows, {
        "model": "model", "skill": "name",
        "measured": lambda r: words.number(r["value"], r["low"], r["high"], digits=3),
        "required": lambda r: words.number(r["threshold"]),
        "held-out cases": lambda r: words.number(r["n"], digits=0), "passed": passed,
    })  # fmt: skip


def skills_words(rows: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `thresholds`."""
    asked = rows[rows["threshold"].notna()]
    if asked.empty:
        return dict.fromkeys(("alt", "caption"), "No model card with a skill that was asked for was found.")
    closest = asked.loc[(asked["value"] - asked["threshold"]).idxmin()]
    reached = int((asked["value"] >= asked["threshold"]).sum())
    return {
        "alt": f"Dot plot, one panel per model: {len(rows)} measured skills, {len(asked)} required values.",
        "caption": f"{reached} of {len(asked)} required skills (bar) are reached. "
        f"The smallest margin is that of {closest['model']}, {closest['name']}: "
        f"{words.number(closest['value'], digits=3)} where {words.number(closest['threshold'])} was asked.",
    }


def recipes(models: Sequence[str] | None = None) -> pd.DataFrame:
    """How each model was made, one row per round of training: class, size, time, device and settings."""
    lines = []
    for name in chosen_names(models):
        card = read_card(name)
        for number, made in enumerate(card.get("training", [{}]), 1):
            seconds = made.get("seconds", made.get("tower_seconds"))
            lines.append({
                "model": name,
                "round": number if card else None,
                "class": card.get("class"),
                "parameters": f"{card['parameters']:,}" if card else None,
                "training time": f"{seconds / 60:.0f} min" if seconds else None,
                "device": made.get("device"),
                "settings": ", ".join(f"{key} = {value}" for key, value in made.get("recipe", {}).items()) or None,
            })  # fmt: skip
    return pd.DataFrame(lines)


def thresholds(table: pd.DataFrame) -> Figure:
    """Measured skills of the base models beside what was asked of them: one panel per model.

    table: columns `model`, `name`, `value`, `threshold` (NaN where nothing was asked for).
    """
    models = list(dict.fromkeys(table["model"]))
    if not models:
        return nothing("No model card was found.")
    height = 0.36 * table.groupby("model").size().max() + 1.5
    figure, axes = new_figure(len(models), 4.4 if len(models) > 1 else 6.4, height)
    for axis, model in zip(axes, models, strict=True):
        part = table[table["model"] == model]
        values, at = part["value"].astype(float), np.arange(len(part))
        axis.hlines(at, 0, values, color="#BBBBBB", linewidth=1.2)
        axis.plot(values, at, "o", color="#0072B2", label="measured")
        bar = {"color": "#D55E00", "markersize": 16, "markeredgewidth": 2.5, "label": "required"}
        axis.plot(part["threshold"].astype(float), at, "|", **bar)
        name_rows(axis, list(part["name"]))
        axis.set(xlim=(0, 1.03), title=model)
    legend_below(figure, axes[0])
    return figure
