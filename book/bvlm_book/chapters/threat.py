"""What is to be seen in a figure? Caption and description, computed from its table.

The notebooks call these beside the functions of `figures` that draw the same rows. A sentence states what the rows
hold, so it stays true for other models, attacks and rates; what is missing is left out or called "n/a". Each function
returns {"alt": ..., "caption": ...} for `page.show`.
"""

from pathlib import Path

import pandas as pd

from bvlm_book import page, rules, tables, words
from bvlm_book.words import cell_phrase, evidence, extreme, nothing_measured, percent, value_range
from bvlm_utils import threats
from bvlm_utils.score import intervals

SAME = [*(name for name in tables.POINT if name != "model"), "test_rows"]  # the same cell of any model
APART = 0.5  # success rates that differ by more are named
COLUMNS = ["model", "attack", "modality", "poison_rate", "value", "low", "high", "n_seeds"]
CLEAN = ["clean", "clean_low", "clean_high"]


def _success(table: pd.DataFrame) -> str:
    """What the success test asks, in the words of the threat's definition."""
    tests = []
    for name in dict.fromkeys(table["threat"]):
        threat = threats.get(name)
        by_payload = "asr_payload" in set(table.loc[table["threat"] == name, "metric"])
        test = (by_payload and threat.payload_test) or threat.strict
        tests.append(f"Success ({words.MEASURES['asr_payload' if by_payload else 'asr']}): {test[0].lower()}{test[1:]}")
    return " ".join(tests)


def _headline_condition(rows: pd.DataFrame) -> str:
    """Where success is read: with the full trigger, or on clean inputs where none is used."""
    without = list(dict.fromkeys(rows.loc[rows["condition"] == "clean", "attack"]))
    return "With the full trigger" + (f" (for {', '.join(without)}: on clean inputs)" if without else "")


def grid(rows: pd.DataFrame) -> dict[str, str]:
    """For `figures.heatmap`. rows: `tables.summary` of one metric, poisoned models only."""
    if rows.empty:
        return nothing_measured("Success rates of attacks under conditions")
    text = [f"Share of eligible inputs on which the attack succeeds; darker is more. {_success(rows)}"]
    clean, full = tables.false_activation(rows), tables.headline_rows(rows)
    if len(clean):
        text.append(f"Without a trigger at most {extreme(clean, 'max')}.")
    if len(full):
        text.append(f"{_headline_condition(full)} {value_range(full)}.")
    if rows["condition"].isin(["text", "image"]).any() and (rows["modality"] == "bimodal").any():
        for half in ("text", "image"):
            part = rows[(rows["modality"] == "bimodal") & (rows["condition"] == half)]
            if len(part):
                text.append(f"Bimodal attacks with the {half} half alone: at most {extreme(part, 'max')}.")
    text.append("A field without a number (n/a) is a condition that the attack does not have, or was not measured.")
    text.append(evidence(rows))
    rates = ", ".join(percent(r) for r in sorted(rows["poison_rate"].unique(), reverse=True))
    conditions = ", ".join(tables.conditions(rows))
    alt = (
        f"Heat map: {rows['attack'].nunique()} attacks in rows, conditions ({conditions}) in columns, "
        f"one panel per poison rate ({rates}); the numbers are in the table below."
    )
    return {"alt": alt, "caption": " ".join(text)}


def doses(rows: pd.DataFrame) -> pd.Series:
    """Per attack the fewest poisoned rows whose mean success reaches `rules.HIGH` (see `chapters.dose.bracket`), or
    NaN."""
    reached = rows[rows["value"].astype(float) >= rules.HIGH]
    return reached.groupby("attack")["n_poisoned"].min().reindex(dict.fromkeys(rows["attack"]))


def dose(rows: pd.DataFrame) -> dict[str, str]:
    """For `figures.dose`. rows: `tables.headline_rows` of a summary of one metric, poisoned models only."""
    if rows.empty:
        return nothing_measured("Success rate against the number of poisoned rows")
    smallest = doses(rows)
    reached = [f"{name} {int(count)}" for name, count in smallest.items() if pd.notna(count)]
    never = [name for name, count in smallest.items() if pd.isna(count)]
    text = [f"{_headline_condition(rows)}: success rate against the number of poisoned training rows (log axis)."]
    if reached:
        text.append(f"Fewest poisoned rows, of those tried, with a mean of {rules.HIGH:.2f}: {', '.join(reached)}.")
    if never:
        text.append(f"At no rate tried did the mean reach {rules.HIGH:.2f} for {', '.join(never)}.")
    text.append(evidence(rows))
    alt = (
        "Line chart with intervals, one panel per trigger modality: success rate of "
        f"{rows['attack'].nunique()} attacks "
        f"with {', '.join(str(int(n)) for n in sorted(rows['n_poisoned'].unique()))} poisoned rows."
    )
    return {"alt": alt, "caption": " ".join(text)}


