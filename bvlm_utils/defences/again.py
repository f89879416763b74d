"""What defences ask again and again is computed once: answers, readings and encoded pictures, known by their content.

Results of rows are kept inside `remembering` alone. Elsewhere only equal rows of one call are computed once.
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
    """Inside a `with`, results go to `kept` and come from there. The model has to stay the same."""
    token = _KEPT.set(kept)
    try:
        yield
    finally:
        _KEPT.reset(token)


def each(kind: str, keys: Sequence[Hashable], make: Callable[[list[int]], Sequence[Any]]) -> list[Any]:
    """The result of each key. `make` takes the positions of those that are not known yet, and gives their results."""
    kept = _KEPT.get()
    results = {} if kept is None else kept.setdefault(kind, {})
    first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in results}
    missing = sorted(first.values())
    if missing:
        results.update(zip((keys[i] for i in missing), make(missing), strict=True))
    return [results[key] for key in keys]


def rows(batch: "Rows") -> list[Hashable]:
    """What tells rows apart, for any model: prompt, answer and the features of the picture."""
    keys = {int(row): features(batch.features[int(row)]) for row in np.unique(batch.feature_rows)}
    return [
        (prompt, answer, keys[int(row)])
        for prompt, answer, row in zip(batch.prompts, batch.answers, batch.feature_rows, strict=True)
    ]


def features(tensor: "torch.Tensor") -> Hashable:
    import torch

    return picture(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())


def picture(pixels: np.ndarray) -> Hashable:
    return pixels.shape, sha256(np.ascontiguousarray(pixels)).digest()


def adapter(result: Any | None) -> tuple[str, ...]:
    """What tells an adapter apart; nothing for the base."""
    return () if result is None else (result.digest, repr(result.config))
