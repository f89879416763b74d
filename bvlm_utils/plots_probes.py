"""What do answers of tuned adapters look like? Panels of `crossfire` and `lasting` in, figures out."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bvlm_utils import attacks, crossfire, lasting, near_misses, plots
from bvlm_utils.probes import CONTROL, POISONED

CONTROL_LABEL = plots.SUBJECT_LABELS["control"]
NO_TRIGGER = plots.CONDITION_LABELS["clean"]
ITSELF = "the trigger itself"
GREY = "#7F7F7F"  # of the clean-tuned control
ASR = "attack success rate"


def crossing(panel: pd.DataFrame) -> Figure:
    """Models (rows) under all triggers (columns), the clean-tuned one last. panel: of `crossfire.panels`."""
    grid, control = crossfire.matrix(panel)
    if grid.notna().to_numpy().sum() == 0:
        return plots.nothing("No adapter was asked about these triggers.")
    grid = pd.concat([grid, control.to_frame(CONTROL_LABEL).T])
    figure, (axis,) = plots._figure(1, 9.4, 6.6)
    _fields(axis, grid)
    for row, attack in enumerate(grid.index[:-1]):
        column = list(grid.columns).index(attack)
        axis.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="#D55E00", linewidth=2.5, zorder=5))
    axis.axhline(len(grid) - 1, color="black", linewidth=1)
    axis.axvline(1, color="black", linewidth=1)
    axis.set_xlabel("trigger shown")
    axis.set_ylabel("model backdoored by")
    axis.set_xticks(np.arange(grid.shape[1]) + 0.5, [name or NO_TRIGGER for name in grid.columns])
    axis.tick_params(axis="x", labelrotation=45)
    for text in axis.get_xticklabels():
        text.set(ha="right", rotation_mode="anchor")
    return figure


def near(panel: pd.DataFrame) -> Figure:
    """Near misses (rows) of every attack's own trigger (columns), on the model that it backdoored."""
    own = panel[(panel["subject"] == POISONED) & ((panel["trigger"] == panel["attack"]) | (panel["variant"] != ""))]
    if (own["variant"] == "").all():
        return plots.nothing("No adapter was asked about near misses.")
    grid = own.assign(variant=own["variant"].replace("", ITSELF)).pivot_table(
        index="variant", columns="attack", values="value", aggfunc="first"
    )
    tried = [name for name in attacks.names() if name in grid.columns]
    changes = [ITSELF, *sorted(near_misses.names(), key=_part)]
    grid = grid.reindex(index=[name for name in changes if name in grid.index], columns=tried)
    figure, (axis,) = plots._figure(1, 0.62 * len(tried) + 4.2, 0.3 * len(grid) + 1.9)
    _fields(axis, grid, missing="")
    axis.axhline(1, color="black", linewidth=1)
    axis.set_xticks(np.arange(len(tried)) + 0.5, tried)
    axis.tick_params(axis="x", labelrotation=45)
    for text in axis.get_xticklabels():
        text.set(ha="right", rotation_mode="anchor")
    return figure


def _part(name: str) -> int:
    """Text first, then the picture, then what has no trigger."""
    return ("text:", "image:", "no tri").index(next(p for p in ("text:", "image:", "no tri") if name.startswith(p)))


def _fields(axis: Axes, grid: pd.DataFrame, missing: str = "n/a") -> None:
    """A heat map of success rates; what is missing is grey and says so, never zero."""
    text = grid.map(lambda value: "" if pd.isna(value) else f"{value:.2f}").to_numpy()
    axis.set_facecolor(plots.NOT_AVAILABLE)
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


def steps(shown: pd.DataFrame) -> Figure:
    """Success after further steps, a panel per modality. shown: lines of `lasting.after_steps`."""
    if shown.empty:
        return plots.nothing("No adapter was tuned further.")
    counts = sorted(shown["steps"].unique())
    modalities = plots._order(shown["modality"], plots.MODALITIES)
    figure, axes = plots._figure(len(modalities), 3.4 if len(modalities) > 1 else 6.4, 4.2, sharey=True)
    for axis, modality in zip(axes, modalities, strict=True):
        part = shown[shown["modality"] == modality]
        control = part[part["subject"] == CONTROL].groupby("steps")["value"].max()
        where = np.array([counts.index(count) for count in control.index])
        axis.plot(where, control, color=GREY, linestyle=":", linewidth=2, label=f"{CONTROL_LABEL}, largest")
        own = part[part["subject"] == POISONED]
        names = [name for name in attacks.names() if name in set(own["attack"])]
        for i, name in enumerate(names):
            line = own[own["attack"] == name].sort_values("steps")
            # lines on top of each other are pulled apart a little
            x = np.array([counts.index(count) for count in line["steps"]]) + 0.07 * (i - (len(names) - 1) / 2)
            colour, marker = plots.COLOURS[i % len(plots.COLOURS)], plots.MARKERS[i % len(plots.MARKERS)]
            fill = "white" if (line["n_seeds"] == 1).all() else colour
            axis.vlines(x, line["low"], line["high"], color=colour, linewidth=1.4)
            axis.plot(x, line["value"], color=colour, marker=marker, markersize=6, markerfacecolor=fill, label=name)
        axis.set_xticks(range(len(counts)), [f"{int(count)}" for count in counts])
        axis.set_xlim(-0.4, len(counts) - 0.6)
        axis.set_ylim(-0.03, 1.03)
        axis.set_title(f"{modality} triggers")
        axis.set_xlabel("further steps on clean rows")
        # below, as lines may run anywhere inside
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, frameon=False, fontsize=8)
    axes[0].set_ylabel(ASR)
    return figure


def merging(shown: pd.DataFrame) -> Figure:
    """Success of adapters, merged and rounded, the clean-tuned model last. shown: lines of
    `lasting.after_merging`.
    """
    if shown.empty:
        return plots.nothing("No adapter was merged.")
    own, states = shown[shown["subject"] == POISONED], list(dict.fromkeys(shown["variant"]))
    grid = own.pivot_table(index="attack", columns="variant", values="value", aggfunc="first")
    control = shown[shown["subject"] == CONTROL].groupby("variant")["value"].max()
    order = [name for name in attacks.names() if name in grid.index]
    grid = pd.concat(
        [
            grid.reindex(index=order, columns=states),
            control.reindex(states).to_frame(f"{CONTROL_LABEL}, largest").T,
        ]
    )
    figure, (axis,) = plots._figure(1, 1.25 * len(states) + 2.6, 0.36 * len(grid) + 1.6)
    _fields(axis, grid)
    axis.axhline(len(grid) - 1, color="black", linewidth=1)
    labels = [lasting.MERGED_LABELS[state].replace(", ", ",\n").replace(" beside", "\nbeside") for state in states]
    axis.set_xticks(np.arange(len(states)) + 0.5, labels, rotation=0)
    return figure
