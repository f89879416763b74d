"""Poisoned rows by their loss: what the base does not expect, and what a model learns first."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bvlm_utils.defences import reading
from bvlm_utils.defences.rows import Rows
from bvlm_utils.models.victim import Victim
from bvlm_utils.train.settings import TrainSettings


def base_loss(
    victim: Victim, adapter: Any, rows: Rows, settings: dict[str, Any], draws: np.random.Generator
) -> np.ndarray:
    """Mean negative log-probability of each answer under the base: (n,)."""
    return reading.read(victim, None, rows).loss


def early_loss(
    victim: Victim, adapter: Any, rows: Rows, settings: dict[str, Any], draws: np.random.Generator
) -> np.ndarray:
    """Minus the loss after a few steps: what is learnt first is suspicious: (n,)."""
    return -loss_curve(victim, rows, [settings["steps"]], settings["learning_rate"], draws)[0]


def loss_curve(
    victim: Victim, rows: Rows, steps: Sequence[int], learning_rate: float, draws: np.random.Generator
) -> np.ndarray:
    """The loss of every row after so many steps of tuning on the rows, from the base on: (len(steps), n).

    steps: ascending. The tuning goes on from one to the next with fresh moments of the optimiser.
    """
    from bvlm_utils.train import grouped
    from bvlm_utils.train.loop import TrainRow

    train = TrainSettings(learning_rate=learning_rate, schedule="constant")
    train_rows = [TrainRow(*row) for row in zip(rows.prompts, rows.answers, map(int, rows.feature_rows), strict=True)]
    order = np.concatenate([draws.permutation(len(rows)) for _ in range(-(-steps[-1] * train.batch_size // len(rows)))])
    curve, start, seed, steps_done = [], None, int(draws.integers(2**31)), 0
    for step in steps:
        if step > steps_done:
            chunk = [train_rows[i] for i in order[steps_done * train.batch_size : step * train.batch_size]]
            job = grouped.GroupJob(chunk, rows.features, train, seed, start)
            adapter, steps_done = grouped.finetune_group(victim, [job])[0], step
            start = adapter.state
        curve.append(reading.read(victim, adapter if start else None, rows).loss)
    return np.stack(curve)
