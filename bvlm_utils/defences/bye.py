"""Poisoned rows by where the model looks: the entropy of its attention over the picture (BYE)."""

from dataclasses import replace
from typing import Any

import numpy as np

from bvlm_utils.defences import reading
from bvlm_utils.defences.rows import Rows
from bvlm_utils.models.victim import Victim


def collapse(
    victim: Victim, adapter: Any, rows: Rows, settings: dict[str, Any], draws: np.random.Generator
) -> np.ndarray:
    """How collapsed each row's attention over the picture is, mean over the layers that show two groups: (n,).

    0 for all rows if no layer does. Entropies of each layer are brought to mean 0 and deviation 1 first. With the side
    "either", what counts is the distance from the mean: a trigger may as well spread the attention.
    """
    entropies = entropies_of(victim, adapter, rows)
    seed = int(draws.integers(2**31))
    varying = [layer for layer in entropies.T if layer.std() > 0]
    layers = [layer for layer in varying if bimodality(layer, seed) >= settings["criterion"]]
    if not layers:
        return np.zeros(len(rows))
    scores = -np.mean([(layer - layer.mean()) / layer.std() for layer in layers], axis=0)
    return np.abs(scores) if settings["side"] == "either" else scores


def most_bimodal(
    victim: Victim, adapter: Any, rows: Rows, settings: dict[str, Any], draws: np.random.Generator
) -> float:
    """The bimodality of the layer that shows two groups most clearly; above `criterion` the paper sees poison."""
    seed = int(draws.integers(2**31))
    return max(bimodality(layer, seed) for layer in entropies_of(victim, adapter, rows).T)


def entropies_of(victim: Victim, adapter: Any, rows: Rows) -> np.ndarray:
    """Entropy over image tokens of the attention with which the answer's first token is written: (n, layers), nats."""
    prompts_only = replace(rows, answers=[""] * len(rows))  # the prompt's last token never looks at them
    result = reading.read(victim, adapter, prompts_only, reading.Want(attention=True))
    return np.stack(
        [entropy(attention[0][..., image]) for attention, image in zip(result.attention, result.image, strict=True)]
    )


def entropy(attention: np.ndarray) -> np.ndarray:
    """(layers, heads, image tokens) -> (layers,), of the mean over heads, as a share of what the picture gets."""
    share = attention.astype(np.float64).mean(1)
    share = share / share.sum(-1, keepdims=True)
    return -(share * np.log(share, where=share > 0, out=np.zeros_like(share))).sum(-1)


def bimodality(values: np.ndarray, seed: int) -> float:
    """|m1 - m2| / sqrt(s1^2 + s2^2) of a mixture of two Gaussians; 0 where all values are one. values: (n,)."""
    from sklearn.mixture import GaussianMixture

    if len(values) < 2 or np.ptp(values) == 0:
        return 0.0
    scaled = (values - values.mean()) / values.std()
    mixture = GaussianMixture(2, n_init=3, random_state=seed).fit(scaled[:, None])
    return float(abs(np.subtract(*mixture.means_[:, 0])) / np.sqrt(mixture.covariances_.sum()))
