"""What an experiment costs (`lines`), and what grouping saves (`benchmarks`). Nothing is timed here."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, page, tables, words
from bvlm_utils import paths
from bvlm_utils.documents import read_json
from bvlm_utils.errors import InputError
from bvlm_utils.store import damage

FOLDER = paths.ROOT / "benchmarks" / "results"
CELL = ["run_id", "device", "threads", "tuned_together"]
NUMBERS = ["total", "host_mib", "gpu_mib"]
WAYS = {"plain": "plain", "grouped": "ours, at once"}
# What a benchmark's file has, and of each benchmark that is shown what a line must have, and may have.
MAYBE = (*damage.NUMBER, type(None))
OF_ALL, ALL_MAY = {"written": str, "lines": list}, {"machine": dict, "arguments": dict}
OF_LINES = {
    "grid": ({"way": str, "cells": int}, dict.fromkeys(("train_s_per_cell", "decode_s_per_cell"), damage.NUMBER)
             | dict.fromkeys(("times_plain", "same_answers"), MAYBE)),
    "poisoning": (dict.fromkeys(("batched", "loop"), damage.NUMBER), {"files": MAYBE}),
    "gpu": ({"step": str, "part": str}, {}),
}  # fmt: skip


def lines(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per measured cell, no controls. total: the cell's share of its group's seconds; *_mib: of the process."""
    finished = [record for record in records if record.get("status") == "done" and record["config"]["attack"] != "none"]
    cells = [
        record["config"] | record.get("seconds", {}) | record.get("peak_memory_of_process", {}) | record
        for record in finished
    ]
    return pd.DataFrame(cells, columns=[*CELL, "model", "dataset", *NUMBERS]).astype(dict.fromkeys(NUMBERS, "float64"))


