"""The chapter "What stops a backdoor?": what each defence leaves of each attack, and what it costs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bvlm_book import figures, tables, words
from bvlm_book.words import nothing_measured
from bvlm_utils import attacks, defences, store, threats
from bvlm_utils.defences import records
from bvlm_utils.defences.cell import Defended
from bvlm_utils.store.table import FIRES

FLOOR = 0.05  # of what is left of a backdoor
ASR = "asr_payload"  # the trigger's success, whatever else is said
DEFENCE = ["defence", "moment", "params"]
MOMENT_TITLES = {
    "data": "Before training: which rows are poisoned?",
    "training": "During training",
    "detect": "One adapter: is it backdoored?",
    "repair": "Repair",
    "inference": "At inference",
}
PLACEBO = "#8A8A8A"


def collect(place: str | Path | None = None) -> pd.DataFrame:
    """`defences.records.collect` with what each cell was before: asr_before, works (was there a backdoor?)."""
    found = records.collect(place)
    before = undefended(store.collect(place))
    return found.merge(before, on="run_id", how="left")


def ensure(wanted: Sequence[Defended], place: str | Path | None = None) -> None:
    """Measure what a store lacks. The reference is only read: the page shows what it holds."""
    if not store.read_only(place):
        defences.run(wanted, place)


def undefended(table: pd.DataFrame) -> pd.DataFrame:
    """run_id, asr_before and works of the cells of a tidy table, under their whole triggers."""
    rows = tables.headline_rows(table[(table["metric"] == ASR) & (table["subject"] == "poisoned")])
    found = rows[["run_id", "value"]].rename(columns={"value": "asr_before"})
    return found.assign(works=found["asr_before"] >= FIRES)


def measured(found: pd.DataFrame) -> pd.DataFrame:
    """The lines with numbers of cells whose backdoor works: a mean over others would credit a defence for nothing."""
    return found[(found["status"] == "done") & found["works"].fillna(False).astype(bool) & found["value"].notna()]


def numbers(found: pd.DataFrame, metric: str, subject: str = "poisoned", triggered: bool | None = None) -> pd.DataFrame:
    """One measure per defended cell: a line each, with `value`.

    triggered: the whole trigger's condition, or the clean one; None where a measure has one condition only.
    """
    rows = found[(found["metric"] == metric) & (found["subject"] == subject)]
    if triggered is not None:
        whole = rows["attack"].map(lambda name: attacks.info(name).headline)
        rows = rows[(rows["condition"] == whole) if triggered else (rows["condition"] == "clean")]
    return rows.drop_duplicates("name")


def acting(found: pd.DataFrame) -> pd.DataFrame:
    """Without defences that only suspect inputs and change no answer: what they leave is the attack itself."""
    changed = found[found["metric"] == "changed"].groupby("defence")["value"].max()
    return found[~found["defence"].isin(changed.index[changed == 0])]


# What a table says of a defence that leaves a model which answers: title -> measure, subject, with the trigger there?
AFTER = {
    "success after": (ASR, "poisoned", True),
    "false activation after": (ASR, "poisoned", False),
    "utility, change": ("utility_change", "poisoned", None),
    "clean model's utility, change": ("utility_change", "control", None),
    "skill kept": ("skill", "poisoned", None),
    "right with the trigger": ("right", "poisoned", True),
}
FOUND = {"AUROC": ("auroc", "poisoned", None), "true positives at 5 %": ("true_positives", "poisoned", None)}


def over_cells(found: pd.DataFrame, measures: dict[str, tuple[str, str, bool | None]]) -> pd.DataFrame:
    """A line per defence with its settings: the mean of each measure over the cells, the same of its placebo, cells."""
    parts = {title: numbers(found, *of) for title, of in measures.items()}
    lines = []
    for key, _ in found.groupby([*DEFENCE], sort=False):
        line: dict[str, Any] = dict(zip(DEFENCE, key, strict=True))
        for title, rows in parts.items():
            own = rows[(rows[DEFENCE] == list(key)).all(axis=1)]
            is_placebo = own["placebo"].astype(bool)
            line[title], line[f"{title}, placebo"] = (
                own.loc[~is_placebo, "value"].mean(),
                own.loc[is_placebo, "value"].mean(),
            )
            line["cells"] = max(line.get("cells", 0), own.loc[~is_placebo, "run_id"].nunique())
        own = found[(found[DEFENCE] == list(key)).all(axis=1) & ~found["placebo"].astype(bool)]
        line["seconds"] = own.drop_duplicates("name")["seconds"].mean()
        lines.append(line)
    return pd.DataFrame(lines)


def named(line: Any) -> str:
    """A defence with what differs from its defaults: "clean-fine-tuning (rows 20)"."""
    given = json.loads(line["params"])
    usual = defences.info(line["defence"]).defaults if line["defence"] in defences.names() else {}
    apart = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                      for name, value in given.items() if usual.get(name) != value)  # fmt: skip
    return f"{line['defence']} ({apart})" if apart else line["defence"]


def summary_table(found: pd.DataFrame, moments: Sequence[str]) -> pd.DataFrame:
    """The table to read of defences that act at some moments: what is left, the placebo's beside it, cells, cost."""
    rows = measured(found)
    rows = rows[rows["moment"].isin(moments)]
    if rows.empty:
        return pd.DataFrame()
    answers = bool(set(moments) - {"data"})
    means = over_cells(rows, AFTER if answers else FOUND)
    if moments == ["inference"]:
        means = means.merge(over_cells(rows, FOUND)[[*DEFENCE, "AUROC", "AUROC, placebo"]], on=DEFENCE)
    columns: dict[str, Any] = {"defence": named}
    for title in (*AFTER, *FOUND):
        if title in means and means[title].notna().any():
            columns[title] = lambda line, title=title: _with_placebo(line, title)
    columns |= {
        "cells": lambda line: f"{line['cells']:.0f}",
        "seconds": lambda line: words.number(line["seconds"], digits=1),
    }
    return tables.readable(means, columns)


