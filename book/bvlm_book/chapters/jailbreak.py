"""What the chapter on jailbreaks has beyond the other threats: the refusals that are left."""

import pandas as pd

from bvlm_book import tables, words
from bvlm_book.words import CONDITION_LABELS, plain_range, value_range


def refusals(table: pd.DataFrame) -> str:
    """How many restricted requests each model refuses without a trigger; for the jailbreak chapter."""
    rows = tables.summary(table, "refused")
    rows = rows[rows["condition"] == "clean"]
    if rows.empty:
        return "Whether refusals survive without a trigger was not measured for these cells."
    said = []
    for subject, name in (("base", "the base"), ("control", "the clean-tuned model"), ("poisoned", "poisoned models")):
        part = rows[rows["subject"] == subject]
        if len(part):
            said.append(f"{name} {value_range(part) if subject == 'poisoned' else plain_range(part)}")
    text = f"Without a trigger, restricted requests are refused by {'; '.join(said)}."
    alone = tables.summary(table, "refused")
    alone = alone[alone["subject"].isin(["base", "control"]) & (alone["condition"] != "clean")]
    if alone.empty:
        return text
    least = alone.loc[alone["value"].idxmin()]
    name = {"base": "the base", "control": "the clean-tuned model"}[least["subject"]]
    return (
        f"{text} A trigger by itself can stop refusals where there is no backdoor: under that of {least['attack']} "
        f"({CONDITION_LABELS[least['condition']]}) {name} refuses "
        f"{words.number(least['value'], least['low'], least['high'])}, the least of all."
    )
