"""Words and names that several pages share: labels, numbers with intervals, what stands behind a number."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

CONDITIONS = ("clean", "text", "image", "both")
CONDITION_LABELS = {"clean": "no trigger", "text": "text trigger", "image": "image trigger", "both": "both triggers"}
SUBJECTS = ("base", "control", "poisoned")
SUBJECT_LABELS = {"base": "base model", "control": "clean-tuned", "poisoned": "poisoned"}
MODALITIES = ("text", "image", "bimodal")
# The tests that success may be read from, as a reader knows them.
TESTS = {"asr_payload": "payload test", "asr": "strict test", "asr_right": "strict test and answer right"}


def extreme(rows: pd.DataFrame, which: str) -> str:
    """The largest ("max") or smallest value with its interval and, unless all are alike, whose it is; "n/a" of none."""
    if rows.empty:
        return number(None)
    row = rows.loc[getattr(rows["value"].astype(float), f"idx{which}")()]
    alike = len(rows) > 1 and rows["value"].nunique() == 1
    return interval(row) + ("" if alike else f" ({row['attack']}, {row['model']})")


def threat(row: Mapping[str, Any]) -> str:
    return row["threat"].replace("_", " ")


def of(passed: Iterable[bool], none: str = "0 of 0") -> str:
    """ "3 of 8"; `none` where there are none."""
    values = list(passed)
    return f"{int(sum(values))} of {len(values)}" if values else none


def by_model(passed: pd.Series, model: pd.Series) -> str:
    """ "13 of 22 on tiny-llava, 12 of 12 on tiny-qwen2.5-vl"."""
    return ", ".join(f"{of(group)} on {name}" for name, group in passed.groupby(model, sort=False)) or of([])


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
    ordered = sorted(values)
    ends = [str(value) if digits is None else number(value, digits=digits) for value in (*ordered[:1], *ordered[-1:])]
    return " to ".join(dict.fromkeys(ends)) or "n/a"


def number(value: Any, low: Any = None, high: Any = None, digits: int = 2) -> str:
    """ "0.97 [0.93, 0.99]"; "n/a" for a missing value; never a zero below zero."""
    if value is None or pd.isna(value):
        return "n/a"
    # Not `round`: NumPy's rounds 0.995 up, formatting and the figures round it down.
    written = [f"{item:.{digits}f}" for item in (value, low, high) if not is_missing(item)]
    text, *bounds = (numeral.lstrip("-") if float(numeral) == 0 else numeral for numeral in written)
    return f"{text} [{', '.join(bounds)}]" if len(bounds) == 2 else text


def interval(row: Mapping[str, Any], name: str = "value") -> str:
    """`number` of a column with its bounds: low and high of value, else NAME_low and NAME_high; "n/a" for no row."""
    low, high = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
    return number(row.get(name), row.get(low), row.get(high))


def is_missing(value: Any) -> bool:
    return value is None or (np.isscalar(value) and pd.isna(value))
