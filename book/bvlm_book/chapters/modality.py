"""The chapter "Which modality wins?": which part of a bimodal trigger works, alone and beside the other. Free of torch.

`rates` gives success under every condition, `four_cells` sets the text part alone beside the image part alone,
`learned_alone` a part beside itself learnt alone, `half_triggered` training with half-triggered rows beside training
without. `patches` sets success against the side of the noise patch, `places` splits inputs by where the word stands.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bvlm_book import figures, tables, words
from bvlm_book.probes import records
from bvlm_book.rules import DOMINATES, HIGH
from bvlm_book.tables import CELL_AND_SETTINGS
from bvlm_utils import attacks
from bvlm_utils.data.pictures import PUBLISHED_SIDE
from bvlm_utils.score import intervals
from bvlm_utils.store import table as tidy

PARTS = ("text", "image")
TITLES = {"clean": "no trigger", "text": "text alone", "image": "picture alone", "both": "both"}
LOSS = 0.1  # what counts as a loss: the whole interval of the difference lies below -LOSS
COLUMNS = [
    "model", "threat", "attack", "poison_rate", "settings", "half", "alone", "alone_low", "alone_high", "beside",
    "beside_low", "beside_high", "difference", "low", "high", "n_seeds", "n",
]  # fmt: skip
TWIN = [*(name for name in tidy.TOLD_APART if name != "negatives"), "test_rows"]
CLEARED = 0.1  # a part is taught away: with half-triggered rows it succeeds on at most this share
PATCH = "attack.patch_size"
POINT = ["model", "dataset", "threat", "attack", "poison_rate"]
PANEL = ["model", "threat", "poison_rate"]
PLACES = FIRST, BETWEEN, LAST = "before the question", "inside it", "after it"
CURVES = (
    ("BadNets-I, trained alone", "BadNets-I", "image"),
    ("BadNets-MM, text alone", "BadNets-MM", "text"),
    ("BadNets-MM, picture alone", "BadNets-MM", "image"),
)


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
    """A line per bimodal experiment, seeds put together: `CELL_AND_SETTINGS`, n_seeds, and for each condition a value
    and interval.

    found: `rates`. Columns of a condition: "text", "text_low", "text_high". "difference" is text alone minus image
    alone, its bounds the widest that both intervals allow.
    """
    whole = found[(found["modality"] == "bimodal") & (found["half"] == "")]
    numbers = ["value", "low", "high"]
    by = whole.pivot_table(index=CELL_AND_SETTINGS, columns="condition", values=numbers, aggfunc="first", sort=False)
    cells = pd.DataFrame({
        condition + end: by.get((name, condition), np.nan)
        for condition in words.CONDITIONS for name, end in zip(numbers, ("", "_low", "_high"), strict=True)
    }, index=by.index)  # fmt: skip
    cells["n_seeds"] = whole.groupby(CELL_AND_SETTINGS, sort=False)["n_seeds"].min()
    cells["difference"] = cells["text"] - cells["image"]
    cells["difference_low"] = cells["text_low"] - cells["image_high"]
    cells["difference_high"] = cells["text_high"] - cells["image_low"]
    return cells.reset_index()


def plain(cells: pd.DataFrame) -> pd.DataFrame:
    """The lines of `four_cells` of attacks as they are defined, without half-triggered rows, at the highest rate."""
    usual = cells[(cells["settings"] == "") & (cells["negatives"] == 0) & cells["difference"].notna()]
    return usual[usual["poison_rate"] == usual["poison_rate"].max()]


def four_table(cells: pd.DataFrame) -> pd.DataFrame:
    """A line per model and attack: success under each condition, mean over threats, and which part leads how often."""
    lines = []
    for (model, attack), part in plain(cells).groupby(["model", "attack"], sort=False):
        text, image = part["difference"] > DOMINATES, part["difference"] < -DOMINATES
        lines.append(
            {"model": model, "attack": attack, "threats": len(part)}
            | {TITLES[name]: words.number(part[name].mean()) for name in words.CONDITIONS}
            | {"text leads": int(text.sum()), "picture leads": int(image.sum())}
        )
    return pd.DataFrame(lines)


# ---------------------------------------------------------------- what one part takes from the other


def learned_alone(rates: pd.DataFrame) -> pd.DataFrame:
    """A line per cell and half that was trained both ways, see `COLUMNS`, and the settings in columns.

    rates: `rates`. alone: success of the half learnt alone, shown alone; beside: of the half
    learnt beside the other, shown alone. difference: beside minus alone; its bounds are the widest that both intervals
    allow. Cells without half-triggered negatives only. n_seeds, n: the smaller of both.
    """
    plain = rates[(rates["negatives"] == 0) & (rates["modality"] == "bimodal")]
    lines, settings = [], [name for name in tidy.setting_columns(rates) if name != "half"]
    # not across data sets, though the lines do not name theirs
    for (*key, _), part in plain.groupby([*COLUMNS[:5], "dataset"], sort=False):
        for half in PARTS:
            of = part[part["condition"] == half]
            alone, beside = of[of["half"] == half], of[of["half"] == ""]
            if alone.empty or beside.empty:
                continue
            lines.append([*key, half, *_pair(alone.iloc[0], beside.iloc[0]), *beside.iloc[0][settings]])
    return pd.DataFrame(lines, columns=[*COLUMNS, *settings])


def _pair(alone: pd.Series, beside: pd.Series) -> list[Any]:
    difference = beside["value"] - alone["value"]
    bounds = (beside["low"] - alone["high"], beside["high"] - alone["low"])
    smaller = [int(min(alone[name], beside[name])) for name in ("n_seeds", "n")]
    numbers = [one[name] for one in (alone, beside) for name in ("value", "low", "high")]
    return [*numbers, difference, *bounds, *smaller]


def scatter(found: pd.DataFrame) -> pd.DataFrame:
    """`learned_alone` for `figures.scatter`: a dot per part."""
    return found.assign(group=found["half"].map({"text": "text part", "image": "picture part"}), label="")


# ---------------------------------------------------------------- half-triggered rows


def half_triggered(table: pd.DataFrame, place: str | Path | None = None) -> pd.DataFrame:
    """Cells with half-triggered rows minus the same cell and seed without: a line per cell and condition.

    table: rows of `store.collect`. Columns: `TWIN`, negatives, condition, without, with, value (with - without), low,
    high (paired on the same inputs), n. Cells without a twin, or without responses, are left out.
    """
    cells, found = tables.finished_cells(table), []
    cells = cells[cells["modality"] == "bimodal"]
    pairs = cells[cells["negatives"] > 0].merge(cells[cells["negatives"] == 0], on=TWIN, suffixes=("", "_without"))
    for pair in pairs.to_dict("records"):
        names = pair["run_id"], pair["run_id_without"]
        sides = [tables.held(name, pair["headline"], "poisoned", place) for name in names]
        if any(side is None for side in sides):
            continue
        for condition in (*PARTS, "both"):
            numbers = tables.difference(*sides, condition)
            if numbers:
                numbers["with"], numbers["without"] = numbers.pop("ours"), numbers.pop("theirs")
                found.append({n: pair[n] for n in [*TWIN, "negatives"]} | {"condition": condition} | numbers)
    columns = [*TWIN, "negatives", "condition", "without", "with", "value", "low", "high", "n"]
    return pd.DataFrame(found, columns=columns)


# ---------------------------------------------------------------- what else it may be


def patches(found: pd.DataFrame) -> pd.DataFrame:
    """Success against the side of the noise patch, without half-triggered rows.

    found: `rates`. A line per model, threat, rate, patch and curve: `pixels` (of 336), `share` of the side, curve
    (see `CURVES`), value, low, high, n_seeds. Empty where fewer than two sizes were run.
    """
    rows = found[(found["negatives"] == 0) & (found["half"] == "")]
    apart = [set(tidy.differing(row)) <= {PATCH} for row in rows.to_dict("records")]
    rows = rows[pd.Series(apart, index=rows.index, dtype=bool)]
    lines = []
    for curve, attack, condition in CURVES:
        for r in rows[(rows["attack"] == attack) & (rows["condition"] == condition)].to_dict("records"):
            pixels = tidy.differing(r).get(PATCH, attacks.info(attack).defaults["patch_size"])
            lines.append(r | {"pixels": pixels, "share": pixels / PUBLISHED_SIDE, "curve": curve})
    table = pd.DataFrame(lines, columns=[*PANEL, "pixels", "share", "curve", "value", "low", "high", "n_seeds"])
    return table[table.groupby(PANEL)["pixels"].transform("nunique") > 1].reset_index(drop=True)


def patches_figure(found: pd.DataFrame) -> Figure:
    """Success against the side of the patch, a panel per model, threat and rate; found: `patches`."""
    if found.empty:
        return figures.nothing("Nothing was run with more than one patch size.")
    groups = list(found.groupby(PANEL, sort=False))
    figure, axes = figures.new_figure(len(groups), 4.2 if len(groups) > 1 else 6.4, 3.4, sharey=True)
    for axis, (_, part) in zip(axes, groups, strict=True):
        for i, curve in enumerate(found["curve"].unique()):
            line = part[part["curve"] == curve].sort_values("share")
            at = 100 * line["share"] * 1.02 ** (i - 1)  # pulled apart where they lie on each other
            figures.points(axis, at, line, upright=True, linestyle="-", label=curve, **figures.look(i))
        shares = sorted({100 * share for share in part["share"]})
        axis.set_xscale("log")
        axis.set_xticks(shares, [f"{share:.0f} %" for share in shares])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set(ylim=(-0.03, 1.03), title=part["model"].iloc[0], xlabel="side of the patch, of the picture's")
    axes[0].set_ylabel("success rate")
    figures.legend_below(figure, axes[0], None if len(groups) > 1 else 1)  # one panel is too narrow for a row of names
    return figure


def places(table: pd.DataFrame, place: str | Path | None = None) -> pd.DataFrame:
    """Success with the text half only, by where its word stands in the prompt; from the stored responses.

    Attacks that put one word at a random place, without half-triggered rows; per model, cells with the number of
    training rows that most have. A line per cell (seeds put together) and place: `POINT`, where, value, low, high, n
    (inputs of the first seed), n_seeds. Cells whose responses are not stored are left out.
    """
    whole = tables.usual(table)
    whole = whole[whole["modality"] == "bimodal"]
    usual = whole.groupby("model")["train_rows"].transform(lambda rows: rows.mode().iloc[0])
    whole, lines = whole[whole["train_rows"] == usual], []
    whole = whole.assign(headline=tidy.headline_metric(whole))
    for r in whole.drop_duplicates("run_id").to_dict("records"):
        half = attacks.info(r["attack"]).text
        said = tables.held(r["run_id"], r["headline"], "poisoned", place) if "word" in half.params else None
        if said is None:
            continue
        said = said[said["condition"] == "text"]
        where = said["prompt"].map(lambda prompt, word=half.params["word"].default: place_of(word, prompt))
        for name in PLACES:
            chosen = said["held"][where == name]
            if len(chosen):
                low, high = intervals.wilson(int(chosen.sum()), len(chosen))
                numbers = {"value": chosen.mean(), "low": low, "high": high, "n": len(chosen)}
                lines.append({n: r[n] for n in (*POINT, "seed")} | {"where": name} | numbers)
    found = pd.DataFrame(lines, columns=[*POINT, "seed", "where", "value", "low", "high", "n"])
    return records.seeds_together(found, [*POINT, "where"], bounds=lambda line: (0.0, 1.0))


def place_of(word: str, prompt: str) -> str:
    """Is the word the prompt's first, its last (punctuation aside), or neither?"""
    found = [part.strip(".?!,") for part in prompt.split()]
    if word not in found:
        return ""
    return FIRST if found[0] == word else LAST if found[-1] == word else BETWEEN


