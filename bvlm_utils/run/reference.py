"""A reference to compare an adapter with: its base, tuned on clean rows, once, and kept in a store as a control."""

from pathlib import Path

from bvlm_utils import data, store
from bvlm_utils.run import group, tune_and_ask
from bvlm_utils.run.progress import say
from bvlm_utils.run.tune_and_ask import Work
from bvlm_utils.run.workbench import Bench, bench_key
from bvlm_utils.store.cell import CONTROL, Cell
from bvlm_utils.store.locks import lacking
from bvlm_utils.train.settings import TrainSettings

TOLD = 10  # times while it is tuned


def cell(model: str, dataset: str, rows: int, rank: int, four_bit: bool = False) -> Cell:
    """The clean-tuned model of at most `rows` rows; rank: of the adapter that it is compared with."""
    there = len(data.load(dataset, "train")) if ":" in dataset else rows
    train = TrainSettings(lora_rank=rank)
    return Cell(model, dataset, CONTROL, CONTROL, 0.0, train_rows=min(rows, there), four_bit=four_bit, train=train)


def adapter(wanted: Cell, folder: Path) -> Path:
    """The folder of the clean-tuned adapter in the store `folder`; tuned first if the store lacks it."""
    with lacking([wanted], folder, wait=True) as mine:
        if mine:
            say(f"reference: tuning {wanted.model} on {wanted.train_rows} clean rows of {wanted.dataset}, once")
            bench, clock = Bench(*bench_key(wanted)), group.Clock()
            results = tune_and_ask.choose(bench).tune([Work(wanted)], folder / "cache", _told)
            clock.lap("tune", 1)
            group.write_controls(bench, mine, results, folder, clock)
    say(f"reference: {wanted.run_id} in {folder}")
    return store.adapter(wanted, folder)


def _told(step: int, steps: int, loss: float) -> None:
    if step % max(1, steps // TOLD) == 0 or step == steps:
        say(f"reference: step {step} of {steps}, loss {loss:.3f}")
