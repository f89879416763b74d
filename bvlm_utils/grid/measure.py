"""The measuring of a grid's cells: a bench in one process (this module as a command), which ends with its parent."""

import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bvlm_utils.errors import Remark
from bvlm_utils.grid import job as grid_job
from bvlm_utils.grid.file import shown
from bvlm_utils.grid.job import Run
from bvlm_utils.run import study
from bvlm_utils.run.workbench import by_bench
from bvlm_utils.store.cell import Cell

LOGS = "measuring-"  # beginning of the names of the logs
REMARK = "remark: "  # beginning of the lines of a log that are for the reader, too


def parts(cells: Sequence[Cell], workers: int) -> list[list[Cell]]:
    """Cells that one process measures: those of a bench. For several workers, about two parts each, the longest first,
    cells of one attack together.
    """
    if workers == 1:
        return by_bench(cells)
    most, groups = -(-len(cells) // (2 * workers)), []
    for group in by_bench(cells):
        group = sorted(group, key=lambda cell: cell.attack)
        size = -(-len(group) // -(-len(group) // most))
        groups += [group[at : at + size] for at in range(0, len(group), size)]
    return sorted(groups, key=len, reverse=True)


def measure(cells: Sequence[Cell], run: Run, again: Callable[[], bool] = lambda: True) -> str | None:
    """Measure cells of one bench in a process of its own; None, or why some of them were not tried to the end. If it
    dies, what is left is tried once more, each threat in a process of its own. again: may that be done?
    """
    remaining = run.left(cells)
    if not remaining:
        return None
    log = run.folder / "notebooks" / f"{LOGS}{remaining[0].run_id}.log"
    problem, remaining = _process(remaining, run, log), run.left(remaining)
    if problem and again():
        problem = None
        for threat in dict.fromkeys(cell.threat for cell in remaining):
            cells_of_threat = [cell for cell in remaining if cell.threat == threat]
            problem = _process(cells_of_threat, run, log) or problem
    if problem and run.left(remaining):
        return f"the measuring process failed twice ({problem}); its words are in {shown(log)}"
    with suppress(FileNotFoundError):  # another run of the same cells in this store has removed it
        for line in log.read_text("utf-8", "replace").splitlines():
            if line.startswith(REMARK):
                warnings.warn(line.removeprefix(REMARK), Remark, stacklevel=2)
    log.unlink(missing_ok=True)
    return None


def _process(cells: Sequence[Cell], run: Run, log: Path) -> str | None:
    """One measuring process from beginning to end; None, or what ended it early."""
    task = {"cells": [cell.config() for cell in cells], "folder": str(run.folder)}
    task |= {"plain": run.plain, "rescore": run.rescore}
    variables = {name: value for name, value in (os.environ | grid_job.of_children()).items() if value is not None}
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "bvlm_utils.grid.measure"], env=variables,
            stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C on a terminal is the runner's alone
        )  # fmt: skip
    try:
        with suppress(BrokenPipeError):  # it has died already
            process.stdin.write(json.dumps(task).encode() + b"\n")
            process.stdin.flush()
        code = process.wait()
    finally:
        process.kill()
        process.wait()
        with suppress(BrokenPipeError):
            process.stdin.close()
    if code < 0:
        memory = "; memory may have run out" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{memory}"
    return f"exit code {code}" if code else None


def main() -> None:
    """Measure the cells that standard input names, in one line of JSON."""
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("once", Remark)
    warnings.showwarning = _show
    cells = [Cell.from_config(config) for config in task["cells"]]
    study.measure(cells, Path(task["folder"]), plain=task["plain"], rescore=task["rescore"])


def _show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """A warning as a line of the log."""
    line = " ".join(str(message).split())
    print(f"{REMARK if issubclass(category, Remark) else ''}{line}", flush=True)


def _end_with_parent() -> None:
    """Standard input ends when the process at its other end does, however that happens."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
