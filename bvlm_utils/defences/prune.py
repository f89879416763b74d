"""Prune the merged weights: half of them become zero, the smallest or those that clean rows use least."""

from typing import Any

import numpy as np
import torch

from bvlm_utils.defences import activations, tune, weights
from bvlm_utils.defences.rows import Rows
from bvlm_utils.models.victim import Victim
from bvlm_utils.train.grouped import GroupResult


def prune(
    victim: Victim, adapter: Any, clean: Rows, settings: dict[str, Any], draws: np.random.Generator
) -> GroupResult:
    """The model with a share of its weights set to zero, those with the lowest score in each row of each layer.

    "magnitude": the score is |W|. "wanda": |W| times the norm of the input (Sun et al. 2023, arXiv 2306.11695, equation
    1) on the clean rows. What is left is then tuned for `steps` steps on clean rows, with a fresh adapter (as in Liu et
    al. 2018, arXiv 1805.12185, section 4; its zeros fill up again). The result is no low-rank change, so the adapter is
    as large as the base's linear layers (`weights.full_rank`). Weights of the base's layers without an update are
    pruned, too, as a compressed model's are.
    """
    merged = weights.merged(victim, weights.whole(victim, adapter))
    scale: dict[str, torch.Tensor] = {}
    if settings["by"] == "wanda":
        rows = tune.chosen(clean, settings["rows"], draws)
        with weights.on(victim, merged):
            scale = activations.observe(victim, list(merged), rows).inputs
    pruned = {name: without(value, scale.get(name), settings["share"]) for name, value in merged.items()}
    return rebuilt(victim, adapter, tune.fresh(victim, pruned, clean, settings, draws))


def without(weight: torch.Tensor, scale: torch.Tensor | None, share: float) -> torch.Tensor:
    """weight (out, in) with a share of each row set to zero: where |weight| times scale (in,) is lowest."""
    score = weight.abs() if scale is None else weight.abs() * scale
    lowest = score.argsort(dim=1)[:, : round(share * weight.shape[1])]
    return weight.scatter(1, lowest, 0.0)


def rebuilt(victim: Victim, adapter: Any, merged: dict[str, torch.Tensor]) -> GroupResult:
    """The adapter that turns the base's weights into these."""
    updates = {name: weights.full_rank(value - weights.base(victim, name).cpu()) for name, value in merged.items()}
    return weights.adapter_of(updates, adapter)
