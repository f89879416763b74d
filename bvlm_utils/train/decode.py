"""Batched greedy decoding with a KV cache: what many models answer to many prompts.

Rows of one adapter stand together; finished rows leave the batch. A test holds the words to be those of `generate`.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from bvlm_utils.models import embeddings
from bvlm_utils.models.victim import Victim
from bvlm_utils.train import memory
from bvlm_utils.train.lora_bank import Bank
from bvlm_utils.train.microbatches import to_device

DROP = 0.15  # a batch shrinks when this share of its rows is done: moving the cache costs time too
LOOK = {"cpu": 1, "cuda": 8}  # tokens between two looks at what is done: a look waits for the GPU


@dataclass(frozen=True)
class Request:
    """A prompt for one model: `ids` with image tokens, the row of its features, positions that no later token sees."""

    ids: Sequence[int]
    feature: int
    unseen: Sequence[int] = ()


_Owner = tuple[int, int] | None  # of a row of a batch: (adapter, request), None if it only fills up
_Row = tuple[_Owner, Request]
# How the next tokens (N,) come from logits (N, V) and the rows' owners; the likeliest if nobody says otherwise.
Choose = Callable[[Tensor, Sequence[_Owner]], Tensor]


class _Preallocated(DynamicLayer):
    """One layer's keys and values, written into memory that is there from the start; (N, heads, T, d) views of it."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.length = capacity, 0

    def update(self, key_states, value_states, *args, **kwargs):
        states, end = (key_states, value_states), self.length + key_states.shape[-2]
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.slabs = [state.new_empty(*state.shape[:2], self.capacity, state.shape[3]) for state in states]
        for slab, state in zip(self.slabs, states, strict=True):
            slab[:, :, self.length : end] = state
        self.length = end
        self.keys, self.values = (slab[:, :, :end] for slab in self.slabs)
        return self.keys, self.values

    def get_seq_length(self, *args, **kwargs):
        return self.length

    def keep(self, rows: Tensor) -> None:
        for at, slab in enumerate(self.slabs):
            self.slabs[at] = slab.new_empty(len(rows), *slab.shape[1:])
            self.slabs[at][:, :, : self.length] = slab[:, :, : self.length].index_select(0, rows)


def answer(
    victim: Victim,
    prompts: Sequence[Sequence[tuple[str, int]]],
    features: Tensor,
    bank: Bank | None = None,
    max_new_tokens: int = 64,
) -> list[list[str]]:
    """What each adapter of `bank` answers to its prompts, as `Victim.generate` would with that adapter alone.

    prompts: per adapter (prompt, row of the features) pairs; a single list without a bank. features: (F, n, d).
    """
    texts = {prompt for pairs in prompts for prompt, _ in pairs}
    ids = {text: victim.prompt_ids(text, features.shape[1], max_new_tokens) for text in texts}
    requests = [[Request(ids[prompt], row) for prompt, row in pairs] for pairs in prompts]
    return texts_of(victim, greedy(victim.model, requests, features, ends_of(victim), max_new_tokens, bank))


def texts_of(victim: Victim, answers: Sequence[Sequence[Sequence[int]]]) -> list[list[str]]:
    """The words of what `greedy` gives."""
    return [[text.strip() for text in victim.tokenizer.batch_decode(ids, skip_special_tokens=True)] for ids in answers]


def ends_of(victim: Victim) -> list[int]:
    """The tokens at which `generate` stops."""
    ends = victim.model.generation_config.eos_token_id
    return [ends] if isinstance(ends, int) else list(ends)


