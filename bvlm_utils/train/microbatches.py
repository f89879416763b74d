"""Microbatches: which rows go through the model together. Batches of several plans, cut by length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bvlm_utils.models import embeddings


@dataclass(frozen=True)
class Plan:
    """What one adapter is to learn: training rows as columns, in steps, with a learning rate for each step."""

    ids: Sequence[Tensor]  # (T,) int64 of each row, its image tokens expanded
    answers: Sequence[int]  # so many tokens at the end of each row are learnt
    pictures: Sequence[int]  # for each row, the index of its picture in `features`
    positions: Sequence[Tensor] | None  # (3, T) of each row, for models with multimodal positions
    steps: Sequence[Sequence[int]]  # per step, the rows of its batch
    rates: Sequence[float]  # per step
    features: Tensor  # (F, n, d)
    rank: int
    alpha: float
    start: dict[str, Tensor]  # PEFT state dict that training starts from
    weight_decay: float = 0.0
    max_norm: float = 1.0  # 0 leaves gradients as they are, as in `train`
    config: Any = None  # the adapter's peft.LoraConfig, handed on to the result
    name: str = ""  # of the cell; a group whose plans all have one can be saved and gone on with


@dataclass(frozen=True)
class Microbatch:
    """A micro-batch of b rows for each of k plans, on the device."""

    ids: Tensor  # (k * b, T)
    positions: Tensor | None  # (3, k * b, T)
    features: Tensor  # (k * b, n, d)
    # (k, L) distinct positions in k * b * T: those whose state predicts an answer's token, and some more
    target_positions: Tensor
    targets: Tensor  # (k, L) the tokens predicted there
    weights: Tensor  # (k, L) one over the plan's answer tokens in the whole batch; 0 at the additional positions


class Table:
    """All rows of all plans as padded tensors: sizes lie on the host, the rest on the device, so that no step waits."""

    def __init__(self, plans: Sequence[Plan], device: torch.device | str, dtype: torch.dtype):
        ids = [row for plan in plans for row in plan.ids]
        firsts = torch.tensor([0, *[len(plan.ids) for plan in plans]]).cumsum(0).tolist()
        self.length = torch.tensor([len(row) for row in ids])
        self.answer = torch.tensor([count for plan in plans for count in plan.answers])
        self.feature = torch.tensor([picture for plan in plans for picture in plan.pictures])
        self.ids = embeddings.pad(ids).to(device)
        positions = [row for plan in plans for row in plan.positions or ()]
        self.positions = embeddings.pad(positions).to(device) if positions else None
        self.features, self.device, self.dtype = [plan.features for plan in plans], torch.device(device), dtype
        self.shared = all(features is self.features[0] for features in self.features)
        # (S, G, B) rows of the table, longest first within a batch; -1 where a plan has no row
        steps = max(len(plan.steps) for plan in plans)
        size = max(len(batch) for plan in plans for batch in plan.steps)
        self.batches = torch.full((steps, len(plans), size), -1)
        for g, (plan, first) in enumerate(zip(plans, firsts, strict=False)):
            for step, batch in enumerate(plan.steps):
                self.batches[step, g, : len(batch)] = torch.tensor(batch) + first
        lengths = self._of(self.length, self.batches)
        self.batches = self.batches.gather(2, lengths.argsort(dim=2, descending=True, stable=True))
        self.on_device = [tensor.to(device) for tensor in (self.batches, self.length, self.answer, self.feature)]

    @staticmethod
    def _of(column: Tensor, rows: Tensor) -> Tensor:
        return torch.where(rows < 0, 0, column[rows.clamp(min=0)])

    def longest(self, step: int, active: int) -> int:
        """Tokens of the longest row of a step."""
        return int(self._of(self.length, self.batches[step, :active]).max())

    def microbatches(self, step: int, active: int, tokens: int) -> Iterator[Microbatch]:
        """A step's batches of the first `active` plans, in parts of similar rows and at most `tokens` tokens."""
        batch = self.batches[step, :active]
        lengths = self._of(self.length, batch).amax(dim=0).tolist()
        answers = self._of(self.answer, batch)
        counts = self._of(self.on_device[2], self.on_device[0][step, :active]).sum(dim=1, keepdim=True).clamp(min=1)
        start, end = 0, sum(length > 0 for length in lengths)
        while start < end:
            size = min(end - start, max(1, tokens // (active * lengths[start])))
            span = slice(start, start + size)
            most = max(1, int(answers[:, span].sum(dim=1).max()))
            yield self._microbatch(step, active, span, lengths[start], most, counts)
            start += size

    def _microbatch(self, step: int, active: int, span: slice, longest: int, most: int, counts: Tensor) -> Microbatch:
        """Rows `span` of each batch; `longest` of their tokens are kept, at most `most` of a plan's are learnt."""
        batches, lengths, answers, _ = self.on_device
        rows = batches[step, :active, span]  # (k, b)
        answer, length = self._of(answers, rows), self._of(lengths, rows)
        flat_rows = rows.clamp(min=0).flatten()
        ids = self.ids.index_select(0, flat_rows)[:, :longest]
        end, answer = (length - 1).unsqueeze(-1), answer.unsqueeze(-1)  # (k, b, 1)
        index = torch.arange(longest, device=self.device)
        learnt = ((index >= end - answer) & (index < end)).flatten(1)  # (k, b * T): states that predict answer tokens
        local = learnt.int().argsort(dim=1, descending=True, stable=True)[:, :most].sort(dim=1).values
        target_positions = local + torch.arange(active, device=self.device).unsqueeze(1) * learnt.shape[1]
        following = ids.roll(-1, dims=1).reshape(-1)
        positions = self.positions
        if positions is not None:
            positions = positions.index_select(1, flat_rows)[:, :, :longest]
        weights, features = learnt.gather(1, local) / counts.to(self.dtype), self._features(step, active, span)
        return Microbatch(ids, positions, features, target_positions, following[target_positions], weights)

    def _features(self, step: int, active: int, span: slice) -> Tensor:
        """(k * b, n, d) on the device: from tables there, or copied from the host without waiting for the copy."""
        here = self.features[0].device == self.device
        batches, feature = (self.on_device[0], self.on_device[3]) if here else (self.batches, self.feature)
        indices = feature[batches[step, :active, span].clamp(min=0)]
        if self.shared:
            rows = self.features[0].index_select(0, indices.flatten())
        else:
            pairs = zip(self.features, indices, strict=False)
            rows = torch.cat([features.index_select(0, index) for features, index in pairs])
        return rows if here else to_device(rows, self.device)


def to_device(rows: Tensor, device: torch.device) -> Tensor:
    """Rows on `device`. From the host's memory, only pinned pages are copied while the host goes on."""
    if device.type != "cuda" or rows.is_cuda:
        return rows.to(device)
    return rows.pin_memory().to(device, non_blocking=True)
