"""Tables of numbers from a store's tidy table: success, false activation, utility, differences.

Seeds are put together here, never pooled as rows. Free of torch, so that pages show what is stored without a model.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bvlm_book import words
from bvlm_book.probes import records
from bvlm_book.probes.records import CONTROL
from bvlm_book.words import MEASURES
from bvlm_utils import attacks, paths, store
from bvlm_utils.checks import check_text
from bvlm_utils.errors import InputError
from bvlm_utils.score import intervals
from bvlm_utils.store.records import has_responses
from bvlm_utils.store.table import TOLD_APART, headline, headline_metric

CELL = ["model", "dataset", "threat", "attack", "modality", "poison_rate", "n_poisoned"]
NUMBER = [*CELL, "subject", "condition", "metric"]
PANEL = ["model", "dataset", "threat", "train_rows", "settings", "rows"]
CELL_AND_SETTINGS = ["model", "dataset", "threat", "attack", "poison_rate", "n_poisoned", "negatives", "settings"]
# A cell in the tidy table but for its seed.
POINT = [name for name in TOLD_APART if name != "seed"]


# ---------------------------------------------------------------- the table


def summary(table: pd.DataFrame, metric: str, subject: str | None = None) -> pd.DataFrame:
    """One row per cell but for its seed, subject and condition: value and interval over the seeds.

    table: rows of `store.collect`. Seeds are put together as in `probes.records.seeds_together`; `n_seeds` says how
    many there were. InputError where one seed has two values: such a table mixes settings that no column tells apart.
    """
    rows = table[(table["metric"] == metric) & table["value"].notna()]
    if subject is not None:
        rows = rows[rows["subject"] == subject]
    repeated = rows.duplicated([*NUMBER, "seed"])
    if repeated.any():
        first = rows[repeated].iloc[0]
        raise InputError(
            f"Cell {first['run_id']} is in the table twice with seed {first['seed']}; "
            "show runs that differ in other settings one table at a time."
        )

    def bounds(line: Mapping[str, Any]) -> tuple[float, float]:  # shares: no interval beyond 0 and 1
        return (-np.inf, np.inf) if pd.isna(line["k"]) else (0.0, 1.0)

    return records.seeds_together(rows, NUMBER, ("k", "n", "unit"), bounds)


def success_rates(table: pd.DataFrame, subject: str | None = None) -> pd.DataFrame:
    """`summary` of each cell's `headline_metric`, threat by threat."""
    own = table[table["metric"] == headline_metric(table)]
    parts = [summary(part, metric, subject) for (_, metric), part in own.groupby(["threat", "metric"], sort=False)]
    parts = [part for part in parts if len(part)]  # an empty one has no number types
    return pd.concat(parts, ignore_index=True) if parts else summary(table, "asr", subject)


def headline_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Only the rows under the condition that an attack is read from: its full trigger, if it has one.

    Shadowcast has no trigger at test time and is read on clean inputs.
    """
    return table[table["condition"] == table["attack"].map(lambda name: attacks.info(name).headline)]


def every_rate(table: pd.DataFrame, stored: pd.DataFrame) -> pd.DataFrame:
    """The rows of `stored` whose cells differ from those of `table` in poison rate and seed alone."""
    return stored[stored["experiment"].isin(table["experiment"])]


def every_seed(table: pd.DataFrame, stored: pd.DataFrame) -> pd.DataFrame:
    """The rows of `stored` whose cells differ from those of `table` in seed alone, and those of `table`.

    A page that shows one seed where the store holds three would contradict the pages that show all of them.
    """
    key = ["experiment", "poison_rate"]
    return table[key].drop_duplicates().merge(stored, on=key)[stored.columns]  # in the order of `table`


def false_activation(table: pd.DataFrame) -> pd.DataFrame:
    """Only the clean rows, of attacks that should not fire there."""
    return table[
        (table["condition"] == "clean") & (table["attack"].map(lambda name: attacks.info(name).headline) != "clean")
    ]


def utility_metric(rows: pd.DataFrame) -> str:
    """What utility is called in these rows of `summary` (its unit), such as "VQA accuracy"."""
    return " or ".join(rows["unit"].dropna().unique()) or "utility"


def readable(frame: pd.DataFrame, columns: Mapping[str, str | Callable[[dict[str, Any]], Any]]) -> pd.DataFrame:
    """A table to read: a line per line of `frame`, and by its title each column's name, or a function of the line."""
    return pd.DataFrame([
        {title: line[of] if isinstance(of, str) else of(line) for title, of in columns.items()}
        for line in frame.to_dict("records")
    ])  # fmt: skip


def beside(
    frame: pd.DataFrame,
    same: Sequence[str],
    by: str,
    names: Iterable[str] | None = None,
    write: Callable[[Mapping[str, Any]], str] = words.interval,
) -> pd.DataFrame:
    """A line per value of the columns `same`, with what `write` makes of its lines in a column per value of `by`.

    names: the values of `by`, in their order; None: those of the frame. A line that is missing is written from {}.
    `seeds`: how many, where the frame says so.
    """
    names, lines = list(dict.fromkeys(frame[by]) if names is None else names), []
    for key, part in frame.groupby(list(same), sort=False, dropna=False):
        found = part.drop_duplicates(by).set_index(by, drop=False).to_dict("index")
        line = dict(zip(same, key, strict=True)) | {name: write(found.get(name, {})) for name in names}
        lines.append(line | ({"seeds": words.span(part["n_seeds"])} if "n_seeds" in part else {}))
    return pd.DataFrame(lines, columns=[*same, *names, *(["seeds"] if "n_seeds" in frame else [])])


