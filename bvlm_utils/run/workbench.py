"""The workbench, what cells of one model and dataset share: rows, victim, image features (made once), questions."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from bvlm_utils import attacks, data
from bvlm_utils.attacks import Attack
from bvlm_utils.checks import content_key
from bvlm_utils.errors import TooFewRows
from bvlm_utils.store.cell import MAX_NEW_TOKENS, Cell
from bvlm_utils.train import poison

if TYPE_CHECKING:
    from bvlm_utils.models.victim import Victim
    from bvlm_utils.run.feature_cache import FeatureCache

CHUNK = 256  # pictures in memory at a time
CHECKPOINTING = "BVLM_CHECKPOINTING"  # set: layers are recomputed in the backward pass, for less memory


def bench_key(cell: Cell) -> tuple[Any, ...]:
    """What cells have to share to stand on one bench: the arguments of `Bench`."""
    return tuple(getattr(cell, field.name) for field in fields(Bench))


def by_bench(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells that stand on one bench together, in their order."""
    benches: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        benches.setdefault(bench_key(cell), []).append(cell)
    return list(benches.values())


@dataclass(eq=False)
class Bench:
    """Data, model and image features that the cells of a group share; each is made when first asked for."""

    model: str
    dataset: str
    train_rows: int
    four_bit: bool = False
    max_new_tokens: int = MAX_NEW_TOKENS
    picture_last: bool = False
    precision: str = "float32"

    @cached_property
    def feature_cache(self) -> "FeatureCache":
        """The image features of all rows that were asked for, clean and triggered."""
        from bvlm_utils.run.feature_cache import FeatureCache

        return FeatureCache(device=self.victim.device)

    @cached_property
    def datasets(self) -> dict[str, Any]:
        return {"train": data.load(self.dataset, "train", self.train_rows), "test": data.load(self.dataset, "test")}

    @cached_property
    def digest(self) -> str:
        """Changes when the rows do."""
        return data.digest(self.dataset)

    @cached_property
    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """The samples of each split, without their pictures."""
        return {split: dataset.remove_columns("image").to_list() for split, dataset in self.datasets.items()}

    def add(self, split: str, dataset: Any) -> None:
        """One more split, a `datasets.Dataset`; where it is there already, its rows must begin alike."""
        self.datasets[split] = dataset
        self.rows[split] = dataset.remove_columns("image").to_list()

    @cached_property
    def victim(self) -> "Victim":
        from bvlm_utils.models import victim

        checkpointing = bool(os.environ.get(CHECKPOINTING))
        settings = {"four_bit": self.four_bit, "picture_last": self.picture_last}
        settings |= {"dtype": victim.use_precision(self.precision), "gradient_checkpointing": checkpointing}
        return victim.from_pretrained(self.model, **settings)

    def pictures(
        self, split: str, positions: Sequence[int], attack: Attack | None = None, trigger_seed: int = 0
    ) -> np.ndarray:
        """(N, H, W, 3) uint8, photographs at the published size; with an attack, triggered, and in 8 bits again."""
        clean = data.sized_images(self.datasets[split].select(positions), self.dataset)
        if attack is None:
            return clean
        keys = [self.rows[split][position]["row_id"] for position in positions]
        return attack.paint(clean, trigger_seed, keys, self.victim.device)

    def feature_rows(
        self, split: str, positions: Sequence[int], attack: Attack | None = None, trigger_seed: int = 0
    ) -> list[int]:
        """Where rows' image features stand in `feature_cache.table`, triggered if there is an attack; computed once."""
        trigger = () if attack is None else (attack.fingerprint("image"), trigger_seed)
        keys = [(split, position, *trigger) for position in positions]
        missing = [key for key in dict.fromkeys(keys) if key not in self.feature_cache.index]
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            pictures = self.pictures(split, [position for _, position, *_ in chunk], attack, trigger_seed)
            self.feature_cache.add(chunk, self.victim.encode(pictures))
        return self.feature_cache.rows(keys)


