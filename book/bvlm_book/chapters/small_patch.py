"""The chapter on the small patch: why one trigger fails, beside others on the same cell."""

from collections.abc import Mapping

import pandas as pd

from bvlm_book import tables, words
from bvlm_book.words import interval
from bvlm_utils.store.table import FIRES


def small_patch(skills: pd.DataFrame, runs: Mapping[str, pd.DataFrame], stored: pd.DataFrame) -> str:
    """Is the small patch seen, learnt, and learnt by another model? In Markdown, for the chapter on it.

    skills: `models.cards.skills` of the chapter's model. runs: what a trigger is called -> the tidy table of its cell,
    the small patch first, the larger one second. stored: of `store.collect`, for the other models.
    """
    probe = skills[skills["name"] == "probe: BadNets-I"]
    (_, small), (larger, large) = list(runs.items())[:2]
    first, second = _headline(small), _headline(large)
    uses = "and fine-tuning learns it" if first["value"] > FIRES else "and fine-tuning does not learn it"
    return (
        f"**{_seen(probe)}, {uses}: success {interval(first)}. With {larger} it is {interval(second)}.** "
        + _elsewhere(small, stored)
    )


def _seen(probe: pd.DataFrame) -> str:
    """What a linear probe says, in the words of a half sentence. probe: one line of `models.cards.skills`, or none."""
    if probe.empty:
        return "Whether a linear probe finds the small patch was not measured"
    line = probe.iloc[0]
    finds = "finds" if line["low"] > 0.5 else "does not find"
    return f"A linear probe {finds} the small patch in the image tokens (accuracy {interval(line)}; a coin gives 0.5)"


def _headline(run: pd.DataFrame) -> pd.Series:
    return tables.headline_rows(tables.success_rates(run, "poisoned")).iloc[0]


def _elsewhere(small: pd.DataFrame, stored: pd.DataFrame) -> str:
    """For how many threats the other models learn the same small patch, at the same rate."""
    first, said = small.iloc[0], []
    same = {name: first[name] for name in ("attack", "poison_rate", "settings", "train_rows", "negatives")}
    rows = stored[(stored[list(same)] == pd.Series(same)).all(axis=1) & (stored["model"] != first["model"])]
    for model, part in rows.groupby("model", sort=False):
        rates = tables.headline_rows(tables.success_rates(part, "poisoned"))
        fires = rates[rates["value"] > FIRES].to_dict("records")
        which = ", ".join(f"{words.threat(r)} {interval(r)}" for r in fires)
        counted = f"{len(fires)} of {rates['threat'].nunique()} threats" + (f" ({which})" if which else "")
        said.append(f"{model} learns the same small patch for {counted}, at the same rate.")
    return " ".join(said) or "No other model was tuned on it in this store."


def triggers_table(runs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Success of cells that differ in their trigger, to read: a line each, beside the clean-tuned model.

    runs: what the trigger is called -> the tidy table of its cell.
    """
    lines = []
    for trigger, table in runs.items():
        rates = tables.success_rates(table)
        full = tables.headline_rows(rates).set_index("subject")
        clean = rates[rates["condition"] == "clean"].set_index("subject")
        lines.append({
            "trigger": trigger, "success with the trigger": interval(full.loc["poisoned"]),
            "without it": interval(clean.loc["poisoned"]), "clean-tuned model, with it": interval(full.loc["control"]),
        })  # fmt: skip
    return pd.DataFrame(lines)


def triggers_caption(found: pd.DataFrame) -> str:
    """`triggers_table` in a sentence."""
    said = "; ".join(f"{r['success with the trigger']} with {r['trigger']}" for r in found.to_dict("records"))
    return f"Success rate, one training run per trigger on the same rows: {said}."