def utility(rows: pd.DataFrame, differences: pd.DataFrame) -> dict[str, str]:
    """For `figures.utility`. rows, differences: `tables.summary` of utility and of utility_difference."""
    if rows.empty:
        return nothing_measured("Utility of base, clean-tuned and poisoned models")
    unit = tables.utility_metric(rows)
    text = [f"Utility ({unit}) on clean inputs; the axis does not begin at 0.", evidence(rows)]
    if len(differences):
        text.append(
            "Against the clean-tuned model, which saw the same rows without poison, poisoned models differ "
            f"by {value_range(differences).removeprefix('from ')}, paired on the same inputs (Student's interval)."
        )
    alt = (
        "Dot plot with intervals: utility of base, clean-tuned and poisoned model "
        f"for {rows['attack'].nunique()} attacks, one panel per poison rate."
    )
    return {"alt": alt, "caption": " ".join(text)}


def controls(rows: pd.DataFrame) -> dict[str, str]:
    """For `figures.subjects`. rows: `tables.summary` of one metric at one rate, all subjects."""
    if rows.empty:
        return nothing_measured("The success test on base, clean-tuned and poisoned models")
    text = [f"The same test on three models. {_success(rows)}"]
    for subject, name in (("base", "The base model"), ("control", "The clean-tuned model")):
        part = rows[rows["subject"] == subject]
        if len(part):
            text.append(f"{name} passes it on at most {extreme(part, 'max')} of the inputs, over all conditions.")
    alt = (
        f"Dot plot with intervals: success test of {rows['attack'].nunique()} attacks on base, clean-tuned and "
        "poisoned model, one panel per condition, "
        f"at {', '.join(percent(r) for r in rows['poison_rate'].unique())} poison."
    )
    return {"alt": alt, "caption": " ".join([*text, evidence(rows)])}


def headline(table: pd.DataFrame) -> dict[str, str]:
    """The few numbers of a threat that other pages quote; "n/a" where nothing was measured.

    Keys: `attacks`, `cells` (measured), `rate_max`; success rate at that rate: `asr_max` with its interval,
    `asr_max_of` (what cell), `asr_min`, `asr_min_attack`; over all rates: `false_activation_max`, `control_asr_max`,
    `utility_difference_min` (poisoned minus clean-tuned, worst cell); `control_asr_max_of`: whose trigger that was.
    """
    done = table[table["status"] != "skipped"]
    asr = tables.success_rates(done)
    poisoned, control = asr[asr["subject"] == "poisoned"], asr[asr["subject"] == "control"]
    top = tables.headline_rows(poisoned)
    top = top[top["poison_rate"] == top["poison_rate"].max()]
    largest = top.loc[top["value"].idxmax()] if len(top) else {}
    smallest = top.loc[top["value"].idxmin()] if len(top) else {}
    fooled = control.loc[control["value"].idxmax()] if len(control) else {}
    return {
        "attacks": str(done["attack"].nunique()),
        "cells": str(done["run_id"].nunique()),
        "rate_max": percent(largest["poison_rate"]) if len(top) else "n/a",
        "asr_max": words.interval(largest),
        "asr_max_of": cell_phrase(largest) if len(top) else "n/a",
        "asr_min": words.number(smallest.get("value")),
        "asr_min_attack": smallest.get("attack", "n/a"),
        "false_activation_max": words.number(tables.false_activation(poisoned)["value"].max()),
        "control_asr_max": words.interval(fooled),
        "control_asr_max_of": fooled.get("attack", "n/a"),
        "utility_difference_min": words.number(tables.summary(done, "utility_difference")["value"].min()),
    }


def rates(table: pd.DataFrame, stored: pd.DataFrame) -> pd.DataFrame:
    """A line per model and cell of `table`: `COLUMNS` with the full trigger, `CLEAN` without any (false activation).

    table: the chapter's own rows of `store.collect`. stored: all rows of the store. Only cells that two models or more
    have; seeds put together as in `tables.summary`. CLEAN is missing for an attack without a trigger.
    """
    same = stored.merge(table.loc[table["status"] == "done", SAME].drop_duplicates(), on=SAME)
    found = tables.success_rates(same, "poisoned")
    key = ["model", "attack", "poison_rate"]
    full = tables.headline_rows(found)[COLUMNS]
    clean = tables.false_activation(found)[[*key, "value", "low", "high"]]
    both = full.merge(clean.set_axis([*key, *CLEAN], axis=1), on=key, how="left")
    return both[both.groupby(["attack", "poison_rate"])["model"].transform("nunique") > 1].reset_index(drop=True)


def read(found: pd.DataFrame) -> pd.DataFrame:
    """`rates` to read: a line per attack and rate, two columns per model."""
    same, models = ["attack", "modality", "poison_rate"], sorted(found["model"].unique())
    full = tables.beside(found, same, "model", models, words.marked_interval)
    clean = tables.beside(found, same, "model", models, lambda r: words.interval(r, "clean"))
    columns = {"attack": "attack", "modality": "modality", "poison rate": words.rate}
    for model in models:
        columns[f"{model}: full trigger"] = model
        columns[f"{model}: {words.CONDITION_LABELS['clean']}"] = f"{model} clean"
    return tables.readable(full.merge(clean, on=same, suffixes=("", " clean")), columns)


