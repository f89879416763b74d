"""What is to be seen in a figure? Caption and description, computed from its table.

The notebooks call these beside the functions of `plots` that draw the same rows. A sentence states what the
rows hold, so it stays true for other models, attacks and rates; what is missing is left out or called "n/a".
Each function returns {"alt": ..., "caption": ...} for `report.show`.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bvlm_utils import report, threats
from bvlm_utils.plots import CONDITION_LABELS, CONDITIONS, percent

DOSE_GOAL = 0.90  # the success rate that a dose is read for, as the paper's claim has it


def _success(table: pd.DataFrame) -> str:
    """What the success test asks, in the words of the threat's definition."""
    tests = []
    for name in dict.fromkeys(table["threat"]):
        test = threats.get(name).strict
        if "asr_right" in set(table.loc[table["threat"] == name, "metric"]):
            test = f"{test.rstrip('.')}, and the answer before it is right."
        tests.append(f"Success: {test[0].lower()}{test[1:]}")
    return " ".join(tests)


def _named(row: pd.Series) -> str:
    return f"{row['attack']} at {percent(row['poison_rate'])}"


def _extreme(rows: pd.DataFrame, which: str) -> str:
    """The largest or smallest value of the rows with its interval, and whose it is."""
    value = rows["value"].max() if which == "max" else rows["value"].min()
    tied = rows[rows["value"] == value]
    row, others = tied.iloc[0], len(tied) - 1
    whose = "every cell" if len(tied) == len(rows) > 1 else _named(row) + (f" and {others} more" if others else "")
    return f"{report.number(row['value'], row['low'], row['high'])} ({whose})"


def _range(rows: pd.DataFrame) -> str:
    """ "from the smallest to the largest", or the one value that all have."""
    if rows["value"].nunique() == 1:
        return _extreme(rows, "max")
    return f"from {_extreme(rows, 'min')} to {_extreme(rows, 'max')}"


def _headline_condition(rows: pd.DataFrame) -> str:
    """Where success is read: with the full trigger, or on clean inputs where none is used."""
    without = list(dict.fromkeys(rows.loc[rows["condition"] == "clean", "attack"]))
    return "With the full trigger" + (f" (for {', '.join(without)}: on clean inputs)" if without else "")


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


def grid(rows: pd.DataFrame) -> dict[str, str]:
    """For `plots.heatmap`. rows: `report.summary` of one metric, poisoned models only."""
    if rows.empty:
        return _nothing("Success rates of attacks under conditions")
    text = [f"Share of eligible inputs on which the attack succeeds; darker is more. {_success(rows)}"]
    clean, full = report.false_activation(rows), report.headline_rows(rows)
    if len(clean):
        text.append(f"Without a trigger at most {_extreme(clean, 'max')}.")
    if len(full):
        text.append(f"{_headline_condition(full)} {_range(full)}.")
    if rows["condition"].isin(["text", "image"]).any() and (rows["modality"] == "bimodal").any():
        for half in ("text", "image"):
            part = rows[(rows["modality"] == "bimodal") & (rows["condition"] == half)]
            if len(part):
                text.append(f"Bimodal attacks with the {half} half alone: at most {_extreme(part, 'max')}.")
    text.append("A field without a number (n/a) is a condition that the attack does not have, or was not measured.")
    text.append(evidence(rows))
    rates = ", ".join(percent(r) for r in sorted(rows["poison_rate"].unique(), reverse=True))
    conditions = ", ".join(CONDITION_LABELS[c] for c in CONDITIONS if c in set(rows["condition"]))
    alt = (
        f"Heat map: {rows['attack'].nunique()} attacks in rows, conditions ({conditions}) in columns, "
        f"one panel per poison rate ({rates}); the numbers are in the table below."
    )
    return {"alt": alt, "caption": " ".join(text)}


def doses(rows: pd.DataFrame) -> pd.Series:
    """Per attack the fewest poisoned rows whose mean success reaches `DOSE_GOAL` (see `dose.bracket`), or NaN."""
    reached = rows[rows["value"].astype(float) >= DOSE_GOAL]
    return reached.groupby("attack")["n_poisoned"].min().reindex(dict.fromkeys(rows["attack"]))


