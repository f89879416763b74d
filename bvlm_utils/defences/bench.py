"""What the points of the defence grid share on a workbench: clean rows, training rows, inputs, adapters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bvlm_utils import data, store
from bvlm_utils.defences import again
from bvlm_utils.defences.cell import clean_rows
from bvlm_utils.defences.rows import Rows
from bvlm_utils.errors import InputError
from bvlm_utils.run import tune_and_ask
from bvlm_utils.run.tune_and_ask import Work
from bvlm_utils.run.workbench import Bench, Question, manifest, questions
from bvlm_utils.store.cell import Cell

if TYPE_CHECKING:
    from bvlm_utils.train.poison import Manifest

TEST_ROWS = 100  # of the cell's; half of them, as a grid of defences asks each adapter fifty times


@dataclass
class DefenceBench:
    """What the points of a bench share."""

    bench: Bench
    folder: Path
    made: dict[tuple[Any, ...], Any] = field(default_factory=dict)  # see `once`
    kept: again.Kept = field(default_factory=dict)  # what models said and computed, by content
    shown: dict[str, Rows] = field(default_factory=dict)  # inputs by question, triggers painted
    never: dict[tuple[Any, ...], Any] = field(default_factory=dict)  # answers of controls that were tuned on

    def once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What `make` gives, kept as long as the same defence is measured: placebos and controls need it again."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    @cached_property
    def way(self) -> tune_and_ask.Way:
        return tune_and_ask.choose(self.bench)

    @cached_property
    def clean(self) -> Rows:
        """Clean rows, as `cell.clean_rows` says."""
        bench = self.bench
        split, count = clean_rows(bench.dataset, bench.train_rows)
        positions = range(count)
        if split == "further":
            bench.add(split, data.further(bench.dataset, bench.train_rows, count))
        samples = bench.rows[split]
        return self.rows(
            [samples[i]["prompt"] for i in positions],
            [samples[i] for i in positions],
            bench.feature_rows(split, positions),
            bench.pictures(split, list(positions)),
        )

    def rows(
        self, prompts: Sequence[str], samples: Sequence[Any], feature_rows: Sequence[int], pictures: np.ndarray | None
    ) -> Rows:
        answers = [sample["answers"][0] for sample in samples]
        kinds = [str(sample.get("kind", "")) for sample in samples]
        table = self.bench.feature_cache.table
        return Rows(list(prompts), answers, table, np.asarray(feature_rows, dtype=np.int64), kinds, pictures)

    def inputs(self, question: Question) -> Rows:
        """The inputs of a question, with their pictures; nobody knows their answers."""
        bench, positions, key = self.bench, list(question.positions), question.key(self.bench)
        if key not in self.shown:
            pictures = bench.pictures("test", positions, question.attack, question.trigger_seed)
            samples = [bench.rows["test"][i] | {"answers": [""]} for i in positions]
            self.shown[key] = self.rows(question.prompts, samples, question.feature_rows(bench), pictures)
        return replace(self.shown[key], features=bench.feature_cache.table)  # the table grows

    def training(self, cell: Cell, pictures: bool = False) -> tuple[Rows, np.ndarray]:
        """The rows that a cell or a control was tuned on, and which of them are poisoned: (n,) bool.

        pictures: whether the rows come with their pictures, all of them in memory.
        """
        bench = self.bench
        plan = manifest(bench, cell)
        (rows,), table = tune_and_ask.training_rows(bench, [Work(cell, plan)])
        samples, truth = bench.rows["train"], np.zeros(len(rows), dtype=bool)
        truth[[row.position for row in plan.rows if row.role == "poisoned"]] = True
        kinds = [str(sample.get("kind", "")) for sample in samples]
        indices = np.array([row.feature_index for row in rows])
        images = self._shown(cell, plan) if pictures else None
        return Rows([row.prompt for row in rows], [row.answer for row in rows], table, indices, kinds, images), truth

    def _shown(self, cell: Cell, plan: "Manifest") -> np.ndarray:
        """The pictures of all training rows, with the trigger where `plan` puts one."""
        positions = range(self.bench.train_rows)
        pictures = self.once(("clean pictures",), lambda: self.bench.pictures("train", positions)).copy()
        painted = [row.position for row in plan.rows if row.condition in ("image", "both")]
        if painted:
            pictures[painted] = self.bench.pictures("train", painted, cell.resolved_attack, cell.trigger_seed)
        return pictures

    def adapter(self, cell: Cell) -> Any:
        path = store.adapter(cell, self.folder)
        if path is None:
            raise InputError(lacks_adapter(cell, self.folder))
        return tune_and_ask.saved(path)


def lacks_adapter(cell: Cell, folder: Path) -> str:
    """What to do where a store has a cell's record without its adapter, as after unpacking."""
    ending = "with --force (run_cells: force=True)" if store.has(cell, folder) else "first"
    return f"{folder} holds no adapter of {cell.run_id}; run that cell, or those that it belongs to, {ending}."


def questions_of(bench: Bench, cell: Cell) -> list[Question]:
    """What a defended model is asked, `TEST_ROWS` rows each: the attack's inputs clean and with the whole trigger, and
    whatever stands after the attack's part in `run.workbench.questions` but for the rows with nothing to change.
    """
    all_questions = questions(bench, replace(cell, test_rows=min(TEST_ROWS, cell.test_rows)))
    of_attack = [question for question in all_questions if question.part == "attack"]
    return [of_attack[0], of_attack[-1], *(q for q in all_questions if q.part not in ("attack", "elsewhere"))]
