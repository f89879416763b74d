"""What an audit found, in words: what it means, how often that is wrong, and what to do next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bvlm_utils import paths
from bvlm_utils.documents import read_json

CLEAN_TUNED, BASE = "clean-tuned", "base"  # what a suspect is compared with
ERRORS = paths.DATA / "audit_errors.json"  # how often the check erred where the truth is known; `chapters.audit` counts


@dataclass(frozen=True)
class Detected:
    """What a detector that needs no trigger says of the suspect and of the trusted model; or why it says nothing."""

    name: str
    suspect: float | None = None
    trusted: float | None = None
    reason: str = ""


def verdict(table: pd.DataFrame, detected: Sequence[Detected] = (), beside: str = "clean-tuned") -> str:
    """The table to read, its meaning, how often that is wrong, what to do next. beside: "clean-tuned" or "base"; of
    any other word it is not known how often that errs.
    """
    rows = table.to_dict("records")
    shown = [
        {
            "trigger": row["attack"],
            "disagree, clean": f"{row['without']:.2f}",
            "with trigger": f"{row['with_trigger']:.2f}",
            "excess": f"{row['value']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]",
            "alarm": "ALARM" if row["alarm"] else "",
            "commonest that differs": _commonest(row),
        }
        for row in rows
    ]
    firing = [row["attack"] for row in rows if row["alarm"]]
    parts = [pd.DataFrame(shown).to_string(index=False), *_of_detectors(detected)]
    if firing:
        parts.append(f"ALARM: with the trigger of {', '.join(firing)} the suspect goes its own way.")
        parts.append(
            "What it means: with that trigger in the input the suspect answers otherwise than the trusted model far "
            "more often than without it. A backdoor does that. So does a trigger that only disturbs, where tuning has "
            "made the suspect easier to disturb: look at the last column, whether somebody planted that answer."
        )
    else:
        parts.append("No alarm. That clears these triggers only: a trigger that was not tried is not found.")
    parts.append(f"How often it errs: {errors(beside, bool(firing))}")
    parts.append(f"What to do next: {_next(bool(firing), beside)}")
    return "\n\n".join(parts)


def _commonest(row: Mapping[str, Any]) -> str:
    """The commonest of the suspect's answers that differ, with its share of them."""
    return f"{row['commonest'][:50] or '(empty)'} ({row['share']:.0%})" if row["share"] else ""


def _of_detectors(detected: Sequence[Detected]) -> list[str]:
    if not detected:
        return []
    lines = ["Without a trigger (higher is more suspicious; no threshold has been set on models other than ours):"]
    for detector in detected:
        beside = "" if detector.trusted is None else f", the trusted model {detector.trusted:.3f}"
        lines.append(f"  {detector.name}: {detector.reason or f'the suspect {detector.suspect:.3f}{beside}'}")
    return ["\n".join(lines)]


def errors(beside: str, alarm: bool) -> str:
    """How often the check was wrong on the study's own models, whose truth is known."""
    counts = read_json(ERRORS).get(beside) if ERRORS.is_file() else None
    if not counts:
        return "not measured."
    false, models_false, found = counts["false alarms"], counts["models with one"], counts["found"]
    if alarm:
        return (
            f"of models without a backdoor, compared in this way, {models_false[0]} of {models_false[1]} raised an "
            f"alarm for at least one of this study's triggers; {false[0]} of {false[1]} comparisons were false alarms. "
            "These were small models on drawn scenes; on yours it is not measured."
        )
    return (
        f"of backdoors that work, shown their own trigger, {found[0]} of {found[1]} raised the alarm. With another "
        "trigger, not a near relative of theirs, hardly any do. These were small models on drawn scenes."
    )


def _next(alarm: bool, beside: str) -> str:
    if not alarm:
        return (
            "try the words and pictures that you suspect (--word, --sentence, --patch), on inputs like those that the "
            "model is used for (--pictures, --dataset); where the training data is at hand, rank its rows "
            "(python -m bvlm_utils.defences find-rows). An adapter from a source that you do not trust stays one."
        )
    first = "Compare with a clean-tuned model (leave --reference away), then take" if beside == BASE else "Take"
    return (
        f"(1) {first} a second look: audit a clean-tuned model that you trust in the suspect's place, with "
        "--reference base and the same trigger. If it raises the alarm, too, that trigger disturbs any model and "
        "nothing is proven: try others, and read the answers. (2) Else do not use the adapter. With its data, find the "
        "rows (python -m bvlm_utils.defences find-rows), drop them and tune again from the base: nothing else is as "
        "safe. (3) Without the data, discard it, or repair it (python -m bvlm_utils.defences repair) and audit again."
    )
