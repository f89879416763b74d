"""How many poisoned rows are enough, and what counts: their number, their share, or how often they are shown?

A *pair* is an attack on a threat, for one model and data set; a *dose* is a size of the training set, a number of
poisoned rows and a number of passes. Free of torch.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bvlm_book import figures, tables, words
from bvlm_book.doses import AXES, DOSE, PAIR, TERMS
from bvlm_book.rules_second import HIGH, MANY, RATE
from bvlm_utils import attacks
from bvlm_utils.models import cards
from bvlm_utils.store.table import FIRES

ROWS = (6, 20, 60, 200, 600)
FEW_TICKS = (20, 200)  # of a narrow axis
TICKS = {"showings": (*ROWS, 1800), "n_poisoned": ROWS, "share": (0.001, 0.003, 0.01, 0.03, 0.1)}
MIN_DOSES, OWN_DOSES = 5, 2  # numbers of rows that make a curve: of the study's models, and of a reader's
LONG = 40  # letters of a panel's title that do not fit in a line
FEW = 20
QUOTED = {
    "word": ("BadNets-T", "targeted_refusal"), "blend": ("Blended", "concept_substitution"),
    "object": ("BadNets-T", "concept_substitution"),
}  # fmt: skip
USUAL = ("tiny-llava", 6000, 60, 1, *QUOTED["word"])  # what learning rate and batch size are changed of


def with_eligible(runs: pd.DataFrame, eligible: Mapping[tuple[str, str, int], int]) -> pd.DataFrame:
    """`doses.doses` with the share of the rows that the threat can poison. eligible: `tables.eligible`."""
    keys = zip(runs["dataset"], runs["threat"], runs["train_rows"].astype(int), strict=True)
    return runs.assign(of_eligible=[rows / eligible[key] for rows, key in zip(runs["n_poisoned"], keys, strict=True)])


def means(runs: pd.DataFrame) -> pd.DataFrame:
    """A line per pair and dose: value (mean over its runs), least, most, and the dose in all its forms."""
    dose = {name: (name, "first") for name in ("share", "of_eligible", "showings")}
    spread = {"value": ("value", "mean"), "least": ("value", "min"), "most": ("value", "max")}
    return runs.groupby([*PAIR, *DOSE], sort=False, as_index=False).agg(**dose, **spread)


def deep(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of pairs with many numbers of poisoned rows, on their model's usual size of the training set.

    Many are `MIN_DOSES`; of models that are not the study's, whose grids are smaller, `OWN_DOSES`.
    """
    usual = runs[runs["train_rows"] == runs.groupby("model")["train_rows"].transform(lambda rows: rows.mode().iloc[0])]
    counts = usual[usual["epochs"] == 1].groupby(PAIR)["n_poisoned"].nunique()
    ours = counts.index.get_level_values("model").isin(cards.names())
    return usual[tables.among(usual, PAIR, counts.index[counts >= np.where(ours, MIN_DOSES, OWN_DOSES)])]


def counted_as(runs: pd.DataFrame) -> list[str]:
    """The ways to count a dose that these runs tell apart: with one size of the training set, a share is a number."""
    return [name for name in AXES if name != "share" or runs["train_rows"].nunique() > 1]


def brackets(over_seeds: pd.DataFrame) -> pd.DataFrame:
    """A line per pair, size of the training set and passes, of those with two doses or more. over_seeds: `means`.

    `reached` is the smallest dose whose mean is `HIGH` or more, `below` the largest with less; missing where none is.
    The other columns are those of the smallest, or of the largest tried, where none is enough.
    """
    lines = []
    for _, group in over_seeds.groupby([*PAIR, "train_rows", "epochs"], sort=False):
        if group["n_poisoned"].nunique() > 1:
            enough, by_dose = group["value"] >= HIGH, group.set_index("n_poisoned", drop=False)
            reached, below = group.loc[enough, "n_poisoned"].min(), group.loc[~enough, "n_poisoned"].max()
            row = by_dose.loc[reached if enough.any() else by_dose.index.max()]
            lines.append(row.to_dict() | {"below": below, "reached": reached})
    return pd.DataFrame(lines, columns=[*over_seeds, "below", "reached"])


