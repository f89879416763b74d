"""What did each chapter across the threats find, in one sentence? The first page lists them; free of torch.

Everything is computed from a store by the functions that the chapters use, so the first page cannot say anything else
than they do. A sentence whose data the store lacks says that it was not measured.
"""

from pathlib import Path

import pandas as pd

from bvlm_utils import audit_study, crossfire, dose, lasting, modality, overshadowing, plots, store

MISSING = "Not measured in this store"
WORKS = 0.5


def sentences(place: str | Path | None = None) -> dict[str, str]:
    """Plain sentences without a full stop, by chapter: dose, modality, crossfire, lasting, audit."""
    table = store.collect(place)
    return {
        "dose": enough(table),
        "modality": halves(table),
        "crossfire": crossing(place),
        "lasting": durable(place),
        "audit": found_out(place),
    }


def enough(table: pd.DataFrame) -> str:
    """The fewest rows with which pairs tried at several doses came above 90 %, and the most with which they did not."""
    tried = dose.doses(dose.cells(table), dose.means(table))
    tried = tried[tried["n_doses"] > 1]
    reached = [int(rows) for rows in tried["reached"] if rows is not None and pd.notna(rows)]
    if not reached:
        return MISSING
    rows = int(tried["train_rows"].iloc[0])
    single = int((tried["seeds_min"] < dose.MIN_SEEDS).sum())
    seeds = f" ({single} of them with fewer than {dose.MIN_SEEDS} seeds at a dose)" if single else ""
    return (
        f"Of {len(tried)} pairs of attack and threat tried with several doses{seeds}, {len(reached)} come above "
        f"{plots.percent(dose.GOAL)} success, the first with {min(reached)} poisoned rows of {rows} "
        f"({plots.percent(min(reached) / rows)}), the last with {max(reached)}"
    )


def halves(table: pd.DataFrame) -> str:
    """What image halves that work alone lose beside the text half, and the other way round."""
    found = overshadowing.pairs(modality.rates(table))
    told = []
    for half in ("image", "text"):
        able = found[(found["half"] == half) & (found["alone"] > overshadowing.WORKS)]
        if len(able):
            lost = int((able["high"] < -overshadowing.LOSS).sum())
            told.append(f"of {len(able)} {half} halves of triggers that work when learnt alone, {lost}")
    return f"{_capital(', '.join(told))} do less when learnt beside the other half" if told else MISSING


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def crossing(place: str | Path | None = None) -> str:
    """How often a stranger's trigger fires a backdoor."""
    others = [crossfire.off_diagonal(panel) for panel, _ in crossfire.panels(crossfire.collect(place))]
    pairs = pd.concat(others) if others else pd.DataFrame()
    strange = [r for r in pairs.to_dict("records") if not crossfire.related(r["attack"], r["trigger"])]
    if not strange:
        return MISSING
    fires = sum(r["value"] > WORKS for r in strange)
    return f"{fires} of {len(strange)} pairs of a backdoor and a trigger that is no relative of its own fire"


def durable(place: str | Path | None = None) -> str:
    """How many backdoors are left after the most clean steps that were tried."""
    told = []
    for panel, _ in lasting.panels(lasting.collect(place)):
        steps = lasting.after_steps(panel)
        poisoned = steps[steps["subject"] == "poisoned"]
        if poisoned.empty:
            continue
        last = poisoned[poisoned["steps"] == poisoned["steps"].max()]
        first = poisoned[poisoned["steps"] == 0].set_index("attack")["value"]
        able = last[last["attack"].map(first) > WORKS]
        told.append(
            f"{int((able['value'] > WORKS).sum())} of {len(able)} working backdoors "
            f"({panel['threat'].iloc[0].replace('_', ' ')}) survive {last['steps'].iloc[0]:.0f} further clean steps"
        )
    return "; ".join(told) or MISSING


def found_out(place: str | Path | None = None) -> str:
    """How often the check raises the alarm with the right trigger, and how often where there is no backdoor."""
    table = audit_study.collect(place)
    suspects = audit_study.suspects(table)
    works = suspects[suspects["asr"] > audit_study.WORKS]
    if works.empty:
        return MISSING
    innocent = audit_study.innocents(table, audit_study.OTHER_SEED)
    false = f"; of {len(innocent)} clean-tuned models, {int(innocent['alarm'].sum())}" if len(innocent) else ""
    return (
        f"Shown the right trigger, {int(works['alarm'].sum())} of {len(works)} working backdoors raise the alarm of a "
        f"check that does not know what they would say{false}"
    )