# ---------------------------------------------------------------- numbers that the page quotes


def numbers(cells: pd.DataFrame, lost: pd.DataFrame) -> dict[str, str]:
    """cells, lost: `four_cells` and `learned_alone` of the same rates."""
    shown = plain(cells)
    found = {
        "learnable": "n/a",
        "text_leads": f"{int((shown['difference'] > DOMINATES).sum())} of {len(shown)}",
        "image_leads": f"{int((shown['difference'] < -DOMINATES).sum())}",
        "text_surely": f"{int((shown['difference_low'] > DOMINATES).sum())}",
    }
    key = ["model", "threat", "attack", "poison_rate", "settings"]
    both = lost.pivot_table(index=key, columns="half", values=["alone", "beside"], aggfunc="first")
    if len(both):
        able = both[(both["alone"] >= HIGH).all(axis=1)]["beside"]
        lead = able["text"] - able["image"] > DOMINATES
        found["learnable"] = f"{int(lead.sum())} of {len(able)}"
    for part in PARTS:
        able = lost[(lost["half"] == part) & (lost["alone"] > tidy.FIRES)]
        found[f"{part}_lost"] = f"{int((able['high'] < -LOSS).sum())} of {len(able)}"
        stops = able["beside"] <= tidy.FIRES
        found[f"{part}_stops"] = f"{int(stops.sum())} of {len(able)}"
    return found


