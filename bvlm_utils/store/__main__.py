"""The command of the store: pack a folder per cell into a few files, unpack them, check or renew every number.

python -m bvlm_utils.store pack FROM TO [--replace]    add what FROM has to the packed store TO
python -m bvlm_utils.store unpack FROM TO              the other way: a folder per cell
python -m bvlm_utils.store check STORE                 compute every number again from the stored responses
python -m bvlm_utils.store rejudge STORE               the same, and keep today's verdicts and numbers
"""

import argparse
import sys

from bvlm_utils import command
from bvlm_utils.errors import InputError
from bvlm_utils.paths import check_writable
from bvlm_utils.store import packed, records
from bvlm_utils.store.packing import pack, unpack


def _parser() -> command.Parser:
    parser = command.Parser(prog="python -m bvlm_utils.store", description="Pack, unpack or check results.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, source, text in (
        ("pack", "FROM", "add results to a packed store"), ("unpack", "FROM", "a folder per cell again"),
        ("check", "STORE", "compute every number again from the stored responses"),
        ("rejudge", "STORE", "the same, and keep today's verdicts and numbers"),
    ):  # fmt: skip
        subparser = commands.add_parser(name, help=text)
        subparser.add_argument("source", metavar=source, help="a name, or a folder with a slash in it")
        if source == "FROM":
            subparser.add_argument("target", metavar="TO", help="likewise")
        if name == "pack":
            subparser.add_argument("--replace", action="store_true", help="where both have a cell, FROM's stands")
    return parser


def _act(options: argparse.Namespace) -> int:
    source = records.folder(options.source)
    if not source.is_dir():
        raise InputError(f"There is no store {source}; name a folder with results.")
    if options.command in ("check", "rejudge"):
        from bvlm_utils.store import judging

        return (judging.check if options.command == "check" else judging.rejudge)(options.source)
    target = check_writable(records.folder(options.target))
    if options.command == "pack":
        added = pack(options.source, options.target, options.replace)
    else:
        added = unpack(options.source, options.target)
    print(f"{len(added)} cells are new in {target}, which holds {len(packed.run_ids(target))}.")
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command line: 1 also if `check` finds another number; else what `command` promises."""
    return command.run(_parser(), _act, argv)


if __name__ == "__main__":
    sys.exit(main())
