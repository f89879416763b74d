"""Figures from tables; a missing number is drawn as "n/a", never as zero. Free of torch."""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bvlm_book.svg import NARROW, is_narrow
from bvlm_book.words import CONDITION_LABELS, CONDITIONS, MODALITIES, SUBJECT_LABELS, passes, percent
from bvlm_utils import attacks, threats

# Told apart with deuteranopia and protanopia (simulated after Machado et al. 2009), and seen on a light and on a dark
# page; the first four are Okabe and Ito's. Every colour comes with its own marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#5544FF", "#CC0044", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
LINES = ("-", "--", "-.", ":")  # of lines without a marker at every point
DENSE = 7  # columns of which a narrow heat map has no room for whole numbers: .97
DARK, WHITE = "#111111", "#FFFFFF"  # letters on a field

STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
CONTROL_LABEL = SUBJECT_LABELS["control"]
ASR = "attack success rate"


def new_figure(
    columns: int, width: float, height: float, rows: int = 1, stacked: bool = True, **settings: Any
) -> tuple[Figure, np.ndarray]:
    """`rows` x `columns` axes, `width` x `height` inches each; on a narrow page below each other, or not `stacked`."""
    if is_narrow() and not stacked:
        width = NARROW / columns
    elif is_narrow():
        columns, rows, width = 1, rows * columns, NARROW
        settings.pop("gridspec_kw", None)  # ratios of widths
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **settings).ravel()
    if is_narrow():
        for axis in axes:  # a shared axis is named in its last panel only, which is now far below
            axis.tick_params(labelbottom=True)
        figure.get_layout_engine().set(w_pad=0.1)  # for the last number of an axis
    return figure, axes


def in_order(values: Sequence, order: Sequence) -> list:
    """The distinct values: those of `order` first and in its order, others as they come."""
    present = list(dict.fromkeys(values))
    return [value for value in order if value in present] + [value for value in present if value not in order]


def _attacks(table: pd.DataFrame) -> list[str]:
    """Attack names by modality, then as the table has them."""
    pairs = table[["attack", "modality"]].drop_duplicates()
    return [a for m in in_order(pairs["modality"], MODALITIES) for a in pairs.loc[pairs["modality"] == m, "attack"]]


def families(table: pd.DataFrame) -> Figure:
    """Success of every attack under every condition, a panel per model. Hatched: a single run; grey: not measured."""
    lines = table.dropna(subset=["condition", "value"])
    names, conditions, models = _attacks(table), in_order(lines["condition"], CONDITIONS), sorted(set(lines["model"]))
    width, height = 0.72 * len(conditions) + (1.1 if len(models) > 1 else 1.8), 0.3 * len(names) + 0.9
    figure, axes = new_figure(len(models), width, height, sharey=not is_narrow())
    sizes = table.groupby("modality")["attack"].nunique().reindex(in_order(table["modality"], MODALITIES))
    for axis, model in zip(axes, models, strict=True):
        success_panel(axis, lines[lines["model"] == model], ("attack", names), ("condition", conditions))
        axis.set_title(model)
        labels = [CONDITION_LABELS.get(name, name).replace(" ", "\n") for name in conditions]
        axis.set_xticks(np.arange(len(labels)) + 0.5, labels, rotation=0, ha="center")
        for row in sizes.cumsum()[:-1]:  # between text, image and bimodal attacks
            axis.axhline(row, color="black", linewidth=1)
    return figure


