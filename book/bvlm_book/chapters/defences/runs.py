"""Defences on experiments that were trained more than once: how far one training run's numbers hold. Free of torch."""

import pandas as pd

from bvlm_book import words
from bvlm_book.chapters import defences as chapter


def pairs(results: pd.DataFrame) -> pd.DataFrame:
    """A line per defence as it is declared, its `measure` and experiment of several training runs: what the `first`
    gave, which has the lowest seed, and what others gave on average (`second`). results: of `every`.
    """
    rows = chapter.measured(results[chapter.meant(results) & ~chapter.adaptive(results)])
    rows = rows[chapter.as_declared(rows) & ~rows["placebo"].astype(bool)]
    parts = pd.concat([
        chapter.numbers(chapter.acting(rows), chapter.ASR, triggered=True).assign(measure="success"),
        chapter.numbers(rows[rows["moment"] != "repair"], "auroc").assign(measure="AUROC"),
    ])  # fmt: skip
    first = parts["seed"] == parts.groupby(chapter.EXPERIMENT)["seed"].transform("min")
    key = ["named", "moment", "measure", *chapter.EXPERIMENT]
    run = first.map({True: "first", False: "second"})
    means = parts.groupby([*key, run], sort=False)["value"].mean().unstack()
    return means.reindex(columns=["first", "second"]).dropna()


def table(results: pd.DataFrame) -> pd.DataFrame:
    """To read: means over the same experiments of two training runs, and the largest difference of one experiment."""
    lines = []
    for (defence, measure), both in pairs(results).groupby(["named", "measure"], sort=False):
        apart = (both["second"] - both["first"]).abs().max()
        numbers = {"first run": both["first"].mean(), "second run": both["second"].mean(), "furthest apart": apart}
        texts = {title: words.number(value) for title, value in numbers.items()}
        lines.append({"defence": defence, "measure": measure} | texts | {"experiments": str(len(both))})
    return pd.DataFrame(lines)


def moved(results: pd.DataFrame) -> pd.DataFrame:
    """Means of `pairs` by defence, moment and measure, and by how much the two runs differ (`by`), most first."""
    means = pairs(results).groupby(["named", "moment", "measure"])[["first", "second"]].mean()
    by = (means["second"] - means["first"]).abs()
    return means.assign(by=by).reset_index().sort_values("by", ascending=False, kind="stable")


def numbers(results: pd.DataFrame) -> dict[str, str]:
    """To be glued: the repair whose mean success differs most between two training runs, both means, by how much those
    of the other repairs differ at most, and of which experiments these are means.
    """
    repairs, both = moved(results).query("moment == 'repair'"), pairs(results).query("moment == 'repair'").reset_index()
    most = repairs.iloc[0] if len(repairs) else {}
    threats = ", ".join(both["threat"].str.replace("_", " ").unique())
    return {
        "apart": most.get("named", "n/a"), "apart_others": words.number(repairs["by"].iloc[1:].max()),
        "apart_first": words.number(most.get("first")), "apart_second": words.number(most.get("second")),
        "apart_cells": f"{words.count(len(both[chapter.EXPERIMENT].drop_duplicates()), 'experiment')} "
        f"({threats or 'n/a'})",
    }  # fmt: skip


def expected(results: pd.DataFrame) -> list[tuple]:
    """What was expected of a second run and what came of it, as `tables.told` takes it."""
    means = moved(results)
    lines = [
        ("success after each repair within 0.10 of the first's", means[means["moment"] == "repair"], 0.1),
        ("AUROC of each detector within 0.05 of the first's", means[means["measure"] == "AUROC"], 0.05),
    ]
    return [
        (f"another training run: {text}", words.span(rows["by"].round(3), 3) if len(rows) else "",
         bool((rows["by"] <= bound).all()) if len(rows) else None)
        for text, rows, bound in lines
    ]  # fmt: skip
