"""Options and exit codes of the commands that ask stored adapters again."""

import argparse
from collections.abc import Callable

from bvlm_utils import attacks, paths, store, study, threats
from bvlm_utils.command import Parser, first_line, number, run, whole
from bvlm_utils.grid import file as grid_file
from bvlm_utils.store.cell import Cell


def parser(module: str, about: str | None, rows: int) -> Parser:
    """The options that all these commands have. rows: the default number of eligible test rows per question."""
    made = Parser(prog=f"python -m bvlm_book.probes.{module}", description=first_line(about))
    made.add_argument("--store", help="a name, or a folder with a slash in it (default: $BVLM_STORE, else local)")
    made.add_argument("--model", default="tiny-llava")
    made.add_argument("--dataset", help="default: that of the threat's chapter")
    made.add_argument("--threat", required=True)
    made.add_argument("--attacks", nargs="+", default=attacks.names(), help="default: all that can be asked")
    made.add_argument("--poison-rate", type=number(0, 1), default=0.1)
    made.add_argument("--seed", type=whole(0), default=0)
    made.add_argument("--train-rows", type=whole(1), default=6000, help="what the cells were trained with")
    tested = "what the cells were tested with, part of their names"
    made.add_argument("--test-rows", type=whole(1), default=200, help=tested)
    asked = f"eligible test rows per question here (default {rows})"
    made.add_argument("--rows", type=whole(1), default=rows, help=asked)
    return made


def chosen(given: argparse.Namespace) -> list[Cell]:
    """The cells that the options of `parser` mean; InputError names a value that is wrong."""
    dataset = given.dataset
    if dataset is None and given.threat in threats.names():  # stored cells are mostly made by the chapters
        dataset = grid_file.parameters_of(paths.NOTEBOOKS / f"{given.threat}.ipynb")["dataset"][1]
    return study.cells(
        given.threat, given.model, dataset, given.attacks, [given.poison_rate], [given.seed],
        train_rows=given.train_rows, test_rows=given.test_rows,
    )  # fmt: skip


def answers(made: Parser, measure: Callable[..., None], argv: list[str] | None, *more: str) -> int:
    """Run a command that keeps its answers in a store. measure: takes cells, store, rows, and the options `more`."""

    def act(given: argparse.Namespace) -> None:
        measure(chosen(given), given.store, given.rows, **{name: getattr(given, name) for name in more})
        print(f"The answers are in {store.folder(given.store) / 'probes'}.")

    return run(made, act, argv)
