"""What does a cell cost in seconds and memory, and what does grouping save? Free of torch.

The cost chapter asks. `lines` reads the timings that every record keeps; `benchmarks` reads what `benchmarks/*.py
--out` measured side by side. Nothing is timed here, and what no file holds is said to be missing.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, page, tables, words
from bvlm_utils import paths
from bvlm_utils.documents import read_json
from bvlm_utils.english import capital

FOLDER = paths.ROOT / "benchmarks" / "results"
# What a record's seconds were spent on, and how that is called on the page.
PARTS = {"tune": "to train", "ask": "to ask", "base and control": "to ask base and control"}
COLUMNS = [
    "run_id", "model", "dataset", "device", "threads", "train_rows", "tuned_together", *PARTS, "total",
    "training_seconds", "tokens", "host_mib", "gpu_mib",
]  # fmt: skip
KIND = ["model", "dataset", "train_rows", "device", "threads"]
WAYS = {
    "plain": "plain: Trainer, PEFT, generate",
    "alone": "our engine, one cell at a time",
    "grouped": "our engine, all cells at once",
}


# ---------------------------------------------------------------- what the records say


def lines(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per measured cell (`store.records.records`), in `COLUMNS`; skipped cells and controls have none.

    tune, ask, base and control, total: seconds of wall clock, the cell's share of its group's.
    training_seconds: of the training loop alone. host_mib, gpu_mib: the most memory that the process had held by then,
    so no less than the cell's own need.
    """
    found = []
    for record in records:
        if record.get("status") != "done" or record["config"]["attack"] == "none":
            continue
        seconds, memory = record.get("seconds", {}), record.get("peak_memory_of_process", {})
        training = record.get("training", {})
        line = {name: record["config"].get(name) for name in ("model", "dataset", "train_rows")}
        line |= {name: record.get(name) for name in ("run_id", "device", "threads", "tuned_together")}
        line |= {name: seconds.get(name) for name in (*PARTS, "total")}
        line |= {"training_seconds": training.get("seconds"), "tokens": training.get("tokens")}
        found.append(line | {name: memory.get(name) for name in ("host_mib", "gpu_mib")})
    table = pd.DataFrame(found, columns=COLUMNS)
    return table.astype({name: "float64" for name in [*PARTS, "total", *COLUMNS[-4:]]})


def by_kind(table: pd.DataFrame) -> pd.DataFrame:
    """What a cell cost, to read: a line per model, data and machine, medians with their range."""
    found = []
    for key, part in table.groupby(KIND, dropna=False):
        line = dict(zip(KIND, key, strict=True))
        memory = {"": part["host_mib"].max(), " on the GPU": part["gpu_mib"].max()}
        found.append({
            "model": line["model"], "data": line["dataset"], "training rows": line["train_rows"],
            "machine": f"{line['device']}, {_threads(line['threads'])}", "cells": len(part),
            "at once": _median(part["tuned_together"]), "seconds per cell": _median(part["total"]),
            **{name: words.number(part[key].median(), digits=0) for key, name in PARTS.items()},
            "memory": ", ".join(f"{mib / 1024:.1f} GiB{where}" for where, mib in memory.items() if pd.notna(mib)),
        })  # fmt: skip
    return pd.DataFrame(found)


