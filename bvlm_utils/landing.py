"""What was found, in one picture and three sentences? The first page of the book asks; free of torch.

Everything is computed from the tidy table of a store, so the page says what the store holds, whatever it is.
"""

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from bvlm_utils import attacks, plots, report, threats

STRONG = 0.90  # a strong backdoor: the mean success rate of its runs lies above this


def usual(table: pd.DataFrame) -> pd.DataFrame:
    """The finished cells of attacks and threats as they are defined, without half-triggered negatives."""
    return table[(table["status"] == "done") & (table["negatives"] == 0) & (table["settings"] == "")]


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """Success of the poisoned models at the highest rate: a row per model, data, threat and attack.

    table: rows of `store.collect`. Columns as in `report.summary`. Cells with half-triggered negatives or
    other settings of their attack are other experiments and left out.
    """
    done = usual(table)
    rows = report.headline_rows(report.success_rates(done, "poisoned"))
    return rows[rows["poison_rate"] == rows["poison_rate"].max()].reset_index(drop=True)


def strong(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `headline` whose mean is above `STRONG`; what their intervals are depends on the seeds there are."""
    return rows[rows["value"].astype(float) > STRONG]


def sentences(table: pd.DataFrame) -> str:
    """The finding in Markdown; says so where the store is empty."""
    rows = headline(table)
    if rows.empty:
        return "Nothing has been measured yet: the store holds no finished cell."
    done = usual(table)
    silent = report.false_activation(report.success_rates(done, "poisoned"))
    cost = report.summary(done, "utility_difference")
    many = rows["n_seeds"] > 1
    above = rows["low"].astype(float) > STRONG
    said = [
        f"With {plots.percent(rows['poison_rate'].max())} of the training rows poisoned, {len(strong(rows))} of "
        f"{len(rows)} pairs of threat and attack {_models(rows)}succeed on more than {plots.percent(STRONG)} of the "
        f"triggered inputs (mean). The whole 95 % interval lies above it for {int((above & many).sum())} of the "
        f"{int(many.sum())} pairs with several seeds, over which it is taken, and for {int((above & ~many).sum())} of "
        f"the {int((~many).sum())} with one, where it knows nothing of other seeds. The strongest reaches "
        f"{_number(rows, 'max')}, the weakest {_number(rows, 'min')}."
    ]
    if len(silent):
        said.append(f"Without the trigger, backdoors fire on at most {_number(silent, 'max')} of the inputs.")
    if len(cost):
        worst = cost.loc[cost["value"].idxmin()]
        change = report.number(worst["value"], worst["low"], worst["high"], digits=3)
        said.append(
            "On clean inputs, the poisoned model that lost most differs in utility from its clean-tuned "
            f"control by {change} ({worst['attack']}, {worst['threat'].replace('_', ' ')}, "
            f"{plots.percent(worst['poison_rate'])}, {worst['model']})."
        )
    return " ".join(said)


def _models(rows: pd.DataFrame) -> str:
    """Pairs are counted once for each model; nothing where there is one model only."""
    names = list(dict.fromkeys(rows["model"]))
    return f"({' and '.join(names)}) " if len(names) > 1 else ""


def _number(rows: pd.DataFrame, which: str) -> str:
    row = rows.loc[rows["value"].idxmax() if which == "max" else rows["value"].idxmin()]
    name, equal = row["threat"].replace("_", " "), int((rows["value"] == row["value"]).sum()) - 1
    others = f", and {equal} more" if equal else ""
    rate = plots.percent(row["poison_rate"])
    where = f"{row['attack']}, {name}, {rate}, {row['model']}"
    return f"{report.number(row['value'], row['low'], row['high'])} ({where}{others})"


def overview(rows: pd.DataFrame) -> Figure:
    """Threats in rows, attacks in columns, one panel per model; rows: `headline`."""
    if rows.empty:
        return plots.nothing("Nothing has been measured yet.")
    models, names = list(dict.fromkeys(rows["model"])), _known(rows["attack"], attacks.names())
    lines = {model: _known(part["threat"], threats.names()) for model, part in rows.groupby("model", sort=False)}
    heights = [0.42 * len(lines[model]) + 1.3 for model in models]
    with matplotlib.rc_context(plots._STYLE):
        figure = Figure(figsize=(0.62 * len(names) + 3.2, sum(heights)), layout="constrained")
        axes = figure.subplots(len(models), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axis, model in zip(axes, models, strict=True):
        part = rows[rows["model"] == model]
        grid = part.pivot_table(index="threat", columns="attack", values="value", aggfunc="first")
        grid = grid.reindex(index=lines[model], columns=names)
        axis.set_facecolor(plots.NOT_AVAILABLE)
        text = grid.map(lambda v: "" if pd.isna(v) else f"{v:.2f}").to_numpy()
        sns.heatmap(
            grid, ax=axis, vmin=0, vmax=1, cmap="mako_r", annot=text, fmt="", linewidths=1.5,
            linecolor="white", cbar_kws={"label": "success rate"},
        )  # fmt: skip
        for row, column in zip(*np.where(grid.isna().to_numpy()), strict=True):
            axis.text(column + 0.5, row + 0.5, "n/a", ha="center", va="center", color="#555555", fontsize=9)
        axis.grid(False)
        axis.set(xlabel="", ylabel="", title=model)
        named = [name.replace("_", " ") for name in lines[model]]
        axis.set_yticks(np.arange(len(named)) + 0.5, named, rotation=0)
        axis.set_xticks(np.arange(len(names)) + 0.5, names, rotation=30, ha="right")
        axis.tick_params(length=0)
    return figure


def _known(values: pd.Series, order: list[str]) -> list[str]:
    return [name for name in order if name in set(values)]


def words(rows: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `overview`."""
    if rows.empty:
        return {"alt": "Nothing has been measured yet.", "caption": "Nothing has been measured yet."}
    counts = sorted(int(n) for n in rows["n"].dropna().unique())
    inputs = " to ".join(dict.fromkeys((str(counts[0]), str(counts[-1]))))
    fewest, most = int(rows["n_seeds"].min()), int(rows["n_seeds"].max())
    seeds = f"{fewest} to {most}" if fewest < most else f"{most}"
    lacking = [name for name in attacks.names() if name not in set(rows["attack"])]
    without = f" No cell at this rate: {', '.join(lacking)}." if lacking else ""
    return {
        "alt": f"Heat map: success rate of {rows['attack'].nunique()} attacks (columns) on "
        f"{rows['threat'].nunique()} threats (rows), from {rows['value'].min():.2f} to "
        f"{rows['value'].max():.2f}.",
        "caption": "Share of held-out inputs on which each backdoor fires with its full trigger, "
        f"{plots.percent(rows['poison_rate'].max())} of the rows poisoned ({seeds} "
        f"seed{'s' if most > 1 else ''}, {inputs} inputs each). {_by_modality(rows)} Darker is more; n/a was not "
        f"measured or has no meaning.{without}",
    }


def _by_modality(rows: pd.DataFrame) -> str:
    """Strong backdoors by what their triggers are, as the finding of the figure."""
    told = []
    for modality in _known(rows["modality"], list(plots.MODALITIES)):
        part = rows[rows["modality"] == modality]
        told.append(f"{len(strong(part))} of {len(part)} with {modality} triggers")
    return f"Mean above {STRONG:.2f}: {', '.join(told)}."
