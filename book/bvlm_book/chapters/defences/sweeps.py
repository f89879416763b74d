"""Defences with other settings than the frozen ones, and training again without suspicious rows. Free of torch."""

import json
from operator import ge, le

import pandas as pd

from bvlm_book import words
from bvlm_book.chapters import defences as chapter
from bvlm_book.chapters.defences import knowing
from bvlm_utils import defences
from bvlm_utils.store.table import FIRES

# By when a defence acts, what is read of a sweep, and whether the lowest value is the best.
READ = {"repair": (chapter.ASR, True), "data": ("auroc", False), "inference": (chapter.ASR, True)}
SUSPECTS = "insensitivity"  # at inference, without a change of the answers
FEWEST = 2  # settings of a sweep
RANDOM = "random rows"
COMPARED = ("truth", RANDOM)  # what filters of the rows are compared with
MUCH = 0.2  # by so much lower is success with the best setting of a sweep where that was worth a search


def best(results: pd.DataFrame) -> pd.DataFrame:
    """A line per defence and experiment of a sweep: the frozen setting's number (`frozen`), the best one of all its
    `settings` (`best`), and what is kept of the skill there and with the frozen one.
    """
    lines = []
    rows = chapter.measured(results)
    rows = rows[~rows["placebo"].astype(bool) & ~rows["defence"].isin(chapter.APART)]
    skill = chapter.numbers(rows, "skill").set_index(["run_id", "named"])["value"]
    for defence, group in rows.groupby("defence", sort=False):
        metric, lowest = READ.get(group["moment"].iloc[0], READ["repair"]) if defence != SUSPECTS else READ["data"]
        values = chapter.numbers(group, metric, triggered=True if metric == chapter.ASR else None)
        for run_id, one in values.groupby("run_id", sort=False):
            if len(one) < FEWEST or defence not in set(one["named"]):
                continue
            of = one.set_index("named")["value"]
            kept = pd.Series({name: skill.get((run_id, name), 0.0) for name in of.index})
            order = pd.DataFrame({"value": of if lowest else -of, "lost": -kept})
            name = order.sort_values(["value", "lost"], kind="stable").index[0]  # of equals, what keeps most
            skills = {title: skill.get((run_id, which)) for title, which in (("skill", defence), ("skill_best", name))}
            lines.append({
                "defence": defence, "run_id": run_id, "measure": "success" if metric == chapter.ASR else "AUROC",
                "settings": len(of), "frozen": of[defence], "best": of[name], "at": name, **skills,
            })  # fmt: skip
    columns = ["defence", "run_id", "measure", "settings", "frozen", "best", "at", "skill", "skill_best"]
    return pd.DataFrame(lines, columns=columns)


def table(results: pd.DataFrame) -> pd.DataFrame:
    """What the frozen setting does, and what the best of a sweep would claim: means over the same experiments."""
    lines = []
    for (defence, measure), group in best(results).groupby(["defence", "measure"], sort=False):
        line = {"defence": defence, "settings": f"{group['settings'].max()}", "measure": measure}
        line |= {
            "frozen": words.number(group["frozen"].mean()),
            "best of the sweep": words.number(group["best"].mean()),
        }
        if group["skill"].notna().any():
            line |= {"skill": words.number(group["skill"].mean()), "there": words.number(group["skill_best"].mean())}
        lines.append(line | {"most often": group["at"].mode().iloc[0], "experiments": str(len(group))})
    return pd.DataFrame(lines).fillna("")


def numbers(results: pd.DataFrame) -> dict[str, str]:
    """To be glued: for how many swept defences the best setting lowers mean success much, and what filters leave."""
    gains, again = gained(results), trained_again(results)
    left = again.groupby("by")["success"].mean() if len(again) else {}
    return {
        "swept_gain": words.of(gains >= MUCH),
        "again_truth": words.number(left.get("truth")), "again_base": words.number(left.get("base-likelihood")),
        "again_random": words.number(left.get(RANDOM)), "again_both": _both(again),
    }  # fmt: skip


def _both(again: pd.DataFrame) -> str:
    """In words: which filters leave almost no success and over half of the skill, and on which threats."""
    if again.empty:
        return "none"
    good = again[(again["success"] < chapter.FLOOR) & (again["skill"] > FIRES)]
    good = good[~good["by"].isin(COMPARED)]
    texts = [f"{by} ({', '.join(rows['threat'].str.replace('_', ' '))})" for by, rows in good.groupby("by")]
    return " and ".join(texts) or "none"


def gained(results: pd.DataFrame) -> pd.Series:
    """By defence: how much lower mean success is with the best setting of each experiment than with the frozen one."""
    lines = best(results).query("measure == 'success'")
    return (lines["frozen"] - lines["best"]).groupby(lines["defence"]).mean()


