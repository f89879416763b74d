"""Clean fine-tuning: the adapter is tuned on, with rows that nobody has poisoned."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bvlm_utils.defences import weights
from bvlm_utils.defences.rows import Rows
from bvlm_utils.errors import InputError
from bvlm_utils.models.victim import Victim
from bvlm_utils.train import grouped
from bvlm_utils.train.grouped import GroupJob, GroupResult
from bvlm_utils.train.loop import TrainRow
from bvlm_utils.train.settings import TrainSettings

BATCH = 32  # as in the study's own training


def clean_fine_tuning(
    victim: Victim, adapter: Any, clean: Rows, settings: dict[str, Any], draws: np.random.Generator
) -> GroupResult:
    """The adapter after `steps` more steps of 32 rows, which are `rows` of the clean ones, again and again.

    The loss, the schedule and the layers are those of the first training; rank and alpha are the adapter's.
    """
    return many(victim, [adapter], clean, settings, draws)[0]


def many(
    victim: Victim, adapters: Sequence[Any], clean: Rows, settings: dict[str, Any], draws: np.random.Generator
) -> list[GroupResult]:
    """`clean_fine_tuning` of several adapters, all at once and on the same rows."""
    if not settings["steps"]:
        return [GroupResult(dict(one.state), one.config, [], 0.0, 0, 0) for one in adapters]
    weights.check_numbers(victim)
    rows, seed = training_rows(clean, settings, draws)
    jobs = []
    for one in adapters:
        start = weights.whole(victim, one)
        own = train_settings(settings, start.config.r, start.config.lora_alpha)
        jobs.append(GroupJob(rows, clean.features, own, seed, start.state))
    return grouped.finetune_group(victim, jobs)


def fresh(
    victim: Victim,
    below: dict[str, Any],
    clean: Rows | None,
    settings: dict[str, Any],
    draws: np.random.Generator,
) -> dict[str, Any]:
    """Weights after tuning on clean rows: a fresh adapter on a victim with the weights `below`, added to them."""
    if not settings["steps"]:
        return below
    rows, seed = training_rows(clean, settings, draws)
    with weights.on(victim, below):
        job = GroupJob(rows, clean.features, train_settings(settings), seed)
        (learnt,) = grouped.finetune_group(victim, [job])
    every = dict(below)
    for name, (b, a) in weights.updates(learnt).items():
        every[name] = every.get(name, weights.base(victim, name).cpu().double()) + b @ a
    return every


def training_rows(
    clean: Rows | None, settings: dict[str, Any], draws: np.random.Generator
) -> tuple[list[TrainRow], int]:
    """Enough rows for all steps, `rows` of the clean rows again and again; and a seed for their order."""
    rows = chosen(clean, settings["rows"], draws)
    wanted, order = settings["steps"] * BATCH, []
    while len(order) < wanted:
        order += draws.permutation(len(rows)).tolist()
    every = [
        TrainRow(prompt, answer, int(feature))
        for prompt, answer, feature in zip(rows.prompts, rows.answers, rows.feature_rows, strict=True)
    ]
    return [every[at] for at in order[:wanted]], int(draws.integers(2**31))


def chosen(clean: Rows | None, count: int, draws: np.random.Generator) -> Rows:
    """`count` of the clean rows, drawn at random; InputError if there are fewer."""
    if clean is None or len(clean) < count:
        raise InputError(
            f"{count} clean rows are needed, and {len(clean or ())} are there; give more, or lower `rows`."
        )
    return clean.take(draws.permutation(len(clean))[:count])


def train_settings(settings: dict[str, Any], rank: int = 8, alpha: float = 16) -> TrainSettings:
    return TrainSettings(batch_size=BATCH, learning_rate=settings["learning_rate"], lora_rank=rank, lora_alpha=alpha)
