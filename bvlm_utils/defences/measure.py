"""The measuring of the defence grid: attacks' cells, their adapters, and what is left of them under a defence.

    points = defences.defended(cells, ["shrink", "clean-fine-tuning"])
    table = defences.run(points, "local")

The cells have their records and adapters already (`study.run_cells`). Beside each poisoned model its clean-tuned
control is defended, too: what that costs is the price of a defence. Cells that share model, data and rows are measured
together: the clean rows and pictures are encoded once, and all repaired adapters answer in one decode.
"""

import time
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from bvlm_utils import attacks, store
from bvlm_utils.defences import again, records, searching
from bvlm_utils.defences.bench import DefenceBench, lacks_adapter, questions_of
from bvlm_utils.defences.cell import Defended
from bvlm_utils.defences.defence import get
from bvlm_utils.defences.numbers import CONTROL, POISONED, changes, number, share, told_apart, with_rows
from bvlm_utils.defences.rows import Answered, Rows
from bvlm_utils.errors import InputError, StudyError, in_words
from bvlm_utils.run import group
from bvlm_utils.run.progress import say
from bvlm_utils.run.workbench import Bench, Question, bench_key
from bvlm_utils.score import judge
from bvlm_utils.store.cell import Cell
from bvlm_utils.store.table import FIRES

TESTS = ("asr", "asr_payload", "asr_published")  # whose rows are kept, so that tables can pair them


def run(points: Sequence[Defended], folder: str | Path | None = None, force: bool = False) -> pd.DataFrame:
    """The tidy table of exactly these points (`defences.records.COLUMNS`); what the store lacks is measured first.

    StudyError lists the points that failed, after all others were measured.
    """
    root = store.folder(folder)
    missing = [point for point in points if force or not records.has(point, root)]
    if missing:
        store.writable(folder)
        failed = execute(missing, root)
        if failed:
            reasons = "\n".join(f"  {point.name}: {reason}" for point, reason in failed[:20])
            raise StudyError(f"{len(failed)} of {len(missing)} defended cells failed:\n{reasons}")
    table = records.collect(root, relearnt=None)
    return table[table["name"].isin({point.name for point in points})].reset_index(drop=True)


def execute(points: Sequence[Defended], folder: Path) -> list[tuple[Defended, str]]:
    """Measure points, those that share a bench and a defence together; those that failed, with the reason."""
    failed: list[tuple[Defended, str]] = []
    by_bench: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Defended]]] = {}
    for point in points:
        if reason := point.skip_reason or _nothing_to_remove(point, folder):
            records.write(point, folder, {"status": "skipped", "reason": reason, "numbers": []})
            continue
        setting = (point.defence, str(sorted(point.resolved.params.items())), point.seed, point.relearn, point.placebo)
        by_bench.setdefault(bench_key(point.cell), {}).setdefault(setting, []).append(point)
    total, done = sum(len(batch) for by_setting in by_bench.values() for batch in by_setting.values()), 0
    started = time.perf_counter()
    for key, by_setting in by_bench.items():
        bench = DefenceBench(Bench(*key), folder)
        previous = None
        for setting, batch in by_setting.items():
            if setting[:3] != previous:  # another defence, not the placebo of the same
                bench.made.clear()
                bench.kept.pop("pictures", None)  # each defence changes them in its own way
            previous = setting[:3]
            with again.remembering(bench.kept):
                failed += _measure(bench, batch)
            done += len(batch)
            minutes = (time.perf_counter() - started) / done * (total - done) / 60
            title = f"{batch[0].defence}{' placebo' * batch[0].placebo}"
            say(f"defences: {done} of {total} ({title}), about {minutes:.1f} min left")
    return failed


