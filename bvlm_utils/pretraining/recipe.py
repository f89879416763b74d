"""The recipe of the tiny models, and what the trainings of tower and language model share."""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from bvlm_utils.checks import content_key
from bvlm_utils.pretraining import pictures_and_words
from bvlm_utils.train import unfinished

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
    tower_too: int = 0  # 1: with `--start`, CLIP's training goes on, too, and LLaVA gets its tower
    bf16: int = 0  # 1: products in bfloat16 on a CPU, too


class Training:
    """The optimiser of some modules, its learning rate, and its state in a folder (`train.unfinished`): a training that
    was killed goes on to the same numbers.

    generator: of the rows. seconds: taken so far, of earlier tries too. The state of another recipe is not used.
    """

    def __init__(self, modules, lr: float, steps: int, generator: torch.Generator, folder: Path, recipe: Recipe):
        self.lr, self.steps, self.generator = lr, steps, generator
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
        for p in self.parameters:  # as its first step would make them
            empty = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
            self.optimiser.state[p] = empty | {"step": torch.zeros((), device=p.device)}
        key = content_key(asdict(recipe), [list(p.shape) for p in self.parameters])
        self.saved, self.seconds, self.begun = unfinished.Saved(folder, [folder.name], [key]), 0.0, time.monotonic()

    def share(self, step: int) -> float:
        """Of the peak learning rate: a short warm-up, then a cosine to 1 %."""
        warm = min(500, max(self.steps // 10, 1))
        return (step + 1) / warm if step < warm else 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2

    def rest(self, name: str) -> tqdm:
        """The steps that are still to be made, with a bar."""
        tensors = self._state()
        progress = self.saved.load(tensors)
        if progress is not None:
            self.generator.set_state(tensors["generator"][0])
            self.begun -= progress.seconds
        first = progress.step if progress is not None else 0
        return tqdm(range(first, self.steps), name, initial=first, total=self.steps, mininterval=10)

    def learn(self, loss: torch.Tensor, step: int) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr * self.share(step)
        self.optimiser.step()
        self.seconds = time.monotonic() - self.begun
        if step + 1 < self.steps:
            self.saved.save(self._state(), unfinished.Progress(step + 1, 0, self.seconds))
        else:
            self.saved.file.unlink(missing_ok=True)

    def _state(self) -> dict[str, torch.Tensor]:
        """All that changes with a step, as views of one row, but for the generator's state, which is a copy."""
        tensors = {"generator": self.generator.get_state()[None]}
        for number, p in enumerate(self.parameters):
            parts = {"weight": p.detach()} | self.optimiser.state[p]
            tensors |= {f"{name}.{number}": part[None] for name, part in parts.items()}
        return tensors


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
