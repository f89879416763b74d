"""How many poisoned rows are enough? Doses in all their forms, for the chapter on doses. Free of torch.

A *pair* is an attack on a threat, for one model and data set; a *dose* is a size of the training set, a number of
poisoned rows and a number of passes. `chapters.showings.doses` has a line per run, `means` one per pair and dose,
`brackets` the fewest rows that reach `rules_second.HIGH`.
"""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bvlm_book import figures, rules_second, tables, words
from bvlm_utils.store.table import FIRES

PAIR = ["model", "dataset", "threat", "attack"]
DOSE = ["train_rows", "n_poisoned", "epochs"]
TICKS = (6, 20, 60, 200, 600)
AXES = {"n_poisoned": ("poisoned rows", TICKS), "showings": ("showings (rows x passes)", (*TICKS, 1800))}
MIN_DOSES = 5  # fewer points are no curve
FEW = 20


def means(runs: pd.DataFrame) -> pd.DataFrame:
    """A line per pair and dose: value (mean over its runs), least, most, n_seeds, and the dose in all its forms."""
    about = {name: (name, "first") for name in ("share", "of_eligible", "showings")}
    return runs.groupby([*PAIR, *DOSE], sort=False, as_index=False).agg(
        **about, value=("value", "mean"), least=("value", "min"), most=("value", "max"), n_seeds=("seed", "nunique")
    )


