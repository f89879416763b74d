"""Your own lines on the leaderboard: from an adapter, or from answers that your model gave elsewhere.

python -m bvlm_utils.leaderboard template mine --threat T --attack A    a folder to fill in: entry.json, questions
python -m bvlm_utils.leaderboard add mine                               score it, and keep the lines
python -m bvlm_utils.leaderboard check                                  are all kept entries as they should be?
python -m bvlm_utils.leaderboard cost                                   how long a full entry takes

A folder has an `entry.json` and `adapter/` (PEFT's format; beside it perhaps `control/`, tuned without poison) or
`answers.csv` (beside it `reference.csv`, without the attack). No file that an entry names is ever opened.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from bvlm_utils import __version__, attacks, command, data, models, paths, threats
from bvlm_utils.atomic import write_file, written
from bvlm_utils.checks import brief, known
from bvlm_utils.documents import read_json
from bvlm_utils.errors import InputError
from bvlm_utils.models import names
from bvlm_utils.store import contributed, records
from bvlm_utils.store.cell import Cell

ENTRY, ADAPTER, CONTROL, ANSWERS, REFERENCE = "entry.json", "adapter", "control", "answers.csv", "reference.csv"
MODELS = ("tiny-llava", "tiny-qwen2.5-vl")
# Cells of a full entry, per model. An attack is tuned and asked: five threats, 10 % and 1 %, three seeds. A defence is
# given adapters that are there, and asked: five threats, six attacks.
FULL = {"attack": 5 * 2 * 3, "defence": 5 * 6}


def template(options: argparse.Namespace) -> None:
    """Write the folder that `add` takes."""
    from bvlm_utils.run import foreign

    folder = paths.new_folder(options.folder)
    cell = foreign.cell_of(foreign.ANY_MODEL, options.threat, options.attack, None, {})
    about = {
        "name": "", "by": "", "source": "", "note": "", "kind": "attack", "model": options.model,
        "dataset": cell.dataset, "threat": options.threat, "attack": options.attack, "n_poisoned": None, "seed": 0,
        "settings": {},
    }  # fmt: skip
    folder.parent.mkdir(parents=True, exist_ok=True)
    with written(folder) as partial:
        if options.questions:
            foreign.write_questions(partial, options.threat, options.attack)
        write_file(partial / ENTRY, json.dumps(about, indent=1) + "\n")
    print(f"Fill in {folder / ENTRY}: name, by, and kind, one of {', '.join(contributed.KINDS)}.")
    if options.questions:
        print(f"Answer {folder / foreign.QUESTIONS} in its column response, and save it as {ANSWERS} beside it.")
    else:
        print(f"Put the adapter into {folder / ADAPTER} (PEFT's format), and one without poison into {CONTROL}.")
    print(f"Then: python -m bvlm_utils.leaderboard add {shlex.quote(str(options.folder))}")


def add(options: argparse.Namespace) -> None:
    """Score a folder and keep its entry."""
    into = paths.folder_for(contributed.FOLDER if options.into is None else options.into)
    folder = paths.named(options.folder, "folder")
    about = read_json(folder / ENTRY)
    contributed.check_about(about, str(folder / ENTRY))
    if about["dataset"] not in data.names():
        raise InputError(
            f"{folder / ENTRY}: dataset is {brief(about['dataset'])}; lines can be compared on the study's own rows "
            f"only: {', '.join(data.names())}."
        )
    sources = [name for name in (ADAPTER, ANSWERS) if (folder / name).exists()]
    if len(sources) != 1:
        raise InputError(f"{folder} holds {' and '.join(sources) or 'neither'} of {ADAPTER}/ and {ANSWERS}; give one.")
    table, cell, comparison = _scored(folder, sources[0], about, options.model)
    made = {
        "from": sources[0], "compared_with": comparison, "package": __version__,
        "model_digest": models.digest(cell.model) if sources[0] == ADAPTER else "unknown",
        "data_digest": data.digest(cell.dataset), "threat_version": cell.resolved_threat.version,
        "judge_version": cell.resolved_threat.judge_version, "attack_version": str(cell.resolved_attack.version),
    }  # fmt: skip
    numbers = table[list(contributed.NUMBER)].astype(object)
    numbers = numbers.where(numbers.notna(), None).to_dict("records")
    file = contributed.write({"about": about, "made": made, "numbers": numbers}, into)
    print(shown(table))
    print(f"\nThe entry is {file}. The leaderboard shows it when it is made again; to hand it in, open a pull request.")


def _scored(folder: Path, source: str, about: dict[str, Any], base: str | None) -> tuple[pd.DataFrame, Cell, str]:
    """The numbers, the cell that was asked, and what the model was compared with. source: `ADAPTER` or `ANSWERS`."""
    from bvlm_utils.run import foreign

    settings = about["settings"]
    known(settings, [name for name in foreign.SETTINGS if name != "surrogate"], "setting")  # an entry names no files
    threat, attack, dataset = about["threat"], about["attack"], about["dataset"]
    if source == ANSWERS:
        reference = folder / REFERENCE if (folder / REFERENCE).exists() else None
        table = foreign.score_answers(folder / ANSWERS, threat, attack, reference, about["model"], dataset, **settings)
        cell = foreign.cell_of(foreign.ANY_MODEL, threat, attack, dataset, settings)
        return table, cell, "reference" if reference else "nothing"
    model = about["model"] if base is None else base
    if base is None and model not in names.names() and not models.is_hub_id(model):
        raise InputError(
            f"{folder / ENTRY}: model is {brief(model)}; it must be one of {', '.join(names.names())} or a hub "
            "id; give a folder on the command line, by --model."
        )
    if about["model"] in names.names() and models.digest(model) != models.digest(about["model"]):
        raise InputError(
            f"{folder / ENTRY}: model is {brief(about['model'])}, and --model {brief(model)} has other weights; name "
            "the model that is under the adapter."
        )
    control = folder / CONTROL if (folder / CONTROL).exists() else None
    table = foreign.score_adapter(folder / ADAPTER, model, threat, attack, control, dataset, **settings)
    return table, foreign.cell_of(model, threat, attack, dataset, settings), "control" if control else "base"


def shown(table: pd.DataFrame) -> str:
    """The numbers of the model in question, to read."""
    numbers = table[(table["subject"] == "poisoned") & table["number"].isin(("ASR", "false activation", "utility"))]
    lines = numbers.assign(
        interval=[f"[{low:.3f}, {high:.3f}]" for low, high in zip(numbers["low"], numbers["high"], strict=True)],
        value=numbers["value"].map("{:.3f}".format), n=numbers["n"].map("{:.0f}".format),
    )  # fmt: skip
    return lines[["number", "test", "condition", "value", "interval", "n"]].to_string(index=False)


def check(options: argparse.Namespace) -> None:
    """Read all kept entries, and say how many there are."""
    folder = contributed.FOLDER if options.into is None else paths.named(options.into, "folder")
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; name one with entries.")
    entries = contributed.entries(folder)
    declared = {"threat": threats.names(), "attack": attacks.names()}
    for entry in entries:
        about = entry["about"]
        unknown = [about[field] for field in declared if about[field] not in declared[field]]
        note = f" (not declared here: {', '.join(unknown)})" if unknown else ""
        print(f"{about['name']} by {about['by']}: {about['threat']}, {about['attack']}, {about['model']}{note}")
    print(f"Entries in {folder}: {len(entries)}, all as they should be.")


def cost(options: argparse.Namespace) -> None:
    """What full entries take, by what the committed reference took on CPUs."""
    for kind, hours in hours_of_full_entries().items():
        cells = FULL[kind] * len(MODELS)
        print(f"{kind}: {cells} cells, about {hours:.1f} hours on one CPU core, as the reference took.")


def hours_of_full_entries() -> dict[str, float]:
    """Hours by the kind of entry: the median seconds of the reference's cells, by model."""
    measured = [record for record in records.records("reference") if record["status"] == "done" and record["metrics"]]
    on_cpu = [record for record in measured if record.get("device") == "cpu"]
    hours = dict.fromkeys(FULL, 0.0)
    for model in MODELS:
        if not (times := [record["seconds"] for record in on_cpu if record["config"]["model"] == model]):
            raise InputError(f"The reference has no cells of {model} on a CPU, so nothing is known about the time.")
        tune, ask = (median(seconds.get(name, 0.0) for seconds in times) for name in ("tune", "ask"))
        hours["attack"] += FULL["attack"] * (tune + ask) / 3600
        hours["defence"] += FULL["defence"] * ask / 3600
    return hours


def _parser() -> command.Parser:
    parser = command.Parser(prog="python -m bvlm_utils.leaderboard", description=command.first_line(__doc__))
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    option = commands.add_parser("template", help="a folder to fill in").add_argument
    option("folder", help="new or empty")
    option("--threat", required=True)
    option("--attack", required=True)
    option("--model", default=MODELS[0], help=f"base under the adapter (default {MODELS[0]})")
    option("--questions", action="store_true", help="with questions and pictures, to be answered elsewhere")
    option = commands.add_parser("add", help="score a folder, and keep the lines").add_argument
    option("folder", help=f"with {ENTRY}, and {ADAPTER}/ or {ANSWERS}")
    option("--model", help="base under the adapter, if it is a folder here (default: as entry.json says)")
    option("--into", help="folder of the entries (default: data/contributed)")
    option = commands.add_parser("check", help="are all kept entries as they should be?").add_argument
    option("--into", help="folder of the entries (default: data/contributed)")
    commands.add_parser("cost", help="how long a full entry takes")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command line; its exit code is what `command` promises."""
    acts = {"template": template, "add": add, "check": check, "cost": cost}
    return command.run(_parser(), lambda options: acts[options.command](options), argv)


if __name__ == "__main__":
    sys.exit(main())
