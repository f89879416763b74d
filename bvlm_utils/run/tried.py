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


def of_reader(options: argparse.Namespace) -> list[Attack]:
    """The reader's own triggers. InputError for a name that is given twice, or a patch that is no picture."""
    for name in ("word", "sentence", "patch", "attacks"):
        once(getattr(options, name), f"--{name}")
    words = [own.word(text) for text in options.word] + [own.sentence(text) for text in options.sentence]
    files = [paths.named(file, "patch") for file in options.patch]
    once([str(file.resolve()) for file in files], "--patch")
    names = Counter(file.name for file in files)
    texts = [label(text) if names[file.name] > 1 else "" for file, text in zip(files, options.patch, strict=True)]
    return [*words, *map(own.patch, files, texts)]


def of_attacks(names: Sequence[str] = (), threat: str | None = None) -> list[Attack]:
    """The triggers of the attacks `names`, else of all that can be tried; InputError for a name that cannot be."""
    target = threats.get(threat).target if threat is not None else None
    triggers = []
    for name in names or attacks.names():
        info = attacks.info(name)
        reason = "aims at a target; give --threat" if info.aims and threat is None else ""
        if info.keeps_labels:  # its test inputs carry nothing
            reason = "has no trigger at test time"
        elif threat is not None and (refusal := attacks.unsupported(name, threat)):
            reason = f"cannot be tried: {refusal.rstrip('.')}"
        if not reason:
            triggers.append(attacks.get(name, target))
            attacks.rehearse(triggers[-1])
        elif names:
            raise InputError(f"Attack {name!r} {reason}.")
    return triggers


def questions(part: str, bench: Bench, triggers: Sequence[Attack], rows: int) -> list[Question]:
    """The first `rows` test inputs without a trigger, then the same with each whole trigger."""
    test = bench.rows["test"][:rows]
    prompts, keys = [row["prompt"] for row in test], [row["row_id"] for row in test]
    positions = tuple(range(len(test)))
    question_list = [Question(part, "clean", positions, tuple(prompts), None, 0)]
    for attack in triggers:
        triggered = tuple(attack.apply_text(prompts, seed=0, keys=keys))
        painter = attack if attack.info.image else None
        question_list.append(Question(part, attack.name, positions, triggered, painter, 0))
    return question_list


def check_lengths(model: str, question_list: Sequence[Question]) -> None:
    """InputError for a prompt that has no room in the model, with or without its trigger."""
    for question in question_list:
        where = "an input" if question.condition == "clean" else f"an input with {question.condition},"
        lengths.check_prompts(model, question.prompts, where, MAX_NEW_TOKENS)
