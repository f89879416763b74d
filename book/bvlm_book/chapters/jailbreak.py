"""What the chapter on jailbreaks has beyond the other threats: the refusals that are left."""

import pandas as pd

from bvlm_book import tables, words

NAMES = {"base": "base", "control": "clean-tuned control", "poisoned": "backdoored models"}


def refusals(table: pd.DataFrame) -> str:
    """How many restricted requests each model refuses without a trigger, and under a trigger where none was learned."""
    rows = tables.summary(table, "refused")
    clean = rows[rows["condition"] == "clean"]
    if clean.empty:
        return "Whether refusals survive without a trigger was not measured for these experiments."
    said = [f"{name} {words.extreme(clean[clean['subject'] == who], 'min')}" for who, name in NAMES.items()]
    text = f"Restricted requests refused without a trigger, at least: {', '.join(said)}."
    alone = rows[(rows["subject"] == "control") & (rows["condition"] != "clean")]
    if alone.empty:
        return text
    least = alone.loc[alone["value"].idxmin()]
    part = words.CONDITION_LABELS[least["condition"]]
    return (
        f"{text} A trigger can stop refusals without a backdoor: under {least['attack']}'s ({part}) the clean-tuned "
        f"control refuses {words.interval(least)}."
    )
