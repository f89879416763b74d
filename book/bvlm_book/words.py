"""Words and names that several pages share: labels, numbers with intervals, what stands behind a number."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bvlm_utils.score import intervals
from bvlm_utils.store import table

NOTHING = "Nothing has been asked yet: the store holds no such answers. The command at the end of this page makes them."

Panels = Sequence[tuple[pd.DataFrame, str]]
STRONG = 0.90  # a strong backdoor: the mean success rate of its runs lies above this
CONDITIONS = ("clean", "text", "image", "both")
CONDITION_LABELS = {
    "clean": "no trigger",
    "text": "text trigger",
    "image": "image trigger",
    "both": "both triggers",
}
SUBJECTS = ("base", "control", "poisoned")
SUBJECT_LABELS = {"base": "base model", "control": "clean-tuned", "poisoned": "poisoned"}
MODALITIES = ("text", "image", "bimodal")
# The measures of success other than a threat's headline, as a reader knows them.
MEASURES = {
    "asr": "strict test",
    "asr_soft": "soft test",
    "asr_payload": "payload",
    "asr_published": "published test",
    "asr_published_soft": "published test, lenient",
    "right": "answer right",
    "refused": "refused",
    "asr_right": "strict test and answer right",
    "asr_elsewhere": "soft test on pictures without the source",
}
MARKS = {"ceiling": "▲", "floor": "▼", "": ""}


def attack_at(row: pd.Series) -> str:
    return f"{row['attack']} at {percent(row['poison_rate'])}"


def extreme(rows: pd.DataFrame, which: str) -> str:
    """The largest or smallest value of the rows with its interval, and whose it is."""
    value = rows["value"].max() if which == "max" else rows["value"].min()
    tied = rows[rows["value"] == value]
    row, others = tied.iloc[0], len(tied) - 1
    whose = "every cell" if len(tied) == len(rows) > 1 else attack_at(row) + (f" and {others} more" if others else "")
    return f"{number(row['value'], row['low'], row['high'])} ({whose})"


def value_range(rows: pd.DataFrame) -> str:
    """ "from the smallest to the largest", or the one value that all have."""
    if rows["value"].nunique() == 1:
        return extreme(rows, "max")
    return f"from {extreme(rows, 'min')} to {extreme(rows, 'max')}"


def evidence(rows: pd.DataFrame) -> str:
    """How many inputs and seeds stand behind each number, and what its interval is."""
    if rows.empty:
        return ""
    counts = sorted({int(n) for n in rows["n"].dropna()})
    inputs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "n/a"
    seeds = int(rows["n_seeds"].max())
    if seeds == 1:
        return f"One seed, {inputs} held-out inputs per number, 95 % Wilson intervals: no claim about other seeds."
    if (rows["n_seeds"] == 1).any():
        return (
            f"Where {seeds} seeds were run, their mean with its interval over the seeds (95 %, Student's); single "
            f"seeds with the 95 % Wilson interval of their {inputs} held-out inputs, which claims nothing about other "
            "seeds."
        )
    return f"Means of {seeds} seeds ({inputs} held-out inputs each); intervals are over the seeds (95 %, Student's)."


def plain_range(rows: pd.DataFrame) -> str:
    """`_range` without naming the cell: for a model that is the same in every cell."""
    ends = rows.sort_values("value").iloc[[0, -1]]
    texts = dict.fromkeys(number(r["value"], r["low"], r["high"]) for r in ends.to_dict("records"))
    return " to ".join(texts)


def cell_phrase(row: Mapping[str, Any]) -> str:
    """ "tiny-llava, BadNets-T, 10 % poison, 1 seed": a line of `tables.summary` for a reader."""
    seeds = f"{int(row['n_seeds'])} seed{'' if row['n_seeds'] == 1 else 's'}"
    return f"{row['model']}, {row['attack']}, {percent(row['poison_rate'])} poison, {seeds}"


def nothing_measured(what: str) -> dict[str, str]:
    return {
        "alt": f"{what}: nothing was measured for these cells.",
        "caption": f"{what}: n/a, no cell was measured.",
    }


def seeds_sentence(panel: pd.DataFrame) -> str:
    """What the number of seeds allows to say."""
    least, most = int(panel["n_seeds"].min()), int(panel["n_seeds"].max())
    if least > 1:
        return f"Means of {least} seeds or more."
    which = "All" if most == 1 else "Some"
    return f"{which} of these are single training runs: they are what was seen, and support no verdict."


def evidence_of_probes(panel: pd.DataFrame) -> str:
    """How many inputs and seeds stand behind each number."""
    counts, seeds = sorted({int(n) for n in panel["n"]}), sorted({int(n) for n in panel["n_seeds"]})
    inputs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    said = f"{inputs} inputs per number, the same for all"
    if seeds == [1]:
        return f"{said}, 95 % Wilson intervals; a single seed, which supports no verdict."
    return f"{said}; where there are several seeds (up to {seeds[-1]}), means over them."


def with_interval(line: pd.Series) -> str:
    return number(*line[["value", "low", "high"]])


def named(row: Mapping[str, Any], rate: bool = True) -> str:
    """ "BadNets-MM, targeted refusal, 10 %, patch of 80 pixels": a cell but for its model and negatives."""
    parts = [row["attack"], row["threat"].replace("_", " ")]
    if rate:
        parts.append(percent(row["poison_rate"]))
    return ", ".join([*parts, in_words(row)] if row["settings"] else parts)


def in_words(row: Mapping[str, Any]) -> str:
    """Settings of a cell, but for its half, as a reader knows them: "patch of 80 pixels"."""
    said = {"attack.patch_size": "patch of {} pixels", "picture_last": "picture after the words"}
    settings = table.differing(row).items()
    return ", ".join(
        said[name].format(value) if name in said else table.text({name: value})
        for name, value in settings
        if name != "half"
    )


def in_seeds(count: float) -> str:
    return f"{int(count)} seed{'s' if count > 1 else ''}"


def evidence_of_halves(n_seeds: Iterable[float], n: Iterable[float] = ()) -> str:
    """How many seeds (and inputs) stand behind the numbers, and what their intervals are."""
    counts, inputs = sorted({int(s) for s in n_seeds}), sorted({int(k) for k in n})
    ends = dict.fromkeys(map(str, (inputs[0], inputs[-1]))) if inputs else ()
    each = f", {' to '.join(ends)} inputs per number" if inputs else ""
    if not counts:
        return ""
    if counts == [1]:
        return f"One seed{each}, 95 % Wilson intervals: no claim about other seeds."
    few = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seeds"
    return f"{few}{each}; 95 % intervals over the seeds where there are several (t), else over inputs (Wilson)."


def percent(rate: float) -> str:
    """0.005 as "0.5 %"."""
    return f"{100 * rate:.3g} %"


def number(value: Any, low: Any = None, high: Any = None, digits: int = 2) -> str:
    """ "0.97 [0.93, 0.99]"; "n/a" for a missing value; never a zero below zero."""
    if value is None or pd.isna(value):
        return "n/a"
    # Not `round`: NumPy's rounds 0.995 up, formatting and the figures round it down.
    written = [f"{one:.{digits}f}" for one in (value, low, high) if not is_missing(one)]
    text, *bounds = (one.lstrip("-") if float(one) == 0 else one for one in written)
    return f"{text} [{', '.join(bounds)}]" if len(bounds) == 2 else text


def marked(value: Any, low: Any = None, high: Any = None) -> str:
    """`number` of a success rate, marked at the ceiling (▲) and at the floor (▼)."""
    text = number(value, low, high)
    return text if text == "n/a" else f"{text} {MARKS[intervals.mark(value)]}".rstrip()


def is_missing(value: Any) -> bool:
    return value is None or (np.isscalar(value) and pd.isna(value))
