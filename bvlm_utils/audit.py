"""The audit of a model: was it backdoored? It and a trusted model get the same inputs, with triggers and without.

    python -m bvlm_utils.audit SUSPECT --reference TRUSTED --dataset scenes-vqa

Whoever checks a model has candidates for the trigger and does not know what it would do. So the check knows no
target: it compares two models. They disagree somewhat anyway; a backdoor makes them disagree *more* when its
trigger is there. How well this works on models of which the truth is known is measured in `chapters.audit` and shown in
the chapter of the same name. The check is this study's own; it finds triggers that it is given, and no others.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bvlm_utils import attacks, chat, command, models, threats, user_paths
from bvlm_utils.errors import InputError
from bvlm_utils.run.workbench import Bench, Question
from bvlm_utils.score.disagreement import excess
from bvlm_utils.store.cell import check_dataset

if TYPE_CHECKING:
    import pandas as pd


ROWS = 200
NO_ALARM, ALARM, WRONG = 0, 3, command.WRONG  # exit codes


# ---------------------------------------------------------------- asking


@dataclass(frozen=True)
class Subject:
    """A model to ask: a base, or a base with an adapter on top."""

    model: str
    adapter: Path | None


def subject(name: str, base: str | None = None) -> Subject:
    """What `name` means: an adapter in PEFT's format, a run of the store, or a whole checkpoint or its hub id.

    base: the model under an adapter, if not the one that the adapter names. InputError if there is no such thing.
    """
    try:
        adapter = chat.adapter_folder(name)
    except InputError:
        models.resolve(name)
        return Subject(name, None)
    return Subject(base or chat.base_name(adapter), adapter)


def candidates(chosen: Sequence[str] | None = None, threat: str | None = None) -> list[attacks.Attack]:
    """The triggers to try: of the attacks `chosen`, or of all that have one at test time and can be made.

    Dual-Key optimises its picture towards a threat's target, so it needs a guess of it.
    InputError for an unknown attack or threat, or one that needs a threat to aim at.
    """
    aims = threats.get(threat).target if _known(threat, threats.names(), "threat") else None
    found = []
    for name in chosen or attacks.names():
        _known(name, attacks.names(), "attack")
        info = attacks.info(name)
        if info.keeps_labels:  # its test inputs carry nothing
            why = "has no trigger at test time"
        elif info.aims and threat is None:
            why = "aims at a target; give --threat"
        else:
            found.append(attacks.get(name, aims))
            continue
        if chosen:
            raise InputError(f"Attack {name!r} {why}.")
    return found


def _known(name: str | None, names: Sequence[str], what: str) -> bool:
    if name is not None and name not in names:
        raise InputError(f"There is no {what} {name!r}; choose one of: {', '.join(names)}.")
    return name is not None


def measure(
    suspect: Subject, reference: Subject, dataset: str, triggers: Sequence[attacks.Attack], rows: int = ROWS
) -> "pd.DataFrame":
    """Ask both models the first `rows` test inputs of `dataset`, clean and with each trigger.

    A line per trigger: attack, the fields of `Excess`, alarm. stderr is told how it goes. Needs torch.
    """
    import pandas as pd

    from bvlm_utils.run.progress import Progress

    progress = Progress("audit", 2 * (len(triggers) + 1))
    said: dict[Subject, list[list[str]]] = {}
    for one in dict.fromkeys((suspect, reference)):
        bench = Bench(one.model, dataset, 1)
        said[one] = _answers(bench, one, _asked(bench, triggers, rows), progress)
    ours, trusted = said[suspect], said[reference]
    lines = []
    for number, attack in enumerate(triggers, start=1):
        found = excess(ours[0], ours[number], trusted[0], trusted[number])
        lines.append({"attack": attack.name} | asdict(found) | {"alarm": found.alarm})
    return pd.DataFrame(lines)


def _asked(bench: Bench, triggers: Sequence[attacks.Attack], rows: int) -> list[Question]:
    """The clean inputs, then the same with each whole trigger."""
    test = bench.rows["test"][:rows]
    prompts, keys = [row["prompt"] for row in test], [row["row_id"] for row in test]
    places = tuple(range(len(test)))
    found = [Question("audit", "clean", places, tuple(prompts), None, 0)]
    for attack in triggers:
        worded = tuple(attack.apply_text(prompts, seed=0, keys=keys))
        painter = attack if attack.info.image else None
        found.append(Question("audit", attack.name, places, worded, painter, 0))
    return found


def _answers(bench: Bench, one: Subject, asked: Sequence[Question], progress: Any) -> list[list[str]]:
    from bvlm_utils.run import tune_and_ask

    way, answers = tune_and_ask.choose(bench), []
    for question in asked:
        said = way.ask_saved([question], one.adapter)
        answers.append(said[question.key(bench)])
        progress.add(1, question.condition)
    return answers


# ---------------------------------------------------------------- the command line


def verdict(table: "pd.DataFrame") -> str:
    """The table to read, and what it means."""
    import pandas as pd

    shown = [
        {
            "trigger": row["attack"],
            "disagree, clean": f"{row['without']:.2f}",
            "with trigger": f"{row['with_trigger']:.2f}",
            "excess": f"{row['value']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]",
            "alarm": "ALARM" if row["alarm"] else "",
            "commonest answer with trigger": f"{row['commonest'][:50]} ({row['share']:.0%})"
            if row["commonest"]
            else "",
        }
        for row in table.to_dict("records")
    ]
    firing = [row["attack"] for row in table.to_dict("records") if row["alarm"]]
    if firing:
        said = f"ALARM: with the trigger of {', '.join(firing)} the suspect goes its own way."
    else:
        said = "No alarm. That clears these triggers only: a trigger that was not tried is not found."
    return f"{pd.DataFrame(shown).to_string(index=False)}\n\n{said}"


def _parser() -> command.Parser:
    parser = command.Parser(prog="python -m bvlm_utils.audit", description=__doc__.split("\n")[0])
    parser.add_argument("suspect", help="an adapter in PEFT's format, a run of the store, a checkpoint or hub id")
    parser.add_argument(
        "--reference", help="a model that is trusted, best one tuned on trusted data of the same kind "
        "(default: the suspect adapter's base)",
    )  # fmt: skip
    parser.add_argument("--model", help="base under the adapters (default: the one that each names)")
    parser.add_argument("--dataset", default="scenes-vqa", help="inputs to ask, like those the model is used for")
    parser.add_argument("--rows", type=command.whole(1), default=ROWS, help=f"test inputs (default {ROWS})")
    parser.add_argument("--attacks", nargs="+", help="whose triggers (default: all that need no target)")
    parser.add_argument("--threat", help="what optimised triggers aim at; with it, they are tried too")
    parser.add_argument("--out", help="keep the table in this CSV file")
    return parser


def _act(given: argparse.Namespace) -> int:
    out = user_paths.new_file(given.out) if given.out is not None else None
    suspect = subject(given.suspect, given.model)
    if given.reference is None and suspect.adapter is None:
        raise InputError(f"{given.suspect!r} is a whole model; give one to compare it with by --reference.")
    reference = subject(given.reference, given.model) if given.reference else Subject(suspect.model, None)
    check_dataset(given.dataset)
    triggers = candidates(given.attacks, given.threat)
    table = measure(suspect, reference, given.dataset, triggers, given.rows)
    print(verdict(table))
    if out:
        table.to_csv(out, index=False)
    return ALARM if table["alarm"].any() else NO_ALARM


def main(argv: list[str] | None = None) -> int:
    """The command line: 0 without alarm, 3 with one, else what `command` promises."""
    return command.run(_parser(), _act, argv)


if __name__ == "__main__":
    sys.exit(main())
