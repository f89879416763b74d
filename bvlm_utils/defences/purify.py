"""Cheap changes of the picture before the model sees it, and the answer to what is left."""

from typing import Any

import numpy as np

from bvlm_utils.defences import answering, pictures
from bvlm_utils.defences.rows import Answered, Rows
from bvlm_utils.models.victim import Victim


def _answer(victim: Victim, adapter: Any, inputs: Rows, changed: np.ndarray, settings: dict[str, Any]) -> Answered:
    """Answers to changed pictures; suspicious, 1, is an input whose answer moves with them."""
    distances = pictures.distance(inputs.pictures, changed)
    before = answering.answers(victim, adapter, inputs, settings["max_new_tokens"])
    after = answering.answers(victim, adapter, pictures.shown(victim, inputs, changed), settings["max_new_tokens"])
    return Answered(after, np.array([a != b for a, b in zip(after, before, strict=True)], dtype=float), distances)


def _by(name: str) -> Any:
    def purify(
        victim: Victim,
        adapter: Any,
        inputs: Rows,
        clean: Rows | None,
        settings: dict[str, Any],
        draws: np.random.Generator,
    ) -> Answered:
        changed = pictures.CHANGES[name](pictures.of(inputs, name), settings["amount"], draws)
        return _answer(victim, adapter, inputs, changed, settings)

    def noise(
        victim: Victim,
        adapter: Any,
        inputs: Rows,
        clean: Rows | None,
        settings: dict[str, Any],
        draws: np.random.Generator,
        like: Answered,
    ) -> Answered:
        """The placebo: noise that moves the levels of each picture as far."""
        images = pictures.of(inputs, name)
        changed = pictures.noise_like(images, pictures.CHANGES[name](images, settings["amount"], draws), draws)
        return _answer(victim, adapter, inputs, changed, settings)

    return purify, noise


jpeg, jpeg_noise = _by("jpeg")
blur, blur_noise = _by("blur")
resize, resize_noise = _by("resize")
crop, crop_noise = _by("crop")
drop, drop_noise = _by("drop")
