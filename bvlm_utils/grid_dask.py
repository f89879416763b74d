"""How are the jobs of a grid handed to several processes, or machines? By Dask; `grid` calls this.

One task per job and worker at a time. When a worker dies, Dask gives its task to another one, and finished cells are in
the store, which all workers share. A kernel ends with its worker: ipykernel looks every second for its parent.
"""

import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bvlm_utils import grid_job
from bvlm_utils.errors import InputError
from bvlm_utils.grid_file import Job

if TYPE_CHECKING:
    from distributed import Client

CONNECT_SECONDS = 10
LOOK_SECONDS = 5  # between looks at how many workers there are
OURS = "BVLM_"  # variables with this beginning are the same for all workers
# Dask sets this to 65536 for its workers: memory is given back at once, which training would ask for again.
TRIM = "MALLOC_TRIM_THRESHOLD_"

Outcome = tuple[Job, str | None, float]  # the job, what went wrong with it (None: nothing), seconds

# Of this worker's process. It may have several threads, but standard error and environment are the process's.
_one_at_a_time = threading.Lock()
_stopped: set[str] = set()
_current: set[str] = set()


def check(workers: int | None, scheduler: str | None) -> None:
    """InputError if the options of the command line cannot be followed."""
    if workers is not None and scheduler is not None:
        raise InputError(
            f"--workers {workers} and --scheduler {scheduler} exclude each other: a scheduler has its own workers."
        )
    if workers is not None and workers < 1:
        raise InputError(f"--workers is {workers}; it must be 1 or more.")


@contextmanager
def outcomes(
    jobs: Sequence[Job], place: Path, workers: int | None = None, scheduler: str | None = None
) -> Iterator[Iterator[Outcome]]:
    """Within the block: the jobs as they finish, in any order. `workers` processes of this machine carry them
    out, or those of the Dask scheduler at the address `scheduler`.

    place: the store, a folder that all workers see under this path. InputError if no scheduler answers.
    """
    with _remote(scheduler) if scheduler else _local(workers) as client:
        run = uuid.uuid4().hex
        try:
            yield _submit(client, jobs, place, {} if scheduler else _threads(workers), run)
        except BaseException:
            client.run(_stop, run, on_error="ignore")  # the workers of a scheduler would go on
            raise


def _submit(
    client: "Client", jobs: Sequence[Job], place: Path, variables: dict[str, str | None], run: str
) -> Iterator[Outcome]:
    """The jobs in their order, to each worker the next one when it is free.

    Handing them all over at once is no good: Dask spreads them by guesses of how long they take, and does not take
    a job of unknown length from a busy worker to give it to an idle one.
    """
    from distributed import wait

    variables = variables | {name: value for name, value in os.environ.items() if name.startswith(OURS)}
    waiting, running = list(jobs), {}
    while waiting or running:
        for job in _next(waiting, list(running.values()), len(client.scheduler_info()["workers"])):
            waiting.remove(job)
            key = f"{job.name}-{run}"
            running[client.submit(_carry_out, job, place, variables, run, key=key, pure=False)] = job
        try:
            finished = wait(list(running), timeout=LOOK_SECONDS, return_when="FIRST_COMPLETED").done
        except TimeoutError:  # look again: there may be more workers now
            continue
        for future in finished:
            job, error = running.pop(future), future.exception()
            if error is None:
                yield job, *future.result()
            else:
                yield job, f"  {_words(error)}", 0.0


def _next(waiting: Sequence[Job], running: Sequence[Job], workers: int) -> list[Job]:
    """The jobs to begin now. A cell that two jobs share is made once: the second job waits for the first.

    At least one job is under way even without workers, so that the first one to come has something to do.
    """
    busy = {cell.run_id for job in running for cell in job.cells}
    found: list[Job] = []
    for job in waiting:
        if len(running) + len(found) >= max(1, workers):
            break
        names = {cell.run_id for cell in job.cells}
        if busy.isdisjoint(names):
            found.append(job)
        busy |= names  # one that waits keeps its place before those behind it
    return found


def _words(error: BaseException) -> str:
    from distributed.scheduler import KilledWorker

    if isinstance(error, KilledWorker):
        return f"every worker that had this job died; the last was {error.last_worker.address}"
    return f"{type(error).__name__}: {error}"


# ---------------------------------------------------------------- in the workers


def _carry_out(job: Job, place: Path, variables: dict[str, str | None], run: str) -> tuple[str | None, float]:
    """The task: what went wrong (None: nothing), and the seconds that it took.

    variables: of the environment. run: a name for the command that wants this.
    """
    if not place.is_dir():
        return (
            f"  the worker on {socket.gethostname()} does not see the store {place}; "
            "all machines need it, under the same path."
        ), 0.0
    others = {name: None for name in os.environ if name.startswith(OURS) and name not in variables}
    trim = {TRIM: None} if os.environ.get(TRIM) == "65536" else {}
    with _one_at_a_time, grid_job.environment(variables | others | trim):
        begun = time.monotonic()
        if run in _stopped or not grid_job.unfinished(job, place):
            return None, 0.0
        _current.add(run)
        try:
            problem = grid_job.carry_out(job, place, again=lambda: run not in _stopped)
        finally:
            _current.discard(run)
        return problem, time.monotonic() - begun


def _stop(run: str) -> None:
    """End this worker's kernel if it belongs to that run, and begin none for it again."""
    import psutil

    _stopped.add(run)
    if run not in _current:
        return
    for child in psutil.Process().children(recursive=True):
        try:
            if "ipykernel_launcher" in child.cmdline():
                child.kill()
        except psutil.NoSuchProcess:
            continue


# ---------------------------------------------------------------- clusters


# A local cluster shares its cores with the kernels. Dask's own variables stay away, for they would hold every kernel to
# one thread (see also TRIM), and so do its profiler and its fast clocks: together they took a sixth of a core.
QUIET = {
    "distributed.nanny.pre-spawn-environ": {},
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.system-monitor.gil.enabled": False,
}


@contextmanager
def _remote(scheduler: str) -> Iterator["Client"]:
    from distributed import Client

    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--scheduler is {scheduler!r}, where no Dask scheduler answers ({_first_line(error)}); "
            "start one with `dask scheduler` and give the address that it prints, like tcp://10.0.0.1:8786."
        ) from None
    with client:
        yield client


@contextmanager
def _local(workers: int) -> Iterator["Client"]:
    import logging

    import dask
    from distributed import Client, LocalCluster

    with dask.config.set(QUIET):
        with _signals_later():
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=None,
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            )
        with cluster, Client(cluster) as client:
            yield client


@contextmanager
def _signals_later() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the block ends: half a cluster cannot be closed.

    Processes that are started here never see SIGINT, so that Ctrl-C on a terminal, which goes to all of them,
    is this process's alone.
    """
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # started later, it would let the signals through again
    arrived: list[int] = []
    both = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, lambda n, _frame: arrived.append(n)) for number in both}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


def _threads(workers: int) -> dict[str, str | None]:
    """Each kernel's share of the cores, unless the user has said how many threads there shall be."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    from dask.system import CPU_COUNT

    return {"OMP_NUM_THREADS": str(max(1, CPU_COUNT // workers))}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
