"""The chapter "What stops a backdoor?": what each defence leaves of each attack, and what it costs."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, tables, words
from bvlm_book.chapters.defences import spectra
from bvlm_utils import defences, store, threats
from bvlm_utils.defences import records
from bvlm_utils.defences.cell import CLEAN_ROWS, Defended
from bvlm_utils.store import records as stored
from bvlm_utils.store.table import FIRES

FLOOR = 0.05  # of what is left of a backdoor
MOST = 0.75  # of the defences; experiments with fewer have a table of their own
APART = ("filter", "blind")  # run on some experiments, to be compared with something
CLOSE, NAMED = 0.12, 3  # points of the figure that share a label, and how many of them are named
ASR = "asr_payload"  # the trigger's success, whatever else is said
DEFENCE = ["named", "moment"]
EXPERIMENT = ["model", "threat", "attack"]  # of the study's settings
# What a table says of a defence that leaves a model which answers: title -> measure, subject, with the trigger there?
AFTER = {
    "success after": (ASR, "poisoned", True),
    "right with trigger": ("right", "poisoned", True),
    "skill kept": ("skill", "poisoned", None),
    "utility, change": ("utility_change", "poisoned", None),
    "clean model's utility, change": ("utility_change", "control", None),
    "false activation after": (ASR, "poisoned", False),
}
FOUND = {"AUROC": ("auroc", "poisoned", None), "found at 5 % false alarms": ("true_positives", "poisoned", None)}


def collect(place: str | Path | None = None, relearnt: bool = False) -> pd.DataFrame:
    """The `core` of `every`."""
    return core(every(place, relearnt))


def every(place: str | Path | None = None, relearnt: bool = False) -> pd.DataFrame:
    """`defences.records.collect` with asr_before, works (was there a backdoor?), `named`, the run_id of the `control`,
    and cost, in trainings.
    """
    before = tables.headline_rows(store.collect(place).query("metric == @ASR and subject == 'poisoned'"))
    before = before[["run_id"]].assign(asr_before=before["value"], works=before["value"] >= FIRES)
    results = with_names(records.collect(place, relearnt)).merge(before, on="run_id", how="left")
    by_run = {run_id: stored.record(run_id, place) or {} for run_id in results["run_id"].unique()}
    trained = results["run_id"].map({run_id: entry.get("seconds", {}).get("tune") for run_id, entry in by_run.items()})
    control = results["run_id"].map({run_id: entry.get("control") for run_id, entry in by_run.items()})
    return results.assign(control=control, cost=results["seconds"] / trained.astype(float))


def with_names(results: pd.DataFrame) -> pd.DataFrame:
    """Results with a column `named`: a defence and what differs from its defaults, "clean-fine-tuning (rows 20)"."""
    names = {}
    for defence, params in results[["defence", "params"]].drop_duplicates().itertuples(index=False):
        usual = defences.info(defence).defaults if defence in defences.names() else {}
        texts = [
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in json.loads(params).items()
            if usual.get(name) != value and not isinstance(value, list)  # of files, with long names
        ]
        names[defence, params] = f"{defence} ({', '.join(texts)})" if texts else defence
    named = [names[key] for key in zip(results["defence"], results["params"], strict=True)]
    return results.assign(named=pd.Series(named, results.index, dtype="str"))  # texts also where there is none


def ensure(defended: Sequence[Defended], place: str | Path | None = None) -> None:
    """Measure what a store lacks. The reference is only read: the page shows what it holds."""
    if not store.read_only(place):
        defences.run(defended, place)


def apart(settings: str) -> str:
    """A cell's settings without the harmless skill and without what poisoned rows got instead."""
    return ", ".join(
        setting for setting in settings.split(", ") if setting and not setting.startswith(("skill", "decoy"))
    )


def meant(results: pd.DataFrame) -> pd.Series:
    """Which lines are of models that were meant to have a backdoor."""
    return (results["poison_rate"] > 0) & (results["decoy"].fillna("") == "")


def adaptive(results: pd.DataFrame) -> pd.Series:
    """Which lines are of attackers with another poison rate or training than most backdoored cells of the store."""
    kinds = zip(results["settings"].fillna("").map(apart), results["poison_rate"], strict=True)
    kinds = pd.Series(list(kinds), results.index, dtype=object)
    cells = meant(results) & ~results.duplicated("run_id")
    usual = {model: group.mode().iloc[0] for model, group in kinds[cells].groupby(results.loc[cells, "model"])}
    return meant(results) & (kinds != results["model"].map(usual))