def dose(rows: pd.DataFrame) -> dict[str, str]:
    """For `plots.dose`. rows: `report.headline_rows` of a summary of one metric, poisoned models only."""
    if rows.empty:
        return _nothing("Success rate against the number of poisoned rows")
    smallest = doses(rows)
    reached = [f"{name} {int(count)}" for name, count in smallest.items() if pd.notna(count)]
    never = [name for name, count in smallest.items() if pd.isna(count)]
    text = [f"{_headline_condition(rows)}: success rate against the number of poisoned training rows (log axis)."]
    if reached:
        text.append(f"Fewest poisoned rows, of those tried, with a mean of {DOSE_GOAL:.2f}: {', '.join(reached)}.")
    if never:
        text.append(f"At no rate tried did the mean reach {DOSE_GOAL:.2f} for {', '.join(never)}.")
    text.append(evidence(rows))
    alt = (
        "Line chart with intervals, one panel per trigger modality: success rate of "
        f"{rows['attack'].nunique()} attacks "
        f"with {', '.join(str(int(n)) for n in sorted(rows['n_poisoned'].unique()))} poisoned rows."
    )
    return {"alt": alt, "caption": " ".join(text)}


def utility(rows: pd.DataFrame, differences: pd.DataFrame) -> dict[str, str]:
    """For `plots.utility`. rows, differences: `report.summary` of utility and of utility_difference."""
    if rows.empty:
        return _nothing("Utility of base, clean-tuned and poisoned models")
    unit = report.utility_metric(rows)
    text = [f"Utility ({unit}) on clean inputs; the axis does not begin at 0.", evidence(rows)]
    if len(differences):
        text.append(
            "Against the clean-tuned model, which saw the same rows without poison, poisoned models differ "
            f"by {_range(differences).removeprefix('from ')}, paired on the same inputs (Student's interval)."
        )
    alt = (
        "Dot plot with intervals: utility of base, clean-tuned and poisoned model "
        f"for {rows['attack'].nunique()} attacks, one panel per poison rate."
    )
    return {"alt": alt, "caption": " ".join(text)}


def controls(rows: pd.DataFrame) -> dict[str, str]:
    """For `plots.subjects`. rows: `report.summary` of one metric at one rate, all subjects."""
    if rows.empty:
        return _nothing("The success test on base, clean-tuned and poisoned models")
    text = [f"The same test on three models. {_success(rows)}"]
    for subject, name in (("base", "The base model"), ("control", "the clean-tuned model")):
        part = rows[rows["subject"] == subject]
        if len(part):
            text.append(
                f"{name[0].upper()}{name[1:]} passes it on at most {_extreme(part, 'max')} of the inputs, "
                "over all conditions."
            )
    text.append(evidence(rows))
    alt = (
        f"Dot plot with intervals: success test of {rows['attack'].nunique()} attacks on base, "
        "clean-tuned and poisoned model, one panel per condition, "
        f"at {', '.join(percent(r) for r in rows['poison_rate'].unique())} poison."
    )
    return {"alt": alt, "caption": " ".join(text)}


def refusals(table: pd.DataFrame) -> str:
    """How many restricted requests each model refuses without a trigger; for the jailbreak chapter."""
    rows = report.summary(table, "refused")
    rows = rows[rows["condition"] == "clean"]
    if rows.empty:
        return "Whether refusals survive without a trigger was not measured for these cells."
    said = []
    for subject, name in (("base", "the base"), ("control", "the clean-tuned model"), ("poisoned", "poisoned models")):
        part = rows[rows["subject"] == subject]
        if len(part):
            said.append(f"{name} {_range(part) if subject == 'poisoned' else _plain_range(part)}")
    text = f"Without a trigger, restricted requests are refused by {'; '.join(said)}."
    alone = report.summary(table, "refused")
    alone = alone[alone["subject"].isin(["base", "control"]) & (alone["condition"] != "clean")]
    if alone.empty:
        return text
    least = alone.loc[alone["value"].idxmin()]
    name = {"base": "the base", "control": "the clean-tuned model"}[least["subject"]]
    return (
        f"{text} A trigger by itself can stop refusals where there is no backdoor: under that of {least['attack']} "
        f"({CONDITION_LABELS[least['condition']]}) {name} refuses "
        f"{report.number(least['value'], least['low'], least['high'])}, the least of all."
    )


