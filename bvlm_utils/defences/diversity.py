"""Training rows made diverse: cut, coloured and blurred pictures, prompts that lack words."""

from dataclasses import replace
from typing import Any

import numpy as np

from bvlm_utils.defences import pictures
from bvlm_utils.defences.rows import Rows
from bvlm_utils.models.victim import Victim

AMOUNTS = {"crop": 0.8, "colour": 0.4, "blur": 0.01}  # in the order in which they are applied
WORDS = 0.2  # of a prompt's words, where it loses some


def diverse(victim: Victim, rows: Rows, settings: dict[str, Any], draws: np.random.Generator) -> Rows:
    """The rows, each change made to each of them with probability `p`; answers stay."""
    images = pictures.of(rows, "input-diversity").copy()
    for name, amount in AMOUNTS.items():
        mask = draws.random(len(rows)) < settings["p"]
        if mask.any():
            images[mask] = pictures.CHANGES[name](images[mask], amount, draws)
    mask = draws.random(len(rows)) < settings["p"]
    prompts = [
        pictures.words_dropped(prompt, WORDS, draws) if drop else prompt
        for prompt, drop in zip(rows.prompts, mask, strict=True)
    ]
    return replace(pictures.shown(victim, rows, images), prompts=prompts)


def noisy(victim: Victim, rows: Rows, settings: dict[str, Any], draws: np.random.Generator, like: Rows) -> Rows:
    """The placebo: noise that moves the levels of each picture as far, and prompts as they were."""
    images = pictures.of(rows, "input-diversity")
    return pictures.shown(victim, rows, pictures.noise_like(images, like.pictures, draws))