def deep(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the pairs that were tried with `MIN_DOSES` numbers of poisoned rows or more in one pass over the
    usual training set (the size that most of the runs have).
    """
    if runs.empty:
        return runs
    usual = runs[runs["train_rows"] == runs["train_rows"].mode().iloc[0]]
    tried = usual[usual["epochs"] == 1].groupby(PAIR)["n_poisoned"].nunique()
    return usual[pd.MultiIndex.from_frame(usual[PAIR]).isin(tried.index[tried >= MIN_DOSES])]


def bracket(part: pd.DataFrame, goal: float = rules_second.HIGH) -> tuple[int | None, int | None]:
    """The largest dose whose mean success is below `goal`, and the smallest at or above it; None where none is.

    part: lines of `means` of one pair.
    """
    below = part.loc[part["value"] < goal, "n_poisoned"]
    reached = part.loc[part["value"] >= goal, "n_poisoned"]
    return (int(below.max()) if len(below) else None), (int(reached.min()) if len(reached) else None)


def brackets(over_seeds: pd.DataFrame) -> pd.DataFrame:
    """A line per pair, size of the training set and passes, of those with two doses or more.

    over_seeds: `means`. The columns of the smallest dose whose mean reaches HIGH (of the largest tried, where
    none does), and below, reached (`bracket`).
    """
    lines = []
    for _, part in over_seeds.groupby([*PAIR, "train_rows", "epochs"], sort=False):
        if part["n_poisoned"].nunique() < 2:
            continue
        below, reached = bracket(part)
        at = part[part["n_poisoned"] == (reached or part["n_poisoned"].max())].iloc[0]
        lines.append(at.to_dict() | {"below": below, "reached": reached})
    columns = [*over_seeds, "below", "reached"]
    return pd.DataFrame(lines, columns=columns).astype({"below": object, "reached": object})


def bracket_table(found: pd.DataFrame) -> pd.DataFrame:
    """`brackets` to read."""

    def reached(line: dict) -> str:
        if pd.isna(line["reached"]):
            return f"over {line['n_poisoned']:.0f}"
        again = pd.notna(line["below"]) and line["below"] > line["reached"]
        return f"{line['reached']:.0f}{' (misses it again with more)' if again else ''}"

    model = {"model": "model"} if found["model"].nunique() > 1 else {}
    return tables.readable(found, model | {
        "threat": words.threat, "attack": "attack", "passes": "epochs", "rows for 90 %": reached,
        "too few": lambda r: "" if pd.isna(r["below"]) else int(r["below"]),
        "share of all": lambda r: words.percent(r["share"]), "of eligible": lambda r: words.percent(r["of_eligible"]),
        "showings": lambda r: int(r["showings"]), "mean": lambda r: words.number(r["value"]),
        "runs": lambda r: words.span((r["least"], r["most"]), 2).replace(" to ", "–"),
    })  # fmt: skip


def eligible_table(table: pd.DataFrame, place: str | Path | None = None) -> pd.DataFrame:
    """What the same share of all rows is of the rows that a threat can poison."""
    lines = []
    for (_, threat, size), count in tables.eligible(table, place).items():
        line = {"threat": threat.replace("_", " "), "eligible": f"{count} of {size}"}
        for rate in (rules_second.RATE, rules_second.MANY):
            line[f"{words.percent(rate)} of all rows"] = words.percent(int(size * rate) / count)
        lines.append(line)
    return pd.DataFrame(lines)


def settings_table(table: pd.DataFrame) -> pd.DataFrame:
    """BadNets-T on refusal at 1 % and one pass, by learning rate (lines) and rank (columns): the first seed's
    success.
    """
    chosen = tables.usual(table, but=("learning_rate", "lora_rank"))
    first = {"attack": "BadNets-T", "threat": "targeted_refusal", "metric": "asr_payload", "subject": "poisoned",
             "condition": "text", "model": "tiny-llava", "poison_rate": rules_second.RATE, "seed": 0}  # fmt: skip
    chosen = chosen[(chosen[list(first)] == pd.Series(first)).all(axis=1)]
    found = chosen.pivot_table(index="learning_rate", columns="lora_rank", values="value").map(words.number)
    found = found.rename(columns=lambda rank: f"rank {rank:.0f}")
    found.columns.name = None
    return found.reset_index(names="learning rate")


def numbers(runs: pd.DataFrame) -> dict[str, str]:
    """What the page quotes: the same word shown more often, pairs that few rows are enough for, and where most stop."""
    over_seeds = means(runs)
    found = {}
    word = over_seeds[(over_seeds["model"] == "tiny-llava") & (over_seeds["attack"] == "BadNets-T")
                      & (over_seeds["threat"] == "targeted_refusal") & (over_seeds["train_rows"] == 6000)]  # fmt: skip
    for rows, passes in ((60, 1), (60, 3), (300, 1)):
        at = word[(word["n_poisoned"] == rows) & (word["epochs"] == passes)]["value"]
        found[f"word_{rows}_{passes}"] = words.number(at.iloc[0]) if len(at) else "n/a"
    few = over_seeds[over_seeds["n_poisoned"] <= FEW]
    for name, part in (("one", few[few["epochs"] == 1]), ("several", few[few["epochs"] > 1])):
        works = f"{int((part['value'] > FIRES).sum())} of {len(part)} work"
        found[f"few_{name}"] = works if len(part) else "no such pair was tried"
    reached = brackets(means(deep(runs)))
    reached = reached[reached["epochs"] == 1]
    rows = reached["reached"].dropna().astype(int)
    return found | {"pairs": str(len(reached)), "reached": str(len(rows)), "fewest_most": words.span(rows)}


# ---------------------------------------------------------------- the figure


def curves(runs: pd.DataFrame) -> Figure:
    """Success against poisoned rows and against showings (log axes): a row of panels per model and threat.

    runs: `deep`. A dot per run, a line through the means of one pass.
    """
    if runs.empty:
        return figures.nothing(f"No pair was tried with {MIN_DOSES} doses.")
    panels = list(runs.groupby(["model", "threat"], sort=False))
    names = list(dict.fromkeys(runs["attack"]))
    figure, axes = figures.new_figure(2, 3.6, 2.6, rows=len(panels), sharey=True)
    places = iter(axes)
    several = len({model for (model, _), _ in panels}) > 1
    for (model, threat), part in panels:
        for kind, (label, ticks) in AXES.items():
            axis = next(places)
            for i, name in enumerate(names):
                _line(axis, part[part["attack"] == name], kind, 1.05 ** (i - (len(names) - 1) / 2), figures.look(i))
            axis.axhline(rules_second.HIGH, color="#777777", linewidth=1, linestyle="--", zorder=1)
            title = threat.replace("_", " ") + (f", {model}" if several else "")
            axis.set(title=title, xscale="log", ylim=(-0.05, 1.05), xlabel=label)
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.xaxis.set_minor_locator(NullLocator())
    for i, name in enumerate(names):
        axes[0].plot([], [], label=name, **figures.look(i))
    axes[0].plot([], [], "^", color="#777777", markersize=7, markerfacecolor="none", label="three passes")
    figures.legend_below(figure, axes[0], columns=4)
    return figure


def _line(axis: Axes, own: pd.DataFrame, kind: str, shift: float, look: dict[str, str]) -> None:
    """Attacks on top of each other are pulled apart by `shift`."""
    for several, part in own.groupby(own["epochs"] > 1):
        if several:
            look = look | {"marker": "^"}
            axis.plot(part[kind] * shift, part["value"], linestyle="", markersize=7, markerfacecolor="none", **look)
        else:
            axis.plot(part[kind] * shift, part["value"], linestyle="", markersize=3.5, alpha=0.7, **look)
            mean = part.groupby(kind)["value"].mean()
            axis.plot(mean.index * shift, mean, color=look["color"], linewidth=1.2)
