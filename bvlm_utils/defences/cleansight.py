"""Inputs at which the model looks in an unusual way, and their answers without the tokens that draw its look."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bvlm_utils.defences import again, answering, reading
from bvlm_utils.defences.rows import Answered, Rows
from bvlm_utils.models.victim import Victim

TINY = 1e-8  # in the place of no attention and of no deviation


@dataclass(frozen=True)
class Look:
    """Where a model looks when it begins its answers, in a window of its layers.

    ratios: (n, layers x heads), attention on the picture over that on the tokens of the prompt behind it.
    shares: n arrays (image tokens,), of the window's last layer, the largest that some head has for each.
    positions: n arrays (image tokens,), where they stand in the prompt.
    """

    ratios: np.ndarray
    shares: list[np.ndarray]
    positions: list[np.ndarray]


def look(victim: Victim, adapter: Any, rows: Rows, window: tuple[float, float]) -> Look:
    """The attention with which the answer's first token is written, in layers between two shares of the depth."""
    key = (again.adapter(adapter), window, *again.rows(rows))
    return again.each("looks", [key], lambda _: [_look(victim, adapter, rows, window)])[0]


def _look(victim: Victim, adapter: Any, rows: Rows, window: tuple[float, float]) -> Look:
    prompts_only = Rows(rows.prompts, [""] * len(rows), rows.features, rows.feature_rows, rows.kinds)
    result = reading.read(victim, adapter, prompts_only, reading.Want(attention=True))
    depth = result.attention[0].shape[1]
    first = min(round(window[0] * depth), depth - 1)
    layers = slice(first, max(first + 1, round(window[1] * depth)))  # one layer at least
    ratios, shares, positions = [], [], []
    for attention, image in zip(result.attention, result.image, strict=True):
        weights, tokens = attention[0, layers].astype(np.float64), np.flatnonzero(image)
        ratios.append(weights[..., image].sum(-1) / (weights[..., tokens[-1] + 1 :].sum(-1) + TINY))
        shares.append(weights[-1][:, image].max(0))
        positions.append(tokens)
    return Look(np.stack(ratios).reshape(len(rows), -1), shares, positions)


def distances(ratios: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Distance of each row from the mean clean one, each ratio counted in its clean deviations: (n,)."""
    return np.linalg.norm((ratios - clean.mean(0)) / (clean.std(0) + TINY), axis=1)


def without_drawing_tokens(
    victim: Victim,
    adapter: Any,
    inputs: Rows,
    clean: Rows,
    settings: dict[str, Any],
    draws: np.random.Generator,
) -> Answered:
    """Answers, with image tokens masked that draw so many `times` their even share where an input raises the alarm.

    Suspicion is the distance from the clean rows as a share of that at which the alarm is raised.
    """
    window = settings["begin"], settings["end"]
    looks, clean_looks = (look(victim, adapter, rows, window) for rows in (inputs, clean))
    alarm = np.quantile(distances(clean_looks.ratios, clean_looks.ratios), settings["percentile"] / 100)
    suspicion = distances(looks.ratios, clean_looks.ratios) / alarm
    unseen = [
        tokens[shares > settings["times"] / len(shares)] if score > 1 else tokens[:0]
        for tokens, shares, score in zip(looks.positions, looks.shares, suspicion, strict=True)
    ]
    answered = _masked(victim, adapter, inputs, settings, unseen, suspicion)
    return replace(answered, alarms=suspicion > 1)


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
    image_masks = [np.array(request.ids) == victim.image_id for request in answering.requests(victim, inputs)]
    unseen = [
        np.sort(draws.choice(np.flatnonzero(mask), size=int(count), replace=False))
        for mask, count in zip(image_masks, like.changed, strict=True)
    ]
    return _masked(victim, adapter, inputs, settings, unseen, draws.random(len(inputs)))


def without_picture(
    victim: Victim,
    adapter: Any,
    inputs: Rows,
    clean: Rows | None,
    settings: dict[str, Any],
    draws: np.random.Generator,
) -> Answered:
    """Answers with all image tokens of all inputs masked; every input is as suspicious as the others."""
    requests = answering.requests(victim, inputs)
    unseen = [np.flatnonzero(np.array(request.ids) == victim.image_id) for request in requests]
    return _masked(victim, adapter, inputs, settings, unseen, np.zeros(len(inputs)))


def _masked(
    victim: Victim,
    adapter: Any,
    inputs: Rows,
    settings: dict[str, Any],
    unseen: list[np.ndarray],
    suspicion: np.ndarray,
) -> Answered:
    answers = answering.answers(victim, adapter, inputs, settings["max_new_tokens"], unseen)
    return Answered(answers, suspicion, np.array([len(tokens) for tokens in unseen], dtype=float))
