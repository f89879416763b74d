"""Poisoned rows in the states of a tuned model: spectral signatures, and clusters of activations."""

from dataclasses import replace
from typing import Any

import numpy as np

from bvlm_utils.defences import reading
from bvlm_utils.defences.rows import Rows
from bvlm_utils.models.victim import Victim

POSITIONS = {"prompt": 0, "answer": -2}  # the last prompt token; the last token of the answer, before its end
COMPONENTS = 10  # of the principal components that are clustered (Chen et al. 2018, algorithm 1)
FEWEST = 2 * COMPONENTS  # rows of a group that are clustered; smaller groups say nothing


def signatures(
    victim: Victim, adapter: Any, rows: Rows, settings: dict[str, Any], draws: np.random.Generator
) -> np.ndarray:
    """Squared projection of each centred state on its group's top right singular vector: (n,)."""
    states, scores = states_of(victim, adapter, rows, settings), np.zeros(len(rows))
    for members in groups(rows, settings):
        scores[members] = projections(states[members])
    return scores


def projections(states: np.ndarray) -> np.ndarray:
    """Tran et al. 2018, algorithm 1. states: (n, d) -> (n,)."""
    centred = states - states.mean(0)
    top = np.linalg.svd(centred, full_matrices=False)[2][0]
    return (centred @ top) ** 2


def clusters(
    victim: Victim, adapter: Any, rows: Rows, settings: dict[str, Any], draws: np.random.Generator
) -> np.ndarray:
    """How much nearer each state is to the smaller cluster's centre than to the larger one's: (n,), above 0 in it."""
    states, scores = states_of(victim, adapter, rows, settings), np.zeros(len(rows))
    for members in groups(rows, settings):
        if len(members) >= FEWEST:
            scores[members] = two_clusters(states[members], int(draws.integers(2**31)))
    return scores


def largest_silhouette(
    victim: Victim, adapter: Any, rows: Rows, settings: dict[str, Any], draws: np.random.Generator
) -> float:
    """The largest silhouette of a group's two clusters: Chen et al. 2018, section 4, on whether there is poison."""
    states = states_of(victim, adapter, rows, settings)
    members = [one for one in groups(rows, settings) if len(one) >= FEWEST]
    return max((silhouette(states[one], int(draws.integers(2**31))) for one in members), default=0.0)


def silhouette(states: np.ndarray, seed: int) -> float:
    """How well k-means with two centres parts the states: the mean silhouette, -1 to 1; 0 where all rows are one."""
    from sklearn.metrics import silhouette_score

    if (parts := _two_means(states, seed)) is None:
        return 0.0
    reduced, kmeans = parts
    return float(silhouette_score(reduced, kmeans.labels_))


def two_clusters(states: np.ndarray, seed: int) -> np.ndarray:
    """k-means with two centres on the principal components: scores (n,) as in `clusters` (Chen et al. 2018)."""
    if (parts := _two_means(states, seed)) is None:
        return np.zeros(len(states))
    reduced, kmeans = parts
    distances = kmeans.transform(reduced)
    small = np.bincount(kmeans.labels_, minlength=2).argmin()
    apart = np.linalg.norm(kmeans.cluster_centers_[0] - kmeans.cluster_centers_[1])
    return (distances[:, 1 - small] - distances[:, small]) / apart


def _two_means(states: np.ndarray, seed: int) -> tuple[np.ndarray, Any] | None:
    """The principal components of the states, and two means fitted on them; None where all rows are one."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    if np.ptp(states, axis=0).max() == 0:
        return None
    reduced = PCA(min(COMPONENTS, *states.shape), random_state=seed).fit_transform(states.astype(np.float64))
    return reduced, KMeans(2, n_init=10, random_state=seed).fit(reduced)


def states_of(victim: Victim, adapter: Any, rows: Rows, settings: dict[str, Any]) -> np.ndarray:
    """(n, d): the hidden states at the depth and the position that the settings name."""
    layer = reading.layer_at(victim, settings["depth"])
    want = reading.Want(at=(POSITIONS[settings["position"]],), states=True, layers=(layer,))
    if settings["position"] == "prompt":  # which never looks at the answer
        rows = replace(rows, answers=[""] * len(rows))
    return reading.read(victim, adapter, rows, want).states[:, 0, 0]


def groups(rows: Rows, settings: dict[str, Any]) -> list[np.ndarray]:
    """The positions of rows that are compared with one another: those of one question kind, or all."""
    if settings["groups"] == "all":
        return [np.arange(len(rows))]
    kinds = np.asarray(rows.kinds)
    return [np.flatnonzero(kinds == kind) for kind in dict.fromkeys(rows.kinds)]
