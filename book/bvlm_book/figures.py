"""Figures from tables: every function takes a table of `tables.summary`, or pictures, and returns a matplotlib Figure.

Nothing is measured or tested here: a number that a figure shows is a number of its table, and a missing one is drawn as
"n/a", never as zero. Free of torch.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bvlm_book.words import CONDITION_LABELS, CONDITIONS, MODALITIES, SUBJECT_LABELS, SUBJECTS, percent

# Okabe and Ito's palette, which colour-blind readers can tell apart; every colour comes with its own marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
SUBJECT_COLOURS = {"base": "#7F7F7F", "control": "#0072B2", "poisoned": "#D55E00"}
SUBJECT_MARKERS = {"base": "o", "control": "s", "poisoned": "D"}
NOT_AVAILABLE = "#E3E3E3"

STYLE = {
    "figure.facecolor": "white",  # opaque: a transparent figure cannot be read in dark mode
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.transparent": False,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
CONTROL_LABEL = SUBJECT_LABELS["control"]
ASR = "attack success rate"


def new_figure(columns: int, width: float, height: float, rows: int = 1, **settings: Any) -> tuple[Figure, np.ndarray]:
    """`rows` x `columns` axes, row by row, each `width` x `height` inches; the figure is not registered with pyplot."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **settings).ravel()
    return figure, axes


def in_order(values: Sequence, known: Sequence) -> list:
    """The distinct values, known ones first and in their order, others as they come."""
    present = list(dict.fromkeys(values))
    return [v for v in known if v in present] + [v for v in present if v not in known]


def _attacks(table: pd.DataFrame) -> list[str]:
    """Attack names by modality, then as the table has them."""
    pairs = table[["attack", "modality"]].drop_duplicates()
    return [a for m in in_order(pairs["modality"], MODALITIES) for a in pairs.loc[pairs["modality"] == m, "attack"]]


def nothing(message: str) -> Figure:
    """A figure that says why there is nothing to see: a chapter keeps its shape when a cell is missing."""
    figure, (axis,) = new_figure(1, 6.4, 1.2)
    axis.text(0.5, 0.5, message, ha="center", va="center", wrap=True)
    axis.set_axis_off()
    return figure


def heatmap(table: pd.DataFrame) -> Figure:
    """Success rate of every attack under every condition, one panel per poison rate.

    table: rows of one metric and one subject. Darker is higher; a grey field is a condition that the attack does not
    have, or a cell that was not run.
    """
    shown = table[table["condition"].notna() & table["value"].notna()]
    if shown.empty:
        return nothing("No success rate was measured for these cells.")
    attacks, rates = _attacks(table), sorted(table["poison_rate"].unique(), reverse=True)
    conditions = in_order(shown["condition"], CONDITIONS)
    width = 1.15 * len(conditions) + (1.6 if len(rates) > 1 else 2.4)
    figure, axes = new_figure(len(rates), width, 0.42 * len(attacks) + 1.5, sharey=True)
    for axis, rate in zip(axes, rates, strict=True):
        of_rate = shown[shown["poison_rate"] == rate]
        grid = of_rate.pivot_table(index="attack", columns="condition", values="value", aggfunc="first")
        success_map(axis, grid.reindex(index=attacks, columns=conditions), bar=axis is axes[-1])
        axis.set_title(f"poison rate {percent(rate)}")
        labels = [CONDITION_LABELS.get(name, name).replace(" ", "\n") for name in conditions]
        axis.set_xticks(np.arange(len(labels)) + 0.5, labels, rotation=0)
    return figure


def dose(table: pd.DataFrame, ylabel: str = ASR) -> Figure:
    """Success rate against the number of poisoned rows, one panel per modality, one line per attack.

    table: rows of one metric and one subject under the full trigger, with `n_poisoned`, `low`, `high`.
    """
    shown = table[table["value"].notna() & (table["n_poisoned"] > 0)]
    if shown.empty:
        return nothing("No success rate under the full trigger was measured for these cells.")
    modalities = in_order(shown["modality"], MODALITIES)
    figure, axes = new_figure(len(modalities), 3.4, 4.2, sharey=True)
    for axis, modality in zip(axes, modalities, strict=True):
        part = shown[shown["modality"] == modality]
        names = list(dict.fromkeys(part["attack"]))
        for i, name in enumerate(names):
            line = part[part["attack"] == name].sort_values("n_poisoned")
            # lines on top of each other are pulled apart by 3 % of the (logarithmic) axis
            at = line["n_poisoned"] * 1.03 ** (i - (len(names) - 1) / 2)
            points(axis, at, line, upright=True, linestyle="-", label=name, **look(i))
        dose_axis(axis, shown)
        axis.set_title(f"{modality} triggers")
        axis.set_xlabel("poisoned rows (rate)")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=2)
    axes[0].set_ylabel(ylabel)
    figure.get_layout_engine().set(h_pad=0.12)  # legends below the axes, as lines go anywhere in them
    return figure


