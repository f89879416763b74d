"""Mix the adapter with harmless ones: the mean of their updates."""

from typing import Any

import numpy as np
import torch

from bvlm_utils.defences import weights
from bvlm_utils.defences.defence import other_adapter
from bvlm_utils.defences.rows import Rows
from bvlm_utils.errors import InputError
from bvlm_utils.models.victim import Victim
from bvlm_utils.train import adapters
from bvlm_utils.train.grouped import GroupResult


def mix(
    victim: Victim, adapter: Any, clean: Rows | None, settings: dict[str, Any], draws: np.random.Generator
) -> GroupResult:
    """The mean of the adapter's update and those of the adapters in the folders `others`, exactly.

    The factors stand side by side, so that the rank of the result is the sum of theirs (Arora et al. 2024, arXiv
    2402.19334, weight averaging; there whole models, here updates of one base, which is the same).
    """
    others = _others(victim, settings)
    return _mean([weights.updates(adapter), *others], adapter)


def with_random(
    victim: Victim,
    adapter: Any,
    clean: Rows | None,
    settings: dict[str, Any],
    draws: np.random.Generator,
    like: GroupResult,
) -> GroupResult:
    """The same mean, with random updates in the place of the harmless ones, of their norm in every layer."""
    others = [
        {name: weights.random(update, weights.norm(update), draws) for name, update in other.items()}
        for other in _others(victim, settings)
    ]
    return _mean([weights.updates(adapter), *others], adapter)


def _others(victim: Victim, settings: dict[str, Any]) -> list[weights.Updates]:
    if not settings["others"]:
        raise InputError("mix needs other adapters of the same base; name their folders in `others`.")
    return [weights.updates(adapters.read(other_adapter(name, victim.name))) for name in settings["others"]]


def _mean(updates: list[weights.Updates], like: Any) -> GroupResult:
    mean = {}
    for name in dict.fromkeys(name for update in updates for name in update):
        factors = [update[name] for update in updates if name in update]
        if len({(b.shape[0], a.shape[1]) for b, a in factors}) > 1:
            raise InputError(f"The adapters differ in the size of {name}; mix adapters of one base.")
        mean[name] = (torch.cat([b for b, _ in factors], 1) / len(updates), torch.cat([a for _, a in factors], 0))
    return weights.adapter_of(mean, like)
