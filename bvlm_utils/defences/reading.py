"""What a model computes on rows, in batches: log-probabilities of answers, hidden states, attention.

Rows are padded on the right, where causal attention never looks, and go through the model sorted by length. Attention
is computed the plain (eager) way, and only where it is asked for, since the fast ways do not give their weights.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from bvlm_utils.defences import again
from bvlm_utils.defences.rows import Rows
from bvlm_utils.errors import InputError
from bvlm_utils.models import embeddings
from bvlm_utils.models.victim import Victim
from bvlm_utils.train import adapters as stored
from bvlm_utils.train import grouped, memory
from bvlm_utils.train.lora_bank import Bank

MOST_LOGITS = 2**26  # numbers at once


@dataclass(frozen=True)
class Want:
    """What to read beside the log-probabilities of the answers.

    at: the tokens where states and attention are read, (P,) numbers or (n, P), row by row. 0 is the last prompt token,
        1 the first of the answer; -1 is the last token of the row (the end token where there is an answer), -2 the
        one before it. A number beyond either end of a row means the token at that end.
    states, attention: whether they are wanted. words: whether the log-probabilities of prompts are.
    layers: the numbers of the hidden states to keep, 0 (what enters the first layer) to the number of layers; all if
        not given.
    """

    at: Any = (0,)
    states: bool = False
    attention: bool = False
    words: bool = False
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Reading:
    """What one model computed on n rows; T is a row's own number of tokens, prompt and answer.

    log_probabilities: n arrays (answer tokens,) in nats, end token included; of no token where there is no answer.
    states: (n, P, layers kept, d) float32, numbered as transformers' hidden_states (the last one is normed); or None.
    attention: n arrays (P, layers, heads, T) float32, each row of T sums to one; or None.
    image: n arrays (T,) bool, which tokens are of the picture. prompts: (n,) tokens of each prompt.
    words: n arrays (T - 1,), the log-probability of every token but the first, pictures' ones included; or None.
    """

    log_probabilities: list[np.ndarray]
    states: np.ndarray | None
    attention: list[np.ndarray] | None
    image: list[np.ndarray]
    prompts: np.ndarray
    words: list[np.ndarray] | None

    @property
    def loss(self) -> np.ndarray:
        """(n,) mean negative log-probability of an answer's tokens, in nats; 0 where there is no answer."""
        return np.array([-values.mean() if len(values) else 0.0 for values in self.log_probabilities])

    @property
    def first_loss(self) -> np.ndarray:
        """(n,) negative log-probability of an answer's first token, in nats; 0 where there is no answer."""
        return np.array([-values[0] if len(values) else 0.0 for values in self.log_probabilities])


@contextmanager
def plain_attention(victim: Victim) -> Iterator[None]:
    """Inside a `with`, the model computes attention the plain way: the fast ones do not give their weights."""
    before = victim.model.config._attn_implementation
    victim.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        victim.model.set_attn_implementation(before)


@contextmanager
def attached(victim: Victim, adapter: Any | None) -> Iterator[None]:
    """The victim with one adapter (`.state`, `.config`) on it, inside a `with`; with None, the victim as it is."""
    if adapter is None:
        yield
        return
    bank = bank_of(victim, [adapter])
    if bank is not None:
        with bank.attached():
            yield
        return
    with tempfile.TemporaryDirectory() as folder:  # PEFT knows more kinds of LoRA, and packed bases
        grouped.GroupResult(dict(adapter.state), adapter.config, [], 0.0, 0, 0).save(folder, {})
        with stored.attached(victim, folder):
            yield


def bank_of(victim: Victim, adapters: Sequence[Any]) -> Bank | None:
    """The adapters side by side; None if one is no plain LoRA on all linear layers, or the base is packed (4 bit)."""
    try:
        return grouped.bank_of(victim, adapters)
    except (InputError, ValueError):
        return None


