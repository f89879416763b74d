"""The first edition's rules on the claims of the paper; `rules_second` has those in force.

The rules and their thresholds were committed before the runs that they judge. They read the strict test, as the first
edition did.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from bvlm_book import tables
from bvlm_utils.store.table import differing, setting_columns, text

MIN_SEEDS = 3
HIGH = 0.90  # an attack "works" if the lower bound of its ASR is above this
LOW_RATE = 0.01
DOMINATES = 0.50  # the text part "overwhelms" if the lower bound of text-only minus image-only ASR is above this

CONFIRMED, REFUTED, UNTESTABLE = "confirmed", "not confirmed at this scale", "not testable here"


def text_at_one_percent(found: pd.DataFrame) -> pd.DataFrame:
    rows = _headline(found)
    rows = rows[(rows["poison_rate"] == LOW_RATE) & (rows["modality"] != "image")]
    return _judged(rows, lambda row: row["low"] > HIGH)


def text_overwhelms(found: pd.DataFrame) -> pd.DataFrame:
    """One line per bimodal attack, threat, data set, rate and patch: both halves trained alone, then the difference.

    The halves trained alone are cells of the same attack with half=text and half=image. Where the text half or the
    image half alone does not work, nothing can be said of which one dominates. `named`: both were trained alone, with
    however many seeds and whatever success, so the rule names the pair.
    """
    lines = []
    plain = found[(found["modality"] == "bimodal") & (found["half"] == "")]
    apart = [name for name in setting_columns(found) if name != "half"]
    same = ["attack", "threat", "dataset", "poison_rate"]
    for (*key, settings), part in plain.groupby([*same, "settings"], sort=False):
        cell = (found[same] == key).all(axis=1) & (found["shared"] == settings)
        line = dict(zip(same, key, strict=True)) | {"settings": settings, "holds": None, "named": True}
        line |= part.iloc[0][apart].to_dict()
        alone = []
        for half in ("text", "image"):
            rows = found[cell & (found["half"] == half) & (found["condition"] == half)]
            line[f"{half} half alone"] = rows["value"].iloc[0] if len(rows) else None
            line["named"] &= len(rows) > 0
            alone.append(len(rows) > 0 and rows["n_seeds"].iloc[0] >= MIN_SEEDS and rows["low"].iloc[0] > HIGH)
        by = part.set_index("condition")
        if {"text", "image"} <= set(by.index):
            line |= {"text only": by.loc["text", "value"], "image only": by.loc["image", "value"]}
            # the widest difference that both intervals allow, so that no correlation has to be assumed
            line["difference"] = line["text only"] - line["image only"]
            line["low"] = by.loc["text", "low"] - by.loc["image", "high"]
            line["high"] = by.loc["text", "high"] - by.loc["image", "low"]
            if all(alone) and by.loc[["text", "image"], "n_seeds"].min() >= MIN_SEEDS:
                line["holds"] = line["low"] > DOMINATES
        lines.append(line)
    columns = [*same, "settings", *apart, "text half alone", "image half alone", "text only", "image only",
               "difference", "low", "high", "holds", "named"]  # fmt: skip
    return pd.DataFrame(lines, columns=columns)


def memorised(found: pd.DataFrame) -> pd.DataFrame:
    """One line per threat, data set and rate: Shadowcast as published beside the same rows unperturbed (eps=0)."""
    rows = _headline(found)[lambda r: r["attack"] == "Shadowcast"]
    unperturbed = [differing(row) == {"attack.eps": 0} for row in found.to_dict("records")]
    control = tables.headline_rows(found[pd.Series(unperturbed, index=found.index, dtype=bool)])
    merged = rows.merge(
        control[["attack", "threat", "dataset", "poison_rate", "value", "low", "high", "n_seeds"]],
        on=["attack", "threat", "dataset", "poison_rate"], suffixes=("", "_unperturbed"), how="left",
    )  # fmt: skip
    merged["n_seeds"] = merged[["n_seeds", "n_seeds_unperturbed"]].min(axis=1).fillna(0)

    def holds(row: pd.Series) -> bool | None:  # without success there is nothing to explain
        return bool(row["value_unperturbed"] >= row["value"] / 2) if row["low"] > 0 else None

    return _judged(merged, holds)


PAPER = {  # the claims of the abstract, by their keys in `rules_second.CLAIMS`
    "pairs": text_at_one_percent,
    "dominance": text_overwhelms,
}


@dataclass(frozen=True)
class Verdict:
    """holds, judged: pairs where the claim holds, and that could be judged. evidence: the pairs that the rule names."""

    verdict: str
    holds: int
    judged: int
    evidence: pd.DataFrame


def rates(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """Success rates of the poisoned models of one base: a line per attack, threat, rate, settings, half and condition.

    Columns: those of `tables.summary`, settings as text and in columns (`store.table.differing`), half, and `shared`,
    the settings but for the half. Only cells of the study's own settings: no half-triggered negatives, and the number
    of training rows that most cells have.
    """
    done = table[(table["model"] == model) & (table["negatives"] == 0) & (table["status"] == "done")]
    if len(done):
        done = done[done["train_rows"] == done["train_rows"].mode().iloc[0]]
    parts = []
    for settings, part in done.groupby("settings", sort=False):
        about = differing(part.iloc[0])
        half = about.pop("half", "")
        about |= {"settings": settings, "half": half, "shared": text(about)}
        parts.append(tables.success_rates(part, "poisoned", tables.strict_metric(part)).assign(**about))
    if parts:
        return pd.concat(parts, ignore_index=True)
    return tables.success_rates(done, "poisoned", tables.strict_metric(done)).assign(settings="", half="", shared="")


def verdict(evidence: pd.DataFrame) -> Verdict:
    """evidence: what a rule makes of `rates`, a line per pair with `holds` (missing where nothing can be said).

    UNTESTABLE unless at least half of the pairs that the rule names can be judged.
    """
    if "named" in evidence:
        evidence = evidence[evidence["named"].astype(bool)].drop(columns="named")
    known = evidence["holds"].dropna().astype(bool)
    holds, judged = int(known.sum()), len(known)
    if not judged or judged * 2 < len(evidence):
        return Verdict(UNTESTABLE, holds, judged, evidence)
    return Verdict(CONFIRMED if holds * 2 > judged else REFUTED, holds, judged, evidence)


def _judged(rows: pd.DataFrame, holds: Callable[[pd.Series], bool | None]) -> pd.DataFrame:
    """`holds` for every line with enough seeds; missing for the others, and where it is None."""
    found = rows.copy()
    found["holds"] = [holds(row) if row["n_seeds"] >= MIN_SEEDS else None for _, row in rows.iterrows()]
    return found


def _headline(found: pd.DataFrame) -> pd.DataFrame:
    return tables.headline_rows(found[found["settings"] == ""])
