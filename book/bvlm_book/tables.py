"""Tables of numbers from a store's tidy table: success, false activation, utility, differences.

Seeds are put together here, never pooled as rows. Free of torch, so that pages show what is stored without a model.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bvlm_book import words
from bvlm_book.probes import records
from bvlm_book.probes.records import CONTROL
from bvlm_book.words import MEASURES, marked, number
from bvlm_utils import attacks, store
from bvlm_utils.errors import InputError
from bvlm_utils.score import intervals
from bvlm_utils.store.records import has_responses
from bvlm_utils.store.table import headline, headline_metric

CELL = ["model", "dataset", "threat", "attack", "modality", "poison_rate", "n_poisoned"]
NUMBER = [*CELL, "subject", "condition", "metric"]
PANEL = ["model", "dataset", "threat", "train_rows", "settings", "rows"]
CELL_AND_SETTINGS = ["model", "dataset", "threat", "attack", "poison_rate", "n_poisoned", "negatives", "settings"]


# ---------------------------------------------------------------- the table


def summary(table: pd.DataFrame, metric: str, subject: str | None = None) -> pd.DataFrame:
    """One row per cell but for its seed, subject and condition: value and interval over the seeds.

    table: rows of `store.collect`. One seed: its own value and interval (over test rows). Several: the mean
    of the seeds' values with the t interval of the seeds, never their test rows pooled; `n_seeds` says which
    it was. InputError where one seed has two values: such a table mixes settings that the columns do not
    tell apart.
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
    columns = [*NUMBER, "value", "low", "high", "k", "n", "n_seeds", "unit"]
    # Plain dictionaries: a DataFrame for each of the hundreds of groups would take most of a chapter's time.
    groups: dict[int, list[dict[str, Any]]] = {}
    numbers = rows.groupby(NUMBER, sort=False, dropna=False).ngroup()
    for group, line in zip(numbers, rows.to_dict("records"), strict=True):
        groups.setdefault(group, []).append(line)
    return pd.DataFrame([lines[0] | _over_seeds(lines) for lines in groups.values()], columns=columns)


def _over_seeds(lines: list[dict[str, Any]]) -> dict[str, Any]:
    if len(lines) == 1:
        return {"n_seeds": 1}
    values = np.array([line["value"] for line in lines], float)
    low, high = intervals.seeds_interval(values, *([float(line[end]) for line in lines] for end in ("low", "high")))
    if not any(pd.isna(line["k"]) for line in lines):  # shares: no interval beyond 0 and 1
        low, high = max(low, 0.0), min(high, 1.0)
    return {"value": values.mean(), "low": low, "high": high, "k": np.nan, "n_seeds": len(lines)}


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


def grid_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `summary` (one subject) to read: a line per attack and rate, a column per condition."""
    if rows.empty:
        return pd.DataFrame(columns=["attack", "modality", "poisoned rows"])
    conditions = [c for c in words.CONDITIONS if c in set(rows["condition"])]
    lines = []
    for (attack, modality, rate, count), part in rows.groupby(
        ["attack", "modality", "poison_rate", "n_poisoned"], sort=False
    ):
        by_condition = part.drop_duplicates("condition").set_index("condition")
        line = {
            "attack": attack,
            "modality": modality,
            "poisoned rows": f"{int(count)} ({words.percent(rate)})",
        }
        for condition in conditions:
            found = by_condition.loc[condition] if condition in by_condition.index else {}
            line[words.CONDITION_LABELS[condition]] = marked(found.get("value"), found.get("low"), found.get("high"))
        lines.append(line | {"seeds": int(part["n_seeds"].min())})
    return pd.DataFrame(lines)


def other_metrics(table: pd.DataFrame) -> pd.DataFrame:
    """Further measures at the highest rate: a line per measure, attack and condition, a column per model."""
    lines = []
    for metric in dict.fromkeys(table["metric"].dropna()):
        if metric not in MEASURES or metric in {headline(threat) for threat in table["threat"].unique()}:
            continue
        rows = summary(table, metric)
        rows = rows[rows["poison_rate"] == rows["poison_rate"].max()]
        for (attack, condition), part in rows.groupby(["attack", "condition"], sort=False, dropna=False):
            line = {
                "measure": MEASURES[metric],
                "attack": attack,
                "condition": words.CONDITION_LABELS.get(condition, condition),
            }
            for subject in (s for s in words.SUBJECTS if s in set(table["subject"])):
                found = part[part["subject"] == subject]
                values = found.iloc[0] if len(found) else {}
                line[words.SUBJECT_LABELS[subject]] = number(values.get("value"), values.get("low"), values.get("high"))
            lines.append(line)
    return pd.DataFrame(lines)


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """Poisoned minus clean-tuned on the same rows: one line per measure, attack, rate and condition."""
    names = {"asr_difference": "strict success", "utility_difference": "utility"}
    rows = pd.concat([summary(table, metric) for metric in names], ignore_index=True)
    return pd.DataFrame(
        [
            {
                "measure": names[r["metric"]],
                "attack": r["attack"],
                "poison rate": words.percent(r["poison_rate"]),
                "condition": words.CONDITION_LABELS[r["condition"]],
                "poisoned minus clean-tuned": number(r["value"], r["low"], r["high"]),
            }
            for r in rows.to_dict("records")
        ]
    )


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
