"""How many poisoned rows are enough? Points, curves and doses from the tidy table.

A *pair* is an attack on a threat, for one model and data set; a *dose* is the absolute number of poisoned rows. `cells`
gives one success rate per dose and seed, `means` the mean over seeds, `dose_curve.fit` a logistic curve in log10(rows),
`doses` the fewest rows for a success rate of 90 %: from the curve where the data bear one, and as a bracket between two
doses that were tried.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bvlm_book import figures, rules, tables, words
from bvlm_book.dose_curve import MIN_DOSES, Fit, fit
from bvlm_utils.score import intervals

PAIR = ["model", "dataset", "threat", "attack", "modality"]

OUTSIDE = "the curve reaches 90 % only outside the doses tried"
AGAINST = "the curve disagrees with the bracket"
# Colour and hatch tell the same, for those who see no colours.
MARKS = {"floor": ("#56B4E9", ".."), "": ("#E3E3E3", ""), "ceiling": ("#D55E00", "//")}
MARK_LABELS = {"floor": "at the floor", "": "between", "ceiling": "at the ceiling"}
CURVE_POINTS = 120


# ---------------------------------------------------------------- the points


def usual(table: pd.DataFrame) -> pd.DataFrame:
    """Finished cells as attacks and threats are defined, trained with the usual settings of their model."""
    done = tables.usual(table)
    return done[done["n_poisoned"] > 0]  # a rate of 0 is a control, and has no place on a log axis


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Success of the poisoned models, read as each attack is meant to be: a line per pair and dose, over its seeds.

    Columns as in `tables.summary`, and `mark`.
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


def bracket(part: pd.DataFrame, goal: float = rules.HIGH) -> tuple[int | None, int | None]:
    """The largest dose whose mean success is below `goal`, and the smallest at or above it; None where none is.

    part: lines of `means` of one pair.
    """
    below = part.loc[part["value"] < goal, "n_poisoned"]
    reached = part.loc[part["value"] >= goal, "n_poisoned"]
    return (int(below.max()) if len(below) else None), (int(reached.min()) if len(reached) else None)


def doses(found: pd.DataFrame, over_seeds: pd.DataFrame) -> pd.DataFrame:
    """Rows for a success rate of `rules.HIGH`: a line per pair.

    found, over_seeds: `cells` and `means` of the same table. Columns: `PAIR`, train_rows, smallest and largest dose
    tried, n_doses, seeds_min, seeds_max, fit, why (no curve), rows, low, high (NaN without a curve, or where the curve
    reaches the goal outside the doses tried or against the bracket), below, reached (`bracket`).
    """
    columns = [*PAIR, "train_rows", "smallest", "largest", "n_doses", "seeds_min", "seeds_max", "fit", "why", "rows",
               "low", "high", "below", "reached"]  # fmt: skip
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
        tried = len(of_pair), int(of_pair["n_seeds"].min()), int(of_pair["n_seeds"].max())
        lines.append([*key, int(part["train_rows"].iloc[0]), smallest, largest, *tried, curve, why, rows, low, high,
                      below, reached])  # fmt: skip
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


def bracket_text(below: int | None, reached: int | None) -> str:
    """ "more than 60, at most 120", as a reader wants it."""
    under, over = (None if pd.isna(end) else int(end) for end in (below, reached))
    if under is None or over is None:
        return f"more than {under}" if over is None and under is not None else f"at most {over}" if over else "n/a"
    if under > over:
        return f"reached with {over}, missed again with {under}"
    return f"more than {under}, at most {over}"


def dose_table(found: pd.DataFrame) -> pd.DataFrame:
    """`doses` to read."""
    return tables.readable(found, {
        "threat": words.threat, "attack": "attack", "rows for 90 %, from the curve": _rows,
        "bracket, in rows": lambda r: bracket_text(r["below"], r["reached"]),
        "doses tried": lambda r: f"{words.span((r['smallest'], r['largest']))} ({r['n_doses']})",
        "seeds": lambda r: words.span((r["seeds_min"], r["seeds_max"])),
    })  # fmt: skip


def bracket_table(found: pd.DataFrame) -> pd.DataFrame:
    """`doses` to read where there are too few for a curve: the bracket alone, with its model."""
    table = dose_table(found).drop(columns="rows for 90 %, from the curve", errors="ignore")
    table.insert(0, "model", found["model"].to_numpy())
    return table


def _rows(row: Mapping[str, Any]) -> str:
    return f"n/a: {row['why']}" if row["why"] else f"{_interval(row)}, {_share_of_rows(row)} of the rows"


def _share_of_rows(row: Mapping[str, Any]) -> str:
    return f"{100 * row['rows'] / row['train_rows']:.2g} %"


def _interval(row: Mapping[str, Any]) -> str:
    """ "347 [130, over 600]": a bound beyond the doses tried says no more than that."""
    low = f"{row['low']:.0f}" if row["low"] >= row["smallest"] else f"under {row['smallest']}"
    high = f"{row['high']:.0f}" if row["high"] <= row["largest"] else f"over {row['largest']}"
    return f"{row['rows']:.0f} [{low}, {high}]"


def rates_table(over_seeds: pd.DataFrame) -> pd.DataFrame:
    """`means` to read: a line per pair and dose, ceiling and floor marked."""
    return tables.readable(over_seeds, {
        "model": "model", "threat": words.threat, "attack": "attack", "poisoned rows": lambda r: int(r["n_poisoned"]),
        "share": words.rate, "success rate": words.interval, "seeds": lambda r: int(r["n_seeds"]),
        "mark": lambda r: f"{words.MARKS[r['mark']]} {r['mark']}".strip(),
    })  # fmt: skip


def sentences(found: pd.DataFrame, over_seeds: pd.DataFrame) -> list[str]:
    """The finding, in Markdown; found, over_seeds: `doses` and `means`."""
    if found.empty:
        return ["Nothing has been measured yet: the store holds no finished cell."]
    several, curves = found[found["n_doses"] > 1], found[found["rows"].notna()]
    sure = curves[curves["seeds_min"] >= rules.MIN_SEEDS]
    models, goal = ", ".join(found["model"].unique()), words.percent(rules.HIGH)
    said = [
        f"The store holds {len(found)} pairs of attack and threat ({models}), with "
        f"{words.span((found['smallest'].min(), found['largest'].max()))} poisoned rows. Tried with more than one "
        f"dose: {len(several)}; with a curve that reaches {goal} within the doses tried: "
        f"{len(curves)} ({len(sure)} with {rules.MIN_SEEDS} seeds or more at every dose)."
    ]
    if len(sure):
        least, most = sure.loc[sure["rows"].idxmin()], sure.loc[sure["rows"].idxmax()]
        said.append(f"**Success on {goal} of the inputs takes from {_named(least)} to {_named(most)} poisoned rows.**")
    else:
        said.append(
            f"No curve has {rules.MIN_SEEDS} seeds at every dose, so none supports a verdict; the tables give what the "
            "doses tried leave open."
        )
    top = over_seeds[over_seeds["n_poisoned"] == over_seeds["n_poisoned"].max()]
    said.append(
        f"With {int(top['n_poisoned'].iloc[0])} rows, {(top['mark'] == 'ceiling').sum()} of {len(top)} pairs "
        f"are at the ceiling and {(top['mark'] == 'floor').sum()} at the floor."
    )
    if (over_seeds["n_seeds"] < rules.MIN_SEEDS).all():
        said.append(f"No pair has {rules.MIN_SEEDS} seeds at any dose yet, so nothing on this page supports a verdict.")
    return said


def _named(row: pd.Series) -> str:
    where = f"{row['attack']}, {words.threat(row)}, {row['model']}"
    return f"{_interval(row)} ({_share_of_rows(row)} of the training rows; {where})"


def curves_words(model: str, threat: str, part: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `curves`; part: lines of `doses` of one model and threat."""
    name = threat.replace("_", " ")
    text = [f"{name.capitalize()}, {model}: success with the full trigger against the number of poisoned rows."]
    curves = part[part["rows"].notna()].sort_values("rows").to_dict("records")
    few = f" (fewer than {rules.MIN_SEEDS} seeds at some dose)"
    if curves:
        given = (f"{r['attack']} {_interval(r)}{few if r['seeds_min'] < rules.MIN_SEEDS else ''}" for r in curves)
        text.append(f"Rows for {words.percent(rules.HIGH)} by the curve, with 95 % interval: {'; '.join(given)}.")
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
    alt = (
        f"Line chart on a logarithmic axis, one panel per trigger modality: success rate of {len(part)} attacks on "
        f"{name}, {model}, with {words.span((part['smallest'].min(), part['largest'].max()))} poisoned rows."
    )
    return {"alt": alt, "caption": " ".join(text)}


