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
        return [GroupResult(dict(adapter.state), adapter.config, [], 0.0, 0, 0) for adapter in adapters]
    weights.check_numbers(victim)
    rows, seed = training_rows(clean, settings, draws)
    jobs = []
    for adapter in adapters:
        start = weights.whole(victim, adapter)
        train = train_settings(settings, start.config.r, start.config.lora_alpha)
        jobs.append(GroupJob(rows, clean.features, train, seed, start.state))
    return grouped.finetune_group(victim, jobs)


def fresh(
    victim: Victim,
    merged: dict[str, Any],
    clean: Rows | None,
    settings: dict[str, Any],
    draws: np.random.Generator,
) -> dict[str, Any]:
    """The weights `merged` after tuning on clean rows: a fresh adapter is tuned on them, and added."""
    if not settings["steps"]:
        return merged
    rows, seed = training_rows(clean, settings, draws)
    with weights.on(victim, merged):
        job = GroupJob(rows, clean.features, train_settings(settings), seed)
        (adapter,) = grouped.finetune_group(victim, [job])
    tuned = dict(merged)
    for name, (b, a) in weights.updates(adapter).items():
        tuned[name] = tuned.get(name, weights.base(victim, name).cpu().double()) + b @ a
    return tuned


def training_rows(
    clean: Rows | None, settings: dict[str, Any], draws: np.random.Generator
) -> tuple[list[TrainRow], int]:
    """Enough rows for all steps, `rows` of the clean rows again and again; and a seed for their order."""
    rows = chosen(clean, settings["rows"], draws)
    count, order = settings["steps"] * BATCH, []
    while len(order) < count:
        order += draws.permutation(len(rows)).tolist()
    train_rows = [
        TrainRow(prompt, answer, int(feature))
        for prompt, answer, feature in zip(rows.prompts, rows.answers, rows.feature_rows, strict=True)
    ]
    return [train_rows[i] for i in order[:count]], int(draws.integers(2**31))


def chosen(clean: Rows | None, count: int, draws: np.random.Generator) -> Rows:
    """`count` of the clean rows, drawn at random; InputError if there are fewer."""
    if clean is None or len(clean) < count:
        raise InputError(
            f"{count} clean rows are needed, and {len(clean or ())} are there; give more, or lower `rows`."
        )
    return clean.take(draws.permutation(len(clean))[:count])


def train_settings(settings: dict[str, Any], rank: int = 8, alpha: float = 16) -> TrainSettings:
    return TrainSettings(batch_size=BATCH, learning_rate=settings["learning_rate"], lora_rank=rank, lora_alpha=alpha)
