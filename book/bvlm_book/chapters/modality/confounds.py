"""Is it the modality, or only how its trigger was made? Patch size, word place and order.

`patches` sets success against the side of the noise patch, from cells of several sizes. `places` splits the inputs of
one cell by where the trigger's word stands, from the stored responses. `orders` sets cells whose picture comes after
the words beside those whose picture comes first. Free of torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bvlm_book import figures, rules, tables, words
from bvlm_book.chapters.modality.halves import marked_conditions
from bvlm_book.probes import records
from bvlm_book.tables import CELL_AND_SETTINGS
from bvlm_utils import attacks
from bvlm_utils.data.pictures import PUBLISHED_SIDE
from bvlm_utils.score import intervals
from bvlm_utils.store import table as tidy

PATCH = "attack.patch_size"
POINT = ["model", "dataset", "threat", "attack", "poison_rate"]
PANEL = ["model", "threat", "poison_rate"]
PLACES = FIRST, BETWEEN, LAST = "before the question", "inside it", "after it"
CURVES = (
    ("BadNets-I, trained alone", "BadNets-I", "image"),
    ("BadNets-MM, text only", "BadNets-MM", "text"),
    ("BadNets-MM, image only", "BadNets-MM", "image"),
)
ABOUT = {"model": "model", "threat": words.threat}  # the first columns of the tables


def patches(found: pd.DataFrame) -> pd.DataFrame:
    """Success against the side of the noise patch, without half-triggered rows.

    found: `rates`. A line per model, threat, rate, patch and curve: `pixels` (of 336), `share` of the side, curve
    ("BadNets-I, trained alone", "BadNets-MM, text only", "BadNets-MM, image only"), value, low, high, n_seeds. Empty
    where fewer than two sizes were run.
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


def patches_table(found: pd.DataFrame) -> pd.DataFrame:
    """`patches` to read: a line per patch, a column per curve."""
    cells = tables.beside(found, [*PANEL, "pixels"], "curve").sort_values([*PANEL, "pixels"])
    side = {"poison rate": words.rate}
    side |= {"side of the patch": lambda r: f"{r['pixels']} of {PUBLISHED_SIDE} pixels ({_share(r['pixels'])})"}
    curves = {curve: curve for curve in found["curve"].unique()}
    return tables.readable(cells, ABOUT | side | curves | {"seeds": "seeds"})


def _share(pixels: float) -> str:
    return f"{100 * pixels / PUBLISHED_SIDE:.0f} %"


def patches_sentences(found: pd.DataFrame) -> list[str]:
    """With which patches which half of BadNets-MM fires, in Markdown: by more than `rules.DOMINATES` in the means."""
    said = []
    for _, part in found.groupby(PANEL, sort=False):
        by = part.pivot_table(index="pixels", columns="curve", values="value", aggfunc="first")
        if not {"BadNets-MM, text only", "BadNets-MM, image only"} <= set(by.columns):
            continue
        difference = (by["BadNets-MM, text only"] - by["BadNets-MM, image only"]).dropna()
        text, image = difference[difference > rules.DOMINATES], difference[difference < -rules.DOMINATES]
        parts = [
            f"the {half} half does the work with patches of {', '.join(map(_share, rows.index))} of the side"
            for half, rows in (("text", text), ("image", image))
            if len(rows)
        ]
        if parts:
            turned = " So here the size of the patch decides which half wins." if len(parts) > 1 else ""
            said.append(f"**BadNets-MM ({_where(part)}): {'; '.join(parts)}.**{turned}")
    return said


def _where(part: pd.DataFrame) -> str:
    first = part.iloc[0]
    return f"{words.threat(first)}, {words.rate(first)}, {first['model']}"