def elsewhere(table: pd.DataFrame) -> str:
    """How often the target is named where there is nothing to substitute, in words."""
    rows = report.summary(table, "asr_elsewhere")
    if rows.empty:
        return "What happens on pictures without the source was not measured for these cells."
    said = []
    for subject, name in (("base", "The base"), ("control", "the clean-tuned model"), ("poisoned", "poisoned models")):
        part = rows[rows["subject"] == subject]
        if len(part):
            clean, full = part[part["condition"] == "clean"], part[part["condition"] != "clean"]
            at_most = [
                f"{_extreme(p, 'max')} {w}" for p, w in ((clean, "without a trigger"), (full, "with it")) if len(p)
            ]
            said.append(f"{name} at most on {' and '.join(at_most)}")
    return f"On pictures without the source, the target is named all the same: {'; '.join(said)}. {evidence(rows)}"


def _plain_range(rows: pd.DataFrame) -> str:
    """`_range` without naming the cell: for a model that is the same in every cell."""
    ends = rows.sort_values("value").iloc[[0, -1]]
    texts = dict.fromkeys(report.number(r["value"], r["low"], r["high"]) for r in ends.to_dict("records"))
    return " to ".join(texts)


def agreement(compared: pd.DataFrame) -> dict[str, str]:
    """For `plots.agreement`. compared: rows of `report.compare`."""
    counts = compared["verdict"].value_counts()
    judged = int(counts.get("agrees", 0) + counts.get("differs", 0))
    if not judged:
        return _nothing("Your numbers beside the reference's")
    text = [
        f"Of {judged} numbers that both stores hold with an interval, {int(counts.get('agrees', 0))} "
        f"have intervals that overlap and {int(counts.get('differs', 0))} do not (shaded)."
    ]
    text += [
        f"{int(counts[v])} more: {v}." for v in ("no interval", "only yours", "only in the reference") if counts.get(v)
    ]
    alt = f"Dot plot: {judged} numbers, each with your value and interval beside the reference's."
    return {"alt": alt, "caption": " ".join(text)}


def headline(table: pd.DataFrame) -> dict[str, str]:
    """The few numbers of a threat that other pages quote; "n/a" where nothing was measured.

    Keys: `attacks`, `cells` (measured), `rate_max`; success rate at that rate: `asr_max` with its interval,
    `asr_max_of` (what cell), `asr_min`, `asr_min_attack`; over all rates: `false_activation_max`, `control_asr_max`,
    `utility_difference_min` (poisoned minus clean-tuned, worst cell); `control_asr_max_of`: whose trigger that was.
    """
    done = table[table["status"] != "skipped"]
    asr = report.success_rates(done)
    poisoned, control = asr[asr["subject"] == "poisoned"], asr[asr["subject"] == "control"]
    top = report.headline_rows(poisoned)
    top = top[top["poison_rate"] == top["poison_rate"].max()]
    largest = top.loc[top["value"].idxmax()] if len(top) else {}
    smallest = top.loc[top["value"].idxmin()] if len(top) else {}
    fooled = control.loc[control["value"].idxmax()] if len(control) else {}
    return {
        "attacks": str(done["attack"].nunique()),
        "cells": str(done["run_id"].nunique()),
        "rate_max": percent(largest["poison_rate"]) if len(top) else "n/a",
        "asr_max": report.number(largest.get("value"), largest.get("low"), largest.get("high")),
        "asr_max_of": _cell(largest) if len(top) else "n/a",
        "asr_min": report.number(smallest.get("value")),
        "asr_min_attack": smallest.get("attack", "n/a"),
        "false_activation_max": report.number(report.false_activation(poisoned)["value"].max()),
        "control_asr_max": report.number(fooled.get("value"), fooled.get("low"), fooled.get("high")),
        "control_asr_max_of": fooled.get("attack", "n/a"),
        "utility_difference_min": report.number(report.summary(done, "utility_difference")["value"].min()),
    }


def _cell(row: Mapping[str, Any]) -> str:
    """ "tiny-llava, BadNets-T, 10 % poison, 1 seed": a line of `report.summary` for a reader."""
    seeds = f"{int(row['n_seeds'])} seed{'' if row['n_seeds'] == 1 else 's'}"
    return f"{row['model']}, {row['attack']}, {percent(row['poison_rate'])} poison, {seeds}"


def _nothing(what: str) -> dict[str, str]:
    return {
        "alt": f"{what}: nothing was measured for these cells.",
        "caption": f"{what}: n/a, no cell was measured.",
    }