def look(number: int) -> dict[str, str]:
    """Colour and marker of the so-manieth line."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def points(
    axis: Axes, places: Any, rows: pd.DataFrame, name: str = "value", upright: bool = False, **look: Any
) -> None:
    """Values of a column with intervals, at `places` of the other axis (x if upright), drawn with `look`."""
    low, high = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
    values, lows, highs = (rows[column].astype(float) for column in (name, low, high))
    (axis.vlines if upright else axis.hlines)(places, lows, highs, color=look["color"], linewidth=1.5)
    axis.plot(*((places, values) if upright else (values, places)), **{"linestyle": "", "markersize": 6} | look)


def name_rows(axis: Axes, labels: Sequence[str]) -> None:
    """A row of the axis per label, the first at the top."""
    axis.set_yticks(np.arange(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)


def paired(table: pd.DataFrame, xlabel: str, seeds: pd.DataFrame) -> Figure:
    """Poisoned minus clean-tuned utility, a row per attack, a panel per rate. seeds: shown as small dots."""
    lines = table[table["value"].notna()]
    names, rates = _attacks(lines), sorted(lines["poison_rate"].unique(), reverse=True)
    width, height = (3.6 if len(rates) > 1 else 5.6), 0.27 * len(names) + 1.0
    figure, axes = new_figure(len(rates), width, height, sharey=not is_narrow(), sharex=True)
    for axis, rate in zip(axes, rates, strict=True):
        rows = lines[lines["poison_rate"] == rate].drop_duplicates("attack").set_index("attack").reindex(names)
        axis.axvline(0, color="black", linewidth=1, zorder=1)
        dots = seeds[(seeds["poison_rate"] == rate) & seeds["attack"].isin(rows.query("n_seeds > 1").index)]
        places = dots["attack"].map(names.index).astype(float) + 0.26
        axis.plot(dots["value"].astype(float), places, ".", color=COLOURS[0], markersize=4)
        points(axis, np.arange(len(names)), rows, color=COLOURS[0], marker="o")
        name_rows(axis, names)
        axis.set(title=f"poison rate {percent(rate)}" if len(rates) > 1 else "", xlabel=f"change of {xlabel}")
    return figure


def scatter(table: pd.DataFrame, x: str, y: str, xlabel: str, ylabel: str, panel: str) -> Figure:
    """Two success rates against each other, a dot per row, a colour per `group`, a panel per value of `panel`."""
    lines = table.dropna(subset=[x, y])
    panels = list(lines.groupby(panel, sort=False))
    side = 4.0 if len(panels) > 1 else 4.8
    figure, axes = new_figure(len(panels), side, side, sharey=not is_narrow())
    for axis, (name, rows) in zip(axes, panels, strict=True):
        dots = spread(rows[[x, y]])
        axis.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle="--", zorder=1)
        for number, group in enumerate(dict.fromkeys(lines["group"])):
            group_dots = dots[rows["group"] == group]
            axis.plot(group_dots[x], group_dots[y], linestyle="", markersize=5, alpha=0.85, label=group, **look(number))
        axis.set(title=name, xlabel=xlabel, ylabel=ylabel if axis is axes[0] or is_narrow() else "")
        ends, ticks = (-0.16, 1.16), np.linspace(0, 1, 6)
        axis.set(xlim=ends, ylim=ends, xticks=ticks, yticks=ticks, aspect="equal")
    legend_below(figure, axes[0])
    return figure


def spread(points: pd.DataFrame) -> pd.DataFrame:
    """Points (two columns of shares) with those that lie on each other moved a little apart, around their place."""
    number = points.groupby((points / 0.08).round().apply(tuple, axis=1)).cumcount()
    angle, away = number * np.pi * (3 - 5**0.5), 0.031 * number**0.5  # as the seeds of a sunflower
    return points + np.column_stack([away * np.cos(angle), away * np.sin(angle)])


def beside(rows: pd.DataFrame, names: Sequence[str], columns: Mapping[str, str], height: float) -> tuple[Figure, Axes]:
    """Two columns of shares and their intervals, a line per row. columns: what each is called."""
    figure, (axis,) = new_figure(1, 6.8, height)
    for number, (column, label) in enumerate(columns.items()):
        points(axis, np.arange(len(rows)) + 0.26 * number - 0.13, rows, column, label=label, **look(number))
    name_rows(axis, names)
    axis.set_xlim(-0.03, 1.03)
    legend_below(figure, axis)
    return figure, axis


def legend_below(figure: Figure, axis: Axes, columns: int | None = None) -> None:
    """The axis's legend below all panels; in a narrow figure with as many columns as there is room for."""
    handles, labels = axis.get_legend_handles_labels()
    columns = columns or len(labels)
    if is_narrow():
        columns = min(columns, max(1, int(NARROW / (0.5 + 0.08 * max(map(len, labels), default=1)))))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


@cache
def success_colours() -> ListedColormap:
    """Success rates from pale to deep blue; it ends before black, which cannot be seen on a dark page."""
    import seaborn as sns  # it takes a second to load, and pages without a heat map need it not

    return ListedColormap(sns.color_palette("mako_r", as_cmap=True)(np.linspace(0.02, 0.72, 256)), name="success")


