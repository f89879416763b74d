"""What a defender has: training rows, clean rows, or inputs to be answered, with their pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rows:
    """n rows.

    prompts, answers: n texts each; answers are empty texts where nobody knows them.
    features: (F, m, d) projected image tokens; feature_rows: (n,) which of them each row shows.
    kinds: the question kind of each row ("count", "caption", ...), for defences that compare rows of one kind.
    pictures: (n, H, W, 3) uint8, for defences that change pictures; None if they are not at hand.
    scores: (n,) how suspicious each row is, for defences that drop rows; None if nobody has searched them.
    """

    prompts: Sequence[str]
    answers: Sequence[str]
    features: "torch.Tensor"
    feature_rows: np.ndarray
    kinds: Sequence[str]
    pictures: np.ndarray | None = None
    scores: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, positions: Sequence[int]) -> "Rows":
        """The rows at `positions`, in that order; the features stay one table."""
        indices = np.asarray(positions, dtype=np.int64)
        return replace(
            self,
            prompts=[self.prompts[i] for i in indices],
            answers=[self.answers[i] for i in indices],
            feature_rows=self.feature_rows[indices],
            kinds=[self.kinds[i] for i in indices],
            pictures=None if self.pictures is None else self.pictures[indices],
            scores=None if self.scores is None else self.scores[indices],
        )


@dataclass(frozen=True)
class Answered:
    """What a defence at inference gives back for n inputs.

    answers: n texts. suspicion: (n,) float64, higher is more suspicious.
    changed: (n,) float64, how much the defence changed of each: picture tokens masked, words removed, tokens of the
        answer replaced, or the mean change of a pixel in levels; 0 where it left all as it was.
    alarms: (n,) bool, which inputs pass the threshold that the paper sets; None where it sets none.
    """

    answers: list[str]
    suspicion: np.ndarray
    changed: np.ndarray
    alarms: np.ndarray | None = None
