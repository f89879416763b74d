"""Which defences help, by the rule written before the grid (book/expectations.md), and where. Free of torch."""

import pandas as pd

from bvlm_book import words
from bvlm_book.chapters import defences as chapter
from bvlm_book.probes import records
from bvlm_utils.store.table import FIRES

EXPERIMENT = ["run_id", "named"]
REPAIR = "restore"  # the one that the page "What to do" takes


def helped(results: pd.DataFrame) -> pd.DataFrame:
    """A line per defence and experiment whose backdoor works: does the defence help there? results: of `collect`.

    It helps where success after it is below that after its placebo, the paired interval of the difference excludes
    zero, and more than half of a harmless skill is kept. Only defences that change answers, the oracle aside.
    """
    rows = chapter.acting(chapter.measured(results))
    rows = rows[chapter.as_declared(rows) & (rows["defence"] != "oracle")]
    success = chapter.numbers(rows, chapter.ASR, triggered=True).set_index(EXPERIMENT)
    placebo = success["placebo"].astype(bool)
    pairs = success[~placebo].join(success.loc[placebo, "held"].rename("held_placebo")).dropna(subset="held_placebo")
    skill = chapter.numbers(rows[~rows["placebo"].astype(bool)], "skill").set_index(EXPERIMENT)["value"]
    high = [records.difference(*held)[2] for held in zip(pairs["held"], pairs["held_placebo"], strict=True)]
    kept = skill.reindex(pairs.index) > FIRES
    return pairs.assign(helps=(pd.Series(high, pairs.index, dtype=float) < 0) & kept).reset_index()


def numbers(results: pd.DataFrame) -> dict[str, str]:
    """To be glued: what helps most often, on which threats repairs silence and keep the skill, the highest false
    activation, the worst and the placebo's success of `REPAIR`, and the experiments behind the curve over lambda.
    """
    lines = helped(results)
    most = lines.groupby("named", sort=False)["helps"].sum().sort_values(ascending=False, kind="stable").index[:1]
    both = _both(results)
    acted = chapter.acting(chapter.measured(results))
    acted = acted[~acted["placebo"].astype(bool)]
    false = chapter.numbers(acted, chapter.ASR, triggered=False).sort_values("value", ascending=False)
    worst = false.iloc[0] if len(false) else {}
    repair = chapter.numbers(chapter.measured(results).query("named == @REPAIR"), chapter.ASR, triggered=True)
    placebo, curve = repair["placebo"].astype(bool), chapter.at_each_strength(results).drop_duplicates("run_id")
    scope = ", ".join([*curve["threat"].str.replace("_", " ").unique(), *curve["model"].unique()])
    return {
        "helps_most": ", ".join(most) or "n/a", "helps_count": words.of(lines.loc[lines["named"].isin(most), "helps"]),
        "both_threats": ", ".join(both) or "no threat",
        "both": ", ".join(dict.fromkeys(name for names in both.values() for name in names)) or "none",
        "false": words.number(worst.get("value")), "false_after": worst.get("named", "n/a"),
        "false_where": f"{worst['attack']} on {words.threat(worst)}, {worst['model']}" if len(false) else "n/a",
        "false_mean": words.number(false.loc[false["named"] == worst.get("named"), "value"].mean()),
        f"{REPAIR}_placebo": words.number(repair.loc[placebo, "value"].mean()),
        f"{REPAIR}_worst": words.number(repair.loc[~placebo, "value"].max()),
        "strength_cells": f"{words.count(len(curve), 'experiment')} ({scope or 'n/a'})",
    }  # fmt: skip


def _both(results: pd.DataFrame) -> dict[str, list[str]]:
    """Threat -> repairs that leave almost no success and over half of the skill there, on average."""
    points = chapter.price_by_threat(results).query("moment == 'repair' and not placebo and named != 'oracle'")
    good = points[(points["asr"] < chapter.FLOOR) & (points["skill"] > FIRES)]
    return {threat: list(rows["named"]) for threat, rows in good.groupby("threat")}