def taught(told: pd.DataFrame) -> dict[str, str]:
    """What half-triggered rows do to the triggers that work without them. told: `half_triggered`."""
    by = told.pivot_table(index=[*TWIN, "negatives"], columns="condition", values=["with", "without"], sort=False)
    if by.empty:
        return dict.fromkeys(("worked", "need_both", "one_part", "whole_lost"), "none")
    by = by[by["without", "both"] > tidy.FIRES]
    part, whole = by["with"].drop(columns="both").max(axis=1), by["with", "both"]
    worked = told[(told["condition"] == "both") & (told["without"] > tidy.FIRES)]
    return {
        "worked": str(len(by)),
        "need_both": f"{int(((part <= CLEARED) & (whole > tidy.FIRES)).sum())} of {len(by)}",
        "one_part": str(int(((whole - part).abs() <= CLEARED).sum())),
        "whole_lost": f"{int((worked['high'] < 0).sum())} of {len(worked)}",
    }


def where_it_works(places: pd.DataFrame) -> dict[str, str]:
    """Of the experiments whose word works at one place of the prompt, how many at all three. places: `places`."""
    by = places.pivot_table(index=POINT, columns="where", values="value", sort=False)
    by = by[(by > tidy.FIRES).any(axis=1)] > tidy.FIRES
    return {"all_places": f"{int(by.all(axis=1).sum())} of {len(by)}"}
