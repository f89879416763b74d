"""What differs on the same inputs? Pairs of answers from a store's responses; called by the chapters. Free of torch.

Records hold the paired difference of strict success between poisoned and clean-tuned model. Here are those that they do
not hold: of a threat whose success asks for more than the strict test, and of two poisoned models, one of which had
half-triggered rows in training.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bvlm_utils import metrics, plots, report, store

TWIN = ["model", "dataset", "threat", "attack", "poison_rate", "seed", "settings", "train_rows", "test_rows"]
CONDITIONS = ("text", "image", "both")
CLEARED = 0.1  # a half is taught away: with half-triggered rows it fires on at most this share


def held(run_id: str, metric: str, subject: str, place: str | Path | None = None) -> pd.DataFrame | None:
    """Which judged inputs passed a threat's headline test: condition, row_id, prompt, held. None without responses.

    metric: "asr", or "asr_right" for those whose answer is right, too (`report.headline_metric`).
    """
    if not store.has_responses(run_id, place):
        return None
    said = store.responses(run_id, place)
    said = said[(said["subject"] == subject) & (said["part"] == "attack") & said["judged"]]
    passed = said["success"].astype(bool)
    if metric == "asr_right":
        passed &= said["right"].fillna(False).astype(bool)
    return said[["condition", "row_id", "prompt"]].assign(held=passed)


def difference(ours: pd.DataFrame, theirs: pd.DataFrame, condition: str) -> dict[str, Any]:
    """Shares of two `held` under a condition and ours - theirs, with `metrics.paired_shares`' interval; {} for none.

    InputError where the two were not asked about the same inputs.
    """
    sides = [one[one["condition"] == condition].set_index("row_id")["held"].sort_index() for one in (ours, theirs)]
    if not all(len(side) for side in sides):
        return {}
    value, low, high = metrics.paired_shares(*sides)
    return {"ours": sides[0].mean(), "theirs": sides[1].mean(), "value": value, "low": low, "high": high,
            "n": len(sides[0])}  # fmt: skip


def _cells(table: pd.DataFrame) -> pd.DataFrame:
    done = table[table["status"] == "done"]
    return done.assign(headline=report.headline_metric(done)).drop_duplicates("run_id")


# ---------------------------------------------------------------- poisoned and clean-tuned


def right_differences(table: pd.DataFrame, place: str | Path | None = None) -> pd.DataFrame:
    """Poisoned minus clean-tuned where success asks for the right answer, too: a line per attack, rate, condition.

    Several seeds: their mean with the interval of the seeds. Cells whose responses are not stored are left out.
    """
    found = []
    cells = _cells(table)
    for cell in cells[cells["headline"] == "asr_right"].to_dict("records"):
        sides = [held(cell["run_id"], "asr_right", subject, place) for subject in ("poisoned", "control")]
        if any(side is None for side in sides):
            continue
        for condition in plots.CONDITIONS:
            numbers = difference(*sides, condition)
            if numbers:
                about = {name: cell[name] for name in ("attack", "poison_rate")}
                found.append(about | {"condition": condition} | numbers)
    lines = []
    for (attack, rate, condition), part in _grouped(found, ["attack", "poison_rate", "condition"]):
        lines.append({
            "measure": report.MEASURES["asr_right"], "attack": attack, "poison rate": plots.percent(rate),
            "condition": plots.CONDITION_LABELS[condition], "poisoned minus clean-tuned": report.number(*_mean(part)),
        })  # fmt: skip
    return pd.DataFrame(lines)


def _grouped(lines: list[dict[str, Any]], by: list[str]) -> Iterable[tuple[tuple[Any, ...], pd.DataFrame]]:
    return pd.DataFrame(lines).groupby(by, sort=False) if lines else ()


def _mean(part: pd.DataFrame) -> tuple[float, float, float]:
    values, lows, highs = (part[name].to_numpy(float) for name in ("value", "low", "high"))
    if len(part) == 1:
        return values[0], lows[0], highs[0]
    low, high = metrics.seeds_interval(values, lows, highs)
    return float(np.mean(values)), low, high


# ---------------------------------------------------------------- half-triggered rows


def half_triggered(table: pd.DataFrame, place: str | Path | None = None) -> pd.DataFrame:
    """Cells with half-triggered rows minus the same cell and seed without: a line per cell and condition.

    table: rows of `store.collect`. Columns: `TWIN`, negatives, condition, without, with, value (with - without), low,
    high (paired on the same inputs), n. Cells without a twin, or without responses, are left out.
    """
    cells, found = _cells(table), []
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
    lines = []
    for key, part in found.groupby([*TWIN, "negatives"], sort=False):
        about, by = dict(zip([*TWIN, "negatives"], key, strict=True)), part.set_index("condition")
        line = {
            "model": about["model"],
            "threat": about["threat"].replace("_", " "),
            "attack": ", ".join(filter(None, [about["attack"], about["settings"]])),
            "poison rate": plots.percent(about["poison_rate"]),
        }
        for condition in (c for c in CONDITIONS if c in by.index):
            r = by.loc[condition]
            change = report.number(r["value"], r["low"], r["high"])
            line[plots.CONDITION_LABELS[condition]] = (
                f"{report.number(r['without'])} → {report.number(r['with'])}, {change}"
            )
        lines.append(line)
    return pd.DataFrame(lines)


def half_triggered_sentences(found: pd.DataFrame) -> list[str]:
    """Do half-triggered rows teach a model to ask for both halves, and what do they cost? In Markdown."""
    by = found.pivot_table(index=[*TWIN, "negatives"], columns="condition", values=["with", "without"], sort=False)
    if by.empty:
        return ["The store holds no pair of cells with and without half-triggered rows, so this is open."]
    by = by[by[("without", "both")] > report.FIRES]
    half, whole = by["with"].drop(columns="both").max(axis=1), by[("with", "both")]
    needs_both = by[(half <= CLEARED) & (whole > report.FIRES)]
    alike = by[(whole - half).abs() <= CLEARED]
    worked = found[(found["condition"] == "both") & (found["without"] > report.FIRES)]
    lost, least = worked[worked["high"] < 0], worked.loc[worked["value"].idxmin()]
    said = [
        f"**Of {len(by)} triggers that fire on more than half of the inputs without such rows, {len(needs_both)} need "
        f"both halves with them**: the whole trigger still fires on more than half, each half on at most "
        f"{plots.percent(CLEARED)}{_which(needs_both)}.",
        f"In {len(alike)} one half goes on firing as often as the whole, within {CLEARED:g}: the model does not tell "
        f"them apart{_which(alike)}.",
        f"Such rows cost success: with them {len(lost)} of {len(worked)} whole triggers fire on fewer of the same "
        f"inputs (whole interval of the difference below 0), at worst by "
        f"{report.number(least['value'], least['low'], least['high'])} ({least['attack']}, "
        f"{least['threat'].replace('_', ' ')}, {least['model']}).",
    ]
    return [" ".join(said)]


def _which(cells: pd.DataFrame) -> str:
    """ " (BadNets-MM 7, MABA)": the attacks of these cells, and how many of each."""
    counts = cells.index.get_level_values("attack").value_counts()
    told = [name if count == 1 else f"{name} {count}" for name, count in counts.items()]
    return f" ({', '.join(told)})" if told else ""