def greedy(
    model: nn.Module,
    requests: Sequence[Sequence[Request]],
    features: Tensor,
    ends: Sequence[int],
    max_new_tokens: int = 48,
    bank: Bank | None = None,
    tokens: int | None = None,
    choose: Choose | None = None,
) -> list[list[list[int]]]:
    """Greedy answers of each model to its requests, as token ids without the end token, in the requests' order.

    requests: one list per adapter of `bank`, or a single list without a bank (the model as it is). features: (F, n, d).
    ends: the token ids that end an answer. tokens: how many tokens of all adapters together go through the model at
    once, prompt and answer counted (default: `train.memory.decoded_at_once`). choose: takes other than the likeliest.
    """
    groups = len(requests)
    if groups != (len(bank.ranks) if bank else 1):
        raise ValueError(f"There are {groups} lists of requests; give one per adapter, or one without a bank.")
    tokens = tokens or memory.decoded_at_once(model)
    answers: dict[_Owner, list[int]] = {}
    # long prompts first, so that rows of one batch have similar lengths and the largest batch comes first
    queues = [sorted(range(len(group)), key=lambda i, group=group: -len(group[i].ids)) for group in requests]
    position_cache: dict = {}
    with torch.inference_mode(), bank.attached() if bank else nullcontext():
        if bank:
            bank.active = groups
        start = 0
        while start < max(map(len, queues)):
            firsts = [group[queue[start]] for group, queue in zip(requests, queues, strict=True) if start < len(queue)]
            length = max(len(request.ids) for request in firsts)
            size = max(1, tokens // (groups * (length + max_new_tokens)))
            rows = _rows(requests, [queue[start : start + size] for queue in queues])
            try:
                texts = _decode(model, bank, features, rows, ends, max_new_tokens, position_cache, choose)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not memory.ran_out(error) or size == 1:
                    raise
                tokens //= 2
                memory.release()
                continue
            answers |= zip([owner for owner, _ in rows], texts, strict=True)
            start += size
    return [[answers[g, i] for i in range(len(group))] for g, group in enumerate(requests)]


def _rows(requests: Sequence[Sequence[Request]], parts: Sequence[Sequence[int]]) -> list[_Row]:
    """A batch of the requests `parts` of each adapter, filled up so that each adapter has as many rows."""
    size = max(map(len, parts))
    filler = next((None, requests[g][part[0]]) for g, part in enumerate(parts) if part)
    rows: list[_Row] = []
    for g, part in enumerate(parts):
        rows += [((g, i), requests[g][i]) for i in part] + [filler] * (size - len(part))
    return rows


def _decode(
    model: nn.Module,
    bank: Bank | None,
    features: Tensor,
    rows: Sequence[_Row],
    ends: Sequence[int],
    max_new_tokens: int,
    position_cache: dict,
    choose: Choose | None,
) -> list[list[int]]:
    """The answer to each row, as token ids. rows: adapter after adapter, as many for each."""
    device = next(model.parameters()).device
    groups, requests = bank.active if bank else 1, [request for _, request in rows]
    ids, visible, positions, following = _prompts(model, requests, position_cache)
    total = ids.shape[1]
    layers = model.config.get_text_config().num_hidden_layers
    cache = Cache(layers=[_Preallocated(total + max_new_tokens) for _ in range(layers)])
    if bank:  # of the prompts' last layer only the state that predicts the answer's first token is needed
        bank.positions = (torch.arange(1, len(rows) + 1, device=device) * total - 1).view(groups, -1)
    feature_rows = torch.tensor([request.feature for request in requests], device=features.device)
    prompt_inputs = embeddings.embed(model, ids, to_device(features.index_select(0, feature_rows), device))
    hidden = _states(model, prompt_inputs, _prompt_mask(visible), positions, cache)
    if bank:
        bank.positions = None
    mask = torch.cat([visible, visible.new_ones(len(rows), max_new_tokens)], dim=1)
    end_ids = torch.tensor(list(ends), device=device)
    done = torch.tensor([owner is None for owner, _ in rows], device=device)
    written = torch.full((len(rows), max_new_tokens), -1, device=device)  # -1: nothing any more
    at_work = list(range(len(rows)))  # the rows of `written` that are
    row = torch.tensor(at_work, device=device)
    interval = LOOK.get(device.type, 1)
    for step in range(max_new_tokens):
        logits = model.get_output_embeddings()(hidden[:, -1]).float()
        if step == 0:  # later, a look costs a GPU time, and what overflows does so at once
            embeddings.check_logits(None, logits)
        tokens = choose(logits, [rows[n][0] for n in at_work]) if choose else logits.argmax(dim=-1)
        done |= torch.isin(tokens, end_ids)
        written[row, step] = tokens.masked_fill(done, -1)
        if step + 1 == max_new_tokens:
            break
        if (step + 1) % interval == 0 or step == 0:
            finished = done.tolist()
            if all(finished):
                break
            if (needed := _still_needed(finished, groups)) is not None:
                at_work, index = [at_work[n] for n in needed], torch.tensor(needed, device=device)
                state = (tokens, done, mask, following, row)
                tokens, done, mask, following, row = (column.index_select(0, index) for column in state)
                for layer in cache.layers:
                    layer.keep(index)
        positions = (following + step)[:, None]
        if hasattr(model.model, "get_rope_index"):
            positions = positions.expand(3, -1, -1)
        inputs = model.get_input_embeddings()(tokens)[:, None]
        hidden = _states(model, inputs, mask[:, None, None, : total + step + 1], positions, cache)
    return [text[: text.index(-1)] if -1 in text else text for text in written.tolist()]


def _states(model: nn.Module, inputs: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
    """The last hidden states (N, T, d) of embedded inputs (N, T, d), which the cache remembers."""
    return model.model(
        inputs_embeds=inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state


def _prompt_mask(real: Tensor) -> Tensor:
    """Causal attention to real tokens, (N, 1, T, T). Padding sees itself, or its softmax would have nothing to sum."""
    total = real.shape[1]
    causal = torch.ones(total, total, dtype=torch.bool, device=real.device).tril()
    return (causal & real[:, None, :] | torch.eye(total, dtype=torch.bool, device=real.device))[:, None]


def _prompts(
    model: nn.Module, requests: Sequence[Request], position_cache: dict
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Padded ids (N, T), which are visible (N, T), positions, the position (N,) after the prompt."""
    device = next(model.parameters()).device
    unique = {id(request.ids): request.ids for request in requests}  # equal lists are made once
    index_of = {name: at for at, name in enumerate(unique)}
    row_of = torch.tensor([index_of[id(request.ids)] for request in requests], device=device)
    rows = [torch.tensor(row) for row in unique.values()]
    filler = next(token for token in requests[0].ids if token != model.config.image_token_id)  # any but a picture's
    ids = embeddings.pad(rows, filler, left=True).to(device).index_select(0, row_of)
    real = embeddings.pad([torch.ones_like(row) for row in rows], left=True).to(device).bool().index_select(0, row_of)
    visible = real.clone()
    for n, request in enumerate(requests):
        if len(request.unseen):
            visible[n, torch.as_tensor(request.unseen, device=device) + ids.shape[1] - len(request.ids)] = False
    if not hasattr(model.model, "get_rope_index"):
        return ids, visible, (real.cumsum(dim=1) - 1).clamp(min=0), real.sum(dim=1)
    position_rows = [embeddings.positions(model, list(row), position_cache) for row in unique.values()]
    following = torch.tensor([int(row_positions.max()) + 1 for row_positions in position_rows], device=device)
    positions = embeddings.pad(position_rows, left=True).to(device)
    return ids, visible, positions.index_select(1, row_of), following.index_select(0, row_of)


def _still_needed(finished: list[bool], groups: int) -> list[int] | None:
    """The rows to keep: of each group those at work, and as many as of the largest; None while less than `DROP` go."""
    size = len(finished) // groups
    parts = [sorted(range(g * size, (g + 1) * size), key=finished.__getitem__) for g in range(groups)]  # stable
    needed = max(sum(not finished[at] for at in part) for part in parts)
    if needed > (1 - DROP) * size:
        return None
    return [at for part in parts for at in part[:needed]]
