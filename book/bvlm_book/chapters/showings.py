"""Does the number of poisoned rows decide, their share, or how often they are shown? For the chapter on doses.

`cells` gives one line per run of the pairs of the factorial grid; `fitted` one model of all of them. Free of torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy.stats import t as student

from bvlm_book import figures, rules_second, tables, words
from bvlm_utils.store.table import FIRES

GRID = "data/grids/number_or_share.yml"
MODEL, ATTACKS, THREATS = "tiny-llava", ("BadNets-T", "Blended"), ("targeted_refusal", "concept_substitution")
AXES = {"showings": "showings (rows x passes)", "n_poisoned": "poisoned rows", "share": "share of all rows"}
ROWS = (6, 20, 60, 200, 600)
TICKS = {"showings": ROWS, "n_poisoned": ROWS, "share": (0.001, 0.003, 0.01, 0.03, 0.1)}
TERMS = {"n_poisoned": "number of poisoned rows", "epochs": "passes", "train_rows": "size of the training set"}
DOSE = ["train_rows", "n_poisoned", "epochs"]
FEW = 20


def doses(table: pd.DataFrame, place: str | Path | None = None) -> pd.DataFrame:
    """Success (payload) with the full trigger: a line per run, with its dose in all its forms.

    Attacks and threats as they are defined, trained as usual but for the passes and the number of rows.
    """
    found = tables.eligible(table, place)
    done = tables.usual(table, but=("epochs", "train_rows"))
    done = done[(done["metric"] == "asr_payload") & (done["subject"] == "poisoned") & (done["n_poisoned"] > 0)]
    done = tables.headline_rows(done)
    done = done.assign(
        epochs=done["epochs"].astype(int),
        share=done["n_poisoned"] / done["train_rows"],
        showings=done["n_poisoned"] * done["epochs"].astype(int),
    )
    key = zip(done["dataset"], done["threat"], done["train_rows"].astype(int), strict=True)
    return done.assign(of_eligible=[n / found[one] for n, one in zip(done["n_poisoned"], key, strict=True)])


def factorial(lines: pd.DataFrame) -> pd.DataFrame:
    """The runs of `doses` that belong to the pairs of the factorial grid."""
    chosen = (lines["model"] == MODEL) & lines["attack"].isin(ATTACKS) & lines["threat"].isin(THREATS)
    return lines[chosen].sort_values([*DOSE, "seed"])


def pair(row: Mapping[str, Any]) -> str:
    return f"{row['attack']}, {words.threat(row)}"


# ---------------------------------------------------------------- the model


@dataclass(frozen=True)
class Fit:
    """logit(success) = a pair's own + sum of slopes * log10(number, passes, size of the set); slopes with intervals.

    explained: share of the deviance between pairs alone and the data that each axis explains by itself.
    """

    slopes: pd.DataFrame
    explained: dict[str, float]
    runs: int


def fitted(lines: pd.DataFrame) -> Fit | None:
    """One binomial GLM of all runs (dispersion from the deviance); None while one of the three did not vary.

    lines: `factorial`. Runs of one seed share rows and order, and successes of one run share its fate: the dispersion
    stands for both.
    """
    if any(lines[name].nunique() < 2 for name in TERMS) or len(lines) < 4 * len(TERMS):
        return None
    own = pd.get_dummies([pair(row) for row in lines.to_dict("records")], dtype=float).to_numpy()
    logs = np.log10(lines[list(TERMS)].to_numpy(float))
    result = _glm(lines, np.column_stack([own, logs]))
    dispersion = max(float(result.deviance / result.df_resid), 1.0)
    errors = np.sqrt(np.diag(result.normalized_cov_params) * dispersion)[-len(TERMS) :]
    slopes = np.asarray(result.params)[-len(TERMS) :]
    half = student.ppf(0.975, result.df_resid) * errors
    table = pd.DataFrame({"term": list(TERMS), "value": slopes, "low": slopes - half, "high": slopes + half})
    none = _glm(lines, own).deviance
    alone = {name: np.column_stack([own, np.log10(lines[name].to_numpy(float))]) for name in AXES}
    return Fit(table, {name: 1 - _glm(lines, design).deviance / none for name, design in alone.items()}, len(lines))


def _glm(lines: pd.DataFrame, design: np.ndarray) -> Any:
    successes = lines["k"].to_numpy(float)
    both = np.column_stack([successes, lines["n"].to_numpy(float) - successes])
    return sm.GLM(both, design, family=sm.families.Binomial()).fit()


def finding(fit: Fit | None, run: int, wanted: int) -> str:
    """The factorial's answer in Markdown; what is missing, while it is."""
    missing = f"Not run yet: {wanted - run} of {wanted} experiments of the grid." if run < wanted else ""
    if fit is None:
        return f"{missing} Until the size of the training set varies, nothing can tell number from share.".strip()
    best = max(fit.explained, key=fit.explained.get)
    alone = ", ".join(f"{AXES[name]} {words.number(value)}" for name, value in fit.explained.items())
    slopes = "; ".join(
        f"{TERMS[row['term']]} {words.number(row['value'], row['low'], row['high'])}"
        for row in fit.slopes.to_dict("records")
    )
    return (
        f"**Of the three, {AXES[best]} explain most** (share of the deviance: {alone}). With all three in one model, "
        f"ten times as much changes the logit of success by: {slopes} ({fit.runs} runs). If showings alone decided, "
        "the first two would be equal and the third 0; if the share did, the third would be the first with the other "
        f"sign. {missing}"
    ).strip()


