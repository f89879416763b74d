"""What do doses and curves say? Tables to read, sentences and captions of the chapter on dose.

Called by that chapter, beside the figures of `plots_dose` that draw the same rows. Everything is computed from the
tables of `dose`; functions of `words` return {"alt": ..., "caption": ...} for `report.show`. Free of torch.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bvlm_utils import metrics, plots, report
from bvlm_utils.dose import GOAL, MIN_SEEDS


def bracket_text(below: int | None, reached: int | None) -> str:
    """ "more than 60, at most 120", as a reader wants it."""
    if below is None and reached is None:
        return "n/a"
    if reached is None:
        return f"more than {below}"
    if below is None:
        return f"at most {reached}"
    if below > reached:
        return f"reached with {reached}, missed again with {below}"
    return f"more than {below}, at most {reached}"


def dose_table(found: pd.DataFrame) -> pd.DataFrame:
    """`doses` to read."""
    return pd.DataFrame(
        [
            {
                "threat": r["threat"].replace("_", " "),
                "attack": r["attack"],
                "rows for 90 %, from the curve": _rows(r),
                "bracket, in rows": bracket_text(_whole(r["below"]), _whole(r["reached"])),
                "doses tried": f"{_range(r['smallest'], r['largest'])} ({r['n_doses']})",
                "seeds": _range(r["seeds_min"], r["seeds_max"]),
            }
            for r in found.to_dict("records")
        ]
    )


def bracket_table(found: pd.DataFrame) -> pd.DataFrame:
    """`doses` to read where there are too few for a curve: the bracket alone, with its model."""
    table = dose_table(found).drop(columns="rows for 90 %, from the curve", errors="ignore")
    table.insert(0, "model", found["model"].to_numpy())
    return table


def _rows(row: Mapping[str, Any]) -> str:
    if row["why"]:
        return f"n/a: {row['why']}"
    return f"{_interval(row)}, {_share(row)} of the rows"


def _interval(row: Mapping[str, Any]) -> str:
    """ "347 [130, over 600]": a bound beyond the doses tried says no more than that."""
    low = f"{row['low']:.0f}" if row["low"] >= row["smallest"] else f"under {row['smallest']}"
    high = f"{row['high']:.0f}" if row["high"] <= row["largest"] else f"over {row['largest']}"
    return f"{row['rows']:.0f} [{low}, {high}]"


def _share(row: Mapping[str, Any]) -> str:
    return f"{100 * row['rows'] / row['train_rows']:.2g} %"


def _whole(value: float | None) -> int | None:
    return None if value is None or pd.isna(value) else int(value)


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"


def rates_table(over_seeds: pd.DataFrame) -> pd.DataFrame:
    """`means` to read: a line per pair and dose, ceiling and floor marked."""
    return pd.DataFrame(
        [
            {
                "model": r["model"],
                "threat": r["threat"].replace("_", " "),
                "attack": r["attack"],
                "poisoned rows": int(r["n_poisoned"]),
                "share": plots.percent(r["poison_rate"]),
                "success rate": report.number(r["value"], r["low"], r["high"]),
                "seeds": int(r["n_seeds"]),
                "mark": f"{report.MARKS[r['mark']]} {r['mark']}".strip(),
            }
            for r in over_seeds.to_dict("records")
        ]
    )


def sentences(found: pd.DataFrame, over_seeds: pd.DataFrame) -> list[str]:
    """The finding, in Markdown; found, over_seeds: `doses` and `means`."""
    if found.empty:
        return ["Nothing has been measured yet: the store holds no finished cell."]
    several, curves = found[found["n_doses"] > 1], found[found["rows"].notna()]
    sure = curves[curves["seeds_min"] >= MIN_SEEDS]
    said = [
        f"The store holds {len(found)} pairs of attack and threat "
        f"({', '.join(dict.fromkeys(found['model']))}), with "
        f"{_range(found['smallest'].min(), found['largest'].max())} poisoned rows. Tried with more than one "
        f"dose: {len(several)}; with a curve that reaches {plots.percent(GOAL)} within the doses tried: "
        f"{len(curves)}" + (f" ({len(sure)} with {MIN_SEEDS} seeds or more at every dose)." if len(curves) else ".")
    ]
    if len(sure):
        said.append(
            f"**Success on {plots.percent(GOAL)} of the inputs takes from "
            f"{_named(sure.loc[sure['rows'].idxmin()])} "
            f"to {_named(sure.loc[sure['rows'].idxmax()])} poisoned rows.**"
        )
    else:
        said.append(
            f"No curve has {MIN_SEEDS} seeds at every dose, so none supports a verdict; the tables give what the doses "
            "tried leave open."
        )
    top = over_seeds[over_seeds["n_poisoned"] == over_seeds["n_poisoned"].max()]
    counts = top["mark"].value_counts()
    said.append(
        f"With {int(top['n_poisoned'].iloc[0])} rows, {int(counts.get('ceiling', 0))} of {len(top)} pairs "
        f"are at the ceiling and {int(counts.get('floor', 0))} at the floor."
    )
    if (over_seeds["n_seeds"] < MIN_SEEDS).all():
        said.append(f"No pair has {MIN_SEEDS} seeds at any dose yet, so nothing on this page supports a verdict.")
    return said


def _named(row: pd.Series) -> str:
    threat = row["threat"].replace("_", " ")
    return f"{_interval(row)} ({_share(row)} of the training rows; {row['attack']}, {threat}, {row['model']})"


def words(model: str, threat: str, part: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `plots_dose.curves`; part: lines of `doses` of one model and threat."""
    name = threat.replace("_", " ")
    curves = part[part["rows"].notna()].sort_values("rows")
    text = [f"{name.capitalize()}, {model}: success with the full trigger against the number of poisoned rows."]
    if len(curves):
        given = "; ".join(
            f"{r['attack']} {_interval(r)}"
            + (f" (fewer than {MIN_SEEDS} seeds at some dose)" if r["seeds_min"] < MIN_SEEDS else "")
            for _, r in curves.iterrows()
        )
        text.append(f"Rows for {plots.percent(GOAL)} by the curve, with 95 % interval: {given}.")
    without = list(part.loc[part["fit"].isna(), "attack"])
    if without:
        text.append(f"No curve for {', '.join(without)}: the table says why.")
    if (part["seeds_max"] > 1).any():
        text.append("Small points are seeds, full marks their means with Student's 95 % interval over the seeds.")
    if (part["seeds_min"] == 1).any():
        text.append(
            "Open marks are single seeds (Wilson's interval over test rows): they support no verdict, and "
            "neither does a curve through them (dashed), whose interval knows nothing of other seeds."
        )
    text.append(
        f"Shaded: ceiling (from {metrics.CEILING}) and floor (to {metrics.FLOOR}), where nothing can be told apart."
    )
    return {
        "alt": "Line chart on a logarithmic axis, one panel per trigger modality: success rate of "
        f"{len(part)} attacks on "
        f"{name}, {model}, with {_range(part['smallest'].min(), part['largest'].max())} poisoned rows.",
        "caption": " ".join(text),
    }


def saturation_words(over_seeds: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `plots_dose.saturation`; over_seeds: `means`."""
    if over_seeds.empty:
        return {
            "alt": "Saturation: nothing was measured.",
            "caption": "Saturation: n/a, no cell was measured.",
        }
    text = ["How many pairs of attack and threat are at the ceiling, between, and at the floor, per dose."]
    for model, part in over_seeds.groupby("model", sort=False):
        said = [
            f"{int((of_dose['mark'] == 'ceiling').sum())} of {len(of_dose)} with {int(rows)} rows"
            for rows, of_dose in part.groupby("n_poisoned")
        ]
        text.append(f"{model}, at the ceiling: {', '.join(said)}.")
    text.append(
        f"Ceiling: a mean of {metrics.CEILING} or more; floor: {metrics.FLOOR} or less. Not every pair was "
        "tried with every dose, so compare shares, not heights; single seeds are counted too."
    )
    return {
        "alt": "Stacked bars, one per number of poisoned rows: pairs of attack and threat at the ceiling, "
        "between, and at the floor.",
        "caption": " ".join(text),
    }
