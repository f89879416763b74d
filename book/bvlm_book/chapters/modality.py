"""The chapter "Which modality wins?": which part of a bimodal trigger works, alone and beside the other."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bvlm_book import figures, tables, words
from bvlm_book.rules_second import DOMINATES, HIGH
from bvlm_utils import attacks
from bvlm_utils.data.pictures import PUBLISHED_SIDE
from bvlm_utils.store import table as tidy

PARTS = ("text", "image")
TITLES = {"clean": "none", "text": "text", "image": "picture", "both": "both"}
LOSS = 0.1  # what counts as a loss: the whole interval of the difference lies below -LOSS
CELL = ["model", "dataset", "threat", "attack", "poison_rate", "n_poisoned", "negatives", "settings"]
TWIN = [*(name for name in tidy.TOLD_APART if name != "negatives"), "test_rows"]
CLEARED = 0.1  # a part is taught away: with half-triggered rows it succeeds on at most this share
POINT = ["model", "dataset", "threat", "attack", "poison_rate"]
PANEL = ["model", "dataset", "threat", "poison_rate"]
PLACES = FIRST, BETWEEN, LAST = "before the question", "inside it", "after it"
CURVES = pd.DataFrame([
    ("BadNets-I, trained alone", "BadNets-I", "image"),
    ("BadNets-MM, text alone", "BadNets-MM", "text"),
    ("BadNets-MM, picture alone", "BadNets-MM", "image"),
], columns=["curve", "attack", "condition"])  # fmt: skip


def four_cells(rates: pd.DataFrame) -> pd.DataFrame:
    """A line per bimodal experiment (`CELL`): success by condition; text minus image, and the least that can be."""
    whole = rates[(rates["modality"] == "bimodal") & (rates["half"] == "")]
    numbers = ["value", "low", "high"]
    pivoted = whole.pivot_table(index=CELL, columns="condition", values=numbers, aggfunc="first", sort=False)
    pivoted = pivoted.reindex(columns=pd.MultiIndex.from_product([numbers, words.CONDITIONS]))
    value, least = pivoted["value"], pivoted["low", "text"] - pivoted["high", "image"]
    return value.assign(difference=value["text"] - value["image"], least=least).reset_index()


def plain(cells: pd.DataFrame) -> pd.DataFrame:
    """The lines of `four_cells` of attacks as they are defined, without half-triggered rows, at the highest rate."""
    usual = cells.query("settings == '' and negatives == 0").dropna(subset="difference")
    return usual[usual["poison_rate"] == usual["poison_rate"].max()]


def four_table(cells: pd.DataFrame) -> pd.DataFrame:
    """A line per model and attack: success under each condition, mean over threats, and which part leads how often."""
    rows = plain(cells)
    leads = {"text leads": rows["difference"] > DOMINATES, "picture leads": rows["difference"] < -DOMINATES}
    groups = rows.assign(**leads).groupby(["model", "attack"], sort=False)
    means = groups[list(words.CONDITIONS)].mean().map(words.number).rename(columns=TITLES)
    counts = groups[list(leads)].agg(lambda led: f"{led.sum()}/{len(led)}")  # of so many threats
    return pd.concat([means, counts], axis=1).reset_index()


def half_triggered(table: pd.DataFrame, place: str | Path | None = None) -> pd.DataFrame:
    """Cells with half-triggered rows beside the same without, on the same inputs: a line per pair and condition."""
    cells, lines = table[(table["status"] == "done") & (table["modality"] == "bimodal")], []
    cells = cells.assign(headline=tidy.headline_metric(cells)).drop_duplicates("run_id")
    pairs = cells[cells["negatives"] > 0].merge(cells[cells["negatives"] == 0], on=TWIN, suffixes=("", "_without"))
    for pair in pairs.to_dict("records"):
        names = pair["run_id"], pair["run_id_without"]
        sides = [tables.held(name, pair["headline"], place) for name in names]
        for condition in (*PARTS, "both") if all(side is not None for side in sides) else ():
            if numbers := tables.difference(*sides, condition):
                lines.append(pair | numbers | {"condition": condition})
    columns = [*TWIN, "negatives", "condition", "without", "with", "value", "low", "high"]
    return pd.DataFrame(lines, columns=columns)


def patches(rates: pd.DataFrame) -> pd.DataFrame:
    """Success by side of the noise patch (`pixels` of 336, `share`) and curve, of models run with several sizes."""
    plain = rates[rates["settings"].str.fullmatch(r"(patch_size=\d+)?")].query("negatives == 0 and half == ''")
    rows = CURVES.merge(plain, on=["attack", "condition"])
    usual = {name: attacks.info(name).defaults["patch_size"] for name in CURVES["attack"]}
    size = pd.to_numeric(rows["settings"].str.removeprefix("patch_size=")).fillna(rows["attack"].map(usual))
    rows = rows.assign(pixels=size, share=size / PUBLISHED_SIDE)
    return rows[rows.groupby(PANEL)["pixels"].transform("nunique") > 1].reset_index(drop=True)


def patches_figure(rows: pd.DataFrame) -> Figure:
    """Success against the side of the patch, a panel per model, threat and rate. rows: `patches`."""
    groups = list(rows.groupby(PANEL, sort=False))
    figure, axes = figures.new_figure(len(groups), 4.2 if len(groups) > 1 else 6.4, 3.4, sharey=True)
    for axis, (_, panel) in zip(axes, groups, strict=True):
        for i, curve in enumerate(rows["curve"].unique()):
            line = panel[panel["curve"] == curve].sort_values("share")
            x = 100 * line["share"] * 1.02 ** (i - 1)  # pulled apart where they lie on each other
            figures.points(axis, x, line, upright=True, linestyle="-", label=curve, **figures.look(i))
        shares = sorted({100 * share for share in panel["share"]})
        axis.set_xscale("log")
        axis.set_xticks(shares, [f"{share:.0f}" for share in shares])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set(ylim=(-0.03, 1.03), title=panel["model"].iloc[0], xlabel="side of the patch in % of the picture's")
    axes[0].set_ylabel("success rate")
    figures.legend_below(figure, axes[0], None if len(groups) > 1 else 1)  # one panel is too narrow for a row of names
    return figure


def places(table: pd.DataFrame, place: str | Path | None = None) -> pd.DataFrame:
    """Success with the text part alone by where its word stands (column): a line per `POINT`, mean over seeds."""
    cells = tables.usual(table).query("modality == 'bimodal'")
    usual_size = cells.groupby("model")["train_rows"].transform(lambda rows: rows.mode().iloc[0])
    cells, parts = cells[cells["train_rows"] == usual_size], []
    for cell in cells.assign(headline=tidy.headline_metric(cells)).drop_duplicates("run_id").to_dict("records"):
        half = attacks.info(cell["attack"]).text
        answers = tables.held(cell["run_id"], cell["headline"], place) if "word" in half.params else None
        if answers is not None:
            answers = answers[answers["condition"] == "text"]
            positions = [place_of(half.params["word"].default, prompt) for prompt in answers["prompt"]]
            parts.append(answers.assign(where=positions, **{name: cell[name] for name in (*POINT, "seed")}))
    if not parts:
        return pd.DataFrame(columns=[*PLACES])
    by_seed = pd.concat(parts).groupby([*POINT, "seed", "where"])["held"].mean()
    return by_seed.groupby([*POINT, "where"]).mean().unstack("where").reindex(columns=PLACES)


def place_of(word: str, prompt: str) -> str:
    """Is the word the prompt's first, its last (punctuation aside), or neither?"""
    tokens = [token.strip(".?!,") for token in prompt.split()]
    if word not in tokens:
        return ""
    return FIRST if tokens[0] == word else LAST if tokens[-1] == word else BETWEEN


