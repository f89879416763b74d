"""How many poisoned rows are enough? Points, curves and doses from the tidy table; called by the dose
chapter.

A *pair* is an attack on a threat, for one model and data set; a *dose* is the absolute number of poisoned
rows. `cells` gives one success rate per dose and seed, `means` the mean over seeds, `fit` a logistic curve in
log10(rows), `doses` the fewest rows for a success rate of 90 %: from the curve where the data bear one, and
as a bracket between two doses that were tried. Figures are in `chapters.dose`, words and tables to read in
`chapters.dose`. Free of torch.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from bvlm_book import figures, tables
from bvlm_book import words as wordss
from bvlm_book.dose_curve import GOAL, MIN_DOSES, Fit, fit
from bvlm_utils import paths
from bvlm_utils.score import intervals

MIN_SEEDS = 3  # fewer support no verdict, see `claims`
PAIR = ["model", "dataset", "threat", "attack", "modality"]

OUTSIDE = "the curve reaches 90 % only outside the doses tried"
AGAINST = "the curve disagrees with the bracket"
# Colour and hatch tell the same, for those who see no colours.
MARKS = {"floor": ("#56B4E9", ".."), "": ("#E3E3E3", ""), "ceiling": ("#D55E00", "//")}
MARK_LABELS = {"floor": "at the floor", "": "between", "ceiling": "at the ceiling"}
CURVE_POINTS = 120


# ---------------------------------------------------------------- the points


def usual(table: pd.DataFrame) -> pd.DataFrame:
    """Finished cells as attacks and threats are defined, per model with the number of training rows that
    most have.

    table: rows of `store.collect`.
    """
    done = tables.usual(table)
    done = done[done["n_poisoned"] > 0]  # a rate of 0 is a control, and has no place on a log axis
    parts = [part[part["train_rows"] == part["train_rows"].mode().iloc[0]] for _, part in done.groupby("model")]
    return pd.concat(parts) if parts else done


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Success of the poisoned models, read as each attack is meant to be: a line per pair and dose, over its
    seeds.

    Columns as in `tables.summary` (one seed: its Wilson interval; several: Student's over the seeds), and
    `mark`.
    """
    rows = tables.headline_rows(tables.success_rates(usual(table), "poisoned"))
    rows = rows.assign(mark=[intervals.mark(value) for value in rows["value"]])
    return rows.sort_values([*PAIR, "n_poisoned"]).reset_index(drop=True)


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """The same, a line per pair, dose and seed: k successes among n inputs, and `train_rows`."""
    done = usual(table)
    parts = [
        tables.headline_rows(tables.success_rates(part, "poisoned")).assign(seed=seed, train_rows=rows)
        for (seed, rows), part in done.groupby(["seed", "train_rows"])
    ]
    found = pd.concat(parts) if parts else means(done).assign(seed=0, train_rows=0)
    return found.sort_values([*PAIR, "n_poisoned", "seed"]).reset_index(drop=True)


# ---------------------------------------------------------------- the curve


def bracket(part: pd.DataFrame, goal: float = GOAL) -> tuple[int | None, int | None]:
    """The largest dose whose mean success is below `goal`, and the smallest at or above it; None where none
    is.

    part: lines of `means` of one pair.
    """
    below = part.loc[part["value"] < goal, "n_poisoned"]
    reached = part.loc[part["value"] >= goal, "n_poisoned"]
    return (int(below.max()) if len(below) else None), (int(reached.min()) if len(reached) else None)


