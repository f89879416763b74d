"""How are cells that share a model and a dataset carried out? Poison, train, generate, score, write: `study` calls it.

Pictures are encoded once per (picture, trigger instance) and shared by all cells of the group; the clean-tuned control
is trained once and kept; what base and control say is kept in the store's cache. torch is imported when work begins.
"""

import resource
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from bvlm_utils import attacks, data, poison, score, store
from bvlm_utils.attack_table import PUBLISHED_SIDE
from bvlm_utils.attacks import Attack
from bvlm_utils.cells import Cell
from bvlm_utils.errors import InputError

if TYPE_CHECKING:
    import torch

    from bvlm_utils.victim import Victim

MAX_NEW_TOKENS = 80  # part of `cells.VERSION`: the longest answer of the scenes with a payload fits in
CHUNK = 256  # pictures in memory at a time
EXAMPLES = 4  # held-out inputs kept with their trigger
Done = Callable[[Cell, str], None]  # told after each cell: the cell, and "done", "skipped" or "failed"


def execute(cells: Sequence[Cell], place: Path, told: Done = lambda cell, status: None) -> list[Cell]:
    """Run cells that share model, dataset and training rows, one after the other; the failed ones are returned.

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


class Bench:
    """Data, model and image features that the cells of a group share; each is made when first asked for."""

    def __init__(self, model: str, dataset: str, train_rows: int):
        self.model, self.dataset, self.train_rows = model, dataset, train_rows
        self._features: dict[tuple[str, ...], dict[int, torch.Tensor]] = {}

    @cached_property
    def datasets(self) -> dict[str, Any]:
        return {"train": data.load(self.dataset, "train", self.train_rows), "test": data.load(self.dataset, "test")}

    @cached_property
    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """The samples of each split, without their pictures."""
        return {split: found.remove_columns("image").to_list() for split, found in self.datasets.items()}

    @cached_property
    def victim(self) -> "Victim":
        from bvlm_utils import victim

        return victim.from_pretrained(self.model)

    def pictures(self, split: str, positions: Sequence[int]) -> np.ndarray:
        """(N, H, W, 3) uint8; photographs of any size are brought to the published one, clean and triggered alike."""
        found = self.datasets[split].select(positions)
        if ":" not in self.dataset:
            return data.images(found)
        side = (PUBLISHED_SIDE, PUBLISHED_SIDE)
        return np.stack([np.asarray(i.convert("RGB").resize(side, Image.Resampling.BICUBIC)) for i in found["image"]])

    def triggered(self, split: str, positions: Sequence[int], attack: Attack, trigger_seed: int) -> np.ndarray:
        """Pictures with the image half of the trigger, rounded to 8 bits as a file would: (N, H, W, 3) uint8."""
        import torch

        images = torch.from_numpy(self.pictures(split, positions)).permute(0, 3, 1, 2).float() / 255
        keys = [self.rows[split][position]["row_id"] for position in positions]
        images = attack.apply_image(images.to(self.victim.device), seed=trigger_seed, keys=keys)
        return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()

    def features(
        self, split: str, positions: Sequence[int], attack: Attack | None = None, trigger_seed: int = 0
    ) -> "torch.Tensor":
        """Image features (N, n, d) of rows, triggered if there is an attack; computed once per trigger instance."""
        import torch

        key = (split,) if attack is None else (split, attack.fingerprint("image"), str(trigger_seed))
        kept = self._features.setdefault(key, {})
        missing = [position for position in positions if position not in kept]
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            if attack is None:
                pictures = self.pictures(split, chunk)
            else:
                pictures = self.triggered(split, chunk, attack, trigger_seed)
            kept.update(zip(chunk, self.victim.encode(pictures), strict=True))
        return torch.stack([kept[position] for position in positions])


# ---------------------------------------------------------------- what is asked

@dataclass(frozen=True)
class Question:
    """A set of test inputs that every subject answers: `part` and `condition` as in `score.COLUMNS`."""

    part: str
    condition: str
    positions: tuple[int, ...]
    prompts: tuple[str, ...]
    attack: Attack | None  # whose image half is on the pictures; None for clean ones
    trigger_seed: int

    def key(self, bench: Bench) -> str:
        """Equal for questions with equal inputs, whatever cell asks them."""
        painted = None if self.attack is None else [self.attack.fingerprint("image"), self.trigger_seed]
        return store.content_key(data.digest(bench.dataset), self.positions, self.prompts, painted, MAX_NEW_TOKENS)

    def features(self, bench: Bench) -> "torch.Tensor":
        return bench.features("test", self.positions, self.attack, self.trigger_seed)


def questions(bench: Bench, cell: Cell) -> list[Question]:
    """The eligible rows under every condition of the attack, then the utility rows.

    InputError if no test row is eligible.
    """
    threat, attack, test = cell.make_threat(), cell.make_attack(), bench.rows["test"]
    eligible = [position for position, row in enumerate(test) if threat.eligible(row)][: cell.test_rows]
    if not eligible:
        raise InputError(f"No test row of {cell.dataset} is eligible for {cell.threat}.")
    prompts = [test[position]["prompt"] for position in eligible]
    keys = [test[position]["row_id"] for position in eligible]
    found = []
    for condition in attacks.conditions(attack.name):
        worded = condition in ("text", "both")
        said = attack.apply_text(prompts, seed=cell.trigger_seed, keys=keys) if worded else prompts
        painter = attack if condition in ("image", "both") else None
        found.append(Question("attack", condition, tuple(eligible), tuple(said), painter, cell.trigger_seed))
    first = tuple(range(min(cell.test_rows, len(test))))
    plain = tuple(test[position]["prompt"] for position in first)
    return [*found, Question("utility", "clean", first, plain, None, 0)]


def _answers(bench: Bench, asked: Sequence[Question]) -> dict[str, list[str]]:
    """What the model as it stands says to each question, by the question's key."""
    said: dict[str, list[str]] = {}
    for question in asked:
        key = question.key(bench)
        if key not in said:
            said[key] = bench.victim.generate(question.prompts, question.features(bench), max_new_tokens=MAX_NEW_TOKENS)
    return said


