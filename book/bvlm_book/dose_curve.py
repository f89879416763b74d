"""A logistic curve of success over the number of poisoned rows, and the number that it gives for 90 %."""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy.special import expit, logit
from scipy.stats import t as student
from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

from bvlm_book.rules import HIGH
from bvlm_utils.score import intervals

MIN_DOSES = 3  # two doses lie on many curves

TOO_FEW = f"fewer than {MIN_DOSES} doses"
NONE_BETWEEN = "no dose between floor and ceiling"
SEPARATED = "the step from failure to success is too sharp for one best curve"
FLAT = "the points bear no slope that is surely above zero"


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

    def dose(self, goal: float = HIGH) -> tuple[float, float, float]:
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
    if not by_dose.map(lambda value: intervals.mark(value) == "").any():
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
