"""What does a result look like? Tidy table in, figure out; called by the notebooks, free of torch.

Every function takes a table of `tables.summary` (one row per model, attack, rate, subject, condition and
metric, with `value`, `low`, `high`) or pictures, and returns a matplotlib Figure. Nothing is measured or
tested here: a number that a figure shows is a number of the table. A missing value is drawn as "n/a", never
as zero.
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bvlm_book import words
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
CONTROL_LABEL = words.SUBJECT_LABELS["control"]

ASR = "attack success rate"


def new_figure(columns: int, width: float, height: float, **settings) -> tuple[Figure, np.ndarray]:
    """A row of `columns` axes, each `width` x `height` inches; the figure is not registered with pyplot."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False, **settings)[0]
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

    table: rows of one metric and one subject. Darker is higher; a grey field is a condition that the attack
    does not have, or a cell that was not run.
    """
    shown = table[table["condition"].notna() & table["value"].notna()]
    if shown.empty:
        return nothing("No success rate was measured for these cells.")
    attacks, rates = _attacks(table), sorted(table["poison_rate"].unique(), reverse=True)
    conditions = in_order(shown["condition"], CONDITIONS)
    width = 1.15 * len(conditions) + (1.6 if len(rates) > 1 else 2.4)
    figure, axes = new_figure(len(rates), width, 0.42 * len(attacks) + 1.5, sharey=True)
    for axis, rate in zip(axes, rates, strict=True):
        grid = (
            shown[shown["poison_rate"] == rate]
            .pivot_table(index="attack", columns="condition", values="value", aggfunc="first")
            .reindex(index=attacks, columns=conditions)
        )
        text = grid.map(lambda v: "n/a" if pd.isna(v) else f"{v:.2f}").to_numpy()
        axis.set_facecolor(NOT_AVAILABLE)
        sns.heatmap(
            grid,
            ax=axis,
            vmin=0,
            vmax=1,
            cmap="mako_r",
            annot=text,
            fmt="",
            linewidths=1.5,
            linecolor="white",
            cbar=axis is axes[-1],
            cbar_kws={"label": "attack success rate"},
        )
        # seaborn leaves masked fields without text: a reader must see that they are not zeros
        for row, column in zip(*np.where(grid.isna().to_numpy()), strict=True):
            axis.text(column + 0.5, row + 0.5, "n/a", ha="center", va="center", color="#555555", fontsize=9)
        axis.grid(False)
        axis.set_title(f"poison rate {percent(rate)}")
        axis.set(xlabel="", ylabel="")
        axis.tick_params(length=0)
        axis.set_xticklabels([CONDITION_LABELS.get(c, c).replace(" ", "\n") for c in conditions], rotation=0)
        axis.set_yticks(np.arange(len(attacks)) + 0.5, attacks, rotation=0)
    return figure


def dose(table: pd.DataFrame, ylabel: str = "attack success rate") -> Figure:
    """Success rate against the number of poisoned rows, one panel per modality, one line per attack.

    table: rows of one metric and one subject under the full trigger, with `n_poisoned`, `low`, `high`.
    """
    shown = table[table["value"].notna() & (table["n_poisoned"] > 0)]
    if shown.empty:
        return nothing("No success rate under the full trigger was measured for these cells.")
    modalities = in_order(shown["modality"], MODALITIES)
    figure, axes = new_figure(len(modalities), 3.4, 4.2, sharey=True)
    counts = sorted(shown["n_poisoned"].unique())
    rates = shown.drop_duplicates("n_poisoned").set_index("n_poisoned")["poison_rate"]
    for axis, modality in zip(axes, modalities, strict=True):
        part = shown[shown["modality"] == modality]
        names = list(dict.fromkeys(part["attack"]))
        for i, name in enumerate(names):
            line = part[part["attack"] == name].sort_values("n_poisoned")
            # lines on top of each other are pulled apart by 3 % of the (logarithmic) axis
            x = line["n_poisoned"].to_numpy(float) * 1.03 ** (i - (len(names) - 1) / 2)
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            axis.plot(x, line["value"], color=colour, marker=marker, markersize=5, label=name)
            axis.vlines(x, line["low"], line["high"], color=colour, linewidth=1.4)
        axis.set_xscale("log")
        axis.set_xlim(min(counts) / 1.5, max(counts) * 1.5)
        axis.set_xticks(counts, [f"{int(c)}\n{percent(rates[c])}" for c in counts])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylim(-0.03, 1.03)
        axis.set_title(f"{modality} triggers")
        axis.set_xlabel("poisoned rows (rate)")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=2)
    axes[0].set_ylabel(ylabel)
    figure.get_layout_engine().set(h_pad=0.12)  # legends below the axes, as lines go anywhere in them
    return figure


def _dots(axis: Axes, part: pd.DataFrame, labels: list[str], key: str) -> None:
    """Points with intervals: one line of the axis per label, the subjects slightly above each other."""
    subjects = in_order(part["subject"], SUBJECTS)
    for j, subject in enumerate(subjects):
        of_subject = part[part["subject"] == subject].drop_duplicates(key).set_index(key).reindex(labels)
        y = np.arange(len(labels)) + 0.22 * (j - (len(subjects) - 1) / 2)
        colour = SUBJECT_COLOURS.get(subject, "#000000")
        axis.hlines(y, of_subject["low"].astype(float), of_subject["high"].astype(float), color=colour, linewidth=1.6)
        axis.plot(
            of_subject["value"].astype(float),
            y,
            linestyle="",
            marker=SUBJECT_MARKERS.get(subject, "o"),
            markersize=6,
            color=colour,
            label=SUBJECT_LABELS.get(subject, subject),
        )
    axis.set_yticks(np.arange(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)


def utility(table: pd.DataFrame, xlabel: str = "utility on clean inputs") -> Figure:
    """Utility of base, clean-tuned and poisoned model on clean inputs, one panel per poison rate.

    table: rows of one utility metric in the clean condition.
    """
    shown = table[table["value"].notna()]
    if shown.empty:
        return nothing("No utility was measured for these cells.")
    attacks, rates = _attacks(shown), sorted(shown["poison_rate"].unique(), reverse=True)
    figure, axes = new_figure(
        len(rates), 4.2 if len(rates) > 1 else 6.4, 0.5 * len(attacks) + 1.6, sharey=True, sharex=True
    )
    for axis, rate in zip(axes, rates, strict=True):
        _dots(axis, shown[shown["poison_rate"] == rate], attacks, "attack")
        axis.set_title(f"poison rate {percent(rate)}")
        axis.set_xlabel(xlabel)
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
    figure, axes = new_figure(
        len(conditions), 2.6 if len(conditions) > 1 else 6.4, 0.5 * len(attacks) + 1.6, sharey=True
    )
    for axis, condition in zip(axes, conditions, strict=True):
        _dots(axis, shown[shown["condition"] == condition], attacks, "attack")
        axis.set_title(CONDITION_LABELS.get(condition, condition))
        axis.set_xlim(-0.04, 1.04)
        axis.set_xticks([0, 0.5, 1.0])
        axis.set_xlabel("success rate")
    legend_below(figure, axes[0])
    return figure


def legend_below(figure: Figure, axis: Axes, columns: int | None = None) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns or len(labels), frameon=False)


def success_map(axis: Axes, grid: pd.DataFrame, missing: str = "n/a") -> None:
    """A heat map of success rates; what is missing is grey and says so, never zero."""
    text = grid.map(lambda value: "" if pd.isna(value) else f"{value:.2f}").to_numpy()
    axis.set_facecolor(NOT_AVAILABLE)
    sns.heatmap(
        grid, ax=axis, vmin=0, vmax=1, cmap="mako_r", annot=text, fmt="", linewidths=1, linecolor="white",
        annot_kws={"fontsize": 8.5}, cbar_kws={"label": ASR, "shrink": 0.7},
    )  # fmt: skip
    for row, column in zip(*np.where(grid.isna().to_numpy()), strict=True):
        axis.text(column + 0.5, row + 0.5, missing, ha="center", va="center", color="#555555", fontsize=7.5)
    axis.grid(False)
    axis.set(xlabel="", ylabel="")
    axis.tick_params(length=0)
    axis.set_yticks(np.arange(len(grid)) + 0.5, list(grid.index), rotation=0)
