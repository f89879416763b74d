"""Does one trigger fire another's backdoor, and does something near a trigger fire its own?

    python -m bvlm_book.probes.crossfire --store local --model tiny-llava --threat targeted_refusal

asks every stored adapter and their clean-tuned control about the same test rows, with no trigger, with that of every
attack, and with near misses of its own (`probes.near_misses`). Nothing is asked twice. Free of torch until it asks.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bvlm_book.probes import ask as asks
from bvlm_book.probes import command, near_misses
from bvlm_book.probes.ask import Probe
from bvlm_book.probes.records import CONTROL, CROSSFIRE
from bvlm_utils import attacks, store
from bvlm_utils.run.workbench import Bench, Question, bench_key, questions
from bvlm_utils.store.cell import Cell

ROWS = 100  # eligible test rows per entry: a 12 x 12 matrix is read for patterns, and 100 tell 0.1 from 0.3


def measure(cells: Sequence[Cell], place: str | Path | None = None, rows: int = ROWS, near: bool = True) -> None:
    """Ask the adapters of `cells` (one model, data, threat, rate, seed) what the store lacks; near: near misses too."""
    root = store.writable(place)
    sheets = asks.sheets(CROSSFIRE, cells, root, rows)
    first = cells[0]
    bench = Bench(*bench_key(first))
    crossed = [cell for name in attacks.names() if (cell := _of(first, name, rows)).skip_reason is None]
    pairs = {cell.attack: _clean_and_whole(bench, cell) for cell in crossed}
    clean = next(iter(pairs.values()))[0]
    common = [Probe("", "", clean), *(Probe(name, "", whole) for name, (_, whole) in pairs.items())]
    misses = {sheet.cell.attack: _near(bench, replace(sheet.cell, test_rows=rows)) for sheet in sheets[:-1] if near}
    all_misses = list({(miss.trigger, miss.variant): miss for probes in misses.values() for miss in probes}.values())
    extra = [all_misses if sheet.subject == CONTROL else misses.get(sheet.cell.attack, []) for sheet in sheets]
    plan = [(sheet, [*common, *probes]) for sheet, probes in zip(sheets, extra, strict=True)]
    asks.ask_stored(bench, root, plan, clean)


def _of(cell: Cell, attack: str, rows: int) -> Cell:
    """The attack as it is defined, under the threat of `cell`, for its trigger."""
    return replace(cell, attack=attack, attack_params={}, negatives=0.0, half="", test_rows=rows)


def _clean_and_whole(bench: Bench, cell: Cell) -> tuple[Question, Question]:
    """The eligible rows without a trigger and with the whole one (Shadowcast: the triggered picture, which is ours)."""
    attacked = [question for question in questions(bench, cell) if question.part == "attack"]
    return attacked[0], attacked[-1]


def _near(bench: Bench, cell: Cell) -> list[Probe]:
    clean, whole = _clean_and_whole(bench, cell)
    keys = [bench.rows["test"][position]["row_id"] for position in clean.positions]
    return [
        Probe("" if miss.alone else cell.attack, miss.name, near_misses.question(miss, cell, clean, whole, keys))
        for miss in near_misses.of(cell.attack)
    ]


def main(argv: list[str] | None = None) -> int:
    parser = command.parser(CROSSFIRE, __doc__, ROWS)
    parser.add_argument("--no-near-misses", dest="near", action="store_false", help="the matrix alone")
    return command.answers(parser, measure, argv, "near")


if __name__ == "__main__":
    sys.exit(main())
