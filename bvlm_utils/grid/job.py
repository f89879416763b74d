"""A run of a grid, and one job of it: papermill runs its notebook, which reads what `grid.measure` has measured."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bvlm_utils import store as results
from bvlm_utils.atomic import partial_name, read_if_whole
from bvlm_utils.defences import records as defended_records
from bvlm_utils.defences.cell import Defended
from bvlm_utils.grid.file import Job, shown
from bvlm_utils.run import study
from bvlm_utils.store import packed, records
from bvlm_utils.store.cell import Cell

# How papermill starts a kernel; on a busy machine that takes long.
KERNEL = {"kernel_name": "python3", "language": "python", "progress_bar": False, "start_timeout": 300}
CHILDREN = ("ipykernel_launcher", "bvlm_utils.grid.measure")  # in the commands of the processes that a run starts


@dataclass(frozen=True)
class Run:
    """What one `grid run` does in its store. before: run_id -> `stamp` of the records that are to be made anew."""

    folder: Path
    plain: bool = False
    rescore: bool = False
    before: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def lacks(self, cell: Cell) -> bool:
        """Is the record still to be made? One that is to be made anew is there when it is another file than before."""
        current = stamp(cell, self.folder)
        return current in (None, self.before.get(cell.run_id)) or not results.has(cell, self.folder)

    def done(self, job: Job) -> bool:
        """Has the job left all that it has to leave?"""
        return not any(map(self.lacks, job.cells)) and not self.undefended(job) and self._shown(job)

    def _shown(self, job: Job) -> bool:
        """Is its notebook there, executed to its end with these parameters? Another grid's may have the same name."""

        def is_whole(file: Path) -> bool:
            metadata = json.loads(file.read_bytes())["metadata"]["papermill"]
            return not metadata["exception"] and metadata["parameters"] == parameters(job, self.folder)

        return bool(read_if_whole(output(job, self.folder), is_whole))

    def undefended(self, job: Job) -> list[Defended]:
        """The job's defended cells without a record."""
        return [defended for defended in job.defended if not defended_records.has(defended, self.folder)]

    def left(self, cells: Sequence[Cell]) -> list[Cell]:
        """Those cells that have neither a record nor a failure of this run."""
        failures = results.failures(self.folder)
        return [cell for cell in cells if self.lacks(cell) and cell.run_id not in failures]


def stamp(cell: Cell, folder: Path) -> tuple[int, ...] | None:
    """What changes with the cell's record, also on a disk that counts whole seconds; None where there is none."""
    if (shared := packed.stamp(folder)) is not None:  # all records are in one file
        return shared
    try:
        stat = (folder / cell.run_id / "record.json").stat()
        return stat.st_mtime_ns, stat.st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None


def parameters(job: Job, folder: Path) -> dict[str, Any]:
    """What its notebook is executed with, as JSON has it."""
    return json.loads(json.dumps({**job.parameters, "store": str(folder)}))


def output(job: Job, folder: Path) -> Path:
    """Where the executed notebook is put: grids that share a store have jobs of the same names."""
    return folder / "notebooks" / job.grid / f"{job.name}.ipynb"


def carry_out(job: Job, run: Run, again: Callable[[], bool] = lambda: True) -> str | None:
    """Run one notebook; None if all its cells have records, else what went wrong. again: may it be started twice?"""
    final = output(job, run.folder)
    partial, log = final.with_name(partial_name(final.name)), final.with_suffix(".log")
    final.parent.mkdir(parents=True, exist_ok=True)
    error = _papermill(job, run.folder, partial, log, again)
    missing = [cell.run_id for cell in job.cells if run.lacks(cell)]
    missing += [defended.name for defended in run.undefended(job)]
    with suppress(FileNotFoundError):
        os.replace(partial, final)
    if not missing and not error:
        log.unlink(missing_ok=True)
        return None
    texts, lines = results.failures(run.folder), [f"  {error}"] if error else []
    lines += [f"  {run_id}: {texts.get(run_id, 'no record').strip().splitlines()[-1]}" for run_id in missing]
    return "\n".join([*lines, f"  See {shown(final)} and {shown(run.folder / 'failures')}."])


def _papermill(job: Job, folder: Path, output: Path, log: Path, again: Callable[[], bool]) -> str | None:
    """Execute; None or the error in a line. A kernel that fails is started once more."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    for library in ("papermill", "traitlets"):
        logging.getLogger(library).setLevel(logging.ERROR)
    for attempt in (1, 2):
        try:
            with _stderr_to(log), environment(of_children() | {study.MEASURED: "1"}):
                values = parameters(job, folder)
                papermill.execute_notebook(str(job.notebook), str(output), parameters=values, **KERNEL)
            return None
        except PapermillExecutionError as error:
            return f"{error.ename}: {error.evalue}"
        except Exception as error:  # the kernel did not start, or it died: ports can clash, memory can run out
            if attempt == 2 or not again():
                problem = f"{type(error).__name__}: {error}"
                return f"the kernel failed twice ({problem}); its words are in {shown(log)}"
    return None


@contextmanager
def _stderr_to(file: Path) -> Iterator[None]:
    """What kernels write to this process's standard error goes to a file: ipykernel 7 warns there on every run."""
    sys.stderr.flush()
    old_stderr = os.dup(2)
    with file.open("ab") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(old_stderr, 2)
        os.close(old_stderr)


def kill(*words: str) -> None:
    """End the processes that this one has started with one of the words in their command, and what they started."""
    killed = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any(word in " ".join(child.cmdline()) for word in words):
                for process in [*child.children(recursive=True), child]:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                        killed.append(process)
    psutil.wait_procs(killed, timeout=5)


def of_children() -> dict[str, str | None]:
    """The variables that kernels and measuring processes get beside those of this process."""
    root, python_path = Path(__file__).resolve().parents[2], os.environ.get("PYTHONPATH")
    # They start in another folder and must find this package and the book's there, installed or not.
    variables: dict[str, str | None] = {
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "book"), *([python_path] if python_path else [])]),
        records.VARIABLE: None,  # they are told their store
    }
    if "GLIBC_TUNABLES" not in os.environ:
        # Training takes fresh memory all the time, and huge pages make that cheap: a tenth of the time on two
        # cores. Where the C library is another one, nobody reads this.
        variables["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    return variables


@contextmanager
def environment(new_values: Mapping[str, str | None]) -> Iterator[None]:
    """Environment variables with new values (None: not set) until the block ends."""
    old_values = {name: os.environ.get(name) for name in new_values}

    def set_all(variables: Mapping[str, str | None]) -> None:
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    set_all(new_values)
    try:
        yield
    finally:
        set_all(old_values)
