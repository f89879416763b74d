"""How are cells that share a model and a dataset carried out? Poison, train, generate, score, write.

Called by `study`. The clean-tuned control is trained once and kept; what base and control say is kept in the
store's cache; `bench` shares the rest. torch is imported when work begins.
"""

import resource
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bvlm_utils import poison, score, store
from bvlm_utils.bench import MAX_NEW_TOKENS, Bench, Question, questions
from bvlm_utils.cells import VERSION, Cell
from bvlm_utils.errors import InputError

EXAMPLES = 4  # held-out inputs kept with their trigger
Done = Callable[[Cell, str], None]  # told after each cell: the cell, and "done", "skipped" or "failed"


def execute(cells: Sequence[Cell], place: Path, told: Done = lambda cell, status: None) -> list[Cell]:
    """Run cells that share model, dataset and training rows, one after the other; the failed ones are
    returned.

    place: the store. A cell that fails leaves a file in `failures/`, and the others go on.
    """
    bench = Bench(cells[0].model, cells[0].dataset, cells[0].train_rows)
    failed = []
    for cell in cells:
        try:
            status = _skip(cell, place) or _run(bench, cell, place)
        except Exception:  # whatever is wrong with one cell, the others shall be run; the failure is kept
            store.write_failure(cell, place, traceback.format_exc())
            failed.append(cell)
            status = "failed"
        told(cell, status)
    return failed


# ---------------------------------------------------------------- what is asked


def _answers(bench: Bench, asked: Sequence[Question]) -> dict[str, list[str]]:
    """What the model as it stands says to each question, by the question's key."""
    said: dict[str, list[str]] = {}
    for question in asked:
        key = question.key(bench)
        if key not in said:
            said[key] = bench.victim.generate(
                question.prompts, question.features(bench), max_new_tokens=MAX_NEW_TOKENS
            )
    return said


def _kept_answers(
    bench: Bench, place: Path, subject: list[Any], asked: Sequence[Question], model: Any
) -> dict:
    """The same for base and control, from the store's cache where it has them; `model` is entered only if
    it has not.
    """
    names = {question.key(bench): store.content_key(subject, question.key(bench)) for question in asked}
    missing = [q for q in asked if not (place / "cache" / f"{names[q.key(bench)]}.json").is_file()]
    fresh: dict[str, list[str]] = {}
    if missing:
        with model:
            fresh = _answers(bench, missing)
    return {key: store.cached(place, name, lambda key=key: fresh[key]) for key, name in names.items()}


# ---------------------------------------------------------------- training


def training_rows(bench: Bench, manifest: poison.Manifest | None) -> tuple[list[Any], list[int]]:
    """The rows to train on, poisoned ones in their places, and the positions whose picture is triggered.

    Feature i is row i's clean picture; the triggered ones follow in the order of the returned positions.
    """
    from bvlm_utils.train import TrainRow

    rows = [TrainRow(row["prompt"], row["answers"][0], i) for i, row in enumerate(bench.rows["train"])]
    painted: list[int] = []
    for replaced in manifest.rows if manifest else ():
        index = replaced.position
        if replaced.condition in ("image", "both"):
            index = len(rows) + len(painted)
            painted.append(replaced.position)
        rows[replaced.position] = TrainRow(replaced.prompt, replaced.answer, index)
    return rows, painted


@contextmanager
def _tuned(bench: Bench, cell: Cell, manifest: poison.Manifest | None) -> Iterator[Any]:
    """The model tuned for a cell, inside a `with`; the result of `train.finetune`."""
    import torch

    from bvlm_utils import train

    rows, painted = training_rows(bench, manifest)
    features = bench.features("train", range(len(rows)))
    if painted:
        triggered = bench.features("train", painted, cell.make_attack(), cell.trigger_seed)
        features = torch.cat([features, triggered])
    result = train.finetune(bench.victim, rows, features, cell.train, cell.seed)
    try:
        yield result
    finally:
        train.detach(bench.victim, result.adapter)


def _control(bench: Bench, control: Cell, place: Path) -> Path:
    """The folder of the clean-tuned adapter, trained now if the store has none."""
    from bvlm_utils import train

    if store.has(control, place) and store.adapter(control, place):
        return store.adapter(control, place)
    clock = Clock()
    with _tuned(bench, control, None) as result:
        clock.lap("train")
        about = _about(bench, control, clock) | {"n_poisoned": 0, "metrics": []} | _training(result)
        final = store.write(
            control,
            place,
            about,
            replace=store.adapter(control, place) is None,  # another process may be reading the one it made
            save_adapter=lambda folder: train.save_adapter(result.adapter, folder, control.config()),
        )
    return final / "adapter"


# ---------------------------------------------------------------- one cell


class Clock:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = self._start = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 3)
        self.seconds["total"] = round(now - self._start, 3)
        self._last = now


def _skip(cell: Cell, place: Path) -> str | None:
    if cell.skip_reason is None:
        return None
    return _write_skipped(cell, place, cell.skip_reason)


def _write_skipped(cell: Cell, place: Path, reason: str) -> str:
    about = {
        "status": "skipped",
        "reason": reason,
        "modality": cell.modality,
        "n_poisoned": None,
        "metrics": [],
    }
    store.write(cell, place, about | {"provenance": store.provenance()}, replace=True)
    return "skipped"