def _with_placebo(line: dict[str, Any], title: str) -> str:
    placebo = line.get(f"{title}, placebo")
    text = words.number(line[title])
    return text if words.is_missing(placebo) else f"{text} ({words.number(placebo)})"


def matrix(found: pd.DataFrame, metric: str = ASR, triggered: bool | None = True) -> pd.DataFrame:
    """What is left of each attack (columns) under each defence (lines): the mean over threats, models and seeds."""
    rows = numbers(acting(measured(found)), metric, "poisoned", triggered)
    rows = rows[~rows["placebo"].astype(bool)]
    rows = rows.assign(line=[named(line) for line in rows.to_dict("records")])
    order = list(dict.fromkeys(rows["line"]))
    return rows.pivot_table(index="line", columns="attack", values="value").reindex(order)


def matrix_figure(grid: pd.DataFrame) -> Figure:
    """A heat map of `matrix`."""
    if grid.empty:
        return figures.nothing("No defence was measured in this store.")
    figure, (axis,) = figures.new_figure(1, 1.0 * len(grid.columns) + 4.2, 0.36 * len(grid) + 1.8)
    figures.success_map(axis, grid)
    return figure


def matrix_words(grid: pd.DataFrame) -> dict[str, str]:
    if grid.empty:
        return nothing_measured("Success under each defence")
    mean = grid.mean(axis=1)
    return {
        "alt": f"Heat map of success rates after {len(grid)} defences (lines) against {len(grid.columns)} attacks.",
        "caption": "Attack success after each defence, mean over threats and models of cells whose backdoor worked "
        f"before. Below {words.percent(FLOOR)} on average: {', '.join(mean.index[mean < FLOOR]) or 'none'}. What that "
        "costs is in the next figure.",
    }  # fmt: skip


def price(found: pd.DataFrame) -> pd.DataFrame:
    """A point per defence and per placebo: success after, and what is kept of the skill that was taught beside it."""
    rows = acting(measured(found))
    strengths = (rows["defence"] == "shrink") & (rows["params"] != json.dumps(defences.info("shrink").defaults))
    rows = rows[~strengths]  # they have a figure of their own
    means = over_cells(rows, AFTER) if len(rows) else pd.DataFrame()
    lines = []
    for line in means.to_dict("records"):
        for placebo in (False, True):
            more = ", placebo" * placebo
            lines.append({"defence": named(line), "moment": line["moment"], "placebo": placebo,
                          "asr": line[f"success after{more}"], "skill": line[f"skill kept{more}"]})  # fmt: skip
    made = pd.DataFrame(lines, columns=["defence", "moment", "placebo", "asr", "skill"])
    return made.dropna(subset=["asr", "skill"])


