"""The image features of a job (28 GB for a 7B model): on the GPU while they are few, then in memory, then in a file."""

import mmap
import tempfile
from collections.abc import Hashable, Sequence

import torch

from bvlm_utils import paths
from bvlm_utils.train import memory

CPU = torch.device("cpu")
SHARE = 0.25  # of the memory that is free, of the device's and of the host's, when the first features come


class FeatureCache:
    """Rows of features by key, each stored once. Read them with `rows` and `table`. device: where the model is."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.budgets: dict[torch.device, int] = {}  # bytes: a share of what is free when first asked
        self.index: dict[Hashable, int] = {}
        self._rows: torch.Tensor | None = None  # (capacity, n, d), the first len(index) of them in use
        self._file = None

    @property
    def table(self) -> torch.Tensor:
        """(F, n, d): all rows, in the order in which they came. A view, valid until the next `add`."""
        if self._rows is None:
            raise LookupError("There are no features yet; add some first.")
        return self._rows[: len(self.index)]

    @property
    def on_disk(self) -> bool:
        return self._file is not None

    def rows(self, keys: Sequence[Hashable]) -> list[int]:
        """The row of `table` that each key has; KeyError for a key that was not added."""
        return [self.index[key] for key in keys]

    def add(self, keys: Sequence[Hashable], rows: torch.Tensor) -> None:
        """Keep rows (len(keys), n, d), all of one shape and dtype, under new keys."""
        first = len(self.index)
        self._make_room(first + len(keys), rows.detach())
        self._rows[first : first + len(keys)] = rows.detach().to(self._rows.device)
        self.index.update(zip(keys, range(first, first + len(keys)), strict=True))

    def _make_room(self, needed: int, like: torch.Tensor) -> None:
        capacity = 0 if self._rows is None else len(self._rows)
        if needed <= capacity:
            return
        needed = max(needed, 2 * capacity)
        size = needed * like[0].numel() * like.element_size()
        old, home = self._rows, self._home(size)
        if home is not None:
            self._rows = torch.empty(needed, *like.shape[1:], dtype=like.dtype, device=home)
        else:
            was_mapped = self.on_disk
            self._rows = self._map(size, like.dtype).view(needed, *like.shape[1:])
            if was_mapped:  # the same bytes, seen through a larger window
                return
        if old is not None:
            self._rows[:capacity] = old.to(self._rows.device)

    def _home(self, size: int) -> torch.device | None:
        """Where so many bytes fit: on the device while all rows so far are there, else in memory; None: in a file."""
        for home in (self.device, CPU):  # sizes grow and budgets stay, so none goes back
            if home not in self.budgets:
                self.budgets[home] = int(SHARE * memory.free_bytes(home))
            if size <= self.budgets[home]:
                return home
        return None

    def _map(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        if self._file is None:
            paths.CACHE.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=paths.CACHE)
        self._file.truncate(size)  # sparse: takes room as it is filled
        return torch.frombuffer(mmap.mmap(self._file.fileno(), size), dtype=dtype)
