"""Is it the modality, or only how its trigger was made? Patch size, word place and order, for the modality chapter.

`patches` sets success against the side of the noise patch, from cells of several sizes. `places` splits the
inputs of one cell by where the trigger's word stands, from the stored responses. `orders` sets cells whose
picture comes after the words beside those whose picture comes first. `triggers_table` is for the chapter on the
small patch. Free of torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bvlm_book import figures, rules, tables, words
from bvlm_book.tables import CELL_AND_SETTINGS
from bvlm_book.words import evidence_of_halves
from bvlm_utils import attacks
from bvlm_utils.data.pictures import PUBLISHED_SIDE
from bvlm_utils.score import intervals
from bvlm_utils.store import table as tidy

PATCH = "attack.patch_size"
POINT = ["model", "dataset", "threat", "attack", "poison_rate"]
FIRST, BETWEEN, LAST = "before the question", "inside it", "after it"


def patches(found: pd.DataFrame) -> pd.DataFrame:
    """Success against the side of the noise patch, without half-triggered rows.

    found: `rates`. A line per model, threat, rate, patch and curve: `pixels` (of 336), `share` of the side,
    curve ("BadNets-I, trained alone", "BadNets-MM, text only", "BadNets-MM, image only"), value, low, high,
    n_seeds. Empty where fewer than two sizes were run.
    """
    rows = found[(found["negatives"] == 0) & (found["half"] == "")]
    apart = [set(tidy.differing(row)) <= {PATCH} for row in rows.to_dict("records")]
    rows = rows[pd.Series(apart, index=rows.index, dtype=bool)]
    curves = [
        ("BadNets-I", "image", "BadNets-I, trained alone"),
        ("BadNets-MM", "text", "BadNets-MM, text only"),
        ("BadNets-MM", "image", "BadNets-MM, image only"),
    ]
    lines = []
    for attack, condition, curve in curves:
        for r in rows[(rows["attack"] == attack) & (rows["condition"] == condition)].to_dict("records"):
            pixels = tidy.differing(r).get(PATCH, attacks.info(attack).defaults["patch_size"])
            about = {n: r[n] for n in ("model", "threat", "poison_rate", "value", "low", "high", "n_seeds")}
            lines.append(about | {"pixels": pixels, "share": pixels / PUBLISHED_SIDE, "curve": curve})
    columns = ["model", "threat", "poison_rate", "pixels", "share", "curve", "value", "low", "high", "n_seeds"]
    table = pd.DataFrame(lines, columns=columns)
    kept = [p for _, p in table.groupby(columns[:3], sort=False) if p["pixels"].nunique() > 1]
    return pd.concat(kept, ignore_index=True) if kept else table.iloc[:0]


def patches_table(found: pd.DataFrame) -> pd.DataFrame:
    """`patches` to read: a line per patch, a column per curve."""
    lines = []
    for key, part in found.groupby(["model", "threat", "poison_rate", "pixels"], sort=True):
        by = part.set_index("curve")
        share = f"{100 * key[3] / PUBLISHED_SIDE:.0f} %"
        line = {
            "model": key[0],
            "threat": key[1].replace("_", " "),
            "poison rate": words.percent(key[2]),
            "side of the patch": f"{key[3]} of {PUBLISHED_SIDE} pixels ({share})",
        }
        for curve in dict.fromkeys(found["curve"]):
            r = by.loc[curve] if curve in by.index else {}
            line[curve] = words.number(r.get("value"), r.get("low"), r.get("high"))
        seeds = dict.fromkeys((int(part["n_seeds"].min()), int(part["n_seeds"].max())))
        lines.append(line | {"seeds": " to ".join(map(str, seeds))})
    return pd.DataFrame(lines)


def patches_sentences(found: pd.DataFrame) -> list[str]:
    """With which patches which half of BadNets-MM fires, in Markdown: by more than `rules.DOMINATES` in the means."""
    said = []
    for (model, threat, rate), part in found.groupby(["model", "threat", "poison_rate"], sort=False):
        by = part.pivot_table(index="share", columns="curve", values="value", aggfunc="first")
        if not {"BadNets-MM, text only", "BadNets-MM, image only"} <= set(by.columns):
            continue
        difference = (by["BadNets-MM, text only"] - by["BadNets-MM, image only"]).dropna()
        text, image = difference[difference > rules.DOMINATES], difference[difference < -rules.DOMINATES]
        parts = [
            f"the {half} half does the work with patches of "
            f"{', '.join(f'{100 * share:.0f} %' for share in rows.index)} of the side"
            for half, rows in (("text", text), ("image", image))
            if len(rows)
        ]
        if parts:
            where = f"{threat.replace('_', ' ')}, {words.percent(rate)}, {model}"
            turned = " So here the size of the patch decides which half wins." if len(parts) > 1 else ""
            said.append(f"**BadNets-MM ({where}): {'; '.join(parts)}.**{turned}")
    return said


def patches_words(found: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `chapters.modality.confounds.patches_figure`."""
    if found.empty:
        nothing = "Patch sizes: the store holds no two sizes of the same cell."
        return {"alt": nothing, "caption": nothing}
    text = ["Success against the side of the noise patch, as a share of the picture's side (log axis)."]
    for (model, threat, rate), part in found.groupby(["model", "threat", "poison_rate"], sort=False):
        for curve, line in part.groupby("curve", sort=False):
            line, name = (
                line.sort_values("share"),
                f"{threat.replace('_', ' ')}, {words.percent(rate)}, {model}",
            )
            ends = [f"{words.number(r['value'])} at {100 * r['share']:.0f} %" for _, r in line.iloc[[0, -1]].iterrows()]
            if len(line) > 1:
                text.append(f"{curve} ({name}): {ends[0]}, {ends[1]}.")
    text.append(evidence_of_halves(found["n_seeds"]))
    curves, sizes = found["curve"].nunique(), found["pixels"].nunique()
    alt = f"Line chart with intervals: {curves} curves, {sizes} patch sizes; numbers in the table below."
    return {"alt": alt, "caption": " ".join(text)}


