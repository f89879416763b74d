"""Two ways to tune and to ask the adapters of a group: all at once, or one by one.

`Grouped` is the default (by `train.grouped` and `decode`); `OneByOne` is the plain way (`train.loop.finetune`, the
model's own `generate`). Both start from the same rows, features, order and seeds, and tests hold them equal.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bvlm_utils.atomic import DAMAGED
from bvlm_utils.checks import content_key
from bvlm_utils.run.workbench import Bench, Question
from bvlm_utils.store import records
from bvlm_utils.store.cell import Cell
from bvlm_utils.train.poison import Manifest

if TYPE_CHECKING:
    import torch

    from bvlm_utils.train.adapters import GroupResult

Answers = dict[str, list[str]]  # answers by the question's key
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Work:
    """A cell that is ready to be tuned and asked; a control has no poisoned rows, and is asked with its cells."""

    cell: Cell
    manifest: Manifest | None = None
    asked: Sequence[Question] = ()


def training_rows(bench: Bench, tasks: Sequence[Work]) -> tuple[list[list[Any]], "torch.Tensor"]:
    """Each task's rows, poisoned ones among them, and the features (F, n, d) that all of them share."""
    from bvlm_utils.train.loop import TrainRow

    samples = bench.rows["train"]
    clean, row_lists = bench.feature_rows("train", range(len(samples))), []
    for task in tasks:
        rows = [TrainRow(row["prompt"], row["answers"][0], index) for row, index in zip(samples, clean, strict=True)]
        replaced = task.manifest.rows if task.manifest else ()
        painted = [row.position for row in replaced if row.condition in ("image", "both")]
        triggered: dict[int, int] = {}
        if painted:
            attack, seed = task.cell.resolved_attack, task.cell.trigger_seed
            triggered = dict(zip(painted, bench.feature_rows("train", painted, attack, seed), strict=True))
        for row in replaced:
            feature_row = triggered.get(row.position, clean[row.position])
            rows[row.position] = TrainRow(row.prompt, row.answer, feature_row)
        row_lists.append(rows)
    return row_lists, bench.feature_cache.table


def _jobs(bench: Bench, tasks: Sequence[Work]) -> list[Any]:
    from bvlm_utils.train.grouped import GroupJob

    row_lists, features = training_rows(bench, tasks)
    return [
        GroupJob(rows, features, task.cell.train, task.cell.seed, name=task.cell.run_id)
        for rows, task in zip(row_lists, tasks, strict=True)
    ]


@dataclass(frozen=True)
class Grouped:
    """All adapters at once: the default."""

    bench: Bench
    together: ClassVar[bool] = True

    def tune(
        self, tasks: Sequence[Work], folder: Path | None = None, progress: Progress | None = None
    ) -> list["GroupResult"]:
        """One adapter per task, in their order; the victim stays clean. folder: where the state is saved meanwhile.
        progress: called after each step with its number, the number of steps, and the loss.
        """
        from bvlm_utils.train import grouped

        return grouped.finetune_group(self.bench.victim, _jobs(self.bench, tasks), progress, folder)

    def ask(self, question_lists: Sequence[Sequence[Question]], results: Sequence["GroupResult"]) -> list[Answers]:
        """What each tuned adapter answers to its questions."""
        from bvlm_utils.train import grouped

        return _together(self.bench, question_lists, grouped.bank_of(self.bench.victim, results)) if results else []

    def ask_saved(self, question_list: Sequence[Question], adapter: Path | None) -> Answers:
        """What a saved adapter, or with None the base model, answers."""
        from bvlm_utils.train import adapters

        with adapters.attached(self.bench.victim, adapter) if adapter else nullcontext():
            return _together(self.bench, [question_list], None)[0]


@dataclass(frozen=True)
class OneByOne:
    """The plain way, with the methods of `Grouped`: for comparison, and for a base in 4 bit."""

    bench: Bench
    together: ClassVar[bool] = False

    def tune(self, tasks: Sequence[Work], folder: Path | None = None, *_: Any) -> list["GroupResult"]:
        """As in `Grouped`, but nothing is told meanwhile."""
        return [_tune_alone(self.bench, job, folder) for job in _jobs(self.bench, tasks)]

    def ask(self, question_lists: Sequence[Sequence[Question]], results: Sequence["GroupResult"]) -> list[Answers]:
        answers = []
        for question_list, result in zip(question_lists, results, strict=True):
            with tempfile.TemporaryDirectory() as folder:
                result.save(folder, {})
                answers.append(self.ask_saved(question_list, Path(folder)))
        return answers

    def ask_saved(self, question_list: Sequence[Question], adapter: Path | None) -> Answers:
        from bvlm_utils.train import adapters

        bench, answers = self.bench, {}
        with adapters.attached(bench.victim, adapter) if adapter else nullcontext():
            for key, question in {question.key(bench): question for question in question_list}.items():
                rows = question.feature_rows(bench)  # before the table, which they may replace
                features, limit = bench.feature_cache.table[rows], bench.max_new_tokens
                answers[key] = bench.victim.generate(question.prompts, features, max_new_tokens=limit)
        return answers


