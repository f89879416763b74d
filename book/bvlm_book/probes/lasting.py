"""Does a backdoor last? After further tuning on clean rows, and after merging and rounding the weights.

    python -m bvlm_book.probes.lasting --store local --model tiny-llava --threat targeted_refusal

asks every stored adapter and their clean-tuned control before and after

- so many further steps, each a run of its own with the study's settings (`--learning-rate`: another one), on clean
  rows that were not among its training rows (`data.further`; where the data have too few, the same rows again);
- merging into the base: W becomes W + (alpha / r) B A (`merged`), and is then rounded to bfloat16, or row by row to 8
  or 4 bits (`defences.quantise`). Only weights lose digits.

Nothing is asked twice; further tuned adapters are not kept. Free of torch until it asks.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bvlm_book.probes import ask as asks
from bvlm_book.probes import command
from bvlm_book.probes.ask import Probe, Sheet
from bvlm_book.probes.records import CONTROL, FRESH, LASTING, SAME_ROWS
from bvlm_utils import data, store
from bvlm_utils.command import number, whole
from bvlm_utils.errors import InputError
from bvlm_utils.run import tune_and_ask
from bvlm_utils.run.progress import Progress, say
from bvlm_utils.run.workbench import Bench, Question, bench_key, questions
from bvlm_utils.store.cell import Cell
from bvlm_utils.train.settings import TrainSettings

if TYPE_CHECKING:
    import torch

    from bvlm_utils.train.grouped import GroupResult

ROWS = 200  # as many as the study asks, so that zero steps repeat the record
STEPS = (10, 30, 100)  # further ones; zero is always asked
MERGED = ("merged", "bfloat16", "int8", "int4")


def measure(
    cells: Sequence[Cell],
    place: str | Path | None = None,
    rows: int = ROWS,
    steps: Sequence[int] = STEPS,
    merged: Sequence[str] = MERGED,
    learning_rate: float | None = None,
) -> None:
    """Ask the stored adapters of `cells` (one model, data, threat, rate, seed) what the store does not know yet.

    learning_rate: of the further steps; None: that of the cells' own training.
    """
    root, first = store.writable(place), cells[0]
    if first.four_bit:
        raise InputError("The base is in 4 bit, whose packed weights cannot be merged; take cells of another base.")
    if wrong := [step for step in steps if step < 1]:
        raise InputError(f"steps has {wrong[0]}; each must be a whole number above 0.")
    sheets = asks.sheets(LASTING, cells, root, rows)
    rate = first.train.learning_rate if learning_rate is None else learning_rate
    bench, settings = Bench(*bench_key(first)), replace(first.train, epochs=1, learning_rate=rate)
    needed, source = max(steps, default=0) * settings.batch_size, FRESH
    if steps and (available := data.beyond(first.dataset, first.train_rows)) is not None and available < needed:
        source = SAME_ROWS
        too_few = f"{first.dataset} has only {available} training rows beyond the {first.train_rows} that were tuned on"
        say(f"{too_few}, and {needed} are needed: the same rows are used again, clean.")
    store.clean(root)
    work = _Work(bench, root, sheets)
    states = {"": ()} | {str(count): ("steps", count, source, asdict(settings)) for count in sorted(set(steps))}
    states |= {form: ("weights", form) for form in merged}
    lacking = {state: work.lacking(state, doing) for state, doing in states.items()}
    progress = Progress(LASTING, sum(len(probes) for pairs in lacking.values() for _, probes in pairs))
    for state, pairs in lacking.items():
        if pairs and state in merged:
            work.ask_merged(pairs, state, progress)
        elif pairs:
            results = [work.stored[sheet.run_id] for sheet, _ in pairs]
            if state:
                results = work.tuned(pairs, int(state), settings, source)
            jobs = [(*pair, result) for pair, result in zip(pairs, results, strict=True)]
            asks.ask(bench, root, jobs, work.judged, progress)


@dataclass(frozen=True)
class _Work:
    """What the states share: the adapters, and the questions to each model."""

    bench: Bench
    root: Path
    sheets: Sequence[Sheet]

    @cached_property
    def stored(self) -> dict[str, "GroupResult"]:
        return {sheet.run_id: tune_and_ask.saved(store.adapter(sheet.run_id, self.root)) for sheet in self.sheets}

    @cached_property
    def questions(self) -> dict[str, list[Question]]:
        """Attack -> its questions: clean, with the whole trigger, and for utility."""
        by_attack = {}
        for sheet in self.sheets:
            cell_questions = questions(self.bench, replace(sheet.cell, test_rows=sheet.rows))
            attacked = [question for question in cell_questions if question.part == "attack"]
            by_attack[sheet.cell.attack] = [attacked[0], attacked[-1], cell_questions[-1]]
        return by_attack

    @cached_property
    def judged(self) -> list[bool]:
        cell = self.sheets[0].cell
        return asks.judged_rows(self.bench, self.root, cell, self.questions[cell.attack][0])

    def lacking(self, state: str, doing: tuple[Any, ...]) -> list[tuple[Sheet, list[Probe]]]:
        """What is still to be asked of whom in a state; of the control every attack's trigger."""
        pairs = []
        for sheet in self.sheets:
            triggers = list(self.questions) if sheet.subject == CONTROL else [sheet.cell.attack]
            clean, _, utility = self.questions[sheet.cell.attack]
            attacked = [Probe(attack, state, self.questions[attack][1], doing) for attack in triggers]
            probes = [Probe("", state, clean, doing), *attacked, Probe("", state, utility, doing)]
            pairs.append((sheet, sheet.lacking(self.bench, self.root, probes)))
        return [(sheet, probes) for sheet, probes in pairs if probes]

    def tuned(
        self, pairs: Sequence[tuple[Sheet, Any]], steps: int, settings: TrainSettings, source: str
    ) -> list["GroupResult"]:
        """The adapters of `part` after so many further steps on clean rows, all tuned together."""
        from bvlm_utils.train import grouped
        from bvlm_utils.train.loop import TrainRow

        split, count = "train", steps * settings.batch_size
        if source == FRESH:
            split = "further"
            self.bench.add(split, data.further(self.bench.dataset, self.bench.train_rows, count))
        samples, features = self.bench.rows[split], self.bench.feature_cache
        positions = [position % len(samples) for position in range(count)]
        rows = [
            TrainRow(samples[position]["prompt"], samples[position]["answers"][0], feature_row)
            for position, feature_row in zip(positions, self.bench.feature_rows(split, positions), strict=True)
        ]
        starts = [(sheet.cell.seed, self.stored[sheet.run_id].state) for sheet, _ in pairs]
        jobs = [grouped.GroupJob(rows, features.table, settings, seed, state) for seed, state in starts]

        def report(step: int, total: int, loss: float) -> None:
            if step % 10 == 0 or step == total:
                say(f"{LASTING}: {step} of {total} further steps of {len(jobs)} models, loss {loss:.3f}")

        return grouped.finetune_group(self.bench.victim, jobs, progress=report)

    def ask_merged(self, pairs: Sequence[tuple[Sheet, Sequence[Probe]]], form: str, progress: Progress) -> None:
        """Ask models one by one: once merged, they share no base."""
        from bvlm_utils.defences import weights

        for sheet, probes in pairs:
            merged = weights.merged(self.bench.victim, self.stored[sheet.run_id])
            with weights.on(self.bench.victim, {name: rounded(value, form) for name, value in merged.items()}):
                answers = tune_and_ask.Grouped(self.bench).ask_saved([probe.question for probe in probes], None)
            for probe in probes:
                texts = answers[probe.question.key(self.bench)]
                asks.keep(self.bench, self.root, sheet, probe, texts, self.judged)
            progress.add(len(probes), f"{form}, {sheet.run_id}")


def rounded(weight: "torch.Tensor", form: str) -> "torch.Tensor":
    """weight: (out, in), rounded as one of `MERGED`."""
    from bvlm_utils.defences import quantise

    if form in quantise.BITS:
        return quantise.nearest(weight, quantise.BITS[form])
    return weight.bfloat16() if form == "bfloat16" else weight


def main(argv: list[str] | None = None) -> int:
    parser = command.parser(LASTING, __doc__, ROWS)
    steps_help = "further steps (default 10 30 100)"
    parser.add_argument("--steps", type=whole(1), nargs="*", default=list(STEPS), help=steps_help)
    parser.add_argument("--merged", nargs="*", choices=MERGED, default=list(MERGED), help="weights (default: all)")
    rate_help = "of the further steps (default: that of the cells' training)"
    parser.add_argument("--learning-rate", type=number(1e-8, 1), help=rate_help)
    return command.answers(parser, measure, argv, "steps", "merged", "learning_rate")


if __name__ == "__main__":
    sys.exit(main())
