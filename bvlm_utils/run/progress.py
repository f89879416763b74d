"""Progress of a long run: a bar on a terminal, a line per step elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bvlm_utils.store.cell import Cell


def say(*sentences: str) -> None:
    """To whoever waits for the command line."""
    for sentence in sentences:
        print(sentence, file=sys.stderr, flush=True)


class Progress:
    """Lines on stderr: how many questions are answered, and about how long the rest takes."""

    def __init__(self, what: str, total: int):
        self.what, self.total, self.done, self.started = what, total, 0, time.perf_counter()

    def add(self, count: int, label: str) -> None:
        self.done += count
        seconds = (time.perf_counter() - self.started) / self.done * (self.total - self.done)
        say(f"{self.what}: {self.done} of {self.total} questions answered ({label}), about {seconds / 60:.1f} min left")


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[Cell, str], None]]:
    """A progress bar on a terminal, silence elsewhere: bars fill logs and notebooks."""
    from tqdm import tqdm

    with tqdm(total=total, unit="cell", disable=not sys.stderr.isatty()) as bar:

        def report(cell: Cell, status: str) -> None:
            bar.set_postfix_str(f"{cell.attack} {cell.poison_rate:g} {status}")
            bar.update()

        yield report
