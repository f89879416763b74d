"""What a grid says while it runs: cells done and time left."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from bvlm_utils.grid.job import Run
from bvlm_utils.store.cell import Cell

POLL_SECONDS = 1.0


@contextmanager
def watched(cells: Sequence[Cell], run: Run) -> Iterator[Callable[[], None]]:
    """Cells done and time left, as the store shows: a bar on a terminal, else lines. The function looks at once."""
    ended, lock, silent = threading.Event(), threading.Lock(), not sys.stdout.isatty()
    waiting, started = [cell for cell in cells if run.lacks(cell)], time.monotonic()
    done_before = len(cells) - len(waiting)
    bar = tqdm(total=len(cells), initial=done_before, unit="cell", file=sys.stdout, leave=False, disable=silent)

    def look() -> None:
        with lock:
            for cell in [cell for cell in waiting if not run.lacks(cell)]:
                waiting.remove(cell)
                bar.update()
                if silent:
                    done = len(cells) - len(waiting)
                    seconds_each = (time.monotonic() - started) / (done - done_before)
                    time_left = f"; about {minutes(seconds_each * len(waiting))} left" if waiting else ""
                    say(f"  {done}/{len(cells)} {cell.run_id}{time_left}")

    def watch() -> None:
        while not ended.wait(POLL_SECONDS):
            look()
        look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield look
    finally:
        ended.set()
        thread.join()
        bar.close()


def say(text: str) -> None:
    """Print a line, above the bar where there is one."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
