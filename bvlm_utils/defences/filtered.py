"""Training rows without the most suspicious ones."""

from typing import Any

import numpy as np

from bvlm_utils.defences.rows import Rows
from bvlm_utils.errors import InputError
from bvlm_utils.models.victim import Victim


def without_suspicious(victim: Victim, rows: Rows, settings: dict[str, Any], draws: np.random.Generator) -> Rows:
    """The rows but for the `share` of them with the highest scores; lots decide between equal scores."""
    if rows.scores is None:
        raise InputError("filter drops rows by their scores, and these rows have none; search them first.")
    order = np.lexsort((draws.permutation(len(rows)), rows.scores))
    return rows.take(np.sort(order[: _kept(rows, settings)]))


def without_random(
    victim: Victim, rows: Rows, settings: dict[str, Any], draws: np.random.Generator, like: Rows
) -> Rows:
    """The placebo: as many rows go, whichever they are."""
    return rows.take(np.sort(draws.permutation(len(rows))[: len(like)]))


def _kept(rows: Rows, settings: dict[str, Any]) -> int:
    return max(1, len(rows) - round(settings["share"] * len(rows)))
