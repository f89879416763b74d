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
    written = sum(len(victim.answer_ids(answer)) if answer else 1 for answer in like.answers)
    share = min(1.0, like.changed.sum() / max(1, written))

    def judge(ratios: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(draws.random(len(numbers)) < share).to(ratios.device)

    found = _both(victim, adapter, inputs, settings, judge)
    return replace(found, suspicion=draws.random(len(inputs)))


def _both(victim: Victim, adapter: Any, inputs: Rows, settings: dict[str, Any], judge: Judge) -> Answered:
    """The tuned model and its base write one answer together: both go on from the token that was settled on."""
    bank = _beside_base(victim, adapter)
    asked, ends = answering.requests(victim, inputs), decode.ends_of(victim)
    at_end = torch.tensor(ends, device=victim.device)
    counts, written = np.zeros(len(inputs)), np.zeros(len(inputs))
    over: set[int] = set()

    def choose(logits: torch.Tensor, owners: Sequence[tuple[int, int] | None]) -> torch.Tensor:
        tuned, base = logits.double().log_softmax(-1).chunk(2)
        numbers = [owner[1] for owner in owners[: len(tuned)]]
        ours, theirs = tuned.argmax(-1), base.argmax(-1)
        ratios = (tuned - base).gather(1, ours[:, None])[:, 0]
        goes = judge(ratios, numbers)
        chosen = torch.where(goes, theirs, ours)
        ended = torch.isin(chosen, at_end).tolist()
        for number, gone, is_end in zip(numbers, goes.tolist(), ended, strict=True):
            if number not in over:  # rows that are done may be carried along
                written[number] += 1
                counts[number] += gone
                if is_end:
                    over.add(number)
        return torch.cat([chosen, chosen])

    said = decode.greedy(
        victim.model, [asked, asked], inputs.features, ends, settings["max_new_tokens"], bank, choose=choose
    )
    return Answered(decode.texts_of(victim, said)[0], counts / np.maximum(1, written), counts)


def _beside_base(victim: Victim, adapter: Any) -> Bank:
    """A bank of two: the adapter, and one that is zero, which is the base."""
    alone = reading.bank_of(victim, [adapter])
    if alone is None:
        raise InputError("CleanGen needs a plain LoRA adapter on a base that is not packed in 4 bit; give such a one.")
    both = Bank(victim.model, alone.names, alone.ranks * 2, alone.alphas * 2)
    both.load(0, adapter.state)
    return both
