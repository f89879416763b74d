"""How many poisoned rows are enough? Points, curves and doses from the tidy table; called by the dose
chapter.

A *pair* is an attack on a threat, for one model and data set; a *dose* is the absolute number of poisoned
rows. `cells` gives one success rate per dose and seed, `means` the mean over seeds, `fit` a logistic curve in
log10(rows), `doses` the fewest rows for a success rate of 90 %: from the curve where the data bear one, and
as a bracket between two doses that were tried. Figures are in `plots_dose`. Free of torch.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy.special import expit, logit
from scipy.stats import t as student
from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

from bvlm_utils import landing, metrics, paths, plots, report

GOAL = 0.90  # the success rate that a dose is read for, as in the paper's claim
MIN_DOSES = 3  # two doses lie on many curves
MIN_SEEDS = 3  # fewer support no verdict, see `claims`
PAIR = ["model", "dataset", "threat", "attack", "modality"]

TOO_FEW = f"fewer than {MIN_DOSES} doses"
NONE_BETWEEN = "no dose between floor and ceiling"
SEPARATED = "the step from failure to success is too sharp for one best curve"
FLAT = "the points bear no slope that is surely above zero"
OUTSIDE = "the curve reaches 90 % only outside the doses tried"
AGAINST = "the curve disagrees with the bracket"


# ---------------------------------------------------------------- the points


def usual(table: pd.DataFrame) -> pd.DataFrame:
    """Finished cells as attacks and threats are defined, per model with the number of training rows that
    most have.

    table: rows of `store.collect`.
    """
    done = landing.usual(table)
    done = done[done["n_poisoned"] > 0]  # a rate of 0 is a control, and has no place on a log axis
    parts = [part[part["train_rows"] == part["train_rows"].mode().iloc[0]] for _, part in done.groupby("model")]
    return pd.concat(parts) if parts else done


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Success of the poisoned models, read as each attack is meant to be: a line per pair and dose, over its
    seeds.

    Columns as in `report.summary` (one seed: its Wilson interval; several: Student's over the seeds), and
    `mark`.
    """
    rows = report.headline_rows(report.success_rates(usual(table), "poisoned"))
    rows = rows.assign(mark=[metrics.mark(value) for value in rows["value"]])
    return rows.sort_values([*PAIR, "n_poisoned"]).reset_index(drop=True)


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """The same, a line per pair, dose and seed: k successes among n inputs, and `train_rows`."""
    done = usual(table)
    parts = [
        report.headline_rows(report.success_rates(part, "poisoned")).assign(seed=seed, train_rows=rows)
        for (seed, rows), part in done.groupby(["seed", "train_rows"])
    ]
    found = pd.concat(parts) if parts else means(done).assign(seed=0, train_rows=0)
    return found.sort_values([*PAIR, "n_poisoned", "seed"]).reset_index(drop=True)


# ---------------------------------------------------------------- the curve


@dataclass(frozen=True)
class Fit:
    """logit(success rate) = intercept + slope * log10(rows).

    covariance: (2, 2), of intercept and slope, over-dispersion included. dispersion: Pearson's chi2 by its
    degrees of freedom `df`; 1 where cells differ no more than their test rows explain.
    """

    intercept: float
    slope: float
    covariance: np.ndarray
    dispersion: float
    df: int

    @property
    def quantile(self) -> float:
        """Student's, since the dispersion is estimated too."""
        return float(student.ppf(0.975, self.df))

    def curve(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Success rate and its 95 % interval (the curve's, not a new cell's) at numbers of poisoned rows
        (N,).
        """
        design = np.column_stack([np.ones(len(rows)), np.log10(rows)])  # (N, 2)
        middle = design @ [self.intercept, self.slope]
        half = self.quantile * np.sqrt(np.einsum("ni,ij,nj->n", design, self.covariance, design))
        return expit(middle), expit(middle - half), expit(middle + half)

    def dose(self, goal: float = GOAL) -> tuple[float, float, float]:
        """Rows for a success rate of `goal`, with the delta method's 95 % interval, taken in log10(rows)."""
        log_rows = (logit(goal) - self.intercept) / self.slope
        gradient = np.array([-1.0, -log_rows]) / self.slope
        half = self.quantile * float(np.sqrt(gradient @ self.covariance @ gradient))
        return tuple(float(10**x) for x in (log_rows, log_rows - half, log_rows + half))


def fit(part: pd.DataFrame) -> tuple[Fit | None, str]:
    """The logistic curve of one pair, or None and why the data bear none. part: its lines of `cells`.

    A binomial GLM on k of n per cell, every cell by itself; Pearson's chi2 widens its covariance by as much
    as cells spread more than their test rows explain, and never narrows it.
    """
    rows, k, n = (part[name].to_numpy(float) for name in ("n_poisoned", "k", "n"))
    by_dose = part.groupby("n_poisoned")["value"].mean()
    if len(by_dose) < MIN_DOSES:
        return None, TOO_FEW
    some, lacking = rows[k > 0], rows[k < n]  # doses with a success, with a failure
    if len(some) == 0 or len(lacking) == 0:
        return None, NONE_BETWEEN
    if some.min() >= lacking.max():  # the likelihood grows without end: there is no best slope
        return None, SEPARATED
    if not by_dose.map(lambda value: metrics.mark(value) == "").any():
        return None, NONE_BETWEEN
    if lacking.min() >= some.max():
        return None, FLAT
    design = np.column_stack([np.ones(len(rows)), np.log10(rows)])
    model = sm.GLM(np.column_stack([k, n - k]), design, family=sm.families.Binomial())
    with warnings.catch_warnings():
        # separated data never come here; what is left of this warning is data that lie on the curve
        warnings.simplefilter("ignore", PerfectSeparationWarning)
        result = model.fit()
    dispersion = float(result.pearson_chi2 / result.df_resid)
    found = Fit(
        intercept=float(result.params[0]),
        slope=float(result.params[1]),
        covariance=np.asarray(result.normalized_cov_params) * max(dispersion, 1.0),
        dispersion=dispersion,
        df=int(result.df_resid),
    )
    if found.slope - found.quantile * np.sqrt(found.covariance[1, 1]) <= 0:
        return None, FLAT
    return found, ""


def bracket(part: pd.DataFrame, goal: float = GOAL) -> tuple[int | None, int | None]:
    """The largest dose whose mean success is below `goal`, and the smallest at or above it; None where none
    is.

    part: lines of `means` of one pair.
    """
    below = part.loc[part["value"] < goal, "n_poisoned"]
    reached = part.loc[part["value"] >= goal, "n_poisoned"]
    return (int(below.max()) if len(below) else None), (int(reached.min()) if len(reached) else None)


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
                "dispersion": report.number(r["fit"].dispersion, digits=1) if r["fit"] else None,
            }
            for r in found.to_dict("records")
        ]
    )


