"""Does the number of poisoned rows decide, their share, or how often they are shown? For the chapter on doses.

`doses` gives one line per run with its dose in all its forms, `factorial` those of the grid that varies them one by
one, `fitted` one model of all of these. Free of torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy.stats import t as student

from bvlm_book import figures, rules_second, tables, words

GRID = "data/grids/number_or_share.yml"
MODEL, ATTACKS, THREATS = "tiny-llava", ("BadNets-T", "Blended"), ("targeted_refusal", "concept_substitution")
AXES = {"showings": "showings (rows x passes)", "n_poisoned": "poisoned rows", "share": "share of all rows"}
ROWS = (6, 20, 60, 200, 600)
TICKS = {"showings": ROWS, "n_poisoned": ROWS, "share": (0.001, 0.003, 0.01, 0.03, 0.1)}
TERMS = {"n_poisoned": "number of poisoned rows", "epochs": "passes", "train_rows": "size of the training set"}
DOSE = ["train_rows", "n_poisoned", "epochs"]


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


def explained_table(fit: Fit | None) -> pd.DataFrame:
    """What each way to count a dose explains by itself, and each term's slope beside the others; empty without a
    fit.
    """
    if fit is None:
        return pd.DataFrame()
    slopes = fit.slopes.set_index("term").to_dict("index")
    lines = [{"counted as": AXES[name], "explains alone": words.percent(round(value, 2)),
              "ten times as much changes the logit by": _slope(slopes.get(name))}
             for name, value in fit.explained.items()]  # fmt: skip
    more = [{"counted as": TERMS[name], "explains alone": "",
             "ten times as much changes the logit by": _slope(slopes[name])}
            for name in ("epochs", "train_rows")]  # fmt: skip
    return pd.DataFrame([*lines, *more])


def _slope(line: dict[str, float] | None) -> str:
    return words.number(line["value"], line["low"], line["high"]) if line else ""


# ---------------------------------------------------------------- the page


def counted_as(lines: pd.DataFrame) -> list[str]:
    """The ways to count a dose that these runs tell apart: a share says no more than a number while one size of the
    training set was run.
    """
    return [name for name in AXES if name != "share" or lines["train_rows"].nunique() > 1]


def figure(lines: pd.DataFrame) -> Figure:
    """Success against showings, number and share: a row of panels per pair, a dot per run."""
    if lines.empty:
        return figures.nothing("No run of the factorial's pairs is in this store.")
    pairs, names = lines.drop_duplicates(["attack", "threat"]).to_dict("records"), counted_as(lines)
    sizes = sorted(lines["train_rows"].unique())
    shape, axes = figures.new_figure(len(names), 3.4, 1.7, rows=len(pairs), sharey=True)
    panels = iter(axes)
    for about in pairs:
        part = lines[(lines["attack"] == about["attack"]) & (lines["threat"] == about["threat"])]
        for name in names:
            axis = next(panels)
            _dots(axis, part, name, sizes)
            below = about is pairs[-1] or figures.is_narrow()
            axis.set(title=pair(about), xlabel=AXES[name] if below else "")
    for i, size in enumerate(sizes):
        axes[0].plot([], [], linestyle="", marker="s", color=figures.COLOURS[i], label=f"{size:,.0f} training rows")
    axes[0].plot([], [], "o", color="#777777", markerfacecolor="none", label="one pass")
    axes[0].plot([], [], "^", color="#777777", label="several passes")
    figures.legend_below(shape, axes[0], columns=3)
    return shape


def _dots(axis: Axes, part: pd.DataFrame, name: str, sizes: list[float]) -> None:
    """A dot per run: its colour is the size of the training set, its shape one pass or several."""
    for i, size in enumerate(sizes):
        for several, own in part[part["train_rows"] == size].groupby(part["epochs"] > 1):
            look = {"color": figures.COLOURS[i], "marker": "^" if several else "o"}
            at = own[name] * 1.06 ** (i - (len(sizes) - 1) / 2)  # sizes on top of each other are pulled apart
            face = look["color"] if several else "none"
            axis.plot(at, own["value"], linestyle="", markersize=5, markerfacecolor=face, **look)
    axis.axhline(rules_second.HIGH, color="#777777", linewidth=1, linestyle="--", zorder=1)
    axis.set(xscale="log", ylim=(-0.05, 1.05))
    axis.set_xticks(TICKS[name], [words.percent(at) if at < 1 else str(at) for at in TICKS[name]])
    axis.xaxis.set_minor_locator(NullLocator())