def price_figure(points: pd.DataFrame) -> Figure:
    """Success after against skill kept: good defences stand at the bottom right; placebos are grey."""
    if points.empty:
        return figures.nothing("No defended model of this store was taught a skill.")
    figure, (axis,) = figures.new_figure(1, 6.6, 5.2)
    grey = points[points["placebo"]]
    axis.plot(grey["skill"], grey["asr"], linestyle="", marker="x", color=PLACEBO, label="placebo")
    for number, (moment, part) in enumerate(points[~points["placebo"]].groupby("moment", sort=False)):
        axis.plot(part["skill"], part["asr"], linestyle="", label=moment, **figures.look(number))
    _name(axis, points[~points["placebo"]])
    axis.set(xlim=(-0.03, 1.08), ylim=(-0.03, 1.05), xlabel="share of the benign skill kept", ylabel="success after")
    axis.legend(loc="upper left")
    return figure


def _name(axis: Axes, shown: pd.DataFrame) -> None:
    """Names beside the points; points that lie together share a label."""
    for _, near in shown.groupby([(shown["skill"] / 0.3).round(), shown["asr"].round(1)]):
        left = near["skill"].mean() < 0.5
        at = near["skill"].max() if left else near["skill"].min()
        axis.annotate(
            "\n".join(near["defence"]), (at, near["asr"].mean()), fontsize=8, xytext=(7 if left else -7, 0),
            textcoords="offset points", va="center", ha="left" if left else "right",
        )  # fmt: skip


def price_words(points: pd.DataFrame) -> dict[str, str]:
    if points.empty:
        return nothing_measured("Success against the skill that is kept")
    own = points[~points["placebo"]]
    good = own[(own["asr"] < FLOOR) & (own["skill"] > FIRES)]
    names = ", ".join(good["defence"]) or "none"
    return {
        "alt": f"Scatter plot of {len(own)} defences and {len(points) - len(own)} placebos: success after against the "
        "share of a benign skill that is kept; the numbers are in the tables below.",
        "caption": f"Defences that leave less than {words.percent(FLOOR)} success and keep over half of the skill: "
        f"{names}.",
    }  # fmt: skip


def strength(found: pd.DataFrame) -> pd.DataFrame:
    """The curve over lambda: success and utility after `shrink` at each strength, mean over cells."""
    rows = measured(found)
    rows = rows[(rows["defence"] == "shrink") & ~rows["placebo"].astype(bool)]
    if rows.empty:
        return pd.DataFrame(columns=["strength", "measure", "value"])
    rows = rows.assign(strength=rows["params"].map(lambda text: json.loads(text)["strength"]))
    shown = {"attack success": (ASR, "poisoned", True), "utility": ("utility", "poisoned", None),
             "benign skill": ("skill", "poisoned", None)}  # fmt: skip
    parts = [
        numbers(rows, *of).groupby("strength", as_index=False)["value"].mean().assign(measure=title)
        for title, of in shown.items()
    ]
    return pd.concat(parts, ignore_index=True)


def strength_figure(curve: pd.DataFrame) -> Figure:
    if curve.empty:
        return figures.nothing("The update was shrunk in no cell of this store.")
    figure, (axis,) = figures.new_figure(1, 6.4, 4.0)
    for number, (measure, part) in enumerate(curve.groupby("measure", sort=False)):
        part = part.sort_values("strength")
        axis.plot(part["strength"], part["value"], label=measure, **figures.look(number))
    axis.set(xlabel="share of the update that is kept (lambda)", ylabel="share or score", ylim=(-0.03, 1.05))
    axis.legend()
    return figure


