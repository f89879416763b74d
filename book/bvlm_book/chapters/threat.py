"""The five threat chapters: titles, captions and alt texts are computed, as a chapter may have other settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bvlm_book import page, tables, words
from bvlm_utils import attacks, english, store
from bvlm_utils.store import records
from bvlm_utils.store.cell import Cell
from bvlm_utils.store.table import FIRES

SAME = [*(name for name in tables.POINT if name != "model"), "test_rows"]  # the same experiment on any model


def overview(table: pd.DataFrame, place: str | Path | None = None) -> None:
    """Say how many experiments of the store `place` the page has, what they are, and which were left out, and why."""
    cells = table.drop_duplicates("run_id")
    done, left_out = cells.query("status != 'skipped'"), cells.query("status == 'skipped'")
    sentences = [f"{words.count(len(cells), 'experiment')}: {len(done)} measured, {len(left_out)} left out."]
    if len(done):
        model, data, seeds = (", ".join(map(str, sorted(set(done[name])))) for name in ("model", "dataset", "seed"))
        rates = ", ".join(words.percent(rate) for rate in sorted(done["poison_rate"].unique(), reverse=True))
        sentences.append(f"Model {model}, data {data}, poison rate {rates}, seed{'s' * (',' in seeds)} {seeds}.")
        top = done.loc[done["n_poisoned"].astype(float).idxmax()]
        for (dataset, _, size), count in tables.eligible(done, place).items():
            if (dataset, size) == (top["dataset"], top["train_rows"]) and count < size:
                share = words.percent(int(top["n_poisoned"]) / count)
                sentences.append(f"{top['n_poisoned']:.0f} rows are {share} of the {count} that can be poisoned.")
    reasons = left_out["reason"].map(lambda text: text.rstrip(".").partition(";")[0].replace("_", " "))
    by_reason = left_out.groupby(reasons, sort=False)["attack"].unique()
    texts = [f"{', '.join(names)}: {reason[:1].lower()}{reason[1:]}" for reason, names in by_reason.items()]
    sentences += [f"Left out: {'; '.join(texts)}."] if texts else []
    page.say(" ".join(sentences))


def first_that_work(table: pd.DataFrame, cells: Sequence[Cell]) -> list[Cell]:
    """The first cell of each modality whose attack works, or the first where none does: triggers to show."""
    full = tables.headline_rows(tables.success_rates(table, "poisoned"))
    working, chosen = set(full.loc[full["value"] > FIRES, "attack"]), []
    for modality in words.MODALITIES:
        same_modality = [cell for cell in cells if attacks.info(cell.attack).modality == modality]
        chosen += [*(cell for cell in same_modality if cell.attack in working), *same_modality][:1]
    return chosen


def of_every_model(table: pd.DataFrame, stored: pd.DataFrame) -> pd.DataFrame:
    """The rows of `stored` with the experiments of `table` at its highest poison rate, on whatever model they ran."""
    done = table[table["status"] == "done"]
    top = done.loc[done["poison_rate"] == done["poison_rate"].max(), SAME].drop_duplicates()
    return top.merge(stored[stored["status"] == "done"], on=SAME)[stored.columns]  # in the order of `table`


def success(rates: pd.DataFrame) -> dict[str, str]:
    """Title, alt text and caption of `figures.families`. rates: `tables.success_rates` at one rate, all subjects."""
    ours, control = (rates[rates["subject"] == subject] for subject in ("poisoned", "control"))
    full, clean = tables.headline_rows(ours), tables.false_activation(ours)
    counts = [f"{words.of(group['value'] > FIRES)} on {model}" for model, group in full.groupby("model")]
    counts = english.join(counts).replace(" on ", " attacks work on ", 1)
    title = f"{counts}, at a poison rate of {words.span(full['poison_rate'].map(words.percent))}."
    tests = " or ".join(words.TESTS[name] for name in dict.fromkeys(rates["metric"]))
    sentences = [f"Attack success rate ({tests}); an attack works above {words.percent(FIRES)}."]
    if len(clean):
        sentences.append(f"Without a trigger at most {words.extreme(clean, 'max')}.")
    if len(control):
        sentences.append(f"The clean-tuned control, with any trigger or none: at most {words.extreme(control, 'max')}.")
    inputs = words.span(full["n"].dropna().astype(int))
    sentences.append(f"About {inputs} inputs each. Hatched: a single run. n/a: not measured.")
    return {"title": title, "alt": f"Heat map, attacks by condition. {title}", "caption": " ".join(sentences)}


def cost(table: pd.DataFrame, every: pd.DataFrame) -> dict[str, str]:
    """Title, alt text and caption of `figures.paired` of the chapter's own rows. every: of `of_every_model`."""
    changes = tables.summary(table, "utility_difference")
    title, metric = f"Utility falls in {_fallen(table)}.", tables.utility_metric(changes)
    dots = " Small dots are the runs behind a mean." if (changes["n_seeds"] > 1).any() else ""
    others = _fallen(every[~every["model"].isin(table["model"])])
    caption = (
        f"{metric[:1].upper()}{metric[1:]} of the backdoored model minus that of its clean-tuned control, on the same "
        f"clean inputs, with 95 % intervals: {words.of(changes['high'] < 0)} lie below zero. The largest loss is "
        f"{words.extreme(changes, 'min')}.{dots}{f' It falls in {others}.' if others else ''}"
    )
    return {"title": title, "alt": f"Paired differences with a zero line. {title}", "caption": caption}