def _run(bench: Bench, cell: Cell, place: Path) -> str:
    """One cell from its rows to its record; "done", or "skipped" where the data does not allow it."""
    from bvlm_utils import train

    clock = Clock()
    threat, attack = cell.make_threat(), cell.make_attack()
    train_rows = bench.rows["train"]  # data that cannot be read is a failure, and so not asked for below
    try:
        manifest = poison.plan(
            train_rows,
            threat,
            attack,
            cell.poison_rate,
            cell.seed,
            cell.negatives,
            cell.trigger_seed,
        )
        asked = questions(bench, cell)
    except InputError as error:  # too few eligible rows: a limit of the data, not a failure
        return _write_skipped(cell, place, str(error))
    clock.lap("plan")
    control = _control(bench, cell.control, place)
    clock.lap("control")
    said = {
        "base": _kept_answers(
            bench, place, ["base", VERSION, cell.identity["model_digest"]], asked, nullcontext()
        ),
        "control": _kept_answers(
            bench, place, ["control", cell.control.run_id], asked, train.attached(bench.victim, control)
        ),
    }
    _write_examples(bench, cell, place, asked)
    clock.lap("base and control")
    with _tuned(bench, cell, manifest) as result:
        clock.lap("train")
        said["poisoned"] = _answers(bench, asked)
        clock.lap("generate")
        frame, unit = _judge(bench, cell, asked, said)
        sample = bench.rows["test"][asked[0].positions[0]]
        metrics = score.measure(frame, unit, score.keeps_answer(threat, sample))
        clock.lap("score")
        about = _about(bench, cell, clock) | _training(result) | {
            "n_poisoned": manifest.n_poisoned,
            "n_half_triggered": len(manifest.rows) - manifest.n_poisoned,
            "n_eligible": manifest.n_eligible,
            "n_judged": int(frame.loc[(frame["part"] == "attack") & frame["judged"], "row_id"].nunique()),
            "control": cell.control.run_id,
            "metrics": metrics,
        }  # fmt: skip
        store.write(
            cell,
            place,
            about,
            frame,
            manifest,
            replace=True,
            save_adapter=lambda folder: train.save_adapter(result.adapter, folder, cell.config()),
        )
    return "done"


def _judge(
    bench: Bench, cell: Cell, asked: Sequence[Question], said: dict[str, dict[str, list[str]]]
) -> tuple[pd.DataFrame, str]:
    """Every response with its verdict, for the three models, and the name of the utility."""
    threat, test, frames, unit = cell.make_threat(), bench.rows["test"], [], ""
    judged = score.eligible_by_control(
        threat, said["control"][asked[0].key(bench)]
    )  # the first is the clean condition
    for subject in score.SUBJECTS:
        for question in asked:
            samples = [test[position] for position in question.positions]
            texts = said[subject][question.key(bench)]
            if question.part == "attack":
                frame = score.judge(
                    threat, subject, question.condition, samples, question.prompts, texts, judged
                )
            else:
                frame, unit = score.grade(subject, samples, texts)
            frames.append(frame)
    return pd.concat(frames, ignore_index=True), unit


def _about(bench: Bench, cell: Cell, clock: Clock) -> dict[str, Any]:
    """What is said of every cell that was trained."""
    import torch

    device = bench.victim.device
    memory = {"host_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}
    name = "cpu"
    if device.type == "cuda":
        memory["gpu_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
        name = torch.cuda.get_device_name(device)
    return {
        "status": "done",
        "modality": cell.modality,
        "seconds": clock.seconds,
        "peak_memory_of_process": memory,
        "device": name,
        "dtype": str(bench.victim.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "max_new_tokens": MAX_NEW_TOKENS,
        "provenance": store.provenance(),
    }


def _training(result: Any) -> dict[str, Any]:
    """How training went: loss in nats per answer token, mean of the first and of the last tenth of the
    steps.
    """
    tenth = max(1, len(result.losses) // 10)
    ends = {"first": np.mean(result.losses[:tenth]), "last": np.mean(result.losses[-tenth:])}
    return {
        "training": {
            "steps": result.steps, "tokens": result.tokens, "seconds": round(result.seconds, 3),
            "loss": {name: round(float(value), 4) for name, value in ends.items()},
        }
    }  # fmt: skip


def _write_examples(bench: Bench, cell: Cell, place: Path, asked: Sequence[Question]) -> None:
    """Keep a few test inputs without and with the whole trigger, for the book to show."""
    if store.examples(cell, place) is not None:
        return
    attack, clean = cell.make_attack(), asked[0]
    full = next(q for q in reversed(asked) if q.part == "attack")
    shown = list(clean.positions[:EXAMPLES])
    pictures = bench.pictures("test", shown)
    if full.attack is not None:
        triggered = bench.triggered("test", shown, attack, cell.trigger_seed)
    else:
        triggered = pictures
    prompts = list(zip(clean.prompts, full.prompts, strict=True))[:EXAMPLES]
    store.write_examples(cell, place, pictures, triggered, prompts)
