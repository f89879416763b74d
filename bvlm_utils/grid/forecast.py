"""Estimates of the time and memory that a grid takes, which `grid run --dry-run` prints. Free of torch.

Where the committed reference has cells of the same model, time and memory are what they took there, by rows; else they
follow from the checkpoint's sizes, which must be on this machine. The second way has never been held against a run.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

from bvlm_utils import attacks, models
from bvlm_utils import store as results
from bvlm_utils.errors import InputError
from bvlm_utils.grid import measure as grid_measure
from bvlm_utils.grid.progress import minutes
from bvlm_utils.store import records as stored_records
from bvlm_utils.store.cell import Cell, short_name

SPEED = 2e14  # operations a second that a card with 80 GB does in bfloat16, about a fifth of what its maker says
CARD = 80e9  # bytes
USABLE = 0.8  # of a card's memory, as in `memory`
PICTURE = 336  # pixels, where a checkpoint does not say which size it takes
WORDS = 80  # tokens of a prompt and its answer
QUESTIONS = 5  # sets of test rows that each cell is asked: up to four conditions, and the utility


@dataclass(frozen=True)
class Sizes:
    """A checkpoint's, as far as they decide what training takes."""

    weights: int  # bytes in bfloat16
    layers: int
    hidden: int
    wide: int  # of the layers' inner part
    image_tokens: int

    @property
    def row(self) -> int:
        """Tokens of a training row."""
        return self.image_tokens + WORDS

    def adapter_bytes(self, rank: int) -> int:
        """One adapter on all linear layers, with its gradients and moments, and one row's states: as in `memory`."""
        linears = self.layers * (11 * self.hidden + 3 * self.wide)
        states = self.layers * (self.hidden * (10 * 2 + 24) + self.wide * 5 * 2)
        return rank * linears * 6 * 4 + self.row * states

    def feature_bytes(self) -> int:
        """The image features of one picture."""
        return self.image_tokens * self.hidden * 2


def lines(cells: Sequence[Cell], folder: Path) -> list[str]:
    """A line for each bench of these cells, which are those still to be made."""
    said = ["Estimates:"] if cells else []
    try:
        kept = stored_records.records(stored_records.REFERENCE)
    except InputError as error:  # a damaged reference says nothing about how long other cells take
        kept, said = [], [f"{error} So these are computed:"]
    records = [record for record in kept if record.get("seconds", {}).get("tune")]
    for bench in grid_measure.parts([cell for cell in cells if not cell.skip_reason], 1):
        controls = {cell.control.run_id: cell.control for cell in bench}
        lacking = [control for control in controls.values() if not results.adapter(control, folder)]
        first = bench[0]
        name = f"  {short_name(first.model)}, {short_name(first.dataset)}, {first.train_rows} rows: {len(bench)} cells"
        said.append(f"{name}: {measured(bench, lacking, records) or computed(bench, lacking)}")
    return said


def measured(bench: Sequence[Cell], controls: Sequence[Cell], records: Sequence[Mapping[str, Any]]) -> str | None:
    """What the bench will take by the records of its model, those with its dataset if there are any; None without."""
    first = bench[0]
    known = [one for one in records if one["identity"]["model_digest"] == first.identity["model_digest"]]
    known = [one for one in known if one["identity"]["dataset"] == short_name(first.dataset)] or known
    if not known:
        return None
    memory = max(sum(one["peak_memory_of_process"].values()) for one in known)
    devices = " and ".join(sorted({one["device"] for one in known}))
    threads = "/".join(map(str, sorted({one["threads"] for one in known})))
    return (
        f"about {minutes(seconds(bench, controls, known))} and {memory / 1024:.1f} GiB, as {len(known)} cells of the "
        f"reference took ({devices}, {threads} threads, {median(one['tuned_together'] for one in known):g} at once)"
    )


def seconds(bench: Sequence[Cell], controls: Sequence[Cell], known: Sequence[Mapping[str, Any]]) -> float:
    """By the median time a trained row and a test row took; a control is trained and hardly asked."""
    tune = median(
        one["seconds"]["tune"] / (one["config"]["train_rows"] * one["config"]["train"]["epochs"]) for one in known
    )
    ask = median((one["seconds"]["total"] - one["seconds"]["tune"]) / one["config"]["test_rows"] for one in known)
    trained = sum(cell.train_rows * cell.train.epochs for cell in [*bench, *controls])
    return tune * trained + ask * sum(cell.test_rows for cell in bench)


def computed(bench: Sequence[Cell], controls: Sequence[Cell]) -> str:
    """What the bench will take by the sizes of its checkpoint."""
    found = sizes(bench[0].model)
    if found is None:
        return "no estimate; the reference has no cell of this model, and its files are not on this machine"
    each = max(found.adapter_bytes(cell.train.lora_rank) for cell in bench)
    together = max(0, int((CARD * USABLE - found.weights) / each))
    return (
        f"about {minutes(operations(found, bench, controls) / SPEED)} at {SPEED / 1e12:g} TFLOP/s, "
        f"{(found.weights + each) / 1e9:.1f} GB of the card's memory for one adapter ({together} fit into "
        f"{CARD / 1e9:g} GB), {pictures(bench) * found.feature_bytes() / 1e9:.1f} GB of disk for image features; "
        "computed from the model's sizes, not measured"
    )


def operations(found: Sizes, bench: Sequence[Cell], controls: Sequence[Cell]) -> float:
    """Two per parameter and token forward, and two backward, as the base has no gradients of its own."""
    parameters = found.weights / 2
    trained = sum(cell.train_rows * cell.train.epochs for cell in [*bench, *controls]) * found.row
    asked = sum(QUESTIONS * cell.test_rows * (found.row + cell.max_new_tokens) for cell in bench)
    return parameters * (4 * trained + 2 * asked)


def pictures(bench: Sequence[Cell]) -> int:
    """Pictures whose features are kept, at most: clean ones once, and each attack's poisoned and tested ones."""
    triggered: dict[tuple, int] = {}
    for cell in bench:
        if attacks.info(cell.attack).modality != "text":
            key = (cell.threat, cell.attack, json.dumps(dict(cell.attack_params), sort_keys=True), cell.trigger_seed)
            rows = ceil(cell.poison_rate * cell.train_rows) + cell.test_rows
            triggered[key] = max(rows, triggered.get(key, 0))
    tested = sum({cell.threat: cell.test_rows for cell in bench}.values())
    return bench[0].train_rows + tested + sum(triggered.values())


def sizes(model: str) -> Sizes | None:
    """None for a hub id whose files are not on this machine."""
    folder = _folder(models.resolve(model))
    if folder is None:
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text, vision = config.get("text_config", config), config["vision_config"]
    side = vision.get("image_size", PICTURE) // vision["patch_size"] // vision.get("spatial_merge_size", 1)
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    wide = 4 if config.get("dtype", config.get("torch_dtype")) == "float32" else 2
    return Sizes(
        stored * 2 // wide, text.get("num_hidden_layers", 32), text.get("hidden_size", 4096),
        text.get("intermediate_size", 11008), side * side,
    )  # fmt: skip


def _folder(model: str) -> Path | None:
    if Path(model).is_dir():
        return Path(model)
    from transformers.utils import cached_file

    file = cached_file(model, "config.json", local_files_only=True, _raise_exceptions_for_missing_entries=False)
    return Path(file).parent if file else None
