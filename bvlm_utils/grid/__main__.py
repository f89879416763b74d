"""The command that runs a grid: its cells are measured, then papermill executes the notebooks that read them.

    python -m bvlm_utils.grid run data/grids/quick.yml [--workers N] [--dry-run] [--force] [--store STORE]
    python -m bvlm_utils.grid refusals data/grids/paper_jailbreak.yml [--store STORE]
    python -m bvlm_utils.grid status data/grids/quick.yml [--store STORE]
    python -m bvlm_utils.grid table [data/grids/quick.yml] [--store STORE]

A grid file is explained in `grid.file`, measuring in `grid.measure`, `--workers` and `--scheduler` in `grid.dask`.
Exit code 0: every cell has a record; 1: some failed; 2: the grid or an option is wrong, and nothing was run; 130, 143:
stopped by SIGINT, SIGTERM, and the next run goes on from there.
"""

import argparse
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd

from bvlm_utils import command
from bvlm_utils import store as results
from bvlm_utils.defences.measure import check_adapters
from bvlm_utils.errors import InputError
from bvlm_utils.grid import dask as grid_dask
from bvlm_utils.grid import forecast as grid_forecast
from bvlm_utils.grid import job as grid_job
from bvlm_utils.grid import measure as grid_measure
from bvlm_utils.grid.file import Job, load, shown
from bvlm_utils.grid.job import Run
from bvlm_utils.grid.progress import minutes, say, watched
from bvlm_utils.models import names
from bvlm_utils.run import study
from bvlm_utils.store import damage
from bvlm_utils.store.cell import Cell
from bvlm_utils.store.table import headline_metric

MANY = 200  # cells whose checks take so long that somebody wants to know what goes on


