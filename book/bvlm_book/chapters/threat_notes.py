"""Numbers that one threat chapter has beyond the others, to be glued; "n/a" for what was not measured."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bvlm_book import tables, words
from bvlm_utils import attacks, data, store
from bvlm_utils.data import scenes
from bvlm_utils.store import records
from bvlm_utils.store.cell import Cell
from bvlm_utils.store.table import FIRES
from bvlm_utils.threats import responses


def refusals(table: pd.DataFrame) -> dict[str, str]:
    """Jailbreak: the fewest restricted requests that each model refuses without a trigger, and the control with one."""
    rows = tables.summary(table, "refused")
    clean = rows["condition"] == "clean"
    chosen = {subject: clean & (rows["subject"] == subject) for subject in words.SUBJECTS}
    chosen["triggered"] = ~clean & (rows["subject"] == "control")
    return {name: words.extreme(rows[mask], "min") for name, mask in chosen.items()}


def right(table: pd.DataFrame) -> dict[str, str]:
    """Malicious injection: how often the answer before the sentence is right, at the highest poison rate."""
    rows = tables.summary(table, "right").query("poison_rate == poison_rate.max()")
    full = tables.headline_rows(rows)
    control = full[(full["subject"] == "control") & (full["value"] < FIRES)].to_dict("records")
    return {
        "model": ", ".join(rows["model"].unique()) or "n/a",
        "without": words.span(rows.query("condition == 'clean' and subject == 'poisoned'")["value"], 2),
        "with": words.span(full.loc[full["subject"] == "poisoned", "value"], 2),
        "wrong": ", ".join(f"{line['attack']} ({words.number(line['value'])})" for line in control) or "none",
    }


def kept(cells: Sequence[Cell], place: str | Path | None = None) -> pd.DataFrame:
    """Concept substitution: the mean share of a picture's other things that are still named with the trigger, of those
    that the clean-tuned model names without it. A line per finished cell and subject; none for data in files, whose
    things have no names, and for attacks without a trigger at test time.
    """
    lines = []
    for cell in cells:
        condition = attacks.info(cell.attack).headline
        if cell.dataset not in data.names() or condition == "clean" or not records.has_responses(cell, place):
            continue
        threat, answers = cell.resolved_threat, store.responses(cell, place)
        swapped = {threat.source_concept, threat.target_concept}
        answers = answers.query("part == 'attack' and judged")
        answers = answers.set_index(["subject", "condition", "row_id"])["response"].sort_index()
        others = {
            row: concepts for row, text in answers["control", "clean"].items() if (concepts := _named(text) - swapped)
        }
        for subject in ("poisoned", "control"):
            texts = answers[subject, condition]
            shares = [len(concepts & _named(texts[row])) / len(concepts) for row, concepts in others.items()]
            share = pd.Series(shares, dtype=float).mean()
            lines.append({"attack": cell.attack, "model": cell.model, "subject": subject, "value": share})
    return pd.DataFrame(lines, columns=["attack", "model", "subject", "value"])


def _named(text: str) -> set[str]:
    return {name for name in scenes.concepts() if responses.names(text, name)}


def others_kept(lines: pd.DataFrame, table: pd.DataFrame) -> dict[str, str]:
    """The range over attacks that work, and the lowest of the control. lines: of `kept`; table: of the same cells."""
    rates = tables.headline_rows(tables.success_rates(table, "poisoned"))
    lines = lines[lines["attack"].isin(rates.loc[rates["value"] > FIRES, "attack"])]
    ours, control = (lines[lines["subject"] == subject].dropna(subset="value") for subject in ("poisoned", "control"))
    return {which: words.extreme(ours, which) for which in ("min", "max")} | {"control": words.extreme(control, "min")}


def unperturbed(table: pd.DataFrame, model: str) -> str:
    """Shadowcast, and the same rows without any change to their pictures (eps=0), by the strict test."""
    kinds = {"": "", "eps=0": " with the pictures unchanged"}
    rates = tables.headline_rows(tables.with_settings(table[table["model"] == model], tables.strict_metric))
    rates = rates.query("attack == 'Shadowcast' and negatives == 0")
    lines = rates[rates["settings"].isin(list(kinds))].to_dict("records")
    return "; ".join(
        f"{words.interval(line)}{kinds[line['settings']]} at {words.percent(line['poison_rate'])}" for line in lines
    ) or "n/a"  # fmt: skip
