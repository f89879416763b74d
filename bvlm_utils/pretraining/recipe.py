"""The recipe of the tiny models, and what the trainings of tower and language model share."""

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from bvlm_utils.atomic import partial_name
from bvlm_utils.errors import InputError
from bvlm_utils.pretraining import pictures_and_words

TOKENS = pictures_and_words.GRID**2  # image tokens, one per 16-pixel square
EVERY = 120.0  # seconds between two savings of an unfinished training
TOWER, LANGUAGE = "unfinished-tower.safetensors", "unfinished-language.safetensors"  # beside what it will be


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


class Training:
    """The optimiser of some modules, its learning rate, and a file that is written now and then, so that a training
    that was killed goes on to the same numbers.

    generator: of the rows. file: of the state; it is removed when all steps are done. Every number of the recipe
    decides the weights, so a state of another recipe is not used.
    """

    def __init__(self, modules, lr: float, steps: int, generator: torch.Generator, file: Path, recipe: Recipe):
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
        self.lr, self.steps, self.generator, self.file = lr, steps, generator, file
        self.about, self.before = json.dumps(asdict(recipe)), spent(file)
        self.begun = self.saved = time.monotonic()

    def share(self, step: int) -> float:
        """Of the peak learning rate: a short warm-up, then a cosine to 1 %."""
        warm = min(500, max(self.steps // 10, 1))
        return (step + 1) / warm if step < warm else 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2

    def rest(self, name: str) -> tqdm:
        """The steps that are still to be made, with a bar."""
        first = self._load() if self.file.is_file() else 0
        return tqdm(range(first, self.steps), name, initial=first, total=self.steps, mininterval=10)

    def learn(self, loss: torch.Tensor, step: int) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr * self.share(step)
        self.optimiser.step()
        if step + 1 == self.steps:
            self.file.unlink(missing_ok=True)
        elif time.monotonic() - self.saved >= EVERY:
            self._save(step + 1)

    def _moments(self) -> dict[str, torch.Tensor]:
        """The tensors of the optimiser by name; those of AdamW have no others."""
        states = [self.optimiser.state[p] for p in self.parameters]
        return {f"{key}.{i}": state[key] for i, state in enumerate(states) for key in ("step", "exp_avg", "exp_avg_sq")}

    def _save(self, step: int) -> None:
        tensors = {f"weight.{i}": p.detach() for i, p in enumerate(self.parameters)} | self._moments()
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        tensors["generator"] = self.generator.get_state()
        about = {"step": str(step), "recipe": self.about, "seconds": f"{self.before + time.monotonic() - self.begun}"}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_name(partial_name(self.file.name))
        save_file(tensors, partial, metadata=about)
        os.replace(partial, self.file)
        self.saved = time.monotonic()

    @torch.no_grad()
    def _load(self) -> int:
        """The first step that is still to be made, with everything as it was before it."""
        with safe_open(self.file, "pt") as held:
            about = held.metadata()
            if about["recipe"] != self.about:
                raise InputError(f"{self.file} is of another recipe; remove it, or take the recipe {about['recipe']}.")
            found = {name: held.get_tensor(name) for name in held.keys()}
        for i, parameter in enumerate(self.parameters):
            parameter.copy_(found[f"weight.{i}"])
            kept = {key: found[f"{key}.{i}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq")}
            self.optimiser.state[parameter] = kept | {"step": found[f"step.{i}"].to(parameter.device)}
        self.generator.set_state(found["generator"])
        return int(about["step"])


def spent(file: Path) -> float:
    """The seconds that an unfinished training has taken so far; 0 without one."""
    if not file.is_file():
        return 0.0
    with safe_open(file, "pt") as held:
        return float(held.metadata()["seconds"])


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
