"""The chapter that compares a reader's own store with the reference, number by number."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import page, words
from bvlm_book.figures import legend_below, new_figure, nothing
from bvlm_book.words import nothing_measured, number
from bvlm_utils.store.table import headline_metric


def agreement_words(compared: pd.DataFrame) -> dict[str, str]:
    """For `chapters.reproduce.agreement_figure`. compared: rows of `chapters.reproduce.compare`."""
    counts = compared["verdict"].value_counts()
    judged = int(counts.get("agrees", 0) + counts.get("differs", 0))
    if not judged:
        return nothing_measured("Your numbers beside the reference's")
    text = [
        f"Of {judged} numbers that both stores hold with an interval, {int(counts.get('agrees', 0))} "
        f"have intervals that overlap and {int(counts.get('differs', 0))} do not (shaded)."
    ]
    text += [
        f"{int(counts[v])} more: {v}." for v in ("no interval", "only yours", "only in the reference") if counts.get(v)
    ]
    alt = f"Dot plot: {judged} numbers, each with your value and interval beside the reference's."
    return {"alt": alt, "caption": " ".join(text)}


def agreement_figure(compared: pd.DataFrame) -> Figure:
    """Two stores beside each other: one line per compared number, two intervals each.

    compared: rows of `chapters.reproduce.compare` with `label`, `yours`, `yours_low`, `yours_high`, `reference`, ...,
    `verdict`.
    """
    shown = compared[compared["yours"].notna() & compared["reference"].notna()].reset_index(drop=True)
    if shown.empty:
        return nothing("There is no cell that both stores hold.")
    figure, (axis,) = new_figure(1, 7.2, 0.3 * len(shown) + 1.4)
    y = np.arange(len(shown))
    for offset, who, colour, marker in (
        (-0.14, "reference", "#0072B2", "s"),
        (0.14, "yours", "#D55E00", "o"),
    ):
        axis.hlines(y + offset, shown[f"{who}_low"], shown[f"{who}_high"], color=colour, linewidth=2)
        axis.plot(shown[who], y + offset, linestyle="", marker=marker, markersize=5, color=colour, label=who)
    differ = shown["verdict"] == "differs"
    for row in np.flatnonzero(differ):
        axis.axhspan(row - 0.5, row + 0.5, color="#FBE3D6", zorder=0)
    axis.set_yticks(y, shown["label"])
    axis.set_ylim(len(shown) - 0.5, -0.5)
    axis.set_xlim(-0.03, 1.03)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("value with its interval")
    legend_below(figure, axis)
    return figure


def your_store(name: str | None = None) -> str:
    """The store of the reader's own runs: `name`, else $BVLM_YOURS (which the book sets), else "local"."""
    return name or os.environ.get("BVLM_YOURS") or "local"


def compare(
    yours: pd.DataFrame, reference: pd.DataFrame, metrics: Iterable[str] = ("asr", "asr_right", "utility")
) -> pd.DataFrame:
    """Two tidy tables, number by number: does your interval overlap the reference's?

    A number is the same in both when cell (`run_id`), subject, condition and metric are. `verdict`: "agrees"
    (the intervals overlap), "differs", "no interval" (a value without one cannot be judged), "only yours",
    "only in the reference". Rows keep the order of `yours`.
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
        f"{r['attack']}, {words.percent(r['poison_rate'])}, {r['subject']}, {r['condition']}, {r['metric']}"
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
    return pd.DataFrame(
        [
            {
                "threat": r["threat"],
                "attack": r["attack"],
                "poison rate": words.percent(r["poison_rate"]),
                "seed": r["seed"],
                "model tested": words.SUBJECT_LABELS.get(r["subject"], r["subject"]),
                "condition": words.CONDITION_LABELS.get(r["condition"], r["condition"]),
                "measure": r["metric"],
                "yours": number(r["yours"], r["yours_low"], r["yours_high"]),
                "reference": number(r["reference"], r["reference_low"], r["reference_high"]),
                "verdict": r["verdict"],
            }
            for r in compared.to_dict("records")
        ]
    )


def show_agreement(compared: pd.DataFrame) -> None:
    """Say how your store and the reference compare, or what to run when there is nothing of yours."""
    if compared["yours"].isna().all():
        page.say(
            "There is no run of yours to compare. `make study` makes one, and so does "
            "`python -m bvlm_utils.grid run data/grids/quick.yml`."
        )
        return
    counts = compared["verdict"].value_counts()
    judged = int(counts.get("agrees", 0) + counts.get("differs", 0))
    if judged:
        page.say(
            f"**{int(counts.get('agrees', 0))} of {judged} numbers agree** with the reference, over "
            f"{compared.loc[compared['verdict'].isin(['agrees', 'differs']), 'run_id'].nunique()} cells."
        )
    else:
        page.say("Your store and the reference have no cell in common: their settings, models or data differ.")
    others = {v: int(counts[v]) for v in ("no interval", "only yours", "only in the reference") if counts.get(v)}
    if others:
        page.say("Not judged: " + ", ".join(f"{count} {verdict}" for verdict, count in others.items()) + ".")