class Stopped(KeyboardInterrupt):
    """A signal asked the runner to stop. Of exceptions like this, asyncio lets only a KeyboardInterrupt through."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def plan(
    jobs: Sequence[Job], store: str | None, force: bool = False, plain: bool = False, rescore: bool = False
) -> tuple[Run, list[Cell]]:
    """The run that is asked for, and the cells that it has to measure; InputError if it cannot be carried out."""
    folder = results.folder(store)
    cells = _cells(jobs)
    stamps = {cell.run_id: grid_job.stamp(cell, folder) for cell in cells} if force or rescore else {}
    grid_run = Run(folder, plain, rescore, {name: stamp for name, stamp in stamps.items() if stamp is not None})
    to_measure = [cell for cell in cells if force or rescore or grid_run.lacks(cell)]
    undefended = [defended for job in jobs for defended in grid_run.undefended(job)]
    if to_measure or undefended:
        results.writable(store)
        damage.check_folders(folder)
    check_adapters(undefended, folder, {cell.run_id for cell in to_measure})
    study.check_rows([cell for cell in to_measure if not cell.skip_reason])
    return grid_run, to_measure


def _cells(jobs: Sequence[Job]) -> list[Cell]:
    """The cells of all jobs, each once."""
    return list({cell.run_id: cell for job in jobs for cell in job.cells}.values())


def run(
    jobs: Sequence[Job],
    grid_run: Run,
    to_measure: Sequence[Cell],
    workers: int | None = None,
    scheduler: str | None = None,
) -> int:
    """Measure the cells that lack records, then execute the notebooks that read them; the exit code."""
    folder, cells = grid_run.folder, _cells(jobs)
    say(f"{len(jobs)} notebooks, {len(cells)} cells; {len(to_measure)} to run. Store: {shown(folder)}")
    try:
        _tidy(folder, cells)
    except InputError:  # whoever can only read results needs no notebooks beside them
        to_do = []
    else:
        to_do = [job for job in jobs if not grid_run.done(job)]
    for job in to_do:  # a run that is stopped before the notebooks' turn is seen to be so
        grid_job.output(job, folder).unlink(missing_ok=True)
    workers = min(workers or 1, max(len(to_measure), len(to_do)))
    with watched(cells, grid_run) as look, _pool(grid_run, workers, scheduler if to_do else None) as (for_each, count):
        _measure(to_measure, grid_run, for_each, count, look)
        failed = _execute(jobs, to_do, for_each)
    if failed:
        say(f"{len(failed)} of {len(jobs)} notebooks failed: {', '.join(failed)}.")
        say(f"Finished cells are kept; {_how_to_go_on(grid_run)}.")
        return 1
    say("Every cell has its record.")
    return 0


def _how_to_go_on(grid_run: Run) -> str:
    all_again = "makes all of them again, and without --force or --rescore only those that have no record"
    return f"the same command {all_again}" if grid_run.before else "run the same command again for the others"


def _tidy(folder: Path, cells: Sequence[Cell]) -> None:
    """Remove what earlier runs left half-written, and their failures: what is there later has failed in this run."""
    results.clean(results.make(folder))
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    for cell in cells:  # others' may be at work in this store
        (folder / "failures" / f"{cell.run_id}.json").unlink(missing_ok=True)
        (folder / "notebooks" / f"{grid_measure.LOGS}{cell.run_id}.log").unlink(missing_ok=True)


def _pool(grid_run: Run, workers: int, scheduler: str | None) -> AbstractContextManager[tuple[grid_dask.Each, int]]:
    """How tasks are carried out, and by how many workers; without a second one, one after the other from here."""
    if scheduler or workers > 1:
        return grid_dask.pool(grid_run, workers, scheduler)

    def in_turn(task: grid_dask.Task, items: Sequence[Any]) -> Iterator[grid_dask.Outcome]:
        for item in items:
            started = time.monotonic()
            problem = task(item, grid_run)
            yield item, problem, time.monotonic() - started

    return nullcontext((in_turn, 1))


def _measure(
    to_measure: Sequence[Cell], grid_run: Run, for_each: grid_dask.Each, workers: int, look: Callable[[], None]
) -> None:
    """Measure cells, a part of a bench at a time; those that no process could try to the end have failed."""
    for part, problem, _ in for_each(grid_measure.measure, grid_measure.parts(to_measure, workers)):
        look()
        if problem:
            say(f"  {problem}")
            for cell in grid_run.left(part):
                results.write_failure(cell, grid_run.folder, problem)


def _execute(jobs: Sequence[Job], to_do: Sequence[Job], for_each: grid_dask.Each) -> list[str]:
    """Notebooks that read what was measured; the names of those that failed, or lack a record."""
    numbers = {job.name: number for number, job in enumerate(jobs, 1)}
    failed = []
    for job, problem, seconds in for_each(grid_job.carry_out, to_do):
        word = "FAILED" if problem else "done"
        say(f"[{numbers[job.name]}/{len(jobs)}] {job.name}: {word} in {minutes(seconds)}")
        if problem:
            failed.append(job.name)
            say(problem)
    return failed


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGINT and SIGTERM end what was started at once and raise `Stopped`; the store is made for being killed."""

    def stop(number: int, _frame: Any) -> None:
        grid_job.kill(*grid_job.CHILDREN)  # workers are told to end by those who started them
        raise Stopped(number)

    old_handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        grid_job.kill(*grid_job.CHILDREN, "multiprocessing.spawn")
        for number, handler in old_handlers.items():
            signal.signal(number, handler)


def status(jobs: Sequence[Job], store: str | None, every_cell: bool = False) -> None:
    """Print how far each job is; with every_cell, each cell's state."""
    folder, failures = results.folder(store), results.failures(store)
    for job in jobs:
        states = {cell.run_id: "failed" if cell.run_id in failures else "missing" for cell in job.cells}
        states |= {cell.run_id: record["status"] for cell in job.cells if (record := results.read(cell, folder))}
        counts = Counter(states.values())
        words = ", ".join(f"{counts[word]} {word}" for word in ("done", "skipped", "failed", "missing") if counts[word])
        note = f"; {len(Run(folder).undefended(job))} of {len(job.defended)} defended to do" if job.defended else ""
        say(f"{job.name}: {len(states)} cells: {words}{note}")
        for run_id, word in states.items():
            if every_cell or word == "failed":
                say(f"  {word:8}{run_id}")
                if word == "failed":
                    say(f"          {failures[run_id].strip().splitlines()[-1]}")


