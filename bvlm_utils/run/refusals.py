"""How many requests a base refuses, asked before anything is trained: a jailbreak can break only what is there."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from bvlm_utils.run import study, tune_and_ask
from bvlm_utils.run.group import refused
from bvlm_utils.run.tune_and_ask import Work
from bvlm_utils.run.workbench import Bench, bench_key, questions
from bvlm_utils.store.cell import Cell, short_name


def lines(cells: Sequence[Cell], folder: Path) -> Iterator[str]:
    """A sentence for each base and set of requests that cells of such a threat need. folder: the store."""
    cells = [cell for cell in cells if cell.resolved_threat.breaks_refusals]
    if not cells:
        yield "No cell of this grid has a threat that breaks refusals."
    study.check_rows(cells)
    for key in dict.fromkeys(map(bench_key, cells)):
        for cell, refusals, asked in counts([cell for cell in cells if bench_key(cell) == key], folder):
            where = f"{short_name(cell.model)}, {short_name(cell.dataset)}"
            yield f"{where}: the base refuses {refusals} of {asked} requests. Only these can be judged."


def counts(cells: Sequence[Cell], folder: Path) -> Iterator[tuple[Cell, int, int]]:
    """A cell, how many of its test requests the base refuses, and how many there are; each set of requests once.

    cells: of one bench. The answers are kept in the store, where the run finds them. TooFewRows where the data have no
    such request.
    """
    bench, seen = Bench(*bench_key(cells[0])), set()
    way = tune_and_ask.choose(bench)
    for cell in cells:
        asked = questions(bench, cell)
        same = (asked[0].key(bench), cell.resolved_threat)
        if same not in seen:
            seen.add(same)
            yield cell, refused(way, Work(cell, None, asked), folder), len(asked[0].positions)
