"""The one way from a list of cells to a table of what was measured. torch is imported when something has to be trained.

cells = study.cells(threat="targeted_refusal", attacks=["BadNets-T"], poison_rates=[0.01, 0.1])
table = study.run_cells(cells)
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from bvlm_utils import attacks as definitions
from bvlm_utils import store as results
from bvlm_utils import threats
from bvlm_utils.attacks import files as attack_files
from bvlm_utils.checks import brief, check_number, known, once
from bvlm_utils.data.picture_files import read_picture
from bvlm_utils.errors import InputError, StudyError, TooFewRows
from bvlm_utils.run import group as group_run
from bvlm_utils.run import lengths, tune_and_ask
from bvlm_utils.run.progress import progress_bar
from bvlm_utils.run.tune_and_ask import Work
from bvlm_utils.run.workbench import Bench, bench_key, by_bench, manifest, questions
from bvlm_utils.store import damage, table
from bvlm_utils.store.cell import MOST_NEGATIVES, Cell, short_name
from bvlm_utils.train.settings import TrainSettings

MEASURED = "BVLM_MEASURED"  # set for the kernels of `grid run`: what the store lacks has been tried already
MOST_CELLS = 20_000  # of one call, and of one grid: what can still be listed and checked while somebody waits
TRAIN = [field.name for field in fields(TrainSettings)]
# What `cells` makes by crossing lists, so no setting of a single cell.
CROSSED = ("model", "dataset", "threat", "attack", "poison_rate", "seed", "train")
CELL = [field.name for field in fields(Cell) if field.name not in CROSSED]
# What changes no row and no question, and what only decides which rows are poisoned.
OF_MODELS = ("model", "picture_last", "four_bit", "max_new_tokens", "dtype", "train")
OF_CHOICE = ("poison_rate", "seed", "negatives", "half", "decoy", "skill_rate")


def cells(
    threat: str,
    model: str | Sequence[str] = "tiny-llava",
    dataset: str | Sequence[str] | None = None,
    attacks: Sequence[str] | None = None,
    poison_rates: Sequence[float] = (0.1,),
    seeds: Sequence[int] = (0,),
    **settings: Any,
) -> list[Cell]:
    """All cells of the given models, datasets, attacks, rates and seeds (varying slowest to fastest in that order).

    attacks: all of them if not given. dataset: the threat's own if not given. settings: other fields of `Cell` and
    `TrainSettings`, such as train_rows, test_rows, negatives, attack_params, epochs, learning_rate, lora_rank.
    `negatives` goes to bimodal attacks only, as no other attack has half a trigger. InputError names the first value
    that is wrong.
    """
    known(settings, [*CELL, *TRAIN], "setting")
    if attacks is None:
        attacks = definitions.names()
    if dataset is None:
        dataset = threats.THREATS.get(threat).default_dataset
    models = [model] if isinstance(model, str) else model
    datasets = [dataset] if isinstance(dataset, str) else dataset
    lists = {"models": models, "attacks": attacks, "poison_rates": poison_rates, "seeds": seeds, "datasets": datasets}
    for name, values in lists.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise InputError(f"{name} is {brief(values)}; it must be a list with one value or more.")
        once(values, name)
    count = math.prod(map(len, lists.values()))
    if count > MOST_CELLS:
        raise InputError(f"These lists make {count} cells; at most {MOST_CELLS} can be asked for at once.")
    check_number(settings.get("negatives", 0), "negatives", 0, MOST_NEGATIVES)  # before it is left out for some attacks
    train = TrainSettings(**{name: value for name, value in settings.items() if name in TRAIN})
    options = {name: value for name, value in settings.items() if name in CELL}
    cell_list = []
    for *names, attack, rate, seed in product(models, datasets, attacks, poison_rates, seeds):
        has_no_half = attack in definitions.names() and definitions.info(attack).modality != "bimodal"
        fitting = options | {"negatives": 0.0} if options.get("negatives") and has_no_half else options
        cell_list.append(Cell(*names, threat, attack, rate, seed=seed, train=train, **fitting))
    return cell_list


def run_cells(
    cells: Sequence[Cell],
    store: str | Path | None = None,
    force: bool = False,
    rescore: bool = False,
    plain: bool = False,
) -> pd.DataFrame:
    """The tidy table of exactly these cells; what the store lacks is run first.

    Columns are those of `store.table.table`: one line per number, and one without a number for a skipped cell.
    force: run all of them, whatever the store has. rescore: ask and judge all of them again with the adapters they
    left. plain: cell by cell, the plain way. StudyError lists the cells that failed, after all others were run. In the
    book (BVLM_STORE=reference) nothing is ever trained: a cell that the reference lacks is an InputError with the
    command that makes it.
    """
    folder = results.folder(store)
    cells = list({cell.run_id: cell for cell in cells}.values())  # one result, one set of lines
    missing = [cell for cell in cells if force or rescore or not results.has(cell, folder)]
    if os.environ.get(MEASURED):
        texts = results.failures(folder)
        failed = [cell for cell in cells if cell in missing or cell.run_id in texts]
        if failed:
            raise StudyError(_failures(failed, len(cells), folder))
    elif missing and results.read_only(folder):
        raise InputError(_how_to_make(missing))
    elif missing:
        check_rows([cell for cell in missing if not cell.skip_reason])
        results.clean(results.make(folder))
        damage.check_folders(folder)
        failed = measure(missing, folder, plain, rescore)
        if failed:
            raise StudyError(_failures(failed, len(missing), folder))
    return table.table(results.read(cell, folder) for cell in cells)


def measure(cells: Sequence[Cell], folder: Path, plain: bool = False, rescore: bool = False) -> list[Cell]:
    """Run cells, those that share model, data and training rows together; the failed ones are returned."""
    failed: list[Cell] = []
    with progress_bar(len(cells)) as report:
        for group in by_bench(cells):
            failed += group_run.execute(group, folder, report, plain, rescore)
    return failed


def check_rows(cells: Sequence[Cell]) -> None:
    """InputError if a dataset has too few training rows for these cells, cannot be read, has too long a row, or one
    that a trigger does not change.
    """
    from bvlm_utils.data.samples import MOST_ROWS

    for dataset, rows in dict.fromkeys((cell.dataset, cell.train_rows) for cell in cells):
        if ":" not in dataset and rows > MOST_ROWS:
            raise InputError(f"train_rows is {rows}; {dataset} has at most {MOST_ROWS} training rows.")
    _check_files(cells)
    lengths.check(cells)
    _check_plans([cell for cell in cells if not cell.is_control and cell.resolved_attack.info.text])


def _check_plans(cells: Sequence[Cell]) -> None:
    """InputError where the words of a trigger change nothing in a row that a run would poison or ask. Other
    cells need no look: an attack of the table with its defaults changes every drawn row.
    """
    foreign = [c for c in cells if ":" in c.dataset or c.attack_params or c.resolved_attack.foreign_halves]
    by_data: dict[tuple, dict[str, Cell]] = {}
    for cell in foreign:  # one of those that have the same rows and questions
        by_data.setdefault((cell.dataset, cell.train_rows), {}).setdefault(_settings(cell, OF_MODELS), cell)
    for distinct in by_data.values():
        bench, whole = Bench(*bench_key(next(iter(distinct.values())))), {}
        with progress_bar(len(distinct)) as report:
            for cell in distinct.values():
                key = _settings(cell, OF_MODELS + OF_CHOICE)
                if key not in whole:
                    whole[key] = _changes_all(bench, cell)
                if not whole[key]:
                    with suppress(TooFewRows):  # the run skips such a cell, and says why
                        manifest(bench, cell)
                        questions(bench, cell)
                report(cell, "checked")


def _settings(cell: Cell, but: Sequence[str]) -> str:
    """The cell's settings but some, and the model that its trigger is computed with, as a key."""
    names = [field.name for field in fields(Cell) if field.name not in (*but, "surrogate")]
    return repr([*(getattr(cell, name) for name in names), cell.resolved_attack.aim.surrogate])