def patches_words(found: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `patches_figure`."""
    if found.empty:
        return words.nothing_measured("Success against the side of the noise patch")
    text = ["Success against the side of the noise patch, as a share of the picture's side (log axis)."]
    for (*_, curve), line in found.groupby([*PANEL, "curve"], sort=False):
        ends = line.sort_values("share").iloc[[0, -1]].to_dict("records")
        if len(line) > 1:
            told = ", ".join(f"{words.number(r['value'])} at {_share(r['pixels'])}" for r in ends)
            text.append(f"{curve} ({_where(line)}): {told}.")
    curves, sizes = found["curve"].nunique(), found["pixels"].nunique()
    alt = f"Line chart with intervals: {curves} curves, {sizes} patch sizes; numbers in the table below."
    return {"alt": alt, "caption": " ".join([*text, words.evidence(found)])}


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


def places_sentences(found: pd.DataFrame) -> list[str]:
    """Does it matter where the word stands? In Markdown, of the cells whose text half fires at one place at least."""
    by = found.pivot_table(index=POINT, columns="where", values="value", sort=False)
    by = by[(by > tidy.FIRES).any(axis=1)]
    if by.empty:
        return []
    fires, gaps = by > tidy.FIRES, by.max(axis=1) - by.min(axis=1)
    widest = dict(zip(POINT, gaps.idxmax(), strict=True))
    at = by.loc[gaps.idxmax()]
    lacking = {place: int((~fires[place]).sum()) for place in fires}
    missed = ", ".join(f"{count} with the word {place}" for place, count in lacking.items() if count)
    return [
        f"**Of {len(fires)} cells whose text half fires on more than half of the inputs at one of the three places, "
        f"{int(fires.all(axis=1).sum())} do so at all three.**"
        + (f" The others miss it: {missed}." if missed else "")
        + f" The widest gap: {widest['attack']}, {words.threat(widest)}, {words.rate(widest)}, {widest['model']}, with "
        + ", ".join(f"{words.number(at.get(place))} {place}" for place in PLACES)
        + "."
    ]


def places_table(found: pd.DataFrame) -> pd.DataFrame:
    """`places` to read: a line per cell, a column per place."""

    def write(r: Mapping[str, Any]) -> str:
        return words.interval(r) + (f" (n = {r['n']})" if r else "")

    cells = tables.beside(found, POINT, "where", PLACES, write)
    about = ABOUT | {"attack": "attack", "poison rate": words.rate}
    return tables.readable(cells, about | {name: name for name in (*PLACES, "seeds")})


def shared_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `store.collect` of cells that were run with the same seed in both orders: a fair comparison."""
    cells = table.drop_duplicates("run_id").set_index("run_id")
    shared = {name: _order(row)[1] for name, row in cells.to_dict("index").items()}
    key = [table[name] for name in (*POINT, "negatives", "train_rows", "seed")] + [table["run_id"].map(shared)]
    return table[table["settings"].groupby(key).transform("nunique") == 2]


def _order(row: Mapping[str, Any]) -> tuple[str, str]:
    """Where the picture of a cell stands, and its other settings as text."""
    settings = tidy.differing(row)
    last = settings.pop("picture_last", False)
    return "picture last" if last else "picture first", tidy.text(settings)


def orders(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells whose picture comes after the words, each with the same cell whose picture comes first.

    cells: `chapters.modality.halves.four_cells` of `shared_seeds`. Its lines in pairs, with the settings that both
    share, and `order`: "picture first" or "picture last". Cells without their other one are left out.
    """
    found = [_order(row) for row in cells.to_dict("records")]
    both = cells.assign(order=[order for order, _ in found], settings=[shared for _, shared in found])
    both = both[both.groupby(CELL_AND_SETTINGS)["order"].transform("size") == 2]
    number = both.groupby(CELL_AND_SETTINGS, sort=False).ngroup()
    return both.assign(number=number).sort_values(["number", "order"]).drop(columns="number").reset_index(drop=True)


def _winner(difference: float) -> str:
    if abs(difference) <= rules.DOMINATES:
        return "neither half by itself"
    return "the text half" if difference > 0 else "the image half"


def orders_sentences(found: pd.DataFrame) -> list[str]:
    """Does the same half do the work in both orders? In Markdown; by more than `rules.DOMINATES` in the means."""
    if found.empty:
        return []
    wins = found.assign(wins=found["difference"].map(_winner)).pivot(
        index=CELL_AND_SETTINGS, columns="order", values="wins"
    )
    same = wins["picture first"] == wins["picture last"]
    said = [f"**Which half does the work is the same in both orders in {same.sum()} of {len(same)} cells.**"]
    for r in wins[~same].reset_index().to_dict("records"):
        what = f"{r['attack']} ({words.threat(r)}, {r['model']})"
        said.append(f"{what}: {r['picture first']} with the picture first, {r['picture last']} with it last.")
    return [" ".join(said)]


def orders_table(found: pd.DataFrame) -> pd.DataFrame:
    """`orders` to read: two lines per cell, a column per condition."""
    about = ABOUT | {"attack": "attack"} | ({"settings": "settings"} if (found["settings"] != "").any() else {})
    about |= {"poison rate": words.rate, "order": "order"}
    return tables.readable(found, about | marked_conditions() | {"seeds": "n_seeds"})


def patches_figure(found: pd.DataFrame) -> Figure:
    """Success against the side of the patch, a panel per model, threat and rate; found: `patches`."""
    if found.empty:
        return figures.nothing("No cell was run with more than one patch size.")
    groups = list(found.groupby(PANEL, sort=False))
    figure, axes = figures.new_figure(len(groups), 4.2 if len(groups) > 1 else 6.4, 3.4, sharey=True)
    for axis, (_, part) in zip(axes, groups, strict=True):
        for i, curve in enumerate(found["curve"].unique()):
            line = part[part["curve"] == curve].sort_values("share")
            at = 100 * line["share"] * 1.02 ** (i - 1)  # pulled apart where they lie on each other
            figures.points(axis, at, line, upright=True, linestyle="-", label=curve, **figures.look(i))
        sizes = sorted(part["pixels"].unique())
        axis.set_xscale("log")
        axis.set_xticks([100 * size / PUBLISHED_SIDE for size in sizes], [_share(size) for size in sizes])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set(ylim=(-0.03, 1.03), title=_where(part), xlabel="side of the patch")
    axes[0].set_ylabel("success rate")
    figures.legend_below(figure, axes[0], None if len(groups) > 1 else 1)  # one panel is too narrow for a row of names
    return figure
