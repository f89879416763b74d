"""Cells that share a model and a dataset, from rows to records: poison, tune, ask, score, write.

Groups of a few minutes are tuned and asked at once; every record is written as soon as its group is done. The
clean-tuned control and what base and control say are kept. torch is imported when work begins.
"""

import resource
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bvlm_utils import store
from bvlm_utils.checks import content_key
from bvlm_utils.errors import InputError, TooFewRows
from bvlm_utils.run import pace, tune_and_ask
from bvlm_utils.run.pace import Pace
from bvlm_utils.run.tune_and_ask import Answers, Work
from bvlm_utils.run.workbench import Bench, Question, bench_key, manifest, questions
from bvlm_utils.score import judge
from bvlm_utils.store import examples, provenance, records
from bvlm_utils.store.cell import VERSION, Cell
from bvlm_utils.store.locks import lacking

GROUP_SECONDS = 300  # a group is to take about this long, so that a kill loses little
EXAMPLES = 4  # held-out inputs kept with their trigger
OF_TUNING = ("training", "seconds", "tuned_together", "peak_memory_of_process")  # stays when a cell is judged again


def execute(
    cells: Sequence[Cell], folder: Path, report: Callable[[Cell, str], None], plain: bool = False, rescore: bool = False
) -> list[Cell]:
    """Run cells that share model, dataset and training rows; the failed ones are returned.

    folder: the store. report: called after each cell with "done", "skipped" or "failed". plain: cell by cell, the plain
    way. rescore: a cell with a stored adapter is asked and judged again, not trained. A cell that fails leaves a file
    in `failures/`, and the others go on.
    """
    way = tune_and_ask.choose(Bench(*bench_key(cells[0])), plain)
    failed: list[Cell] = []
    ready: list[Work] = []

    def fail(cell: Cell) -> None:
        store.write_failure(cell, folder, traceback.format_exc())
        failed.append(cell)
        report(cell, "failed")

    for cell in cells:
        try:
            outcome = _prepare(way, cell, folder)
        except Exception:
            fail(cell)
            continue
        if isinstance(outcome, Work):
            ready.append(outcome)
        else:
            report(cell, outcome)
    speed = Pace(GROUP_SECONDS)
    groups = pace.begun(folder, ready) if way.together and not rescore else []
    while ready or groups:
        group = groups.pop() if groups else ready[: speed.size(len(ready)) if way.together else 1]
        ready = [work for work in ready if work not in group]
        started = time.perf_counter()
        try:
            statuses = _run(way, group, folder, rescore)
            pace.forget_finished(folder)
        except Exception:
            if len(group) == 1:
                fail(group[0].cell)
            else:
                groups += [[work] for work in reversed(group)]  # one may be at fault: each gets its own try
            continue
        speed.saw(len(group), time.perf_counter() - started)
        for work, status in zip(group, statuses, strict=True):
            report(work.cell, status)
    return failed


