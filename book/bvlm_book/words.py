"""Words and names that several pages share: labels, numbers with intervals, what stands behind a number."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bvlm_utils.score import intervals
from bvlm_utils.store import table

Panels = Sequence[tuple[pd.DataFrame, str]]
CONDITIONS = ("clean", "text", "image", "both")
CONDITION_LABELS = {"clean": "no trigger", "text": "text trigger", "image": "image trigger", "both": "both triggers"}
SUBJECTS = ("base", "control", "poisoned")
SUBJECT_LABELS = {"base": "base model", "control": "clean-tuned", "poisoned": "poisoned"}
MODALITIES = ("text", "image", "bimodal")
# The measures of success other than a threat's headline, as a reader knows them.
MEASURES = {
    "asr": "strict test",
    "asr_soft": "soft test",
    "asr_payload": "payload test",
    "asr_published": "published test",
    "asr_published_soft": "published test, lenient",
    "right": "answer right",
    "refused": "refused",
    "asr_right": "strict test and answer right",
    "asr_elsewhere": "soft test on pictures without the source",
    "skill": "skill shown",
}
MARKS = {"ceiling": "▲", "floor": "▼", "": ""}


def attack_at(row: Mapping[str, Any]) -> str:
    return f"{row['attack']} at {rate(row)}"


def extreme(rows: pd.DataFrame, which: str) -> str:
    """The largest ("max") or smallest value with its interval and, unless all are alike, whose it is."""
    row = rows.loc[getattr(rows["value"].astype(float), f"idx{which}")()]
    alike = len(rows) > 1 and rows["value"].nunique() == 1
    return interval(row) + ("" if alike else f" ({row['attack']}, {row['model']})")


def evidence(rows: pd.DataFrame) -> str:
    """How many inputs (n) and seeds (n_seeds) stand behind each number, and what its interval is."""
    if rows.empty:
        return ""
    inputs = f" on {span(rows['n'].dropna().astype(int))} inputs" if "n" in rows else ""
    least, most = int(rows["n_seeds"].min()), int(rows["n_seeds"].max())
    if most == 1:
        return f"Single runs{inputs}; 95 % intervals over inputs."
    if least > 1:
        return f"Means of {span((least, most))} seeds{inputs}; 95 % intervals over seeds."
    return f"Single runs and means of up to {most} seeds{inputs}; 95 % intervals over seeds, else over inputs."


def nothing_measured(what: str) -> dict[str, str]:
    """Title, alt text and caption of a figure that has nothing to show."""
    return {"title": "Nothing was measured.", "alt": f"{what}: n/a, nothing was measured.", "caption": f"{what}: n/a."}


def named(row: Mapping[str, Any]) -> str:
    """ "BadNets-MM, targeted refusal, 10 %, patch of 80 pixels": a cell but for its model and negatives."""
    return ", ".join(filter(None, [row["attack"], threat(row), rate(row), in_words(row)]))


def attack(row: Mapping[str, Any]) -> str:
    """ "BadNets-MM, patch of 80 pixels": the attack with what of its cell is not as usual."""
    return ", ".join(filter(None, [row["attack"], in_words(row)]))


def threat(row: Mapping[str, Any]) -> str:
    return row["threat"].replace("_", " ")


def rate(row: Mapping[str, Any]) -> str:
    return percent(row["poison_rate"])


def negatives(row: Mapping[str, Any]) -> str:
    return f"{row['negatives']:g} per poisoned row" if row["negatives"] else "none"


def in_words(row: Mapping[str, Any]) -> str:
    """Settings of a cell, but for its half, as a reader knows them: "patch of 80 pixels"."""
    said = {"attack.patch_size": "patch of {} pixels", "picture_last": "picture after the words"}
    settings = {name: value for name, value in table.differing(row).items() if name != "half"}
    return ", ".join(
        said[name].format(value) if name in said else table.text({name: value}) for name, value in settings.items()
    )


def percent(rate: float) -> str:
    """0.005 as "0.5 %"."""
    return f"{100 * rate:.3g} %"


def count(number: float, word: str) -> str:
    """ "1 seed", "3 seeds"."""
    return f"{int(number)} {word}{'' if number == 1 else 's'}"


def passes(number: int) -> str:
    """ "one pass", "3 passes"."""
    return "one pass" if number == 1 else f"{number} passes"


def span(values: Iterable[Any], digits: int | None = None) -> str:
    """ "3 to 5" from the least to the largest, "3" where all are alike, "n/a" where there are none."""
    found = sorted(values)
    ends = [str(one) if digits is None else number(one, digits=digits) for one in (*found[:1], *found[-1:])]
    return " to ".join(dict.fromkeys(ends)) or "n/a"


def number(value: Any, low: Any = None, high: Any = None, digits: int = 2) -> str:
    """ "0.97 [0.93, 0.99]"; "n/a" for a missing value; never a zero below zero."""
    if value is None or pd.isna(value):
        return "n/a"
    # Not `round`: NumPy's rounds 0.995 up, formatting and the figures round it down.
    written = [f"{one:.{digits}f}" for one in (value, low, high) if not is_missing(one)]
    text, *bounds = (one.lstrip("-") if float(one) == 0 else one for one in written)
    return f"{text} [{', '.join(bounds)}]" if len(bounds) == 2 else text


def interval(row: Mapping[str, Any], name: str = "value") -> str:
    """`number` of a column with its bounds: low and high of value, else NAME_low and NAME_high; "n/a" for no row."""
    low, high = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
    return number(row.get(name), row.get(low), row.get(high))


def marked_interval(row: Mapping[str, Any]) -> str:
    return marked(*(row.get(name) for name in ("value", "low", "high")))


def marked(value: Any, low: Any = None, high: Any = None) -> str:
    """`number` of a success rate, marked at the ceiling (▲) and at the floor (▼)."""
    text = number(value, low, high)
    return text if text == "n/a" else f"{text} {MARKS[intervals.mark(value)]}".rstrip()


def is_missing(value: Any) -> bool:
    return value is None or (np.isscalar(value) and pd.isna(value))