def bracket_table(lines: pd.DataFrame) -> pd.DataFrame:
    """`brackets` to read."""

    def reached(line: dict) -> str:
        if pd.isna(line["reached"]):
            return f"over {line['n_poisoned']:.0f}"
        return f"{line['reached']:.0f}{' (misses it again with more)' * (line['below'] > line['reached'])}"

    lines = tables.by_data(lines)
    model = {"model": "model"} if lines["model"].nunique() > 1 else {}
    passes = {"passes": "epochs"} if (lines["epochs"] > 1).any() else {}
    return tables.readable(lines, model | {
        "threat": words.threat, "attack": "attack", **passes, "rows for 90 %": reached,
        "too few": lambda line: "" if pd.isna(line["below"]) else int(line["below"]),
        "share (of eligible)": lambda line: f"{words.percent(line['share'])} ({words.percent(line['of_eligible'])})",
        "mean (runs)": lambda line: f"{words.number(line['value'])} ({words.span((line['least'], line['most']), 2)})",
    })  # fmt: skip


def eligible_table(eligible: Mapping[tuple[str, str, int], int]) -> pd.DataFrame:
    """Shares of all rows as shares of the rows that a threat can poison. eligible: `tables.eligible`."""
    return pd.DataFrame([
        {"threat": threat.replace("_", " "), "eligible": f"{count} of {size}"}
        | {f"{words.percent(rate)} of all rows": words.percent(int(size * rate) / count) for rate in (RATE, MANY)}
        for (_, threat, size), count in eligible.items()
    ])  # fmt: skip


def trained_otherwise(table: pd.DataFrame) -> pd.DataFrame:
    """Refusal at 1 %, one pass, first seed: a line per attack of `settings.yml`, learning rate, batch size and rank."""
    runs = tables.of_own_data(tables.usual(table, but=("learning_rate", "batch_size", "lora_rank")))
    runs = runs[runs["attack"].isin(["BadNets-T", "Blended"]) & (runs["condition"] == runs["modality"])]
    fixed = {"threat": "targeted_refusal", "metric": "asr_payload", "subject": "poisoned", "model": "tiny-llava",
             "poison_rate": RATE, "seed": 0}  # fmt: skip
    return runs[(runs[list(fixed)] == pd.Series(fixed)).all(axis=1)]


def settings_table(runs: pd.DataFrame) -> pd.DataFrame:
    """`trained_otherwise` to read: attack, learning rate and batch size in lines, rank in columns."""
    grid = runs.pivot_table(index=["attack", "learning_rate", "batch_size"], columns="lora_rank", values="value")
    grid = grid.map(words.number).fillna("").rename(columns="rank {:.0f}".format).rename_axis(columns=None)
    return grid.reset_index().astype({"batch_size": int}).rename(columns=lambda name: name.replace("_", " "))


def settings_numbers(runs: pd.DataFrame) -> dict[str, str]:
    """What the page quotes: success of BadNets-T by learning rate or batch size, each over the ranks."""
    runs = runs[runs["attack"] == "BadNets-T"]
    ratios = {name: runs[name] / tables.TRAINED[name] for name in ("learning_rate", "batch_size")}
    return {
        f"{name}_{ratio:g}": words.span(runs.loc[(ratios[name] == ratio) & (ratios[other] == 1), "value"], 2)
        for name, other in zip(ratios, reversed(ratios), strict=True) for ratio in (0.25, 0.5, 1, 2)
    }  # fmt: skip