Way = Grouped | OneByOne


def choose(bench: Bench, plain: bool = False) -> Way:
    """How adapters on this bench are tuned and asked: together, unless that is not wanted or not possible."""
    # Grouped products need the base's weights as numbers, which a base in 4 bit does not have.
    return OneByOne(bench) if plain or bench.four_bit else Grouped(bench)


def ask_and_keep(way: Way, group: Sequence[Work], results: Sequence["GroupResult"], folder: Path) -> list[Answers]:
    """As `way.ask`, one question of all cells after the other; the store keeps each until the cell's record is there,
    so that a kill costs one question. folder: the store.
    """
    digests = [result.digest for result in results]
    answers = [_kept(folder, work, digest, way.bench) for work, digest in zip(group, digests, strict=True)]
    for turn in range(max(len(work.asked) for work in group)):
        question_lists = [
            [question for question in work.asked[turn : turn + 1] if question.key(way.bench) not in old]
            for work, old in zip(group, answers, strict=True)
        ]
        if any(question_lists):
            for work, digest, old, new in zip(group, digests, answers, way.ask(question_lists, results), strict=True):
                old |= new
                records.cache_texts(folder, records.asked_name(work.cell), [digest, json.dumps(old)])
    return answers


def _kept(folder: Path, work: Work, digest: str, bench: Bench) -> Answers:
    """The answers that a killed run got from a cell's adapter, if it is the same one."""
    texts = records.cached(folder, records.asked_name(work.cell))
    try:
        answers = dict(json.loads(texts[1])) if texts and texts[0] == digest else {}
    except DAMAGED:
        return {}
    questions = {question.key(bench): question for question in work.asked}
    return {key: answers[key] for key, question in questions.items() if question.answered(answers.get(key))}


def _tune_alone(bench: Bench, job: Any, folder: Path | None) -> "GroupResult":
    from peft import get_peft_model_state_dict

    from bvlm_utils.models.victim import language_linears
    from bvlm_utils.train import adapters, loop, memory, unfinished

    model, rank = bench.victim.model, job.settings.lora_rank
    tokens = memory.tokens_at_once(model, language_linears(model), rank, groups=1)
    longest = max(map(sum, (map(len, ids) for ids in loop.token_ids(bench.victim, job.rows, job.features.shape[1]))))
    rows = min(job.settings.batch_size, max(1, tokens // longest))  # a batch of more is cut into pieces
    saved = unfinished.Saved(folder, [job.name], [content_key("plain", job.name)])  # the name has all settings in it
    while True:
        try:
            result = loop.finetune(bench.victim, job.rows, job.features, job.settings, job.seed, rows, saved)
            break
        except (MemoryError, RuntimeError) as error:  # torch's own is a RuntimeError
            if not memory.ran_out(error) or rows == 1:
                raise
        memory.release()
        rows //= 2
    state = {name: value.detach().cpu().clone() for name, value in get_peft_model_state_dict(result.adapter).items()}
    config = result.adapter.peft_config["default"]
    adapters.detach(bench.victim, result.adapter)
    return adapters.GroupResult(state, config, result.losses, result.seconds, result.steps, result.tokens)


def saved(adapter: Path) -> "GroupResult":
    """A stored adapter as if it had just been tuned."""
    from bvlm_utils.train import adapters

    return adapters.read(adapter)


def _together(bench: Bench, question_lists: Sequence[Sequence[Question]], bank: Any) -> list[Answers]:
    """All questions of all adapters (or of the model as it stands) in one grouped decode."""
    from bvlm_utils.train import decode

    unique = [{question.key(bench): question for question in questions} for questions in question_lists]
    pairs = [
        [pair for q in questions.values() for pair in zip(q.prompts, q.feature_rows(bench), strict=True)]
        for questions in unique
    ]
    texts = decode.answer(bench.victim, pairs, bench.feature_cache.table, bank, max_new_tokens=bench.max_new_tokens)
    return [
        {key: [next(answers) for _ in question.prompts] for key, question in questions.items()}
        for questions, answers in zip(unique, map(iter, texts), strict=True)
    ]
