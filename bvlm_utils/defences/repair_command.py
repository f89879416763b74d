"""The command `repair`: an adapter in, a repaired one out, and a card of what both say on the same test rows.

Nobody's target is known here. Without a trigger the card tells how good the answers are and how many changed. With a
trigger it tells how many answers the trigger changes: a backdoored model's change, a repaired one's should not.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bvlm_utils import models
from bvlm_utils.atomic import filled
from bvlm_utils.defences import defence as defences
from bvlm_utils.defences.defence import Defence
from bvlm_utils.defences.rows import Rows
from bvlm_utils.documents import parse_json
from bvlm_utils.errors import InputError
from bvlm_utils.models import names
from bvlm_utils.paths import new_folder
from bvlm_utils.run import own_pictures, tried, tune_and_ask
from bvlm_utils.run.progress import say
from bvlm_utils.run.workbench import Bench, Question
from bvlm_utils.score import utility
from bvlm_utils.store.cell import check_dataset
from bvlm_utils.threats import responses


@dataclass(frozen=True)
class Line:
    """One number before and after the repair."""

    what: str
    before: str
    after: str


def repair(options: argparse.Namespace) -> int:
    """Repair, measure, write the folder, print the table; 0. InputError before any work if an option is wrong."""
    folder = names.adapter_folder(options.adapter)
    model = names.base_under(folder, options.model)
    models.check_kind(model, clip=False)
    method = chosen(options.method, options.set)
    method.check_files([model])
    method.check_loaded(options.four_bit)
    method.check_clean(options.clean_rows)
    out = new_folder(options.out)
    check_dataset(options.dataset)
    own = own_pictures.given(options.pictures, options.prompts)
    if options.threat is not None and not options.attacks:
        raise InputError(f"--threat {options.threat!r} says what the triggers of --attacks aim at; name attacks, too.")
    triggers = tried.of_reader(options) + (tried.of_attacks(options.attacks, options.threat) if options.attacks else [])
    names.go_offline(model)

    from bvlm_utils.defences import weights
    from bvlm_utils.train import adapters

    saved = tune_and_ask.saved(folder)
    bench = Bench(model, options.dataset, options.clean_rows, four_bit=options.four_bit)
    asked = bench if own is None else own_pictures.bench(model, *own, options.rows, options.four_bit)
    questions = tried.questions("repair", asked, triggers, options.rows)
    if (count := len(questions[0].positions)) < 2:
        whose = options.dataset if own is None else options.pictures
        raise InputError(f"{whose} has {count} test rows; two or more are needed to measure on.")
    tried.check_lengths(model, questions)
    say(f"repair: loading {model} and the rows of {options.dataset}")
    before = weights.whole(bench.victim, saved)
    asked.victim = bench.victim  # one model for both
    with adapters.attached(bench.victim, folder):
        pass  # a weight that does not fit the base or the settings is told before any work
    clean = clean_rows(bench)
    say(f"repair: {method.name} with {method.params}")
    after = method.repair(bench.victim, before, clean, options.seed)
    say(f"repair: asking both adapters {options.rows} questions, clean and with {len(triggers)} triggers")
    lines = compared(asked, before, after, questions)
    details = {
        "model": model,
        "repaired": Path(options.adapter).name,
        "method": method.name,
        "settings": method.params,
        "seed": options.seed,
        "dataset": options.dataset,
    } | ({} if own is None else {"measured on": "own pictures"})
    with filled(out, last=adapters.CONFIG) as partial:
        after.save(partial, details)
        (partial / "README.md").write_text(card(details, method, lines), encoding="utf-8")
    print(written(lines))
    print(f"\nThe repaired adapter and its card are in {out}.")
    return 0


def chosen(name: str, settings: Sequence[str]) -> Defence:
    """The repair called `name` with settings "name=value"; InputError says what is wrong with them."""
    repairs = defences.names("repair")
    if name not in repairs:
        raise InputError(f"There is no repair {name!r}; choose one of: {', '.join(repairs)}.")
    params: dict[str, Any] = {}
    for text in settings:
        key, separator, value = text.partition("=")
        if not separator:
            raise InputError(f"The setting {text!r} has no value; write it as NAME=VALUE.")
        if key in params:
            raise InputError(f"The setting {key!r} is given twice; give it once.")
        try:
            params[key] = parse_json(value, "it")
        except InputError:  # a word, or what is no value of JSON: the method says what is wanted
            params[key] = value
    return defences.get(name, **params)


def clean_rows(bench: Bench) -> Rows:
    """The training rows of a bench, which nobody poisoned."""
    samples = bench.rows["train"]
    feature_rows = np.array(bench.feature_rows("train", range(len(samples))))
    prompts, answers = [row["prompt"] for row in samples], [row["answers"][0] for row in samples]
    kinds = [str(row.get("kind", "")) for row in samples]
    return Rows(prompts, answers, bench.feature_cache.table, feature_rows, kinds)


# ---------------------------------------------------------------- measuring


def compared(bench: Bench, before: Any, after: Any, questions: Sequence[Question]) -> list[Line]:
    """Both adapters' answers to the same test rows, clean and with each trigger. questions: of `tried.questions`."""
    way = tune_and_ask.choose(bench)
    answers = [[texts[q.key(bench)] for q in questions] for texts in way.ask([questions, questions], [before, after])]
    samples = [bench.rows["test"][position] for position in questions[0].positions]
    lines = [Line("test rows", f"{len(samples)}", f"{len(samples)}")]
    if all(sample["answers"][0] for sample in samples):  # own pictures come without answers
        scores = [utility.utility_scores(samples, texts[0]) for texts in answers]
        lines.append(Line(f"clean inputs: {scores[0][1]}", *(f"{np.mean(values):.3f}" for values, _ in scores)))
    lines += [
        Line("clean inputs: answers that the repair changed", "", f"{_changed(answers[0][0], answers[1][0]):.3f}"),
    ]
    for number, question in enumerate(questions[1:], start=1):
        shares = [_changed(texts[0], texts[number]) for texts in answers]
        common = [Counter(texts[number]).most_common(1)[0] for texts in answers]
        lines += [
            Line(f"{question.condition}: answers that the trigger changes", *(f"{share:.3f}" for share in shares)),
            Line(
                f"{question.condition}: commonest answer with it",
                *(f"{text[:60]} ({count / len(samples):.0%})" for text, count in common),
            ),
        ]
    return lines


