"""What does success against the number of poisoned rows look like? Tables of `dose` in, figures out; free of
torch.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from bvlm_utils import metrics, plots
from bvlm_utils.dose import GOAL, Fit

# Colour and hatch tell the same, for those who see no colours.
MARKS = {"floor": ("#56B4E9", ".."), "": ("#E3E3E3", ""), "ceiling": ("#D55E00", "//")}
MARK_LABELS = {"floor": "at the floor", "": "between", "ceiling": "at the ceiling"}
CURVE_POINTS = 120


def curves(cells: pd.DataFrame, means: pd.DataFrame, fits: dict[str, Fit | None]) -> Figure:
    """Success rate against poisoned rows (log axis) of one model and threat: a panel per modality, a colour
    per attack.

    cells, means: lines of `dose.cells` and `dose.means`. fits: attack -> curve, or None for points alone.
    """
    shown = means[means["attack"].isin(list(fits))]
    if shown.empty:
        return plots.nothing("None of these pairs was tried.")
    modalities = plots._order(shown["modality"], plots.MODALITIES)
    figure, axes = plots._figure(len(modalities), 3.1 if len(modalities) > 1 else 6.4, 4.1, sharey=True)
    for axis, modality in zip(axes, modalities, strict=True):
        of_panel = shown[shown["modality"] == modality]
        names = list(dict.fromkeys(of_panel["attack"]))
        for i, name in enumerate(names):
            # points on top of each other are pulled apart by 4 % of the (logarithmic) axis
            shift = 1.04 ** (i - (len(names) - 1) / 2)
            style = plots.COLOURS[i % len(plots.COLOURS)], plots.MARKERS[i % len(plots.MARKERS)]
            _points(axis, cells[cells["attack"] == name], of_panel[of_panel["attack"] == name], name, shift, style)
            if fits[name]:
                _curve(axis, fits[name], of_panel[of_panel["attack"] == name], style[0])
        _axes(axis, shown, f"{modality} triggers")
    axes[0].set_ylabel("attack success rate")
    figure.get_layout_engine().set(h_pad=0.12)  # the legends below the axes, as curves go anywhere in them
    return figure


def _points(
    axis: Axes, cells: pd.DataFrame, means: pd.DataFrame, name: str, shift: float, style: tuple[str, str]
) -> None:
    colour, marker = style
    several = cells.groupby("n_poisoned")["seed"].transform("size") > 1
    beside = cells.loc[several, "n_poisoned"] * shift * 1.09  # the mean's interval would cover them
    axis.plot(beside, cells.loc[several, "value"], ".", color=colour, markersize=4.5)
    for single, part in means.groupby(means["n_seeds"] == 1):
        x = part["n_poisoned"] * shift
        axis.vlines(x, part["low"], part["high"], color=colour, linewidth=1.4, alpha=0.6 if single else 1)
        fill = "white" if single else colour
        axis.plot(x, part["value"], linestyle="", marker=marker, markersize=6, color=colour, markerfacecolor=fill)
    face = "white" if (means["n_seeds"] == 1).all() else colour
    line = Line2D([], [], color=colour, marker=marker, markersize=6, markerfacecolor=face, linestyle="", label=name)
    axis.add_line(line)


def _curve(axis: Axes, fit: Fit, means: pd.DataFrame, colour: str) -> None:
    """Drawn between the doses tried, and not beyond; dashed where some dose has a single seed."""
    rows = np.geomspace(means["n_poisoned"].min(), means["n_poisoned"].max(), CURVE_POINTS)
    middle, low, high = fit.curve(rows)
    axis.fill_between(rows, low, high, color=colour, alpha=0.13, linewidth=0)
    axis.plot(rows, middle, color=colour, linewidth=1.6, linestyle="--" if means["n_seeds"].min() == 1 else "-")


def _axes(axis: Axes, shown: pd.DataFrame, title: str) -> None:
    rates = shown.drop_duplicates("n_poisoned").set_index("n_poisoned")["poison_rate"].sort_index()
    axis.axhspan(metrics.CEILING, 1.04, color="#EFEFEF", zorder=0)
    axis.axhspan(-0.04, metrics.FLOOR, color="#EFEFEF", zorder=0)
    axis.axhline(GOAL, color="#777777", linewidth=1, linestyle="--", zorder=1)
    axis.set_xscale("log")
    axis.set_xlim(rates.index.min() / 1.5, rates.index.max() * 1.5)
    axis.set_xticks(rates.index, [f"{int(n)}\n{plots.percent(r)}" for n, r in rates.items()], fontsize=7)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_ylim(-0.04, 1.04)
    axis.set_title(title)
    axis.set_xlabel("poisoned rows (share)")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=2, frameon=False)


def saturation(means: pd.DataFrame) -> Figure:
    """Pairs of attack and threat at the ceiling, between and at the floor: a bar per dose, a panel per model.

    means: lines of `dose.means`.
    """
    if means.empty:
        return plots.nothing("No success rate was measured for these cells.")
    models = list(dict.fromkeys(means["model"]))
    figure, axes = plots._figure(len(models), 4.6 if len(models) > 1 else 6.4, 3.2, sharey=True)
    for axis, model in zip(axes, models, strict=True):
        counts = means[means["model"] == model].groupby(["n_poisoned", "mark"]).size().unstack(fill_value=0)
        rates = means.drop_duplicates("n_poisoned").set_index("n_poisoned")["poison_rate"]
        counts = counts.reindex(columns=list(MARKS), fill_value=0)
        below = np.zeros(len(counts))
        for mark, (colour, hatch) in MARKS.items():
            heights = counts[mark].to_numpy(float)
            axis.bar(range(len(counts)), heights, 0.7, bottom=below, color=colour, hatch=hatch,
                     edgecolor="white", label=MARK_LABELS[mark])  # fmt: skip
            for x, (height, start) in enumerate(zip(heights, below, strict=True)):
                if height:
                    axis.text(x, start + height / 2, f"{int(height)}", ha="center", va="center", fontsize=9,
                              bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2})  # fmt: skip
            below += heights
        axis.set_xticks(range(len(counts)), [f"{int(n)}\n{plots.percent(rates[n])}" for n in counts.index])
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(axis="x", visible=False)
        axis.set(title=model, xlabel="poisoned rows (share)")
    axes[0].set_ylabel("pairs of attack and threat")
    plots._legend_below(figure, axes[0])
    return figure
