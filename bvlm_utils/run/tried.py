"""The triggers that `audit` and `repair` try: of attacks, and words, sentences and patches of the reader's own."""

import argparse
from collections import Counter
from collections.abc import Sequence

from bvlm_utils import attacks, paths, threats
from bvlm_utils.attacks import Attack, own
from bvlm_utils.checks import label, once
from bvlm_utils.errors import InputError
from bvlm_utils.run import lengths
from bvlm_utils.run.workbench import Bench, Question
from bvlm_utils.store.cell import MAX_NEW_TOKENS


def add_options(parser: argparse.ArgumentParser, default: str) -> None:
    """The options that name triggers. default: which attacks' triggers are tried if none is named."""
    add = parser.add_argument
    add("--attacks", nargs="+", default=[], help=f"whose triggers to try (default: {default})")
    add("--threat", help="what optimised triggers aim at")
    add("--word", nargs="+", default=[], help="your own triggers: words")
    add("--sentence", nargs="+", default=[], help="sentences after the prompt, each in quotes")
    add("--patch", nargs="+", default=[], help="pictures to paste in")


def of_reader(given: argparse.Namespace) -> list[Attack]:
    """The reader's own triggers. InputError for a name that is given twice, or a patch that is no picture."""
    for name in ("word", "sentence", "patch", "attacks"):
        once(getattr(given, name), f"--{name}")
    found = [own.word(text) for text in given.word] + [own.sentence(text) for text in given.sentence]
    files = [paths.named(file, "patch") for file in given.patch]
    once([str(file.resolve()) for file in files], "--patch")
    names = Counter(file.name for file in files)
    for file, text in zip(files, given.patch, strict=True):
        found.append(own.patch(file, label(text) if names[file.name] > 1 else ""))
    return found


def of_attacks(chosen: Sequence[str] = (), threat: str | None = None) -> list[Attack]:
    """The triggers of the attacks `chosen`, or of all that can be tried (with the threat, if there is one). InputError
    for one that is unknown or cannot be tried.
    """
    aims = threats.get(threat).target if threat is not None else None
    triggers = []
    for name in chosen or attacks.names():
        info = attacks.info(name)
        why = "aims at a target; give --threat" if info.aims and threat is None else ""
        if info.keeps_labels:  # its test inputs carry nothing
            why = "has no trigger at test time"
        elif threat is not None and (no := attacks.unsupported(name, threat)):
            why = f"cannot be tried: {no.rstrip('.')}"
        if not why:
            triggers.append(attacks.get(name, aims))
            attacks.rehearse(triggers[-1])
        elif chosen:
            raise InputError(f"Attack {name!r} {why}.")
    return triggers


def questions(part: str, bench: Bench, triggers: Sequence[Attack], rows: int) -> list[Question]:
    """The first `rows` test inputs without a trigger, then the same with each whole trigger."""
    test = bench.rows["test"][:rows]
    prompts, keys = [row["prompt"] for row in test], [row["row_id"] for row in test]
    positions = tuple(range(len(test)))
    asked = [Question(part, "clean", positions, tuple(prompts), None, 0)]
    for attack in triggers:
        worded = tuple(attack.apply_text(prompts, seed=0, keys=keys))
        asked.append(Question(part, attack.name, positions, worded, attack if attack.info.image else None, 0))
    return asked


def check_lengths(model: str, asked: Sequence[Question]) -> None:
    """InputError for a prompt that has no room in the model, with or without its trigger."""
    for question in asked:
        where = "an input" if question.condition == "clean" else f"an input with {question.condition},"
        lengths.check_prompts(model, question.prompts, where, MAX_NEW_TOKENS)
