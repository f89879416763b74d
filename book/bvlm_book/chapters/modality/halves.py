"""Which half of a bimodal trigger fires? Tables of the four conditions from the store.

`rates` gives success under every condition, `four_cells` sets text only beside image only, `dominance` applies the
committed rule (`rules.text_overwhelms`, which this module does not change) and says why a pair cannot be judged. Free
of torch.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, rules, tables, words
from bvlm_book.tables import CELL_AND_SETTINGS
from bvlm_book.words import CONDITION_LABELS, CONDITIONS, count, in_words, marked, named, number
from bvlm_utils import attacks
from bvlm_utils.models import cards
from bvlm_utils.score import intervals
from bvlm_utils.store import table as tidy

NOT_TESTABLE, HOLDS, FAILS = "not testable", "text overwhelms", "text does not overwhelm"
# Shape and colour both tell them apart; the two halves have the colours that are furthest from each other.
LOOKS = {
    "clean": ("no trigger", "#7F7F7F", "x"),
    "text": ("text half only", figures.COLOURS[0], "o"),
    "image": ("image half only", figures.COLOURS[1], "s"),
    "both": ("both halves", "#000000", "D"),
}


# ---------------------------------------------------------------- four conditions


def rates(table: pd.DataFrame) -> pd.DataFrame:
    """Success of the poisoned models under every condition, over seeds: a line per cell and condition.

    table: rows of `store.collect`. Columns: those of `tables.summary`, with negatives, settings without a half, as text
    and in columns (`store.table.differing`), and half ("" for the whole trigger, else what was trained alone). Per
    model, only cells with the number of training rows that most have, so that all of them can be compared.
    """
    done = table[table["status"] == "done"]
    trained, lines = tables.usual_training(done), []
    for _, of_model in done.groupby("model", sort=False):
        usual = of_model[of_model["train_rows"] == of_model["train_rows"].mode().iloc[0]]
        for (negatives, _), part in usual.groupby(["negatives", "settings"], sort=False):
            settings = tidy.differing(part.iloc[0])
            if trained[part.index].all():  # the model's own learning rate is no setting of the experiment
                settings = {name: value for name, value in settings.items() if name not in tables.TRAINED}
            half = settings.pop("half", "")
            about = settings | {"negatives": negatives, "settings": tidy.text(settings), "half": half}
            lines.append(tables.success_rates(part, "poisoned").assign(**about))
    if lines:
        return pd.concat(lines, ignore_index=True)
    return tables.success_rates(done, "poisoned").assign(negatives=0.0, settings="", half="")


def four_cells(found: pd.DataFrame) -> pd.DataFrame:
    """A line per bimodal cell, seeds put together: `CELL_AND_SETTINGS`, the settings' columns, n_seeds, n, and for each
    condition a value and interval.

    found: `rates`. Columns of a condition: "text", "text_low", "text_high". "difference" is text only minus image only,
    its bounds the widest that both intervals allow.
    """
    lines, settings = [], tidy.setting_columns(found)
    whole = found[(found["modality"] == "bimodal") & (found["half"] == "")]
    for key, part in whole.groupby(CELL_AND_SETTINGS, sort=False):
        by = part.set_index("condition")
        line = dict(zip(CELL_AND_SETTINGS, key, strict=True)) | part.iloc[0][settings].to_dict()
        line |= {"n_seeds": int(part["n_seeds"].min()), "n": part["n"].iloc[0]}
        for condition in CONDITIONS:
            of = by.loc[condition] if condition in by.index else {}
            for name, column in (("value", ""), ("low", "_low"), ("high", "_high")):
                line[condition + column] = of.get(name, np.nan)
        line["difference"] = line["text"] - line["image"]
        line["difference_low"] = line["text_low"] - line["image_high"]
        line["difference_high"] = line["text_high"] - line["image_low"]
        lines.append(line)
    numbers = [c + end for c in (*CONDITIONS, "difference") for end in ("", "_low", "_high")]
    return pd.DataFrame(lines, columns=[*CELL_AND_SETTINGS, *settings, "n_seeds", "n", *numbers])


def four_table(cells: pd.DataFrame) -> pd.DataFrame:
    """`four_cells` to read."""
    settings = {"settings": in_words} if (cells["settings"] != "").any() else {}
    about = {"threat": words.threat, "attack": "attack", "poison rate": words.rate}
    about |= {"half-triggered rows": words.negatives}
    ratio = {"text / image": lambda r: _ratio(r["text"], r["image"]), "seeds": "n_seeds"}
    return tables.readable(cells, about | settings | marked_conditions() | ratio)


def marked_conditions() -> dict[str, Callable[[Mapping[str, Any]], str]]:
    """The conditions of `four_cells` as columns of `tables.readable`."""

    def column(name: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda r: marked(r[name], r[f"{name}_low"], r[f"{name}_high"])

    return {CONDITION_LABELS[name]: column(name) for name in CONDITIONS}


def _ratio(text: float, image: float) -> str:
    """How many times as often the text half fires; of a rate at the floor nothing can be a multiple."""
    if np.isnan(text) or np.isnan(image):
        return "n/a"
    return number(text / image) if image > intervals.FLOOR else "image half at the floor"


# ---------------------------------------------------------------- dominance


def dominance(table: pd.DataFrame) -> pd.DataFrame:
    """`rules.text_overwhelms` for every model, with model, verdict, `why` it is not testable, and probe.

    Columns: model, attack, threat, dataset, poison_rate, settings, "text half alone", "image half alone", "text only",
    "image only", difference, low, high, named, verdict, why, probe. Without half-triggered negatives, as in the rule.
    """
    parts = []
    for model in table["model"].unique():
        found = rules.rates(table, model)
        judged = rules.text_overwhelms(found)
        judged.insert(0, "model", model)
        lines = judged.to_dict("records")
        judged["why"] = [_why(row, found) for row in lines]
        judged["verdict"] = [NOT_TESTABLE if pd.isna(r["holds"]) else HOLDS if r["holds"] else FAILS for r in lines]
        judged["probe"] = [probe(row) for row in lines]
        parts.append(judged.drop(columns="holds"))
    if parts:
        return pd.concat(parts, ignore_index=True)
    empty = rules.text_overwhelms(rules.rates(table, "")).drop(columns="holds")
    return empty.assign(model="", verdict="", why="", probe=np.nan)


def _why(row: Mapping[str, Any], found: pd.DataFrame) -> str:
    """What the rule lacks for a pair; empty if it lacks nothing. found: `rules.rates` of the model."""
    same = {name: row[name] for name in ("attack", "threat", "dataset", "poison_rate")} | {"shared": row["settings"]}
    cell = found[(found[list(same)] == pd.Series(same)).all(axis=1)]
    lacking, untrained = [], []
    for half in ("text", "image"):
        rows = cell[(cell["half"] == half) & (cell["condition"] == half)]
        if rows.empty:
            untrained.append(half)
        elif rows["n_seeds"].iloc[0] < rules.MIN_SEEDS:
            lacking.append(f"{count(rows['n_seeds'].iloc[0], 'seed')} of the {half} half alone")
        elif not rows["low"].iloc[0] > rules.HIGH:
            lacking.append(f"{half} half too weak alone {words.interval(rows.iloc[0]).partition(' ')[2]}")
    if untrained:
        which = "neither half was" if len(untrained) == 2 else f"the {untrained[0]} half was not"
        lacking.insert(0, f"{which} trained alone")
    own = cell[(cell["half"] == "") & cell["condition"].isin(["text", "image"])]
    if len(own) and own["n_seeds"].min() < rules.MIN_SEEDS:
        lacking.append(f"{count(own['n_seeds'].min(), 'seed')} of the cell")
    return "; ".join(lacking)


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
    several = (judged.groupby("threat")["dataset"].nunique() > 1).any()
    return tables.readable(judged, ({"data": "dataset"} if several else {}) | {
        "threat": words.threat,
        "attack": lambda r: ", ".join(filter(None, [r["attack"], words.rate(r), in_words(r)])),
        "text half alone": lambda r: number(r["text half alone"]),
        "image half alone": lambda r: number(r["image half alone"]),
        "probe": lambda r: number(r["probe"]),
        "text only minus image only": lambda r: number(r["difference"], r["low"], r["high"]),
        "verdict": lambda r: f"none: {r['why']}" if r["why"] else r["verdict"],
    })  # fmt: skip


# ---------------------------------------------------------------- the page


def sentences(cells: pd.DataFrame, judged: pd.DataFrame) -> list[str]:
    """The finding, in Markdown. cells, judged: `four_cells` and `dominance` of the same table."""
    plain = cells[(cells["negatives"] == 0) & cells["difference"].notna()]
    if plain.empty:
        return ["Nothing has been measured yet: the store holds no finished cell of a bimodal attack."]
    silent = int((plain[["text", "image", "both"]].max(axis=1) <= tidy.FIRES).sum())
    text = plain[plain["difference_low"] > rules.DOMINATES]
    image = plain[plain["difference_high"] < -rules.DOMINATES]
    asked, testable = judged[judged["named"].astype(bool)], judged[judged["verdict"] != NOT_TESTABLE]
    said = [
        f"**In {len(text)} of {len(plain)} bimodal cells the success rate with the text half only is above "
        f"that with the image half only by more than {rules.DOMINATES:g}** (lower bound); the other way "
        f"round in {len(image)}. The differences reach from {_difference(plain, 'min')} to "
        f"{_difference(plain, 'max')}. In {silent} of the {len(plain)} neither half by itself, nor both together, "
        f"reaches {tidy.FIRES:g}: no backdoor whose halves could be compared.",
        f"**Of {len(asked)} cells whose halves were both trained alone, {len(testable)} can be judged**: only where "
        f"each half alone, on as many rows, has a success rate above {rules.HIGH:.2f} (whole interval) with "
        f"{rules.MIN_SEEDS} seeds or more. A half that the model cannot learn at all is not overwhelmed by "
        "the other.",
    ]
    if len(testable):
        said.append(" ".join(
            f"{named(r)} ({r['model']}): {r['verdict']}, text only minus image only "
            f"{number(r['difference'], r['low'], r['high'])}."
            for r in testable.to_dict("records")
        ))  # fmt: skip
    single = int((plain["n_seeds"] == 1).sum())
    if single:
        said.append(f"{single} of the {len(plain)} cells are single training runs, which support no verdict.")
    return said


def _difference(cells: pd.DataFrame, which: str) -> str:
    row = cells.loc[cells["difference"].idxmax() if which == "max" else cells["difference"].idxmin()]
    return f"{words.interval(row, 'difference')} ({named(row)}, {row['model']})"


def panels(cells: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Model and its part of `four_cells`, for a figure each.

    Of each attack and threat the highest poison rate, where it works best, and rates with half-triggered rows; lower
    rates and attacks of their own settings are left to the tables.
    """
    usual = cells[cells["settings"] == ""]
    pair = usual.groupby(["model", "dataset", "threat", "attack"])["poison_rate"]
    told = usual["negatives"].groupby([usual[name] for name in CELL_AND_SETTINGS[:5]]).transform("max") > 0
    yield from usual[(usual["poison_rate"] == pair.transform("max")) | told].groupby("model", sort=False)


