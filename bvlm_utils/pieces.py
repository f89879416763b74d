"""Which rows go through the model together? Batches of several plans, cut by length; called by `grouped`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bvlm_utils import sequences


@dataclass(frozen=True)
class Plan:
    """What one adapter is to learn: training rows as columns, in steps, with a learning rate for each step."""

    ids: Sequence[torch.Tensor]  # (T,) int64 of each row, its image tokens expanded
    answers: Sequence[int]  # so many tokens at the end of each row are learnt
    pictures: Sequence[int]  # for each row, the index of its picture in `features`
    positions: Sequence[torch.Tensor] | None  # (3, T) of each row, for models with multimodal positions
    steps: Sequence[Sequence[int]]  # per step, the rows of its batch
    rates: Sequence[float]  # per step
    features: torch.Tensor  # (F, n, d)
    rank: int
    alpha: float
    start: dict[str, torch.Tensor]  # PEFT state dict that training starts from
    weight_decay: float = 0.0
    max_norm: float = 1.0  # 0 leaves gradients as they are, as in `train`
    config: Any = None  # the adapter's peft.LoraConfig, handed on to the result


@dataclass(frozen=True)
class Piece:
    """A micro-batch of b rows for each of k plans, on the device."""

    ids: torch.Tensor  # (k * b, T)
    positions: torch.Tensor | None  # (3, k * b, T)
    features: torch.Tensor  # (k * b, n, d)
    places: (
        torch.Tensor
    )  # (k, L) distinct places in k * b * T: those whose state predicts an answer's token, and some more
    targets: torch.Tensor  # (k, L) the tokens predicted there
    weights: torch.Tensor  # (k, L) one over the plan's answer tokens in the whole batch; 0 at the additional places


class Table:
    """All rows of all plans as padded tensors, from which micro-batches are cut without a loop over rows."""

    def __init__(self, plans: Sequence[Plan], device: torch.device | str, dtype: torch.dtype):
        ids = [row for plan in plans for row in plan.ids]
        firsts = torch.tensor([0, *[len(plan.ids) for plan in plans]]).cumsum(0).tolist()
        self.length = torch.tensor([len(row) for row in ids])
        self.answer = torch.tensor([count for plan in plans for count in plan.answers])
        self.feature = torch.tensor([picture for plan in plans for picture in plan.pictures])
        self.ids = sequences.pad(ids).to(device)
        positions = [row for plan in plans for row in plan.positions or ()]
        self.positions = sequences.pad(positions).to(device) if positions else None
        self.features, self.device, self.dtype = [plan.features for plan in plans], device, dtype
        # (S, G, B) rows of the table, longest first within a batch; -1 where a plan has no row
        steps, size = (
            max(len(plan.steps) for plan in plans),
            max(len(batch) for plan in plans for batch in plan.steps),
        )
        self.batches = torch.full((steps, len(plans), size), -1)
        for g, (plan, first) in enumerate(zip(plans, firsts, strict=False)):
            for step, batch in enumerate(plan.steps):
                self.batches[step, g, : len(batch)] = torch.tensor(batch) + first
        lengths = self._of(self.length, self.batches)
        self.batches = self.batches.gather(2, lengths.argsort(dim=2, descending=True, stable=True))

    @staticmethod
    def _of(column: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.where(rows < 0, 0, column[rows.clamp(min=0)])

    def longest(self, step: int, active: int) -> int:
        """Tokens of the longest row of a step."""
        return int(self._of(self.length, self.batches[step, :active]).max())

    def pieces(self, step: int, active: int, tokens: int) -> Iterator[Piece]:
        """The batches of one step of the first `active` plans, in pieces of at most `tokens` tokens (at least
        one row per plan). Rows are taken by length, so a piece holds rows of similar length and little
        padding."""
        batch = self.batches[step, :active]
        lengths = self._of(self.length, batch).amax(dim=0).tolist()
        counts = self._of(self.answer, batch).sum(dim=1, keepdim=True).clamp(min=1)
        start, end = 0, sum(length > 0 for length in lengths)
        while start < end:
            size = min(end - start, max(1, tokens // (active * lengths[start])))
            yield self._piece(batch[:, start : start + size], lengths[start], counts)
            start += size

    def _piece(self, rows: torch.Tensor, longest: int, counts: torch.Tensor) -> Piece:
        answer, length = self._of(self.answer, rows), self._of(self.length, rows)
        most = max(1, int(answer.sum(dim=1).max()))
        pick_from = rows.clamp(min=0).flatten()
        features = [
            features[self.feature[part.clamp(min=0)].to(features.device)].to(self.device)
            for features, part in zip(self.features, rows, strict=False)
        ]
        chosen = pick_from.to(self.device)
        ids = self.ids.index_select(0, chosen)[:, :longest]
        end, answer = ((one.unsqueeze(-1)).to(self.device) for one in (length - 1, answer))  # (k, b, 1)
        at = torch.arange(longest, device=self.device)
        learnt = ((at >= end - answer) & (at < end)).flatten(1)  # (k, b * T): states that predict an answer's token
        within = learnt.int().argsort(dim=1, descending=True, stable=True)[:, :most].sort(dim=1).values
        places = within + torch.arange(len(rows), device=self.device).unsqueeze(1) * learnt.shape[1]
        following = ids.roll(-1, dims=1).reshape(-1)
        positions = None
        if self.positions is not None:
            positions = self.positions.index_select(1, chosen)[:, :, :longest]
        return Piece(
            ids,
            positions,
            torch.cat(features),
            places,
            following[places],
            learnt.gather(1, within) / counts.to(self.device, self.dtype),
        )