def doses(found: pd.DataFrame, over_seeds: pd.DataFrame) -> pd.DataFrame:
    """Rows for a success rate of `GOAL`: a line per pair.

    found, over_seeds: `cells` and `means` of the same table. Columns: `PAIR`, train_rows, smallest and
    largest dose tried, n_doses, seeds_min, seeds_max, fit, why (no curve), rows, low, high (NaN without a
    curve, or where the curve reaches the goal outside the doses tried or against the bracket), below, reached
    (`bracket`).
    """
    lines, by_pair = [], over_seeds.groupby(PAIR)
    for key, part in found.groupby(PAIR, sort=False):
        of_pair = by_pair.get_group(key)
        curve, why = fit(part)
        smallest, largest = int(part["n_poisoned"].min()), int(part["n_poisoned"].max())
        rows, low, high = curve.dose() if curve else (np.nan, np.nan, np.nan)
        below, reached = bracket(of_pair)
        if curve and not smallest <= rows <= largest:
            why = OUTSIDE
        elif curve and (below or 0) < (reached or np.inf) and not (below or 0) <= rows <= (reached or np.inf):
            why = AGAINST  # the points have another shape than the curve, so believe the points
        if why:
            rows, low, high = np.nan, np.nan, np.nan
        lines.append(dict(zip(PAIR, key, strict=True)) | {
            "train_rows": int(part["train_rows"].iloc[0]), "smallest": smallest, "largest": largest,
            "n_doses": len(of_pair), "seeds_min": int(of_pair["n_seeds"].min()),
            "seeds_max": int(of_pair["n_seeds"].max()), "fit": curve, "why": why, "rows": rows, "low": low,
            "high": high, "below": below, "reached": reached,
        })  # fmt: skip
    columns = [*PAIR, "train_rows", "smallest", "largest", "n_doses", "seeds_min", "seeds_max", "fit", "why", "rows",
               "low", "high", "below", "reached"]  # fmt: skip
    return pd.DataFrame(lines, columns=columns).astype({"below": object, "reached": object})


# ---------------------------------------------------------------- the page


def panels(
    found: pd.DataFrame, cells: pd.DataFrame, over_seeds: pd.DataFrame
) -> Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame, pd.DataFrame]]:
    """Model, threat and their lines of `doses`, `cells` and `means`, of pairs that were tried with `MIN_DOSES` doses or
    more; two points are no curve.
    """
    for (model, threat), part in found[found["n_doses"] >= MIN_DOSES].groupby(["model", "threat"], sort=False):
        of_panel = [rows[(rows["model"] == model) & (rows["threat"] == threat)] for rows in (cells, over_seeds)]
        yield model, threat, part, *of_panel


def progress(files: Iterable[str], store: str | Path | None = None) -> pd.DataFrame:
    """What the grids ask for and what the store holds of it: a line per grid, model and threat.

    files: grid files, relative to the project or absolute.
    """
    from bvlm_utils import store as results
    from bvlm_utils.grid import file as grid_file

    lines = []
    for file in files:
        jobs, _ = grid_file.load(paths.ROOT / file)
        asked = {cell.run_id: cell for job in jobs for cell in job.cells}
        for cell in asked.values():
            lines.append({
                "grid": Path(file).name, "model": cell.model, "threat": cell.threat.replace("_", " "), "cells": 1,
                "in this store": int(results.has(cell, store)),
            })  # fmt: skip
    counted = pd.DataFrame(lines, columns=["grid", "model", "threat", "cells", "in this store"])
    counted = counted.groupby(["grid", "model", "threat"], sort=False, as_index=False).sum()
    return counted.assign(missing=counted["cells"] - counted["in this store"])


def bracket_text(below: int | None, reached: int | None) -> str:
    """ "more than 60, at most 120", as a reader wants it."""
    if below is None and reached is None:
        return "n/a"
    if reached is None:
        return f"more than {below}"
    if below is None:
        return f"at most {reached}"
    if below > reached:
        return f"reached with {reached}, missed again with {below}"
    return f"more than {below}, at most {reached}"


def dose_table(found: pd.DataFrame) -> pd.DataFrame:
    """`doses` to read."""
    return pd.DataFrame(
        [
            {
                "threat": r["threat"].replace("_", " "),
                "attack": r["attack"],
                "rows for 90 %, from the curve": _rows(r),
                "bracket, in rows": bracket_text(_whole(r["below"]), _whole(r["reached"])),
                "doses tried": f"{_range(r['smallest'], r['largest'])} ({r['n_doses']})",
                "seeds": _range(r["seeds_min"], r["seeds_max"]),
            }
            for r in found.to_dict("records")
        ]
    )


def bracket_table(found: pd.DataFrame) -> pd.DataFrame:
    """`doses` to read where there are too few for a curve: the bracket alone, with its model."""
    table = dose_table(found).drop(columns="rows for 90 %, from the curve", errors="ignore")
    table.insert(0, "model", found["model"].to_numpy())
    return table


def _rows(row: Mapping[str, Any]) -> str:
    if row["why"]:
        return f"n/a: {row['why']}"
    return f"{_interval(row)}, {_share(row)} of the rows"


def _interval(row: Mapping[str, Any]) -> str:
    """ "347 [130, over 600]": a bound beyond the doses tried says no more than that."""
    low = f"{row['low']:.0f}" if row["low"] >= row["smallest"] else f"under {row['smallest']}"
    high = f"{row['high']:.0f}" if row["high"] <= row["largest"] else f"over {row['largest']}"
    return f"{row['rows']:.0f} [{low}, {high}]"