def table(jobs: Sequence[Job] | None, store: str | None) -> pd.DataFrame:
    """One line per cell: success rates of the poisoned model by the headline test, its utility and the control's."""
    tidy = results.collect(store)
    if jobs is not None:
        tidy = tidy[tidy["run_id"].isin({cell.run_id for job in jobs for cell in job.cells})]
    lines = []
    for run_id, rows in tidy.groupby("run_id", sort=False):
        line = rows.iloc[0][["model", "dataset", "threat", "attack", "poison_rate", "seed", "status"]].to_dict()
        values, metric = rows.set_index(["subject", "condition", "metric"])["value"], headline_metric(rows).iloc[0]
        for condition in ("clean", "text", "image", "both"):
            line[f"ASR {condition}"] = values.get(("poisoned", condition, metric), float("nan"))
        for subject in ("poisoned", "control"):
            line[f"utility {subject}"] = values.get((subject, "clean", "utility"), float("nan"))
        lines.append(line | {"run_id": run_id})
    return pd.DataFrame(lines)


def _parser() -> command.Parser:
    parser = command.Parser(prog="python -m bvlm_utils.grid", description=command.first_line(__doc__))
    commands = parser.add_subparsers(dest="command", required=True)
    parsers = {
        "run": commands.add_parser("run", help="run the cells that have no record yet"),
        "refusals": commands.add_parser("refusals", help="ask each base how many of a jailbreak's requests it refuses"),
        "status": commands.add_parser("status", help="how many cells are done, failed, missing"),
        "table": commands.add_parser("table", help="what was measured, one line per cell"),
    }
    for name, sub in parsers.items():
        if name == "table":
            sub.add_argument("file", nargs="?", help="grid file; all cells of the store if left out")
        else:
            sub.add_argument("file", help="grid file, such as data/grids/quick.yml")
        sub.add_argument("--store", help="a name, or a folder with a slash in it (default: the grid's, else local)")
    add, gb, number = parsers["run"].add_argument, command.whole(1, 10_000), command.whole(1, 4096)
    add("--dry-run", action="store_true", help="check the grid, list its cells with time, memory and disk; run nothing")
    add("--card", type=gb, default=80, metavar="GB", help="a GPU's memory, for --dry-run (80)")
    add("--force", action="store_true", help="run finished cells again")
    add("--rescore", action="store_true", help="ask and judge finished cells again, with the adapters they left")
    add("--plain", action="store_true", help="train and ask cell by cell instead of in groups (slow)")
    add("--workers", type=number, help="how many processes run at once on this machine (default: 1)")
    add("--scheduler", metavar="ADDRESS", help="a Dask scheduler that has workers, such as tcp://host:8786")
    return parser


def _act(options: argparse.Namespace) -> int | None:
    jobs, grid_store = load(options.file) if options.file else (None, None)
    store = grid_store if options.store is None else options.store
    results.folder(store)
    if options.command == "table":
        cells = table(jobs, store)
        text = cells.to_string(index=False, na_rep="n/a", float_format="{:.3g}".format)
        say("The store holds no cell of this." if cells.empty else text)
    elif options.command == "status":
        status(jobs, store)
    elif options.command == "refusals":
        for line in study.refusals([cell for cell in _cells(jobs) if not cell.skip_reason], results.make(store)):
            say(line)
    else:
        if options.scheduler == "":
            raise InputError("--scheduler is ''; give an address, such as tcp://10.0.0.1:8786, or leave it out.")
        if options.workers and options.scheduler:  # which has its own workers
            raise InputError(f"--workers {options.workers} and --scheduler {options.scheduler} exclude each other.")
        if (count := len(_cells(jobs))) > MANY:
            say(f"{len(jobs)} notebooks, {count} cells. First their data, rows and triggers are checked.")
        grid_run, to_measure = plan(jobs, store, options.force, options.plain, options.rescore)
        if options.scheduler is None and any(cell.four_bit for cell in to_measure):  # else its workers know
            names.check_four_bit()
        if options.dry_run:
            status(jobs, store, every_cell=True)
            for line in grid_forecast.lines(to_measure, grid_run.folder, options.card * 1e9):
                say(line)
            return 0
        try:
            with _stoppable():
                return run(jobs, grid_run, to_measure, options.workers, options.scheduler)
        except Stopped as stopped:
            command.complain(f"Stopped by {stopped}; finished cells are kept, {_how_to_go_on(grid_run)}.")
            return 128 + stopped.number
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command line; its exit code is explained at the top of the module."""
    return command.run(_parser(), _act, argv)


if __name__ == "__main__":
    sys.exit(main())