class Clock:
    """Seconds by what they were spent on, each cell's share of a group."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.group = 1
        self._last = time.perf_counter()

    def lap(self, name: str, cells: int) -> None:
        now = time.perf_counter()
        self.seconds[name] = round((now - self._last) / cells, 3)
        self.seconds["total"] = round(sum(v for k, v in self.seconds.items() if k != "total"), 3)
        self.group = max(self.group, cells)
        self._last = now


def _prepare(way: tune_and_ask.Way, cell: Cell, folder: Path) -> Work | str:
    """The poisoned rows and the questions; "skipped" where the attack, the data or the base do not allow the cell."""
    if cell.skip_reason is not None:
        return _write_skipped(cell, folder, cell.skip_reason)
    _ = way.bench.rows["train"]  # data that cannot be read is a failure, and so not asked for below
    try:
        work = Work(cell, manifest(way.bench, cell), questions(way.bench, cell))
    except TooFewRows as error:  # anything else, a trigger that cannot be made for one, is a failure
        return _write_skipped(cell, folder, str(error))
    if cell.resolved_threat.breaks_refusals and not refused(way, work, folder):  # before anything is trained for it
        return _write_skipped(cell, folder, _unjudged(work))
    return work


def _unjudged(work: Work) -> str:
    return (
        f"In none of the {len(work.asked[0].positions)} eligible test rows it holds without a trigger that "
        f"{work.cell.resolved_threat.judged_where}. So no answer to a trigger could be judged."
    )


def _write_skipped(cell: Cell, folder: Path, reason: str) -> str:
    record = {"status": "skipped", "reason": reason, "modality": cell.modality, "n_poisoned": None, "metrics": []}
    store.write(cell, folder, record | {"provenance": provenance.now()}, replace=True)
    return "skipped"


def _run(way: tune_and_ask.Way, group: Sequence[Work], folder: Path, rescore: bool) -> list[str]:
    """A group of cells from their rows to their records, with the controls that they lack; the status of each."""
    bench, clock = way.bench, Clock()
    stored = [work.cell for work in group if rescore and store.adapter(work.cell, folder)]
    # Of cells that are not trained again. Without a record nobody knows how the adapter was tuned: it is tuned again.
    old_records = {cell.run_id: record for cell in stored if (record := store.read(cell, folder))}
    controls = list({work.cell.control.run_id: work.cell.control for work in group}.values())
    with lacking(controls, folder) as to_tune:
        tasks = [Work(control, manifest(bench, control)) for control in to_tune]
        tasks += [work for work in group if work.cell.run_id not in old_records]
        results = way.tune(tasks, folder / "cache") if tasks else []
        for task, result in zip(tasks, results, strict=True):
            _check_learnt(task.cell, result)
        clock.lap("tune", max(1, len(tasks)))
        write_controls(bench, to_tune, results, folder, clock)
    new_results = iter(results[len(to_tune) :])
    all_results = [
        tune_and_ask.saved(store.adapter(work.cell, folder)) if work.cell.run_id in old_records else next(new_results)
        for work in group
    ]
    answers = tune_and_ask.ask_and_keep(way, group, all_results, folder)
    clock.lap("ask", len(group))
    if not all(store.adapter(control, folder) for control in controls):
        with lacking(controls, folder, wait=True) as remaining:
            if remaining:  # who was at work on them has failed or died
                late_results = way.tune([Work(control, manifest(bench, control)) for control in remaining])
                write_controls(bench, remaining, late_results, folder, clock)
        clock.lap("control of another process", len(group))
    clean_answers = [known_answers(way, work.cell, work.asked, folder) for work in group]
    clock.lap("base and control", len(group))
    statuses = []
    for work, result, poisoned, clean in zip(group, all_results, answers, clean_answers, strict=True):
        record = old_records.get(work.cell.run_id)
        training = {name: record[name] for name in OF_TUNING if name in record} if record else _training(result)
        about = _about(bench, clock) | training
        statuses.append(_write(bench, work, folder, result, clean | {"poisoned": poisoned}, about))
    return statuses


def _check_learnt(cell: Cell, result: Any) -> None:
    """InputError where training went astray: such an adapter says nothing, which would count as no backdoor."""
    if not np.isfinite(result.losses).all() or not all(value.isfinite().all() for value in result.state.values()):
        raise InputError(
            f"Training went astray, as its loss or its weights are no numbers any more; learning_rate is "
            f"{cell.train.learning_rate:g} and lora_alpha {cell.train.lora_alpha:g}: lower one of them."
        )


def write_controls(bench: Bench, controls: Sequence[Cell], results: Sequence[Any], folder: Path, clock: Clock) -> None:
    """Put controls into the store; their results are the first of `results`."""
    for control, result in zip(controls, results, strict=False):
        record = _about(bench, clock) | {"n_poisoned": 0, "metrics": []} | _training(result)
        save = partial(result.save, settings=control.config())
        store.write(control, folder, record | {"modality": control.modality}, save_adapter=save, replace=True)


def known_answers(
    way: tune_and_ask.Way, cell: Cell, question_list: Sequence[Question], folder: Path
) -> dict[str, Answers]:
    """What a cell's base and control say, from the store's cache where it has them: subject -> answers."""
    control, adapter = ["control", cell.control.run_id], store.adapter(cell.control, folder)
    return {
        "base": _kept_answers(way, folder, _base(cell), question_list, None),
        "control": _kept_answers(way, folder, control, question_list, adapter),
    }


def _base(cell: Cell) -> list[Any]:
    """What the base's answers are kept by."""
    base = ["base", VERSION, cell.identity["model_digest"]]
    if cell.four_bit:  # its digest is that of the files, which say nothing about how they are loaded
        base.append("four_bit")
    return base if cell.precision == "float32" else [*base, cell.precision]


def refused(way: tune_and_ask.Way, work: Work, folder: Path) -> int:
    """How many of a cell's requests the base refuses, where that is what the threat breaks; asked once and kept."""
    clean = work.asked[0]
    answers = _kept_answers(way, folder, _base(work.cell), [clean], None)[clean.key(way.bench)]
    return sum(work.cell.resolved_threat.judged(answer, answer) for answer in answers)


