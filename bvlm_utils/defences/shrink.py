"""Shrink the update: the model between the base and the tuned one."""

from typing import Any

import numpy as np

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
    return GroupResult(state, adapter.config, [], 0.0, 0, 0)


def oracle(
    victim: Victim, adapter: Any, clean: Rows | None, settings: dict[str, Any], draws: np.random.Generator
) -> GroupResult:
    """The base again: everything that tuning taught is gone, the backdoor with it."""
    return shrink(victim, adapter, clean, {"strength": 0.0}, draws)
