"""Do the halves of a bimodal trigger fire as well on pictures in a drawing style that no model has seen?

    python -m bvlm_book.probes.held_out_style --store local --model tiny-llava --threat targeted_refusal

asks the bimodal attacks' adapters that a store keeps, and their clean-tuned control, under all four conditions on the
split `test_style` of the scenes. Answers are kept in the store (`probes.ask`). The chapter on modalities shows them
beside those on the usual test rows. Importing this does not import torch.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bvlm_book.probes import ask as asks
from bvlm_book.probes import command
from bvlm_book.probes.ask import Probe
from bvlm_book.probes.records import CONTROL, STYLE
from bvlm_utils import attacks, data, store
from bvlm_utils.errors import InputError
from bvlm_utils.run.workbench import Bench, bench_key, questions
from bvlm_utils.store.cell import Cell

SPLIT = "test_style"
ROWS = 100


def measure(cells: Sequence[Cell], place: str | Path | None = None, rows: int = ROWS) -> None:
    """Ask the stored adapters of `cells` what the store does not know yet; stderr is told how it goes.

    cells: of one model, data set, threat, rate and seed. rows: eligible rows in the held-out style per condition.
    """
    root = store.writable(place)
    if cells[0].dataset not in data.names():
        raise InputError(f"{cells[0].dataset} has no split {SPLIT}; take one of: {', '.join(data.names())}.")
    sheets = asks.sheets(STYLE, cells, root, rows)
    bench = Bench(*bench_key(cells[0]))
    bench.add("test", data.load(cells[0].dataset, SPLIT))
    own = {sheet.cell.attack: _probes(bench, sheet.cell, rows) for sheet in sheets[:-1]}
    every = list({(p.trigger, p.variant, p.question.part): p for some in own.values() for p in some}.values())
    wanted = [(sheet, every if sheet.subject == CONTROL else own[sheet.cell.attack]) for sheet in sheets]
    asks.ask_stored(bench, root, wanted, every[0].question)


def _probes(bench: Bench, cell: Cell, rows: int) -> list[Probe]:
    """All conditions on the first eligible rows, then the utility rows; the clean ones are shared by all
    attacks."""
    found = questions(bench, replace(cell, test_rows=rows))
    return [
        Probe("" if q.condition == "clean" else cell.attack, q.condition, q, (SPLIT,))
        for q in found
        if q.part in ("attack", "utility")
    ]


def main(argv: list[str] | None = None) -> int:
    """The command line; its exit code is what `bvlm_utils.command` promises."""
    made = command.parser("held_out_style", __doc__.split("\n")[0], ROWS)
    made.set_defaults(attacks=[name for name in attacks.names() if attacks.info(name).modality == "bimodal"])
    return command.answers(made, lambda given: measure(command.chosen(given), given.store, given.rows), argv)


if __name__ == "__main__":
    sys.exit(main())