def dose_axis(axis: Axes, shown: pd.DataFrame, **look: Any) -> None:
    """A logarithmic axis of poisoned rows with the rates beside them, and an upright one from 0 to 1."""
    rates = shown.drop_duplicates("n_poisoned").set_index("n_poisoned")["poison_rate"].sort_index()
    axis.set_xscale("log")
    axis.set_xlim(rates.index.min() / 1.5, rates.index.max() * 1.5)
    axis.set_xticks(rates.index, [f"{int(n)}\n{percent(rate)}" for n, rate in rates.items()], **look)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_ylim(-0.03, 1.03)


def look(number: int) -> dict[str, str]:
    """Colour and marker of the so-manieth line."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def points(axis: Axes, at: Any, rows: pd.DataFrame, name: str = "value", upright: bool = False, **look: Any) -> None:
    """Values of a column with their intervals, at the places `at` of the other axis.

    upright: the values go up. look: as for `Axes.plot`, with a color; no line unless it says so.
    """
    low, high = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
    values, lows, highs = (rows[column].astype(float) for column in (name, low, high))
    (axis.vlines if upright else axis.hlines)(at, lows, highs, color=look["color"], linewidth=1.5)
    axis.plot(*((at, values) if upright else (values, at)), **{"linestyle": "", "markersize": 6} | look)


def name_rows(axis: Axes, labels: Sequence[str]) -> None:
    """A row of the axis per label, the first at the top."""
    axis.set_yticks(np.arange(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)


def _subjects(axis: Axes, part: pd.DataFrame, attacks: list[str]) -> None:
    """A row per attack, the subjects slightly above each other."""
    subjects = in_order(part["subject"], SUBJECTS)
    for i, subject in enumerate(subjects):
        rows = part[part["subject"] == subject].drop_duplicates("attack").set_index("attack").reindex(attacks)
        colour, marker = SUBJECT_COLOURS.get(subject, "#000000"), SUBJECT_MARKERS.get(subject, "o")
        at = np.arange(len(attacks)) + 0.22 * (i - (len(subjects) - 1) / 2)
        points(axis, at, rows, color=colour, marker=marker, label=SUBJECT_LABELS.get(subject, subject))
    name_rows(axis, attacks)


def utility(table: pd.DataFrame, xlabel: str = "utility on clean inputs") -> Figure:
    """Utility of base, clean-tuned and poisoned model on clean inputs, one panel per poison rate.

    table: rows of one utility metric in the clean condition.
    """
    shown = table[table["value"].notna()]
    if shown.empty:
        return nothing("No utility was measured for these cells.")
    attacks, rates = _attacks(shown), sorted(shown["poison_rate"].unique(), reverse=True)
    width = 4.2 if len(rates) > 1 else 6.4
    figure, axes = new_figure(len(rates), width, 0.5 * len(attacks) + 1.6, sharey=True, sharex=True)
    for axis, rate in zip(axes, rates, strict=True):
        _subjects(axis, shown[shown["poison_rate"] == rate], attacks)
        axis.set(title=f"poison rate {percent(rate)}", xlabel=xlabel)
    legend_below(figure, axes[0])
    return figure


def subjects(table: pd.DataFrame) -> Figure:
    """The same success test on base, clean-tuned and poisoned model, one panel per condition.

    table: rows of one metric at one poison rate.
    """
    shown = table[table["value"].notna()]
    if shown.empty:
        return nothing("No success rate was measured for these cells.")
    attacks, conditions = _attacks(shown), in_order(shown["condition"], CONDITIONS)
    width = 2.6 if len(conditions) > 1 else 6.4
    figure, axes = new_figure(len(conditions), width, 0.5 * len(attacks) + 1.6, sharey=True)
    for axis, condition in zip(axes, conditions, strict=True):
        _subjects(axis, shown[shown["condition"] == condition], attacks)
        axis.set(title=CONDITION_LABELS.get(condition, condition), xlabel="success rate")
        axis.set(xlim=(-0.04, 1.04), xticks=[0, 0.5, 1.0])
    legend_below(figure, axes[0])
    return figure


def legend_below(figure: Figure, axis: Axes, columns: int | None = None) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns or len(labels), frameon=False)


def success_map(axis: Axes, grid: pd.DataFrame, missing: str = "n/a", bar: bool = True) -> None:
    """A heat map of success rates, its columns named aslant; what is missing is grey and says so, never zero."""
    text = grid.map(lambda value: "" if pd.isna(value) else f"{value:.2f}").to_numpy()
    axis.set_facecolor(NOT_AVAILABLE)
    sns.heatmap(
        grid, ax=axis, vmin=0, vmax=1, cmap="mako_r", annot=text, fmt="", linewidths=1, linecolor="white",
        annot_kws={"fontsize": 8.5}, cbar=bar, cbar_kws={"label": ASR, "shrink": 0.7},
    )  # fmt: skip
    # seaborn leaves masked fields without text: a reader must see that they are not zeros
    for row, column in zip(*np.where(grid.isna().to_numpy()), strict=True):
        axis.text(column + 0.5, row + 0.5, missing, ha="center", va="center", color="#555555", fontsize=7.5)
    axis.grid(False)
    axis.set(xlabel="", ylabel="")
    axis.tick_params(length=0)
    axis.set_yticks(np.arange(len(grid)) + 0.5, list(grid.index), rotation=0)
    axis.set_xticks(np.arange(grid.shape[1]) + 0.5, list(grid.columns), rotation=45, ha="right", rotation_mode="anchor")
