"""Which cells make a group: a few minutes' worth, or those that a killed run was training."""

from collections.abc import Sequence
from pathlib import Path

from bvlm_utils.run.tune_and_ask import Work
from bvlm_utils.store import packed


class Pace:
    """The number of cells in a group of about `seconds`. The first is small, and shows how fast this machine is."""

    FIRST = 4

    def __init__(self, seconds: float):
        self.seconds, self.each = seconds, 0.0

    def size(self, waiting: int) -> int:
        limit = self.FIRST if not self.each else max(1, int(self.seconds / self.each))
        # Two groups of equal size beat a full one and a remainder.
        return -(-waiting // -(-waiting // limit))

    def saw(self, cells: int, seconds: float) -> None:
        self.each = seconds / cells


def begun(folder: Path, ready: Sequence[Work]) -> list[list[Work]]:
    """Groups that a killed run was training or asking, to go on with. folder: the store."""
    from bvlm_utils.train import unfinished

    forget_finished(folder)
    waiting, groups = {work.cell.run_id: work for work in ready}, []
    for state in unfinished.states_in(folder / "cache").values():
        group = [work for name, work in waiting.items() if name in state.names]
        others = {*state.names} - {*waiting} - {work.cell.control.run_id for work in group}
        if group and all(packed.record(folder, name) is not None for name in others):
            groups.append(group)
            for work in group:
                del waiting[work.cell.run_id]
    return groups


def forget_finished(folder: Path) -> None:
    """Remove the saved states of groups whose records are all there, and newer: with --force there are older ones."""
    from bvlm_utils.train import unfinished

    for file, state in unfinished.states_in(folder / "cache").items():
        records = [folder / name / "record.json" for name in state.names]
        if all(record.is_file() and record.stat().st_mtime_ns >= file.stat().st_mtime_ns for record in records):
            file.unlink(missing_ok=True)
