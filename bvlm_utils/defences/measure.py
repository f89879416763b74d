"""The measuring of the defence grid: attacks' cells, their adapters, and what is left of them under a defence.

    defended = defences.defended(cells, ["shrink", "clean-fine-tuning"])
    table = defences.run(defended, store="local")

The cells have their records and adapters already (`study.run_cells`). Beside each poisoned model its clean-tuned
control is defended, too: what that costs is the price of a defence. Cells that share model, data and rows are measured
together: the clean rows and pictures are encoded once, and all repaired adapters answer in one decode.
"""

import time
import traceback
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bvlm_utils import attacks, store
from bvlm_utils.defences import again, records
from bvlm_utils.defences.bench import DefenceBench, lacks_adapter, questions_of
from bvlm_utils.defences.cell import Defended
from bvlm_utils.defences.numbers import CONTROL, POISONED, changes, number, told_apart, with_rows
from bvlm_utils.defences.rows import Answered
from bvlm_utils.errors import InputError, StudyError, in_words
from bvlm_utils.run import group
from bvlm_utils.run.progress import say
from bvlm_utils.run.workbench import Bench, Question, bench_key
from bvlm_utils.score import judge
from bvlm_utils.store.cell import Cell
from bvlm_utils.store.table import FIRES

TRAINING_ROWS = 2000  # of the training rows, the first so many are searched for poison
TESTS = ("asr", "asr_payload", "asr_published")  # whose rows are kept, so that tables can pair them


def run(wanted: Sequence[Defended], folder: str | Path | None = None, force: bool = False) -> pd.DataFrame:
    """The tidy table of exactly these points (`defences.records.COLUMNS`); what the store lacks is measured first.

    StudyError lists the points that failed, after all others were measured.
    """
    root = store.folder(folder)
    lacking = [one for one in wanted if force or not records.has(one, root)]
    if lacking:
        store.writable(folder)
        failed = execute(lacking, root)
        if failed:
            names = "\n".join(f"  {one.name}: {why}" for one, why in failed[:20])
            raise StudyError(f"{len(failed)} of {len(lacking)} defended cells failed:\n{names}")
    table = records.collect(root, relearnt=None)
    return table[table["name"].isin({one.name for one in wanted})].reset_index(drop=True)


def execute(wanted: Sequence[Defended], folder: Path) -> list[tuple[Defended, str]]:
    """Measure points, those that share a bench and a defence together; those that failed, with the reason."""
    failed: list[tuple[Defended, str]] = []
    batches: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Defended]]] = {}
    for one in wanted:
        if reason := one.skip_reason or _nothing_to_remove(one, folder):
            records.write(one, folder, {"status": "skipped", "reason": reason, "numbers": []})
            continue
        same = (one.defence, str(sorted(one.resolved.params.items())), one.seed, one.relearn, one.placebo)
        batches.setdefault(bench_key(one.cell), {}).setdefault(same, []).append(one)
    total, done = sum(len(part) for batch in batches.values() for part in batch.values()), 0
    started = time.perf_counter()
    for key, batch in batches.items():
        bench = DefenceBench(Bench(*key), folder)
        before = None
        for same, part in batch.items():
            if same[:3] != before:  # another defence, not the placebo of the same
                bench.made.clear()
                bench.kept.pop("pictures", None)  # each defence changes them in its own way
            before = same[:3]
            with again.remembering(bench.kept):
                failed += _measure(bench, part)
            done += len(part)
            left = (time.perf_counter() - started) / done * (total - done) / 60
            what = f"{part[0].defence}{' placebo' * part[0].placebo}"
            say(f"defences: {done} of {total} ({what}), about {left:.1f} min left")
    return failed


def _nothing_to_remove(one: Defended, folder: Path) -> str | None:
    """Why a cell without a backdoor is left out; None where it has one. Detectors are asked about all adapters."""
    found = store.read(one.cell, folder)
    if found is None or one.resolved.moment == "detect":
        return None
    whole = attacks.info(one.cell.attack).headline
    rates = [
        number["value"] for number in found["metrics"]
        if (number["subject"], number["condition"], number["metric"]) == (POISONED, whole, "asr_payload")
    ]  # fmt: skip
    if rates and rates[0] >= FIRES:
        return None
    return f"{one.cell.attack} left no backdoor that works on more than half of the inputs, so there is none to remove."