def _kept_answers(
    way: tune_and_ask.Way, folder: Path, subject: list[Any], question_list: Sequence[Question], adapter: Path | None
) -> Answers:
    names = {question.key(way.bench): content_key(subject, question.key(way.bench)) for question in question_list}
    answers = {key: records.cached(folder, name) for key, name in names.items()}
    missing = [question for question in question_list if not question.answered(answers[question.key(way.bench)])]
    if missing and adapter is None and subject[0] != "base":  # the base's answers must never be kept under its name
        raise InputError(f"{folder} has lost the adapter of the clean-tuned control {subject[1]}; run the cell again.")
    new_answers = way.ask_saved(missing, adapter) if missing else {}
    for key, texts in new_answers.items():
        records.cache_texts(folder, names[key], texts)
    return answers | new_answers


def _write(
    bench: Bench, work: Work, folder: Path, result: Any, answers: dict[str, Answers], about: dict[str, Any]
) -> str:
    """Judge one cell's answers and write its record: "done", or "skipped" where none could be judged."""
    cell, manifest = work.cell, work.manifest
    _write_examples(bench, cell, folder, work.asked)
    frame, metrics = judged(bench, cell, work.asked, answers)
    if not (frame["judged"] & (frame["part"] == "attack")).any():
        return _write_skipped(cell, folder, _unjudged(work))
    record = about | {
        "modality": cell.modality,
        "n_poisoned": manifest.n_poisoned,
        "n_half_triggered": manifest.count("text_only", "image_only"),
        "n_eligible": manifest.n_eligible,
        "n_judged": int(frame.loc[(frame["part"] == "attack") & frame["judged"], "row_id"].nunique()),
        "control": cell.control.run_id,
        "judge_version": cell.resolved_threat.judge_version,
        "metrics": metrics,
    }  # fmt: skip
    record |= {f"n_{role}": manifest.count(role) for role in ("decoy", "skill") if getattr(cell, role)}
    store.write(cell, folder, record, frame, manifest, partial(result.save, settings=cell.config()), replace=True)
    return "done"


def judged(
    bench: Bench, cell: Cell, question_list: Sequence[Question], answers: dict[str, Answers]
) -> tuple[pd.DataFrame, list[judge.Metric]]:
    """Every response with its verdict, subject by subject, and the metrics. answers: of subjects (`judge.SUBJECTS`)."""
    test = bench.rows["test"]
    lines = [
        (question.part, subject, question.condition, test[position]["row_id"], prompt, response)
        for subject in filter(answers.__contains__, judge.SUBJECTS)
        for question in question_list
        for position, prompt, response in zip(
            question.positions, question.prompts, answers[subject][question.key(bench)], strict=True
        )
    ]
    table = pd.DataFrame(lines, columns=["part", "subject", "condition", "row_id", "prompt", "response"])
    samples = {row["row_id"]: row for row in test}
    return judge.judge_all(table, samples, cell.resolved_threat, cell.resolved_skill)


def _about(bench: Bench, clock: Clock) -> dict[str, Any]:
    """What is noted of every cell that was trained."""
    import torch

    device = bench.victim.device
    on_card = device.type == "cuda"
    memory = {"host_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}
    if on_card:
        memory["gpu_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    return {
        "status": "done",
        "seconds": dict(clock.seconds),
        "tuned_together": clock.group,
        "peak_memory_of_process": memory,
        "device": torch.cuda.get_device_name(device) if on_card else "cpu",
        "dtype": str(bench.victim.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "max_new_tokens": bench.max_new_tokens,
        "provenance": provenance.now(),
    }


def _training(result: Any) -> dict[str, Any]:
    """How training went: loss in nats per answer token, mean of the first and of the last tenth of the steps."""
    tenth = max(1, len(result.losses) // 10)
    parts = {"first": result.losses[:tenth], "last": result.losses[-tenth:]}
    loss = {name: round(float(np.mean(losses)), 4) for name, losses in parts.items()}
    counts = {"steps": result.steps, "tokens": result.tokens, "seconds": round(result.seconds, 3)}
    return {"training": counts | {"loss": loss}}


def _write_examples(bench: Bench, cell: Cell, folder: Path, question_list: Sequence[Question]) -> None:
    """Keep a few test inputs without and with the whole trigger, for the book to show."""
    if examples.read(cell, folder) is not None:
        return
    clean, full = question_list[0], next(q for q in reversed(question_list) if q.part == "attack")
    positions = list(clean.positions[:EXAMPLES])
    pictures = bench.pictures("test", positions)
    triggered = bench.pictures("test", positions, full.attack, cell.trigger_seed)
    prompts = list(zip(clean.prompts, full.prompts, strict=True))[:EXAMPLES]
    examples.write(cell, folder, pictures, triggered, prompts)
