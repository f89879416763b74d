"""Locks on the clean-tuned controls that several jobs need: the first that comes tunes one, others wait for it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bvlm_utils.store import records
from bvlm_utils.store.cell import Cell


@contextmanager
def lacking(controls: Sequence[Cell], folder: Path, wait: bool = False) -> Iterator[list[Cell]]:
    """Those controls whose adapters the store lacks; nobody else tunes them until the block ends.

    Those that another process tunes are left out, or with `wait` awaited. A folder without locks gives all of them.
    """
    (folder / "locks").mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        untuned = []
        # In one order for all, so that two processes cannot wait for each other.
        for control in sorted(controls, key=lambda control: control.run_id):
            if records.adapter(control, folder):
                continue
            lock = FileLock(folder / "locks" / f"{control.run_id}.lock")
            try:
                locks.enter_context(lock.acquire(blocking=wait))
            except Timeout:
                continue
            except OSError:
                pass  # a folder without locks
            if not records.adapter(control, folder):  # else it was finished just before
                untuned.append(control)
        yield untuned
