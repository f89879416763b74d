"""Do the other things in a caption survive when one of them is called by another name? For concept substitution.

What the clean-tuned model names in the clean picture, such a model can see. Scenes only, whose things have names.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bvlm_book import tables, words
from bvlm_utils import attacks, data, store
from bvlm_utils.data import scenes
from bvlm_utils.store import records
from bvlm_utils.store.cell import Cell
from bvlm_utils.threats import responses


def kept(cells: Sequence[Cell], place: str | Path | None = None) -> pd.DataFrame:
    """Of the other things that the clean-tuned model names without a trigger, the mean share named with it.

    A line per finished cell and subject; none for data in files, and for attacks without a trigger at test time.
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
            lines.append({"attack": cell.attack, "subject": subject, "value": pd.Series(shares, dtype=float).mean()})
    return pd.DataFrame(lines, columns=["attack", "subject", "value"])


def _named(text: str) -> set[str]:
    return {name for name in scenes.concepts() if responses.names(text, name)}


def caption(found: pd.DataFrame) -> str:
    """`kept` in a sentence, with its extremes."""
    own = found[(found["subject"] == "poisoned") & found["value"].notna()]
    if own.empty:
        return "What else a caption names under the trigger is not known for these experiments."
    most, least = own.loc[own["value"].idxmax()], own.loc[own["value"].idxmin()]
    control = found.loc[(found["subject"] == "control") & (found["attack"] == least["attack"]), "value"].min()
    return (
        "Of the other things in the picture, backdoored models still name "
        f"{words.number(least['value'])} ({least['attack']}; the clean-tuned control {words.number(control)}) to "
        f"{words.number(most['value'])} ({most['attack']}) under the trigger."
    )


def unperturbed(table: pd.DataFrame, model: str) -> str:
    """Shadowcast beside the same rows without any change to their pictures (eps=0), by the strict test."""
    rates = tables.with_settings(table[table["model"] == model], tables.strict_metric)
    rates = tables.headline_rows(rates[rates["attack"] == "Shadowcast"])
    shown, still = (rates[(rates["settings"] == kind) & (rates["negatives"] == 0)] for kind in ("", "eps=0"))
    both = shown.merge(still, on=["threat", "dataset", "poison_rate"], how="left", suffixes=("", "_unchanged"))
    both = both.fillna({"n_seeds_unchanged": 0}).rename(columns={"value_unchanged": "unchanged"})
    both = both.rename(columns={f"{end}_unchanged": f"unchanged_{end}" for end in ("low", "high")})
    said = [
        f"at {words.rate(line)} it succeeds on {words.interval(line)}, and on {words.interval(line, 'unchanged')} with "
        f"the pictures unchanged ({words.count(min(line['n_seeds'], line['n_seeds_unchanged']), 'seed')})"
        for line in both.to_dict("records")
    ]
    return f"Shadowcast, strict test: {'; '.join(said)}." if said else "Shadowcast was not run with this model."
