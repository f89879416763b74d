"""Which half of a bimodal trigger fires? Tables of the four conditions from the store; called by the chapter.

`rates` gives success under every condition, `four_cells` sets text only beside image only, `dominance`
applies the committed rule (`claims.text_overwhelms`, which this module does not change) and says why a pair
cannot be judged. What else could stand behind a difference is in `confounds`, what models look at in
`attribution`, figures are in `plots_modality`. Free of torch.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from bvlm_utils import attacks, cards, claims, metrics, plots, report, tidy

CELL = ["model", "dataset", "threat", "attack", "poison_rate", "n_poisoned", "negatives", "settings"]
NOT_TESTABLE, HOLDS, FAILS = "not testable", "text overwhelms", "text does not overwhelm"


# ---------------------------------------------------------------- four conditions


def rates(table: pd.DataFrame) -> pd.DataFrame:
    """Success of the poisoned models under every condition, over seeds: a line per cell and condition.

    table: rows of `store.collect`. Columns: those of `report.summary`, with negatives, settings without a half, as text
    and in columns (`tidy.differing`), and half ("" for the whole trigger, else what was trained alone). Per model, only
    cells with the number of training rows that most have, so that all of them can be compared.
    """
    done = table[table["status"] == "done"]
    lines = []
    for _, of_model in done.groupby("model", sort=False):
        usual = of_model[of_model["train_rows"] == of_model["train_rows"].mode().iloc[0]]
        for (negatives, _), part in usual.groupby(["negatives", "settings"], sort=False):
            settings = tidy.differing(part.iloc[0])
            half = settings.pop("half", "")
            about = settings | {"negatives": negatives, "settings": tidy.text(settings), "half": half}
            lines.append(report.success_rates(part, "poisoned").assign(**about))
    if lines:
        return pd.concat(lines, ignore_index=True)
    return report.success_rates(done, "poisoned").assign(negatives=0.0, settings="", half="")


def four_cells(found: pd.DataFrame) -> pd.DataFrame:
    """A line per bimodal cell, seeds put together: `CELL`, the settings' columns, n_seeds, n, and for each condition a
    value and interval.

    found: `rates`. Columns of a condition: "text", "text_low", "text_high". "difference" is text only minus
    image only, its bounds the widest that both intervals allow.
    """
    lines, settings = [], tidy.setting_columns(found)
    whole = found[(found["modality"] == "bimodal") & (found["half"] == "")]
    for key, part in whole.groupby(CELL, sort=False):
        by = part.set_index("condition")
        line = dict(zip(CELL, key, strict=True)) | part.iloc[0][settings].to_dict()
        line |= {
            "n_seeds": int(part["n_seeds"].min()),
            "n": part["n"].iloc[0],
        }
        for condition in plots.CONDITIONS:
            of = by.loc[condition] if condition in by.index else {}
            for name, column in (("value", ""), ("low", "_low"), ("high", "_high")):
                line[condition + column] = of.get(name, np.nan)
        line["difference"] = line["text"] - line["image"]
        line["difference_low"] = line["text_low"] - line["image_high"]
        line["difference_high"] = line["text_high"] - line["image_low"]
        lines.append(line)
    numbers = [c + end for c in (*plots.CONDITIONS, "difference") for end in ("", "_low", "_high")]
    return pd.DataFrame(lines, columns=[*CELL, *settings, "n_seeds", "n", *numbers])


def named(row: Mapping[str, Any], rate: bool = True) -> str:
    """ "BadNets-MM, targeted refusal, 10 %, patch of 80 pixels": a cell but for its model and negatives."""
    parts = [row["attack"], row["threat"].replace("_", " ")]
    if rate:
        parts.append(plots.percent(row["poison_rate"]))
    return ", ".join([*parts, in_words(row)] if row["settings"] else parts)


def in_words(row: Mapping[str, Any]) -> str:
    """Settings of a cell, but for its half, as a reader knows them: "patch of 80 pixels"."""
    said = {"attack.patch_size": "patch of {} pixels", "picture_last": "picture after the words"}
    settings = tidy.differing(row).items()
    return ", ".join(
        said[name].format(value) if name in said else tidy.text({name: value})
        for name, value in settings
        if name != "half"
    )


def four_table(cells: pd.DataFrame) -> pd.DataFrame:
    """`four_cells` to read."""
    lines = []
    for r in cells.to_dict("records"):
        line = {
            "threat": r["threat"].replace("_", " "),
            "attack": r["attack"],
            "poison rate": plots.percent(r["poison_rate"]),
            "half-triggered rows": f"{r['negatives']:g} per poisoned row" if r["negatives"] else "none",
        }
        if (cells["settings"] != "").any():
            line["settings"] = in_words(r)
        for condition in plots.CONDITIONS:
            line[plots.CONDITION_LABELS[condition]] = report.marked(
                r[condition], r[f"{condition}_low"], r[f"{condition}_high"]
            )
        lines.append(line | {"text / image": _ratio(r["text"], r["image"]), "seeds": r["n_seeds"]})
    return pd.DataFrame(lines)


def _ratio(text: float, image: float) -> str:
    """How many times as often the text half fires; of a rate at the floor nothing can be a multiple."""
    if np.isnan(text) or np.isnan(image):
        return "n/a"
    return report.number(text / image) if image > metrics.FLOOR else "image half at the floor"


# ---------------------------------------------------------------- dominance


def dominance(table: pd.DataFrame) -> pd.DataFrame:
    """`claims.text_overwhelms` for every model, with model, verdict, `why` it is not testable, and probe.

    Columns: model, attack, threat, dataset, poison_rate, settings, "text half alone", "image half alone", "text only",
    "image only", difference, low, high, named, verdict, why, probe. Without half-triggered negatives, as in the
    rule.
    """
    parts = []
    for model in dict.fromkeys(table["model"]):
        found = claims.rates(table, model)
        judged = claims.text_overwhelms(found)
        judged.insert(0, "model", model)
        whys = [_why(row, found) for row in judged.to_dict("records")]
        judged["why"] = whys
        judged["verdict"] = [
            NOT_TESTABLE if pd.isna(holds) else HOLDS if holds else FAILS for holds in judged.pop("holds")
        ]
        judged["probe"] = [probe(row) for row in judged.to_dict("records")]
        parts.append(judged)
    if parts:
        return pd.concat(parts, ignore_index=True)
    empty = claims.text_overwhelms(claims.rates(table, "")).drop(columns="holds")
    return empty.assign(model="", verdict="", why="", probe=np.nan)


def _why(row: Mapping[str, Any], found: pd.DataFrame) -> str:
    """What the rule lacks for a pair; empty if it lacks nothing. found: `claims.rates` of the model."""
    cell = found[
        (found["attack"] == row["attack"])
        & (found["threat"] == row["threat"])
        & (found["dataset"] == row["dataset"])
        & (found["poison_rate"] == row["poison_rate"])
        & (found["shared"] == row["settings"])
    ]
    lacking, untrained = [], []
    for half in ("text", "image"):
        rows = cell[(cell["half"] == half) & (cell["condition"] == half)]
        if rows.empty:
            untrained.append(half)
        elif rows["n_seeds"].iloc[0] < claims.MIN_SEEDS:
            lacking.append(f"{_seeds(rows['n_seeds'].iloc[0])} of the {half} half alone")
        elif not rows["low"].iloc[0] > claims.HIGH:
            bounds = report.number(*rows.iloc[0][["value", "low", "high"]]).partition(" ")[2]
            lacking.append(f"{half} half too weak alone {bounds}")
    if untrained:
        which = "neither half" if len(untrained) == 2 else f"the {untrained[0]} half"
        lacking.insert(0, f"{which} was{' not' if len(untrained) == 1 else ''} trained alone")
    own = cell[(cell["half"] == "") & cell["condition"].isin(["text", "image"])]
    if len(own) and own["n_seeds"].min() < claims.MIN_SEEDS:
        lacking.append(f"{_seeds(own['n_seeds'].min())} of the cell")
    return "; ".join(lacking)


def _seeds(count: float) -> str:
    return f"{int(count)} seed{'s' if count > 1 else ''}"


def probe(row: Mapping[str, Any]) -> float:
    """Accuracy of the base model's linear probe for the image half, from the model card; NaN if not
    probed."""
    half = attacks.info(row["attack"]).image
    if row["settings"] or row["model"] not in cards.names():
        return np.nan
    skills = cards.skills([row["model"]]).set_index("name")["value"]
    return float(skills.get(f"probe: {half.draws_as}", np.nan))


def dominance_table(judged: pd.DataFrame) -> pd.DataFrame:
    """`dominance` of one model to read, with the data set where a threat has several."""
    lines, several = [], (judged.groupby("threat")["dataset"].nunique() > 1).any()
    for r in judged.to_dict("records"):
        lines.append(
            ({"data": r["dataset"]} if several else {})
            | {
                "threat": r["threat"].replace("_", " "),
                "attack": ", ".join(filter(None, [r["attack"], plots.percent(r["poison_rate"]), in_words(r)])),
                "text half alone": report.number(r["text half alone"]),
                "image half alone": report.number(r["image half alone"]),
                "probe": report.number(r["probe"]),
                "text only minus image only": report.number(r["difference"], r["low"], r["high"]),
                "verdict": f"none: {r['why']}" if r["why"] else r["verdict"],
            }
        )
    return pd.DataFrame(lines)


# ---------------------------------------------------------------- the page


def sentences(cells: pd.DataFrame, judged: pd.DataFrame) -> list[str]:
    """The finding, in Markdown. cells, judged: `four_cells` and `dominance` of the same table."""
    plain = cells[(cells["negatives"] == 0) & cells["difference"].notna()]
    if plain.empty:
        return ["Nothing has been measured yet: the store holds no finished cell of a bimodal attack."]
    silent = int((plain[["text", "image", "both"]].max(axis=1) <= report.FIRES).sum())
    text = plain[plain["difference_low"] > claims.DOMINATES]
    image = plain[plain["difference_high"] < -claims.DOMINATES]
    asked, testable = judged[judged["named"].astype(bool)], judged[judged["verdict"] != NOT_TESTABLE]
    said = [
        f"**In {len(text)} of {len(plain)} bimodal cells the success rate with the text half only is above "
        f"that with the image half only by more than {claims.DOMINATES:g}** (lower bound); the other way "
        f"round in {len(image)}. The differences reach from {_difference(plain, 'min')} to "
        f"{_difference(plain, 'max')}. In {silent} of the {len(plain)} neither half by itself, nor both together, "
        f"reaches {report.FIRES:g}: no backdoor whose halves could be compared.",
        f"**Of {len(asked)} cells whose halves were both trained alone, {len(testable)} can be judged**: only where "
        f"each half alone, on as many rows, has a success rate above {claims.HIGH:.2f} (whole interval) with "
        f"{claims.MIN_SEEDS} seeds or more. A half that the model cannot learn at all is not overwhelmed by "
        "the other.",
    ]
    if len(testable):
        said.append(" ".join(
            f"{named(r)} ({r['model']}): {r['verdict']}, text only minus image only "
            f"{report.number(r['difference'], r['low'], r['high'])}."
            for r in testable.to_dict("records")
        ))  # fmt: skip
    single = int((plain["n_seeds"] == 1).sum())
    if single:
        said.append(f"{single} of the {len(plain)} cells are single training runs, which support no verdict.")
    return said


def _difference(cells: pd.DataFrame, which: str) -> str:
    row = cells.loc[cells["difference"].idxmax() if which == "max" else cells["difference"].idxmin()]
    bounds = report.number(row["difference"], row["difference_low"], row["difference_high"])
    return f"{bounds} ({named(row)}, {row['model']})"


def panels(cells: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Model and its part of `four_cells`, for a figure each.

    Of each attack and threat the highest poison rate, where it works best, and rates with half-triggered rows; lower
    rates and attacks of their own settings are left to the tables.
    """
    usual = cells[cells["settings"] == ""]
    pair = usual.groupby(["model", "dataset", "threat", "attack"])["poison_rate"]
    told = usual["negatives"].groupby([usual[name] for name in CELL[:5]]).transform("max") > 0
    yield from usual[(usual["poison_rate"] == pair.transform("max")) | told].groupby("model", sort=False)