def by_kind(table: pd.DataFrame) -> pd.DataFrame:
    """What an experiment cost, to read: a line per model and machine, medians with their range."""
    rows = []
    for (model, device, threads), cells in table.groupby(["model", "device", "threads"], dropna=False):
        memory = {"": cells["host_mib"].max(), " on the GPU": cells["gpu_mib"].max()}
        rows.append({
            "model and machine": f"{model}, {device}, {_threads(threads)}", "experiments": len(cells),
            "at once": _median(cells["tuned_together"]), "seconds each": _median(cells["total"]),
            "memory": ", ".join(f"{mib / 1024:.1f} GiB{suffix}" for suffix, mib in memory.items() if pd.notna(mib)),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _median(values: pd.Series) -> str:
    """ "104 (79 to 208)": the median with the range."""
    spread = "" if len(values) == 1 else f" ({words.span(values.dropna(), 0)})"
    return "n/a" if values.isna().all() else f"{values.median():.0f}{spread}"


def _threads(number: float) -> str:
    return "unknown threads" if pd.isna(number) else words.count(number, "thread")


def numbers(table: pd.DataFrame, folder: str | Path | None = None) -> dict[str, str]:
    """What all measured experiments took, and what grouping and batches gain, to be glued; "n/a" where not measured."""
    total, single, cpu = table["total"].dropna(), table["tuned_together"] == 1, table["device"] == "cpu"
    gains = [line["times_plain"] for result in benchmarks("grid", folder) for line in result["lines"]
             if line["way"] == "grouped" and line.get("times_plain")]  # fmt: skip
    poisoning = [line for result in benchmarks("poisoning", folder) for line in result["lines"]]
    return {
        "experiments": str(len(total)), "hours": f"{total.sum() / 3600:.1f}", "range": words.span(total, 0),
        "seconds": words.number(total.median(), digits=0),
        "alone": words.number(table.loc[single & cpu, "total"].median(), digits=0),
        "grouped": words.number(table.loc[~single & cpu, "total"].median(), digits=0),
        "gain": words.span(gains, 1),
        "loop": words.span([line["batched"] / line["loop"] for line in poisoning], 1),
        "files": words.span([line["batched"] / line["files"] for line in poisoning if line.get("files")], 0),
    }  # fmt: skip


def figure(timed: pd.DataFrame) -> Figure:
    """Seconds per cell against the cells that were run at once: a dot per cell, a panel per machine. timed: `lines`."""
    machines = list(timed.groupby(["device", "threads"], sort=False, dropna=False))
    kinds = timed[["model", "dataset"]].drop_duplicates().itertuples(index=False, name=None)
    looks = {kind: figures.look(number) for number, kind in enumerate(kinds)}
    dots = {"s": 28, "alpha": 0.75, "edgecolors": "white", "linewidths": 0.5}
    figure, axes = figures.new_figure(len(machines), 5.5 if len(machines) == 1 else 4.2, 4, sharey=True)
    for axis, ((device, threads), cells) in zip(axes, machines, strict=True):
        for (model, dataset), look in looks.items():
            points = cells[(cells["model"] == model) & (cells["dataset"] == dataset)]
            axis.scatter(points["tuned_together"], points["total"], label=f"{model}, {dataset}", **dots, **look)
        axis.set(title=f"{device}, {_threads(threads)}", xlabel="experiments run at once")
        axis.set_xlim(left=0)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("seconds per experiment")
    figures.legend_below(figure, axes[0], columns=2)
    return figure


def benchmarks(name: str, folder: str | Path | None = None) -> list[dict[str, Any]]:
    """The result files of benchmarks/NAME.py in `folder` (None: benchmarks/results), oldest first."""
    contents = [_read(file) for file in sorted(paths.named(folder or FOLDER, "result").glob("*.json"))]
    results = [result for result in contents if isinstance(result, dict) and result.get("benchmark") == name]
    return sorted(results, key=lambda result: result["written"])


def _read(file: Path) -> Any:
    """The content of a benchmark's file; None for a damaged one, which standard error names: the others are shown."""
    try:
        content = read_json(file)
        if not isinstance(content, dict) or str(content.get("benchmark")) not in OF_LINES:
            return content
        if lacking := damage.lacks(content, OF_ALL, ALL_MAY):
            raise InputError(f"{file} has no {lacking}")
        for line in content["lines"]:
            lacking = "table" if not isinstance(line, dict) else damage.lacks(line, *OF_LINES[content["benchmark"]])
            if lacking or 0 in (line.get("loop"), line.get("files")):
                raise InputError(f"{file} has no {lacking or 'number above 0'} in each of its lines")
        return content
    except InputError as error:
        damage.passed_over(f"A benchmark's file is passed over: {str(error).rstrip('.')}.")
        return None


def conditions(result: Mapping[str, Any]) -> str:
    """A clause: the machine that a benchmark was run on, and how busy it was."""
    machine, loads = result.get("machine", {}), [result.get(f"load_{when}") for when in ("before", "after")]
    busy = "unknown" if None in loads else f"{loads[0]:g} before and {loads[1]:g} after"
    cores, device = machine.get("cores"), machine.get("device", "cpu")
    parts = [machine.get("processor", "unknown processor"), words.count(cores, "core") if cores else "unknown cores"]
    parts += [_threads(machine.get("threads")), *[device] * (device != "cpu")]
    parts += [f"torch {machine.get('torch', 'unknown')}", result["written"][:10]]
    return f"{', '.join(parts)}; processes that wanted a core: {busy}"


def grid_table(result: Mapping[str, Any]) -> pd.DataFrame:
    """One result of benchmarks/grid.py, to read: a line per way and number of experiments."""
    lines = [{"same_answers": None, "times_plain": 1.0} | line for line in result["lines"] if line["way"] != "alone"]
    return tables.readable(pd.DataFrame(lines), {
        "experiments": "cells", "way": lambda line: WAYS.get(line["way"], line["way"]),
        "train, s each": lambda line: words.number(line.get("train_s_per_cell")),
        "answer, s each": lambda line: words.number(line.get("decode_s_per_cell")),
        "times plain": lambda line: words.number(line["times_plain"], digits=1),
        "same answers": lambda line: "" if line["way"] == "plain" else words.number(line["same_answers"]),
    })  # fmt: skip


def show_grid(folder: str | Path | None = None) -> None:
    """Put the comparison with most numbers of experiments on the page, or say how to make one."""
    results = benchmarks("grid", folder)
    if not results:
        page.say("**Not measured yet**: `python benchmarks/grid.py --out benchmarks/results/grid.json` measures it.")
        return
    result = max(results, key=lambda result: len({line["cells"] for line in result["lines"]}))
    setup = result.get("arguments", {})
    text = f"{setup.get('model') or 'a random model'}, {setup.get('rows', 'n/a')} training rows. {conditions(result)}."
    page.show_table(grid_table(result), f"The same experiments, run in two ways: {text}")


def on_gpu(results: Sequence[Mapping[str, Any]], experiments: int = 0) -> dict[str, str]:
    """What one card measured, to be glued; "n/a" where there is no result. results: `benchmarks("gpu")`.

    checks, within: comparisons with the CPU or plain PEFT, and how many stay within their bounds. rate: experiments a
    minute in the largest grid that was run; minutes: what so many `experiments` would take at that rate. compared,
    agree, differ: numbers of the reference, run again in bfloat16. grouped, together: gain over plain, with how many
    experiments; large: in a model of 7B shape. adapters: how many fit. decode: gain of many rows at once. cudnn: loss
    by its attention.
    """
    result, na = results[-1] if results else {"lines": []}, float("nan")  # no line: a step left out, or failed
    steps: dict[str, dict[str, Any]] = {"grid": {}, "decode": {}, "check": {}}
    for line in result["lines"]:
        steps.setdefault(line["step"], {})[line["part"]] = line

    def number(step: str, part: str, name: str) -> Any:
        return steps.get(step, {}).get(part, {}).get(name, na)

    rerun = partial(number, "cells", "four cells, bfloat16, against the reference")
    grids = [line for line in result["lines"] if "cells_per_minute" in line and line["step"] != "grid"]
    rate = max(grids, key=lambda line: line.get("done") or 0)["cells_per_minute"] if grids else na
    timed = [line for line in steps["grid"].values() if "times_plain" in line]
    best = max(timed, key=lambda line: line["times_plain"], default={"times_plain": na, "cells": na})
    plain, grouped = (number("large", f"LLaVA-1.5: {name}", "tokens_per_s")
                      for name in ("plain, 16 rows", "4 adapters, 16 rows each"))  # fmt: skip
    slow, usual, cudnn = (number("decode", f"bfloat16: {name}", "rows_per_s") for name in (
        "16k tokens at once", "256k tokens at once", "256k tokens at once, cuDNN attention"))  # fmt: skip
    fastest = max((line.get("rows_per_s", na) for line in steps["decode"].values()), default=na)
    numbers = {
        "compared": (rerun("numbers"), "g"), "agree": (rerun("intervals_meet"), "g"), "differ": (rerun("worst"), "g"),
        "rate": (rate, ".0f"), "minutes": (experiments / rate, ".0f"),
        "grouped": (best["times_plain"], ".0f"), "together": (best["cells"], "g"),
        "large": (grouped / plain if plain else na, ".1f"),
        "adapters": (number("large", "LLaVA-1.5: largest bank", "fits"), "g"),
        "decode": (fastest / slow if slow else na, ".0f"), "cudnn": (usual / cudnn if cudnn else na, ".0f"),
    }  # fmt: skip
    checks = [line for line in steps["check"].values() if "bound" in line]
    within = sum(line.get("distance", na) <= line["bound"] for line in checks)
    texts = {name: "n/a" if pd.isna(value) else f"{value:{form}}" for name, (value, form) in numbers.items()}
    about = {"card": result.get("machine", {}).get("device"), "date": result.get("written", "")[:10]}
    about |= {"checks": str(len(checks)), "within": str(within)} if results else dict.fromkeys(("checks", "within"))
    return {name: text or "n/a" for name, text in about.items()} | texts


def groups_on_gpu(results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Grouped experiments against the plain way in bfloat16: a line per number of experiments."""
    grid = {line["part"]: line for result in results[-1:] for line in result["lines"] if line["step"] == "grid"}
    grid = {part: line for part, line in grid.items() if line["rows"] == 256 and part.startswith("bfloat16")}
    lines = [{"times_plain": 1.0} | line for line in grid.values()]
    return tables.readable(pd.DataFrame(lines), {
        "experiments": "cells", "way": lambda line: WAYS[line["way"]],
        "a minute": lambda line: round(line["cells_per_minute"]),
        "times plain": lambda line: words.number(line["times_plain"], digits=1),
        "memory, GiB": lambda line: words.number(line["peak_gib"], digits=1),
    })  # fmt: skip
