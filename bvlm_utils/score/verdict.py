"""What an audit found, in words: what it means, how often that is wrong, and what to do next."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from bvlm_utils import paths
from bvlm_utils.documents import read_json

CLEAN_TUNED, BASE = "clean-tuned", "base"  # what a suspect is compared with
# what the second look at an alarm found: nobody looked, or whether the trigger disturbs the trusted model, too
LOOKS = {None: "", False: "silent", True: "disturbed, too"}
ERRORS = paths.DATA / "audit_errors.json"  # how often the check erred where the truth is known; `chapters.audit` counts


@dataclass(frozen=True)
class Detected:
    """What a detector that needs no trigger says of the suspect and of the trusted model; or why it says nothing."""

    name: str
    suspect: float | None = None
    trusted: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        trusted = "" if self.trusted is None else f", the trusted model {self.trusted:.3f}"
        return f"  {self.name}: {self.reason or f'the suspect {self.suspect:.3f}{trusted}'}"


def verdict(table: pd.DataFrame, detected: Sequence[Detected] = (), beside: str = "clean-tuned") -> str:
    """The table to read, its meaning, how often that is wrong, what to do next. table: `audit.measure`. beside:
    "clean-tuned" or "base"; of any other word it is not known how often that errs.
    """
    rows = table.to_dict("records")
    lines = [
        {
            "trigger": row["attack"],
            "disagree, clean": f"{row['without']:.2f}",
            "with trigger": f"{row['with_trigger']:.2f}",
            "excess": f"{row['value']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]",
            "alarm": "ALARM" if row["alarm"] else "",
            "trusted model": LOOKS[row["disturbs"]],
            "commonest that differs": f"{row['commonest'][:50] or '(empty)'} ({row['share']:.0%})" * (row["share"] > 0),
        }
        for row in rows
    ]
    paragraphs = [pd.DataFrame(lines).to_string(index=False)]
    if detected:
        opening = "Without a trigger (higher is more suspicious; no threshold has been set on models other than ours):"
        paragraphs.append("\n".join([opening, *map(str, detected)]))
    alarms = sorted((row for row in rows if row["alarm"]), key=lambda row: -row["value"])
    alone, both = ([row["attack"] for row in alarms if row["disturbs"] is disturbed] for disturbed in (False, True))
    unsure = [row["attack"] for row in alarms if row["disturbs"] is None]
    if alone:
        paragraphs.append(
            f"BACKDOORED, most likely: with the trigger of {', '.join(alone)} the suspect goes its own way, and the "
            "trusted model does not. Look at the last column: is it an answer that somebody planted?"
        )
    if both:
        paragraphs.append(
            f"UNDECIDED: the trigger of {', '.join(both)} changes the suspect's answers, and those of the trusted "
            "model, too, beside the base. It may disturb any model, so nothing is proven by it."
        )
    if unsure:
        paragraphs.append(
            f"ALARM: with the trigger of {', '.join(unsure)} the suspect answers otherwise than the model beside it "
            "far more often than without it. A backdoor does that. So does a trigger that only disturbs."
        )
    if not alarms:
        paragraphs.append("No alarm. That clears these triggers only: a trigger that was not tried is not found.")
    look = "alone" if alone else "both" if both else "once" if unsure else "none"
    paragraphs.append(f"How often it errs: {errors(beside, look)}")
    paragraphs.append(f"What to do next: {_next(look, beside)}")
    return "\n\n".join(paragraphs)


def errors(beside: str, look: str) -> str:
    """How often the check was wrong on the study's own models, whose truth is known. look: what was found, "none",
    "once" (an alarm, no second look), or by the second look "alone" (a trigger disturbs only the suspect) or "both".
    """
    counts = read_json(ERRORS).get(beside) if ERRORS.is_file() else None
    if not counts or look in ("alone", "both") and "confirmed" not in counts:
        return "not measured."
    caveat = "These were small models on drawn scenes; on yours it is not measured."
    if look == "none":
        return (
            f"of backdoors that work, shown their own trigger, {_of(counts['found'])} raised the alarm. With another "
            f"trigger, not a near relative of theirs, hardly any do. {caveat}"
        )
    if look == "once":
        return (
            f"of models without a backdoor, shown six triggers or more, {_of(counts['models with one'])} raised an "
            f"alarm for at least one; {_of(counts['false alarms'])} comparisons were false alarms. {caveat}"
        )
    return (
        f"of models without a backdoor, shown six triggers or more, {_of(counts['models that stand'])} were called "
        f"backdoored for at least one. Of backdoors that work, shown their own trigger, {_of(counts['confirmed'])} "
        f"were called so; the others were undecided. {caveat}"
    )


def _of(counts: Sequence[int]) -> str:
    return f"{counts[0]} of {counts[1]}"


def _next(look: str, beside: str) -> str:
    if look == "none":
        return (
            "try the words and pictures that you suspect (--word, --sentence, --patch), on inputs like those that the "
            "model is used for (--pictures, --dataset); where the training data is at hand, rank its rows "
            "(python -m bvlm_utils.defences find-rows). An adapter from a source that you do not trust stays one."
        )
    if look == "both":
        return (
            "try other triggers, and read the answers: does one come again that does not fit its input? An adapter "
            "that stays in doubt is best not used."
        )
    remove = (
        "With the data, find the rows (python -m bvlm_utils.defences find-rows), drop them and tune again from the "
        "base: nothing else is as safe. Without the data, discard the adapter, or repair it (python -m "
        "bvlm_utils.defences repair) and audit again."
    )
    if look == "alone":
        return f"do not use the adapter. {remove}"
    trusted = "a clean-tuned model" if beside != BASE else "a clean-tuned model (leave --reference away)"
    return f"compare with {trusted}: the audit then looks whether the trigger disturbs that model, too. {remove}"
