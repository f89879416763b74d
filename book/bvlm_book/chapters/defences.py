"""The chapter "What stops a backdoor?": what each defence leaves of each attack, and what it costs."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bvlm_book import figures, spectra, tables, words
from bvlm_book.defended import ASR, FLOOR, acting, meant, measured, named, numbers, on_the_curve, strength
from bvlm_book.words import nothing_measured
from bvlm_utils import defences, store, threats
from bvlm_utils.defences.cell import Defended
from bvlm_utils.store.table import FIRES

DEFENCE = ["defence", "moment", "params"]
PLACEBO = "#8A8A8A"


def ensure(wanted: Sequence[Defended], place: str | Path | None = None) -> None:
    """Measure what a store lacks. The reference is only read: the page shows what it holds."""
    if not store.read_only(place):
        defences.run(wanted, place)


# What a table says of a defence that leaves a model which answers: title -> measure, subject, with the trigger there?
AFTER = {
    "success after": (ASR, "poisoned", True),
    "skill kept": ("skill", "poisoned", None),
    "utility, change": ("utility_change", "poisoned", None),
    "clean model's utility, change": ("utility_change", "control", None),
    "false activation after": (ASR, "poisoned", False),
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


def summary_table(found: pd.DataFrame, moments: Sequence[str]) -> pd.DataFrame:
    """Defences that act at some moments, to read: what is left, the placebo's number in brackets, cells."""
    rows = measured(found)
    rows = rows[rows["moment"].isin(moments) & ~on_the_curve(rows)]
    if rows.empty:
        return pd.DataFrame()
    means = over_cells(rows, FOUND if list(moments) == ["data"] else AFTER | {"AUROC": FOUND["AUROC"]})
    shown = [title for title in (*AFTER, *FOUND) if title in means and means[title].notna().any()]
    columns = {title: lambda line, title=title: _with_placebo(line, title) for title in shown}
    return tables.readable(means, {"defence": named, **columns, "experiments": lambda line: f"{line['cells']:.0f}"})


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
    """Title, alternative text and caption of `matrix_figure`."""
    if grid.empty:
        return nothing_measured("Success under each defence")
    low = (grid.mean(axis=1) < FLOOR).sum()
    title = f"{low} of {len(grid)} defences leave under {words.percent(FLOOR)} success on average."
    alt = f"Heat map: success after each defence (rows) against {len(grid.columns)} attacks. {title}"
    return {"title": title, "alt": alt, "caption": "Means over models and threats."}


def price(found: pd.DataFrame) -> pd.DataFrame:
    """A point per defence and per placebo: success after, and what is kept of the skill that was taught beside it."""
    rows = acting(measured(found))
    rows = rows[~on_the_curve(rows)]
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
    axis.set(xlim=(-0.03, 1.08), ylim=(-0.03, 1.05), xlabel="share of the harmless skill kept", ylabel="success after")
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
    """Title, alternative text and caption of `price_figure`."""
    if points.empty:
        return nothing_measured("Success against the skill that is kept")
    own = points[~points["placebo"].astype(bool)]
    title = f"{len(helpful(points))} of {len(own)} defences leave under {words.percent(FLOOR)} success and most skill."
    alt = f"Scatter plot: success after against the share of a harmless skill that is kept, for {len(own)} defences "
    return {
        "title": title,
        "alt": f"{alt}and {len(points) - len(own)} placebos. {title}",
        "caption": "Crosses: placebos.",
    }


def helpful(points: pd.DataFrame) -> list[str]:
    """The defences of `price` that leave hardly any success and over half of the skill."""
    own = points[~points["placebo"].astype(bool)]
    return list(own.loc[(own["asr"] < FLOOR) & (own["skill"] > FIRES), "defence"])


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
    """Title, alternative text and caption of `strength_figure`."""
    if curve.empty:
        return nothing_measured("Success over the strength of the update")
    title = f"Success is under {words.percent(FLOOR)} up to {words.number(weakest(curve))} of the update."
    alt = f"Line chart: success, utility and harmless skill against the share of the update that is kept. {title}"
    return {"title": title, "alt": alt, "caption": "Means over the experiments of the figure above."}


def weakest(curve: pd.DataFrame) -> float:
    """The largest share of the update at which hardly any success is left."""
    success = curve[curve["measure"] == "attack success"]
    return success.loc[success["value"] < FLOOR, "strength"].max()


def family(line: dict[str, Any]) -> str:
    """Whose score a line is: "backdoored", "no backdoor learnt", or a family of negatives."""
    if line["subject"] == "control":
        return "skill only" if line["skill"] else "clean-tuned"
    if line["decoy"]:
        return line["decoy"]
    if not line["poison_rate"]:
        return "skill only" if line["skill"] else "clean-tuned"
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


def numbers_of_the_page(found: pd.DataFrame) -> dict[str, str]:
    """What was run, what was not, and what helped, to be glued."""
    done, points, curve = found[found["status"] == "done"], price(found), strength(found)
    weak = found[meant(found) & (found["works"].fillna(False).eq(False) | (found["status"] == "skipped"))]
    own = points[~points["placebo"].astype(bool)]
    at = curve.loc[(curve["measure"] == "harmless skill") & (curve["strength"] == weakest(curve)), "value"]
    acted = acting(found)
    false = numbers(measured(acted[~acted["placebo"].astype(bool)]), ASR, "poisoned", triggered=False)["value"]
    return {
        "cells": str(measured(found)["run_id"].nunique()),
        "models": _listed(done["model"].unique()),
        "threats": _listed(words.threat({"threat": name}) for name in done["threat"].unique()),
        "run": str(done["defence"].nunique()),
        "lacking": _listed(
            [
                *(
                    f"the threat {words.threat({'threat': name})}"
                    for name in threats.names()
                    if name not in set(done["threat"])
                ),
                *(name for name in defences.names() if name not in {*done["defence"], *spectra.detectors()}),
            ]
        ),  # fmt: skip
        "weak": str(weak["run_id"].nunique()),
        "helpful": _listed(helpful(points)),
        "silent": _listed(own.loc[own["asr"] < FLOOR, "defence"]),
        "kept": _listed(own.loc[own["skill"] > FIRES, "defence"]),
        "strength": words.number(weakest(curve)),
        "skill_there": words.number(at.mean()),
        "false": words.number(false.max()),
    }


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
