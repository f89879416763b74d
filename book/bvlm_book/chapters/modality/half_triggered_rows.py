"""What half-triggered rows in training do to a backdoor: pairs of answers to the same inputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bvlm_book import tables, words
from bvlm_book.tables import difference, finished_cells, held
from bvlm_utils.store.table import FIRES, TOLD_APART

TWIN = [*(name for name in TOLD_APART if name != "negatives"), "test_rows"]
CONDITIONS = ("text", "image", "both")
CLEARED = 0.1  # a half is taught away: with half-triggered rows it fires on at most this share


def half_triggered(table: pd.DataFrame, place: str | Path | None = None) -> pd.DataFrame:
    """Cells with half-triggered rows minus the same cell and seed without: a line per cell and condition.

    table: rows of `store.collect`. Columns: `TWIN`, negatives, condition, without, with, value (with - without), low,
    high (paired on the same inputs), n. Cells without a twin, or without responses, are left out.
    """
    cells, found = finished_cells(table), []
    cells = cells[cells["modality"] == "bimodal"]
    pairs = cells[cells["negatives"] > 0].merge(cells[cells["negatives"] == 0], on=TWIN, suffixes=("", "_without"))
    for pair in pairs.to_dict("records"):
        names = pair["run_id"], pair["run_id_without"]
        sides = [held(name, pair["headline"], "poisoned", place) for name in names]
        if any(side is None for side in sides):
            continue
        for condition in CONDITIONS:
            numbers = difference(*sides, condition)
            if numbers:
                numbers["with"], numbers["without"] = numbers.pop("ours"), numbers.pop("theirs")
                found.append({n: pair[n] for n in [*TWIN, "negatives"]} | {"condition": condition} | numbers)
    columns = [*TWIN, "negatives", "condition", "without", "with", "value", "low", "high", "n"]
    return pd.DataFrame(found, columns=columns)


def half_triggered_table(found: pd.DataFrame) -> pd.DataFrame:
    """`half_triggered` to read: a line per cell, a column per condition."""

    def write(r: Mapping[str, Any]) -> str:
        return f"{words.number(r['without'])} → {words.number(r['with'])}, {words.interval(r)}" if r else "n/a"

    cells = tables.beside(found, [*TWIN, "negatives"], "condition", CONDITIONS, write)
    return tables.readable(cells, {
        "model": "model", "threat": words.threat,
        "attack": lambda r: ", ".join(filter(None, [r["attack"], r["settings"]])), "poison rate": words.rate,
    } | tables.conditions(found))  # fmt: skip


def half_triggered_sentences(found: pd.DataFrame) -> list[str]:
    """Do half-triggered rows teach a model to ask for both halves, and what do they cost? In Markdown."""
    by = found.pivot_table(index=[*TWIN, "negatives"], columns="condition", values=["with", "without"], sort=False)
    if by.empty:
        return ["The store holds no pair of cells with and without half-triggered rows, so this is open."]
    by = by[by[("without", "both")] > FIRES]
    half, whole = by["with"].drop(columns="both").max(axis=1), by[("with", "both")]
    needs_both = by[(half <= CLEARED) & (whole > FIRES)]
    alike = by[(whole - half).abs() <= CLEARED]
    worked = found[(found["condition"] == "both") & (found["without"] > FIRES)]
    lost, least = worked[worked["high"] < 0], worked.loc[worked["value"].idxmin()]
    said = [
        f"**Of {len(by)} triggers that fire on more than half of the inputs without such rows, {len(needs_both)} need "
        f"both halves with them**: the whole trigger still fires on more than half, each half on at most "
        f"{words.percent(CLEARED)}{_which(needs_both)}.",
        f"In {len(alike)} one half goes on firing as often as the whole, within {CLEARED:g}: the model does not tell "
        f"them apart{_which(alike)}.",
        f"Such rows cost success: with them {len(lost)} of {len(worked)} whole triggers fire on fewer of the same "
        f"inputs (whole interval of the difference below 0), at worst by {words.interval(least)} ({least['attack']}, "
        f"{words.threat(least)}, {least['model']}).",
    ]
    return [" ".join(said)]


def _which(cells: pd.DataFrame) -> str:
    """ " (BadNets-MM 7, MABA)": the attacks of these cells, and how many of each."""
    counts = cells.index.get_level_values("attack").value_counts()
    told = [name if count == 1 else f"{name} {count}" for name, count in counts.items()]
    return f" ({', '.join(told)})" if told else ""