def bracket_table(found: pd.DataFrame) -> pd.DataFrame:
    """`doses` to read where there are too few for a curve: the bracket alone, with its model."""
    table = dose_table(found).drop(columns=["rows for 90 %, from the curve", "dispersion"], errors="ignore")
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
                "share": plots.percent(r["poison_rate"]),
                "success rate": report.number(r["value"], r["low"], r["high"]),
                "seeds": int(r["n_seeds"]),
                "mark": f"{report.MARKS[r['mark']]} {r['mark']}".strip(),
            }
            for r in over_seeds.to_dict("records")
        ]
    )


def panels(
    found: pd.DataFrame, cells: pd.DataFrame, over_seeds: pd.DataFrame
) -> Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame, pd.DataFrame]]:
    """Model, threat and their lines of `doses`, `cells` and `means`, of pairs that were tried with `MIN_DOSES` doses or
    more; two points are no curve.
    """
    for (model, threat), part in found[found["n_doses"] >= MIN_DOSES].groupby(["model", "threat"], sort=False):
        of_panel = [rows[(rows["model"] == model) & (rows["threat"] == threat)] for rows in (cells, over_seeds)]
        yield model, threat, part, *of_panel


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
        f"dose: {len(several)}; with a curve that reaches {plots.percent(GOAL)} within the doses tried: "
        f"{len(curves)}" + (f" ({len(sure)} with {MIN_SEEDS} seeds or more at every dose)." if len(curves) else ".")
    ]
    if len(sure):
        said.append(
            f"**Success on {plots.percent(GOAL)} of the inputs takes from "
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
    """Alt text and caption of `plots_dose.curves`; part: lines of `doses` of one model and threat."""
    name = threat.replace("_", " ")
    curves = part[part["rows"].notna()].sort_values("rows")
    text = [f"{name.capitalize()}, {model}: success with the full trigger against the number of poisoned rows."]
    if len(curves):
        given = "; ".join(
            f"{r['attack']} {_interval(r)}"
            + (f" (fewer than {MIN_SEEDS} seeds at some dose)" if r["seeds_min"] < MIN_SEEDS else "")
            for _, r in curves.iterrows()
        )
        text.append(f"Rows for {plots.percent(GOAL)} by the curve, with 95 % interval: {given}.")
    without = list(part.loc[part["fit"].isna(), "attack"])
    if without:
        text.append(f"No curve for {', '.join(without)}: the table says why.")
    if (part["seeds_max"] > 1).any():
        text.append("Small points are seeds, full marks their means with Student's 95 % interval over the seeds.")
    if (part["seeds_min"] == 1).any():
        text.append(
            "Open marks are single seeds (Wilson's interval over test rows): they support no verdict, and "
            "neither does a curve through them (dashed), whose interval knows little of seeds."
        )
    text.append(
        f"Shaded: ceiling (from {metrics.CEILING}) and floor (to {metrics.FLOOR}), where nothing can be told apart."
    )
    return {
        "alt": "Line chart on a logarithmic axis, one panel per trigger modality: success rate of "
        f"{len(part)} attacks on "
        f"{name}, {model}, with {_range(part['smallest'].min(), part['largest'].max())} poisoned rows.",
        "caption": " ".join(text),
    }


def saturation_words(over_seeds: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `plots_dose.saturation`; over_seeds: `means`."""
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
        f"Ceiling: a mean of {metrics.CEILING} or more; floor: {metrics.FLOOR} or less. Not every pair was "
        "tried with every dose, so compare shares, not heights; single seeds are counted too."
    )
    return {
        "alt": "Stacked bars, one per number of poisoned rows: pairs of attack and threat at the ceiling, "
        "between, and at the floor.",
        "caption": " ".join(text),
    }


def progress(files: Iterable[str], store: str | Path | None = None) -> pd.DataFrame:
    """What the grids ask for and what the store holds of it: a line per grid, model and threat.

    files: grid files, relative to the project or absolute.
    """
    from bvlm_utils import grid_file
    from bvlm_utils import store as results

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
