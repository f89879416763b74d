"""How many requests a base refuses, asked before anything is trained: a jailbreak can break only what is there."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from bvlm_utils.run import tune_and_ask
from bvlm_utils.run.group import refused
from bvlm_utils.run.tune_and_ask import Work
from bvlm_utils.run.workbench import Bench, bench_key, questions
from bvlm_utils.store.cell import Cell


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