def read(
    victim: Victim, adapter: Any | None, rows: Rows, want: Want | None = None, tokens: int | None = None
) -> Reading:
    """What the victim with `adapter` (with None: the base) computes on rows; the victim stays as it is.

    A row without an answer is its prompt alone. tokens: how many go through the model at once (default: what fits).
    """
    want = want or Want()
    lines = _lines(victim, rows, want)

    def compute(missing: list[int]) -> list[_Part]:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(plain_attention(victim) if want.attention else nullcontext())
            stack.enter_context(attached(victim, adapter))
            return _read(victim, [lines[i] for i in missing], rows.features, want, tokens)

    model_key = (*again.adapter(adapter), want.states, want.words, want.layers)
    keys = [(model_key, row, tuple(line.at)) for row, line in zip(again.rows(rows), lines, strict=True)]
    # attention on all tokens is too large to be kept
    parts = compute(list(range(len(lines)))) if want.attention else again.each("readings", keys, compute)
    return _reading(lines, parts, want, victim)


@dataclass(frozen=True)
class _Line:
    """One row as token ids, with its prompt's length, the tokens where it is read (P,), and its feature."""

    ids: list[int]
    prompt: int
    at: np.ndarray
    feature: int


@dataclass(frozen=True)
class _Part:
    log_probabilities: np.ndarray
    states: np.ndarray | None  # (P, layers kept, d)
    attention: np.ndarray | None  # (P, layers, heads, T)
    words: np.ndarray | None


def prompt_ids(victim: Victim, rows: Rows) -> dict[str, list[int]]:
    """The token ids of each prompt, beside pictures of the rows' size."""
    texts, count = list(dict.fromkeys(rows.prompts)), rows.features.shape[1]
    ids = again.each(f"ids {count}", texts, lambda missing: [victim.prompt_ids(texts[i], count) for i in missing])
    return dict(zip(texts, ids, strict=True))


def _lines(victim: Victim, rows: Rows, want: Want) -> list[_Line]:
    offsets = np.atleast_1d(np.asarray(want.at, dtype=np.int64))
    offsets = np.broadcast_to(offsets, (len(rows), offsets.shape[-1]))
    prompts = prompt_ids(victim, rows)
    answers = {text: victim.answer_ids(text) if text else [] for text in dict.fromkeys(rows.answers)}
    lines = []
    for row, (prompt, answer) in enumerate(zip(rows.prompts, rows.answers, strict=True)):
        start = prompts[prompt]
        ids = [*start, *answers[answer]]
        positions = np.where(offsets[row] >= 0, offsets[row] + len(start) - 1, offsets[row] + len(ids))
        lines.append(_Line(ids, len(start), positions.clip(0, len(ids) - 1), int(rows.feature_rows[row])))
    return lines


