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
    answers = answering.answers(victim, adapter, inputs, settings["max_new_tokens"])
    log_probabilities = []
    for number in range(settings["copies"]):
        copy = perturbed(victim, inputs, clean, settings, draws, number)
        result = reading.read(victim, adapter, replace(copy, answers=answers))
        log_probabilities.append(-(result.first_loss if settings["read"] == "first" else result.loss))
    return Answered(answers, np.mean(log_probabilities, axis=0), np.zeros(len(inputs)))


def perturbed(
    victim: Victim, inputs: Rows, clean: Rows, settings: dict[str, Any], draws: np.random.Generator, number: int
) -> Rows:
    """One perturbed copy of the inputs, the `number`-th."""
    mode, amount = settings["perturb"], settings["amount"]
    if mode == "words":
        prompts = [
            pictures.words_shuffled(pictures.words_dropped(prompt, amount, draws), draws) for prompt in inputs.prompts
        ]
        return replace(inputs, prompts=prompts)
    images = pictures.of(inputs, "insensitivity")
    if mode == "scale":
        return pictures.shown(victim, inputs, pictures.brighten(images, FACTORS[number % len(FACTORS)], draws))
    others = pictures.of(clean, "insensitivity")
    return pictures.shown(victim, inputs, pictures.blend(images, others, amount, draws))
