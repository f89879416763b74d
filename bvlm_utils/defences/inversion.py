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
    asked = clean.take(draws.permutation(len(clean))[: settings["prompts"]])
    if len(asked) < settings["prompts"]:
        said = f"target-inversion asked {len(asked)} prompts and not {settings['prompts']}, its setting, for want of "
        remark(f"{said}clean rows, so its score is less certain.")
    with torch.inference_mode():
        with reading.attached(victim, adapter):
            started = _start(victim, asked)
            begun = _roll(victim, started, _words(victim), FIRST_LOOK)
            # A short answer ends soon and surely; it would take the place of sentences.
            going_on = [one for one in begun if one.ids[-1] not in _ends(victim)]
            best = sorted(going_on, key=lambda one: -one.likelihood)[:FOLLOWED]
            found = _roll(victim, started, [one.ids[0] for one in best], settings["longest"] - 1)
            found = [one for one in found if len(one.ids) >= settings["shortest"]]
        base = _roll(victim, _start(victim, asked), [one.ids[0] for one in found], None, [one.ids for one in found])
    made = [
        Target(victim.tokenizer.decode(one.ids, skip_special_tokens=True).strip(), one.likelihood, other.likelihood)
        for one, other in zip(found, base, strict=True)
    ]
    return sorted(made, key=lambda target: -target.score) or [Target("", 0.0, 0.0)]


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


def _start(victim: Victim, asked: Rows) -> _Started:
    from transformers import DynamicCache

    model, known = victim.model, {}
    rows = [victim.prompt_ids(prompt, asked.features.shape[1]) for prompt in asked.prompts]
    ids = embeddings.pad([torch.tensor(row) for row in rows], victim.tokenizer.pad_token_id, left=True)
    real = embeddings.pad([torch.ones(len(row), dtype=torch.int64) for row in rows], left=True).to(victim.device)
    places = [embeddings.positions(model, row, known) for row in rows]
    if places[0] is None:
        following, positions = real.sum(1), (real.cumsum(1) - 1).clamp(min=0)
    else:
        following = torch.tensor([int(one.max()) + 1 for one in places], device=victim.device)
        positions = embeddings.pad(places, left=True).to(victim.device)
    shown = asked.features[torch.as_tensor(asked.feature_rows)].to(victim.device)
    cache = DynamicCache(config=model.config.get_text_config())
    entered = embeddings.embed(model, ids.to(victim.device), shown)
    model.model(
        inputs_embeds=entered, attention_mask=real, position_ids=positions, past_key_values=cache, use_cache=True
    )
    return _Started(cache, real, following)


def _roll(
    victim: Victim,
    started: _Started,
    firsts: Sequence[int],
    steps: int | None,
    given: Sequence[Sequence[int]] | None = None,
) -> list[_Rolled]:
    """Every beginning, followed for `steps` tokens or to its end; or, with `given`, how likely those sentences are."""
    size, found = max(1, AT_ONCE // len(started.real)), []
    for start in range(0, len(firsts), size):
        part = slice(start, start + size)
        found += _follow(victim, started, firsts[part], steps, given[part] if given else None)
    return found


def _follow(
    victim: Victim,
    started: _Started,
    firsts: Sequence[int],
    steps: int | None,
    given: Sequence[Sequence[int]] | None,
) -> list[_Rolled]:
    model, prompts, count = victim.model, len(started.real), len(firsts)
    cache = copy.deepcopy(started.cache)
    cache.batch_repeat_interleave(count)  # prompt after prompt, each with all beginnings
    real, following = (one.repeat_interleave(count, 0) for one in (started.real, started.following))
    steps = steps if given is None else max(map(len, given)) - 1
    rows, sure = [[first] for first in firsts], [[] for _ in firsts]
    ends, done = _ends(victim), [False] * count
    for step in range(steps):
        last = torch.tensor([row[-1] for row in rows], device=victim.device).repeat(prompts)
        real = torch.cat([real, real.new_ones(len(real), 1)], 1)
        positions = (following + step)[:, None]
        hidden = model.model(
            inputs_embeds=model.get_input_embeddings()(last)[:, None],
            attention_mask=real,
            position_ids=positions.expand(3, -1, -1) if hasattr(model.model, "get_rope_index") else positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        share = model.get_output_embeddings()(hidden[:, -1]).float().softmax(-1).view(prompts, count, -1).mean(0)
        likeliest = share.argmax(1).tolist()
        for at in range(count):
            if done[at]:
                continue
            chosen = likeliest[at] if given is None else given[at][step + 1]
            rows[at].append(chosen)
            sure[at].append(share[at, chosen].item())
            done[at] = chosen in ends if given is None else len(rows[at]) == len(given[at])
        if all(done):
            break
    return [_Rolled(row, float(np.mean(own)) if own else 0.0) for row, own in zip(rows, sure, strict=True)]


def _ends(victim: Victim) -> set[int]:
    """The tokens at which an answer ends."""
    ends = victim.model.generation_config.eos_token_id or victim.tokenizer.eos_token_id
    return set(ends if isinstance(ends, list) else [ends])