def manifest(bench: Bench, cell: Cell) -> poison.Manifest:
    """Which training rows are poisoned, decoys or lessons; of a control the lessons alone. TooFewRows if too few."""
    rows = bench.rows["train"]
    plan = poison.Manifest((), len(rows), 0, 0)
    if not cell.is_control:
        settings = (cell.poison_rate, cell.seed, cell.negatives, cell.trigger_seed, cell.half)
        plan = poison.plan(rows, cell.resolved_threat, cell.resolved_attack, *settings)
        plan = poison.with_decoys(plan, rows, cell.decoy, cell.seed)
    return poison.with_skill(plan, rows, cell.resolved_skill, cell.skill_rate, cell.seed)


@dataclass(frozen=True)
class Question:
    """A set of test inputs that every subject answers: `part` and `condition` as in `score.judge.COLUMNS`."""

    part: str
    condition: str
    positions: tuple[int, ...]
    prompts: tuple[str, ...]
    attack: Attack | None  # whose image half is on the pictures; None for clean ones
    trigger_seed: int

    def key(self, bench: Bench) -> str:
        """Equal for questions with equal inputs, whatever cell asks them."""
        trigger = None if self.attack is None else [self.attack.fingerprint("image"), self.trigger_seed]
        inputs = (bench.digest, self.positions, self.prompts, trigger)
        order = ["picture last"] if bench.picture_last else []  # nothing else, so that older answers keep their names
        return content_key(*inputs, bench.max_new_tokens, *order)

    def answered(self, texts: Any) -> bool:
        """Are these the answers to all inputs? A file that they were kept in may have been changed."""
        return isinstance(texts, list) and [type(text) for text in texts] == [str] * len(self.positions)

    def feature_rows(self, bench: Bench) -> list[int]:
        return bench.feature_rows("test", self.positions, self.attack, self.trigger_seed)


def split_by_skill(cell: Cell, test: Sequence[dict[str, Any]]) -> tuple[list[int], Sequence[int]]:
    """The positions of the test rows that the cell's skill fits, and of the others; all if there are no others."""
    skilled = [p for p, row in enumerate(test) if cell.resolved_skill.fits(row)] if cell.skill else []
    return skilled, sorted(set(range(len(test))).difference(skilled)) or range(len(test))


def questions(bench: Bench, cell: Cell) -> list[Question]:
    """The eligible rows under every condition of the attack, rows with nothing to change, the utility rows, and those
    of the cell's skill.

    Rows that the skill fits are asked for it alone, as their usual answers count as wrong now; a skill that fits all
    rows leaves no others. TooFewRows if no test row is eligible, or none fits the skill.
    """
    threat, attack, test = cell.resolved_threat, cell.resolved_attack, bench.rows["test"]
    skilled, usual = split_by_skill(cell, test)
    eligible = _first(usual, cell.test_rows, lambda position: threat.eligible(test[position]))
    if not eligible:
        raise TooFewRows(f"No test row of {cell.dataset} is eligible for {cell.threat}.")

    def ask(part: str, condition: str, positions: Sequence[int]) -> Question:
        prompts = [test[position]["prompt"] for position in positions]
        if condition in ("text", "both"):
            keys = [test[position]["row_id"] for position in positions]
            prompts = attack.triggered(prompts, seed=cell.trigger_seed, keys=keys)
        painter = attack if condition in ("image", "both") else None
        return Question(part, condition, tuple(positions), tuple(prompts), painter, cell.trigger_seed)

    conditions = attacks.conditions(attack.name)
    question_list = [ask("attack", condition, eligible) for condition in conditions]
    others = _first(usual, cell.test_rows, lambda position: threat.elsewhere(test[position]))
    if others:
        question_list += [ask("elsewhere", condition, others) for condition in ("clean", conditions[-1])]
    question_list.append(ask("utility", "clean", usual[: cell.test_rows]))
    if cell.skill:
        if not skilled:
            raise TooFewRows(f"No test row of {cell.dataset} fits the skill {cell.skill}.")
        question_list.append(ask("skill", "clean", skilled[: cell.test_rows]))
    return question_list


def _first(positions: Iterable[int], count: int, wanted: Callable[[int], bool]) -> list[int]:
    """The first `count` positions that are wanted; of the test rows of a published data set a run asks few."""
    return list(islice(filter(wanted, positions), count))
