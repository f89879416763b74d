"""Do tuned models look at the trigger, and at which half of it? Attention and attribution, measured and kept.

    python -m bvlm_book.probes.attention --model tiny-llava --threat targeted_refusal --poison-rate 0.1

traces (`probes.tracing`) the bimodal attacks' adapters of a store and their clean-tuned controls on the same test rows
with the whole trigger, at the moment when the attacker's answer departs from the right one:

    STORE/attribution/RUN_ID.json    identity, cell, numbers with their intervals over rows, provenance

What is there already is not measured again. The chapter on modalities reads the numbers through
`probes.records_of_attention`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bvlm_book.probes import command
from bvlm_book.probes.records import CONTROL, POISONED, read
from bvlm_book.probes.records_of_attention import CELL, COUNTS, DIFFERENCE, FOLDER, GROUPS
from bvlm_utils import attacks, store
from bvlm_utils.atomic import write_file
from bvlm_utils.command import number
from bvlm_utils.errors import InputError
from bvlm_utils.run.workbench import Bench, bench_key, questions
from bvlm_utils.score import intervals
from bvlm_utils.store import provenance, records, table
from bvlm_utils.store.cell import MOST_NEGATIVES, Cell

if TYPE_CHECKING:
    import torch


VERSION = 1  # raise when the same cell would give other numbers
ROWS = 50


@dataclass(frozen=True)
class Input:
    """A test row with the whole trigger, up to the token that decides.

    ids: (T,) prompt with image tokens, and the part of the attacker's answer that is right too. groups: (T,) index into
    GROUPS. target: the token that decides. features: (n, d) of the triggered picture. first: is the deciding token the
    answer's first?
    """

    ids: list[int]
    groups: np.ndarray
    target: int
    features: "torch.Tensor"
    first: bool


def measure(cells: Sequence[Cell], place: str | Path | None = None, rows: int = ROWS) -> list[str]:
    """Trace the cells whose adapters a store has and that were not traced yet; sentences say what was done.

    cells: of bimodal attacks. rows: test rows, the first eligible ones. A cell's file is written at once. InputError if
    the store has no adapter of any of them.
    """
    if rows < 2:
        raise InputError(f"rows is {rows}; it must be 2 or more, as numbers get an interval over rows.")
    root, said, benches, lacking = store.writable(place), [], {}, []
    for cell in cells:
        if cell.modality != "bimodal":
            raise InputError(f"{cell.attack} has no two halves to compare; take a bimodal attack.")
        if cell.skip_reason:
            said.append(f"{cell.attack} is left out: {cell.skip_reason}")
        elif _known(cell, root, rows):
            said.append(f"{cell.run_id} is traced already.")
        elif not (store.adapter(cell, root) and store.adapter(cell.control, root)):
            lacking.append(cell if not store.adapter(cell, root) else cell.control)
            said.append(f"{cell.attack} is left out: {root} holds no adapter of {lacking[-1].run_id}.")
        else:
            if bench_key(cell) not in benches:
                benches[bench_key(cell)] = Bench(*bench_key(cell))
            file = _write(cell, root, rows, benches[bench_key(cell)])
            said.append(f"{file.stem} is traced.")
            print(said[-1], file=sys.stderr, flush=True)
    if lacking and len(lacking) == len([cell for cell in cells if not cell.skip_reason]):
        raise InputError(
            f"{root} holds none of the adapters that are to be traced, such as that of {lacking[0].run_id}; run their "
            "cells first."
        )
    return said


def _file(cell: Cell, root: Path) -> Path:
    return root / FOLDER / f"{cell.run_id}.json"


def _identity(cell: Cell, rows: int) -> dict[str, Any]:
    return {"run_id": cell.run_id, "version": VERSION, "rows": rows}


def _known(cell: Cell, root: Path, rows: int) -> bool:
    return read(_file(cell, root), lambda record: [record["identity"]]) == [_identity(cell, rows)]


def _write(cell: Cell, root: Path, rows: int, bench: Bench) -> Path:
    from bvlm_book.probes import tracing
    from bvlm_utils.defences import reading
    from bvlm_utils.train import adapters

    found = inputs(bench, cell, rows)
    with reading.plain_attention(bench.victim):
        traced = {}
        for subject, folder in ((CONTROL, store.adapter(cell.control, root)), (POISONED, store.adapter(cell, root))):
            with adapters.attached(bench.victim, folder):
                traced[subject] = [tracing.trace(bench.victim, i.ids, i.features, i.target) for i in found]
    about = table.rows(records.record(cell, root))[0]
    device, dtype = bench.victim.device.type, str(bench.victim.model.dtype).removeprefix("torch.")
    whole = {
        "identity": _identity(cell, rows),
        "cell": {name: about[name] for name in CELL},
        "first": float(np.mean([i.first for i in found])),
        "numbers": numbers(traced, [i.groups for i in found]),
        "provenance": provenance.now() | {"device": device, "dtype": dtype},
    }
    file = _file(cell, root)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, records.as_text(whole))
    return file


def inputs(bench: Bench, cell: Cell, rows: int) -> list[Input]:
    """The first eligible test rows with the whole trigger. InputError if the attacker's answer is never
    another."""
    import torch

    from bvlm_book.probes import tracing

    asked = {q.condition: q for q in questions(bench, cell) if q.part == "attack"}
    positions = asked["both"].positions[:rows]
    threat, victim = cell.resolved_threat, bench.victim
    clean = bench.pictures("test", positions)
    painted = bench.pictures("test", positions, cell.resolved_attack, cell.trigger_seed)
    features = victim.encode(painted)
    changed = (clean != painted).any(-1)  # (N, H, W)
    found = []
    for i, position in enumerate(positions):
        row, count = bench.rows["test"][position], features.shape[1]
        right = victim.answer_ids(row["answers"][0])
        poisoned = victim.answer_ids(threat.poison(row["answers"][0], row))
        place = tracing.decisive(poisoned, right)
        if place is None:
            continue
        prompts = [victim.prompt_ids(asked[name].prompts[i], count) for name in ("clean", "both")]
        ids = torch.tensor(prompts[1])
        groups = np.full(len(prompts[1]) + place, GROUPS.index("other text"))
        groups[: len(ids)][tracing.text_trigger(victim, *prompts)] = GROUPS.index("trigger text")
        patched = tracing.covered(changed[i], victim.settings, count)
        groups[: len(ids)][(ids == victim.image_id).numpy()] = np.where(
            patched, GROUPS.index("trigger image"), GROUPS.index("other image")
        )
        found.append(Input([*prompts[1], *poisoned[:place]], groups, poisoned[place], features[i], place == 0))
    if len(found) < 2:
        raise InputError(
            f"The attacker's answer differs on {len(found)} of {rows} rows of {cell.dataset}; take more rows."
        )
    return found


def numbers(traced: dict[str, list[Any]], groups: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Means over rows with Student's interval, for both models, their paired difference, and the token counts.

    traced: a `probes.tracing.Trace` per row for each model. Measures: "attention", the share of each group, per layer
    and as mean over layers (layer None); "attribution", each group's share of the absolute values; "effect", each
    group's sum, in nats. The token counts' share is what attention without any preference would give.
    """
    values: dict[tuple[str, str, int | None], np.ndarray] = {}  # (subject, measure, layer) -> (rows, groups)
    for subject, of_subject in traced.items():
        attention = np.stack([_by_group(t.attention, own) for t, own in zip(of_subject, groups, strict=True)])
        moved = np.stack([_by_group(t.attribution, own) for t, own in zip(of_subject, groups, strict=True)])
        sizes = np.stack([_by_group(np.abs(t.attribution), own) for t, own in zip(of_subject, groups, strict=True)])
        values[subject, "attention", None] = attention.mean(1)
        for layer in range(attention.shape[1]):
            values[subject, "attention", layer] = attention[:, layer]
        values[subject, "attribution", None] = sizes / np.maximum(sizes.sum(-1, keepdims=True), 1e-30)
        values[subject, "effect", None] = moved
    for (subject, what, layer), own in list(values.items()):
        if subject == POISONED:
            values[DIFFERENCE, what, layer] = own - values[CONTROL, what, layer]
    counts = np.stack([_by_group(np.ones(len(own)), own) for own in groups])
    values[COUNTS, "attention", None] = counts / counts.sum(-1, keepdims=True)
    values[COUNTS, "tokens", None] = counts
    return [
        {"subject": subject, "measure": what, "group": GROUPS[g], "layer": layer} | _number(own[:, g], subject, what)
        for (subject, what, layer), own in values.items()
        for g in range(len(GROUPS))
    ]


