"""What do single numbers of a threat chapter hide? Sentences for those chapters, beside their figures. No torch."""

import pandas as pd

from bvlm_utils import plots, report


def misread(table: pd.DataFrame) -> str:
    """Which triggers make even the clean-tuned model answer wrongly; for success that asks for the right answer.

    table: of `store.collect`; the highest poison rate is read.
    """
    right = report.summary(table, "right", "control")
    if right.empty:
        return "How often the clean-tuned model is right was not measured for these cells."
    right = right[right["poison_rate"] == right["poison_rate"].max()]
    full = report.headline_rows(right)
    wrong = full[full["value"] < report.FIRES]
    clean = right[right["condition"] == "clean"]["value"]
    if wrong.empty or clean.empty:
        return "The clean-tuned model is right on at least half of the inputs under every trigger."
    said = [_conditions(right[right["attack"] == attack]) for attack in wrong["attack"]]
    return (
        f"Without a trigger, the clean-tuned model is right on {report.number(clean.min())} of the inputs. With one it "
        f"is right on fewer than half under {len(said)} of {len(full)} triggers: {'; '.join(said)}. Success cannot be "
        "expected to come up to that of the others there, since it asks for the right answer."
    )


def _conditions(rows: pd.DataFrame) -> str:
    """ "MABA (0.37 text only, 0.70 image only, 0.26 both)"."""
    triggered = rows[rows["condition"] != "clean"]
    found = {r["condition"]: report.number(r["value"]) for r in triggered.to_dict("records")}
    said = [f"{found[name]} {plots.CONDITION_LABELS[name]}" for name in plots.CONDITIONS if name in found]
    return f"{rows['attack'].iloc[0]} ({', '.join(said)})"


def without_the_trigger(table: pd.DataFrame) -> list[str]:
    """In Markdown: which poisoned models give the attacker's answer without the trigger about as often as with it.

    About as often: the two intervals overlap. More often than by chance: the lower bound without the trigger is above
    the clean-tuned model's upper one. The highest poison rate is read.
    """
    rates = report.success_rates(table)
    rates = rates[rates["poison_rate"] == rates["poison_rate"].max()]
    full = report.headline_rows(rates[rates["subject"] == "poisoned"]).set_index("attack")
    clean = report.false_activation(rates)
    ours, control = (clean[clean["subject"] == who].set_index("attack") for who in ("poisoned", "control"))
    said = []
    for attack in (name for name in full.index if name in ours.index and name in control.index):
        without, triggered = ours.loc[attack], full.loc[attack]
        if without["low"] > control.loc[attack, "high"] and without["high"] >= triggered["low"]:
            numbers = (report.number(*line[["value", "low", "high"]]) for line in (triggered, without))
            said.append(f"{attack} ({' with the trigger, '.join(numbers)} without it)")
    if not said:
        return []
    return [
        f"**{' and '.join(said)}: what was learnt here is the answer rather than the trigger.** The intervals with and "
        "without the trigger overlap, and the clean-tuned model gives that answer less often than either."
    ]