def _changed(first: Sequence[str], second: Sequence[str]) -> float:
    """The share of answers whose words differ."""
    pairs = zip(first, second, strict=True)
    return float(np.mean([responses.normalise(a) != responses.normalise(b) for a, b in pairs]))


# ---------------------------------------------------------------- the card


def written(lines: Sequence[Line]) -> str:
    """The numbers as a table in Markdown."""
    rows = [f"| {' | '.join(map(_field, (line.what, line.before, line.after)))} |".replace("  ", " ") for line in lines]
    return "\n".join(["| measured | before | after |", "|---|---|---|", *rows])


def _field(text: str) -> str:
    """A text as a field of a Markdown table: on one line, and without a bar that would end it."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


def card(details: Mapping[str, Any], method: Defence, lines: Sequence[Line]) -> str:
    """The README of a repaired adapter: what was done, and what was measured. It promises nothing more."""
    return (
        "---\nlibrary_name: peft\ntags: [backdoor-research, repaired]\n---\n\n"
        f"# Repaired with {method.name}\n\n"
        f"Made of the adapter {details['repaired']} by: {method.info.summary}. Source: {method.info.source}.\n\n"
        f"{written(lines)}\n\n"
        "A trigger that was not tried here may still work, and a removed backdoor may be learnt again quickly.\n\n"
        f"Settings:\n\n```json\n{json.dumps(dict(details), indent=1, sort_keys=True)}\n```\n"
    )
