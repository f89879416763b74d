"""Time: how many cells make a group of a few minutes, and what each cell's seconds were spent on."""

import time


class Pace:
    """How many cells make a group of about `seconds`? The first group is small, and shows how fast this machine is."""

    FIRST = 4

    def __init__(self, seconds: float):
        self.seconds, self.each = seconds, 0.0

    def size(self, waiting: int) -> int:
        wanted = self.FIRST if not self.each else max(1, int(self.seconds / self.each))
        # Two groups of equal size beat a full one and a remainder.
        return -(-waiting // -(-waiting // wanted))

    def saw(self, cells: int, seconds: float) -> None:
        self.each = seconds / cells


class Clock:
    """Seconds by what they were spent on, each cell's share of a group."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.group = 1
        self._last = time.perf_counter()

    def lap(self, name: str, cells: int) -> None:
        now = time.perf_counter()
        self.seconds[name] = round((now - self._last) / cells, 3)
        self.seconds["total"] = round(sum(v for k, v in self.seconds.items() if k != "total"), 3)
        self.group = max(self.group, cells)
        self._last = now