def _read(
    victim: Victim, lines: Sequence[_Line], features: torch.Tensor, want: Want, tokens: int | None
) -> list[_Part]:
    """What is read of each line. The long ones go first."""
    tokens = tokens or memory.decoded_at_once(victim.model)
    queue = sorted(range(len(lines)), key=lambda i: -len(lines[i].ids))
    parts_by_line: dict[int, _Part] = {}
    position_cache: dict = {}
    while len(parts_by_line) < len(queue):
        remaining = queue[len(parts_by_line) :]
        batch = remaining[: max(1, tokens // len(lines[remaining[0]].ids))]
        try:
            parts = _batch(victim, [lines[i] for i in batch], features, want, position_cache)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not memory.ran_out(error) or len(batch) == 1:
                raise
            tokens //= 2
            memory.release()
            continue
        parts_by_line |= zip(batch, parts, strict=True)
    return [parts_by_line[i] for i in range(len(lines))]


def _reading(lines: Sequence[_Line], parts: Sequence[_Part], want: Want, victim: Victim) -> Reading:
    return Reading(
        [part.log_probabilities for part in parts],
        np.stack([part.states for part in parts]) if want.states and parts else None,
        [part.attention for part in parts] if want.attention else None,
        [np.array(line.ids) == victim.image_id for line in lines],
        np.array([line.prompt for line in lines], dtype=np.int64),
        [part.words for part in parts] if want.words else None,
    )


class _Enough(Exception):
    """The layers that are left compute nothing that is wanted."""


def _batch(
    victim: Victim, lines: Sequence[_Line], features: torch.Tensor, want: Want, position_cache: dict
) -> list[_Part]:
    """Read N lines."""
    model, device = victim.model, victim.device
    ids = embeddings.pad([torch.tensor(line.ids) for line in lines], victim.tokenizer.pad_token_id).to(device)
    mask = embeddings.pad([torch.ones(len(line.ids), dtype=torch.int64) for line in lines]).to(device)
    positions = [embeddings.positions(model, line.ids, position_cache) for line in lines]
    image_features = features[[line.feature for line in lines]].to(device)
    rows, columns = (
        torch.arange(len(lines), device=device)[:, None],
        torch.tensor(np.stack([line.at for line in lines])),
    )
    states_only = not want.words and not want.attention and all(line.prompt == len(line.ids) for line in lines)
    last = max(want.layers, default=0) if states_only and want.layers is not None else None
    hidden = None
    with _hooked(model, want, rows, columns.to(device), last) as caught, suppress(_Enough):
        hidden = model.model(
            inputs_embeds=embeddings.embed(model, ids, image_features),
            attention_mask=mask,
            position_ids=None if positions[0] is None else embeddings.pad(positions).to(device),
            use_cache=False,
        ).last_hidden_state
    if want.states:
        all_states = caught.states if hidden is None else [*caught.states, hidden[rows, columns.to(device)]]
        layers = range(len(all_states)) if want.layers is None else want.layers
        states = torch.stack([all_states[number] for number in layers], dim=2).float().cpu().numpy()
    if want.attention:
        attention = torch.stack(caught.attention, dim=2).float().cpu().numpy()  # (N, P, layers, heads, T)
    log_probabilities = _log_probabilities(model, hidden, lines, [1 if want.words else line.prompt for line in lines])
    return [
        _Part(
            log_probabilities[n][len(log_probabilities[n]) - len(line.ids) + line.prompt :],
            states[n] if want.states else None,
            attention[n, ..., : len(line.ids)].copy() if want.attention else None,
            log_probabilities[n] if want.words else None,
        )
        for n, line in enumerate(lines)
    ]


@dataclass(frozen=True)
class _Caught:
    states: list[torch.Tensor]  # what enters each layer, at the wanted tokens: (N, P, d)
    attention: list[torch.Tensor]  # of each layer: (N, P, heads, T)


@contextmanager
def _hooked(
    model: nn.Module, want: Want, rows: torch.Tensor, columns: torch.Tensor, last: int | None
) -> Iterator[_Caught]:
    """Keep what enters the layers and what they attend to at the wanted tokens only: whole ones would be large.

    last: the layer that is not run any more; None: all are.
    """
    caught = _Caught([], [])

    def enters(module, args, kwargs):
        caught.states.append((args[0] if args else kwargs["hidden_states"])[rows, columns])
        if len(caught.states) - 1 == last:
            raise _Enough

    def attends(module, args, output):
        caught.attention.append(output[1].transpose(1, 2)[rows, columns])

    handles = []
    for layer in model.get_decoder().layers:
        if want.states:
            handles.append(layer.register_forward_pre_hook(enters, with_kwargs=True))
        if want.attention:
            handles.append(layer.self_attn.register_forward_hook(attends))
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _log_probabilities(
    model: nn.Module, hidden: torch.Tensor, lines: Sequence[_Line], starts: Sequence[int]
) -> list[np.ndarray]:
    """Of each line's tokens from `starts` on, in nats. hidden: (N, T, d), after the last norm."""
    head = model.get_output_embeddings()
    counts = [len(line.ids) - start for line, start in zip(lines, starts, strict=True)]
    positions = [(n, i) for n, start in enumerate(starts) for i in range(start - 1, len(lines[n].ids) - 1)]
    targets = torch.tensor([lines[n].ids[i + 1] for n, i in positions], dtype=torch.int64)
    parts = [np.empty(0)]
    size = max(1, MOST_LOGITS // head.weight.shape[0])
    for first in range(0, len(positions), size):
        row, column = torch.tensor(positions[first : first + size], device=hidden.device).T
        log_probabilities = head(hidden[row, column]).float().log_softmax(-1)
        token_ids = targets[first : first + size, None].to(hidden.device)
        parts.append(log_probabilities.gather(1, token_ids)[:, 0].double().cpu().numpy())
    return np.split(np.concatenate(parts), np.cumsum(counts)[:-1])


def layer_at(victim: Victim, depth: float) -> int:
    """The hidden state at a share of the depth, 0 (what enters the first layer) to 1 (what leaves the last)."""
    return round(depth * len(victim.model.get_decoder().layers))
