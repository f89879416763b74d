"""Success and utility on pictures in a drawing style that no training picture has."""

from pathlib import Path

import pandas as pd

from bvlm_book import words
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
    usual = _usual(cells)
    lines = []
    for key, part in found[found["subject"] == POISONED].groupby(SAME, sort=False):
        about, by = dict(zip(SAME, key, strict=True)), part.drop_duplicates("variant").set_index("variant")
        line = {
            "model": about["model"],
            "threat": about["threat"].replace("_", " "),
            "attack": about["attack"],
            "poison rate": words.percent(about["poison_rate"]),
        }
        for condition in (c for c in words.CONDITIONS if c in by.index):
            before = words.number(usual.loc[key][condition] if key in usual.index else None)
            r = by.loc[condition]
            line[f"{words.CONDITION_LABELS[condition]}: usual, held-out style"] = (
                f"{before}, {words.number(r['value'], r['low'], r['high'])}"
            )
        lines.append(line | {"seeds": int(part["n_seeds"].min())})
    return pd.DataFrame(lines)


def _usual(cells: pd.DataFrame) -> pd.DataFrame:
    return cells[(cells["negatives"] == 0) & (cells["settings"] == "")].drop_duplicates(SAME).set_index(SAME)


def sentences(found: pd.DataFrame, utility: pd.DataFrame, cells: pd.DataFrame) -> list[str]:
    """What may be said, in Markdown; found: `collect`, utility: all lines of `probes.records.collect` of this kind,
    cells: as for `style_table`.
    """
    if found.empty:
        return ["Nobody has been asked yet: the store holds no answer in the held-out style."]
    control = utility[(utility["subject"] == CONTROL) & (utility["part"] == "utility")]
    fewest, most = int(found["n"].min()), int(found["n"].max())
    counts = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    said = [f"{counts} inputs per number, 95 % intervals. The clean-tuned models on ordinary inputs in that style:"]
    measured = [
        f"{r['unit']} {words.number(r['value'], r['low'], r['high'])} ({r['model']}, {r['threat'].replace('_', ' ')})"
        for r in control.drop_duplicates(["model", "threat"]).to_dict("records")
    ]
    said.append(("; ".join(measured) or "n/a") + ".")
    return [_finding(found[found["subject"] == POISONED], _usual(cells)), " ".join(said)]


def _finding(poisoned: pd.DataFrame, usual: pd.DataFrame) -> str:
    """Does success carry over? The conditions that fire, and by how much they change."""
    changes = [
        (row["value"] - usual.loc[key][row["variant"]], row)
        for row in poisoned.to_dict("records")
        if (key := tuple(row[name] for name in SAME)) in usual.index
        and max(row["value"], usual.loc[key][row["variant"]]) > FIRES
    ]
    if not changes:
        return "No cell that was asked fires on more than half of the inputs in either style."
    change, worst = max(changes, key=lambda pair: abs(pair[0]))
    kept = sum(1 for _, row in changes if row["value"] > FIRES)
    condition = words.CONDITION_LABELS[worst["variant"]]
    return (
        f"**Of {len(changes)} combinations of attack and condition that fire on more than half of the inputs in one "
        f"style at least, {kept} do so in the held-out one.** The largest change is {words.number(change)} "
        f"({worst['attack']}, {condition}: {words.number(worst['value'], worst['low'], worst['high'])} in the "
        "held-out style)."
    )
