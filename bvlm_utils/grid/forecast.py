"""Estimates of the rows, time, memory and disk that a grid takes, which `grid run --dry-run` prints. Free of torch.

Where the committed reference has cells of the same model, time and memory are what they took there, by rows; else they
follow from the checkpoint's sizes, which must be on this machine, and from how fast one card was with a random
LLaVA-1.5-7B (benchmarks/results/gpu_nvidia-h200.json, where a test holds them together).
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

from bvlm_utils import attacks, data
from bvlm_utils import store as results
from bvlm_utils.errors import InputError, TooFewRows
from bvlm_utils.grid import measure as grid_measure
from bvlm_utils.grid.progress import minutes
from bvlm_utils.models import context_length, names
from bvlm_utils.run import lengths
from bvlm_utils.store import records as stored_records
from bvlm_utils.store.cell import Cell, short_name
from bvlm_utils.train import poison

SPEED = 3.7e14  # operations a second in bfloat16 of that card while it trained eight adapters
STEP = 1e-3  # seconds that one more token of every row takes in each layer: launching, not arithmetic
CARD = 80e9  # bytes
USABLE = 0.8  # of a card's memory, as in `memory`
WORDS = 80  # tokens of a prompt and its answer
ANSWER = 64  # tokens of an answer that is not cut before
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
        states = self.layers * (self.hidden * (10 * 2 + 24) + self.wide * 5 * 2)
        return 6 * self.stored_bytes(rank) + self.row * states

    def stored_bytes(self, rank: int) -> int:
        """One adapter in a file."""
        return rank * self.layers * (11 * self.hidden + 3 * self.wide) * 4

    def feature_bytes(self) -> int:
        """The image features of one picture."""
        return self.image_tokens * self.hidden * 2


def lines(cells: Sequence[Cell], folder: Path, card: float = CARD) -> list[str]:
    """Lines for each bench of these cells, which are those still to be made. card: bytes of a GPU."""
    texts, hours, disk = ["Estimates:"] if cells else [], 0.0, 0
    try:
        stored = stored_records.records(stored_records.REFERENCE)
    except InputError as error:  # a damaged reference says nothing about how long other cells take
        stored, texts = [], [f"{error} So these are computed:"]
    records = [record for record in stored if record.get("seconds", {}).get("tune")]
    for group in grid_measure.parts([cell for cell in cells if not cell.skip_reason], 1):
        usable, row_lines = rows(group)
        controls = {cell.control.run_id: cell.control for cell in usable}
        lacking = [control for control in controls.values() if not results.adapter(control, folder)]
        first = group[0]
        name = f"  {short_name(first.model)}, {short_name(first.dataset)}, {first.train_rows} rows: {len(usable)} cells"
        words = measured(usable, lacking, records) if usable else "none can be run"
        if words is None:
            words, seconds_, bytes_ = computed(usable, lacking, card)
            hours, disk = hours + seconds_ / 3600, disk + bytes_
        texts += [f"{name}: {words}", *row_lines]
    if hours:
        texts.append(f"In all, of what is computed: {hours:.1f} hours on one card, {disk / 1e9:.1f} GB of adapters.")
    return texts


def rows(group: Sequence[Cell]) -> tuple[list[Cell], list[str]]:
    """The cells that have rows enough, and lines on how many rows each threat can use, and on what is skipped."""
    train, test = _samples(group[0].dataset, group[0].train_rows)
    texts: list[str] = []
    for threat in dict.fromkeys(cell.resolved_threat for cell in group):
        counts = [sum(map(threat.eligible, split_rows)) for split_rows in (train, test)]
        looked_at = lengths.looked_at(group[0].dataset, len(train))
        scope = f", by the first {looked_at} rows" if looked_at < len(train) else ""
        share = f"{counts[0]} of {len(train)} training rows{scope} and {counts[1]} of {len(test)} test rows"
        note = "; `grid refusals` tells how many the base refuses" if threat.breaks_refusals else ""
        texts.append(f"    {threat.name}: {share} are eligible{note}")
    # those that have rows enough, or too few, together
    keys = [
        (cell.resolved_threat, attacks.info(cell.attack).keeps_labels, cell.poison_rate, cell.negatives)
        for cell in group
    ]
    reasons = {key: _too_few(cell, train) for key, cell in dict(zip(keys, group, strict=True)).items()}
    skip_counts = Counter(reasons[key] for key in keys)
    texts += [f"    {count} cells are skipped: {reason}" for reason, count in skip_counts.items() if reason]
    return [cell for cell, key in zip(group, keys, strict=True) if not reasons[key]], texts


@lru_cache(maxsize=8)  # the benches of several models have one dataset
def _samples(dataset: str, rows: int) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """Training and test rows without pictures; of many, the first come again. VQAv2's test rows are read one by one."""
    splits = ("train", lengths.looked_at(dataset, rows)), ("test",)
    train, test = (data.load(dataset, *split).remove_columns("image") for split in splits)
    return list(islice(cycle(train.to_list()), rows)), test


def _too_few(cell: Cell, train: Sequence[Mapping[str, Any]]) -> str | None:
    """Why too few rows can be poisoned; None where there are enough."""
    threat, attack = cell.resolved_threat, cell.resolved_attack
    try:
        poison.plan(train, threat, attack, cell.poison_rate, cell.seed, cell.negatives, half=cell.half)
    except TooFewRows as error:
        return str(error)
    return None