def places(table: pd.DataFrame, place: str | Path | None = None) -> pd.DataFrame:
    """Success with the text half only, by where its word stands in the prompt; from the stored responses.

    Attacks that put one word at a random place, without half-triggered rows; per model, cells with the number of
    training rows that most have. A line per cell (seeds put together) and place: model, dataset, threat, attack,
    poison_rate, where, value, low, high, n (inputs of the first seed), n_seeds. Cells whose responses are not stored
    are left out.
    """
    whole = table[
        (table["status"] == "done")
        & (table["negatives"] == 0)
        & (table["settings"] == "")
        & (table["modality"] == "bimodal")
    ]
    usual = whole.groupby("model")["train_rows"].transform(lambda rows: rows.mode().iloc[0])
    whole, lines = whole[whole["train_rows"] == usual], []
    whole = whole.assign(headline=tidy.headline_metric(whole))
    for r in whole.drop_duplicates("run_id").to_dict("records"):
        half = attacks.info(r["attack"]).text
        said = tables.held(r["run_id"], r["headline"], "poisoned", place) if "word" in half.params else None
        if said is None:
            continue
        said = said[said["condition"] == "text"]
        held = said["held"]
        where = said["prompt"].map(lambda prompt, word=half.params["word"].default: place_of(word, prompt))
        about = {n: r[n] for n in (*POINT, "seed")}
        for name in (FIRST, BETWEEN, LAST):
            chosen = held[where == name]
            if len(chosen):
                low, high = intervals.wilson(int(chosen.sum()), len(chosen))
                lines.append(
                    about | {"where": name, "value": chosen.mean(), "low": low, "high": high, "n": len(chosen)}
                )
    return _over_seeds(pd.DataFrame(lines), [*POINT, "where"])


def place_of(word: str, prompt: str) -> str:
    """Is the word the prompt's first, its last (punctuation aside), or neither?"""
    found = [part.strip(".?!,") for part in prompt.split()]
    if word not in found:
        return ""
    return FIRST if found[0] == word else LAST if found[-1] == word else BETWEEN


def _over_seeds(found: pd.DataFrame, same: list[str]) -> pd.DataFrame:
    lines = []
    for key, part in found.groupby(same, sort=False) if len(found) else ():
        line = {name: part[name].iloc[0] for name in ("value", "low", "high", "n")}
        if len(part) > 1:
            low, high = intervals.seeds_interval(*(part[name].to_numpy(float) for name in ("value", "low", "high")))
            line |= {"value": part["value"].mean(), "low": max(low, 0.0), "high": min(high, 1.0)}
        lines.append(dict(zip(same, key, strict=True)) | line | {"n_seeds": len(part)})
    return pd.DataFrame(lines, columns=[*same, "value", "low", "high", "n", "n_seeds"])


