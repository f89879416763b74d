"""Success and utility on pictures in a drawing style that no training picture has."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bvlm_book import tables, words
from bvlm_book.probes import records
from bvlm_book.probes.records import CONTROL, POISONED, STYLE
from bvlm_utils.store.table import FIRES

SAME = ["model", "threat", "attack", "poison_rate"]


def collect(place: str | Path | None = None) -> pd.DataFrame:
    """Headline success in the held-out style: a line per model and condition (`variant`), seeds put
    together."""
    return records.over_seeds(records.headline(records.collect(STYLE, place)))


def shared_seeds(table: pd.DataFrame, asked: pd.DataFrame) -> pd.DataFrame:
    """The rows of `store.collect` of the cells and seeds that were asked; asked: `probes.records.collect` of this
    kind."""
    return table.merge(asked[[*SAME, "seed"]].drop_duplicates(), on=[*SAME, "seed"])


def style_table(found: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """`collect` beside `chapters.modality.halves.four_cells` of `shared_seeds` to read: a line per cell, a column per
    condition.

    Each field: on the usual test rows, then in the held-out style with its interval.
    """
    usual, poisoned = _usual(cells), found[found["subject"] == POISONED]
    shown = [name for name in words.CONDITIONS if name in set(poisoned["variant"])]
    styled = tables.beside(poisoned, SAME, "variant", shown)

    def both(name: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda r: f"{words.number(usual.get((*(r[one] for one in SAME), name)))}, {r[name]}"

    about = {"model": "model", "threat": words.threat, "attack": "attack", "poison rate": words.rate}
    about |= {f"{words.CONDITION_LABELS[name]}: usual, held-out style": both(name) for name in shown}
    return tables.readable(styled, about | {"seeds": "seeds"})


def _usual(cells: pd.DataFrame) -> pd.Series:
    """The values of `four_cells` by `SAME` and condition."""
    plain = cells[(cells["negatives"] == 0) & (cells["settings"] == "")].drop_duplicates(SAME)
    return plain.set_index(SAME)[list(words.CONDITIONS)].stack()


def sentences(found: pd.DataFrame, utility: pd.DataFrame, cells: pd.DataFrame) -> list[str]:
    """What may be said, in Markdown; found: `collect`, utility: all lines of `probes.records.collect` of this kind,
    cells: as for `style_table`.
    """
    if found.empty:
        return ["Nobody has been asked yet: the store holds no answer in the held-out style."]
    control = utility[(utility["subject"] == CONTROL) & (utility["part"] == "utility")]
    measured = "; ".join(
        f"{r['unit']} {words.interval(r)} ({r['model']}, {words.threat(r)})"
        for r in control.drop_duplicates(["model", "threat"]).to_dict("records")
    )
    said = (
        f"{words.span(found['n'].astype(int))} inputs per number, 95 % intervals. The clean-tuned models on ordinary "
        f"inputs in that style: {measured or 'n/a'}."
    )
    return [_finding(found[found["subject"] == POISONED], _usual(cells)), said]


def _finding(poisoned: pd.DataFrame, usual: pd.Series) -> str:
    """Does success carry over? The conditions that fire, and by how much they change."""
    changes = []
    for row in poisoned.to_dict("records"):
        before = usual.get((*(row[name] for name in SAME), row["variant"]))
        if before is not None and max(row["value"], before) > FIRES:
            changes.append((row["value"] - before, row))
    if not changes:
        return "No cell that was asked fires on more than half of the inputs in either style."
    change, worst = max(changes, key=lambda pair: abs(pair[0]))
    still = sum(1 for _, row in changes if row["value"] > FIRES)
    return (
        f"**Of {len(changes)} combinations of attack and condition that fire on more than half of the inputs in one "
        f"style at least, {still} do so in the held-out one.** The largest change is {words.number(change)} "
        f"({worst['attack']}, {words.CONDITION_LABELS[worst['variant']]}: {words.interval(worst)} in the held-out "
        "style)."
    )
