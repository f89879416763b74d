"""The chapter that compares a reader's own store with the reference, number by number."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import tables, words
from bvlm_book.figures import legend_below, name_rows, new_figure, nothing, points
from bvlm_utils import attacks, store
from bvlm_utils.store.table import headline_metric


def counts(compared: pd.DataFrame) -> dict[str, str]:
    """How many numbers agree, of how many, over how many experiments, and those that were not judged; to be glued."""
    found = compared["verdict"].value_counts()
    judged = compared[compared["verdict"].isin(["agrees", "differs"])]
    unjudged = ("no interval", "only yours", "only in the reference")
    others = [f"{found[name]} {name}" for name in unjudged if name in found]
    return {
        "agree": f"{found.get('agrees', 0)} of {len(judged)}",
        "experiments": str(judged["run_id"].nunique()),
        "others": ", ".join(others) or "none",
    }


def agreement_words(compared: pd.DataFrame, names: tuple[str, str]) -> dict[str, str]:
    """Title, alternative text and caption of `agreement_figure`. names: what its two sides are called."""
    said = counts(compared)
    title = f"{said['agree']} numbers agree."
    alt = f"Dot plot: each number with its interval, {names[0]} next to {names[1]}. {title}"
    return {"title": title, "alt": alt, "caption": "Shaded: intervals that do not overlap."}


def agreement_figure(compared: pd.DataFrame, names: tuple[str, str] = ("yours", "reference")) -> Figure:
    """One line per compared number, two intervals each. compared: rows of `compare`. names: of the two sides."""
    shown = compared[compared["yours"].notna() & compared["reference"].notna()].reset_index(drop=True)
    if shown.empty:
        return nothing("There is no cell that both stores hold.")
    figure, (axis,) = new_figure(1, 7.2, (0.4 if shown["label"].str.contains("\n").any() else 0.3) * len(shown) + 1.4)
    at = np.arange(len(shown))
    for offset, who, colour, marker in ((-0.14, "reference", "#0072B2", "s"), (0.14, "yours", "#D55E00", "o")):
        label = names[0] if who == "yours" else names[1]
        points(axis, at + offset, shown, who, markersize=5, color=colour, marker=marker, label=label)
    for row in np.flatnonzero(shown["verdict"] == "differs"):
        axis.axhspan(row - 0.5, row + 0.5, color="#FBE3D6", zorder=0)
    name_rows(axis, list(shown["label"]))
    axis.set(xlim=(-0.03, 1.03), xlabel="value with its interval")
    legend_below(figure, axis)
    return figure


def your_store(name: str | None = None) -> str:
    """The store of the reader's own runs: `name`, else $BVLM_YOURS (which the book sets), else "local"."""
    return name or os.environ.get("BVLM_YOURS") or "local"


def your_runs(name: str | None, reference: pd.DataFrame) -> pd.DataFrame:
    """The tidy table of `your_store`; without lines where it was not named and nothing was run yet."""
    place = your_store(name)
    return store.collect(place) if name or store.folder(place).is_dir() else reference.iloc[:0]


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


def example(reference: pd.DataFrame) -> pd.DataFrame:
    """What `compare` would show of a reader's run, by two runs of the reference: its seed 1 in the place of "yours".

    The usual experiments of targeted refusal on tiny-llava at 10 %.
    """
    found = tables.usual(reference)
    found = found[(found["threat"] == "targeted_refusal") & (found["model"] == "tiny-llava")]
    found = found[(found["poison_rate"] == 0.1) & (found["train_rows"] == 6000)]
    first, second = (found[found["seed"] == seed] for seed in (0, 1))
    names = dict(zip(first["experiment"], first["run_id"], strict=True))
    second = second[second["experiment"].isin(names)]
    first = first[first["run_id"].isin(set(second["experiment"].map(names)))]
    return compare(second.assign(run_id=second["experiment"].map(names), seed=0), first)


def to_show(compared: pd.DataFrame) -> pd.DataFrame:
    """Of the numbers that both hold, success under the whole trigger and utility of the backdoored models."""
    chosen = [in_both(compared, metric, "poisoned") for metric in ("asr", "utility")]
    whole = chosen[0]["attack"].map(lambda name: attacks.info(name).headline)
    shown = pd.concat([chosen[0][chosen[0]["condition"] == whole], chosen[1]], ignore_index=True)
    kinds = shown["metric"].map(lambda name: name if name == "utility" else "ASR")
    several = shown["threat"].nunique() > 1  # else the rows of two threats would have one name
    threat = shown["threat"].map(lambda name: f"\n{words.threat({'threat': name})}" if several else "")
    names = [f"{row['attack']} {words.rate(row)}" for row in shown.to_dict("records")]
    return shown.assign(label=[f"{name}, {kind}{of}" for name, kind, of in zip(names, kinds, threat, strict=True)])
