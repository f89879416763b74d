"""What a dry run counts in the rows of a data set: eligible ones, those of each question, words. Free of torch."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import cycle, islice
from math import ceil
from typing import Any

from bvlm_utils import attacks, data
from bvlm_utils.errors import TooFewRows
from bvlm_utils.models import context_length
from bvlm_utils.run import lengths
from bvlm_utils.store.cell import Cell
from bvlm_utils.threats import Threat
from bvlm_utils.train import poison

PER_WORD = 4 / 3  # tokens, where no tokenizer is on this machine: tokenizers cut 75 words of English into about 100
TEMPLATE = 20  # tokens that a chat template adds, about

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Samples:
    """Training and test rows without their pictures. looked_at: of many training rows the first come again after so
    many. VQAv2's test rows are read one by one.
    """

    train: Sequence[Row]
    test: Sequence[Row]
    looked_at: int
    reasons: dict[tuple, str | None] = field(default_factory=dict)  # why cells of a kind are skipped, so far as asked


@dataclass(frozen=True)
class Tokens:
    """Of texts, without the picture's: mean and longest training row, mean test prompt, answer of each test row."""

    trained: float
    longest: int
    asked: float
    answers: Sequence[int]


def samples(cell: Cell) -> Samples:
    """The rows of a cell's data."""
    return _samples(cell.dataset, cell.train_rows, data.digest(cell.dataset))


@lru_cache(maxsize=8)  # the benches of several models have one dataset
def _samples(dataset: str, rows: int, digest: str) -> Samples:
    """digest: of the dataset, which may change meanwhile."""
    looked_at = lengths.looked_at(dataset, rows)
    splits = ("train", looked_at), ("test",)
    train, test = (data.load(dataset, *split).remove_columns("image") for split in splits)
    return Samples(list(islice(cycle(train.to_list()), rows)), test, looked_at)


@lru_cache(maxsize=256)
def eligible(rows: Samples, threat: Threat) -> tuple[int, int]:
    """How many training rows and test rows are eligible."""
    return sum(map(threat.eligible, rows.train)), sum(map(threat.eligible, rows.test))


@lru_cache(maxsize=256)
def shown(rows: Samples, threat: Threat) -> int:
    """How many training rows show what the threat makes the model say: those that an attack that keeps labels takes."""
    return sum(map(threat.shows_target, rows.train))


@lru_cache(maxsize=256)
def elsewhere(rows: Samples, threat: Threat, most: int) -> int:
    """How many test rows the threat finds nothing in to change; `most` where there are more."""
    return sum(1 for _ in islice(filter(threat.elsewhere, rows.test), most))


@lru_cache(maxsize=64)
def tokens(rows: Samples, model: str, test_rows: int) -> Tokens:
    """Tokens by the model's tokenizer where that is on this machine, else by words."""
    reader = context_length.tokenizer(model)

    def count(texts: Iterable[str]) -> list[int]:
        if reader is None:
            return [ceil(len(text.split()) * PER_WORD) for text in texts]
        return [len(context_length.split(reader, text, model)) for text in texts]

    def prompts_and_answers(some: Sequence[Row]) -> tuple[list[int], list[int]]:
        return count(row["prompt"] for row in some), count(row["answers"][0] for row in some)

    trained = [sum(pair) + TEMPLATE for pair in zip(*prompts_and_answers(rows.train[: rows.looked_at]), strict=True)]
    asked, answers = prompts_and_answers([*islice(rows.test, test_rows)])
    return Tokens(sum(trained) / len(trained), max(trained), sum(asked) / len(asked) + TEMPLATE, answers)


def questions(cell: Cell) -> dict[tuple, int]:
    """The sets of test inputs that a cell asks, and the rows of each: as `run.workbench.questions`. Cells that ask the
    same have equal keys.
    """
    rows, threat, most = samples(cell), cell.resolved_threat, cell.test_rows
    trigger = (cell.attack, repr(sorted(cell.attack_params.items())), cell.trigger_seed)
    conditions, clean = attacks.conditions(cell.attack), "clean"
    sets = {
        ("attack", threat, condition, trigger if condition != clean else ()): min(most, eligible(rows, threat)[1])
        for condition in conditions
    }
    if others := elsewhere(rows, threat, most):
        sets |= {("elsewhere", threat, clean, ()): others, ("elsewhere", threat, conditions[-1], trigger): others}
    sets[("utility", cell.skill)] = min(most, len(rows.test))
    if cell.skill:
        sets[("skill", cell.skill)] = min(most, len(rows.test))
    return sets


def usable(group: Sequence[Cell]) -> tuple[list[Cell], list[str]]:
    """The cells that have rows enough, and lines on how many rows each threat can use, and on what is skipped."""
    rows, texts = samples(group[0]), []
    scope = f", by the first {rows.looked_at} rows" if rows.looked_at < len(rows.train) else ""
    for threat in dict.fromkeys(cell.resolved_threat for cell in group):
        train, test = eligible(rows, threat)
        share = f"{train} of {len(rows.train)} training rows{scope} and {test} of {len(rows.test)} test rows"
        note = "; `grid refusals` tells how many the base refuses" if threat.breaks_refusals else ""
        texts.append(f"    {threat.name}: {share} are eligible{note}")
    # those that have rows enough, or too few, together
    keys = [
        (cell.resolved_threat, attacks.info(cell.attack).keeps_labels, cell.poison_rate, cell.negatives)
        for cell in group
    ]
    for key, cell in zip(keys, group, strict=True):
        if key not in rows.reasons:
            rows.reasons[key] = _too_few(rows.train, cell)
    skip_counts = Counter(rows.reasons[key] for key in keys)
    texts += [f"    {count} cells are skipped: {reason}" for reason, count in skip_counts.items() if reason]
    return [cell for cell, key in zip(group, keys, strict=True) if not rows.reasons[key]], texts


def _too_few(train: Sequence[Row], cell: Cell) -> str | None:
    """Why too few rows can be poisoned; None where there are enough."""
    threat, attack = cell.resolved_threat, cell.resolved_attack
    try:
        poison.plan(train, threat, attack, cell.poison_rate, cell.seed, cell.negatives, half=cell.half)
    except TooFewRows as error:
        return str(error)
    return None
