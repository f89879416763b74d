"""What does a cell cost in seconds and memory, and what does grouping save? Free of torch.

The cost chapter asks. `lines` reads the timings that every record keeps; `benchmarks` reads what
`benchmarks/*.py --out` measured side by side. Nothing is timed here, and what no file holds is said to be
missing.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, page
from bvlm_book import words as wordss
from bvlm_utils import paths

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
    training_seconds: of the training loop alone. host_mib, gpu_mib: the most memory that the process had held
    by then, so no less than the cell's own need.
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
        known = part["host_mib"].max(), part["gpu_mib"].max()
        found.append(
            {
                "model": line["model"],
                "data": line["dataset"],
                "training rows": line["train_rows"],
                "machine": f"{line['device']}, {_count(line['threads'], 'thread')}",
                "cells": len(part),
                "at once": _range(part["tuned_together"]),
                "seconds per cell": _range(part["total"]),
                **{name: wordss.number(part[key].median(), digits=0) for key, name in PARTS.items()},
                "memory": ", ".join(
                    f"{mib / 1024:.1f} GiB{where}"
                    for mib, where in zip(known, ("", " on the GPU"), strict=True)
                    if pd.notna(mib)
                ),
            }
        )
    return pd.DataFrame(found)


def common(kinds: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """`by_kind` without the columns that say the same in every line, and a sentence that says it once."""
    same = [name for name in ("training rows", "machine") if len(kinds) > 1 and kinds[name].nunique() == 1]
    said = "; ".join(f"{name}: {kinds[name].iloc[0]}" for name in same)
    return kinds.drop(columns=same), f"The same for all: {said}." if said else ""


def _range(values: pd.Series) -> str:
    if values.isna().all():
        return "n/a"
    middle, low, high = values.median(), values.min(), values.max()
    return f"{middle:.0f}" if len(values) == 1 else f"{middle:.0f} ({low:.0f} to {high:.0f})"


def _count(number: Any, word: str) -> str:
    return f"unknown {word}s" if pd.isna(number) else f"{int(number)} {word}{'' if number == 1 else 's'}"


def overview(table: pd.DataFrame) -> str:
    """How long all measured cells took together, in Markdown; says so where there is none."""
    timed = table[table["total"].notna()]
    if timed.empty:
        return "No timings yet: the store holds no measured cell."
    return (
        f"The {len(timed)} measured cells took {timed['total'].sum() / 3600:.1f} hours of one process, "
        f"{timed['total'].median():.0f} seconds in the median ({timed['total'].min():.0f} to "
        f"{timed['total'].max():.0f})."
    )


def figure(table: pd.DataFrame) -> Figure:
    """Seconds per cell against the cells that were run at once: a dot per cell, a panel per machine."""
    timed = table[table["total"].notna()]
    if timed.empty:
        return figures.nothing("No timings yet.")
    machines = list(dict.fromkeys(zip(timed["device"], timed["threads"], strict=True)))
    kinds = list(dict.fromkeys(zip(timed["model"], timed["dataset"], strict=True)))
    with matplotlib.rc_context(figures.STYLE):
        drawn = Figure(figsize=(max(5.5, 4.2 * len(machines)), 4), layout="constrained")
        axes = drawn.subplots(1, len(machines), squeeze=False, sharey=True)[0]
    for axis, (device, threads) in zip(axes, machines, strict=True):
        here = timed[(timed["device"] == device) & (timed["threads"] == threads)]
        for number, (model, dataset) in enumerate(kinds):
            part = here[(here["model"] == model) & (here["dataset"] == dataset)]
            axis.scatter(
                part["tuned_together"], part["total"], s=28, alpha=0.75, label=f"{model}, {dataset}",
                color=figures.COLOURS[number % len(figures.COLOURS)],
                marker=figures.MARKERS[number % len(figures.MARKERS)], edgecolors="white", linewidths=0.5,
            )  # fmt: skip
        axis.set(title=f"{device}, {_count(threads, 'thread')}", xlabel="cells trained and asked at once")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("seconds per cell")
    handles, labels = axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=2)
    return drawn


def words(table: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `figure`."""
    timed = table[table["total"].notna()]
    if timed.empty:
        return {"alt": "No timings have been stored yet.", "caption": "No timings have been stored yet."}
    sizes = sorted({int(size) for size in timed["tuned_together"].dropna()})
    slow, fast = timed["total"].max(), timed["total"].min()
    groups = " to ".join(dict.fromkeys((str(sizes[0]), str(sizes[-1])))) if sizes else "unknown"
    return {
        "alt": f"Scatter plot: seconds per cell, from {fast:.0f} to {slow:.0f}, against the number of cells "
        f"that were run at once ({groups}).",
        "caption": f"Every dot is a cell of the study: {fast:.0f} to {slow:.0f} seconds, {groups} at once. "
        f"{_finding(timed)}Whatever else the machine did meanwhile is in these seconds too; what grouping "
        "saves is measured side by side below.",
    }


def _finding(timed: pd.DataFrame) -> str:
    """Medians of the cells that were run alone and in groups, if there are both."""
    single = timed["tuned_together"] == 1
    alone, grouped = timed.loc[single, "total"], timed.loc[~single, "total"]
    if alone.empty or grouped.empty:
        return ""
    return f"Alone a cell took {alone.median():.0f} seconds in the median, in groups {grouped.median():.0f}. "


