"""A grid on several processes or machines, by Dask.

A task is a part of a workbench that is measured, or a notebook that is executed; each worker has one at a time. When a
worker dies, Dask gives its task to another one, and finished cells are in the store, which all workers share. What a
worker has started ends with it: a kernel looks every second for its parent, a measuring process watches a pipe.
"""

import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

from bvlm_utils.errors import InputError
from bvlm_utils.grid import job as grid_job
from bvlm_utils.grid.job import Run
from bvlm_utils.train.settings import SHARERS

CONNECT_SECONDS = 10
LOOK_SECONDS = 5  # between looks at how many workers there are
OURS = "BVLM_"  # variables with this beginning are the same for all workers
# Dask sets this to 65536 for its workers: memory is given back at once, which training would ask for again.
TRIM = "MALLOC_TRIM_THRESHOLD_"

Task = Callable[..., str | None]  # of an item, the run, and whether to try again: what went wrong (None: nothing)
Variables = dict[str, str | None]  # of the environment; None: not set
Outcome = tuple[Any, str | None, float]  # the item, what went wrong with it, seconds
Each = Callable[[Task, Sequence[Any]], Iterator[Outcome]]

# Of this worker's process. It may have several threads, but standard error and environment are the process's.
_one_at_a_time = threading.Lock()
_stopped: set[str] = set()
_current: set[str] = set()


@contextmanager
def pool(run: Run, workers: int | None = None, scheduler: str | None = None) -> Iterator[tuple[Each, int]]:
    """A function that carries out a task for each item, and how many workers there are now, while the block runs.

    At work are `workers` processes here, or those of the Dask scheduler at the address `scheduler`; all see the store
    under one path. InputError if no scheduler answers.
    """
    with _remote(scheduler) if scheduler else _local(workers) as client:
        name, variables = uuid.uuid4().hex, {} if scheduler else _shares(workers)
        try:
            yield lambda task, items: _submit(client, (task, run, variables, name), items), _workers(client)
        except BaseException:
            client.run(_stop, name, on_error="ignore")  # the workers of a scheduler would go on
            raise


def _workers(client: Any) -> int:
    """At least one, so that the first one to come has something to do."""
    return max(1, len(client.scheduler_info()["workers"]))


def _submit(client: Any, arguments: tuple[Any, ...], items: Sequence[Any]) -> Iterator[Outcome]:
    """The items in their order, to each worker the next one when it is free; Dask's own plan would guess wrong."""
    from distributed import wait
    from distributed.scheduler import KilledWorker

    task, run, variables, name = arguments
    variables = variables | {key: value for key, value in os.environ.items() if key.startswith(OURS)}
    waiting, running = list(enumerate(items)), {}
    while waiting or running:
        while waiting and len(running) < _workers(client):
            number, item = waiting.pop(0)
            key = f"{task.__name__}-{number}-{name}"
            running[client.submit(_carry_out, task, item, run, variables, name, key=key, pure=False)] = item
        try:
            finished = wait(list(running), timeout=LOOK_SECONDS, return_when="FIRST_COMPLETED").done
        except TimeoutError:  # look again: there may be more workers now
            continue
        for future in finished:
            item, error = running.pop(future), future.exception()
            if error is None:
                yield item, *future.result()
            elif isinstance(error, KilledWorker):
                yield item, f"every worker that had this died; the last was {error.last_worker.address}", 0.0
            else:
                yield item, f"{type(error).__name__}: {error}", 0.0


def _carry_out(task: Task, item: Any, run: Run, variables: Variables, name: str) -> tuple[str | None, float]:
    """The task in a worker: what went wrong (None: nothing), and the seconds. name: of the command that wants this."""
    if not run.folder.is_dir():
        where = f"the worker on {socket.gethostname()} does not see the store {run.folder}"
        return f"{where}; all machines need it, under the same path.", 0.0
    others = {key: None for key in os.environ if key.startswith(OURS) and key not in variables}
    trim = {TRIM: None} if os.environ.get(TRIM) == "65536" else {}
    with _one_at_a_time, grid_job.environment(variables | others | trim):
        started = time.monotonic()
        if name in _stopped:
            return None, 0.0
        _current.add(name)
        try:
            problem = task(item, run, again=lambda: name not in _stopped)
        finally:
            _current.discard(name)
        return problem, time.monotonic() - started


def _stop(name: str) -> None:
    """End what this worker has started if it belongs to that command, and begin nothing for it again."""
    _stopped.add(name)
    if name in _current:
        grid_job.kill(*grid_job.CHILDREN)


# A local cluster shares its cores with the kernels. Dask's own variables stay away, for they would hold every kernel to
# one thread (see also TRIM), and so do its profiler and its fast clocks: together they took a sixth of a core.
QUIET = {
    "distributed.nanny.pre-spawn-environ": {},
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.system-monitor.gil.enabled": False,
}
# Each worker has one task at a time, as much memory as there is, and no page on the network.
ALONE = {"threads_per_worker": 1, "memory_limit": None, "dashboard_address": "127.0.0.1:0"}


@contextmanager
def _remote(scheduler: str) -> Iterator[Any]:
    from distributed import Client

    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"--scheduler is {scheduler!r}, where no Dask scheduler answers ({reason}); "
            "start one with `dask scheduler` and give the address that it prints, like tcp://10.0.0.1:8786."
        ) from None
    with client:
        yield client


@contextmanager
def _local(workers: int) -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster

    with dask.config.set(QUIET):
        with _signals_later():
            cluster = LocalCluster(n_workers=workers, processes=True, silence_logs=logging.CRITICAL, **ALONE)
        with cluster, Client(cluster) as client:
            yield client


@contextmanager
def _signals_later() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the block ends: half a cluster cannot be closed. What is started here never sees
    SIGINT.
    """
    resource_tracker.ensure_running()  # started later, it would let the signals through again
    arrived: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, lambda n, _frame: arrived.append(n)) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


def _shares(workers: int) -> Variables:
    """Each worker's share of the memory, and of the cores unless the user has said how many threads there shall be."""
    from dask.system import CPU_COUNT

    variables = {SHARERS: str(workers)}
    if "OMP_NUM_THREADS" not in os.environ:
        variables["OMP_NUM_THREADS"] = str(max(1, CPU_COUNT // workers))
    return variables