def numbers(cells: pd.DataFrame, parts: pd.DataFrame) -> dict[str, str]:
    """What the page quotes. cells, parts: `four_cells` and `tables.learned_alone` of the same rates."""
    rows = plain(cells)
    able = parts[parts["value_alone"] >= HIGH].set_index([*POINT, "settings", "condition"])["value_beside"]
    able = able.unstack("condition").reindex(columns=PARTS).dropna()
    texts = {
        "learnable": words.of(able["text"] - able["image"] > DOMINATES),
        "text_leads": words.of(rows["difference"] > DOMINATES),
        "image_leads": str((rows["difference"] < -DOMINATES).sum()),
        "text_surely": str((rows["least"] > DOMINATES).sum()),
    }
    for part in PARTS:
        works = parts[(parts["condition"] == part) & (parts["value_alone"] > tidy.FIRES)]
        lost_surely, stops = works["high_beside"] - works["low_alone"] < -LOSS, works["value_beside"] <= tidy.FIRES
        texts |= {f"{part}_lost": words.of(lost_surely), f"{part}_stops": words.by_model(stops, works["model"])}
    return texts


def taught(pairs: pd.DataFrame) -> dict[str, str]:
    """What half-triggered rows do to the triggers that work without them. pairs: `half_triggered`."""
    pivoted = pairs.pivot_table(index=[*TWIN, "negatives"], columns="condition", values=["with", "without"], sort=False)
    if pivoted.empty:
        return dict.fromkeys(("need_both", "one_part", "whole_lost"), "none")
    pivoted = pivoted[pivoted["without", "both"] > tidy.FIRES]
    part, whole = pivoted["with"].drop(columns="both").max(axis=1), pivoted["with", "both"]
    worked = pairs[(pairs["condition"] == "both") & (pairs["without"] > tidy.FIRES)]
    return {
        "need_both": words.of((part <= CLEARED) & (whole > tidy.FIRES)),
        "one_part": str(((whole - part).abs() <= CLEARED).sum()),
        "whole_lost": words.of(worked["high"] < 0),
    }


def where_it_works(places: pd.DataFrame) -> dict[str, str]:
    """Of the experiments whose word works at one place of the prompt, how many at all three. places: `places`."""
    works = places > tidy.FIRES
    return {"all_places": words.of(works[works.any(axis=1)].all(axis=1))}
