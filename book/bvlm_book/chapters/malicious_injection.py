"""What the chapter on injected sentences has beyond the other threats: is the rest still right?"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bvlm_book import tables, words
from bvlm_book.tables import difference, finished_cells, held
from bvlm_utils.score import intervals
from bvlm_utils.store.table import FIRES


def misread(table: pd.DataFrame) -> str:
    """Which triggers make even the clean-tuned model answer wrongly; for success that asks for the right answer.

    table: of `store.collect`; the highest poison rate is read.
    """
    right = tables.summary(table, "right", "control")
    if right.empty:
        return "How often the clean-tuned model is right was not measured for these cells."
    right = right[right["poison_rate"] == right["poison_rate"].max()]
    full = tables.headline_rows(right)
    wrong = full[full["value"] < FIRES]
    clean = right[right["condition"] == "clean"]["value"]
    if wrong.empty or clean.empty:
        return "The clean-tuned model is right on at least half of the inputs under every trigger."
    said = [_conditions(right[right["attack"] == attack]) for attack in wrong["attack"]]
    return (
        f"Without a trigger, the clean-tuned model is right on {words.number(clean.min())} of the inputs. With one it "
        f"is right on fewer than half under {len(said)} of {len(full)} triggers: {'; '.join(said)}. Success cannot be "
        "expected to come up to that of the others there, since it asks for the right answer."
    )


def _conditions(rows: pd.DataFrame) -> str:
    """ "MABA (0.37 text only, 0.70 image only, 0.26 both)"."""
    triggered = rows[rows["condition"] != "clean"]
    found = {r["condition"]: words.number(r["value"]) for r in triggered.to_dict("records")}
    said = [f"{found[name]} {words.CONDITION_LABELS[name]}" for name in words.CONDITIONS if name in found]
    return f"{rows['attack'].iloc[0]} ({', '.join(said)})"


def right_differences(table: pd.DataFrame, place: str | Path | None = None) -> pd.DataFrame:
    """Poisoned minus clean-tuned where success asks for the right answer, too: a line per attack, rate, condition.

    Several seeds: their mean with the interval of the seeds. Cells whose responses are not stored are left out.
    """
    found = []
    cells = finished_cells(table)
    for cell in cells[cells["headline"] == "asr_right"].to_dict("records"):
        sides = [held(cell["run_id"], "asr_right", subject, place) for subject in ("poisoned", "control")]
        if any(side is None for side in sides):
            continue
        for condition in words.CONDITIONS:
            numbers = difference(*sides, condition)
            if numbers:
                about = {name: cell[name] for name in ("attack", "poison_rate")}
                found.append(about | {"condition": condition} | numbers)
    lines = []
    for (attack, rate, condition), part in _grouped(found, ["attack", "poison_rate", "condition"]):
        lines.append({
            "measure": words.MEASURES["asr_right"], "attack": attack, "poison rate": words.percent(rate),
            "condition": words.CONDITION_LABELS[condition], "poisoned minus clean-tuned": words.number(*_mean(part)),
        })  # fmt: skip
    return pd.DataFrame(lines)


def _grouped(lines: list[dict[str, Any]], by: list[str]) -> Iterable[tuple[tuple[Any, ...], pd.DataFrame]]:
    return pd.DataFrame(lines).groupby(by, sort=False) if lines else ()


def _mean(part: pd.DataFrame) -> tuple[float, float, float]:
    values, lows, highs = (part[name].to_numpy(float) for name in ("value", "low", "high"))
    if len(part) == 1:
        return values[0], lows[0], highs[0]
    low, high = intervals.seeds_interval(values, lows, highs)
    return float(np.mean(values)), low, high