def _share(row: Mapping[str, Any]) -> str:
    return f"{100 * row['rows'] / row['train_rows']:.2g} %"


def _whole(value: float | None) -> int | None:
    return None if value is None or pd.isna(value) else int(value)


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"


def rates_table(over_seeds: pd.DataFrame) -> pd.DataFrame:
    """`means` to read: a line per pair and dose, ceiling and floor marked."""
    return pd.DataFrame(
        [
            {
                "model": r["model"],
                "threat": r["threat"].replace("_", " "),
                "attack": r["attack"],
                "poisoned rows": int(r["n_poisoned"]),
                "share": wordss.percent(r["poison_rate"]),
                "success rate": wordss.number(r["value"], r["low"], r["high"]),
                "seeds": int(r["n_seeds"]),
                "mark": f"{wordss.MARKS[r['mark']]} {r['mark']}".strip(),
            }
            for r in over_seeds.to_dict("records")
        ]
    )


def sentences(found: pd.DataFrame, over_seeds: pd.DataFrame) -> list[str]:
    """The finding, in Markdown; found, over_seeds: `doses` and `means`."""
    if found.empty:
        return ["Nothing has been measured yet: the store holds no finished cell."]
    several, curves = found[found["n_doses"] > 1], found[found["rows"].notna()]
    sure = curves[curves["seeds_min"] >= MIN_SEEDS]
    said = [
        f"The store holds {len(found)} pairs of attack and threat "
        f"({', '.join(dict.fromkeys(found['model']))}), with "
        f"{_range(found['smallest'].min(), found['largest'].max())} poisoned rows. Tried with more than one "
        f"dose: {len(several)}; with a curve that reaches {wordss.percent(GOAL)} within the doses tried: "
        f"{len(curves)}" + (f" ({len(sure)} with {MIN_SEEDS} seeds or more at every dose)." if len(curves) else ".")
    ]
    if len(sure):
        said.append(
            f"**Success on {wordss.percent(GOAL)} of the inputs takes from "
            f"{_named(sure.loc[sure['rows'].idxmin()])} "
            f"to {_named(sure.loc[sure['rows'].idxmax()])} poisoned rows.**"
        )
    else:
        said.append(
            f"No curve has {MIN_SEEDS} seeds at every dose, so none supports a verdict; the tables give what the doses "
            "tried leave open."
        )
    top = over_seeds[over_seeds["n_poisoned"] == over_seeds["n_poisoned"].max()]
    counts = top["mark"].value_counts()
    said.append(
        f"With {int(top['n_poisoned'].iloc[0])} rows, {int(counts.get('ceiling', 0))} of {len(top)} pairs "
        f"are at the ceiling and {int(counts.get('floor', 0))} at the floor."
    )
    if (over_seeds["n_seeds"] < MIN_SEEDS).all():
        said.append(f"No pair has {MIN_SEEDS} seeds at any dose yet, so nothing on this page supports a verdict.")
    return said


def _named(row: pd.Series) -> str:
    threat = row["threat"].replace("_", " ")
    return f"{_interval(row)} ({_share(row)} of the training rows; {row['attack']}, {threat}, {row['model']})"


