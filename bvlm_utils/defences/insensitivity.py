"""Inputs whose answer does not move when the input does: a trigger that survives rules alone."""

from dataclasses import replace
from typing import Any

import numpy as np

from bvlm_utils.defences import answering, pictures, reading
from bvlm_utils.defences.rows import Answered, Rows
from bvlm_utils.models.victim import Victim

FACTORS = 2.0, 3.0, 4.0, 5.0  # by which levels are multiplied, in turn (SCALE-UP, Guo et al. 2023)


def insensitivity(
    victim: Victim,
    adapter: Any,
    inputs: Rows,
    clean: Rows,
    settings: dict[str, Any],
    draws: np.random.Generator,
) -> Answered:
    """The model's own answers, and how probable each stays, in mean, when its input is perturbed.

    The log-probability is that of the answer's first token, whatever the answer's length, or the mean over its tokens.
    """
    said = answering.answers(victim, adapter, inputs, settings["max_new_tokens"])
    copies = []
    for number in range(settings["copies"]):
        moved = perturbed(victim, inputs, clean, settings, draws, number)
        found = reading.read(victim, adapter, replace(moved, answers=said))
        copies.append(-(found.first_loss if settings["read"] == "first" else found.loss))
    return Answered(said, np.mean(copies, axis=0), np.zeros(len(inputs)))


def perturbed(
    victim: Victim, inputs: Rows, clean: Rows, settings: dict[str, Any], draws: np.random.Generator, number: int
) -> Rows:
    """One perturbed copy of the inputs, the `number`-th."""
    how, amount = settings["perturb"], settings["amount"]
    if how == "words":
        prompts = [pictures.words_shuffled(pictures.words_dropped(p, amount, draws), draws) for p in inputs.prompts]
        return replace(inputs, prompts=prompts)
    shown = pictures.of(inputs, "insensitivity")
    if how == "scale":
        return pictures.shown(victim, inputs, pictures.brighten(shown, FACTORS[number % len(FACTORS)], draws))
    others = pictures.of(clean, "insensitivity")
    return pictures.shown(victim, inputs, pictures.blend(shown, others, amount, draws))
