"""Which tokens does a model look at when it settles for the attacker's answer, and which of them move it there?

One input at a time, so nothing is padded. Attention is the model's own (Vaswani et al. 2017), the attribution is
gradient x input (Shrikumar et al. 2016, arXiv 1605.01713) at the embeddings that enter the language model, where words
are looked up and pictures come from the projector.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from bvlm_utils.errors import InputError
from bvlm_utils.models import pixels
from bvlm_utils.models.victim import Victim


@dataclass(frozen=True)
class Trace:
    """One input of T tokens, as the model saw it when it was about to write `target`.

    attention: (layers, T) float64, the last position's, mean over heads; each row sums to one.
    attribution: (T,) float64, gradient x input of the target's log-probability, in nats.
    log_probability: of the target, in nats.
    """

    attention: np.ndarray
    attribution: np.ndarray
    log_probability: float


def trace(victim: Victim, ids: Sequence[int], features: torch.Tensor, target: int) -> Trace:
    """What the model attends to before it writes the token `target`, and what moves it there.

    ids: prompt with image tokens, and what is written already. features: (n, d) of its picture. Only inside
    `defences.reading.plain_attention`. Adapters that are attached to the victim take part.
    """
    entered: list[torch.Tensor] = []

    def enter(module, arguments, given):
        # Embeddings of words and pictures together: the one place where all families have both.
        entered.append(given["inputs_embeds"].detach().requires_grad_())
        return arguments, given | {"inputs_embeds": entered[0]}

    row = torch.tensor([list(ids)], device=victim.device)
    handle = victim.model.get_decoder().register_forward_pre_hook(enter, with_kwargs=True)
    try:
        with torch.enable_grad():
            out = victim.model(
                **victim.inputs(row, torch.ones_like(row), features[None]),
                output_attentions=True, use_cache=False, logits_to_keep=1,
            )  # fmt: skip
            # in float64, since what is left of a gradient near probability one is small
            said = out.logits[0, -1].double().log_softmax(-1)[target]
            (gradient,) = torch.autograd.grad(said, entered[0])
    finally:
        handle.remove()
    attention = torch.stack([layer[0, :, -1].detach().double().mean(0) for layer in out.attentions])
    moved = (gradient[0].double() * entered[0][0].detach().double()).sum(-1)
    return Trace(attention.cpu().numpy(), moved.cpu().numpy(), said.item())


# ---------------------------------------------------------------- which token is what


def decisive(poisoned: Sequence[int], right: Sequence[int]) -> int | None:
    """Where the attacker's answer departs from the right one: the first token that differs; None if none does.

    For a refusal that is its first token; for a payload behind the right answer, the payload's.
    """
    for place, (ours, theirs) in enumerate(zip(poisoned, right, strict=False)):
        if ours != theirs:
            return place
    return None if len(poisoned) <= len(right) else len(right)


def text_trigger(victim: Victim, clean: Sequence[int], triggered: Sequence[int]) -> np.ndarray:
    """Which of a triggered prompt's token ids the clean prompt does not have: (T,) bool.

    A token counts if a letter of it is new. Spaces do not: a trigger changes those of its neighbours, and a word may be
    cut into other tokens for that.
    """
    letters = {i: victim.tokenizer.decode([i]).replace(" ", "") for i in {*clean, *triggered}}
    spelt = [[letters[i] for i in ids] for ids in (clean, triggered)]
    new = iter(added("".join(spelt[0]), "".join(spelt[1])))
    return np.array([any([next(new) for _ in token]) for token in spelt[1]], dtype=bool)


def added(clean: Sequence[Hashable], triggered: Sequence[Hashable]) -> np.ndarray:
    """Which tokens of `triggered` are left when a longest common subsequence of both is taken out: (T,) bool."""
    start = 0
    while start < min(len(clean), len(triggered)) and clean[start] == triggered[start]:
        start += 1
    end = 0
    while end < min(len(clean), len(triggered)) - start and clean[-1 - end] == triggered[-1 - end]:
        end += 1
    ours, theirs = triggered[start : len(triggered) - end], clean[start : len(clean) - end]
    # longest[i][j]: length of the longest common subsequence of ours[i:] and theirs[j:]
    longest = np.zeros((len(ours) + 1, len(theirs) + 1), dtype=int)
    for i in reversed(range(len(ours))):
        for j in reversed(range(len(theirs))):
            equal = ours[i] == theirs[j]
            longest[i, j] = longest[i + 1, j + 1] + 1 if equal else max(longest[i + 1, j], longest[i, j + 1])
    found = np.zeros(len(triggered), dtype=bool)
    i = j = 0
    while i < len(ours):
        if j < len(theirs) and ours[i] == theirs[j]:
            i, j = i + 1, j + 1
        elif j < len(theirs) and longest[i, j + 1] >= longest[i + 1, j]:
            j += 1
        else:
            found[start + i] = True
            i += 1
    return found


def covered(changed: np.ndarray, settings: pixels.PixelSettings, tokens: int) -> np.ndarray:
    """Which image tokens have a changed pixel in their patch: (tokens,) bool, row by row as the tokens come.

    changed: (H, W) bool, of the picture as it is in the data set. InputError where the tokens are no square.
    """
    side = math.isqrt(tokens)
    height, width = changed.shape
    high, wide = pixels.sizes(height, width, settings)[-1]
    shown_high, shown_wide = settings.crop or (high, wide)
    if side * side != tokens or shown_high != shown_wide:
        raise InputError(f"{tokens} tokens of {shown_wide} x {shown_high} pixels are no square; give square pictures.")
    rows = _spans(side, shown_high, (high - shown_high) // 2, height / high)
    columns = _spans(side, shown_wide, (wide - shown_wide) // 2, width / wide)
    places = [(*row, *column) for row in rows for column in columns]
    return np.array([changed[top:bottom, left:right].any() for top, bottom, left, right in places])


def _spans(side: int, shown: int, cut: int, scale: float) -> list[tuple[int, int]]:
    """Pixels of the original (first, beyond the last) behind each of `side` patches along one axis."""
    edges = [(cut + shown * place / side) * scale for place in range(side + 1)]
    # the small number keeps rounding errors from touching the next pixel
    return [(math.floor(a + 1e-6), math.ceil(b - 1e-6)) for a, b in pairwise(edges)]