def strength_words(curve: pd.DataFrame) -> dict[str, str]:
    if curve.empty:
        return nothing_measured("Success over the strength of the update")
    success = curve[curve["measure"] == "attack success"]
    low = success.loc[success["value"] < FLOOR, "strength"].max()
    return {
        "alt": "Line chart: attack success, utility and benign skill against the share of the update that is kept.",
        "caption": f"Success is below {words.percent(FLOOR)} up to a share of {words.number(low)}.",
    }  # fmt: skip


def family(line: dict[str, Any]) -> str:
    """Whose score a line is: "backdoored", "no backdoor learnt", or a family of negatives."""
    if line["subject"] == "control":
        return "skill only" if line["skill"] else "clean-tuned"
    if line["decoy"]:
        return line["decoy"]
    if not line["poison_rate"]:
        return "skill only"
    return "backdoored" if line["works"] is True else "no backdoor learnt"


def adapters_told_apart(found: pd.DataFrame) -> pd.DataFrame:
    """AUROC of each adapter detector: backdoored adapters against each family of adapters without a backdoor."""
    from sklearn.metrics import roc_auc_score

    rows = found[(found["moment"] == "detect") & (found["metric"] == "score") & found["value"].notna()]
    rows = rows.assign(family=[family(line) for line in rows.to_dict("records")])
    rows = rows.assign(own=rows["run_id"].where(rows["subject"] == "poisoned", rows["value"].astype(str)))
    lines = []
    for key, part in rows.groupby([*DEFENCE, "placebo", "model"], sort=False):
        positive = part.loc[part["family"] == "backdoored", "value"]
        line = dict(zip([*DEFENCE, "placebo", "model"], key, strict=True)) | {"backdoored": len(positive)}
        for name, negative in part[part["family"] != "backdoored"].drop_duplicates(["family", "own"]).groupby("family"):
            if len(positive) and name != "no backdoor learnt":
                truth = np.repeat([1, 0], [len(positive), len(negative)])
                area = roc_auc_score(truth, np.concatenate([positive, negative["value"]]))
                line[f"against {name}"] = f"{words.number(area)} ({len(negative)})"
        lines.append(line)
    made = pd.DataFrame(lines)
    if made.empty:
        return made
    families = [name for name in made if name.startswith("against ")]
    return tables.readable(made, {
        "detector": lambda line: named(line) + " (placebo)" * line["placebo"], "model": "model",
        "backdoored": "backdoored", **{name: name for name in families},
    })  # fmt: skip


def excluded(found: pd.DataFrame) -> list[str]:
    """What is in no mean: cells without a backdoor to remove, and cells that a defence does not apply to."""
    cells = found.drop_duplicates("run_id")
    weak = cells[cells["works"].fillna(False).eq(False) & (cells["status"] == "done")]
    said = []
    if len(weak):
        names = ", ".join(sorted({f"{line['attack']} on {words.threat(line)}" for line in weak.to_dict("records")}))
        said.append(
            f"{len(weak)} cells had no backdoor to remove (success below {FIRES:g}) and are in no mean: {names}."
        )
    for reason, part in found[found["status"] == "skipped"].groupby("reason"):
        said.append(f"Left out: {reason} ({part['run_id'].nunique()} cells)")
    return said


def coverage(found: pd.DataFrame) -> pd.DataFrame:
    """How many defended cells were measured: a line per model and threat, with cells, defences and records."""
    found = found[found["status"] == "done"]
    lines = [
        dict(zip(("model", "threat"), key, strict=True))
        | {"cells": part["run_id"].nunique(), "defences": part["defence"].nunique(), "records": part["name"].nunique()}
        for key, part in found.groupby(["model", "threat"], sort=False)
    ]
    return pd.DataFrame(lines)


def not_run(found: pd.DataFrame) -> str:
    """Which defences of the table and which threats the store has nothing of."""
    done = found[found["status"] == "done"]
    lacking = [name for name in defences.names() if name not in set(done["defence"])]
    threats_left = [name for name in threats.names() if name not in set(done["threat"])]
    said = [f"Defences not run yet: {', '.join(lacking)}."] if lacking else []
    if threats_left:
        said.append(f"Threats not run yet: {', '.join(words.threat({'threat': name}) for name in threats_left)}.")
    return " ".join(said)
