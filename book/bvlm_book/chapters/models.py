"""What can the base models do, and how were they made? Model cards, for the models' chapter.

Reads data/models/NAME/card.json, which `pretraining.check` writes. Free of torch.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import words
from bvlm_book.figures import legend_below, name_rows, new_figure, nothing
from bvlm_utils.models.cards import chosen_names, read_card


def skills_words(rows: pd.DataFrame) -> dict[str, str]:
    """Title, alternative text and caption of `thresholds`."""
    asked = rows[rows["threshold"].notna()]
    if asked.empty:
        return words.nothing_measured("Skills that a model card asks for")
    closest = asked.loc[(asked["value"] - asked["threshold"]).idxmin()]
    reached = int((asked["value"] >= asked["threshold"]).sum())
    title = f"{reached} of {len(asked)} required skills are reached."
    return {
        "title": title,
        "alt": f"Dot plot, one panel per model: {len(rows)} measured skills, {len(asked)} required values. {title}",
        "caption": f"Bar: required. Smallest margin: {closest['model']}, {closest['name']}, "
        f"{words.number(closest['value'], closest['low'], closest['high'], digits=3)} where "
        f"{words.number(closest['threshold'])} was asked.",
    }


def recipes(models: Sequence[str] | None = None) -> pd.DataFrame:
    """How each model was made, one row per round of training: class, size, time and device."""
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
