"""Quantise the merged weights: each row of a layer on a grid of a few values."""

from typing import Any

import numpy as np
import torch

from bvlm_utils.defences import tune, weights
from bvlm_utils.defences.prune import rebuilt
from bvlm_utils.defences.rows import Rows
from bvlm_utils.models.victim import Victim
from bvlm_utils.train.grouped import GroupResult

BITS = {"int8": 8, "int4": 4}


def quantise(
    victim: Victim, adapter: Any, clean: Rows | None, settings: dict[str, Any], draws: np.random.Generator
) -> GroupResult:
    """The model with rounded weights: symmetric, one scale per row, to the nearest, without calibration.

    s = max|w| / (2^(b-1) - 1), and w' = s round(w / s). Sums stay in the model's own type: only weights lose digits. It
    can be tuned afterwards, and the adapter is as large as the base's linear layers, both as in `prune`.
    """
    merged = weights.merged(victim, weights.whole(victim, adapter))
    rounded = {name: nearest(value, BITS[settings["bits"]]) for name, value in merged.items()}
    return rebuilt(victim, adapter, tune.fresh(victim, rounded, clean, settings, draws))


def nearest(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """weight (out, in) -> the nearest on a grid of 2^bits - 1 values per row; a row of zeros stays."""
    largest = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=1, keepdim=True) / largest
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (weight / scale).round().clamp(-largest, largest) * scale
