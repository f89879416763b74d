"""How is one job of a grid carried out? Papermill runs its notebook in a kernel of its own.

Called by `grid`, one job after the other, and by `grid_dask`, in the workers' processes.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from bvlm_utils import store as results
from bvlm_utils import study
from bvlm_utils.grid_file import Job, shown

START_SECONDS = 300  # a kernel on a busy machine


def carry_out(job: Job, place: Path, again: Callable[[], bool] = lambda: True) -> str | None:
    """Run one notebook; None if all its cells have records then, else what went wrong.

    place: the store. again: may a kernel that failed be started once more?
    """
    output, log = place / "notebooks" / f"{job.name}.ipynb", place / "notebooks" / f"{job.name}.log"
    partial = output.with_name(f"{results.PARTIAL}{output.name}")
    error = _papermill(job, place, partial, log, again)
    missing = unfinished(job, place)
    with suppress(FileNotFoundError):
        os.replace(partial, output)
    if not missing and not error:
        log.unlink(missing_ok=True)
        return None
    texts = results.failures(place)
    lines = [f"  {error}"] if error else []
    lines += [f"  {run_id}: {texts.get(run_id, 'no record').strip().splitlines()[-1]}" for run_id in missing]
    return "\n".join([*lines, f"  See {shown(output)} and {shown(place / 'failures')}."])


def unfinished(job: Job, place: Path) -> list[str]:
    """run_ids of the cells that the job still has to make."""
    return [cell.run_id for cell in job.cells if not study.finished(cell, place)]


def _papermill(job: Job, place: Path, output: Path, log: Path, again: Callable[[], bool]) -> str | None:
    """Execute; None or the error in a line. A kernel that fails is started once more: finished cells are
    kept.
    """
    import logging

    import papermill
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.ERROR)
    logging.getLogger("traitlets").setLevel(logging.ERROR)
    for attempt in (1, 2):
        try:
            with _stderr_to(log), environment(_of_kernels()):
                papermill.execute_notebook(
                    str(job.notebook),
                    str(output),
                    parameters={**job.parameters, "store": str(place)},
                    kernel_name="python3",
                    language="python",
                    progress_bar=False,
                    start_timeout=START_SECONDS,
                )
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
    """What kernels write to this process's standard error goes to a file: ipykernel 7 warns there on every
    run.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with file.open("ab") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def _of_kernels() -> dict[str, str | None]:
    """What kernels find in their environment beside what this process has."""
    home, before = str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")
    # They start in another folder and must find this package there, installed or not.
    wanted: dict[str, str | None] = {"PYTHONPATH": os.pathsep.join([home, *([before] if before else [])])}
    if "GLIBC_TUNABLES" not in os.environ:
        # Training takes fresh memory all the time, and huge pages make that cheap: a tenth of the time on two
        # cores. Where the C library is another one, nobody reads this.
        wanted["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    return wanted


@contextmanager
def environment(wanted: Mapping[str, str | None]) -> Iterator[None]:
    """Environment variables as given (None: not set) until the block ends."""
    before = {name: os.environ.get(name) for name in wanted}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
