"""Truncate the update: keep or drop the leading components of its singular value decomposition, layer by layer."""

from typing import Any

import numpy as np
import torch

from bvlm_utils.defences import weights
from bvlm_utils.defences.rows import Rows
from bvlm_utils.models.victim import Victim
from bvlm_utils.train.grouped import GroupResult


def decompose(b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The SVD of B A as U (out, r), S (r,), V (r, in), from the r x r core of two thin QR decompositions."""
    left, upper = torch.linalg.qr(b)
    right, lower = torch.linalg.qr(a.T)
    u, s, v = torch.linalg.svd(upper @ lower.T)
    k = len(s)
    return left @ u[:, :k], s, v[:k] @ right.T


def truncate(
    victim: Victim, adapter: Any, clean: Rows | None, settings: dict[str, Any], draws: np.random.Generator
) -> GroupResult:
    """The adapter with the first `components` components of each layer alone (keep "top"), or without them ("rest").

    A layer that has no more components than that keeps all ("top") or none of them ("rest").
    """
    count, top = settings["components"], settings["keep"] == "top"
    return _chosen(adapter, lambda total: range(total)[:count] if top else range(total)[count:])


def at_random(
    victim: Victim,
    adapter: Any,
    clean: Rows | None,
    settings: dict[str, Any],
    draws: np.random.Generator,
    like: GroupResult,
) -> GroupResult:
    """As many components of each layer as the defence keeps, drawn at random."""
    count, top = settings["components"], settings["keep"] == "top"

    def some(total: int) -> list[int]:
        number = min(count, total) if top else max(total - count, 0)
        return sorted(draws.permutation(total)[:number].tolist())

    return _chosen(adapter, some)


def _chosen(adapter: Any, positions: Any) -> GroupResult:
    """The adapter with some components of each layer. positions: their number -> which of them."""
    updates = {}
    for name, (b, a) in weights.updates(adapter).items():
        u, s, v = decompose(b, a)
        components = list(positions(len(s)))
        updates[name] = (u[:, components] * s[components], v[components])
    return weights.adapter_of(updates, adapter)
