"""The chapter that compares a reader's own store with the reference, number by number."""

import os

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, tables, words
from bvlm_utils import attacks, store
from bvlm_utils.store.table import headline_metric

COMPARED = ("asr_payload", "asr", "asr_right", "utility")


def counts(compared: pd.DataFrame) -> dict[str, str]:
    """How many numbers agree, of how many, over how many experiments, and those that were not judged; to be glued."""
    verdicts = compared["verdict"].value_counts()
    judged = compared[compared["verdict"].isin(["agrees", "differs"])]
    unjudged = ("no interval", "only yours", "only in the reference")
    return {
        "agree": words.of(judged["verdict"] == "agrees"),
        "experiments": str(judged["run_id"].nunique()),
        "others": ", ".join(f"{verdicts[name]} {name}" for name in unjudged if name in verdicts) or "none",
    }


def agreement_figure(rows: pd.DataFrame, names: tuple[str, str] = ("yours", "reference")) -> Figure:
    """One line per compared number, two intervals each. rows: of `to_show`. names: of the two sides."""
    height = 0.4 if rows["label"].str.contains("\n").any() else 0.3
    sides = {"reference": names[1], "yours": names[0]}
    figure, axis = figures.beside(rows, list(rows["label"]), sides, height * len(rows) + 1.4)
    for row in np.flatnonzero(rows["verdict"] == "differs"):
        axis.axhspan(row - 0.5, row + 0.5, color="#FBE3D6", zorder=0)
    axis.set_xlabel("value with its interval")
    return figure


def your_runs(name: str | None, reference: pd.DataFrame) -> pd.DataFrame:
    """The reader's own store: `name`, else $BVLM_YOURS, else "local"; without lines where it is not named and empty."""
    place = name or os.environ.get("BVLM_YOURS") or "local"
    return store.collect(place) if name or store.folder(place).is_dir() else reference.iloc[:0]


def compare(yours: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Two tidy tables, number by number (`COMPARED`): does your interval overlap the reference's (`verdict`)?"""
    key = ["run_id", "subject", "condition", "metric", "model", "dataset", "threat", "attack", "poison_rate", "seed"]

    def side(table: pd.DataFrame, name: str) -> pd.DataFrame:
        rows = table.loc[table["metric"].isin(COMPARED) & table["value"].notna(), [*key, "value", "low", "high"]]
        return rows.set_axis([*key, name, f"{name}_low", f"{name}_high"], axis=1)

    both = side(yours, "yours").merge(side(reference, "reference"), how="outer", on=key, sort=False)
    lows, highs = (both[[f"yours_{end}", f"reference_{end}"]].astype(float) for end in ("low", "high"))
    kinds = {
        "only yours": both["reference"].isna(), "only in the reference": both["yours"].isna(),
        "no interval": lows.isna().any(axis=1) | highs.isna().any(axis=1),
        "agrees": lows.max(axis=1) <= highs.min(axis=1),
    }  # fmt: skip
    return both.assign(verdict=np.select(list(kinds.values()), list(kinds), "differs"))


def example(reference: pd.DataFrame) -> pd.DataFrame:
    """What `compare` would show of a reader's run: here it is seed 1 of usual refusals on tiny-llava at 10 %."""
    runs = tables.usual(reference).query("threat == 'targeted_refusal' and model == 'tiny-llava'")
    runs = runs.query("poison_rate == 0.1 and train_rows == 6000")
    first, second = (runs[runs["seed"] == seed] for seed in (0, 1))
    names = dict(zip(first["experiment"], first["run_id"], strict=True))
    second = second[second["experiment"].isin(names)]
    first = first[first["run_id"].isin(set(second["experiment"].map(names)))]
    return compare(second.assign(run_id=second["experiment"].map(names), seed=0), first)


def to_show(compared: pd.DataFrame) -> pd.DataFrame:
    """Of the numbers that both hold, success under the whole trigger and utility of the backdoored models."""
    both = compared.dropna(subset=["yours", "reference"]).query("subject == 'poisoned'")
    whole = both["condition"] == both["attack"].map(lambda name: attacks.info(name).headline)
    success = both[whole & (both["metric"] == headline_metric(both))]
    rows = pd.concat([success, both[both["metric"] == "utility"]], ignore_index=True)
    kinds = rows["metric"].map(lambda name: name if name == "utility" else "ASR")
    labels = rows["attack"] + " " + rows["poison_rate"].map(words.percent).astype(str) + ", " + kinds.astype(str)
    if rows["threat"].nunique() > 1:  # else the rows of two threats would have one name
        labels += "\n" + rows["threat"].str.replace("_", " ")
    return rows.assign(label=labels)
