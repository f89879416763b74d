"""The five threat chapters: titles, captions and alt texts are computed, as a chapter may have other settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bvlm_book import page, tables, words
from bvlm_utils import attacks, store
from bvlm_utils.store import records
from bvlm_utils.store.cell import Cell
from bvlm_utils.store.table import FIRES

SAME = [*(name for name in tables.POINT if name != "model"), "test_rows"]  # the same experiment on any model


def overview(table: pd.DataFrame, place: str | Path | None = None) -> None:
    """Say how many experiments of the store `place` the page has, what they are, and which were left out, and why."""
    cells = table.drop_duplicates("run_id")
    skipped = cells["status"] == "skipped"
    done, left_out = cells[~skipped], cells[skipped]
    said = [f"{words.count(len(cells), 'experiment')}: {len(done)} measured, {len(left_out)} left out."]
    if len(done):
        model, data, seeds = (", ".join(map(str, sorted(set(done[c])))) for c in ("model", "dataset", "seed"))
        rates = ", ".join(words.percent(r) for r in sorted(done["poison_rate"].unique(), reverse=True))
        said.append(f"Model {model}, data {data}, poison rate {rates}, seed{'s' * (',' in seeds)} {seeds}.")
        said += _eligible(done, place)
    reasons = dict.fromkeys(text.rstrip(".").partition(";")[0].replace("_", " ") for text in left_out["reason"])
    said += [f"Left out: {'; '.join(reasons)}."] if reasons else []
    page.say(" ".join(said))


def _eligible(done: pd.DataFrame, place: str | Path | None) -> list[str]:
    """What the highest share of all rows is of the rows that the threat can poison, where those are fewer."""
    top = done.loc[done["n_poisoned"].astype(float).idxmax()]
    rows = int(top["n_poisoned"])
    return [
        f"{rows} rows are {words.percent(rows / count)} of the {count} that can be poisoned."
        for (dataset, _, size), count in tables.eligible(done, place).items()
        if (dataset, size) == (top["dataset"], top["train_rows"]) and count < size
    ]


def first_that_work(table: pd.DataFrame, cells: Sequence[Cell]) -> list[Cell]:
    """Of each modality the first attack that works, or the first of all where none does: triggers to show."""
    full = tables.headline_rows(tables.success_rates(table, "poisoned"))
    working, chosen = set(full.loc[full["value"] > FIRES, "attack"]), []
    for modality in words.MODALITIES:
        own = [cell for cell in cells if attacks.info(cell.attack).modality == modality]
        chosen += [*(cell for cell in own if cell.attack in working), *own][:1]
    return chosen


def of_every_model(table: pd.DataFrame, stored: pd.DataFrame) -> pd.DataFrame:
    """The rows of `stored` with the experiments of `table` at its highest poison rate, on whatever model they ran."""
    done = table[table["status"] == "done"]
    top = done.loc[done["poison_rate"] == done["poison_rate"].max(), SAME].drop_duplicates()
    return top.merge(stored[stored["status"] == "done"], on=SAME)[stored.columns]  # in the order of `table`


def success(rates: pd.DataFrame) -> dict[str, str]:
    """Title, alt text and caption of `figures.families`. rates: `tables.success_rates` at one rate, all subjects."""
    ours, control = (rates[rates["subject"] == who] for who in ("poisoned", "control"))
    full, clean = tables.headline_rows(ours), tables.false_activation(ours)
    counted = [
        f"{words.of(part['value'] > FIRES)} {'' if number else 'attacks work '}on {model}"
        for number, (model, part) in enumerate(full.groupby("model", sort=False))
    ]
    title = f"{' and '.join(counted)}, at a poison rate of {words.span(full['poison_rate'].map(words.percent))}."
    tests = " or ".join(words.TESTS[name] for name in dict.fromkeys(rates["metric"]))
    text = [f"Attack success rate ({tests}); an attack works above {words.percent(FIRES)}."]
    if len(clean):
        text.append(f"Without a trigger at most {words.extreme(clean, 'max')}.")
    if len(control):
        text.append(f"The clean-tuned control, with any trigger or none: at most {words.extreme(control, 'max')}.")
    inputs = words.span(full["n"].dropna().astype(int))
    text.append(f"{inputs} inputs for each number. Hatched: a single run. n/a: no such condition, or not measured.")
    return {"title": title, "alt": f"Heat map, attacks by condition. {title}", "caption": " ".join(text)}


def cost(table: pd.DataFrame, every: pd.DataFrame) -> dict[str, str]:
    """Title, alt text and caption of `figures.paired` of the chapter's own rows. every: of `of_every_model`."""
    changes = tables.summary(table, "utility_difference")
    title, metric = f"Utility falls in {_fallen(table)}.", tables.utility_metric(changes)
    caption = (
        f"{metric[:1].upper()}{metric[1:]} of the backdoored model minus that of its clean-tuned control, on the same "
        f"clean inputs, with 95 % intervals: {words.of(changes['high'] < 0)} lie below zero. The largest loss is "
        f"{words.extreme(changes, 'min')}."
    )
    if (changes["n_seeds"] > 1).any():
        caption += " Small dots are the runs behind a mean."
    if others := _fallen(every[~every["model"].isin(table["model"])]):
        caption += f" It falls in {others}."
    return {"title": title, "alt": f"Paired differences with a zero line. {title}", "caption": caption}