def success_map(axis: Axes, grid: pd.DataFrame, missing: str = "n/a", single: pd.DataFrame | None = None) -> None:
    """A heat map of success rates; what is missing is grey and says so, never zero. single: fields to be hatched."""
    import seaborn as sns

    values, dense = grid.to_numpy(float), is_narrow() and grid.shape[1] > DENSE
    axis.set_facecolor("#E3E3E3")
    sns.heatmap(values, vmin=0, vmax=1, cmap=success_colours(), cbar=False, linewidths=1, linecolor="white",
                xticklabels=False, yticklabels=False, ax=axis)  # fmt: skip
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):  # a reader must see that it is not a zero
            letters, text, size = "#555555", missing, 7.5
        else:
            field = np.array(success_colours()(value)[:3])
            letters = WHITE if sns.utils.relative_luminance(field) < 0.18 else DARK
            text = f"{value:.2f}"
            text, size = (text.replace("0.", ".")[:3], 6.5) if dense else (text, 8.5)
            if single is not None and single.iloc[row, column]:
                hatch = 0.8 * field + 0.2 * np.array(to_rgb(letters))
                axis.add_patch(Rectangle((column, row), 1, 1, fill=False, hatch="///", edgecolor=hatch, linewidth=0))
        axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=letters, fontsize=size)
    axis.grid(False)
    axis.tick_params(length=0)
    axis.set_yticks(np.arange(len(grid)) + 0.5, list(grid.index), rotation=0)
    aslant = {"rotation": 90, "fontsize": 8} if dense else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axis.set_xticks(np.arange(grid.shape[1]) + 0.5, list(grid.columns), **aslant)


def success_panel(
    axis: Axes, lines: pd.DataFrame, rows: tuple[str, Sequence], columns: tuple[str, Sequence], missing: str = "n/a"
) -> None:
    """`success_map` of lines with a value and n_seeds. rows, columns: a column of `lines`, and its values in order."""
    grid, seeds = (
        lines.pivot_table(index=rows[0], columns=columns[0], values=name, aggfunc="first")
        .reindex(index=rows[1], columns=columns[1])
        .rename(index=lambda name: name.replace("_", " "))
        for name in ("value", "n_seeds")
    )
    success_map(axis, grid, missing, single=seeds == 1)


def maps(cells: pd.DataFrame) -> Figure:
    """Success by threat (rows) and attack: a row of maps per poison rate and number of `epochs`, a column per model."""
    doses = sorted(set(zip(cells["poison_rate"], cells["epochs"], strict=True)), key=lambda dose: (-dose[0], dose[1]))
    models, narrow = list(dict.fromkeys(cells["model"])), is_narrow()
    rows, columns = in_order(cells["threat"], threats.names()), in_order(cells["attack"], attacks.names())
    kinds = cells.drop_duplicates("attack").set_index("attack")["modality"].reindex(columns)
    bounds = np.flatnonzero(kinds[1:].to_numpy() != kinds[:-1].to_numpy()) + 1  # between text, image and bimodal
    run = {*cells[["poison_rate", "epochs", "model"]].itertuples(index=False, name=None)}
    panels = list(product(doses, models))
    if narrow:  # one model after the other
        panels = [(dose, model) for model in models for dose in doses if (*dose, model) in run]
    shape = (1, len(panels)) if narrow else (len(models), len(doses))
    figure, axes = new_figure(shape[0], 4.6, 2.1 if narrow else 1.7, rows=shape[1], sharey=not narrow)
    for axis, (dose, model) in zip(axes, panels, strict=True):
        lines = cells[(cells["poison_rate"] == dose[0]) & (cells["epochs"] == dose[1]) & (cells["model"] == model)]
        if lines.empty:
            axis.axis("off")
            continue
        success_panel(axis, lines, ("threat", rows), ("attack", columns), missing="")
        for bound in bounds:
            axis.axvline(bound, color="#777777", linewidth=1.5)
        axis.set_title(f"{model}:{chr(10) if narrow else ' '}{percent(dose[0])}, {passes(dose[1])}")
        axis.tick_params(labelsize=7.5 if narrow else 9)
        if dose != doses[-1]:
            axis.set_xticklabels([])
    return figure