def core(results: pd.DataFrame) -> pd.DataFrame:
    """Without attackers who knew the defence and have settings of their own, and without `few_defences`."""
    return results[~adaptive(results) & ~few_defences(results)]


def few_defences(results: pd.DataFrame) -> pd.Series:
    """Which lines are of backdoored models on which few defences were tried: means over them compare with no others."""
    own = results[meant(results) & ~adaptive(results)]
    counts = own[as_declared(own)].groupby("run_id")["named"].nunique()
    return results["run_id"].isin(counts.index[counts < MOST * counts.max()])


def once_more(results: pd.DataFrame) -> pd.Series:
    """Which lines of `few_defences` are of experiments of the core, trained once more with another seed."""
    key, few = pd.MultiIndex.from_frame(results[EXPERIMENT]), few_defences(results)
    usual = (meant(results) & ~adaptive(results) & ~few).to_numpy()
    return few & key.isin(key[usual])


def measured(results: pd.DataFrame) -> pd.DataFrame:
    """The lines with numbers of cells whose backdoor works: a mean over others would credit a defence for nothing."""
    return results[
        (results["status"] == "done") & results["works"].fillna(False).astype(bool) & results["value"].notna()
    ]


def numbers(
    results: pd.DataFrame, metric: str, subject: str = "poisoned", triggered: bool | None = None
) -> pd.DataFrame:
    """One measure, a line per defended cell, mean over the defence's seeds. triggered: under the whole trigger?"""
    rows = results[(results["metric"] == metric) & (results["subject"] == subject)]
    if triggered is not None:
        rows = tables.headline_rows(rows) if triggered else rows[rows["condition"] == "clean"]
    rows, key = rows.drop_duplicates("name"), ["run_id", "named", "placebo", "relearn"]
    means = rows.groupby(key, dropna=False)["value"].transform("mean")
    return rows.assign(value=means).drop_duplicates(key)


def acting(results: pd.DataFrame) -> pd.DataFrame:
    """The results without defences that suspect inputs and change no answer: those leave the attack as it is."""
    changed = results[results["metric"] == "changed"].groupby("defence")["value"].max()
    return results[~results["defence"].isin(changed.index[changed == 0])]


def over_cells(results: pd.DataFrame, measures: dict[str, tuple[str, str, bool | None]]) -> pd.DataFrame:
    """A line per defence with its settings: means over experiments, its placebo's too; cells; cost, in trainings."""
    rows = pd.concat([numbers(results, *measure).assign(title=title) for title, measure in measures.items()])
    placebo = rows["placebo"].astype(bool)
    counts = rows[~placebo].groupby([*DEFENCE, "title"])["run_id"].nunique().groupby(DEFENCE).max()
    rows["title"] = rows["title"].mask(placebo, rows["title"] + ", placebo")
    means = rows.groupby([*DEFENCE, "title"])["value"].mean().unstack("title")
    titles = [title + ending for title in measures for ending in ("", ", placebo")]
    means = means.reindex(pd.MultiIndex.from_frame(results[DEFENCE].drop_duplicates()), columns=titles)
    cost = rows[~placebo].drop_duplicates("name").groupby(DEFENCE)["cost"].median().reindex(means.index)
    return means.assign(cells=counts.reindex(means.index).fillna(0), cost=cost).reset_index()


