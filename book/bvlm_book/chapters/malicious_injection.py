"""What the chapter on injected sentences has beyond the other threats: is the rest still right?"""

import pandas as pd

from bvlm_book import tables, words
from bvlm_utils.store.table import FIRES


def right(table: pd.DataFrame) -> str:
    """How often the answer before the sentence is right, without and with the trigger; the highest rate is read."""
    rows = tables.summary(table, "right")
    rows = rows[rows["poison_rate"] == rows["poison_rate"].max()]
    full = tables.headline_rows(rows)
    ours, control = (full[full["subject"] == who] for who in ("poisoned", "control"))
    clean = rows.loc[(rows["condition"] == "clean") & (rows["subject"] == "poisoned"), "value"]
    if ours.empty or control.empty or clean.empty:
        return "How often the rest of the answer is right was not measured for these experiments."
    wrong = control[control["value"] < FIRES].to_dict("records")
    which = ", ".join(f"{r['attack']} ({words.number(r['value'])})" for r in wrong) or "none"
    return (
        f"Without a trigger, backdoored models answer right on {words.span(clean, 2)} of the inputs, with it on "
        f"{words.span(ours['value'], 2)}. Triggers under which even the clean-tuned control is mostly wrong: {which}."
    )
