"""What can the base models do, and how were they made? From their cards, data/models/NAME/card.json."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, words
from bvlm_utils.models.cards import chosen_names, read_card


def recipes(models: Sequence[str] | None = None) -> pd.DataFrame:
    """How each model was made, one row per round of training: class, size, time and device."""
    lines = []
    for name in chosen_names(models):
        card = read_card(name)
        for number, training in enumerate(card.get("training", [{}]), 1):
            seconds = training.get("seconds", training.get("tower_seconds"))
            lines.append({
                "model": name, "round": number if card else None, "class": card.get("class"),
                "parameters": f"{card['parameters']:,}" if card else None,
                "training time": f"{seconds / 60:.0f} min" if seconds else None, "device": training.get("device"),
            })  # fmt: skip
    return pd.DataFrame(lines)


def reached(skills: pd.DataFrame) -> dict[str, str]:
    """How many of the required skills are reached, and the one with the smallest margin. skills: `cards.skills`."""
    if (required := skills.dropna(subset="threshold")).empty:
        return {"required": "0 of 0", "closest": "n/a"}
    closest = required.loc[(required["value"] - required["threshold"]).idxmin()]
    value = words.number(*closest[["value", "low", "high"]], digits=3)
    text = f"{closest['model']}, {closest['name']}, {value} where {words.number(closest['threshold'])} was asked"
    return {"required": words.of(required["value"] >= required["threshold"]), "closest": text}


def thresholds(table: pd.DataFrame) -> Figure:
    """Measured skills (value) beside what was asked (threshold, or NaN): a panel per model."""
    models = list(table.groupby("model", sort=False))
    height = 0.36 * max(len(skills) for _, skills in models) + 1.5
    figure, axes = figures.new_figure(len(models), 4.4 if len(models) > 1 else 6.4, height)
    for axis, (model, skills) in zip(axes, models, strict=True):
        y = range(len(skills))
        axis.hlines(y, 0, skills["value"], color="#BBBBBB", linewidth=1.2)
        axis.plot(skills["value"], y, "o", color="#0072B2", label="measured")
        bar = {"color": "#D55E00", "markersize": 16, "markeredgewidth": 2.5, "label": "required"}
        axis.plot(skills["threshold"].astype(float), y, "|", **bar)
        figures.name_rows(axis, list(skills["name"]))
        axis.set(xlim=(0, 1.03), title=model)
    figures.legend_below(figure, axes[0])
    return figure
