"""Answers of one model to rows, as defences at inference need them, and what placebos of such defences do."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bvlm_utils.defences import again, reading
from bvlm_utils.defences.rows import Answered, Rows
from bvlm_utils.models.victim import Victim
from bvlm_utils.train import decode


def requests(victim: Victim, rows: Rows, unseen: Sequence[Sequence[int]] | None = None) -> list[decode.Request]:
    """The rows' prompts for `decode.greedy`; unseen: per row, the positions of tokens that nothing may attend to."""
    ids = reading.prompt_ids(victim, rows)
    masked = unseen or [()] * len(rows)
    return [
        decode.Request(ids[prompt], int(feature_row), tokens)
        for prompt, feature_row, tokens in zip(rows.prompts, rows.feature_rows, masked, strict=True)
    ]


def answers(
    victim: Victim,
    adapter: Any | None,
    rows: Rows,
    max_new_tokens: int,
    unseen: Sequence[Sequence[int]] | None = None,
) -> list[str]:
    """Greedy answers of the victim with `adapter` (None: the base); `unseen` as in `requests`."""
    all_requests, ends = requests(victim, rows, unseen), decode.ends_of(victim)

    def ask(missing: list[int]) -> list[str]:
        batch = [all_requests[i] for i in missing]
        with reading.attached(victim, adapter):
            token_ids = decode.greedy(victim.model, [batch], rows.features, ends, max_new_tokens)
        return decode.texts_of(victim, token_ids)[0]

    model_key, masked = (*again.adapter(adapter), max_new_tokens), unseen or [()] * len(rows)
    keys = [(model_key, row, tuple(tokens)) for row, tokens in zip(again.rows(rows), masked, strict=True)]
    return again.each("answers", keys, ask)


def shuffled_scores(
    victim: Victim, adapter: Any, rows: Rows, settings: dict[str, Any], draws: np.random.Generator, like: np.ndarray
) -> np.ndarray:
    """The defence's scores dealt out at random: any threshold drops as many rows."""
    return draws.permutation(like)


def random_suspicion(
    victim: Victim,
    adapter: Any,
    inputs: Rows,
    clean: Rows | None,
    settings: dict[str, Any],
    draws: np.random.Generator,
    like: Answered,
) -> Answered:
    """Suspicions from 0 to 1 at random; the answers stay."""
    return Answered(like.answers, draws.random(len(inputs)), like.changed)
