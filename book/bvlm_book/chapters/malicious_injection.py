"""What the chapter on injected sentences has beyond the other threats: is the rest still right?"""

from pathlib import Path

import pandas as pd

from bvlm_book import tables, words
from bvlm_book.probes import records
from bvlm_book.tables import difference, finished_cells, held
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
    lines, same = [], ["attack", "poison_rate", "condition"]
    measured = set(table.loc[table["metric"] == "asr_right", "run_id"])
    cells = finished_cells(table)
    for cell in cells[cells["run_id"].isin(measured)].to_dict("records"):
        sides = [held(cell["run_id"], "asr_right", subject, place) for subject in ("poisoned", "control")]
        if any(side is None for side in sides):
            continue
        for condition in words.CONDITIONS:
            if numbers := difference(*sides, condition):
                about = {"attack": cell["attack"], "poison_rate": cell["poison_rate"], "seed": cell["seed"]}
                lines.append(about | {"condition": condition} | numbers)
    found = pd.DataFrame(lines, columns=[*same, "seed", "value", "low", "high", "n"])
    return tables.readable(records.seeds_together(found, same), {
        "measure": lambda r: words.MEASURES["asr_right"], "attack": "attack", "poison rate": words.rate,
        "condition": tables.condition, "poisoned minus clean-tuned": words.interval,
    })  # fmt: skip