# ---------------------------------------------------------------- what the benchmarks say


def benchmarks(name: str, folder: str | Path | None = None) -> list[dict[str, Any]]:
    """The result files of benchmarks/NAME.py, oldest first; an empty list where none was kept.

    folder: None means `FOLDER`, benchmarks/results.
    """
    files = sorted(Path(folder or FOLDER).glob("*.json"))
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return sorted((kept for kept in found if kept["benchmark"] == name), key=lambda kept: kept["written"])


def conditions(kept: Mapping[str, Any]) -> str:
    """On what, and amid how much other work, a benchmark was run; a clause."""
    machine = kept["machine"]
    busy = "unknown"
    if kept["load_before"] is not None:
        busy = f"{kept['load_before']:g} before and {kept['load_after']:g} after"
    return (
        f"{machine['processor']}, {_count(machine['cores'], 'core')}, {_count(machine['threads'], 'thread')}"
        + (f", {machine['device']}" if machine["device"] != "cpu" else "")
        + f", torch {machine['torch']}, {kept['written'][:10]}; processes that wanted a core: {busy}"
    )


def grid_table(kept: Mapping[str, Any]) -> pd.DataFrame:
    """One result of benchmarks/grid.py, to read: a line per way, number of cells, length of prompts and rank; of the
    last two, those that were varied.
    """
    varied = {"text": "longest prompt, words", "rank": "rank"}
    varied = {key: name for key, name in varied.items() if len({line.get(key) for line in kept["lines"]}) > 1}
    return pd.DataFrame(
        [
            {
                "cells": line["cells"],
                **{name: line[key] + (8 if key == "text" else 0) for key, name in varied.items()},
                "way": WAYS.get(line["way"], line["way"]),
                "train, s per cell": wordss.number(line["train_s_per_cell"]),
                "answer, s per cell": wordss.number(line["decode_s_per_cell"]),
                "times plain": wordss.number(_times_plain(line), digits=1),
                "share of GEMM peak": wordss.number(line["gemm_share"]),
                "peak memory, GiB": wordss.number(line["peak_gib"], digits=1),
                "same answers": "" if line["way"] == "plain" else wordss.number(line.get("same_answers")),
            }
            for line in kept["lines"]
        ]
    )


def _gain(kept: Mapping[str, Any]) -> str:
    """What grouping won, in a sentence: over all sizes that were timed."""
    times = [line["times_plain"] for line in kept["lines"] if line["way"] == "grouped" and line.get("times_plain")]
    return f"Grouped: {min(times):.1f} to {max(times):.1f} times as fast as plain. " if times else ""


def _repeats(count: int) -> str:
    return "one run of each" if count == 1 else f"the fastest of {count} runs of each"


def _listed(value: int | Sequence[int]) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _times_plain(line: Mapping[str, Any]) -> float | None:
    return 1.0 if line["way"] == "plain" else line.get("times_plain")


def poisoning_table(kept: Mapping[str, Any]) -> pd.DataFrame:
    """One result of benchmarks/poisoning.py, to read: a line per attack and side."""
    return pd.DataFrame(
        [
            {
                "attack": line["attack"],
                "side, pixels": line["side"],
                "batched, images/s": wordss.number(line["batched"], digits=1),
                "times a loop": wordss.number(line["batched"] / line["loop"], digits=1),
                "times the way through files": wordss.number(
                    line["batched"] / line["files"] if line.get("files") else None, digits=1
                ),
            }
            for line in kept["lines"]
        ]
    )


def show_benchmarks(name: str, folder: str | Path | None = None) -> None:
    """Put every kept result of benchmarks/NAME.py on the page, or say how to make one."""
    found = benchmarks(name, folder)
    if not found:
        place = folder or "benchmarks/results"
        page.say(
            f"**Not measured yet**: no result of `benchmarks/{name}.py` is kept in `{place}`. "
            f"`python benchmarks/{name}.py --out benchmarks/results/{name}.json` makes one."
        )
    for kept in found:
        if name == "grid":
            given = kept["arguments"]
            shape = f"A random model of the shape {given['shape']!r}"
            what = shape if given["shape"] else f"{given['model']}, {given['dataset']}"
            caption = (
                f"{_gain(kept)}{what}, {given['rows']} training rows, {2 * given['tests']} answers per cell, batches "
                f"of {given['batch']}, rank {_listed(given['rank'])}, {_repeats(given['repeat'])}. {conditions(kept)}."
            )
            page.show_table(grid_table(kept), caption)
        else:
            times = [line["batched"] / line["loop"] for line in kept["lines"]]
            caption = f"Batches are {min(times):.1f} to {max(times):.1f} times as fast as a loop. "
            caption += f"{_repeats(kept['arguments']['repeats']).capitalize()}. {conditions(kept)}."
            page.show_table(poisoning_table(kept), caption)
    if found and name == "grid":
        page.say(
            "*GEMM peak* is the speed of plain matrix products of the same shapes, timed in the same minute; the share "
            "counts only those products that no exact method avoids. *Processes that wanted a core* are the "
            "machine's load: where they outnumber its cores, they wait for each other, and the seconds are too long."
        )
