"""The grid file: which notebooks it asks for, with which parameters, and which cells they make.

A grid is a YAML file:

    store: local                    # optional, as --store
    defaults: {train_rows: 3000}    # parameters of all jobs
    each: {model: [tiny-llava]}     # optional, as a job's each, for all jobs
    jobs:
      - notebook: targeted_refusal  # the threat's chapter, or defences, which has the threat among its parameters
        parameters: {attacks: [BadNets-T, BadNets-I], poison_rates: [0.1, 0.01]}
        each: {seeds: [[0], [1]]}   # optional: one execution per combination of these values
        attacks_per_job: 1          # optional: cut the list of attacks into shards

Parameters are those of the notebook's `parameters` cell; what a job says goes before what the grid says. Everything is
checked before a job is returned.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from bvlm_utils import attacks, defences, parameters, paths, threats
from bvlm_utils.checks import brief, check_number, check_text, known, once
from bvlm_utils.defences.cell import Defended
from bvlm_utils.documents import parse_yaml, read_json, read_text
from bvlm_utils.errors import InputError
from bvlm_utils.run import study
from bvlm_utils.store.cell import Cell

GRID_KEYS = ["store", "defaults", "each", "jobs", "attacks_per_job", "description"]
DEFENCES = "defences"  # the notebook that is no threat's
JOB_KEYS = ["notebook", "parameters", "each", "attacks_per_job"]


@dataclass(frozen=True)
class Job:
    """One execution of a notebook, and the cells (and defended cells) whose records it has to leave."""

    name: str
    notebook: Path
    parameters: Mapping[str, Any]
    cells: tuple[Cell, ...]
    defended: tuple[Defended, ...] = ()
    grid: str = ""  # the name of its file, as a folder can have it


def load(file: Path | str) -> tuple[list[Job], str | None]:
    """The jobs of a grid file, all of them checked, and the store that it names. InputError says what is wrong."""
    file = Path(file)
    if not os.path.isfile(file):
        raise InputError(f"There is no grid file {brief(str(file))}; grids are in {shown(paths.GRIDS)}.")
    grid = parse_yaml(read_text(file), shown(file))
    try:
        return [replace(job, grid=re.sub(r"[^\w-]+", "-", file.stem)) for job in _jobs(grid)], grid.get("store")
    except InputError as error:
        raise InputError(f"{shown(file)}: {error}") from None


def _jobs(grid: Any) -> list[Job]:
    if not isinstance(grid, Mapping):
        raise InputError(f"the file is {brief(grid)}; a grid is a table with a list of jobs.")
    for name in ("defaults", "each"):
        _table(grid.get(name), name)
    known(grid, GRID_KEYS, "grid key")
    if not isinstance(grid.get("store"), str | None) or grid.get("store") == "":
        raise InputError(f"store is {grid['store']!r}; it must be a name such as local, or a folder such as ./mine.")
    if grid.get("description") is not None:
        check_text(grid["description"], "description")
    entries = grid.get("jobs")
    if not isinstance(entries, list) or not entries:
        raise InputError("jobs is missing; give a list with one job or more.")
    jobs: list[Job] = []
    for number, entry in enumerate(entries, 1):
        try:
            jobs += _expand(entry, grid, jobs)
        except InputError as error:
            raise InputError(f"job {number}: {error}") from None
    return jobs


def _expand(entry: Any, grid: Mapping[str, Any], earlier_jobs: list[Job]) -> list[Job]:
    """The executions that one entry stands for."""
    known(entry, JOB_KEYS, "job key")
    for name in ("parameters", "each"):
        _table(entry.get(name), name)
    chapter, chapters = entry.get("notebook"), [*threats.names(), DEFENCES]
    if chapter not in chapters:
        raise InputError(f"notebook is {brief(chapter)}; it must be one of: {', '.join(chapters)}.")
    notebook = paths.NOTEBOOKS / f"{chapter}.ipynb"
    declared = parameters_of(notebook)
    allowed = [name for name in declared if name not in parameters.NOT_OF_CELLS]
    each = _each(entry, grid)
    fixed = {**(grid.get("defaults") or {}), **(entry.get("parameters") or {})}
    for settings in (fixed, each):
        if "store" in settings:
            raise InputError("store is a parameter of the job; it belongs at the top of the grid, or after --store.")
        known(settings, allowed, f"parameter of notebooks/{notebook.name},")
    _check_kinds(entry, grid, declared)
    size = entry.get("attacks_per_job", grid.get("attacks_per_job"))
    jobs: list[Job] = []
    count = sum(len(job.cells) for job in earlier_jobs)
    for values in product(*each.values()):
        settings = fixed | dict(zip(each, values, strict=True))
        merged = {name: default for name, (_, default) in declared.items()} | settings
        names = attacks.names() if merged["attacks"] is None else merged["attacks"]
        undivided = not size or not isinstance(names, list) or not names
        if not undivided:
            once(names, "attacks")  # two shards with one attack would both be right
        for shard in [names] if undivided else [names[at : at + size] for at in range(0, len(names), size)]:
            cells = study.cells(**{"threat": chapter} | parameters.of_cells(merged) | {"attacks": shard})
            name = f"{len(earlier_jobs) + len(jobs) + 1:02d}-{chapter}"
            options = [merged[name] for name in parameters.OF_DEFENCES] if chapter == DEFENCES else []
            defended = tuple(defences.defended(cells, *options)) if options else ()
            count += len(cells) + len(defended)
            if count > study.MOST_CELLS:
                raise InputError(f"the grid has more than {study.MOST_CELLS} cells by here; make several grids of it.")
            jobs.append(Job(name, notebook, settings | {"attacks": shard}, tuple(cells), defended))
    return jobs


def _each(entry: Mapping[str, Any], grid: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The values that an entry's executions are made of: its own, and those of the grid that it does not set itself."""
    fixed, own, shared = entry.get("parameters") or {}, entry.get("each") or {}, grid.get("each") or {}
    if repeated := [name for name in fixed if name in own]:
        raise InputError(f"{repeated[0]} is in parameters and in each of the job; say it in one of the two.")
    each = {name: values for name, values in shared.items() if name not in fixed} | own
    for name, values in [*shared.items(), *own.items()]:
        if not isinstance(values, list) or not values:
            raise InputError(f"each.{name} is {brief(values)}; it must be a list of values.")
        once(values, f"each.{name}")
    if math.prod(map(len, each.values())) > study.MOST_CELLS:
        raise InputError(f"each makes more than {study.MOST_CELLS} jobs; ask for fewer, or use several grids.")
    return each


