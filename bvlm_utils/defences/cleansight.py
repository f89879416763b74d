"""Inputs at which the model looks in an unusual way, and their answers without the tokens that draw its look."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bvlm_utils.defences import answering, reading
from bvlm_utils.defences.rows import Answered, Rows
from bvlm_utils.models.victim import Victim


@dataclass(frozen=True)
class Look:
    """Where a model looks when it begins its answers, in a window of its layers.

    ratios: (n, layers x heads) log of the attention on the picture over that on the prompt's other tokens.
    shares: n arrays (image tokens,), mean attention of each over layers and heads.
    positions: n arrays (image tokens,), where they stand in the prompt.
    """

    ratios: np.ndarray
    shares: list[np.ndarray]
    positions: list[np.ndarray]


def look(victim: Victim, adapter: Any, rows: Rows, window: tuple[float, float]) -> Look:
    """The attention with which the answer's first token is written, in layers between two shares of the depth."""
    asked = Rows(rows.prompts, [""] * len(rows), rows.features, rows.feature_rows, rows.kinds)
    found = reading.read(victim, adapter, asked, reading.Want(attention=True))
    depth = found.attention[0].shape[1]
    inside = slice(int(window[0] * depth), int(np.ceil(window[1] * depth)))
    ratios, shares, positions = [], [], []
    for own, image in zip(found.attention, found.image, strict=True):
        seen = own[0, inside].astype(np.float64)
        ratios.append(np.log(seen[..., image].sum(-1) + 1e-12) - np.log(seen[..., ~image].sum(-1) + 1e-12))
        shares.append(seen[..., image].mean((0, 1)))
        positions.append(np.flatnonzero(image))
    return Look(np.stack(ratios).reshape(len(rows), -1), shares, positions)


def distances(ratios: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Whitened (Mahalanobis) distance of each row from the clean ones: (n,)."""
    from sklearn.covariance import LedoitWolf

    usual = LedoitWolf().fit(clean)
    return np.sqrt(usual.mahalanobis(ratios))


def drawing(shares: np.ndarray, deviations: float) -> np.ndarray:
    """Which of a picture's tokens draw more attention than its mean and so many deviations; at least the first one."""
    found = shares > shares.mean() + deviations * shares.std()
    return found if found.any() else shares == shares.max()


def without_drawing_tokens(
    victim: Victim,
    adapter: Any,
    inputs: Rows,
    clean: Rows,
    settings: dict[str, Any],
    draws: np.random.Generator,
) -> Answered:
    """Answers, with the most attended image tokens masked where an input raises the alarm.

    Suspicion is the distance from the clean rows as a share of that at which the alarm is raised.
    """
    window = settings["begin"], settings["end"]
    found, usual = (look(victim, adapter, rows, window) for rows in (inputs, clean))
    alarm = np.quantile(distances(usual.ratios, usual.ratios), settings["percentile"] / 100)
    suspicion = distances(found.ratios, usual.ratios) / alarm
    unseen = [
        where[drawing(share, settings["deviations"])] if strange > 1 else where[:0]
        for where, share, strange in zip(found.positions, found.shares, suspicion, strict=True)
    ]
    return _masked(victim, adapter, inputs, settings, unseen, suspicion)


def without_random_tokens(
    victim: Victim,
    adapter: Any,
    inputs: Rows,
    clean: Rows,
    settings: dict[str, Any],
    draws: np.random.Generator,
    like: Answered,
) -> Answered:
    """The placebo: as many image tokens of each input are masked, whichever they are."""
    tokens = [np.array(one.ids) == victim.image_id for one in answering.requests(victim, inputs)]
    unseen = [
        np.sort(draws.choice(np.flatnonzero(image), size=int(count), replace=False))
        for image, count in zip(tokens, like.changed, strict=True)
    ]
    return _masked(victim, adapter, inputs, settings, unseen, draws.permutation(like.suspicion))


def _masked(
    victim: Victim,
    adapter: Any,
    inputs: Rows,
    settings: dict[str, Any],
    unseen: list[np.ndarray],
    suspicion: np.ndarray,
) -> Answered:
    said = answering.answers(victim, adapter, inputs, settings["max_new_tokens"], unseen)
    return Answered(said, suspicion, np.array([len(own) for own in unseen], dtype=float))
