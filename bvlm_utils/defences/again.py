"""What defences ask again and again is computed once: answers, readings and encoded pictures, known by their content.

Kept are the results of rows, inside `remembering` alone. Elsewhere only equal rows of one call are computed once.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from bvlm_utils.defences.rows import Rows

Kept = dict[str, dict[Hashable, Any]]  # by kind, and there by content
_KEPT: ContextVar[Kept | None] = ContextVar("kept", default=None)


@contextmanager
def remembering(kept: Kept) -> Iterator[None]:
    """Results go to `kept` and come from there, inside a `with`. The model has to be one and the same."""
    token = _KEPT.set(kept)
    try:
        yield
    finally:
        _KEPT.reset(token)


def each(kind: str, keys: Sequence[Hashable], make: Callable[[list[int]], Sequence[Any]]) -> list[Any]:
    """The result of each key. `make` is given the positions of those that are not known yet, and gives theirs."""
    kept = _KEPT.get()
    known = {} if kept is None else kept.setdefault(kind, {})
    first = {key: at for at, key in reversed(list(enumerate(keys))) if key not in known}
    lacking = sorted(first.values())
    if lacking:
        known.update(zip((keys[at] for at in lacking), make(lacking), strict=True))
    return [known[key] for key in keys]


def rows(given: "Rows") -> list[Hashable]:
    """What tells rows apart, for any model: prompt, answer and the features of the picture."""
    shown = {int(at): features(given.features[int(at)]) for at in np.unique(given.feature_rows)}
    return [
        (prompt, answer, shown[int(at)])
        for prompt, answer, at in zip(given.prompts, given.answers, given.feature_rows, strict=True)
    ]


def features(given: "torch.Tensor") -> Hashable:
    import torch

    return picture(given.detach().cpu().contiguous().view(torch.uint8).numpy())


def picture(given: np.ndarray) -> Hashable:
    return given.shape, sha256(np.ascontiguousarray(given)).digest()


def adapter(given: Any | None) -> tuple[str, ...]:
    """What tells an adapter apart; nothing for the base."""
    return () if given is None else (given.digest, repr(given.config))
