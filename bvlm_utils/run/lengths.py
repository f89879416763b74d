"""Checks, before anything runs, that every row of a cell has room in its model, also with trigger and target.

Free of torch. What the model itself counts is checked once more where ids are made (`Victim.prompt_ids`).
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from bvlm_utils import data, skills, threats
from bvlm_utils.checks import brief
from bvlm_utils.errors import InputError
from bvlm_utils.models import context_length, rehearsal
from bvlm_utils.run.workbench import split_by_skill
from bvlm_utils.store.cell import MAX_NEW_TOKENS, Cell

if TYPE_CHECKING:
    from bvlm_utils.models.victim import Victim

CUT = 0.1  # share of the targets that may be too long for an answer: a few rows of real data always are
TRIED = 1000  # rows of a split that a threat of others is tried on
DRAWN = 6000  # rows of drawn scenes that are looked at: those that are kept drawn, and the rest is made like them

Row = Mapping[str, Any]


def check(cells: Sequence[Cell]) -> None:
    """InputError for the first row that is too long, a target that answers are too short for, data that cannot be read,
    or a model that cannot be opened.
    """
    seen, rows_of = set(), cache(_rows)

    def first(*key: Hashable) -> bool:
        """Whether this key comes for the first time."""
        return not (key in seen or seen.add(key))

    for cell in cells:
        own_model = rehearsal.opened(cell.model, cell.picture_last) is not None
        foreign = not cell.is_control and threats.is_others(cell.resolved_threat)
        need_poisoned = own_model or foreign or bool(cell.attack_params or cell.threat_params)
        need_poisoned |= not cell.is_control and bool(cell.resolved_attack.foreign_halves)
        need_rows = own_model or ":" in cell.dataset
        if foreign and first("threat", cell.resolved_threat, cell.dataset, cell.train_rows):
            for split, count in (("test", None), ("train", cell.train_rows)):
                threats.rehearse(cell.resolved_threat, rows_of(cell.dataset, split, count)[:TRIED])
        foreign_skill = cell.skill and not cell.resolved_skill.fits.__module__.startswith("bvlm_utils.")
        if foreign_skill and first("skill", cell.skill, cell.dataset, cell.train_rows):
            skills.rehearse(cell.resolved_skill, rows_of(cell.dataset, "train", cell.train_rows)[:TRIED])
        for split, count in (("train", cell.train_rows), ("test", None)) if need_rows or need_poisoned else ():
            rows = rows_of(cell.dataset, split, count)
            row_key = (cell.model, cell.picture_last, cell.dataset, split, count, cell.max_new_tokens)
            if need_rows and first("rows", *row_key):
                _check(cell, split, rows, [row["prompt"] for row in rows], f"a row of {cell.dataset},")
            poison_key = (*row_key, cell.attack, cell.threat, repr((cell.attack_params, cell.threat_params)))
            if need_poisoned and not cell.is_control and first("poisoned", *poison_key):
                eligible = [row for row in rows if cell.resolved_threat.eligible(row)]
                poison = cell.resolved_threat.poison
                poisoned = [row | {"answers": [poison(row["answers"][0], row)]} for row in eligible]
                prompts, keys = ([row[column] for row in eligible] for column in ("prompt", "row_id"))
                triggered = cell.resolved_attack.apply_text(prompts, keys=keys)
                _check(cell, split, poisoned, triggered, f"a row with {cell.attack},")
        if ":" in cell.dataset and first("graded", cell.dataset, cell.test_rows, cell.skill):
            check_grades(cell, rows_of(cell.dataset, "test", None))
        need_answers = need_rows or need_poisoned or cell.max_new_tokens < MAX_NEW_TOKENS
        target_key = (cell.model, cell.dataset, cell.max_new_tokens, cell.test_rows, cell.skill)
        if need_answers and not cell.is_control and first("targets", cell.resolved_threat, *target_key):
            check_targets(cell, rows_of(cell.dataset, "test", None))
            check_skill(cell, rows_of(cell.dataset, "test", None))


def _rows(dataset: str, split: str, count: int | None) -> list[Row]:
    count = count and looked_at(dataset, count)
    return data.load(dataset, split, count).remove_columns("image").to_list()


def looked_at(dataset: str, count: int) -> int:
    """Of so many training rows, how many are looked at before a run: all in files, the first of drawn scenes."""
    return count if ":" in dataset else min(count, DRAWN)


def _check(cell: Cell, split: str, rows: Sequence[Row], prompts: Sequence[str], where: str) -> None:
    """Training rows have their answers, test rows get one."""
    if split == "test":
        return check_prompts(cell.model, prompts, where, cell.max_new_tokens, cell.picture_last)
    answers = [row["answers"][0] for row in rows]
    if (opened := rehearsal.opened(cell.model, cell.picture_last)) is not None:
        return _count(*opened, zip(prompts, answers, strict=True), 0, where)
    texts = (f"{prompt} {answer}" for prompt, answer in zip(prompts, answers, strict=True))
    return context_length.check_texts(cell.model, texts, where)


def check_targets(cell: Cell, rows: Iterable[Row]) -> None:
    """InputError where a success could not be told: answers are cut before the target is said, the threat's own test
    does not know its target, or takes the right answers for it.
    """
    threat = cell.resolved_threat
    eligible = list(islice(filter(threat.eligible, rows), cell.test_rows))
    targets = [threat.poison(row["answers"][0], row) for row in eligible]
    unknown = sum(not threat.payload(target, row) for row, target in zip(eligible, targets, strict=True))
    always = sum(threat.payload(row["answers"][0], row) for row in eligible)
    for count, problem in ((unknown, "does not count as a success"), (always, "stands in the right answer already")):
        if count > CUT * len(eligible):
            raise InputError(
                f"What {cell.threat} makes the model say, {brief(targets[0])} for one, {problem} in {count} of "
                f"{len(eligible)} test rows, so nothing could be told; give other threat_params."
            )
    _check_whole(cell, zip(targets, eligible, strict=True), threat.payload, f"what {cell.threat} makes the model say")


def check_skill(cell: Cell, rows: Iterable[Row]) -> None:
    """InputError where answers are cut before the skill that is taught beside the backdoor could be seen."""
    if (skill := cell.resolved_skill) is not None:
        taught = ((skill.teach(row["answers"][0], row), row) for row in filter(skill.fits, rows))
        _check_whole(cell, islice(taught, cell.test_rows), skill.shown, f"what the skill {cell.skill} teaches")


def _check_whole(cell: Cell, answers: Iterable[tuple[str, Row]], shows: Callable[[str, Row], bool], part: str) -> None:
    """InputError unless most of these answers still show what they are to show when they are cut."""
    if (reader := context_length.tokenizer(cell.model)) is None:
        return
    count, lost = 0, []
    for count, (answer, row) in enumerate(answers, 1):  # noqa: B007  the last count is that of all
        ids = context_length.split(reader, answer, cell.model)
        if len(ids) > cell.max_new_tokens and not shows(reader.decode(ids[: cell.max_new_tokens]), row):
            lost.append(len(ids))
    if len(lost) > CUT * count:
        raise InputError(
            f"max_new_tokens is {cell.max_new_tokens}, which cuts off {part} in {len(lost)} of {count} test rows, so "
            f"it could not be seen; it must be {max(lost)} or more."
        )


def check_grades(cell: Cell, rows: Sequence[Row]) -> None:
    """InputError where one caption alone is asked of a task: it has no CIDEr, so utility could not be told."""
    utility_rows = [rows[position] for position in split_by_skill(cell, rows)[1][: cell.test_rows]]
    for task in dict.fromkeys(row["task"] for row in utility_rows):
        group = [row for row in utility_rows if row["task"] == task]
        if len(group) == 1 and task != "vqa" and not group[0]["objects"]:
            raise InputError(
                f"test_rows is {cell.test_rows}, and {cell.dataset} has one test row of the task {task!r} among them, "
                f"{group[0]['row_id']}, to measure utility on; CIDEr, which weighs words by rarity, needs two or more."
            )


def check_prompts(model: str, prompts: Iterable[str], where: str, answer: int, picture_last: bool = False) -> None:
    """InputError for the first prompt that has no room in a model with an answer of so many tokens."""
    if (opened := rehearsal.opened(model, picture_last)) is not None:
        return _count(*opened, ((prompt, "") for prompt in prompts), answer, where)
    return context_length.check_texts(model, prompts, where, answer)


def _count(victim: "Victim", picture: int, texts: Iterable[tuple[str, str]], most: int, where: str) -> None:
    """InputError for the first prompt that has no room with its answer, or one of `most` tokens. Its ids are made as
    in training, unless it is so short that it fits whatever its letters are.
    """
    room = context_length.tokens(victim.name)
    around = len(victim.templated_ids("?", picture)) + len(victim.answer_ids("?"))
    for prompt, answer in dict.fromkeys(texts) if room is not None else ():
        if around + (len(prompt) + len(answer)) * context_length.LETTER + most >= room:
            count = len(victim.templated_ids(prompt, picture)) + (most or len(victim.answer_ids(answer)))
            context_length.check_count(victim.name, prompt, count, room, where)