def _nothing_to_remove(point: Defended, folder: Path) -> str | None:
    """Why a cell without a backdoor is left out; None where it has one. Detectors are asked about all adapters."""
    record = store.read(point.cell, folder)
    if record is None or point.resolved.moment == "detect":
        return None
    condition = attacks.info(point.cell.attack).headline
    rates = [
        metric["value"] for metric in record["metrics"]
        if (metric["subject"], metric["condition"], metric["metric"]) == (POISONED, condition, "asr_payload")
    ]  # fmt: skip
    if rates and rates[0] >= FIRES:
        return None
    return (
        f"{point.cell.attack} left no backdoor that works on more than half of the inputs, so there is none to remove."
    )


def _measure(bench: DefenceBench, points: Sequence[Defended]) -> list[tuple[Defended, str]]:
    """Points of one defence with one setting. One that fails takes no other with it."""
    measure, failed = MEASURES[points[0].resolved.moment], []
    try:
        measure(bench, points)
        return []
    except Exception as error:  # a defence of somebody else may raise whatever comes up
        if len(points) == 1:
            return [(points[0], _why(error))]
    for point in points:
        if not records.has(point, bench.folder):
            try:
                measure(bench, [point])
            except Exception as error:
                failed.append((point, _why(error)))
    return failed