def elsewhere(results: pd.DataFrame) -> pd.DataFrame:
    """Mean success after each defence (lines) by attack, of experiments with few defences. results: of `every`."""
    rows = results[chapter.few_defences(results) & ~chapter.adaptive(results)]
    rows = chapter.acting(chapter.measured(rows))
    rows = chapter.numbers(rows[chapter.as_declared(rows) & ~rows["placebo"].astype(bool)], chapter.ASR, triggered=True)
    return rows.pivot_table(index="named", columns="attack", values="value")


def elsewhere_table(results: pd.DataFrame) -> pd.DataFrame:
    grid = elsewhere(results)
    texts = grid.map(words.number).rename_axis(index="defence", columns=None)
    return texts.reset_index() if len(grid) else pd.DataFrame()


def as_in_the_core(results: pd.DataFrame) -> pd.Series:
    """By repair: how far mean success on the other attacks is from the core's on the same threats and models."""
    rows = chapter.measured(results)
    rows = rows[chapter.as_declared(rows) & ~rows["placebo"].astype(bool) & (rows["moment"] == "repair")]
    rows = chapter.numbers(rows[~chapter.adaptive(rows)], chapter.ASR, triggered=True)
    other = chapter.few_defences(results).reindex(rows.index)
    same = rows[rows["threat"].isin(rows.loc[other, "threat"]) & rows["model"].isin(rows.loc[other, "model"])]
    means = same.groupby(["named", other.reindex(same.index)])["value"].mean().unstack()
    return (means[True] - means[False]).abs().dropna() if {True, False} <= set(means) else pd.Series(dtype=float)


def expected(results: pd.DataFrame) -> list[tuple]:
    """What was expected where the core did not look, and what came of it, for `tables.told`. results: of `every`."""
    lost = knowing.few_rows(results).reindex(["activation-clustering", "spectral-signatures"]).dropna()
    lines = [
        ("the other attacks: success after each repair within 0.20 of the core's", as_in_the_core(results), le, 0.2),
        ("few rows: clustering and spectral signatures lose 0.10 of AUROC or more", lost, ge, 0.1),
    ]
    return [
        (text, words.span(values.round(3), 3) if len(values) else "",
         bool(relation(values, bound).all()) if len(values) else None)
        for text, values, relation, bound in lines
    ]  # fmt: skip


def trained_again(results: pd.DataFrame, table: pd.DataFrame | None = None) -> pd.DataFrame:
    """A line per threat and filter: mean success and skill after training without the rows that it dropped. table: of
    a store's cells, to whose models and threats the lines are limited.
    """
    rows = chapter.measured(results).query("defence == 'filter'")
    if table is not None:
        rows = rows[rows["model"].isin(table["model"]) & rows["threat"].isin(table["threat"])]
    if rows.empty:
        return pd.DataFrame(columns=["threat", "by", "success", "skill"])
    rows = rows.assign(by=[(defences.info("filter").defaults | json.loads(text))["by"] for text in rows["params"]])
    rows["by"] = rows["by"].mask(rows["placebo"].astype(bool), RANDOM)
    parts = [
        chapter.numbers(rows, metric, triggered=True if metric == chapter.ASR else None).assign(measure=title)
        for title, metric in (("success", chapter.ASR), ("skill", "skill"))
    ]
    lines = pd.concat(parts)
    return lines.groupby(["threat", "by", "measure"])["value"].mean().unstack("measure").reset_index()


def stopped(results: pd.DataFrame, table: pd.DataFrame) -> str:
    """In words, the filter of training rows that takes most of the attack and keeps the skill; "" for none tried."""
    if (filters := trained_again(results, table)).empty:
        return ""
    good = filters[~filters["by"].isin(COMPARED) & (filters["success"] <= FIRES) & (filters["skill"] > FIRES)]
    if good.empty:
        return "No filter of the training rows stops the attack and keeps the skill."
    best = good.loc[good["success"].idxmin()]
    random = filters.loc[filters["by"] == RANDOM, "success"].mean()
    return (
        f"Trained again without the rows that {best['by']} suspects: success {words.number(best['success'])} "
        f"(random rows {words.number(random)}), skill {words.number(best['skill'])}."
    )


def again_table(results: pd.DataFrame) -> pd.DataFrame:
    """To read: a line per threat, a column per filter, success and in brackets the skill that is kept."""
    found = trained_again(results)
    if found.empty:
        return pd.DataFrame()
    texts = found["success"].map(words.number) + found["skill"].map(lambda value: f" ({words.number(value)})")
    grid = found.assign(text=texts, threat=found["threat"].str.replace("_", " ")).pivot(
        index="threat", columns="by", values="text"
    )
    order = [name for name in ("truth", "base-likelihood", "spectral-signatures", RANDOM) if name in grid]
    return grid[order].rename_axis(columns=None).fillna("").reset_index()