def saturation_words(over_seeds: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `saturation`; over_seeds: `means`."""
    if over_seeds.empty:
        return words.nothing_measured("Saturation")
    text = ["How many pairs of attack and threat are at the ceiling, between, and at the floor, per dose."]
    for model, part in over_seeds.groupby("model", sort=False):
        said = [
            f"{(of_dose['mark'] == 'ceiling').sum()} of {len(of_dose)} with {int(rows)} rows"
            for rows, of_dose in part.groupby("n_poisoned")
        ]
        text.append(f"{model}, at the ceiling: {', '.join(said)}.")
    text.append(
        f"Ceiling: a mean of {intervals.CEILING} or more; floor: {intervals.FLOOR} or less. Not every pair was "
        "tried with every dose, so compare shares, not heights; single seeds are counted too."
    )
    alt = "Stacked bars, one per number of poisoned rows: pairs at the ceiling, between, and at the floor."
    return {"alt": alt, "caption": " ".join(text)}


def curves(cells: pd.DataFrame, means: pd.DataFrame, fits: dict[str, Fit | None]) -> Figure:
    """Success rate against poisoned rows (log axis) of one model and threat: a panel per modality, a colour per attack.

    cells, means: lines of `cells` and `means`. fits: attack -> curve, or None for points alone.
    """
    shown = means[means["attack"].isin(list(fits))]
    if shown.empty:
        return figures.nothing("None of these pairs was tried.")
    modalities = figures.in_order(shown["modality"], words.MODALITIES)
    figure, axes = figures.new_figure(len(modalities), 3.1 if len(modalities) > 1 else 6.4, 4.1, sharey=True)
    for axis, modality in zip(axes, modalities, strict=True):
        of_panel = shown[shown["modality"] == modality]
        names = list(dict.fromkeys(of_panel["attack"]))
        for i, name in enumerate(names):
            # points on top of each other are pulled apart by 4 % of the (logarithmic) axis
            shift, own = 1.04 ** (i - (len(names) - 1) / 2), of_panel[of_panel["attack"] == name]
            _points(axis, cells[cells["attack"] == name], own, shift, figures.look(i) | {"label": name})
            if fits[name]:
                _curve(axis, fits[name], own, figures.look(i)["color"])
        axis.axhspan(intervals.CEILING, 1.04, color="#EFEFEF", zorder=0)
        axis.axhspan(-0.04, intervals.FLOOR, color="#EFEFEF", zorder=0)
        axis.axhline(rules.HIGH, color="#777777", linewidth=1, linestyle="--", zorder=1)
        figures.dose_axis(axis, shown, fontsize=7)
        axis.set(title=f"{modality} triggers", xlabel="poisoned rows (share)")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=2, frameon=False)
    axes[0].set_ylabel(figures.ASR)
    figure.get_layout_engine().set(h_pad=0.12)  # the legends below the axes, as curves go anywhere in them
    return figure


def _points(axis: Axes, cells: pd.DataFrame, means: pd.DataFrame, shift: float, look: dict[str, str]) -> None:
    """Means with their intervals, open where they are of one seed, and the seeds beside those of several."""
    several = cells.groupby("n_poisoned")["seed"].transform("size") > 1
    beside = cells.loc[several, "n_poisoned"] * shift * 1.09  # the mean's interval would cover them
    axis.plot(beside, cells.loc[several, "value"], ".", color=look["color"], markersize=4.5)
    for single, part in means.groupby(means["n_seeds"] == 1):
        how = look | {"markerfacecolor": "white" if single else look["color"]}
        if single and (means["n_seeds"] > 1).any():
            how.pop("label")  # one name in the legend is enough
        figures.points(axis, part["n_poisoned"] * shift, part, upright=True, **how)


def _curve(axis: Axes, fit: Fit, means: pd.DataFrame, colour: str) -> None:
    """Drawn between the doses tried, and not beyond; dashed where some dose has a single seed."""
    rows = np.geomspace(means["n_poisoned"].min(), means["n_poisoned"].max(), CURVE_POINTS)
    middle, _, _ = fit.curve(rows)  # its interval is in the table: a band would hide the points
    axis.plot(rows, middle, color=colour, linewidth=1.6, linestyle="--" if means["n_seeds"].min() == 1 else "-")


def saturation(means: pd.DataFrame) -> Figure:
    """Pairs of attack and threat at the ceiling, between and at the floor: a bar per dose, a panel per model."""
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
        axis.set_xticks(range(len(counts)), [f"{int(n)}\n{words.percent(rates[n])}" for n in counts.index])
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(axis="x", visible=False)
        axis.set(title=model, xlabel="poisoned rows (share)")
    axes[0].set_ylabel("pairs of attack and threat")
    figures.legend_below(figure, axes[0])
    return figure