def _why(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    origin = traceback.extract_tb(error.__traceback__)[-1]
    return f"{in_words(error)} ({origin.filename}, line {origin.lineno})"


def check_adapters(points: Sequence[Defended], folder: Path, to_run: Collection[str]) -> None:
    """InputError where a cell that is to be defended has its record and no adapter. to_run: run_ids of cells that are
    run first.
    """
    for point in points:
        if point.cell.run_id in to_run or point.skip_reason or _nothing_to_remove(point, folder):
            continue
        if missing := [cell for cell in (point.cell, point.cell.control) if not store.adapter(cell, folder)]:
            raise InputError(lacks_adapter(missing[0], folder))


# ---------------------------------------------------------------- defences that give a new adapter


def _repairs(bench: DefenceBench, points: Sequence[Defended]) -> None:
    """Repair the points and their controls, all at once where the defence can do that."""
    defence, seed, started = points[0].resolved, points[0].seed, time.perf_counter()
    controls = [point.cell.control for point in points if not point.relearn]
    cells = {cell.run_id: cell for cell in (*(point.cell for point in points), *controls)}
    missing = [cell for cell in cells.values() if (cell.run_id, "repaired") not in bench.made]
    seconds_each = 0.0
    if defence.info.many and missing:
        adapters = [bench.adapter(cell) for cell in missing]
        repaired = defence.repair_many(bench.bench.victim, adapters, bench.clean, seed)
        bench.made |= {(cell.run_id, "repaired"): adapter for cell, adapter in zip(missing, repaired, strict=True)}
        seconds_each = (time.perf_counter() - started) / len(missing)
    if points[0].relearn:
        _relearn(bench, points)
    else:
        _ask_again(bench, points, _repaired, seconds_each)


def _repaired(bench: DefenceBench, point: Defended, cell: Cell) -> Any:
    defence, args = point.resolved, (bench.bench.victim, bench.adapter(cell), bench.clean)
    adapter = bench.once((cell.run_id, "repaired"), lambda: defence.repair(*args, seed=point.seed))
    return defence.placebo(adapter, *args, seed=point.seed) if point.placebo else adapter


def _relearn(bench: DefenceBench, points: Sequence[Defended]) -> None:
    """Tune the repaired points on, and ask them with the trigger and without; and the clean-tuned controls, as they
    are, with the same rows.
    """
    from bvlm_utils.defences import relearn

    for point in points:
        started, questions = time.perf_counter(), questions_of(bench.bench, point.cell)[:2]
        args = (relearn.rows(*bench.training(point.cell), point.relearn, point.seed), point.cell)
        adapter = relearn.tuned_on(bench.bench.victim, _repaired(bench, point, point.cell), *args)
        answers = {POISONED: bench.way.ask([questions], [adapter])[0]}
        seconds, key = time.perf_counter() - started, (point.cell.run_id, point.relearn, point.seed)
        if key not in bench.never:
            control = relearn.tuned_on(bench.bench.victim, bench.adapter(point.cell.control), *args)
            bench.never[key] = bench.way.ask([questions], [control])[0]
        _keep(bench, point, questions, answers | {CONTROL: bench.never[key]}, seconds, [])


def _trainings(bench: DefenceBench, points: Sequence[Defended]) -> None:
    """Train the points and their controls again, all at once, on rows that the defence has changed."""
    from bvlm_utils.train import grouped

    started, placebo = time.perf_counter(), points[0].placebo
    cells = {cell.run_id: cell for point in points for cell in (point.cell, point.cell.control)}
    missing = [cell for cell in cells.values() if (cell.run_id, "trained", placebo) not in bench.made]
    jobs = [_job(bench, points[0], cell) for cell in missing]
    adapters = grouped.finetune_group(bench.bench.victim, jobs) if jobs else []
    bench.made |= {(cell.run_id, "trained", placebo): adapter for cell, adapter in zip(missing, adapters, strict=True)}
    seconds_each = (time.perf_counter() - started) / max(1, len(missing))
    _ask_again(bench, points, lambda bench, point, cell: bench.made[cell.run_id, "trained", placebo], seconds_each)


def _job(bench: DefenceBench, point: Defended, cell: Cell) -> Any:
    """The training of a cell or of its control, on rows that the defence or its placebo has changed."""
    from bvlm_utils.train import grouped
    from bvlm_utils.train.loop import TrainRow

    args = (bench.bench.victim, _training_rows(bench, point, cell))
    rows = bench.once((cell.run_id, "changed"), lambda: point.resolved.change(*args, seed=point.seed))
    if point.placebo:
        rows = point.resolved.placebo(rows, *args, seed=point.seed)
    columns = zip(rows.prompts, rows.answers, rows.feature_rows.tolist(), strict=True)
    return grouped.GroupJob([TrainRow(*row) for row in columns], rows.features, cell.train, cell.seed)


def _training_rows(bench: DefenceBench, point: Defended, cell: Cell) -> Rows:
    """The rows that a cell or its control was tuned on, with pictures, or with scores where the defence drops rows."""
    setting = point.resolved.info.scored_by
    rows, truth = bench.training(cell, pictures=not setting)
    if not setting:
        return rows
    by = point.resolved.params[setting]
    if by == "truth":
        return replace(rows, scores=truth.astype(float))
    args = (bench.bench.victim, bench.adapter(cell), rows)
    scores = bench.once((cell.run_id, "scores", by), lambda: get(by).scores(*args, seed=point.seed))
    return replace(rows, scores=scores)


def _ask_again(
    bench: DefenceBench,
    points: Sequence[Defended],
    make: Callable[[DefenceBench, Defended, Cell], Any],
    seconds_each: float = 0.0,
) -> None:
    """Make an adapter of each point, and ask all of them together what the cells were asked.

    Their clean-tuned controls are asked once for all points, and without triggers. seconds_each: what each point has
    cost already.
    """
    adapters, all_questions, costs = [], [], []
    controls: dict[str, tuple[Any, list[Question]]] = {}
    for point in points:
        started = time.perf_counter()
        adapters.append(make(bench, point, point.cell))
        costs.append(seconds_each + time.perf_counter() - started)
        all_questions.append(questions_of(bench.bench, point.cell))
        control = point.cell.control
        adapter = bench.once((control.run_id, point.placebo), lambda point=point, c=control: make(bench, point, c))
        plain = [question for question in all_questions[-1] if question.condition == "clean"]
        controls[control.run_id] = (adapter, [*controls.get(control.run_id, (None, []))[1], *plain])
    pairs = list(controls.values())
    all_answers = bench.way.ask([*all_questions, *(q for _, q in pairs)], [*adapters, *(a for a, _ in pairs)])
    by_control = dict(zip(controls, all_answers[len(points) :], strict=True))
    for point, questions, answers, seconds in zip(points, all_questions, all_answers, costs, strict=False):
        _keep(bench, point, questions, {POISONED: answers, CONTROL: by_control[point.cell.control.run_id]}, seconds, [])


def _keep(
    bench: DefenceBench,
    point: Defended,
    questions: Sequence[Question],
    answers: dict[str, dict[str, list[str]]],
    seconds: float,
    other_numbers: Sequence[dict[str, Any]],
) -> None:
    """Judge what a defended model and its defended control said, and write the record."""
    cell, test = point.cell, bench.bench.rows["test"]
    threat = cell.resolved_threat
    clean_key, judged = questions[0].key(bench.bench), [True] * len(questions[0].positions)
    if threat.judged_where:
        undefended = group.known_answers(bench.way, cell, questions[:1], bench.folder)
        judged = judge.judged_rows(threat, undefended["base"][clean_key], undefended["control"][clean_key])
    frames, unit = [], ""
    for subject, by_question in answers.items():
        for question in (question for question in questions if question.key(bench.bench) in by_question):
            samples = [test[position] for position in question.positions]
            texts = by_question[question.key(bench.bench)]
            if question.part == "utility":
                frame, unit = judge.grade(subject, samples, texts)
            elif question.part == "skill":
                frame = judge.judge_skill(cell.resolved_skill, subject, samples, texts)
            else:
                frame = judge.judge(threat, subject, question.condition, samples, question.prompts, texts, judged)
            frames.append(frame)
    frame = pd.concat(frames, ignore_index=True)
    sample = test[questions[0].positions[0]]
    numbers = judge.measure(frame, unit, judge.keeps_answer(threat, sample), threat.breaks_refusals)
    before = store.responses(cell, bench.folder)
    numbers = [with_rows(number, frame) for number in numbers] + changes(frame, before) + list(other_numbers)
    records.write(point, bench.folder, {"status": "done", "numbers": numbers, "seconds": round(seconds, 3)})


# ---------------------------------------------------------------- defences that find something


def _inferences(bench: DefenceBench, points: Sequence[Defended]) -> None:
    """Answers under the defence, and how well its suspicion tells triggered from clean inputs."""
    for point in points:
        started = time.perf_counter()
        questions = questions_of(bench.bench, point.cell)
        answers, suspicion, numbers = {POISONED: {}, CONTROL: {}}, {POISONED: [], CONTROL: []}, []
        for subject, cell in ((POISONED, point.cell), (CONTROL, point.cell.control)):
            for question in questions:
                answered = _answered(bench, point, cell, question)
                answers[subject][question.key(bench.bench)] = answered.answers
                suspicion[subject].append(answered.suspicion)
                if question.part == "attack":
                    mean = (float(answered.changed.mean()), None, None)
                    numbers.append(number(subject, question.condition, "changed", mean, len(answered.changed)))
                    if answered.alarms is not None and not point.placebo:
                        numbers.append(share(subject, question.condition, "alarms", answered.alarms))
        numbers += [
            number
            for subject, (clean, triggered, *_) in suspicion.items()
            for number in told_apart(subject, questions[1].condition, triggered, clean)
        ]
        _keep(bench, point, questions, answers, (time.perf_counter() - started) / 2, numbers)


def _answered(bench: DefenceBench, point: Defended, cell: Cell, question: Question) -> Answered:
    args = (bench.bench.victim, bench.adapter(cell), bench.inputs(question), bench.clean)
    key = (cell.run_id, question.key(bench.bench))
    answered = bench.once(key, lambda: point.resolved.answer(*args, seed=point.seed))
    if not point.placebo:
        return answered
    return bench.once((*key, "placebo"), lambda: point.resolved.placebo(answered, *args, seed=point.seed))


MEASURES = {
    "repair": _repairs,
    "training": _trainings,
    "inference": _inferences,
    "data": searching.rows,
    "detect": searching.adapters,
}
