"""The commands of the defences, for somebody who has an adapter.

python -m bvlm_utils.defences list [--moment M]                      the defences, and what each needs
python -m bvlm_utils.defences repair ADAPTER --method M --out FOLDER   a repaired adapter, measured before and after
python -m bvlm_utils.defences find-rows DATA.json --model MODEL        the suspicious rows of a training file
python -m bvlm_utils.defences zoo STORE --out FOLDER                   adapters whose truth is known, packed
python -m bvlm_utils.defences population STORE --out FILE.csv          the spectra of adapters whose truth is known
python -m bvlm_utils.defences probes STORE --out FILE.csv              how probes do on attacks they have not seen
python -m bvlm_utils.defences challenge SCORES.csv                     how well scores tell them apart
"""

import argparse
import sys

from bvlm_utils import command
from bvlm_utils.command import whole
from bvlm_utils.defences import challenge, defence, find_rows, population, probe_transfer, zoo
from bvlm_utils.defences.declare import MOMENTS
from bvlm_utils.run import tried

OTHERS = {  # commands of modules of their own
    "find-rows": (find_rows, "the suspicious rows of a training file"),
    "zoo": (zoo, "adapters whose truth is known, packed from stores"),
    "population": (population, "the spectra of adapters whose truth is known, as a table"),
    "probes": (probe_transfer, "how probes of states do on attacks and threats that they have not seen"),
    "challenge": (challenge, "how well scores tell the zoo's adapters apart"),
}


def _parser() -> command.Parser:
    parser = command.Parser(prog="python -m bvlm_utils.defences", description=command.first_line(__doc__))
    commands = parser.add_subparsers(dest="command", required=True)
    list_parser = commands.add_parser("list", help="the defences, and what each needs")
    list_parser.add_argument("--moment", choices=list(MOMENTS), help="only those that act then")
    _repair_options(commands.add_parser("repair", help="a repaired adapter, with a card of what was measured"))
    for name, (module, summary) in OTHERS.items():
        module.add_arguments(commands.add_parser(name, help=summary))
    return parser


def _act(options: argparse.Namespace) -> int:
    if options.command in OTHERS:
        return OTHERS[options.command][0].run(options) or 0
    if options.command == "list":
        print(table(options.moment))
        return 0
    from bvlm_utils.defences import repair_command

    return repair_command.repair(options)


def main(argv: list[str] | None = None) -> int:
    """The command line, which does what `command` promises."""
    return command.run(_parser, _act, argv)


def table(moment: str | None = None) -> str:
    """The defences of a moment, or all, to be read."""
    lines = []
    for name in defence.names(moment):
        row = defence.info(name)
        settings = ", ".join(f"{key}={value!r}" for key, value in row.defaults.items())
        needs = ", ".join(sorted(row.needs))
        lines.append(f"{name} ({row.moment}): {row.summary}\n    needs: {needs}\n    settings: {settings or 'none'}")
    return "\n".join(lines)


def _repair_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", help="folder of an adapter in PEFT's format, or of a run in the store")
    parser.add_argument("--method", required=True, help=f"one of: {', '.join(defence.names('repair'))}")
    parser.add_argument("--out", required=True, help="folder for the repaired adapter; new or empty")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the method, as `list` shows them"
    )
    parser.add_argument("--model", help="base model (default: the one that the adapter names)")
    parser.add_argument("--four-bit", action="store_true", help="load the base in 4 bit")
    parser.add_argument(
        "--dataset", default="scenes-vqa", help="rows that nobody poisoned, like those the model is used for: "
        "a name, or FORMAT:PATH of your own",
    )  # fmt: skip
    parser.add_argument(
        "--clean-rows", type=whole(1, 10**7), default=500, help="training rows for the repair (default 500)"
    )
    parser.add_argument("--rows", type=whole(2, 10**7), default=200, help="test rows to measure on (default 200)")
    parser.add_argument("--pictures", help="folder of your own pictures to measure on instead")
    parser.add_argument("--prompts", help="text file, a prompt a line, as in bvlm_utils.audit")
    tried.add_options(parser, "none")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the method's own random choices")


if __name__ == "__main__":
    sys.exit(main())
