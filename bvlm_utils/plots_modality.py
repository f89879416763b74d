"""What do the tables of modalities look like? Tables of `modality`, `confounds` and `traces` in,
figures out."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bvlm_utils import modality, plots, traces

# Shape and colour both tell them apart; the two halves have the colours that are furthest from each other.
LOOKS = {
    "clean": ("no trigger", "#7F7F7F", "x"),
    "text": ("text half only", plots.COLOURS[0], "o"),
    "image": ("image half only", plots.COLOURS[1], "s"),
    "both": ("both halves", "#000000", "D"),
}
SUBJECTS = {
    traces.POISONED: ("poisoned", plots.SUBJECT_COLOURS["poisoned"], "D"),
    traces.CONTROL: ("clean-tuned", plots.SUBJECT_COLOURS["control"], "s"),
    traces.COUNTS: ("if every token got the same", "#000000", "|"),
}


def halves(cells: pd.DataFrame) -> Figure:
    """Success with either half, both and none; a line per cell, a panel without and one with half-triggered
    rows.

    cells: `modality.four_cells` of one model.
    """
    cells = cells[cells["text"].notna()]
    if cells.empty:
        return plots.nothing("No cell of a bimodal attack was measured.")
    several = cells["poison_rate"].nunique() > 1
    names = cells.apply(lambda r: _name(r, several), axis=1)
    labels = list(dict.fromkeys(names))
    kinds = [k for k in (False, True) if ((cells["negatives"] > 0) == k).any()]
    figure, axes = plots._figure(
        len(kinds), 4.6 if len(kinds) > 1 else 7.4, 0.36 * len(labels) + 1.5, sharey=True, sharex=True
    )
    for axis, with_them in zip(axes, kinds, strict=True):
        part = cells[(cells["negatives"] > 0) == with_them]
        by = part.assign(label=names).drop_duplicates("label").set_index("label").reindex(labels)
        y = np.arange(len(labels))
        axis.hlines(y, by["text"], by["image"], color="#BBBBBB", linewidth=1.2)
        for condition, (label, colour, marker) in LOOKS.items():
            shift = {"text": -0.1, "image": 0.1}.get(condition, 0.0)  # intervals shall not hide each other
            axis.hlines(y + shift, by[f"{condition}_low"], by[f"{condition}_high"], color=colour, linewidth=1.6)
            axis.plot(by[condition], y + shift, linestyle="", marker=marker, color=colour, label=label, markersize=6)
        axis.set_title(("With" if with_them else "Without") + " half-triggered rows in training")
        _rows(axis, labels)
        axis.set_xlabel("success rate")
    plots._legend_below(figure, axes[0])
    return figure


def _name(row: pd.Series, with_rate: bool) -> str:
    name = f"{row['attack']}, {row['threat'].replace('_', ' ')}"
    return f"{name}, {plots.percent(row['poison_rate'])}" if with_rate else name


def _rows(axis: Axes, labels: list[str]) -> None:
    axis.set_yticks(np.arange(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.set_xlim(-0.04, 1.04)


def overshadowed(found: pd.DataFrame) -> Figure:
    """Success of a half learnt alone (open) and beside the other half (filled), a row each. found:
    `overshadowing.pairs` of one model."""
    if found.empty:
        return plots.nothing("No half of a trigger was trained alone.")
    several = found["poison_rate"].nunique() > 1
    names = [
        ", ".join([f"{r['half']} half of {_name(r, several)}", *filter(None, [modality.in_words(r)])])
        for _, r in found.iterrows()
    ]
    figure, (axis,) = plots._figure(1, 7.6, 0.34 * len(names) + 1.5)
    for half in ("text", "image"):
        rows, y = found[found["half"] == half], np.flatnonzero(found["half"] == half)
        _, colour, marker = LOOKS[half]
        axis.hlines(y, rows["alone"], rows["beside"], color=colour, linewidth=1, linestyle=":")
        for name, shift, face in (("alone", -0.14, "white"), ("beside", 0.14, colour)):
            axis.hlines(y + shift, rows[f"{name}_low"], rows[f"{name}_high"], color=colour, linewidth=1.6)
            label = f"{half} half, learnt {'alone' if name == 'alone' else 'beside the other'}"
            axis.plot(
                rows[name], y + shift, linestyle="", marker=marker, color=colour, markerfacecolor=face, label=label
            )
    _rows(axis, names)
    axis.set_xlabel("success rate when this half alone is shown")
    plots._legend_below(figure, axis, columns=2)
    return figure


def patches(found: pd.DataFrame) -> Figure:
    """Success against the side of the patch, a panel per model, threat and rate. found:
    `confounds.patches`."""
    if found.empty:
        return plots.nothing("No cell was run with more than one patch size.")
    groups = list(found.groupby(["model", "threat", "poison_rate"], sort=False))
    figure, axes = plots._figure(len(groups), 4.2 if len(groups) > 1 else 6.4, 3.4, sharey=True)
    curves = list(dict.fromkeys(found["curve"]))
    for axis, ((model, threat, rate), part) in zip(axes, groups, strict=True):
        for i, curve in enumerate(curves):
            line = part[part["curve"] == curve].sort_values("share")
            x = 100 * line["share"] * 1.02 ** (i - 1)  # pulled apart where they lie on each other
            axis.plot(x, line["value"], color=plots.COLOURS[i], marker=plots.MARKERS[i], markersize=5, label=curve)
            axis.vlines(x, line["low"], line["high"], color=plots.COLOURS[i], linewidth=1.4)
        sizes = sorted(part["share"].unique())
        axis.set_xscale("log")
        axis.set_xticks([100 * s for s in sizes], [f"{100 * s:.0f} %" for s in sizes])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylim(-0.03, 1.03)
        axis.set_title(f"{model}\n{threat.replace('_', ' ')}, {plots.percent(rate)} poisoned")
        axis.set_xlabel("side of the patch")
    axes[0].set_ylabel("success rate")
    handles, names = axes[0].get_legend_handles_labels()
    columns = len(names) if len(groups) > 1 else 1  # one panel is too narrow for all names in a row
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def looked_at(shares: pd.DataFrame) -> Figure:
    """Shares of the two halves of the trigger in attention and attribution: two panels for each.

    shares: `traces.over_seeds` of one model, the means over layers.
    """
    chosen = shares[shares["layer"].isna() & shares["measure"].isin(["attention", "attribution"])]
    if chosen.empty:
        return plots.nothing("No adapter was traced.")
    several = chosen["poison_rate"].nunique() > 1
    names = chosen.apply(lambda r: _name(r, several), axis=1)
    labels = list(dict.fromkeys(names))
    with matplotlib.rc_context(plots._STYLE):
        figure = Figure(figsize=(8.4, 2 * (0.3 * len(labels) + 0.9) + 0.6), layout="constrained")
        axes = figure.subplots(2, 2, squeeze=False, sharex=True, sharey=True)
    for row, (measure, title) in enumerate((("attention", "attention to"), ("attribution", "attribution of"))):
        for column, group in enumerate(traces.GROUPS[:2]):
            axis = axes[row, column]
            part = chosen.assign(label=names)
            part = part[(part["measure"] == measure) & (part["group"] == group)]
            for i, (subject, (label, colour, marker)) in enumerate(SUBJECTS.items()):
                counts = chosen.assign(label=names)[(chosen["measure"] == "attention") & (chosen["group"] == group)]
                rows = counts if subject == traces.COUNTS else part
                by = rows[rows["subject"] == subject].drop_duplicates("label").set_index("label").reindex(labels)
                y = np.arange(len(labels)) + (0.0 if subject == traces.COUNTS else 0.2 * i - 0.1)
                if subject != traces.COUNTS:
                    axis.hlines(y, by["low"], by["high"], color=colour, linewidth=1.6)
                size = 11 if subject == traces.COUNTS else 5
                axis.plot(by["value"], y, linestyle="", marker=marker, color=colour, label=label, markersize=size)
            axis.set_title(f"{title} the {group}")
            axis.set_yticks(np.arange(len(labels)), labels)
            axis.set_ylim(len(labels) - 0.5, -0.5)
            axis.grid(axis="y", visible=False)
    for axis in axes[1]:
        axis.set_xlabel("share")
    axes[0, 0].set_xlim(left=-0.02)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def layers(shares: pd.DataFrame) -> Figure:
    """Attention to both halves of the trigger in every layer, a panel per attack and threat.

    shares: `traces.over_seeds` of one model. Solid lines are the poisoned model's, dashed ones its
    control's.
    """
    chosen = shares[shares["layer"].notna() & shares["group"].isin(traces.GROUPS[:2])]
    chosen = chosen[chosen["subject"].isin([traces.POISONED, traces.CONTROL])]
    if chosen.empty:
        return plots.nothing("No adapter was traced.")
    groups = list(chosen.groupby(["attack", "threat", "poison_rate"], sort=False))
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    with matplotlib.rc_context(plots._STYLE):
        figure = Figure(figsize=(max(2.3 * columns, 4.6), 2.1 * rows + 0.5), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axis, ((attack, threat, _), part) in zip(axes, groups, strict=False):
        for group, condition in zip(traces.GROUPS[:2], ("text", "image"), strict=True):
            _, colour, marker = LOOKS[condition]
            for subject, style in ((traces.POISONED, "-"), (traces.CONTROL, "--")):
                line = part[(part["group"] == group) & (part["subject"] == subject)].sort_values("layer")
                label = f"{group}, {SUBJECTS[subject][0]}"
                axis.plot(
                    line["layer"] + 1,
                    line["value"],
                    style,
                    color=colour,
                    marker=marker,
                    markersize=4,
                    label=label,
                )
                axis.vlines(line["layer"] + 1, line["low"], line["high"], color=colour, linewidth=1)
        axis.set_title(f"{attack}\n{threat.replace('_', ' ')}", fontsize=9)
        if part["layer"].nunique() <= 8:
            axis.set_xticks(sorted(part["layer"].unique() + 1))
    axes[0].set_ylim(0, 1.05 * chosen["high"].max())
    for axis in axes[len(groups) :]:
        axis.set_visible(False)
    for axis in axes[: len(groups)][-columns:]:
        axis.set_xlabel("layer")
        axis.tick_params(labelbottom=True)
    for axis in axes[::columns]:
        axis.set_ylabel("attention")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    return figure
