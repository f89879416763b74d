"""Shrink the update: the model between the base and the tuned one."""

from typing import Any

import numpy as np
import torch

from bvlm_utils.defences.rows import Rows
from bvlm_utils.models.victim import Victim
from bvlm_utils.train.grouped import GroupResult


def shrink(
    victim: Victim, adapter: Any, clean: Rows | None, settings: dict[str, Any], draws: np.random.Generator
) -> GroupResult:
    """The adapter whose update is `strength` times the given one's (WiSE-FT, Wortsman et al. 2022, equation 1)."""
    state = {
        name: value * settings["strength"] if ".lora_B." in name else value for name, value in adapter.state.items()
    }
    return adapter_of(adapter, state)


def noise(
    victim: Victim,
    adapter: Any,
    clean: Rows | None,
    settings: dict[str, Any],
    draws: np.random.Generator,
    like: GroupResult,
) -> GroupResult:
    """Gaussian noise of the norm by which the defence changed each B, added to the given adapter."""
    state = {}
    for name, value in adapter.state.items():
        change = (like.state[name] - value).norm()
        random = torch.from_numpy(draws.standard_normal(tuple(value.shape))).to(value)
        state[name] = value + random * (change / random.norm())
    return adapter_of(adapter, state)


def adapter_of(adapter: Any, state: dict[str, torch.Tensor]) -> GroupResult:
    """A repaired adapter: other numbers under the configuration of the one that it was made from."""
    return GroupResult(state, adapter.config, [], 0.0, 0, 0)