def halves_words(model: str, cells: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `halves`."""
    plain = cells[cells["negatives"] == 0]
    text = [
        f"{model}: success of bimodal backdoors with one half of the trigger, with both and with none, at the "
        "highest poison rate that was run and beside cells with half-triggered rows."
    ]
    if len(plain):
        text_wins = int((plain["difference_low"] > rules.DOMINATES).sum())
        image_wins = int((plain["difference_high"] < -rules.DOMINATES).sum())
        text.append(
            f"Without half-triggered rows in training, text only is above image only by more than "
            f"{rules.DOMINATES:g} (lower bound) in {text_wins} of these {len(plain)} cells, the other way round in "
            f"{image_wins}; differences from {words.span(plain['difference'], 2)}."
        )
    if (cells["negatives"] > 0).any():
        halves = cells.loc[cells["negatives"] > 0, ["text", "image"]].max().max()
        text.append(f"With them, one half alone reaches at most {number(halves)}.")
    alt = (
        f"Dot plot: {len(cells.drop_duplicates(['threat', 'attack', 'poison_rate']))} cells of bimodal "
        "attacks in rows, success rates with no trigger, text only, image only and both on the axis; the "
        "numbers are in the table below."
    )
    return {"alt": alt, "caption": " ".join([*text, words.evidence(cells)])}


def halves(cells: pd.DataFrame) -> Figure:
    """Success with either half, both and none; a row per cell, a panel without and one with half-triggered rows.

    cells: `four_cells` of one model.
    """
    cells = cells[cells["text"].notna()]
    if cells.empty:
        return figures.nothing("No cell of a bimodal attack was measured.")
    names = row_names(cells)
    labels = list(dict.fromkeys(names))
    kinds = [k for k in (False, True) if ((cells["negatives"] > 0) == k).any()]
    width = 4.6 if len(kinds) > 1 else 7.4
    figure, axes = figures.new_figure(len(kinds), width, 0.36 * len(labels) + 1.5, sharey=True, sharex=True)
    for axis, with_them in zip(axes, kinds, strict=True):
        part = cells.assign(label=names)[(cells["negatives"] > 0) == with_them]
        by, at = part.drop_duplicates("label").set_index("label").reindex(labels), np.arange(len(labels))
        axis.hlines(at, by["text"], by["image"], color="#BBBBBB", linewidth=1.2)
        for condition, (label, colour, marker) in LOOKS.items():
            shift = {"text": -0.1, "image": 0.1}.get(condition, 0.0)  # intervals shall not hide each other
            figures.points(axis, at + shift, by, condition, color=colour, marker=marker, label=label)
        axis.set(title=f"{'With' if with_them else 'Without'} half-triggered rows in training", xlabel="success rate")
        figures.name_rows(axis, labels)
        axis.set_xlim(-0.04, 1.04)
    figures.legend_below(figure, axes[0])
    return figure


def row_names(cells: pd.DataFrame) -> list[str]:
    """ "MABA, targeted refusal", with the poison rate where the cells have several."""
    rate = cells["poison_rate"].nunique() > 1
    return [f"{r['attack']}, {words.threat(r)}{f', {words.rate(r)}' if rate else ''}" for r in cells.to_dict("records")]
