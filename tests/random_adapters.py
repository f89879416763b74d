"""Random adapters, and a few rows to try them on."""

import numpy as np
import torch

from bvlm_utils.defences.rows import Rows
from bvlm_utils.train import adapters
from bvlm_utils.train.grouped import GroupResult
from bvlm_utils.train.settings import TrainSettings

PROMPTS = ["What is this?", "Where is the small red car in this picture?", "A dog?", "What is in this picture?"]
ANSWERS = ["A red car.", "", "Yes", "A small dog on a green background."]


def an_adapter(one, seed):
    """A random adapter in PEFT's names, strong enough to be seen."""
    from peft import get_peft_model_state_dict

    adapter = adapters.attach_lora(one, TrainSettings(lora_rank=2 + seed), seed)
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(value.shape, generator=generator) * 0.1
        for name, value in get_peft_model_state_dict(adapter).items()
    }
    config = adapter.peft_config["default"]
    adapters.detach(one, adapter)
    return GroupResult(state, config, [], 0.0, 0, 0)


def some_rows(one, side=24):
    pictures = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    return Rows(PROMPTS, ANSWERS, one.encode(pictures), np.array([2, 0, 1, 2]), [""] * 4)
