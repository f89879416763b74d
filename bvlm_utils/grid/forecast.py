"""Estimates of the rows, time, memory and disk that a grid takes, which `grid run --dry-run` prints. Free of torch.

Where the committed reference has cells of the same model, time and memory are what they took there, by rows; else they
follow from the model's sizes (`grid.forecast_computed`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bvlm_utils import store as results
from bvlm_utils.errors import InputError
from bvlm_utils.grid import forecast_computed, forecast_rows
from bvlm_utils.grid import measure as grid_measure
from bvlm_utils.grid.progress import minutes
from bvlm_utils.store import records as stored_records
from bvlm_utils.store.cell import Cell, short_name


def lines(cells: Sequence[Cell], folder: Path, card: float = forecast_computed.CARD) -> list[str]:
    """Lines for each bench of these cells, which are those still to be made. card: bytes of a GPU."""
    texts, seconds_in_all, disk = ["Estimates:"] if cells else [], 0.0, 0
    try:
        stored = stored_records.records(stored_records.REFERENCE)
    except InputError as error:  # a damaged reference says nothing about how long other cells take
        stored, texts = [], [f"{error} So these are computed:"]
    records = [record for record in stored if record.get("seconds", {}).get("tune")]
    unknown: list[Cell] = []  # those that no record tells of
    for group in grid_measure.parts([cell for cell in cells if not cell.skip_reason], 1):
        usable, row_lines = forecast_rows.usable(group)
        controls = [cell.control for cell in {forecast_computed.control_key(cell): cell for cell in usable}.values()]
        lacking = [control for control in controls if not results.adapter(control, folder)]
        first = group[0]
        name = f"  {short_name(first.model)}, {short_name(first.dataset)}, {first.train_rows} rows: {len(usable)} cells"
        words = measured(usable, lacking, records) if usable else "none can be run"
        if words is None:
            unknown += usable
            words, spent, stored_bytes = forecast_computed.computed(usable, lacking, card)
            seconds_in_all, disk = seconds_in_all + spent, disk + stored_bytes
        texts += [f"{name}: {words}", *row_lines]
    words, searching = forecast_computed.triggers(unknown)
    texts += [words] if words else []
    if seconds_in_all:
        hours = (seconds_in_all + searching) / 3600
        texts.append(
            f"In all, of what is computed: at least {hours:.1f} hours on one card, {disk / 1e9:.1f} GB of adapters."
        )
    return texts


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
