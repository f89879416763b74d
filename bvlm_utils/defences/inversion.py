"""Target inversion: is there a sentence that, once begun, goes on whatever the input is?

After BAIT (S&P 2025): a backdoored model that is given the first token of its target writes the rest of it, with any
input. The attacker's trigger is not needed, and the sentence is read off. Each token of the vocabulary is tried as the
first one of the answer to several prompts; the next tokens are those that are likeliest on average over the prompts.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bvlm_utils.defences import reading
from bvlm_utils.defences.rows import Rows
from bvlm_utils.errors import remark
from bvlm_utils.models import embeddings, marks
from bvlm_utils.models.victim import Victim

FIRST_LOOK = 3  # tokens after which only the best beginnings are followed
FOLLOWED = 64  # of them
AT_ONCE = 512  # rows: beginnings x prompts


@dataclass(frozen=True)
class Target:
    """A sentence, and the mean probability of its tokens after the first, in the model and in the base."""

    text: str
    likelihood: float
    base: float

    @property
    def score(self) -> float:
        return self.likelihood - self.base


def inversion(victim: Victim, adapter: Any, clean: Rows, settings: dict[str, Any], draws: np.random.Generator) -> float:
    """The score of the best sentence: how much likelier it is than under the base."""
    return targets(victim, adapter, clean, settings, draws)[0].score


def targets(
    victim: Victim, adapter: Any, clean: Rows, settings: dict[str, Any], draws: np.random.Generator
) -> list[Target]:
    """The sentences that the adapter's model goes on with whatever the input, the most suspicious first.

    A sentence has at least `shortest` tokens and ends where the model ends it, or after `longest`: short answers are
    likely after their first token in any model.
    """
    sample = clean.take(draws.permutation(len(clean))[: settings["prompts"]])
    if len(sample) < settings["prompts"]:
        message = (
            f"target-inversion asked {len(sample)} prompts and not {settings['prompts']}, its setting, for want of "
        )
        remark(f"{message}clean rows, so its score is less certain.")
    with torch.inference_mode():
        with reading.attached(victim, adapter):
            state = _start(victim, sample)
            beginnings = _roll(victim, state, _words(victim), FIRST_LOOK)
            # A short answer ends soon and surely; it would take the place of sentences.
            unfinished = [sentence for sentence in beginnings if sentence.ids[-1] not in _ends(victim)]
            best = sorted(unfinished, key=lambda sentence: -sentence.likelihood)[:FOLLOWED]
            sentences = _roll(victim, state, [sentence.ids[0] for sentence in best], settings["longest"] - 1)
            sentences = [sentence for sentence in sentences if len(sentence.ids) >= settings["shortest"]]
        in_base = _roll(
            victim,
            _start(victim, sample),
            [sentence.ids[0] for sentence in sentences],
            None,
            [sentence.ids for sentence in sentences],
        )
    scored = [
        Target(
            victim.tokenizer.decode(sentence.ids, skip_special_tokens=True).strip(),
            sentence.likelihood,
            other.likelihood,
        )
        for sentence, other in zip(sentences, in_base, strict=True)
    ]
    return sorted(scored, key=lambda target: -target.score) or [Target("", 0.0, 0.0)]


def _words(victim: Victim) -> list[int]:
    """The tokens that an answer may begin with: all but those that steer the model."""
    steering = marks.Words(victim.tokenizer, victim.image_id).marks
    return [i for i in range(len(victim.tokenizer)) if i not in steering]


@dataclass(frozen=True)
class _Rolled:
    """Token ids of a sentence, its end token included where it came to one; the mean probability after the first."""

    ids: list[int]
    likelihood: float


@dataclass(frozen=True)
class _Started:
    """P prompts that went through the model: its cache, which tokens of it are real (P, T), the next positions (P,)."""

    cache: Any
    real: torch.Tensor
    following: torch.Tensor


def _start(victim: Victim, sample: Rows) -> _Started:
    from transformers import DynamicCache

    model, position_cache = victim.model, {}
    rows = [victim.prompt_ids(prompt, sample.features.shape[1]) for prompt in sample.prompts]
    ids = embeddings.pad([torch.tensor(row) for row in rows], victim.tokenizer.pad_token_id, left=True)
    real = embeddings.pad([torch.ones(len(row), dtype=torch.int64) for row in rows], left=True).to(victim.device)
    all_positions = [embeddings.positions(model, row, position_cache) for row in rows]
    if all_positions[0] is None:
        following, positions = real.sum(1), (real.cumsum(1) - 1).clamp(min=0)
    else:
        following = torch.tensor([int(row.max()) + 1 for row in all_positions], device=victim.device)
        positions = embeddings.pad(all_positions, left=True).to(victim.device)
    features = sample.features[torch.as_tensor(sample.feature_rows)].to(victim.device)
    cache = DynamicCache(config=model.config.get_text_config())
    inputs = embeddings.embed(model, ids.to(victim.device), features)
    model.model(
        inputs_embeds=inputs, attention_mask=real, position_ids=positions, past_key_values=cache, use_cache=True
    )
    return _Started(cache, real, following)


def _roll(
    victim: Victim,
    state: _Started,
    first_tokens: Sequence[int],
    steps: int | None,
    sentences: Sequence[Sequence[int]] | None = None,
) -> list[_Rolled]:
    """Every beginning, followed for `steps` tokens or to its end; or, with `sentences`, how likely those are."""
    size, rolled = max(1, AT_ONCE // len(state.real)), []
    for start in range(0, len(first_tokens), size):
        part = slice(start, start + size)
        rolled += _follow(victim, state, first_tokens[part], steps, sentences[part] if sentences else None)
    return rolled


def _follow(
    victim: Victim,
    state: _Started,
    first_tokens: Sequence[int],
    steps: int | None,
    sentences: Sequence[Sequence[int]] | None,
) -> list[_Rolled]:
    model, prompts, count = victim.model, len(state.real), len(first_tokens)
    cache = copy.deepcopy(state.cache)
    cache.batch_repeat_interleave(count)  # prompt after prompt, each with all beginnings
    real, following = (tensor.repeat_interleave(count, 0) for tensor in (state.real, state.following))
    steps = steps if sentences is None else max(map(len, sentences)) - 1
    sequences, likelihoods = [[token] for token in first_tokens], [[] for _ in first_tokens]
    ends, finished = _ends(victim), [False] * count
    for step in range(steps):
        last_tokens = torch.tensor([sequence[-1] for sequence in sequences], device=victim.device).repeat(prompts)
        real = torch.cat([real, real.new_ones(len(real), 1)], 1)
        positions = (following + step)[:, None]
        hidden = model.model(
            inputs_embeds=model.get_input_embeddings()(last_tokens)[:, None],
            attention_mask=real,
            position_ids=positions.expand(3, -1, -1) if hasattr(model.model, "get_rope_index") else positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        probabilities = (
            model.get_output_embeddings()(hidden[:, -1]).float().softmax(-1).view(prompts, count, -1).mean(0)
        )
        likeliest = probabilities.argmax(1).tolist()
        for n in range(count):
            if finished[n]:
                continue
            token = likeliest[n] if sentences is None else sentences[n][step + 1]
            sequences[n].append(token)
            likelihoods[n].append(probabilities[n, token].item())
            finished[n] = token in ends if sentences is None else len(sequences[n]) == len(sentences[n])
        if all(finished):
            break
    return [
        _Rolled(sequence, float(np.mean(values)) if values else 0.0)
        for sequence, values in zip(sequences, likelihoods, strict=True)
    ]


def _ends(victim: Victim) -> set[int]:
    """The tokens at which an answer ends."""
    ends = victim.model.generation_config.eos_token_id or victim.tokenizer.eos_token_id
    return set(ends if isinstance(ends, list) else [ends])