def measured(group: Sequence[Cell], controls: Sequence[Cell], records: Sequence[Mapping[str, Any]]) -> str | None:
    """What a bench's cells will take on each kind of device, by the records of their model (and dataset, if there
    are such); None without any.
    """
    first = group[0]
    similar = [record for record in records if record["identity"]["model_digest"] == first.identity["model_digest"]]
    similar = [record for record in similar if record["identity"]["dataset"] == short_name(first.dataset)] or similar
    if not similar:
        return None
    texts = []
    for device in sorted({record["device"] for record in similar}):  # a card has the time and the memory of no CPU
        subset = [record for record in similar if record["device"] == device]
        memory = max(sum(record["peak_memory_of_process"].values()) for record in subset)
        threads = "/".join(map(str, sorted({record["threads"] for record in subset})))
        texts.append(
            f"about {minutes(seconds(group, controls, subset))} and {memory / 1024:.1f} GiB, as {len(subset)} cells of "
            f"the reference took ({device}, {threads} threads, "
            f"{median(record['tuned_together'] for record in subset):g} at once)"
        )
    return ", or ".join(texts)


def seconds(group: Sequence[Cell], controls: Sequence[Cell], records: Sequence[Mapping[str, Any]]) -> float:
    """Seconds by the median time of a trained row and of a test row; a control is trained and hardly asked."""
    pairs = [(record["seconds"], record["config"]) for record in records]
    tune = median(spent["tune"] / (config["train_rows"] * config["train"]["epochs"]) for spent, config in pairs)
    ask = median((spent["total"] - spent["tune"]) / config["test_rows"] for spent, config in pairs)
    trained = sum(cell.train_rows * cell.train.epochs for cell in [*group, *controls])
    return tune * trained + ask * sum(cell.test_rows for cell in group)


def computed(group: Sequence[Cell], controls: Sequence[Cell], card: float = CARD) -> tuple[str, float, int]:
    """What a bench's cells will take by the checkpoint's sizes: in words, in seconds, and in bytes of disk for good."""
    size = sizes(group[0].model)
    if size is None:
        return "no estimate; the reference has no cell of this model, and its files are not on this machine", 0.0, 0
    adapter_bytes = max(size.adapter_bytes(cell.train.lora_rank) for cell in group)
    together = int((card * USABLE - size.weights) / adapter_bytes)
    disk = sum(size.stored_bytes(cell.train.lora_rank) for cell in [*group, *controls])
    # Reading and training by the arithmetic, writing answers by the number of tokens one after the other.
    new_tokens = min(ANSWER, group[0].max_new_tokens)
    answer_bytes = size.layers * 2 * size.hidden * 2 * (size.row + group[0].max_new_tokens)  # a row's keys and values
    at_once = max(1, int((card * USABLE - size.weights) / answer_bytes))
    writing = sum(QUESTIONS * cell.test_rows / at_once * new_tokens * size.layers * STEP for cell in group)
    features, total = pictures(group) * size.feature_bytes(), operations(size, group, controls) / SPEED + writing
    fits = f"{together} fit into {card / 1e9:g} GB" if together > 0 else f"more than {card / 1e9:g} GB have"
    words = (
        f"about {total / 3600:.1f} hours, {minutes(total / len(group))} each, as fast as an NVIDIA H200; "
        f"{(size.weights + adapter_bytes) / 1e9:.1f} GB of the card's memory for one adapter ({fits}); "
        f"{features / 1e9:.1f} GB of memory or disk for image features while it runs, {disk / 1e9:.1f} GB of disk "
        "for adapters; computed from the model's sizes, not measured"
    )
    return words, total, disk


def operations(size: Sizes, group: Sequence[Cell], controls: Sequence[Cell]) -> float:
    """Operations: two per parameter and token forward, and two backward, as the base has no gradients of its own."""
    parameters = size.weights / 2
    trained_tokens = sum(cell.train_rows * cell.train.epochs for cell in [*group, *controls]) * size.row
    asked_tokens = sum(QUESTIONS * cell.test_rows * size.row for cell in group)
    return parameters * (4 * trained_tokens + 2 * asked_tokens)


def pictures(group: Sequence[Cell]) -> int:
    """Pictures whose features are kept, at most: clean ones once, and each attack's poisoned and tested ones."""
    triggered: dict[tuple, int] = {}
    for cell in group:
        if attacks.info(cell.attack).modality != "text":
            key = (cell.threat, cell.attack, json.dumps(dict(cell.attack_params), sort_keys=True), cell.trigger_seed)
            rows = ceil(cell.poison_rate * cell.train_rows) + cell.test_rows
            triggered[key] = max(rows, triggered.get(key, 0))
    tested = sum({cell.threat: cell.test_rows for cell in group}.values())
    return group[0].train_rows + tested + sum(triggered.values())


def sizes(model: str) -> Sizes | None:
    """The sizes of a model; None for a hub id whose files are not on this machine."""
    folder = names.folder(model)
    if folder is None:
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    element_size = 4 if config.get("dtype", config.get("torch_dtype")) == "float32" else 2
    return Sizes(
        stored * 2 // element_size, text.get("num_hidden_layers", 32), text.get("hidden_size", 4096),
        text.get("intermediate_size", 11008), context_length.image_tokens(folder),
    )  # fmt: skip