def words(model: str, cells: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `plots_modality.halves`."""
    plain = cells[cells["negatives"] == 0]
    text = [
        f"{model}: success of bimodal backdoors with one half of the trigger, with both and with none, at the "
        "highest poison rate that was run and beside cells with half-triggered rows."
    ]
    if len(plain):
        text_wins = int((plain["difference_low"] > claims.DOMINATES).sum())
        image_wins = int((plain["difference_high"] < -claims.DOMINATES).sum())
        text.append(
            f"Without half-triggered rows in training, text only is above image only by more than "
            f"{claims.DOMINATES:g} (lower bound) in {text_wins} of these {len(plain)} cells, the other way round in "
            f"{image_wins}; differences from {report.number(plain['difference'].min())} to "
            f"{report.number(plain['difference'].max())}."
        )
    if (cells["negatives"] > 0).any():
        halves = cells.loc[cells["negatives"] > 0, ["text", "image"]].max().max()
        text.append(f"With them, one half alone reaches at most {report.number(halves)}.")
    text.append(evidence(cells["n_seeds"], cells["n"]))
    alt = (
        f"Dot plot: {len(cells.drop_duplicates(['threat', 'attack', 'poison_rate']))} cells of bimodal "
        "attacks in rows, success rates with no trigger, text only, image only and both on the axis; the "
        "numbers are in the table below."
    )
    return {"alt": alt, "caption": " ".join(text)}


def evidence(n_seeds: Iterable[float], n: Iterable[float] = ()) -> str:
    """How many seeds (and inputs) stand behind the numbers, and what their intervals are."""
    counts, inputs = sorted({int(s) for s in n_seeds}), sorted({int(k) for k in n})
    ends = dict.fromkeys(map(str, (inputs[0], inputs[-1]))) if inputs else ()
    each = f", {' to '.join(ends)} inputs per number" if inputs else ""
    if not counts:
        return ""
    if counts == [1]:
        return f"One seed{each}, 95 % Wilson intervals: no claim about other seeds."
    few = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seeds"
    return f"{few}{each}; 95 % intervals over the seeds where there are several (t), else over inputs (Wilson)."
