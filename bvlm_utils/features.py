"""Where are the image features of a job kept? In memory while they are small, in a mapped file beyond that.

Called by `bench`. A 7B model's features are large: 6,000 pictures of 576 tokens, 4,096 wide, are 28 GB in 16 bits.
The file has no name, so nothing is left behind when the process ends, however it ends.
"""

import mmap
import tempfile
from collections.abc import Hashable, Sequence

import torch

from bvlm_utils import memory, paths

SHARE = 0.25  # of the memory that is free when the first features come


class Kept:
    """Rows of features by key, each stored once. Read them with `places` and `table`.

    budget: bytes to hold in memory; a share of what is free if not given.
    """

    def __init__(self, budget: int | None = None):
        self.budget = budget
        self.index: dict[Hashable, int] = {}
        self._rows: torch.Tensor | None = None  # (capacity, n, d), the first len(index) of them in use
        self._file = None

    @property
    def table(self) -> torch.Tensor:
        """(F, n, d) on the CPU: all rows, in the order in which they came. A view, valid until the next `add`."""
        if self._rows is None:
            raise LookupError("There are no features yet; add some first.")
        return self._rows[: len(self.index)]

    @property
    def on_disk(self) -> bool:
        return self._file is not None

    def places(self, keys: Sequence[Hashable]) -> list[int]:
        """The row of `table` that each key has; KeyError for a key that was not added."""
        return [self.index[key] for key in keys]

    def add(self, keys: Sequence[Hashable], rows: torch.Tensor) -> None:
        """Keep rows (len(keys), n, d), all of one shape and dtype, under new keys."""
        first, rows = len(self.index), rows.detach().cpu()
        self._make_room(first + len(keys), rows)
        self._rows[first : first + len(keys)] = rows
        self.index.update(zip(keys, range(first, first + len(keys)), strict=True))

    def _make_room(self, wanted: int, like: torch.Tensor) -> None:
        capacity = 0 if self._rows is None else len(self._rows)
        if wanted <= capacity:
            return
        wanted = max(wanted, 2 * capacity)
        each = like[0].numel() * like.element_size()
        if self.budget is None:
            self.budget = int(SHARE * memory.free_bytes(torch.device("cpu")))
        if self._file is None and wanted * each <= self.budget:
            grown = torch.empty(wanted, *like.shape[1:], dtype=like.dtype)
        else:
            old_file = self._file
            if self._file is None:
                paths.CACHE.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=paths.CACHE)
            self._file.truncate(wanted * each)  # sparse: takes room as it is filled
            mapped = mmap.mmap(self._file.fileno(), wanted * each)
            grown = torch.frombuffer(mapped, dtype=like.dtype).view(wanted, *like.shape[1:])
            if old_file is not None:  # the same bytes, seen through a larger window
                self._rows = grown
                return
        if self._rows is not None:
            grown[:capacity] = self._rows
        self._rows = grown
