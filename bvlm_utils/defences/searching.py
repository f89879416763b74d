"""How well does a defence find poisoned training rows, and poisoned adapters? Two of the moments of `measure`."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bvlm_utils.defences import records
from bvlm_utils.defences.bench import DefenceBench
from bvlm_utils.defences.cell import Defended
from bvlm_utils.defences.numbers import CONTROL, POISONED, number, share, told_apart
from bvlm_utils.defences.rows import Rows
from bvlm_utils.store.cell import Cell

TRAINING_ROWS = 2000  # of the training rows, the first so many are searched for poison


def rows(bench: DefenceBench, points: Sequence[Defended]) -> None:
    """How well the scores of training rows tell poisoned from clean ones, all together and within a question kind."""
    for point in points:
        started = time.perf_counter()
        searched, truth = _searched(bench, point.cell)
        args = (bench.bench.victim, bench.adapter(point.cell), searched)
        scores = _found(bench, point, point.cell, point.resolved.scores, args)
        numbers = told_apart(POISONED, "", scores[truth], scores[~truth])
        kinds = {kind for kind, is_poisoned in zip(searched.kinds, truth, strict=True) if is_poisoned}
        same_kind = np.array([kind in kinds for kind in searched.kinds]) & ~truth
        numbers += told_apart(POISONED, "same kind", scores[truth], scores[same_kind])
        seconds = round(time.perf_counter() - started, 3)
        if not point.placebo:
            numbers += _by_truth(point.resolved.info.flags_above, scores, truth) + _at_all(bench, point)
        records.write(point, bench.folder, {"status": "done", "numbers": numbers, "seconds": seconds})


def _searched(bench: DefenceBench, cell: Cell) -> tuple[Rows, np.ndarray]:
    """The first rows that a cell or a control was tuned on, and which of them are poisoned: (n,) bool."""
    training, truth = bench.training(cell)
    return training.take(range(min(TRAINING_ROWS, len(training)))), truth[:TRAINING_ROWS]


def _by_truth(above: float | None, scores: np.ndarray, truth: np.ndarray) -> list[dict[str, Any]]:
    """Of the poisoned and of the clean rows: the mean score, and the share that the paper's threshold flags."""
    numbers = []
    for name, part in {"poisoned rows": scores[truth], "clean rows": scores[~truth]}.items():
        if len(part):
            numbers.append(number(POISONED, name, "mean_score", (float(part.mean()), None, None), len(part)))
            numbers += [share(POISONED, name, "flagged", part > above)] if above is not None else []
    return numbers


def _at_all(bench: DefenceBench, point: Defended) -> list[dict[str, Any]]:
    """What speaks for poison among a cell's rows, and among those of its control, which have none."""
    if not point.resolved.info.at_all:
        return []
    numbers = []
    for subject, cell in ((POISONED, point.cell), (CONTROL, point.cell.control)):
        args = (bench.bench.victim, bench.adapter(cell), _searched(bench, cell)[0])
        score = bench.once((cell.run_id, "at all"), lambda args=args: point.resolved.at_all(*args, seed=point.seed))
        numbers.append(number(subject, "", "at_all", (score, None, None), 1))
    return numbers


def adapters(bench: DefenceBench, points: Sequence[Defended]) -> None:
    """The score of the poisoned adapter and of its control; tables compare them over many adapters."""
    for point in points:
        started, numbers = time.perf_counter(), []
        for subject, cell in ((POISONED, point.cell), (CONTROL, point.cell.control)):
            args = (bench.bench.victim, bench.adapter(cell), bench.clean)
            score = float(_found(bench, point, cell, point.resolved.score, args))
            numbers.append(number(subject, "", "score", (score, None, None), 1))
        seconds = round((time.perf_counter() - started) / 2, 3)
        records.write(point, bench.folder, {"status": "done", "numbers": numbers, "seconds": seconds})


def _found(bench: DefenceBench, point: Defended, cell: Cell, find: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """What the defence (`find`) or its placebo says of a cell's adapter, computed once each."""
    result = bench.once((cell.run_id,), lambda: find(*args, seed=point.seed))
    if not point.placebo:
        return result
    return bench.once((cell.run_id, "placebo"), lambda: point.resolved.placebo(result, *args, seed=point.seed))
