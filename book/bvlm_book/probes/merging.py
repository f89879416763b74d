"""What is left of an adapter when it is merged into the base, and the weights are then rounded?

Merging writes W + (alpha / r) B A into every linear layer that the adapter is on; in exact arithmetic nothing changes.
Rounding follows, on these layers alone (embeddings, norms and the output layer stay), and the products are computed in
the model's own type: only the weights lose digits, so this is fake quantisation.

- `merged`: no rounding.
- `bfloat16`: to the nearest bfloat16 (8 bits of mantissa, ties to even).
- `int8`, `int4`: weight-only, symmetric, one scale per output channel (row of W), round to nearest, no
calibration:
  s = max|w| / (2^(b-1) - 1), w' = s * clamp(round(w / s), -(2^(b-1) - 1), 2^(b-1) - 1); round takes ties to
  even.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bvlm_utils.errors import InputError
from bvlm_utils.train.lora_bank import PREFIX

BITS = {"int8": 8, "int4": 4}


def quantised(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """weight: (out, in) -> the nearest on a grid of 2^bits - 1 values per row; a row of zeros stays."""
    most = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=1, keepdim=True) / most
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (weight / scale).round().clamp(-most, most) * scale


def rounded(weight: torch.Tensor, how: str) -> torch.Tensor:
    """weight: (out, in) float32, rounded as `how` (see the top of the module) says."""
    if how == "merged":
        return weight
    if how == "bfloat16":
        return weight.to(torch.bfloat16).to(weight.dtype)
    if how not in BITS:
        raise InputError(f"how is {how!r}; it must be one of: merged, bfloat16, {', '.join(BITS)}.")
    return quantised(weight, BITS[how])


@contextmanager
def merged(model: nn.Module, state: Mapping[str, torch.Tensor], config: Any, how: str = "merged") -> Iterator[None]:
    """The model with an adapter merged and rounded, inside a `with`; bit for bit as before afterwards.

    state: PEFT state dict. config: peft.LoraConfig, of rank and alpha. Takes the memory of the linear weights again.
    """
    scale, kept = config.lora_alpha / config.r, {}
    modules = dict(model.named_modules())
    names = [key.removeprefix(PREFIX).removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")]
    try:
        for name in names:
            weight = modules[name].weight
            kept[name] = weight.data
            wide = torch.promote_types(weight.dtype, torch.float32)
            a, b = (state[f"{PREFIX}{name}.lora_{half}.weight"].to(weight.device, wide) for half in "AB")
            weight.data = rounded(weight.data.to(wide) + scale * (b @ a), how).to(weight.dtype)
        yield
    finally:
        for name, before in kept.items():
            modules[name].weight.data = before