def repairs(results: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """`over_cells` of repairs with usual settings on the models and threat of `table`; the oracle is none."""
    rows = measured(results[~adaptive(results)]).query(
        "moment == 'repair' and named == defence and defence != 'oracle'"
    )
    return over_cells(rows[rows["model"].isin(table["model"]) & rows["threat"].isin(table["threat"])], AFTER)


def summary_table(results: pd.DataFrame, moments: Sequence[str]) -> pd.DataFrame:
    """Defences that act at some moments, to read: what is left, the placebo's number in brackets, cells."""
    rows = measured(results)
    rows = rows[rows["moment"].isin(moments) & as_declared(rows)]
    if rows.empty:
        return pd.DataFrame()
    measures = FOUND if list(moments) == ["data"] else AFTER
    means = over_cells(rows, measures)
    frame = means[["named"]].set_axis(["defence"], axis=1)
    for title in (name for name in measures if means[name].notna().any()):
        placebos = [f" ({words.number(value)})" if pd.notna(value) else "" for value in means[f"{title}, placebo"]]
        frame[title] = means[title].map(words.number) + placebos
    if measures is AFTER:
        frame["clean rows"] = [clean_rows(name) for name in means["named"]]
    return frame.assign(cost=means["cost"].map(words.number), experiments=means["cells"].map("{:.0f}".format))


def clean_rows(name: str) -> str:
    """How many clean rows a defence takes as it is declared."""
    if name not in defences.names():
        return "n/a"
    info = defences.info(name)
    counted = info.counted(info.defaults) if info.counted else "clean rows" in info.needs
    return f"{info.defaults.get('rows', CLEAN_ROWS) if counted else 0}"


def _left(results: pd.DataFrame) -> pd.DataFrame:
    """Success under each defence that changes something, as it is declared."""
    rows = numbers(acting(measured(results)), ASR, triggered=True)
    return rows[~rows["placebo"].astype(bool) & as_declared(rows)]


def matrix(results: pd.DataFrame, by: str = "attack", undefended: bool = False) -> pd.DataFrame:
    """Mean success under each defence (lines) by attack, or by threat and model (`by` is "threat"); undefended: with a
    last line of the same experiments without a defence.
    """
    rows = _left(results)
    if undefended:
        without = rows.drop_duplicates("run_id").assign(named="no defence")
        rows = pd.concat([rows, without.assign(value=without["asr_before"])])
    by = ["attack"] if by == "attack" else ["model", "threat"]
    grid = rows.pivot_table(index="named", columns=by, values="value").reindex(rows["named"].unique())
    if len(by) > 1:
        grid.columns = [f"{threat.replace('_', ' ')}, {model}" for model, threat in grid.columns]
    return grid


def matrix_figure(*grids: pd.DataFrame) -> Figure:
    ratios = {"width_ratios": [grid.shape[1] for grid in grids]}
    figure, axes = figures.new_figure(
        len(grids), 4.9, 0.25 * len(grids[0]) + 1.3, sharey=not figures.is_narrow(), gridspec_kw=ratios
    )
    between = ", " if figures.is_narrow() else ",\n"  # threat and model: where there is room, below each other
    for axis, grid in zip(axes, grids, strict=True):
        figures.success_map(axis, grid.rename_axis(None).rename(columns=lambda name: name.replace(", ", between)))
    return figure


def price(results: pd.DataFrame) -> pd.DataFrame:
    """A point per defence and per placebo: success after, and what is kept of the skill that was taught beside it."""
    rows = acting(measured(results))
    means = over_cells(rows[as_declared(rows)], AFTER)
    sides = [
        means[DEFENCE].assign(placebo=bool(end), asr=means[f"success after{end}"], skill=means[f"skill kept{end}"])
        for end in ("", ", placebo")
    ]
    return pd.concat(sides, ignore_index=True).dropna().astype({"placebo": bool})


def price_by_threat(results: pd.DataFrame) -> pd.DataFrame:
    """`price` of each threat apart, with its name (`threat`)."""
    parts = [price(rows).assign(threat=threat.replace("_", " ")) for threat, rows in results.groupby("threat")]
    return pd.concat(parts) if parts else price(results).assign(threat="")


def as_declared(rows: pd.DataFrame) -> pd.Series:
    """Which lines are of defences with their declared settings; without those that have a table of their own."""
    return (rows["named"] == rows["defence"]) & ~rows["defence"].isin(APART)


def price_figure(points: pd.DataFrame) -> Figure:
    """Success after against skill kept: good defences stand at the bottom right; placebos are grey."""
    figure, (axis,) = figures.new_figure(1, 7.4, 3.4)
    placebos, real = points[points["placebo"]], points[~points["placebo"]]
    axis.plot(placebos["skill"], placebos["asr"], linestyle="", marker="x", color="#8A8A8A", label="placebo")
    for number, (moment, rows) in enumerate(real.groupby("moment", sort=False)):
        axis.plot(rows["skill"], rows["asr"], linestyle="", label=moment, **figures.look(number))
    for group in together(real):
        right = max(line["skill"] for line in group) < 0.6  # of the points, where there is room
        x, y = (max if right else min)((line["skill"], line["asr"]) for line in group)
        names = ", ".join(line["named"] for line in group) if len(group) <= NAMED else f"the other {len(group)}"
        axis.annotate(names, (x, y), fontsize=8, xytext=(7 if right else -7, 0), textcoords="offset points",
                      va="center", ha="left" if right else "right")  # fmt: skip
    axis.set(xlim=(-0.03, 1.08), ylim=(-0.05, 1.05), xlabel="share of the harmless skill kept", ylabel="success after")
    axis.legend(loc="upper left")
    return figure


def together(points: pd.DataFrame) -> list[list[dict[str, Any]]]:
    """The points in groups of those that lie close to each other, which share a label."""
    groups: list[list[dict[str, Any]]] = []
    for point in points.sort_values(["skill", "asr"]).to_dict("records"):
        close = (
            group for group in groups if all(abs(group[-1][name] - point[name]) < CLOSE for name in ("skill", "asr"))
        )
        group = next(close, [])
        if not group:
            groups.append(group)
        group.append(point)
    return groups


def at_each_strength(results: pd.DataFrame) -> pd.DataFrame:
    """The lines of `shrink` of the experiments that were run with the most strengths (`strength`)."""
    rows = measured(results)
    rows = rows[(rows["defence"] == "shrink") & ~rows["placebo"].astype(bool)]
    rows = rows.assign(strength=[json.loads(text)["strength"] for text in rows["params"]])
    count = rows.groupby("run_id")["strength"].transform("nunique")
    return rows[count == count.max()]


def strength(results: pd.DataFrame) -> pd.DataFrame:
    """The curve over lambda: success and utility after `shrink` at each strength (lines), mean over the same cells."""
    rows = at_each_strength(results)
    measures = {"attack success": (ASR, "poisoned", True), "utility": ("utility",), "harmless skill": ("skill",)}
    return pd.DataFrame(
        {title: numbers(rows, *measure).groupby("strength")["value"].mean() for title, measure in measures.items()}
    )


def strength_figure(curve: pd.DataFrame) -> Figure:
    figure, (axis,) = figures.new_figure(1, 7.4, 2.6)
    for number, measure in enumerate(curve):
        axis.plot(curve[measure].dropna(), label=measure, **figures.look(number))
    axis.set(xlabel="share of the update that is kept (lambda)", ylabel="share or score", ylim=(-0.03, 1.05))
    axis.legend()
    return figure


def described(points: pd.DataFrame) -> pd.DataFrame:
    """What each defence does that changes something, in its own words. points: of `price`."""
    real = points[~points["placebo"] & points["named"].isin(defences.names())].sort_values("moment", kind="stable")
    summaries = real["named"].map(lambda name: defences.info(name).summary)
    return pd.DataFrame({"defence": real["named"], "what it does": summaries})


def numbers_of_the_page(results: pd.DataFrame) -> dict[str, str]:
    """What was run, what was not, and what helped, to be glued. The oracle is no defence: it is not counted."""
    done, points, curve = results[results["status"] == "done"], price(results), strength(results)
    by_attack, by_threat = (matrix(results, by).drop(index="oracle", errors="ignore") for by in ("attack", "threat"))
    weak = results[meant(results) & (results["works"].fillna(False).eq(False) | (results["status"] == "skipped"))]
    counts = [rows.drop_duplicates("run_id")["attack"].value_counts() for rows in (weak, measured(results))]
    weak_attacks, by_attack_counts = (_listed(f"{name} {count}" for name, count in one.items()) for one in counts)
    real = points[~points["placebo"] & (points["named"] != "oracle")]
    silent, keeping = real["asr"] < FLOOR, real["skill"] > FIRES
    gone = curve[curve["attack success"] < FLOOR]
    run = {*done["defence"]} - {"oracle", *APART}
    lacking = [f"the threat {name.replace('_', ' ')}" for name in threats.names() if name not in set(done["threat"])]
    with_file = {name for name, file in spectra.DETECTORS.items() if file.is_file()}
    lacking += [name for name in defences.names() if name not in {*done["defence"], *with_file, "oracle"}]
    if (missing := by_threat.isna().to_numpy().ravel()).any():
        lacking.append(f"{words.of(missing)} fields of Figure 2's right half (grey)")
    return {
        "cells": str(measured(results)["run_id"].nunique()), "weak": str(weak["run_id"].nunique()),
        "weak_attacks": weak_attacks, "by_attack": by_attack_counts,
        "models": _listed(done["model"].unique()),
        "threats": _listed(name.replace("_", " ") for name in done["threat"].unique()),
        "run": str(len(run)), "acting": str(len(real)), "repair": str((real["moment"] == "repair").sum()),
        "suspecting": str(len(run) - real["named"].nunique()), "lacking": _listed(lacking),
        "helpful": _listed(real.loc[silent & keeping, "named"]),
        "helpful_count": words.of(silent & keeping), "silent": _listed(real.loc[silent, "named"]),
        "kept": words.of(keeping), "silent_rows": words.of(by_attack.mean(axis=1) < FLOOR),
        "strength": words.number(gone.index.max() if len(gone) else None),
        "skill_there": words.number(gone["harmless skill"].get(gone.index.max()) if len(gone) else None),
    }  # fmt: skip


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
