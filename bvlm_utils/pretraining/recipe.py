"""The recipe of the tiny models, and what the trainings of tower and language model share."""

import math
from dataclasses import dataclass

import torch

from bvlm_utils.pretraining import pictures_and_words

TOKENS = pictures_and_words.GRID**2  # image tokens, one per 16-pixel square


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, but for the device's arithmetic."""

    seed: int = 0
    pictures: int = 160_000
    texts: int = 120_000
    tower_steps: int = 6_000
    tower_batch: int = 1024
    tower_lr: float = 1e-3
    language_steps: int = 7_000
    language_batch: int = 768
    language_lr: float = 2e-3
    small_stickers: int = 0  # so many of a hundred stickers are little and fine
    bf16: int = 0  # 1: products in bfloat16 on a CPU, too


def optimiser_of(modules, lr: float, steps: int):
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr, betas=(0.9, 0.98), weight_decay=0.02, fused=True)

    def share(step: int) -> float:  # of the peak learning rate: a short warm-up, then a cosine to 1 %
        warm = min(500, max(steps // 10, 1))
        return (step + 1) / warm if step < warm else 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2

    return parameters, optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, share)


def autocast(device: str, recipe: Recipe):
    """Products in bfloat16: on a GPU, and on a CPU if the recipe says so (three times as fast where it has them)."""
    kind = device.partition(":")[0]
    return torch.autocast(kind, torch.bfloat16, enabled=bool(recipe.bf16) or kind == "cuda")


def quick_attention(model: torch.nn.Module, device: str, recipe: Recipe) -> None:
    """Attention from plain products for training in bfloat16 on a CPU.

    There, the gradient of PyTorch's fused attention takes three times as long as everything else together. The saved
    configuration does not hold this setting.
    """
    if recipe.bf16 and device == "cpu":
        model.set_attn_implementation("eager")
