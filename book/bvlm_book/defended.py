"""The defence grid as all pages read it: lines of `defences.records.collect`, which of them count, one measure of each.

Free of torch.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from bvlm_book import tables
from bvlm_utils import attacks, defences, store
from bvlm_utils.defences import records
from bvlm_utils.store.table import FIRES

FLOOR = 0.05  # of what is left of a backdoor
ASR = "asr_payload"  # the trigger's success, whatever else is said


def collect(place: str | Path | None = None, relearnt: bool = False) -> pd.DataFrame:
    """`every` without the attackers of settings of their own."""
    found = every(place, relearnt)
    return found[~adaptive(found)]


def every(place: str | Path | None = None, relearnt: bool = False) -> pd.DataFrame:
    """`defences.records.collect` with what each cell was before: asr_before, works (was there a backdoor?)."""
    found = records.collect(place, relearnt)
    before = undefended(store.collect(place))
    return found.merge(before, on="run_id", how="left")


def apart(settings: str) -> str:
    """What differs from the study's settings but for the harmless skill and for what poisoned rows got instead."""
    return ", ".join(one for one in settings.split(", ") if one and not one.startswith(("skill", "decoy")))


def adaptive(found: pd.DataFrame) -> pd.Series:
    """Which lines are of attackers with another poison rate or training than most backdoored cells of the store."""
    kinds = pd.Series(
        list(zip(found["settings"].fillna("").map(apart), found["poison_rate"], strict=True)), found.index
    )
    usual = kinds[meant(found) & ~found.duplicated("run_id")].mode()
    return meant(found) & ~kinds.isin(usual[:1])


def meant(found: pd.DataFrame) -> pd.Series:
    """Which lines are of models that were meant to have a backdoor."""
    return (found["poison_rate"].astype(float) > 0) & (found["decoy"].fillna("") == "")


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


def named(line: Any) -> str:
    """A defence with what differs from its defaults: "clean-fine-tuning (rows 20)"."""
    given = json.loads(line["params"])
    usual = defences.info(line["defence"]).defaults if line["defence"] in defences.names() else {}
    apart = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                      for name, value in given.items() if usual.get(name) != value)  # fmt: skip
    return f"{line['defence']} ({apart})" if apart else line["defence"]


def on_the_curve(rows: pd.DataFrame) -> pd.Series:
    """`shrink` at other strengths than its own, which have a figure of their own."""
    return (rows["defence"] == "shrink") & (rows["params"] != json.dumps(defences.info("shrink").defaults))


def strength(found: pd.DataFrame) -> pd.DataFrame:
    """The curve over lambda: success and utility after `shrink` at each strength, mean over cells."""
    rows = measured(found)
    rows = rows[(rows["defence"] == "shrink") & ~rows["placebo"].astype(bool)]
    if rows.empty:
        return pd.DataFrame(columns=["strength", "measure", "value"])
    rows = rows.assign(strength=rows["params"].map(lambda text: json.loads(text)["strength"]))
    shown = {"attack success": (ASR, "poisoned", True), "utility": ("utility", "poisoned", None),
             "harmless skill": ("skill", "poisoned", None)}  # fmt: skip
    parts = [
        numbers(rows, *of).groupby("strength", as_index=False)["value"].mean().assign(measure=title)
        for title, of in shown.items()
    ]
    return pd.concat(parts, ignore_index=True)
