"""Do the other things in a caption survive when one of them is called by another name? For concept substitution.

A substitution is meant to change one name. What else the picture shows is read from the clean-tuned model's answer to
the clean picture: what it names there, such a model can see. Reads stored responses; scenes only, since the names that
could be said have to be known. Free of torch.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bvlm_book import rules, tables, words
from bvlm_book.words import evidence, extreme
from bvlm_utils import attacks, data, store
from bvlm_utils.data import scenes
from bvlm_utils.score import intervals
from bvlm_utils.store import records
from bvlm_utils.store.cell import Cell
from bvlm_utils.threats import responses

COLUMNS = ["attack", "poison_rate", "seed", "subject", "value", "low", "high", "n"]


def kept(cells: Sequence[Cell], place: str | Path | None = None) -> pd.DataFrame:
    """A line per finished cell and subject (poisoned, control): `COLUMNS`, with the full trigger.

    value: of the other things that the clean-tuned model names without a trigger, the share that the subject names with
    it; a mean over the n judged inputs where there are any, with Wilson's 95 % interval, as for all mean scores between
    0 and 1. Cells on data in files, and attacks without a trigger at test time, are left out.
    """
    lines = []
    for cell in cells:
        condition = attacks.info(cell.attack).headline
        if cell.dataset not in data.names() or condition == "clean" or not records.has_responses(cell, place):
            continue
        threat, said = cell.resolved_threat, store.responses(cell, place)
        swapped = {threat.source_concept, threat.target_concept}
        said = said[(said["part"] == "attack") & said["judged"]].set_index("row_id")
        clean = said[(said["subject"] == "control") & (said["condition"] == "clean")]["response"]
        others = {row: found for row, text in clean.items() if (found := _named(text) - swapped)}
        for subject in ("poisoned", "control"):
            shown = said[(said["subject"] == subject) & (said["condition"] == condition)]["response"]
            shares = [len(found & _named(shown[row])) / len(found) for row, found in others.items()]
            low, high = intervals.wilson(sum(shares), len(shares)) if shares else (None, None)
            lines.append({
                "attack": cell.attack, "poison_rate": cell.poison_rate, "seed": cell.seed, "subject": subject,
                "value": sum(shares) / len(shares) if shares else None, "low": low, "high": high, "n": len(shares),
            })  # fmt: skip
    return pd.DataFrame(lines, columns=COLUMNS)


def _named(text: str) -> set[str]:
    return {name for name in scenes.concepts() if responses.names(text, name)}


def read(found: pd.DataFrame) -> pd.DataFrame:
    """`kept` to read: a line per cell."""
    same = ["attack", "poison_rate", "seed"]
    inputs = found[found["subject"] == "poisoned"].set_index(same)["n"]
    return tables.readable(tables.beside(found, same, "subject", ("poisoned", "control")), {
        "attack": "attack", "poison rate": words.rate, "seed": "seed", "poisoned model": "poisoned",
        "clean-tuned model": "control", "inputs": lambda r: int(inputs[tuple(r[name] for name in same)]),
    })  # fmt: skip


def caption(found: pd.DataFrame) -> str:
    """What the table of `read` shows, with its extremes."""
    text = "With the full trigger, the share of the other things in the picture that are still named"
    own = found[(found["subject"] == "poisoned") & found["value"].notna()]
    if own.empty:
        return f"{text}: n/a."
    most, least = own.loc[own["value"].idxmax()], own.loc[own["value"].idxmin()]
    return (
        f"{text}, mean with 95 % interval over inputs: from {words.number(least['value'])} ({least['attack']}) to "
        f"{words.number(most['value'])} ({most['attack']}) by the poisoned model."
    )


def elsewhere(table: pd.DataFrame) -> str:
    """How often the target is named where there is nothing to substitute, in words."""
    rows = tables.summary(table, "asr_elsewhere")
    if rows.empty:
        return "What happens on pictures without the source was not measured for these cells."
    said = []
    for subject, name in (("base", "The base"), ("control", "the clean-tuned model"), ("poisoned", "poisoned models")):
        part = rows[rows["subject"] == subject]
        if len(part):
            clean, full = part[part["condition"] == "clean"], part[part["condition"] != "clean"]
            at_most = [
                f"{extreme(p, 'max')} {w}" for p, w in ((clean, "without a trigger"), (full, "with it")) if len(p)
            ]
            said.append(f"{name} at most on {' and '.join(at_most)}")
    return f"On pictures without the source, the target is named all the same: {'; '.join(said)}. {evidence(rows)}"


def unperturbed(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """Shadowcast beside the same rows without any change to their pictures (eps=0), by the strict test, to read."""
    return tables.readable(rules.memorised(rules.rates(table, model)), {
        "threat": words.threat, "poison rate": words.rate, "poisoned rows": lambda r: int(r["n_poisoned"]),
        "Shadowcast": words.interval,
        "pictures unchanged": lambda r: words.number(*(r[f"{n}_unperturbed"] for n in ("value", "low", "high"))),
        "seeds": lambda r: int(r["n_seeds"]),
    })  # fmt: skip