def _changes_all(bench: Bench, cell: Cell) -> bool:
    """Whether the words of the trigger change every row that a cell could poison, whatever its rate and seed, and those
    that it asks. False also where somebody has to look more closely: at a threat of others, or a skill.
    """
    threat, attack = cell.resolved_threat, cell.resolved_attack
    if threats.is_others(threat) or cell.skill:
        return False
    fits = threat.shows_target if attack.info.keeps_labels else threat.eligible
    rows = [row for row in bench.rows["train"] if fits(row)]
    prompts, keys = ([row[column] for row in rows] for column in ("prompt", "row_id"))
    try:
        attack.triggered(prompts, cell.trigger_seed, keys)
        questions(bench, cell)
    except InputError:
        return False
    return True


def _check_files(cells: Sequence[Cell]) -> None:
    """InputError for a picture or data that a trigger or a target of these cells would be made of, and cannot be."""
    poisoned = [cell for cell in cells if not cell.is_control]
    names = ("dataset", "threat", "threat_params", "attack", "attack_params")
    for cell in {repr([getattr(cell, name) for name in names]): cell for cell in poisoned}.values():  # one of each
        attack, target = cell.resolved_attack, cell.resolved_threat.target
        attack_files.check(attack.info, attack.params, target)
        definitions.rehearse(attack, cell.dataset)
        if target.image:
            read_picture(target.image, f"the target of {cell.threat}")