def conditions(rows: pd.DataFrame) -> dict[str, str]:
    """Title -> name of the conditions that the rows have, in their order, for `readable`."""
    return {words.CONDITION_LABELS[name]: name for name in words.CONDITIONS if name in set(rows["condition"])}


def grid_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `summary` (one subject) to read: a line per attack and rate, a column per condition."""
    if rows.empty:
        return pd.DataFrame(columns=["attack", "modality", "poisoned rows"])
    columns = conditions(rows)
    cells = beside(rows, ["attack", "modality", "poison_rate", "n_poisoned"], "condition", columns.values(),
                   words.marked_interval)  # fmt: skip
    about = {"attack": "attack", "modality": "modality",
             "poisoned rows": lambda r: f"{r['n_poisoned']:.0f} ({words.rate(r)})"}  # fmt: skip
    return readable(cells, about | columns | {"seeds": "seeds"})


def other_metrics(table: pd.DataFrame) -> pd.DataFrame:
    """Further measures at the highest rate: a line per measure, attack and condition, a column per model."""
    headlines = {headline(threat) for threat in table["threat"].unique()}
    parts = [summary(table, name) for name in table["metric"].dropna().unique() if name in MEASURES.keys() - headlines]
    if not parts:
        return pd.DataFrame()
    rows = pd.concat([part[part["poison_rate"] == part["poison_rate"].max()] for part in parts])
    names = [name for name in words.SUBJECTS if name in set(table["subject"])]
    about = {"measure": lambda r: MEASURES[r["metric"]], "attack": "attack", "condition": condition}
    found = beside(rows, ["metric", "attack", "condition"], "subject", names)
    return readable(found, about | {words.SUBJECT_LABELS[name]: name for name in names})


def condition(row: Mapping[str, Any]) -> str:
    return words.CONDITION_LABELS.get(row["condition"], row["condition"])


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """Poisoned minus clean-tuned on the same rows: one line per measure, attack, rate and condition."""
    names = {"asr_difference": "strict success", "utility_difference": "utility"}
    rows = pd.concat([summary(table, metric) for metric in names], ignore_index=True)
    return readable(rows, {
        "measure": lambda r: names[r["metric"]], "attack": "attack", "poison rate": words.rate, "condition": condition,
        "poisoned minus clean-tuned": words.interval,
    })  # fmt: skip


def panels(table: pd.DataFrame) -> list[tuple[pd.DataFrame, str]]:
    """The parts of `collect` that make a matrix each, with their names: of one model, threat and poison rate.

    The control, which has no rate, is in every panel of its model and threat.
    """
    found = []
    for key, part in table.groupby(PANEL, sort=False):
        about = dict(zip(PANEL, key, strict=True))
        poisoned = part[part["subject"] == records.POISONED]
        for rate in sorted(poisoned["poison_rate"].unique(), reverse=True):
            chosen = part[(part["subject"] == CONTROL) | (part["poison_rate"] == rate)]
            threat = about["threat"].replace("_", " ").capitalize()
            name = f"{threat}, {about['model']}, {words.percent(rate)} poisoned"
            found.append((chosen, name + (f", {about['settings']}" if about["settings"] else "")))
    return found


def usual(table: pd.DataFrame) -> pd.DataFrame:
    """The finished cells of attacks and threats as they are defined, without half-triggered negatives."""
    return table[(table["status"] == "done") & (table["negatives"] == 0) & (table["settings"] == "")]


def held(run_id: str, metric: str, subject: str, place: str | Path | None = None) -> pd.DataFrame | None:
    """Which judged inputs passed a threat's headline test: condition, row_id, prompt, held. None without responses.

    metric: "asr", or "asr_right" for those whose answer is right, too (`store.table.headline_metric`).
    """
    if not has_responses(run_id, place):
        return None
    said = store.responses(run_id, place)
    said = said[(said["subject"] == subject) & (said["part"] == "attack") & said["judged"]]
    passed = said["success"].astype(bool)
    if metric == "asr_right":
        passed &= said["right"].fillna(False).astype(bool)
    return said[["condition", "row_id", "prompt"]].assign(held=passed)


def difference(ours: pd.DataFrame, theirs: pd.DataFrame, condition: str) -> dict[str, Any]:
    """Shares of two `held` under a condition and ours - theirs, with `score.intervals.paired_shares`' interval; {} for
    none.

    InputError where the two were not asked about the same inputs.
    """
    sides = [one[one["condition"] == condition].set_index("row_id")["held"].sort_index() for one in (ours, theirs)]
    if not all(len(side) for side in sides):
        return {}
    value, low, high = intervals.paired_shares(*sides)
    return {"ours": sides[0].mean(), "theirs": sides[1].mean(), "value": value, "low": low, "high": high,
            "n": len(sides[0])}  # fmt: skip


def finished_cells(table: pd.DataFrame) -> pd.DataFrame:
    done = table[table["status"] == "done"]
    return done.assign(headline=headline_metric(done)).drop_duplicates("run_id")


def progress(files: Iterable[str], place: str | Path | None = None) -> pd.DataFrame:
    """What the grids ask for and what the store holds of it: a line per grid, model and threat.

    files: grid files, relative to the project or absolute.
    """
    from bvlm_utils.grid import file as grid_file

    lines = []
    for file in files:
        check_text(file, "A grid")
        jobs, _ = grid_file.load(paths.ROOT / file)
        for cell in {cell.run_id: cell for job in jobs for cell in job.cells}.values():
            about = Path(file).name, cell.model, cell.threat.replace("_", " ")
            lines.append([*about, 1, int(store.has(cell, place))])
    counted = pd.DataFrame(lines, columns=["grid", "model", "threat", "cells", "in this store"])
    counted = counted.groupby(["grid", "model", "threat"], sort=False, as_index=False).sum()
    return counted.assign(missing=counted["cells"] - counted["in this store"])