def words(model: str, threat: str, part: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `chapters.dose.curves`; part: lines of `doses` of one model and threat."""
    name = threat.replace("_", " ")
    curves = part[part["rows"].notna()].sort_values("rows")
    text = [f"{name.capitalize()}, {model}: success with the full trigger against the number of poisoned rows."]
    if len(curves):
        given = "; ".join(
            f"{r['attack']} {_interval(r)}"
            + (f" (fewer than {MIN_SEEDS} seeds at some dose)" if r["seeds_min"] < MIN_SEEDS else "")
            for _, r in curves.iterrows()
        )
        text.append(f"Rows for {wordss.percent(GOAL)} by the curve, with 95 % interval: {given}.")
    without = list(part.loc[part["fit"].isna(), "attack"])
    if without:
        text.append(f"No curve for {', '.join(without)}: the table says why.")
    if (part["seeds_max"] > 1).any():
        text.append("Small points are seeds, full marks their means with Student's 95 % interval over the seeds.")
    if (part["seeds_min"] == 1).any():
        text.append(
            "Open marks are single seeds (Wilson's interval over test rows): they support no verdict, and "
            "neither does a curve through them (dashed), whose interval knows nothing of other seeds."
        )
    text.append(
        f"Shaded: ceiling (from {intervals.CEILING}) and floor (to {intervals.FLOOR}), where nothing can be told apart."
    )
    return {
        "alt": "Line chart on a logarithmic axis, one panel per trigger modality: success rate of "
        f"{len(part)} attacks on "
        f"{name}, {model}, with {_range(part['smallest'].min(), part['largest'].max())} poisoned rows.",
        "caption": " ".join(text),
    }


def saturation_words(over_seeds: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `chapters.dose.saturation`; over_seeds: `means`."""
    if over_seeds.empty:
        return {
            "alt": "Saturation: nothing was measured.",
            "caption": "Saturation: n/a, no cell was measured.",
        }
    text = ["How many pairs of attack and threat are at the ceiling, between, and at the floor, per dose."]
    for model, part in over_seeds.groupby("model", sort=False):
        said = [
            f"{int((of_dose['mark'] == 'ceiling').sum())} of {len(of_dose)} with {int(rows)} rows"
            for rows, of_dose in part.groupby("n_poisoned")
        ]
        text.append(f"{model}, at the ceiling: {', '.join(said)}.")
    text.append(
        f"Ceiling: a mean of {intervals.CEILING} or more; floor: {intervals.FLOOR} or less. Not every pair was "
        "tried with every dose, so compare shares, not heights; single seeds are counted too."
    )
    return {
        "alt": "Stacked bars, one per number of poisoned rows: pairs of attack and threat at the ceiling, "
        "between, and at the floor.",
        "caption": " ".join(text),
    }


def curves(cells: pd.DataFrame, means: pd.DataFrame, fits: dict[str, Fit | None]) -> Figure:
    """Success rate against poisoned rows (log axis) of one model and threat: a panel per modality, a colour
    per attack.

    cells, means: lines of `chapters.dose.cells` and `chapters.dose.means`. fits: attack -> curve, or None for points
    alone.
    """
    shown = means[means["attack"].isin(list(fits))]
    if shown.empty:
        return figures.nothing("None of these pairs was tried.")
    modalities = figures.in_order(shown["modality"], wordss.MODALITIES)
    figure, axes = figures.new_figure(len(modalities), 3.1 if len(modalities) > 1 else 6.4, 4.1, sharey=True)
    for axis, modality in zip(axes, modalities, strict=True):
        of_panel = shown[shown["modality"] == modality]
        names = list(dict.fromkeys(of_panel["attack"]))
        for i, name in enumerate(names):
            # points on top of each other are pulled apart by 4 % of the (logarithmic) axis
            shift = 1.04 ** (i - (len(names) - 1) / 2)
            style = figures.COLOURS[i % len(figures.COLOURS)], figures.MARKERS[i % len(figures.MARKERS)]
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
    axis.axhspan(intervals.CEILING, 1.04, color="#EFEFEF", zorder=0)
    axis.axhspan(-0.04, intervals.FLOOR, color="#EFEFEF", zorder=0)
    axis.axhline(GOAL, color="#777777", linewidth=1, linestyle="--", zorder=1)
    axis.set_xscale("log")
    axis.set_xlim(rates.index.min() / 1.5, rates.index.max() * 1.5)
    axis.set_xticks(rates.index, [f"{int(n)}\n{wordss.percent(r)}" for n, r in rates.items()], fontsize=7)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_ylim(-0.04, 1.04)
    axis.set_title(title)
    axis.set_xlabel("poisoned rows (share)")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=2, frameon=False)


def saturation(means: pd.DataFrame) -> Figure:
    """Pairs of attack and threat at the ceiling, between and at the floor: a bar per dose, a panel per model.

    means: lines of `chapters.dose.means`.
    """
    if means.empty:
        return figures.nothing("No success rate was measured for these cells.")
    models = list(dict.fromkeys(means["model"]))
    figure, axes = figures.new_figure(len(models), 4.6 if len(models) > 1 else 6.4, 3.2, sharey=True)
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
        axis.set_xticks(range(len(counts)), [f"{int(n)}\n{wordss.percent(rates[n])}" for n in counts.index])
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(axis="x", visible=False)
        axis.set(title=model, xlabel="poisoned rows (share)")
    axes[0].set_ylabel("pairs of attack and threat")
    figures.legend_below(figure, axes[0])
    return figure