def _usual(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[tables.among(runs, ["model", *DOSE, "attack", "threat"], [USUAL])]


def behind_quoted(design: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The runs behind each success that `numbers` quotes, of those of the design."""
    return {"usual_runs": _usual(design)} | {
        f"{name}_{rows:.0f}_{passes}_{size:.0f}": group
        for name, pair in QUOTED.items()
        for (size, rows, passes), group in design[tables.among(design, ["attack", "threat"], [pair])].groupby(DOSE)
    }


def numbers(runs: pd.DataFrame) -> dict[str, str]:
    """What the page quotes: the same word shown more often, pairs that few rows are enough for, and where most stop."""
    over_seeds, texts = means(runs), {}
    for name, pair in QUOTED.items():
        points = over_seeds[tables.among(over_seeds, ["model", "attack", "threat"], [("tiny-llava", *pair)])]
        value = points.drop_duplicates(DOSE).set_index(DOSE)["value"]
        for size, rows, passes in ((6000, 60, 3), (6000, 300, 1), *((n, 60, 1) for n in (2000, 6000, 20000))):
            texts[f"{name}_{rows}_{passes}_{size}"] = words.number(value.get((size, rows, passes)))
    usual = _usual(over_seeds)
    texts["usual_runs"] = words.span(usual[["least", "most"]].to_numpy().ravel(), 2)
    few = over_seeds[over_seeds["n_poisoned"] <= FEW]
    texts["few_rows"] = words.span(few["n_poisoned"].astype(int))
    for name, points in (("one", few[few["epochs"] == 1]), ("several", few[few["epochs"] > 1])):
        texts[f"few_{name}"] = f"{words.of(points['value'] > FIRES)} work" if len(points) else "no such pair was tried"
    reached = brackets(means(deep(runs))).query("epochs == 1")["reached"]
    rows = reached.dropna().astype(int)
    return texts | {"pairs": str(len(reached)), "reached": str(len(rows)), "fewest_most": words.span(rows)}


def explained_table(fit: pd.DataFrame) -> pd.DataFrame:
    return tables.readable(fit.reset_index(names="way"), {
        "counted as": lambda line: (TERMS | AXES)[line["way"]],
        "explains alone": lambda line: "" if pd.isna(line["explained"]) else words.percent(round(line["explained"], 2)),
        "ten times as much changes the logit by": lambda line: "" if pd.isna(line["value"]) else words.interval(line),
    })  # fmt: skip


def by_size(runs: pd.DataFrame) -> Figure:
    """`panels` of the factorial: a row per pair, a colour per size of the training set. No share on a narrow page."""
    ways = [name for name in counted_as(runs) if name != "share" or not figures.is_narrow()]
    return panels(runs, ["attack", "threat"], ways, "train_rows")


def curves(runs: pd.DataFrame) -> Figure:
    """`panels` of pairs with many doses: a row per threat, a colour and a line per attack. runs: `deep`."""
    rows = ["threat"] if runs["model"].nunique() < 2 else ["threat", "model"]
    return panels(tables.by_data(runs), rows, ["n_poisoned", "showings"], "attack")


def panels(runs: pd.DataFrame, rows: list[str], ways: Sequence[str], colour: str) -> Figure:
    """Success against ways to count a dose (log axes), a dot per run, filled triangles for several passes."""
    groups, with_lines = list(runs.groupby(rows, sort=False)), colour == "attack"
    kinds = figures.in_order(sorted(set(runs[colour])), attacks.names())
    looks = [figures.look(i) | ({} if with_lines else {"marker": "o"}) for i in range(len(kinds))]
    height, narrow = 2.6 if with_lines else 1.8, figures.is_narrow()
    figure, axes = figures.new_figure(len(ways), 3.5, height, rows=len(groups), stacked=False, sharey=True)
    for axis, ((key, group), way) in zip(axes, product(groups, ways), strict=True):
        for i, (kind, look) in enumerate(zip(kinds, looks, strict=True)):
            points = group[group[colour] == kind]
            points = points.assign(at=points[way] * 1.05 ** (i - (len(kinds) - 1) / 2))  # apart where they are alike
            once, several = points[points["epochs"] == 1], points[points["epochs"] > 1]
            axis.plot(once["at"], once["value"], linestyle="", markersize=4.5, markerfacecolor="none", **look)
            axis.plot(several["at"], several["value"], **look | {"linestyle": "", "markersize": 6, "marker": "^"})
            if with_lines:
                axis.plot(once.groupby("at")["value"].mean(), figures.LINES[i % 4], color=look["color"], linewidth=1.2)
        axis.axhline(HIGH, color="#777777", linewidth=1, linestyle="--", zorder=1)
        names = [name.replace("_", " ") for name in key]
        title = (",\n" if narrow or len(", ".join(names)) > LONG else ", ").join(names)
        title = title.replace("concept ", "concept\n") if narrow else title
        axis.set_title(title, fontsize=8 if narrow else 10)
        axis.set(ylim=(-0.05, 1.05), yticks=(0, 0.5, 1))
        limits = runs[way].min() / 1.4, runs[way].max() * 1.4  # the same in every row
        axis.set(xscale="log", xlim=limits)
        axis.set_xlabel(AXES[way], fontsize=7.5 if narrow else 10)
        if limits[0] > TICKS[way][0] / 2 and limits[1] < 2 * TICKS[way][-1]:  # else Matplotlib's own
            ticks = [tick for tick in TICKS[way] if not narrow or tick in FEW_TICKS]
            axis.set_xticks(ticks, [words.percent(tick) if tick < 1 else str(tick) for tick in ticks])
            axis.xaxis.set_minor_locator(NullLocator())
        axis.label_outer()
    for i, (kind, look) in enumerate(zip(kinds, looks, strict=True)):
        name, style = (kind, figures.LINES[i % 4]) if with_lines else (f"{kind:,.0f} training rows", "")
        axes[0].plot([], [], linestyle=style, label=name, **look)
    axes[0].plot([], [], "^", color="#777777", label="several passes")
    figures.legend_below(figure, axes[0], columns=4)
    return figure