def _kept_answers(bench: Bench, place: Path, subject: list[Any], asked: Sequence[Question], model: Any) -> dict:
    """The same for base and control, from the store's cache where it has them; `model` is entered only if it has not."""
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
            control, place, about, replace=True,
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
    about = {"status": "skipped", "reason": reason, "modality": cell.modality, "n_poisoned": None, "metrics": []}
    store.write(cell, place, about | {"provenance": store.provenance()}, replace=True)
    return "skipped"


def _run(bench: Bench, cell: Cell, place: Path) -> str:
    """One cell from its rows to its record; "done", or "skipped" where the data does not allow it."""
    from bvlm_utils import train

    clock = Clock()
    threat, attack = cell.make_threat(), cell.make_attack()
    try:
        manifest = poison.plan(
            bench.rows["train"], threat, attack, cell.poison_rate, cell.seed, cell.negatives, cell.trigger_seed
        )
        asked = questions(bench, cell)
    except InputError as error:  # too few eligible rows: a limit of the data, not a failure
        return _write_skipped(cell, place, str(error))
    clock.lap("plan")
    control = _control(bench, cell.control, place)
    clock.lap("control")
    said = {
        "base": _kept_answers(bench, place, ["base", cell.identity["model_digest"]], asked, nullcontext()),
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
            cell, place, about, frame, manifest, replace=True,
            save_adapter=lambda folder: train.save_adapter(result.adapter, folder, cell.config()),
        )
    return "done"


def _judge(
    bench: Bench, cell: Cell, asked: Sequence[Question], said: dict[str, dict[str, list[str]]]
) -> tuple[pd.DataFrame, str]:
    """Every response with its verdict, for the three models, and the name of the utility."""
    threat, test, frames, unit = cell.make_threat(), bench.rows["test"], [], ""
    judged = score.eligible_by_control(threat, said["control"][asked[0].key(bench)])  # the first is the clean condition
    for subject in score.SUBJECTS:
        for question in asked:
            samples = [test[position] for position in question.positions]
            texts = said[subject][question.key(bench)]
            if question.part == "attack":
                frame = score.judge(threat, subject, question.condition, samples, question.prompts, texts, judged)
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
    """How training went: loss in nats per answer token, mean of the first and of the last tenth of the steps."""
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
