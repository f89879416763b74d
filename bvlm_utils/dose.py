"""How many poisoned rows are enough? Points, curves and doses from the tidy table; called by the dose
chapter.

A *pair* is an attack on a threat, for one model and data set; a *dose* is the absolute number of poisoned
rows. `cells` gives one success rate per dose and seed, `means` the mean over seeds, `fit` a logistic curve in
log10(rows), `doses` the fewest rows for a success rate of 90 %: from the curve where the data bear one, and
as a bracket between two doses that were tried. Figures are in `plots_dose`, words and tables to read in
`captions_dose`. Free of torch.
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy.special import expit, logit
from scipy.stats import t as student
from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

from bvlm_utils import landing, metrics, paths, report

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
    """logit(success rate) = intercept + slope * log10(rows), a curve per seed.

    coefficients: (S, 2), intercept and slope of each seed. covariance: (2, 2) of those of a single seed, else None:
    several seeds give the interval by how much they differ, since test rows of one model say nothing of the next.
    df: degrees of freedom behind the interval.
    """

    coefficients: np.ndarray
    covariance: np.ndarray | None
    df: int

    @property
    def quantile(self) -> float:
        """Student's, as what stands behind the interval is few seeds, or one curve's dispersion."""
        return float(student.ppf(0.975, self.df))

    def curve(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Success rate and its 95 % interval (the mean curve's, not a new seed's) at numbers of poisoned rows (N,)."""
        design = np.column_stack([np.ones(len(rows)), np.log10(rows)])  # (N, 2)
        middle, half = self._mean(design @ self.coefficients.T, design)
        return expit(middle), expit(middle - half), expit(middle + half)

    def dose(self, goal: float = GOAL) -> tuple[float, float, float]:
        """Rows for a success rate of `goal` with its 95 % interval: the mean of the seeds' doses in log10(rows); for a
        single seed the delta method.
        """
        intercepts, slopes = self.coefficients.T
        logs = (logit(goal) - intercepts) / slopes  # (S,)
        gradient = np.array([[-1.0, -logs[0]]]) / slopes[0]
        (middle,), (half,) = self._mean(logs[None, :], gradient)
        return tuple(float(10**x) for x in (middle, middle - half, middle + half))

    def _mean(self, by_seed: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean over seeds of (N, S) and half its interval; gradient (N, 2) serves a single seed."""
        if self.covariance is None:
            error = by_seed.std(axis=1, ddof=1) / np.sqrt(by_seed.shape[1])
        else:
            error = np.sqrt(np.einsum("ni,ij,nj->n", gradient, self.covariance, gradient))
        return by_seed.mean(axis=1), self.quantile * error


def fit(part: pd.DataFrame) -> tuple[Fit | None, str]:
    """The logistic curves of one pair, or None and why the data bear none. part: its lines of `cells`.

    A binomial GLM on k of n for each seed with `MIN_DOSES` doses or more; every one of them has to bear a curve. (Cells
    of one seed share rows, order and initialisation, so a fit to the cells of all seeds has too narrow an interval.) A
    single seed's covariance is widened by the deviance, as far as cells spread more than their test rows explain.
    """
    by_dose = part.groupby("n_poisoned")["value"].mean()
    seeds = [own for _, own in part.groupby("seed") if own["n_poisoned"].nunique() >= MIN_DOSES]
    if not seeds:
        return None, TOO_FEW
    curves = []
    for own in seeds:
        curve, why = _one_seed(own)
        if curve is None:
            return None, why + (f" (seed {own['seed'].iloc[0]})" if len(seeds) > 1 else "")
        curves.append(curve)
    if not by_dose.map(lambda value: metrics.mark(value) == "").any():
        return None, NONE_BETWEEN
    if len(curves) == 1:
        slope, error = curves[0].coefficients[0, 1], np.sqrt(curves[0].covariance[1, 1])
        return (curves[0], "") if slope - curves[0].quantile * error > 0 else (None, FLAT)
    return Fit(np.concatenate([curve.coefficients for curve in curves]), None, len(curves) - 1), ""


def _one_seed(own: pd.DataFrame) -> tuple[Fit | None, str]:
    rows, k, n = (own[name].to_numpy(float) for name in ("n_poisoned", "k", "n"))
    some, lacking = rows[k > 0], rows[k < n]  # doses with a success, with a failure
    if len(some) == 0 or len(lacking) == 0:
        return None, NONE_BETWEEN
    if some.min() >= lacking.max():  # the likelihood grows without end: there is no best slope
        return None, SEPARATED
    if lacking.min() >= some.max():
        return None, FLAT
    design = np.column_stack([np.ones(len(rows)), np.log10(rows)])
    model = sm.GLM(np.column_stack([k, n - k]), design, family=sm.families.Binomial())
    with warnings.catch_warnings():
        # separated data never come here; what is left of this warning is data that lie on the curve
        warnings.simplefilter("ignore", PerfectSeparationWarning)
        result = model.fit()
    if result.params[1] <= 0:
        return None, FLAT
    dispersion = max(float(result.deviance / result.df_resid), 1.0)
    covariance = np.asarray(result.normalized_cov_params) * dispersion
    return Fit(np.asarray(result.params)[None, :], covariance, int(result.df_resid)), ""


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