def _measure(bench: DefenceBench, part: Sequence[Defended]) -> list[tuple[Defended, str]]:
    """Points of one defence with one setting. One that fails takes no other with it."""
    measure, failed = MEASURES[part[0].resolved.moment], []
    try:
        measure(bench, part)
        return []
    except Exception as error:  # a defence of somebody else may raise whatever comes up
        if len(part) == 1:
            return [(part[0], _why(error))]
    for one in part:
        if not records.has(one, bench.folder):
            try:
                measure(bench, [one])
            except Exception as error:
                failed.append((one, _why(error)))
    return failed


def _why(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{in_words(error)} ({at.filename}, line {at.lineno})"


def check_adapters(wanted: Sequence[Defended], folder: Path, anew: Collection[str]) -> None:
    """InputError where a cell that is to be defended has its record and no adapter. anew: run_ids of cells that are run
    before.
    """
    for one in wanted:
        if one.cell.run_id in anew or one.skip_reason or _nothing_to_remove(one, folder):
            continue
        if lacking := [cell for cell in (one.cell, one.cell.control) if not store.adapter(cell, folder)]:
            raise InputError(lacks_adapter(lacking[0], folder))


# ---------------------------------------------------------------- defences that give a new adapter


def _repairs(bench: DefenceBench, part: Sequence[Defended]) -> None:
    """Repair the points and their controls, all at once where the defence can do that."""
    defence, seed, begun = part[0].resolved, part[0].seed, time.perf_counter()
    controls = [one.cell.control for one in part if not one.relearn]
    cells = {cell.run_id: cell for cell in (*(one.cell for one in part), *controls)}
    lacking = [cell for cell in cells.values() if (cell.run_id, "repaired") not in bench.made]
    shared = 0.0
    if defence.info.many and lacking:
        adapters = [bench.adapter(cell) for cell in lacking]
        found = defence.repair_many(bench.bench.victim, adapters, bench.clean, seed)
        bench.made |= {(cell.run_id, "repaired"): one for cell, one in zip(lacking, found, strict=True)}
        shared = (time.perf_counter() - begun) / len(lacking)
    if part[0].relearn:
        _relearn(bench, part)
    else:
        _ask_again(bench, part, _repaired, shared)


def _repaired(bench: DefenceBench, one: Defended, cell: Cell) -> Any:
    defence, given = one.resolved, (bench.bench.victim, bench.adapter(cell), bench.clean)
    found = bench.once((cell.run_id, "repaired"), lambda: defence.repair(*given, seed=one.seed))
    return defence.placebo(found, *given, seed=one.seed) if one.placebo else found


def _relearn(bench: DefenceBench, part: Sequence[Defended]) -> None:
    """Tune the repaired points on, and ask them with the trigger and without; and the clean-tuned controls, as they
    are, with the same rows.
    """
    from bvlm_utils.defences import relearn

    for one in part:
        begun, asked = time.perf_counter(), questions_of(bench.bench, one.cell)[:2]
        given = (relearn.rows(*bench.training(one.cell), one.relearn, one.seed), one.cell)
        ours = relearn.tuned_on(bench.bench.victim, _repaired(bench, one, one.cell), *given)
        answers = {POISONED: bench.way.ask([asked], [ours])[0]}
        seconds, same = time.perf_counter() - begun, (one.cell.run_id, one.relearn, one.seed)
        if same not in bench.never:
            theirs = relearn.tuned_on(bench.bench.victim, bench.adapter(one.cell.control), *given)
            bench.never[same] = bench.way.ask([asked], [theirs])[0]
        _keep(bench, one, asked, answers | {CONTROL: bench.never[same]}, seconds, [])


def _trainings(bench: DefenceBench, part: Sequence[Defended]) -> None:
    """Train the points and their controls again, all at once, on rows that the defence has changed."""
    from bvlm_utils.train import grouped

    begun, placebo = time.perf_counter(), part[0].placebo
    cells = {cell.run_id: cell for one in part for cell in (one.cell, one.cell.control)}
    lacking = [cell for cell in cells.values() if (cell.run_id, "trained", placebo) not in bench.made]
    jobs = [_job(bench, part[0], cell) for cell in lacking]
    found = grouped.finetune_group(bench.bench.victim, jobs) if jobs else []
    bench.made |= {(cell.run_id, "trained", placebo): one for cell, one in zip(lacking, found, strict=True)}
    shared = (time.perf_counter() - begun) / max(1, len(lacking))
    _ask_again(bench, part, lambda bench, one, cell: bench.made[cell.run_id, "trained", placebo], shared)


def _job(bench: DefenceBench, one: Defended, cell: Cell) -> Any:
    """The training of a cell or of its control, on rows that the defence or its placebo has changed."""
    from bvlm_utils.train import grouped
    from bvlm_utils.train.loop import TrainRow

    given = (bench.bench.victim, bench.training(cell, pictures=True)[0])
    rows = bench.once((cell.run_id, "changed"), lambda: one.resolved.change(*given, seed=one.seed))
    if one.placebo:
        rows = one.resolved.placebo(rows, *given, seed=one.seed)
    columns = zip(rows.prompts, rows.answers, rows.feature_rows.tolist(), strict=True)
    return grouped.GroupJob([TrainRow(*row) for row in columns], rows.features, cell.train, cell.seed)


def _ask_again(
    bench: DefenceBench,
    part: Sequence[Defended],
    make: Callable[[DefenceBench, Defended, Cell], Any],
    shared: float = 0.0,
) -> None:
    """Make an adapter of each point, and ask all of them together what the cells were asked.

    Their clean-tuned controls are asked once for all points, and without triggers. shared: seconds that each point has
    cost already.
    """
    adapters, asked, spent = [], [], []
    controls: dict[str, tuple[Any, list[Question]]] = {}
    for one in part:
        begun = time.perf_counter()
        adapters.append(make(bench, one, one.cell))
        spent.append(shared + time.perf_counter() - begun)
        asked.append(questions_of(bench.bench, one.cell))
        control = one.cell.control
        adapter = bench.once((control.run_id, one.placebo), lambda one=one, c=control: make(bench, one, c))
        plain = [question for question in asked[-1] if question.condition == "clean"]
        controls[control.run_id] = (adapter, [*controls.get(control.run_id, (None, []))[1], *plain])
    of_controls = list(controls.values())
    said = bench.way.ask([*asked, *(own for _, own in of_controls)], [*adapters, *(one for one, _ in of_controls)])
    of_control = dict(zip(controls, said[len(part) :], strict=True))
    for one, own, answers, seconds in zip(part, asked, said, spent, strict=False):
        _keep(bench, one, own, {POISONED: answers, CONTROL: of_control[one.cell.control.run_id]}, seconds, [])


def _keep(
    bench: DefenceBench,
    one: Defended,
    asked: Sequence[Question],
    answers: dict[str, dict[str, list[str]]],
    seconds: float,
    more: Sequence[dict[str, Any]],
) -> None:
    """Judge what a defended model and its defended control said, and write the record."""
    cell, test = one.cell, bench.bench.rows["test"]
    threat = cell.resolved_threat
    clean, counts = asked[0].key(bench.bench), [True] * len(asked[0].positions)
    if threat.judged_where:
        known = group.known_answers(bench.way, cell, asked[:1], bench.folder)
        counts = judge.judged_rows(threat, known["base"][clean], known["control"][clean])
    frames, unit = [], ""
    for subject, own in answers.items():
        for question in (question for question in asked if question.key(bench.bench) in own):
            samples = [test[position] for position in question.positions]
            texts = own[question.key(bench.bench)]
            if question.part == "utility":
                frame, unit = judge.grade(subject, samples, texts)
            elif question.part == "skill":
                frame = judge.judge_skill(cell.resolved_skill, subject, samples, texts)
            else:
                frame = judge.judge(threat, subject, question.condition, samples, question.prompts, texts, counts)
            frames.append(frame)
    frame = pd.concat(frames, ignore_index=True)
    sample = test[asked[0].positions[0]]
    numbers = judge.measure(frame, unit, judge.keeps_answer(threat, sample), threat.breaks_refusals)
    before = store.responses(cell, bench.folder)
    numbers = [with_rows(number, frame) for number in numbers] + changes(frame, before) + list(more)
    records.write(one, bench.folder, {"status": "done", "numbers": numbers, "seconds": round(seconds, 3)})


# ---------------------------------------------------------------- defences that find something


def _inferences(bench: DefenceBench, part: Sequence[Defended]) -> None:
    """Answers under the defence, and how well its suspicion tells triggered from clean inputs."""
    for one in part:
        begun = time.perf_counter()
        asked = questions_of(bench.bench, one.cell)
        answers, suspicion, more = {POISONED: {}, CONTROL: {}}, {POISONED: [], CONTROL: []}, []
        for subject, cell in ((POISONED, one.cell), (CONTROL, one.cell.control)):
            for question in asked:
                found = _answered(bench, one, cell, question)
                answers[subject][question.key(bench.bench)] = found.answers
                suspicion[subject].append(found.suspicion)
                if question.part == "attack":
                    mean = (float(found.changed.mean()), None, None)
                    more.append(number(subject, question.condition, "changed", mean, len(found.changed)))
        more += [
            number
            for subject, (clean, triggered, *_) in suspicion.items()
            for number in told_apart(subject, asked[1].condition, triggered, clean)
        ]
        _keep(bench, one, asked, answers, (time.perf_counter() - begun) / 2, more)


def _answered(bench: DefenceBench, one: Defended, cell: Cell, question: Question) -> Answered:
    given = (bench.bench.victim, bench.adapter(cell), bench.inputs(question), bench.clean)
    key = (cell.run_id, question.key(bench.bench))
    found = bench.once(key, lambda: one.resolved.answer(*given, seed=one.seed))
    if not one.placebo:
        return found
    return bench.once((*key, "placebo"), lambda: one.resolved.placebo(found, *given, seed=one.seed))


def _searches(bench: DefenceBench, part: Sequence[Defended]) -> None:
    """How well the scores of training rows tell poisoned from clean ones, all together and within a question kind."""
    for one in part:
        begun = time.perf_counter()
        rows, truth = bench.training(one.cell)
        rows, truth = rows.take(range(min(TRAINING_ROWS, len(rows)))), truth[:TRAINING_ROWS]
        given = (bench.bench.victim, bench.adapter(one.cell), rows)
        scores = _found(bench, one, one.cell, one.resolved.scores, given)
        numbers = told_apart(POISONED, "", scores[truth], scores[~truth])
        kinds = {kind for kind, is_poisoned in zip(rows.kinds, truth, strict=True) if is_poisoned}
        alike = np.array([kind in kinds for kind in rows.kinds]) & ~truth
        numbers += told_apart(POISONED, "same kind", scores[truth], scores[alike])
        seconds = round(time.perf_counter() - begun, 3)
        records.write(one, bench.folder, {"status": "done", "numbers": numbers, "seconds": seconds})


def _detections(bench: DefenceBench, part: Sequence[Defended]) -> None:
    """The score of the poisoned adapter and of its control; tables compare them over many adapters."""
    for one in part:
        begun, numbers = time.perf_counter(), []
        for subject, cell in ((POISONED, one.cell), (CONTROL, one.cell.control)):
            given = (bench.bench.victim, bench.adapter(cell), bench.clean)
            score = float(_found(bench, one, cell, one.resolved.score, given))
            numbers.append(number(subject, "", "score", (score, None, None), 1))
        seconds = round((time.perf_counter() - begun) / 2, 3)
        records.write(one, bench.folder, {"status": "done", "numbers": numbers, "seconds": seconds})


def _found(bench: DefenceBench, one: Defended, cell: Cell, find: Callable[..., Any], given: tuple[Any, ...]) -> Any:
    """What the defence (`find`) or its placebo says of a cell's adapter, computed once each."""
    found = bench.once((cell.run_id,), lambda: find(*given, seed=one.seed))
    if not one.placebo:
        return found
    return bench.once((cell.run_id, "placebo"), lambda: one.resolved.placebo(found, *given, seed=one.seed))


MEASURES = {
    "repair": _repairs,
    "training": _trainings,
    "inference": _inferences,
    "data": _searches,
    "detect": _detections,
}
