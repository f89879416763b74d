"""Rates and their intervals: what number a set of responses gets, and how sure it is. Free of torch.

statsmodels takes half a second to load, so it is loaded by who computes an interval, not by every page that reads some.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from bvlm_utils.errors import InputError

Interval = tuple[float, float]


@lru_cache(maxsize=10_000)  # a page asks for thousands of the same ones
def wilson(k: float, n: int) -> Interval:
    """Wilson's 95 % interval for k successes among n; too wide rather than too narrow where k is a sum of scores."""
    if n < 1 or not -1e-9 <= k <= n + 1e-9:
        raise InputError(f"{k:g} successes among {n} trials have no interval; n must be 1 or more, k from 0 to n.")
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(min(max(k, 0), n), n, method="wilson")
    return float(low), float(high)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Student's 95 % interval for a mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    from statsmodels.stats.weightstats import DescrStatsW

    low, high = DescrStatsW(np.asarray(values, float)).tconfint_mean()
    return float(low), float(high)


def seeds_interval(values: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> Interval:
    """Student's 95 % interval for the mean of seeds; where all agree, the widest of their own, `lows` to `highs`."""
    if np.ptp(values) == 0 and not np.isnan([*lows, *highs]).any():
        return min(lows), max(highs)
    return mean_interval(values)


def paired_shares(ours: Sequence[bool], theirs: Sequence[bool]) -> tuple[float, float, float]:
    """The difference of two shares measured on the same rows (ours - theirs), with its 95 % interval.

    Newcombe 1998, Statistics in Medicine 17:2635, method 10: Wilson's intervals of the two shares, combined with their
    correlation. It holds for shares of 0 and 1 too.
    """
    a, b = np.asarray(ours, bool), np.asarray(theirs, bool)
    if len(a) != len(b) or len(a) == 0:
        raise InputError(f"Paired shares need as many rows on both sides; there are {len(a)} and {len(b)}.")
    n = len(a)
    both, only_a, only_b, none = (a & b).sum(), (a & ~b).sum(), (~a & b).sum(), (~a & ~b).sum()
    p, q = a.mean(), b.mean()
    (p_low, p_high), (q_low, q_high) = wilson(a.sum(), n), wilson(b.sum(), n)
    margins = float(both + only_a) * float(only_b + none) * float(both + only_b) * float(only_a + none)
    cross = float(both) * float(none) - float(only_a) * float(only_b)
    if cross > 0:
        cross = max(cross - n / 2, 0.0)  # Newcombe's continuity correction of phi
    phi = cross / np.sqrt(margins) if margins else 0.0

    def half(x: float, y: float) -> float:
        return float(np.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0)))

    difference = float(p - q)
    return difference, difference - half(p - p_low, q_high - q), difference + half(p_high - p, q - q_low)


def paired_means(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The mean difference of two scores of the same rows, with Student's 95 % interval over the rows."""
    if len(ours) != len(theirs) or len(ours) == 0:
        raise InputError(f"Paired scores need as many rows on both sides; there are {len(ours)} and {len(theirs)}.")
    gaps = np.asarray(ours, float) - np.asarray(theirs, float)
    low, high = mean_interval(gaps) or (None, None)
    return float(gaps.mean()), low, high
