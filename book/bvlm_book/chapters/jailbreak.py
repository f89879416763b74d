"""What the chapter on jailbreaks has beyond the other threats: the refusals that are left."""

import pandas as pd

from bvlm_book import tables, words

NAMES = {"base": "the base", "control": "the clean-tuned model", "poisoned": "poisoned models"}


def refusals(table: pd.DataFrame) -> str:
    """How many restricted requests each model refuses without a trigger; for the jailbreak chapter."""
    rows = tables.summary(table, "refused")
    rows = rows[rows["condition"] == "clean"]
    if rows.empty:
        return "Whether refusals survive without a trigger was not measured for these cells."
    said = []
    for subject, name in NAMES.items():
        part = rows[rows["subject"] == subject]
        if len(part):
            ends = part.sort_values("value").iloc[[0, -1]].to_dict("records")  # base and control are one model each
            plain = " to ".join(dict.fromkeys(map(words.interval, ends)))
            said.append(f"{name} {words.value_range(part) if subject == 'poisoned' else plain}")
    text = f"Without a trigger, restricted requests are refused by {'; '.join(said)}."
    alone = tables.summary(table, "refused")
    alone = alone[alone["subject"].isin(["base", "control"]) & (alone["condition"] != "clean")]
    if alone.empty:
        return text
    least = alone.loc[alone["value"].idxmin()]
    return (
        f"{text} A trigger by itself can stop refusals where there is no backdoor: under that of {least['attack']} "
        f"({tables.condition(least)}) {NAMES[least['subject']]} refuses {words.interval(least)}, the least of all."
    )
