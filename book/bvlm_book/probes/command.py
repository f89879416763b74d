"""Options and exit codes of the commands that ask stored adapters again."""

import argparse
from collections.abc import Callable

from bvlm_utils import attacks, paths, store, study, threats
from bvlm_utils.command import Parser, first_line, number, run, whole
from bvlm_utils.grid import file as grid_file
from bvlm_utils.store.cell import Cell


def parser(module: str, description: str | None, rows: int) -> Parser:
    """The options that all these commands have. rows: the default number of eligible test rows per question."""
    parser = Parser(prog=f"python -m bvlm_book.probes.{module}", description=first_line(description))
    parser.add_argument("--store", help="a name, or a folder with a slash in it (default: $BVLM_STORE, else local)")
    parser.add_argument("--model", default="tiny-llava")
    parser.add_argument("--dataset", help="default: that of the threat's chapter")
    parser.add_argument("--threat", required=True)
    parser.add_argument("--attacks", nargs="+", default=attacks.names(), help="default: all that can be asked")
    parser.add_argument("--poison-rate", type=number(0, 1), default=0.1)
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--train-rows", type=whole(1), default=6000, help="what the cells were trained with")
    test_rows_help = "what the cells were tested with, part of their names"
    parser.add_argument("--test-rows", type=whole(1), default=200, help=test_rows_help)
    rows_help = f"eligible test rows per question here (default {rows})"
    parser.add_argument("--rows", type=whole(1), default=rows, help=rows_help)
    return parser


def chosen(options: argparse.Namespace) -> list[Cell]:
    """The cells that the options of `parser` mean; InputError names a value that is wrong."""
    dataset = options.dataset
    if dataset is None and options.threat in threats.names():  # stored cells are mostly made by the chapters
        dataset = grid_file.parameters_of(paths.NOTEBOOKS / f"{options.threat}.ipynb")["dataset"][1]
    return study.cells(
        options.threat, options.model, dataset, options.attacks, [options.poison_rate], [options.seed],
        train_rows=options.train_rows, test_rows=options.test_rows,
    )  # fmt: skip


def answers(parser: Parser, measure: Callable[..., None], argv: list[str] | None, *more: str) -> int:
    """Run a command that keeps its answers in a store. measure: takes cells, store, rows, and the options `more`."""

    def act(options: argparse.Namespace) -> None:
        measure(chosen(options), options.store, options.rows, **{name: getattr(options, name) for name in more})
        print(f"The answers are in {store.folder(options.store) / 'probes'}.")

    return run(parser, act, argv)
