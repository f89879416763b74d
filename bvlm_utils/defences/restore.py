"""Restore channels from the base: in each layer, the outputs that look most like the backdoor lose their update."""

from typing import Any

import numpy as np
import torch

from bvlm_utils.defences import activations, tune, weights
from bvlm_utils.defences.rows import Rows
from bvlm_utils.models.victim import Victim
from bvlm_utils.train.grouped import GroupResult


def restore(
    victim: Victim, adapter: Any, clean: Rows, settings: dict[str, Any], draws: np.random.Generator
) -> GroupResult:
    """The adapter without its update in a share of each layer's output channels: rows of B become zero.

    by "weights": the channels whose update has the largest norm. "outputs": those whose outputs the update changes most
    on `rows` clean rows (mean size). "dormant": those with the smallest outputs on clean rows (Liu et al. 2018, arXiv
    1805.12185, section 3, which prunes them; here they are restored).
    """
    updates = weights.updates(adapter)
    if settings["by"] == "weights":
        scores = {name: (b @ a).norm(dim=1) for name, (b, a) in updates.items()}
    else:
        rows = tune.chosen(clean, settings["rows"], draws)
        with weights.on(victim, weights.merged(victim, adapter)):
            observed = activations.observe(victim, list(updates), rows, updates)
        scores = observed.changes if settings["by"] == "outputs" else {name: -y for name, y in observed.outputs.items()}
    return _restored(
        adapter, updates, {name: score.argsort(descending=True) for name, score in scores.items()}, settings
    )


def at_random(
    victim: Victim,
    adapter: Any,
    clean: Rows | None,
    settings: dict[str, Any],
    draws: np.random.Generator,
    like: GroupResult,
) -> GroupResult:
    """As many channels of each layer, drawn at random."""
    updates = weights.updates(adapter)
    order = {name: torch.from_numpy(draws.permutation(b.shape[0])) for name, (b, _) in updates.items()}
    return _restored(adapter, updates, order, settings)


def _restored(
    adapter: Any, updates: weights.Updates, order: dict[str, torch.Tensor], settings: dict[str, Any]
) -> GroupResult:
    """The first channels of each layer's order are the base's again."""
    restored = {}
    for name, (b, a) in updates.items():
        b = b.clone()
        b[order[name][: round(settings["share"] * b.shape[0])]] = 0
        restored[name] = (b, a)
    return weights.adapter_of(restored, adapter)
