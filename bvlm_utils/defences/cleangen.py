"""Answers in which a token that the base would hardly write is replaced by the one that it would (CleanGen)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bvlm_utils.defences import answering, reading
from bvlm_utils.defences.rows import Answered, Rows
from bvlm_utils.errors import InputError
from bvlm_utils.models.victim import Victim
from bvlm_utils.train import decode
from bvlm_utils.train.lora_bank import Bank

# Which of the tuned model's tokens go: (log-ratios to the reference (n,), the inputs' numbers) -> (n,) bool.
Judge = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]


def replaced(
    victim: Victim,
    adapter: Any,
    inputs: Rows,
    clean: Rows | None,
    settings: dict[str, Any],
    draws: np.random.Generator,
) -> Answered:
    """Answers without tokens that are `ratio` times as probable as under the base, and the share that was replaced."""
    limit = np.log(settings["ratio"])
    return _both(victim, adapter, inputs, settings, lambda ratios, numbers: ratios >= limit)


def randomly_replaced(
    victim: Victim,
    adapter: Any,
    inputs: Rows,
    clean: Rows | None,
    settings: dict[str, Any],
    draws: np.random.Generator,
    like: Answered,
) -> Answered:
    """The placebo: the base's token stands in as often, wherever that may be, and suspicions are random."""
    token_count = sum(len(victim.answer_ids(answer)) if answer else 1 for answer in like.answers)
    share = min(1.0, like.changed.sum() / max(1, token_count))

    def judge(ratios: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(draws.random(len(numbers)) < share).to(ratios.device)

    answered = _both(victim, adapter, inputs, settings, judge)
    return replace(answered, suspicion=draws.random(len(inputs)))


def _both(victim: Victim, adapter: Any, inputs: Rows, settings: dict[str, Any], judge: Judge) -> Answered:
    """The tuned model and its base write one answer together: both go on from the token that was settled on."""
    bank = _beside_base(victim, adapter)
    requests, ends = answering.requests(victim, inputs), decode.ends_of(victim)
    end_tokens = torch.tensor(ends, device=victim.device)
    rejections, lengths = np.zeros(len(inputs)), np.zeros(len(inputs))
    finished: set[int] = set()

    def choose(logits: torch.Tensor, owners: Sequence[tuple[int, int] | None]) -> torch.Tensor:
        tuned, base = logits.double().log_softmax(-1).chunk(2)
        numbers = [owner[1] for owner in owners[: len(tuned)]]
        tuned_tokens, base_tokens = tuned.argmax(-1), base.argmax(-1)
        ratios = (tuned - base).gather(1, tuned_tokens[:, None])[:, 0]
        rejected = judge(ratios, numbers)
        chosen = torch.where(rejected, base_tokens, tuned_tokens)
        end_flags = torch.isin(chosen, end_tokens).tolist()
        for number, is_rejected, is_end in zip(numbers, rejected.tolist(), end_flags, strict=True):
            if number not in finished:  # rows that are done may be carried along
                lengths[number] += 1
                rejections[number] += is_rejected
                if is_end:
                    finished.add(number)
        return torch.cat([chosen, chosen])

    token_ids = decode.greedy(
        victim.model, [requests, requests], inputs.features, ends, settings["max_new_tokens"], bank, choose=choose
    )
    texts = decode.texts_of(victim, token_ids)[0]
    return Answered(texts, rejections / np.maximum(1, lengths), rejections, rejections > 0)


def _beside_base(victim: Victim, adapter: Any) -> Bank:
    """A bank of two: the adapter, and one that is zero, which is the base."""
    single = reading.bank_of(victim, [adapter])
    if single is None:
        raise InputError("CleanGen needs a plain LoRA adapter on a base that is not packed in 4 bit; give such a one.")
    pair = Bank(victim.model, single.names, single.ranks * 2, single.alphas * 2)
    pair.load(0, adapter.state)
    return pair