def _by_group(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(..., T) -> (..., groups): the sum over each group's tokens."""
    return np.stack([values[..., groups == g].sum(-1) for g in range(len(GROUPS))], axis=-1)


def _number(values: np.ndarray, subject: str, what: str) -> dict[str, Any]:
    low, high = intervals.mean_interval(values)
    if what in ("attention", "attribution") and subject != DIFFERENCE:  # shares
        low, high = max(low, 0.0), min(high, 1.0)
    rounded = {"value": values.mean(), "low": low, "high": high}
    return {name: round(float(value), 6) for name, value in rounded.items()} | {"n": len(values)}


def main(argv: list[str] | None = None) -> int:
    """The command line; its exit code is what `bvlm_utils.command` promises."""
    made = command.parser("attention", __doc__.split("\n")[0], ROWS)
    made.set_defaults(attacks=[name for name in attacks.names() if attacks.info(name).modality == "bimodal"])
    made.add_argument(
        "--negatives", type=number(0, MOST_NEGATIVES), default=0.0, help="half-triggered rows per poisoned one"
    )

    def ask(given: argparse.Namespace) -> None:
        cells = [replace(cell, negatives=given.negatives) for cell in command.chosen(given)]
        said = measure(cells, given.store, given.rows)
        print(*said, f"The traces are in {store.folder(given.store) / FOLDER}.", sep="\n")

    return command.run(made, ask, argv)


if __name__ == "__main__":
    sys.exit(main())