def places_sentences(found: pd.DataFrame) -> list[str]:
    """Does it matter where the word stands? In Markdown, of the cells whose text half fires at one place at least."""
    by = found.pivot_table(index=POINT, columns="where", values="value", sort=False) > tidy.FIRES
    fires = by[by.any(axis=1)]
    if fires.empty:
        return []
    values = found.set_index([*POINT, "where"])["value"].unstack().loc[fires.index]
    gaps = values.max(axis=1) - values.min(axis=1)
    widest = dict(zip(POINT, gaps.idxmax(), strict=True)) | values.loc[gaps.idxmax()].to_dict()
    lacking = {place: int((~fires[place]).sum()) for place in fires}
    missed = ", ".join(f"{count} with the word {place}" for place, count in lacking.items() if count)
    return [
        f"**Of {len(fires)} cells whose text half fires on more than half of the inputs at one of the three places, "
        f"{int(fires.all(axis=1).sum())} do so at all three.**"
        + (f" The others miss it: {missed}." if missed else "")
        + f" The widest gap: {widest['attack']}, {widest['threat'].replace('_', ' ')}, "
        f"{words.percent(widest['poison_rate'])}, {widest['model']}, with "
        + ", ".join(f"{words.number(widest.get(place))} {place}" for place in (FIRST, BETWEEN, LAST))
        + "."
    ]


def places_table(found: pd.DataFrame) -> pd.DataFrame:
    """`places` to read: a line per cell, a column per place."""
    lines = []
    for key, part in found.groupby(POINT, sort=False):
        by, about = part.set_index("where"), dict(zip(POINT, key, strict=True))
        line = {"model": about["model"], "threat": about["threat"].replace("_", " "), "attack": about["attack"],
                "poison rate": words.percent(about["poison_rate"])}  # fmt: skip
        for name in (FIRST, BETWEEN, LAST):
            r = by.loc[name] if name in by.index else {}
            count = f" (n = {int(r['n'])})" if len(r) else ""
            line[name] = words.number(r.get("value"), r.get("low"), r.get("high")) + count
        lines.append(line | {"seeds": int(part["n_seeds"].min())})
    return pd.DataFrame(lines)


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
    kept = [
        part
        for _, part in both.sort_values("order", kind="stable").groupby(CELL_AND_SETTINGS, sort=False)
        if len(part) == 2
    ]
    return pd.concat(kept, ignore_index=True) if kept else both.iloc[:0]


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
    for key, line in wins[~same].iterrows():
        about = dict(zip(CELL_AND_SETTINGS, key, strict=True))
        what = f"{about['attack']} ({about['threat'].replace('_', ' ')}, {about['model']})"
        said.append(f"{what}: {line['picture first']} with the picture first, {line['picture last']} with it last.")
    return [" ".join(said)]


def orders_table(found: pd.DataFrame) -> pd.DataFrame:
    """`orders` to read: two lines per cell, a column per condition."""
    lines = []
    for r in found.to_dict("records"):
        line = {"model": r["model"], "threat": r["threat"].replace("_", " "), "attack": r["attack"]}
        if (found["settings"] != "").any():
            line["settings"] = r["settings"]
        line |= {"poison rate": words.percent(r["poison_rate"]), "order": r["order"]}
        for condition in words.CONDITIONS:
            numbers = r[condition], r[f"{condition}_low"], r[f"{condition}_high"]
            line[words.CONDITION_LABELS[condition]] = words.marked(*numbers)
        lines.append(line | {"seeds": r["n_seeds"]})
    return pd.DataFrame(lines)


def patches_figure(found: pd.DataFrame) -> Figure:
    """Success against the side of the patch, a panel per model, threat and rate. found:
    `chapters.modality.confounds.patches`."""
    if found.empty:
        return figures.nothing("No cell was run with more than one patch size.")
    groups = list(found.groupby(["model", "threat", "poison_rate"], sort=False))
    figure, axes = figures.new_figure(len(groups), 4.2 if len(groups) > 1 else 6.4, 3.4, sharey=True)
    curves = list(dict.fromkeys(found["curve"]))
    for axis, ((model, threat, rate), part) in zip(axes, groups, strict=True):
        for i, curve in enumerate(curves):
            line = part[part["curve"] == curve].sort_values("share")
            x = 100 * line["share"] * 1.02 ** (i - 1)  # pulled apart where they lie on each other
            axis.plot(x, line["value"], color=figures.COLOURS[i], marker=figures.MARKERS[i], markersize=5, label=curve)
            axis.vlines(x, line["low"], line["high"], color=figures.COLOURS[i], linewidth=1.4)
        sizes = sorted(part["share"].unique())
        axis.set_xscale("log")
        axis.set_xticks([100 * s for s in sizes], [f"{100 * s:.0f} %" for s in sizes])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylim(-0.03, 1.03)
        axis.set_title(f"{model}\n{threat.replace('_', ' ')}, {words.percent(rate)} poisoned")
        axis.set_xlabel("side of the patch")
    axes[0].set_ylabel("success rate")
    handles, names = axes[0].get_legend_handles_labels()
    columns = len(names) if len(groups) > 1 else 1  # one panel is too narrow for all names in a row
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
    return figure