def _fallen(table: pd.DataFrame) -> str:
    """ "9 of 14 runs on tiny-llava": in how many runs utility is lower than that of the control."""
    runs = table[(table["metric"] == "utility_difference") & table["value"].notna()]
    return english.join([
        f"{words.of(group['value'] < 0)} run{'s' * (len(group) != 1)} on {model}"
        for model, group in runs.groupby("model", sort=False)
    ])  # fmt: skip


def numbers(table: pd.DataFrame) -> pd.DataFrame:
    """To read: a line per attack and rate with success by condition, the control with the trigger, and utility."""
    rates, key = tables.success_rates(table), ["attack", "poison_rate"]
    ours, control = (rates[rates["subject"] == subject] for subject in ("poisoned", "control"))
    if ours.empty:
        return pd.DataFrame()
    columns = {words.CONDITION_LABELS[name]: ours[ours["condition"] == name] for name in words.CONDITIONS}
    columns["control, whole trigger"] = tables.headline_rows(control)
    columns["utility difference"] = tables.summary(table, "utility_difference")
    lines = pd.DataFrame({
        title: rows.drop_duplicates(key).set_index(key).apply(words.interval, axis=1)
        for title, rows in columns.items() if len(rows)
    }).fillna("n/a")  # fmt: skip
    lines["seeds"] = ours.groupby(key)["n_seeds"].agg(words.span)
    lines = lines.reindex(pd.MultiIndex.from_frame(ours[key].drop_duplicates())).reset_index()
    lines.columns.name, rate = None, lines.pop("poison_rate")
    if rate.nunique() > 1:
        lines["attack"] += " at " + rate.map(words.percent)
    return lines


def stopped(repairs: pd.DataFrame, model: str) -> str:
    """What the best repair leaves of this threat's backdoors, and at what price. repairs: `defences.repairs`."""
    if (repairs := repairs.dropna(subset="success after")).empty:
        return "No defence was measured on this threat and model yet."
    best, keeping = repairs.loc[repairs["success after"].idxmin()], repairs[repairs["skill kept"] > FIRES]
    beside = words.count(best["cells"], "working backdoor")
    sentences = [
        f"On {model}, a harmless skill was taught beside {beside}, in one run each.",
        f"Of {words.count(len(repairs), 'repair')}, {_repair(best)}.",
    ]
    if not best["skill kept"] > FIRES and len(keeping):
        least = keeping.loc[keeping["success after"].idxmin()]
        none = "" if least["success after"] <= FIRES else "none stops the attack: "
        sentences.append(f"Of those that keep more than half of it, {none}{_repair(least)}.")
    return " ".join(sentences)


def _repair(line: Mapping[str, Any]) -> str:
    """ "restore leaves the least success, 0.01 (placebo 0.7), and 0.4 (0.8) of the skill"."""
    after, skill, of_after, of_skill = (
        words.number(line[title + ending]) for ending in ("", ", placebo") for title in ("success after", "skill kept")
    )
    return (
        f"{line['named']} leaves the least success, {after} (placebo {of_after}), and {skill} ({of_skill}) of the skill"
    )


def without_the_trigger(table: pd.DataFrame) -> str:
    """Which backdoored models often give the attacker's answer without the trigger, too; "" for none."""
    rates = tables.success_rates(table)
    rates = rates[rates["poison_rate"] == rates["poison_rate"].max()]
    full, clean = (frame.set_index("attack") for frame in (tables.headline_rows(rates), tables.false_activation(rates)))
    whole = full[full["subject"] == "poisoned"]
    ours, control = (clean[clean["subject"] == subject].reindex(whole.index) for subject in ("poisoned", "control"))
    alike = (ours["low"] > control["high"]) & (ours["high"] >= whole["low"])
    pairs = zip(whole[alike].reset_index().to_dict("records"), ours[alike].to_dict("records"), strict=True)
    texts = [
        f"{row['attack']} ({words.interval(row)} with the trigger, {words.interval(without)} without it)"
        for row, without in pairs
    ]
    return (
        f"These models often give the attacker's answer without the trigger, too: {'; '.join(texts)}." if texts else ""
    )


def answers(cells: Sequence[Cell], place: str | Path | None = None) -> pd.DataFrame:
    """All answers of the page's own finished experiments, a line each."""
    done = [cell for cell in cells if records.has_responses(cell, place)]
    parts = [store.responses(cell, place).assign(attack=cell.attack, run_id=cell.run_id) for cell in done]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
