"""What did the study measure, and what is still to be run? The one way from a list of cells to a table.

    cells = study.cells(threat="targeted_refusal", attacks=["BadNets-T"], poison_rates=[0.01, 0.1])
    table = study.run_cells(cells)

Called by the notebooks, which the book and readers run, and by `grid.measure`. What the store has is read;
the rest is carried out by `run.group`. torch is imported only when something has to be trained.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from bvlm_utils import attacks as attackss
from bvlm_utils import data, threats
from bvlm_utils import store as results
from bvlm_utils.checks import known
from bvlm_utils.errors import InputError, StudyError
from bvlm_utils.run import group as group_run
from bvlm_utils.run.progress import progress_bar
from bvlm_utils.run.workbench import bench_key
from bvlm_utils.store import table
from bvlm_utils.store.cell import Cell
from bvlm_utils.train.settings import TrainSettings

MEASURED = "BVLM_MEASURED"  # set for the kernels of `grid run`: what the store lacks has been tried already
TRAIN = [field.name for field in fields(TrainSettings)]
# What `cells` makes by crossing lists, so no setting of a single cell.
CROSSED = ("model", "dataset", "threat", "attack", "poison_rate", "seed", "train")
CELL = [field.name for field in fields(Cell) if field.name not in CROSSED]


def cells(
    threat: str,
    model: str | Sequence[str] = "tiny-llava",
    dataset: str | Sequence[str] | None = None,
    attacks: Sequence[str] | None = None,
    poison_rates: Sequence[float] = (0.1,),
    seeds: Sequence[int] = (0,),
    **settings: Any,
) -> list[Cell]:
    """All cells of the given models, datasets, attacks, rates and seeds (varying slowest to fastest in that
    order).

    attacks: all of them if not given. dataset: the threat's own if not given. settings: other fields of `Cell` and
    `TrainSettings`, such as
    train_rows, test_rows, negatives, attack_params, epochs, learning_rate, lora_rank. `negatives` goes to
    bimodal attacks only, as no other attack has half a trigger. InputError names the first value that is
    wrong.
    """
    known(settings, [*CELL, *TRAIN], "setting")
    attacks = _every_attack() if attacks is None else attacks
    lists = {
        "models": [model] if isinstance(model, str) else model,
        "attacks": attacks, "poison_rates": poison_rates, "seeds": seeds,
    }  # fmt: skip
    if dataset is None:
        dataset = _default_dataset(threat)
    lists["datasets"] = [dataset] if isinstance(dataset, str) else dataset
    for name, values in lists.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise InputError(f"{name} is {values!r}; it must be a list with one value or more.")
        if len(set(map(str, values))) < len(values):
            raise InputError(f"{name} is {list(values)!r}; name each value once.")
    train = TrainSettings(**{name: value for name, value in settings.items() if name in TRAIN})
    others = {name: value for name, value in settings.items() if name in CELL}
    made = []
    for one_model, one_dataset, attack, rate, seed in product(
        lists["models"], lists["datasets"], attacks, poison_rates, seeds
    ):
        own = dict(others)
        if _is_number_above_0(own.get("negatives")) and _modality(attack) not in (None, "bimodal"):
            own["negatives"] = 0.0
        made.append(Cell(one_model, one_dataset, threat, attack, rate, seed=seed, train=train, **own))
    return made


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
    place = results.folder(store)
    once = list({cell.run_id: cell for cell in cells}.values())
    missing = [cell for cell in once if force or rescore or not results.has(cell, place)]
    if os.environ.get(MEASURED):
        texts = results.failures(place)
        failed = [cell for cell in once if cell in missing or cell.run_id in texts]
        if failed:
            raise StudyError(_failures(failed, len(once), place))
    elif missing and results.read_only(place):
        raise InputError(_how_to_make(missing))
    elif missing:
        results.writable(place)
        results.clean(place)
        failed = measure(missing, place, plain, rescore)
        if failed:
            raise StudyError(_failures(failed, len(missing), place))
    return table.table(results.read(cell, place) for cell in cells)


def measure(cells: Sequence[Cell], place: Path, plain: bool = False, rescore: bool = False) -> list[Cell]:
    """Run cells, those that share model, data and training rows together; the failed ones are returned."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(bench_key(cell), []).append(cell)
    failed: list[Cell] = []
    with progress_bar(len(cells)) as told:
        for group in groups.values():
            failed += group_run.execute(group, place, told, plain, rescore)
    return failed


def check_rows(cells: Sequence[Cell]) -> None:
    """InputError if a dataset of these cells has fewer training rows than they ask for, or cannot be read."""
    from bvlm_utils.data.samples import MOST_ROWS

    for dataset, rows in dict.fromkeys((cell.dataset, cell.train_rows) for cell in cells):
        if ":" in dataset:
            data.load(dataset, "train", rows)
            data.load(dataset, "test")
        elif rows > MOST_ROWS:
            raise InputError(f"train_rows is {rows}; {dataset} has at most {MOST_ROWS} training rows.")


def _how_to_make(missing: Sequence[Cell]) -> str:
    names = ", ".join(cell.run_id for cell in missing[:8])
    more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    command = "; ".join(
        f"papermill notebooks/{threat}.ipynb out.ipynb -p store local"
        for threat in dict.fromkeys(cell.threat for cell in missing)
    )
    return (
        f"The reference store has no record of {names}{more}, and the book does not train. "
        f"Make them with your settings, for example `{command}`, and read the table from that store."
    )


def _failures(failed: Sequence[Cell], tried: int, place: Path) -> str:
    texts = results.failures(place)
    lines = [f"{len(failed)} of {tried} cells failed; what they left is in {place / 'failures'}:"]
    for cell in failed:
        last = texts.get(cell.run_id, "").strip().splitlines()
        lines.append(f"  {cell.run_id}: {last[-1] if last else 'unknown'}")
    return "\n".join(lines)


def _default_dataset(threat: str) -> str:
    try:
        return threats.THREATS.get(threat).default_dataset
    except KeyError as error:
        raise InputError(error.args[0]) from None


def _every_attack() -> list[str]:
    return attackss.names()


def _is_number_above_0(value: Any) -> bool:
    """A wrong value is left for `Cell` to refuse, whatever the attack."""
    return isinstance(value, int | float) and 0 < value < math.inf


def _modality(attack: Any) -> str | None:
    return attackss.info(attack).modality if isinstance(attack, str) and attack in attackss.names() else None