# ---------------------------------------------------------------- the page


def figure(lines: pd.DataFrame) -> Figure:
    """Success against showings, number and share: a row of panels per pair, a dot per run."""
    if lines.empty:
        return figures.nothing("No run of the factorial's pairs is in this store.")
    pairs = lines.drop_duplicates(["attack", "threat"]).to_dict("records")
    sizes = sorted(lines["train_rows"].unique())
    shape, axes = figures.new_figure(len(AXES), 3.0, 2.1, rows=len(pairs), sharey=True, sharex="col")
    panels = iter(axes)
    for about in pairs:
        part = lines[(lines["attack"] == about["attack"]) & (lines["threat"] == about["threat"])]
        for name in AXES:
            axis = next(panels)
            for i, size in enumerate(sizes):
                for several, own in part[part["train_rows"] == size].groupby(part["epochs"] > 1):
                    look = {"color": figures.COLOURS[i], "marker": "^" if several else "o"}
                    face = look["color"] if several else "white"
                    at = own[name] * 1.06 ** (i - 1)  # sizes on top of each other are pulled apart
                    axis.plot(at, own["value"], linestyle="", markersize=5, markerfacecolor=face, **look)
            axis.axhline(rules_second.HIGH, color="#777777", linewidth=1, linestyle="--", zorder=1)
            axis.set(xscale="log", ylim=(-0.03, 1.03))
            axis.set_xticks(TICKS[name], [words.percent(at) if at < 1 else str(at) for at in TICKS[name]])
            axis.xaxis.set_minor_locator(NullLocator())
            if about is pairs[0]:
                axis.set_title(AXES[name])
            if name == "showings":
                axis.set_ylabel(f"{about['attack']}\n{words.threat(about)}", fontsize=8.5)
    for i, size in enumerate(sizes):
        axes[0].plot([], [], linestyle="", marker="s", color=figures.COLOURS[i], label=f"{size:,.0f} training rows")
    axes[0].plot([], [], "o", color="#333333", markerfacecolor="white", label="one pass")
    axes[0].plot([], [], "^", color="#333333", label="several passes")
    figures.legend_below(shape, axes[0], columns=3)
    return shape


def figure_words(lines: pd.DataFrame) -> dict[str, str]:
    if lines.empty:
        return words.nothing_measured("Success against showings, number and share")
    return {
        "alt": "Dots: success against showings, poisoned rows and share of all rows, a row of panels per pair.",
        "caption": f"A dot per run ({MODEL}, {len(lines)} runs, payload test), by how its dose is counted. What "
        "decides is the column in which dots of all colours and shapes lie on one curve.",
    }


def eligible_table(table: pd.DataFrame, place: str | Path | None = None) -> pd.DataFrame:
    """What the same share of all rows is of the rows that a threat can poison."""
    lines = []
    for (dataset, threat, size), count in tables.eligible(table, place).items():
        line = {"data": dataset, "threat": threat.replace("_", " "), "training rows": size, "eligible": count}
        for rate in (rules_second.RATE, rules_second.MANY):
            share = words.percent(size * rate / count)
            line[f"{words.percent(rate)} of all rows"] = f"{int(size * rate)} rows, {share} of the eligible"
        lines.append(line)
    return pd.DataFrame(lines)


def dose_table(lines: pd.DataFrame) -> pd.DataFrame:
    """Every dose with its success: rows, share of all, share of eligible, passes, showings; seeds put together."""
    key = ["model", "dataset", "threat", "attack", *DOSE]
    means = lines.groupby(key, sort=False, as_index=False).agg(
        share=("share", "first"), of_eligible=("of_eligible", "first"), showings=("showings", "first"),
        value=("value", "mean"), least=("value", "min"), most=("value", "max"), n_seeds=("seed", "nunique"),
    )  # fmt: skip
    return tables.readable(means.sort_values(key), {
        "model": "model", "threat": words.threat, "attack": "attack", "training rows": lambda r: int(r["train_rows"]),
        "poisoned rows": lambda r: int(r["n_poisoned"]), "share of all": lambda r: words.percent(r["share"]),
        "share of eligible": lambda r: words.percent(r["of_eligible"]), "passes": "epochs",
        "showings": lambda r: int(r["showings"]), "success (payload)": lambda r: words.number(r["value"]),
        "runs from to": lambda r: words.span((r["least"], r["most"]), 2), "seeds": "n_seeds",
    })  # fmt: skip


def few_rows(lines: pd.DataFrame) -> str:
    """What is left of the folk rule that fewer than 20 poisoned rows fail, in Markdown."""
    key = ["model", "threat", "attack", *DOSE]
    few = lines[lines["n_poisoned"] <= FEW].groupby(key, as_index=False)["value"].mean()
    said = [
        f"{int((part['value'] > FIRES).sum())} of {len(part)} after {words.passes(number)}"
        for number, part in few.groupby("epochs")
    ]
    if not said:
        return f"No pair was tried with {FEW} poisoned rows or fewer."
    return (
        f"The folk rule says that fewer than {FEW} poisoned rows fail. Of the means with {FEW} rows or fewer, those "
        f"above one half are {' and '.join(said)}."
    )