def caption(found: pd.DataFrame) -> str:
    """What the models have in common and where they part."""
    names = sorted(found["model"].unique())
    text = [f"Success rate with the full trigger and without any, 95 % interval: {' and '.join(names)}."]
    apart, pairs = [], found.sort_values("model", kind="stable").groupby(["attack", "poison_rate"], sort=False)
    for _, part in pairs:
        if part["value"].max() - part["value"].min() > APART:
            values = ", ".join(f"{r['model']} {r['value']:.2f}" for r in part.to_dict("records"))
            apart.append(f"{words.attack_at(part.iloc[0])} ({values})")
    parted = f"{len(apart)} of {pairs.ngroups}: {'; '.join(apart)}" if apart else f"none of {pairs.ngroups}"
    text.append(f"The models differ by more than {APART:g} in {parted}.")
    leaky = [
        f"{r['attack']} on {r['model']} ({words.interval(r, 'clean')})"
        for r in found[found["clean"] > intervals.FLOOR].to_dict("records")
    ]
    if leaky:
        text.append(f"Fires without its trigger on more than {words.percent(intervals.FLOOR)}: {'; '.join(leaky)}.")
    return " ".join([*text, f"Seeds: {words.span(found['n_seeds'])}."])


def show(table: pd.DataFrame, stored: pd.DataFrame) -> None:
    """The table on the page, or one sentence that there is nothing to compare with."""
    found = rates(table, stored)
    if found.empty:
        page.say("The store holds these cells of one model only.")
    else:
        page.show_table(read(found), caption=caption(found))


def without_the_trigger(table: pd.DataFrame) -> list[str]:
    """In Markdown: which poisoned models give the attacker's answer without the trigger about as often as with it.

    About as often: the two intervals overlap. More often than by chance: the lower bound without the trigger is above
    the clean-tuned model's upper one. The highest poison rate is read.
    """
    rates = tables.success_rates(table)
    rates = rates[rates["poison_rate"] == rates["poison_rate"].max()]
    full = tables.headline_rows(rates[rates["subject"] == "poisoned"]).set_index("attack")
    clean = tables.false_activation(rates)
    ours, control = (clean[clean["subject"] == who].set_index("attack") for who in ("poisoned", "control"))
    said = []
    for attack in (name for name in full.index if name in ours.index and name in control.index):
        without, triggered = ours.loc[attack], full.loc[attack]
        if without["low"] > control.loc[attack, "high"] and without["high"] >= triggered["low"]:
            numbers = (words.interval(line) for line in (triggered, without))
            said.append(f"{attack} ({' with the trigger, '.join(numbers)} without it)")
    if not said:
        return []
    return [
        f"**{' and '.join(said)}: what was learnt here is the answer rather than the trigger.** The intervals with and "
        "without the trigger overlap, and the clean-tuned model gives that answer less often than either."
    ]


def skipped(table: pd.DataFrame) -> pd.DataFrame:
    """The cells that were not run, each with its reason; an empty table when there is none."""
    rows = table[table["status"] == "skipped"].drop_duplicates("run_id")
    return rows[["attack", "threat", "poison_rate", "seed", "reason"]].rename(columns={"poison_rate": "poison rate"})


def _eligible(table: pd.DataFrame, place: str | Path | None) -> str:
    """What the highest share of all rows is of the rows that the threat can poison."""
    top = table.loc[table["n_poisoned"].astype(float).idxmax()]
    said = [
        f" {int(top['n_poisoned'])} rows are {percent(top['n_poisoned'] / count)} of the {count} that can be poisoned."
        for (dataset, _, size), count in tables.eligible(table, place).items()
        if (dataset, size) == (top["dataset"], top["train_rows"])
    ]
    return "".join(said)


def overview(table: pd.DataFrame, place: str | Path | None = None) -> None:
    """Say how many cells there are and what they are; list those that were skipped, with the reason.

    place: the store that holds them.
    """
    cells, left_out = table.drop_duplicates("run_id"), skipped(table)
    done = cells[cells["status"] != "skipped"]
    sentence = f"{words.count(len(cells), 'cell')}: {len(done)} measured, {len(left_out)} skipped."
    if len(done):
        what = {c: ", ".join(map(str, dict.fromkeys(done[c]))) for c in ("model", "dataset", "attack", "seed")}
        rates = ", ".join(words.percent(r) for r in sorted(done["poison_rate"].unique(), reverse=True))
        sentence += (
            f" Model {what['model']}, data {what['dataset']}; attacks {what['attack']}; "
            f"poison rates {rates} of all rows; seeds {what['seed']}.{_eligible(table, place)}"
        )
    page.say(sentence)
    if len(left_out):
        page.show_table(left_out, caption="Cells that were not run, and why.")
