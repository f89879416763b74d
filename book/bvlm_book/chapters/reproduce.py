"""The chapter that compares a reader's own store with the reference, number by number."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import page, tables, words
from bvlm_book.figures import legend_below, name_rows, new_figure, nothing, points
from bvlm_book.words import nothing_measured
from bvlm_utils.store.table import headline_metric


def agreement_words(compared: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `agreement_figure`. compared: rows of `compare`."""
    agree, judged, others = _counts(compared)
    if not judged:
        return nothing_measured("Your numbers beside the reference's")
    caption = (
        f"Of {judged} numbers that both stores hold with an interval, {agree} have intervals that overlap and "
        f"{judged - agree} do not (shaded)." + (f" Not judged: {others}." if others else "")
    )
    alt = f"Dot plot: {judged} numbers, each with your value and interval beside the reference's."
    return {"alt": alt, "caption": caption}


def _counts(compared: pd.DataFrame) -> tuple[int, int, str]:
    """How many numbers agree, how many were judged, and in words those that were not."""
    counts = compared["verdict"].value_counts()
    others = (f"{counts[v]} {v}" for v in ("no interval", "only yours", "only in the reference") if counts.get(v))
    agree = int(counts.get("agrees", 0))
    return agree, agree + int(counts.get("differs", 0)), ", ".join(others)


def agreement_figure(compared: pd.DataFrame) -> Figure:
    """Two stores beside each other: one line per compared number, two intervals each. compared: rows of `compare`."""
    shown = compared[compared["yours"].notna() & compared["reference"].notna()].reset_index(drop=True)
    if shown.empty:
        return nothing("There is no cell that both stores hold.")
    figure, (axis,) = new_figure(1, 7.2, 0.3 * len(shown) + 1.4)
    at = np.arange(len(shown))
    for offset, who, colour, marker in ((-0.14, "reference", "#0072B2", "s"), (0.14, "yours", "#D55E00", "o")):
        points(axis, at + offset, shown, who, markersize=5, color=colour, marker=marker, label=who)
    for row in np.flatnonzero(shown["verdict"] == "differs"):
        axis.axhspan(row - 0.5, row + 0.5, color="#FBE3D6", zorder=0)
    name_rows(axis, list(shown["label"]))
    axis.set(xlim=(-0.03, 1.03), xlabel="value with its interval")
    legend_below(figure, axis)
    return figure


def your_store(name: str | None = None) -> str:
    """The store of the reader's own runs: `name`, else $BVLM_YOURS (which the book sets), else "local"."""
    return name or os.environ.get("BVLM_YOURS") or "local"


COMPARED = ("asr_payload", "asr", "asr_right", "utility")


def compare(yours: pd.DataFrame, reference: pd.DataFrame, metrics: Iterable[str] = COMPARED) -> pd.DataFrame:
    """Two tidy tables, number by number: does your interval overlap the reference's?

    A number is the same in both when cell (`run_id`), subject, condition and metric are. `verdict`: "agrees" (the
    intervals overlap), "differs", "no interval" (a value without one cannot be judged), "only yours", "only in the
    reference". Rows keep the order of `yours`.
    """
    key = ["run_id", "subject", "condition", "metric"]
    about = ["model", "dataset", "threat", "attack", "poison_rate", "seed"]

    def side(table: pd.DataFrame, name: str) -> pd.DataFrame:
        rows = table[table["metric"].isin(list(metrics)) & table["value"].notna()]
        return rows[[*key, *about, "value", "low", "high"]].rename(
            columns={"value": name, "low": f"{name}_low", "high": f"{name}_high"}
        )

    both = side(yours, "yours").merge(side(reference, "reference"), how="outer", on=[*key, *about], sort=False)
    both["verdict"] = [_verdict(row) for row in both.to_dict("records")]
    both["label"] = [
        f"{r['attack']}, {words.rate(r)}, {r['subject']}, {r['condition']}, {r['metric']}"
        for r in both.to_dict("records")
    ]
    return both


def _verdict(row: Mapping[str, Any]) -> str:
    if pd.isna(row["reference"]):
        return "only yours"
    if pd.isna(row["yours"]):
        return "only in the reference"
    bounds = [row["yours_low"], row["yours_high"], row["reference_low"], row["reference_high"]]
    if any(pd.isna(b) for b in bounds):
        return "no interval"
    return "agrees" if max(bounds[0], bounds[2]) <= min(bounds[1], bounds[3]) else "differs"


def in_both(compared: pd.DataFrame, metric: str, subject: str) -> pd.DataFrame:
    """The compared numbers of one subject that both stores hold. metric: "asr" stands for each threat's headline."""
    wanted = headline_metric(compared) if metric == "asr" else metric
    chosen = compared[(compared["metric"] == wanted) & (compared["subject"] == subject)]
    return chosen[chosen["yours"].notna() & chosen["reference"].notna()].reset_index(drop=True)


def agreement_table(compared: pd.DataFrame) -> pd.DataFrame:
    """`compare`d numbers as a table to read."""
    return tables.readable(compared, {
        "threat": "threat", "attack": "attack", "poison rate": words.rate, "seed": "seed",
        "model tested": lambda r: words.SUBJECT_LABELS.get(r["subject"], r["subject"]),
        "condition": tables.condition, "measure": "metric", "yours": lambda r: words.interval(r, "yours"),
        "reference": lambda r: words.interval(r, "reference"), "verdict": "verdict",
    })  # fmt: skip


def show_agreement(compared: pd.DataFrame) -> None:
    """Say how your store and the reference compare, or what to run when there is nothing of yours."""
    if compared["yours"].isna().all():
        page.say(
            "There is no run of yours to compare. `make study` makes one, and so does "
            "`python -m bvlm_utils.grid run data/grids/quick.yml`."
        )
        return
    agree, judged, others = _counts(compared)
    if judged:
        cells = compared.loc[compared["verdict"].isin(["agrees", "differs"]), "run_id"].nunique()
        page.say(f"**{agree} of {judged} numbers agree** with the reference, over {cells} cells.")
    else:
        page.say("Your store and the reference have no cell in common: their settings, models or data differ.")
    if others:
        page.say(f"Not judged: {others}.")