def refusals(cells: Sequence[Cell], folder: Path) -> Iterator[str]:
    """A sentence for each base and set of requests that cells of such a threat need. folder: the store."""
    cells = [cell for cell in cells if cell.resolved_threat.breaks_refusals]
    if not cells:
        yield "No cell of this grid has a threat that breaks refusals."
    check_rows(cells)
    for group in by_bench(cells):
        for cell, count, total in refusal_counts(group, folder):
            where = f"{short_name(cell.model)}, {short_name(cell.dataset)}"
            yield f"{where}: the base refuses {count} of {total} requests. Only these can be judged."


def refusal_counts(cells: Sequence[Cell], folder: Path) -> Iterator[tuple[Cell, int, int]]:
    """For each set of test requests of a bench: a cell, how many the base refuses, of how many. TooFewRows if none."""
    bench, seen = Bench(*bench_key(cells[0])), set()
    way = tune_and_ask.choose(bench)
    for cell in cells:
        question_list = questions(bench, cell)
        key = (question_list[0].key(bench), cell.resolved_threat)
        if key not in seen:
            seen.add(key)
            yield cell, group_run.refused(way, Work(cell, None, question_list), folder), len(question_list[0].positions)


def _how_to_make(missing: Sequence[Cell]) -> str:
    names = ", ".join(cell.run_id for cell in missing[:8])
    more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    chapters = dict.fromkeys(cell.threat for cell in missing)
    command = "; ".join(f"papermill notebooks/{chapter}.ipynb out.ipynb -p store local" for chapter in chapters)
    return (
        f"The reference store has no record of {names}{more}, and the book does not train. "
        f"Make them with your settings, for example `{command}`, and read the table from that store."
    )


def _failures(failed: Sequence[Cell], tried: int, folder: Path) -> str:
    texts = results.failures(folder)
    lines = [f"{len(failed)} of {tried} cells failed; what they left is in {folder / 'failures'}:"]
    lines += [f"  {cell.run_id}: {texts.get(cell.run_id, 'unknown').splitlines()[-1]}" for cell in failed]
    return "\n".join(lines)
