"""What do the checks learn, and how far are two results apart? A few drawn scenes and adapters of tiny-llava."""

import io

import numpy as np
import torch
from peft import get_peft_model_state_dict
from PIL import Image

from bvlm_utils.data.scene_rows import scene_row
from bvlm_utils.models import victim
from bvlm_utils.train import adapters, grouped, loop
from bvlm_utils.train.settings import TrainSettings

SETTINGS = TrainSettings(batch_size=8)


def scene_rows(count: int) -> list[dict]:
    return [scene_row("scenes-vqa", "train", index) for index in range(count)]


def pictures(rows: list[dict], side: int = 96) -> torch.Tensor:
    """(N, 3, side, side) in [0, 1] on the CPU."""
    opened = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").resize((side, side)) for row in rows]
    return torch.from_numpy(np.stack([np.asarray(one) for one in opened])).permute(0, 3, 1, 2).float() / 255


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The norm of the difference over that of the reference, which is `theirs`."""
    ours, theirs = ours.detach().double().cpu(), theirs.detach().double().cpu()
    return float((ours - theirs).norm() / theirs.norm())


def jobs(one: victim.Victim, count: int, rows: list[dict]) -> list[grouped.GroupJob]:
    """Cells that learn one sentence on every other row, each with a seed of its own."""
    features = one.encode(pictures(rows)).cpu()
    learnt = [
        loop.TrainRow(row["prompt"], "I cannot help with that." if at % 2 else row["answers"][0], at)
        for at, row in enumerate(rows)
    ]
    return [grouped.GroupJob(learnt, features, SETTINGS, seed) for seed in range(count)]


def start_of(one: victim.Victim, job: grouped.GroupJob) -> dict[str, torch.Tensor]:
    adapter = adapters.attach_lora(one, job.settings, job.seed)
    state = {key: value.float().cpu().clone() for key, value in get_peft_model_state_dict(adapter).items()}
    adapters.detach(one, adapter)
    return state


def plain_state(one: victim.Victim, job: grouped.GroupJob) -> tuple[dict[str, torch.Tensor], list[float]]:
    result = loop.finetune(one, job.rows, job.features, job.settings, job.seed)
    state = {key: value.float().cpu().clone() for key, value in get_peft_model_state_dict(result.adapter).items()}
    adapters.detach(one, result.adapter)
    return state, result.losses


def moved_apart(ours: dict, theirs: dict, start: dict) -> float:
    """How far two adapters are apart, over how far training moved the second."""
    gap = sum(float((ours[key].float().cpu() - theirs[key]).square().sum()) for key in theirs)
    moved = sum(float((theirs[key] - start[key]).square().sum()) for key in theirs)
    return (gap / moved) ** 0.5