def _fallen(table: pd.DataFrame) -> str:
    """ "9 of 14 runs on tiny-llava": in how many runs utility is lower than that of the control."""
    runs = table[(table["metric"] == "utility_difference") & table["value"].notna()]
    return " and ".join(
        f"{words.of(part['value'] < 0)} run{'s' * (len(part) != 1)} on {model}"
        for model, part in runs.groupby("model", sort=False)
    )


def numbers(table: pd.DataFrame) -> pd.DataFrame:
    """To read: a line per attack and rate with success by condition, the control with the trigger, and utility."""
    rates, key = tables.success_rates(table), ["attack", "poison_rate"]
    ours, control = (rates[rates["subject"] == who] for who in ("poisoned", "control"))
    if ours.empty:
        return pd.DataFrame()
    present = [name for name in words.CONDITIONS if name in set(ours["condition"])]
    columns = [
        *(ours[ours["condition"] == name].assign(title=words.CONDITION_LABELS[name]) for name in present),
        tables.headline_rows(control).assign(title="control, whole trigger"),
        tables.summary(table, "utility_difference").assign(title="utility difference"),
    ]
    read = pd.concat([rows.drop_duplicates(key) for rows in columns])
    read = read.assign(text=[words.interval(line) for line in read.to_dict("records")])
    titles = dict.fromkeys(read["title"])
    lines = read.pivot(index=key, columns="title", values="text").reindex(columns=list(titles)).fillna("n/a")
    lines["seeds"] = ours.groupby(key)["n_seeds"].agg(words.span)
    lines = lines.reindex(pd.MultiIndex.from_frame(ours[key].drop_duplicates())).reset_index()
    lines.columns.name, rate = None, lines.pop("poison_rate")
    if rate.nunique() > 1:
        lines["attack"] += " at " + rate.map(words.percent)
    return lines


def stopped(found: pd.DataFrame) -> str:
    """What the best repair leaves of this threat's backdoors, and at what price. found: `defences.repairs`."""
    found = found[found["success after"].notna()]
    if found.empty:
        return "No defence was measured on this threat and model yet."
    best, kind = found.loc[found["success after"].idxmin()], found[found["skill kept"] > FIRES]
    said = [
        f"A harmless skill was taught beside the backdoor in {words.count(best['cells'], 'experiment')}.",
        f"Of {words.count(len(found), 'repair')}, {_repair(best)}.",
    ]
    if not best["skill kept"] > FIRES and len(kind):
        said.append(f"Of those that keep more than half of it, {_repair(kind.loc[kind['success after'].idxmin()])}.")
    return " ".join(said)


def _repair(line: Mapping[str, Any]) -> str:
    """ "restore leaves the least success on average, 0.01 (placebo 0.7); it keeps 0.4 (placebo 0.8) of the skill"."""
    after, skill = (
        f"{words.number(line[title])} (placebo {words.number(line[f'{title}, placebo'])})"
        for title in ("success after", "skill kept")
    )
    return f"{line['named']} leaves the least success on average, {after}; it keeps {skill} of the skill"


def without_the_trigger(table: pd.DataFrame) -> str:
    """Which backdoored models give the attacker's answer without the trigger about as often as with it; "" for none."""
    rates = tables.success_rates(table)
    rates = rates[rates["poison_rate"] == rates["poison_rate"].max()]
    full = tables.headline_rows(rates[rates["subject"] == "poisoned"]).set_index("attack")
    clean = tables.false_activation(rates)
    ours, control = (clean[clean["subject"] == who].set_index("attack") for who in ("poisoned", "control"))
    said = []
    for attack in (name for name in full.index if name in ours.index and name in control.index):
        without, triggered = ours.loc[attack], full.loc[attack]
        if without["low"] > control.loc[attack, "high"] and without["high"] >= triggered["low"]:
            with_it = words.interval(triggered)
            said.append(f"{attack} ({with_it} with the trigger, {words.interval(without)} without it)")
    return f"These models learned the attacker's answer rather than the trigger: {'; '.join(said)}." if said else ""


def answers(cells: Sequence[Cell], place: str | Path | None = None) -> pd.DataFrame:
    """All answers of the page's own finished experiments, a line each."""
    done = [cell for cell in cells if records.has_responses(cell, place)]
    parts = [store.responses(cell, place).assign(attack=cell.attack, run_id=cell.run_id) for cell in done]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
