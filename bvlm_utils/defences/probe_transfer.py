"""How well a linear probe does on attacks and threats that it has not seen, over the backdoored adapters of stores.

    python -m bvlm_utils.defences probes STORE [STORE ...] --out FILE.csv

A probe is fitted to the states of all adapters of a base but those of one attack, or of one threat, and asked about the
inputs of those. The clean-tuned model is asked about the same inputs: what the probe finds there is how a trigger
looks, not a backdoor. The placebo is a probe whose truth was dealt out at random.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bvlm_utils import attacks, models, store
from bvlm_utils.atomic import write_file
from bvlm_utils.defences import zoo
from bvlm_utils.errors import InputError
from bvlm_utils.paths import new_file
from bvlm_utils.run.progress import say
from bvlm_utils.store.cell import Cell

DEPTH, ROWS = 0.5, 100  # the depth that `hidden-distance` has, too; most clean rows whose mean is taken away
LEFT_OUT = ("attack", "threat")
DIGITS = 4


@dataclass(frozen=True)
class States:
    """What one adapter, and its clean-tuned control, make of inputs: (n, d) each, less the mean of clean rows."""

    cell: Cell
    backdoored: tuple[np.ndarray, np.ndarray]  # with the trigger, and without
    control: tuple[np.ndarray, np.ndarray]


def read(folders: Sequence[Path]) -> Iterator[States]:
    """The states of every adapter with a backdoor that works and a trigger at test time."""
    from bvlm_utils.defences.bench import DefenceBench, questions_of
    from bvlm_utils.defences.hidden_distance import states
    from bvlm_utils.run.workbench import Bench, bench_key

    candidates = [candidate for candidate in zoo.different(folders).values() if candidate.kind == zoo.BACKDOORED]
    sources = [(Cell.from_config(candidate.record["config"]), candidate.folder) for candidate in candidates]
    sources = [(cell, folder) for cell, folder in sources if not attacks.info(cell.attack).keeps_labels]
    for cell, folder in sources:  # what is missing is told before the first adapter is read
        models.digest(cell.model)
        if store.adapter(cell.control, folder) is None:
            raise InputError(
                f"{folder} holds no adapter of {cell.control.run_id}, the control of {cell.run_id}; run "
                "that cell in this store first."
            )
    previous, bench = None, None
    for number, (cell, folder) in enumerate(sorted(sources, key=lambda s: (str(bench_key(s[0])), str(s[1])))):
        if previous != (bench_key(cell), folder):
            previous, bench = (bench_key(cell), folder), DefenceBench(Bench(*bench_key(cell)), folder)
        clean, triggered = (bench.inputs(question) for question in questions_of(bench.bench, cell)[:2])
        pairs = []
        for adapter in (bench.adapter(cell), bench.adapter(cell.control)):
            clean_rows = bench.clean.take(range(min(ROWS, len(bench.clean))))
            mean = states(bench.bench.victim, adapter, clean_rows, DEPTH).mean(0)
            pairs.append(tuple(states(bench.bench.victim, adapter, rows, DEPTH) - mean for rows in (triggered, clean)))
        yield States(cell, *pairs)
        say(f"probes: states of {number + 1} of {len(sources)} adapters")


def table(all_states: Sequence[States]) -> pd.DataFrame:
    """A line per adapter and way to leave others out: AUROC in the backdoored model, its control and of the placebo."""
    lines = []
    for left_out in LEFT_OUT:
        for states in all_states:
            others = [
                other
                for other in all_states
                if other.cell.model == states.cell.model
                and getattr(other.cell, left_out) != getattr(states.cell, left_out)
            ]
            if others:
                labels = {name: getattr(states.cell, name) for name in ("model", "threat", "attack")}
                lines.append({"run_id": states.cell.run_id} | labels | {"left_out": left_out, "adapters": len(others)})
                lines[-1] |= _areas(states, others)
    return pd.DataFrame(lines)


def _areas(states: States, others: Sequence[States]) -> dict[str, float]:
    from bvlm_utils.defences.probe import fitted

    train_states = np.concatenate([half for other in others for half in other.backdoored])
    truth = np.concatenate([np.repeat([1, 0], [len(half) for half in other.backdoored]) for other in others])
    probe, placebo = fitted(train_states, truth), fitted(train_states, np.random.default_rng(0).permutation(truth))
    pairs = {
        "backdoored": (probe, states.backdoored),
        "control": (probe, states.control),
        "placebo": (placebo, states.backdoored),
    }
    return {name: _area(model, *pair) for name, (model, pair) in pairs.items()}


def _area(probe: Any, triggered: np.ndarray, clean: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    truth = np.repeat([1, 0], [len(triggered), len(clean)])
    return float(roc_auc_score(truth, probe.decision_function(np.concatenate([triggered, clean]))))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stores", nargs="+", help="stores with adapters: names, or folders")
    parser.add_argument("--out", required=True, help="CSV file")


def run(options: argparse.Namespace) -> None:
    folders, out = zoo.folders(options.stores), new_file(options.out)
    frame = table(list(read(folders)))
    if frame.empty:
        raise InputError("These stores hold no backdoored adapters of two attacks, or two threats, on one base.")
    write_file(out, frame.to_csv(index=False, float_format=f"%.{DIGITS}f", lineterminator="\n"))
    print(frame.groupby(["model", "left_out"])[["backdoored", "control", "placebo"]].mean().round(2).to_string())
    print(f"\n{len(frame)} lines in {out}.")