def common(kinds: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """`by_kind` without the columns that say the same in every line, and a sentence that says it once."""
    same = [name for name in ("training rows", "machine") if len(kinds) > 1 and kinds[name].nunique() == 1]
    said = "; ".join(f"{name}: {kinds[name].iloc[0]}" for name in same)
    return kinds.drop(columns=same), f"The same for all: {said}." if said else ""


def _median(values: pd.Series) -> str:
    """ "104 (79 to 208)": the median with the range."""
    spread = "" if len(values) == 1 else f" ({words.span(values.dropna(), 0)})"
    return "n/a" if values.isna().all() else f"{values.median():.0f}{spread}"


def _threads(number: float) -> str:
    return "unknown threads" if pd.isna(number) else words.count(number, "thread")


def overview(table: pd.DataFrame) -> str:
    """How long all measured cells took together, in Markdown; says so where there is none."""
    total = table["total"].dropna()
    if total.empty:
        return "No timings yet: the store holds no measured cell."
    return (
        f"The {len(total)} measured cells took {total.sum() / 3600:.1f} hours of one process, "
        f"{total.median():.0f} seconds in the median ({words.span(total, 0)})."
    )


def figure(table: pd.DataFrame) -> Figure:
    """Seconds per cell against the cells that were run at once: a dot per cell, a panel per machine."""
    timed = table[table["total"].notna()]
    if timed.empty:
        return figures.nothing("No timings yet.")
    machines = list(dict.fromkeys(zip(timed["device"], timed["threads"], strict=True)))
    kinds = list(dict.fromkeys(zip(timed["model"], timed["dataset"], strict=True)))
    drawn, axes = figures.new_figure(len(machines), 5.5 if len(machines) == 1 else 4.2, 4, sharey=True)
    for axis, (device, threads) in zip(axes, machines, strict=True):
        here = timed[(timed["device"] == device) & (timed["threads"] == threads)]
        for number, (model, dataset) in enumerate(kinds):
            part = here[(here["model"] == model) & (here["dataset"] == dataset)]
            axis.scatter(
                part["tuned_together"], part["total"], s=28, alpha=0.75, label=f"{model}, {dataset}",
                edgecolors="white", linewidths=0.5, **figures.look(number),
            )  # fmt: skip
        axis.set(title=f"{device}, {_threads(threads)}", xlabel="cells trained and asked at once")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("seconds per cell")
    figures.legend_below(drawn, axes[0], columns=2)
    return drawn


def figure_words(table: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `figure`."""
    timed = table[table["total"].notna()]
    if timed.empty:
        return dict.fromkeys(("alt", "caption"), "No timings have been stored yet.")
    groups, seconds = words.span(timed["tuned_together"].dropna(), 0), words.span(timed["total"], 0)
    single = timed["tuned_together"] == 1
    alone, grouped = timed.loc[single, "total"], timed.loc[~single, "total"]
    finding = ""
    if len(alone) and len(grouped):
        finding = f"Alone a cell took {alone.median():.0f} seconds in the median, in groups {grouped.median():.0f}. "
    return {
        "alt": f"Scatter plot: seconds per cell, from {seconds}, against the number of cells that were run at once "
        f"({groups}).",
        "caption": f"Every dot is a cell of the study: {seconds} seconds, {groups} at once. {finding}Whatever else the "
        "machine did meanwhile is in these seconds too; what grouping saves is measured side by side below.",
    }


# ---------------------------------------------------------------- what the benchmarks say


def benchmarks(name: str, folder: str | Path | None = None) -> list[dict[str, Any]]:
    """The result files of benchmarks/NAME.py, oldest first; an empty list where none was kept.

    folder: None means `FOLDER`, benchmarks/results.
    """
    found = [read_json(file) for file in sorted(paths.named(folder or FOLDER, "result").glob("*.json"))]
    ours = [kept for kept in found if isinstance(kept, dict) and kept.get("benchmark") == name]
    return sorted(ours, key=lambda kept: kept["written"])


def conditions(kept: Mapping[str, Any]) -> str:
    """On what, and amid how much other work, a benchmark was run; a clause."""
    machine, busy = kept["machine"], "unknown"
    if kept["load_before"] is not None:
        busy = f"{kept['load_before']:g} before and {kept['load_after']:g} after"
    return (
        f"{machine['processor']}, {words.count(machine['cores'], 'core')}, {_threads(machine['threads'])}"
        + (f", {machine['device']}" if machine["device"] != "cpu" else "")
        + f", torch {machine['torch']}, {kept['written'][:10]}; processes that wanted a core: {busy}"
    )


def grid_table(kept: Mapping[str, Any]) -> pd.DataFrame:
    """One result of benchmarks/grid.py, to read: a line per way, number of cells, length of prompts and rank; of the
    last two, those that were varied.
    """
    lines = [dict.fromkeys(("rank", "text", "same_answers", "times_plain")) | line for line in kept["lines"]]
    for line in (line for line in lines if line["way"] == "plain"):
        line |= {"times_plain": 1.0, "same_answers": None}
    columns = {"cells": "cells"}
    if len({line["text"] for line in lines}) > 1:
        columns["longest prompt, words"] = lambda line: line["text"] + 8
    if len({line["rank"] for line in lines}) > 1:
        columns["rank"] = "rank"
    return tables.readable(pd.DataFrame(lines), columns | {
        "way": lambda line: WAYS.get(line["way"], line["way"]),
        "train, s per cell": lambda line: words.number(line["train_s_per_cell"]),
        "answer, s per cell": lambda line: words.number(line["decode_s_per_cell"]),
        "times plain": lambda line: words.number(line["times_plain"], digits=1),
        "share of GEMM peak": lambda line: words.number(line["gemm_share"]),
        "peak memory, GiB": lambda line: words.number(line["peak_gib"], digits=1),
        "same answers": lambda line: "" if line["way"] == "plain" else words.number(line["same_answers"]),
    })  # fmt: skip


def poisoning_table(kept: Mapping[str, Any]) -> pd.DataFrame:
    """One result of benchmarks/poisoning.py, to read: a line per attack and side."""
    return tables.readable(pd.DataFrame([{"files": None} | line for line in kept["lines"]]), {
        "attack": "attack", "side, pixels": "side",
        "batched, images/s": lambda line: words.number(line["batched"], digits=1),
        "times a loop": lambda line: words.number(line["batched"] / line["loop"], digits=1),
        "times the way through files": lambda line: words.number(
            line["batched"] / line["files"] if line["files"] else None, digits=1),
    })  # fmt: skip


def show_benchmarks(name: str, folder: str | Path | None = None) -> None:
    """Put every kept result of benchmarks/NAME.py on the page, or say how to make one."""
    found = benchmarks(name, folder)
    if not found:
        page.say(
            f"**Not measured yet**: no result of `benchmarks/{name}.py` is kept in `{folder or 'benchmarks/results'}`. "
            f"`python benchmarks/{name}.py --out benchmarks/results/{name}.json` makes one."
        )
    for kept in found:
        if name == "grid":
            page.show_table(grid_table(kept), _grid_caption(kept))
        else:
            times = words.span([line["batched"] / line["loop"] for line in kept["lines"]], 1)
            how = f"{capital(_repeats(kept['arguments']['repeats']))}. {conditions(kept)}."
            page.show_table(poisoning_table(kept), f"Batches are {times} times as fast as a loop. {how}")
    if found and name == "grid":
        page.say(
            "*GEMM peak* is the speed of plain matrix products of the same shapes, timed in the same minute; the share "
            "counts only those products that no exact method avoids. *Processes that wanted a core* are the "
            "machine's load: where they outnumber its cores, they wait for each other, and the seconds are too long."
        )


def _grid_caption(kept: Mapping[str, Any]) -> str:
    given = kept["arguments"]
    times = [line["times_plain"] for line in kept["lines"] if line["way"] == "grouped" and line.get("times_plain")]
    gain = f"Grouped: {words.span(times, 1)} times as fast as plain. " if times else ""
    what = f"{given['model']}, {given['dataset']}"
    what = f"A random model of the shape {given['shape']!r}" if given["shape"] else what
    rank = ", ".join(map(str, given["rank"])) if isinstance(given["rank"], list) else given["rank"]
    return (
        f"{gain}{what}, {given['rows']} training rows, {2 * given['tests']} answers per cell, batches of "
        f"{given['batch']}, rank {rank}, {_repeats(given['repeat'])}. {conditions(kept)}."
    )


def _repeats(count: int) -> str:
    return "one run of each" if count == 1 else f"the fastest of {count} runs of each"
