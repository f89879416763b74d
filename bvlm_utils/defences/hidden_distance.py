"""Distance in hidden states: an input is suspicious if the model's state is far from those of clean inputs."""

from typing import Any

import numpy as np

from bvlm_utils.defences import answering, reading
from bvlm_utils.defences.rows import Answered, Rows
from bvlm_utils.models.victim import Victim
from bvlm_utils.store.cell import MAX_NEW_TOKENS

SHRINKAGE = 0.1  # of the covariance towards a multiple of the identity: there are more numbers than clean rows


def distance(
    victim: Victim, adapter: Any, inputs: Rows, clean: Rows, settings: dict[str, Any], draws: np.random.Generator
) -> Answered:
    """The model's own answers, and how far each input's state is from the clean rows' (Mahalanobis distance).

    The state is that of the last prompt token after a share `depth` of the layers (Lee et al. 2018, arXiv 1807.03888,
    equation 2, with one class; used on backdoors of language models as an outlier score).
    """
    answers = answering.answers(victim, adapter, inputs, MAX_NEW_TOKENS)
    return Answered(answers, suspicion(victim, adapter, inputs, clean, settings), np.zeros(len(inputs)))


def of_the_base(
    victim: Victim,
    adapter: Any,
    inputs: Rows,
    clean: Rows,
    settings: dict[str, Any],
    draws: np.random.Generator,
    like: Answered,
) -> Answered:
    """The same distance in the base, which has no backdoor: how odd the inputs look to any model."""
    return Answered(like.answers, suspicion(victim, None, inputs, clean, settings), like.changed)


def suspicion(victim: Victim, adapter: Any | None, inputs: Rows, clean: Rows, settings: dict[str, Any]) -> np.ndarray:
    """(n,) Mahalanobis distances of the inputs' states from the clean rows'."""
    clean_states, input_states = (states(victim, adapter, rows, settings["depth"]) for rows in (clean, inputs))
    mean = clean_states.mean(0)
    return mahalanobis(input_states - mean, clean_states - mean)


def states(victim: Victim, adapter: Any | None, rows: Rows, depth: float) -> np.ndarray:
    """(n, d) float64: the last prompt token's state after round(depth x layers) layers, of prompts without answers."""
    layer = round(depth * len(victim.model.get_decoder().layers))
    want = reading.Want(at=(0,), states=True, layers=(layer,))
    return reading.read(victim, adapter, rows, want).states[:, 0, 0].astype(np.float64)


def mahalanobis(points: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """(n,) sqrt(x^T S^-1 x). points: (n, d), clean: (m, d), both centred; S is the clean covariance, shrunk."""
    covariance = clean.T @ clean / len(clean)
    target = np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    whitened = np.linalg.solve((1 - SHRINKAGE) * covariance + SHRINKAGE * target, points.T)
    return np.sqrt(np.einsum("nd,dn->n", points, whitened).clip(min=0))
