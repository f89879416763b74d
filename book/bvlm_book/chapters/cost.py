"""What does an experiment cost in seconds and memory, and what does grouping save? Free of torch.

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

FOLDER = paths.ROOT / "benchmarks" / "results"
# What a record's seconds were spent on.
PARTS = ("tune", "ask", "base and control")
COLUMNS = [
    "run_id", "model", "dataset", "device", "threads", "train_rows", "tuned_together", *PARTS, "total",
    "training_seconds", "tokens", "host_mib", "gpu_mib",
]  # fmt: skip
KIND = ["model", "dataset", "train_rows", "device", "threads"]
WAYS = {
    "plain": "plain",
    "alone": "ours, one by one",
    "grouped": "ours, at once",
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
    """What an experiment cost, to read: a line per model, data and machine, medians with their range."""
    found = []
    for key, part in table.groupby(KIND, dropna=False):
        line = dict(zip(KIND, key, strict=True))
        memory = {"": part["host_mib"].max(), " on the GPU": part["gpu_mib"].max()}
        found.append({
            "model": line["model"], "data": line["dataset"],
            "machine": f"{line['device']}, {_threads(line['threads'])}", "experiments": len(part),
            "at once": _median(part["tuned_together"]), "seconds each": _median(part["total"]),
            "memory": ", ".join(f"{mib / 1024:.1f} GiB{where}" for where, mib in memory.items() if pd.notna(mib)),
        })  # fmt: skip
    return pd.DataFrame(found)


def _median(values: pd.Series) -> str:
    """ "104 (79 to 208)": the median with the range."""
    spread = "" if len(values) == 1 else f" ({words.span(values.dropna(), 0)})"
    return "n/a" if values.isna().all() else f"{values.median():.0f}{spread}"


def numbers(table: pd.DataFrame, folder: str | Path | None = None) -> dict[str, str]:
    """What all measured experiments took, and what grouping and batches gain, to be glued; "n/a" where not measured."""
    total, single = table["total"].dropna(), table["tuned_together"] == 1
    gains = [line["times_plain"] for kept in benchmarks("grid", folder) for line in kept["lines"]
             if line["way"] == "grouped" and line.get("times_plain")]  # fmt: skip
    painted = [line for kept in benchmarks("poisoning", folder) for line in kept["lines"]]
    return {
        "experiments": str(len(total)), "hours": f"{total.sum() / 3600:.1f}",
        "seconds": words.number(total.median(), digits=0),
        "alone": words.number(table.loc[single, "total"].median(), digits=0),
        "grouped": words.number(table.loc[~single, "total"].median(), digits=0),
        "gain": words.span(gains, 1),
        "loop": words.span([line["batched"] / line["loop"] for line in painted], 1),
        "files": words.span([line["batched"] / line["files"] for line in painted if line.get("files")], 0),
    }  # fmt: skip


def _threads(number: float) -> str:
    return "unknown threads" if pd.isna(number) else words.count(number, "thread")


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
        axis.set(title=f"{device}, {_threads(threads)}", xlabel="experiments run at once")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("seconds per experiment")
    figures.legend_below(drawn, axes[0], columns=2)
    return drawn


def figure_words(table: pd.DataFrame) -> dict[str, str]:
    """Title, alternative text and caption of `figure`."""
    timed = table[table["total"].notna()]
    if timed.empty:
        return words.nothing_measured("Seconds per experiment")
    title = f"An experiment took {words.span(timed['total'], 0)} seconds."
    alt = f"Scatter plot: seconds per experiment against how many were run at once. {title}"
    return {"title": title, "alt": alt, "caption": "A dot per experiment; what else the machine did is in it, too."}


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
    """One result of benchmarks/grid.py, to read: a line per way and number of experiments."""
    lines = [{"same_answers": None, "times_plain": 1.0} | line for line in kept["lines"]]
    return tables.readable(pd.DataFrame(lines), {
        "experiments": "cells", "way": lambda line: WAYS.get(line["way"], line["way"]),
        "train, s each": lambda line: words.number(line["train_s_per_cell"]),
        "answer, s each": lambda line: words.number(line["decode_s_per_cell"]),
        "times plain": lambda line: words.number(line["times_plain"], digits=1),
        "same answers": lambda line: "" if line["way"] == "plain" else words.number(line["same_answers"]),
    })  # fmt: skip


def show_grid(folder: str | Path | None = None) -> None:
    """Put the comparison with most numbers of experiments on the page, or say how to make one."""
    found = benchmarks("grid", folder)
    if not found:
        page.say("**Not measured yet**: `python benchmarks/grid.py --out benchmarks/results/grid.json` measures it.")
        return
    kept = max(found, key=lambda one: len({line["cells"] for line in one["lines"]}))
    given = kept["arguments"]
    about = f"{given['model'] or 'a random model'}, {given['rows']} training rows. {conditions(kept)}."
    page.show_table(grid_table(kept), f"Three ways of running the same experiments: {about}")