def _check_kinds(entry: Mapping[str, Any], grid: Mapping[str, Any], declared: Mapping[str, tuple[str, Any]]) -> None:
    """InputError for a value of the wrong kind, also for one that another overrides, as nothing else checks it."""
    for table in (grid, entry):
        if table.get("attacks_per_job") is not None:
            check_number(table["attacks_per_job"], "attacks_per_job", 1, 1000, whole=True)
        singles = [*(table.get("defaults") or {}).items(), *(table.get("parameters") or {}).items()]
        several = [(name, value) for name, values in (table.get("each") or {}).items() for value in values]
        for name, value in singles + several:
            parameters.check_kind(name, value, *declared[name])


def _table(value: Any, name: str) -> None:
    if value is not None and not isinstance(value, Mapping):
        raise InputError(f"{name} is {brief(value)}; it must be a table of names and values.")


def parameters_of(notebook: Path) -> dict[str, tuple[str, Any]]:
    """name -> (annotation, default) of the cell tagged `parameters`."""
    for cell in read_json(notebook)["cells"]:
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            return parameters.declared("".join(cell["source"]))
    raise InputError(f"{shown(notebook)} has no cell tagged parameters.")


def shown(path: Path) -> str:
    """A path as seen from the project, where it is inside it."""
    path = Path(path).resolve()
    return str(path.relative_to(paths.ROOT)) if path.is_relative_to(paths.ROOT) else str(path)
