"""How does a chapter say what the store holds? The notebooks call this between the tidy table and the page.

`summary` condenses the tidy table, `compare` sets two stores side by side, `show`, `show_table` and `say`
put things on the page in HTML that the book and JupyterLab show alike, and `glue` hands numbers to prose.
Sentences about numbers are in `captions`, figures in `plots`. Nothing here trains, and nothing imports
torch.
"""

import base64
import html
import io
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown, display
from matplotlib.figure import Figure

from bvlm_utils import attacks, metrics, plots, threats
from bvlm_utils.errors import InputError

CELL = ["model", "dataset", "threat", "attack", "modality", "poison_rate", "n_poisoned"]
NUMBER = [*CELL, "subject", "condition", "metric"]
FIRES = 0.5  # a backdoor, or half of a trigger, fires if it does so on more than this share of the inputs
# The measures of success other than a threat's headline, as a reader knows them.
MEASURES = {
    "asr": "strict test",
    "asr_soft": "soft test",
    "right": "answer right",
    "refused": "refused",
    "asr_right": "strict test and answer right",
    "asr_elsewhere": "soft test on pictures without the source",
}
MARKS = {"ceiling": "▲", "floor": "▼", "": ""}
DPI = 144
LONG = 45  # letters of a table's field that need a wider column


# ---------------------------------------------------------------- the table


def summary(table: pd.DataFrame, metric: str, subject: str | None = None) -> pd.DataFrame:
    """One row per cell but for its seed, subject and condition: value and interval over the seeds.

    table: rows of `store.collect`. One seed: its own value and interval (over test rows). Several: the mean
    of the seeds' values with the t interval of the seeds, never their test rows pooled; `n_seeds` says which
    it was. InputError where one seed has two values: such a table mixes settings that the columns do not
    tell apart.
    """
    rows = table[(table["metric"] == metric) & table["value"].notna()]
    if subject is not None:
        rows = rows[rows["subject"] == subject]
    repeated = rows.duplicated([*NUMBER, "seed"])
    if repeated.any():
        first = rows[repeated].iloc[0]
        raise InputError(
            f"Cell {first['run_id']} is in the table twice with seed {first['seed']}; "
            "show runs that differ in other settings one table at a time."
        )
    columns = [*NUMBER, "value", "low", "high", "k", "n", "n_seeds", "unit"]
    # Plain dictionaries: a DataFrame for each of the hundreds of groups would take most of a chapter's time.
    groups: dict[int, list[dict[str, Any]]] = {}
    numbers = rows.groupby(NUMBER, sort=False, dropna=False).ngroup()
    for number, line in zip(numbers, rows.to_dict("records"), strict=True):
        groups.setdefault(number, []).append(line)
    return pd.DataFrame([lines[0] | _over_seeds(lines) for lines in groups.values()], columns=columns)


def _over_seeds(lines: list[dict[str, Any]]) -> dict[str, Any]:
    if len(lines) == 1:
        return {"n_seeds": 1}
    values = np.array([line["value"] for line in lines], float)
    low, high = metrics.seeds_interval(values, *([float(line[end]) for line in lines] for end in ("low", "high")))
    if not any(pd.isna(line["k"]) for line in lines):  # shares: no interval beyond 0 and 1
        low, high = max(low, 0.0), min(high, 1.0)
    return {"value": values.mean(), "low": low, "high": high, "k": np.nan, "n_seeds": len(lines)}


def headline_metric(table: pd.DataFrame) -> pd.Series:
    """For every row the metric that its cell's success is read from: the headline of its threat. Where that was not
    measured, since nobody can say which answers are right (free captions, conversations), strict success alone.
    """
    wanted = table["threat"].map({name: _headline(name) for name in table["threat"].unique()})
    judged = table.loc[table["metric"] == wanted, "run_id"]
    return wanted.where(table["run_id"].isin(judged)).fillna("asr")


def _headline(threat: str) -> str:
    """The declared headline of a threat; the strict test for one that only the store knows."""
    return threats.THREATS.get(threat).headline if threat in threats.THREATS else "asr"


def success_rates(table: pd.DataFrame, subject: str | None = None) -> pd.DataFrame:
    """`summary` of each cell's `headline_metric`, threat by threat."""
    own = table[table["metric"] == headline_metric(table)]
    parts = [summary(part, metric, subject) for (_, metric), part in own.groupby(["threat", "metric"], sort=False)]
    parts = [part for part in parts if len(part)]  # an empty one has no number types
    return pd.concat(parts, ignore_index=True) if parts else summary(table, "asr", subject)


def headline_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Only the rows under the condition that an attack is read from: its full trigger, if it has one.

    Shadowcast has no trigger at test time and is read on clean inputs.
    """
    return table[table["condition"] == table["attack"].map(lambda name: attacks.info(name).headline)]


def every_rate(table: pd.DataFrame, stored: pd.DataFrame) -> pd.DataFrame:
    """The rows of `stored` whose cells differ from those of `table` in poison rate and seed alone."""
    return stored[stored["experiment"].isin(table["experiment"])]


def every_seed(table: pd.DataFrame, stored: pd.DataFrame) -> pd.DataFrame:
    """The rows of `stored` whose cells differ from those of `table` in seed alone, and those of `table`.

    A page that shows one seed where the store holds three would contradict the pages that show all of them.
    """
    key = ["experiment", "poison_rate"]
    return table[key].drop_duplicates().merge(stored, on=key)[stored.columns]  # in the order of `table`


def false_activation(table: pd.DataFrame) -> pd.DataFrame:
    """Only the clean rows, of attacks that should not fire there."""
    return table[
        (table["condition"] == "clean") & (table["attack"].map(lambda name: attacks.info(name).headline) != "clean")
    ]


def utility_metric(rows: pd.DataFrame) -> str:
    """What utility is called in these rows of `summary` (its unit), such as "VQA accuracy"."""
    return " or ".join(rows["unit"].dropna().unique()) or "utility"


def number(value: Any, low: Any = None, high: Any = None, digits: int = 2) -> str:
    """ "0.97 [0.93, 0.99]"; "n/a" for a missing value; never a zero below zero."""
    if value is None or pd.isna(value):
        return "n/a"
    # Not `round`: NumPy's rounds 0.995 up, formatting and the figures round it down.
    written = [f"{one:.{digits}f}" for one in (value, low, high) if not _missing(one)]
    text, *bounds = (one.lstrip("-") if float(one) == 0 else one for one in written)
    return f"{text} [{', '.join(bounds)}]" if len(bounds) == 2 else text


def marked(value: Any, low: Any = None, high: Any = None) -> str:
    """`number` of a success rate, marked at the ceiling (▲) and at the floor (▼)."""
    text = number(value, low, high)
    return text if text == "n/a" else f"{text} {MARKS[metrics.mark(value)]}".rstrip()


def grid_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `summary` (one subject) to read: a line per attack and rate, a column per condition."""
    if rows.empty:
        return pd.DataFrame(columns=["attack", "modality", "poisoned rows"])
    conditions = [c for c in plots.CONDITIONS if c in set(rows["condition"])]
    lines = []
    for (attack, modality, rate, count), part in rows.groupby(
        ["attack", "modality", "poison_rate", "n_poisoned"], sort=False
    ):
        by_condition = part.drop_duplicates("condition").set_index("condition")
        line = {
            "attack": attack,
            "modality": modality,
            "poisoned rows": f"{int(count)} ({plots.percent(rate)})",
        }
        for condition in conditions:
            found = by_condition.loc[condition] if condition in by_condition.index else {}
            line[plots.CONDITION_LABELS[condition]] = marked(found.get("value"), found.get("low"), found.get("high"))
        lines.append(line | {"seeds": int(part["n_seeds"].min())})
    return pd.DataFrame(lines)


def skipped(table: pd.DataFrame) -> pd.DataFrame:
    """The cells that were not run, each with its reason; an empty table when there is none."""
    rows = table[table["status"] == "skipped"].drop_duplicates("run_id")
    named = rows[["attack", "threat", "poison_rate", "seed", "reason"]].reset_index(drop=True)
    return named.rename(columns={"poison_rate": "poison rate"})


def other_metrics(table: pd.DataFrame) -> pd.DataFrame:
    """Further measures at the highest rate: a line per measure, attack and condition, a column per model."""
    lines = []
    for metric in dict.fromkeys(table["metric"].dropna()):
        if metric not in MEASURES or metric in {_headline(threat) for threat in table["threat"].unique()}:
            continue
        rows = summary(table, metric)
        rows = rows[rows["poison_rate"] == rows["poison_rate"].max()]
        for (attack, condition), part in rows.groupby(["attack", "condition"], sort=False, dropna=False):
            line = {
                "measure": MEASURES[metric],
                "attack": attack,
                "condition": plots.CONDITION_LABELS.get(condition, condition),
            }
            for subject in (s for s in plots.SUBJECTS if s in set(table["subject"])):
                found = part[part["subject"] == subject]
                values = found.iloc[0] if len(found) else {}
                line[plots.SUBJECT_LABELS[subject]] = number(values.get("value"), values.get("low"), values.get("high"))
            lines.append(line)
    return pd.DataFrame(lines)


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """Poisoned minus clean-tuned on the same rows: one line per measure, attack, rate and condition."""
    names = {"asr_difference": "strict success", "utility_difference": "utility"}
    rows = pd.concat([summary(table, metric) for metric in names], ignore_index=True)
    return pd.DataFrame(
        [
            {
                "measure": names[r["metric"]],
                "attack": r["attack"],
                "poison rate": plots.percent(r["poison_rate"]),
                "condition": plots.CONDITION_LABELS[r["condition"]],
                "poisoned minus clean-tuned": number(r["value"], r["low"], r["high"]),
            }
            for r in rows.to_dict("records")
        ]
    )


# ---------------------------------------------------------------- two stores


def your_store(name: str | None = None) -> str:
    """The store of the reader's own runs: `name`, else $BVLM_YOURS (which the book sets), else "local"."""
    return name or os.environ.get("BVLM_YOURS") or "local"


def compare(
    yours: pd.DataFrame, reference: pd.DataFrame, metrics: Iterable[str] = ("asr", "asr_right", "utility")
) -> pd.DataFrame:
    """Two tidy tables, number by number: does your interval overlap the reference's?

    A number is the same in both when cell (`run_id`), subject, condition and metric are. `verdict`: "agrees"
    (the intervals overlap), "differs", "no interval" (a value without one cannot be judged), "only yours",
    "only in the reference". Rows keep the order of `yours`.
    """
    key = ["run_id", "subject", "condition", "metric"]
    about = ["model", "dataset", "threat", "attack", "poison_rate", "seed"]

    def side(table: pd.DataFrame, name: str) -> pd.DataFrame:
        rows = table[table["metric"].isin(list(metrics)) & table["value"].notna()]
        return rows[[*key, *about, "value", "low", "high"]].rename(
            columns={"value": name, "low": f"{name}_low", "high": f"{name}_high"}
        )

    both = side(yours, "yours").merge(side(reference, "reference"), how="outer", on=[*key, *about], sort=False)
    both["verdict"] = [_verdict(row) for row in both.to_dict("records")]
    both["label"] = [
        f"{r['attack']}, {plots.percent(r['poison_rate'])}, {r['subject']}, {r['condition']}, {r['metric']}"
        for r in both.to_dict("records")
    ]
    return both


def _verdict(row: Mapping[str, Any]) -> str:
    if pd.isna(row["reference"]):
        return "only yours"
    if pd.isna(row["yours"]):
        return "only in the reference"
    bounds = [row["yours_low"], row["yours_high"], row["reference_low"], row["reference_high"]]
    if any(pd.isna(b) for b in bounds):
        return "no interval"
    return "agrees" if max(bounds[0], bounds[2]) <= min(bounds[1], bounds[3]) else "differs"


def in_both(compared: pd.DataFrame, metric: str, subject: str) -> pd.DataFrame:
    """The compared numbers of one subject that both stores hold. metric: "asr" stands for each threat's headline."""
    wanted = headline_metric(compared) if metric == "asr" else metric
    chosen = compared[(compared["metric"] == wanted) & (compared["subject"] == subject)]
    return chosen[chosen["yours"].notna() & chosen["reference"].notna()].reset_index(drop=True)


def agreement_table(compared: pd.DataFrame) -> pd.DataFrame:
    """`compare`d numbers as a table to read."""
    return pd.DataFrame(
        [
            {
                "threat": r["threat"],
                "attack": r["attack"],
                "poison rate": plots.percent(r["poison_rate"]),
                "seed": r["seed"],
                "model tested": plots.SUBJECT_LABELS.get(r["subject"], r["subject"]),
                "condition": plots.CONDITION_LABELS.get(r["condition"], r["condition"]),
                "measure": r["metric"],
                "yours": number(r["yours"], r["yours_low"], r["yours_high"]),
                "reference": number(r["reference"], r["reference_low"], r["reference_high"]),
                "verdict": r["verdict"],
            }
            for r in compared.to_dict("records")
        ]
    )


# ---------------------------------------------------------------- the page


def overview(table: pd.DataFrame) -> None:
    """Say how many cells there are and what they are; list those that were skipped, with the reason."""
    cells = table.drop_duplicates("run_id")
    left_out = skipped(table)
    done = cells[cells["status"] != "skipped"]
    sentence = f"{len(cells)} cell{'' if len(cells) == 1 else 's'}: {len(done)} measured, {len(left_out)} skipped."
    if len(done):
        what = {c: ", ".join(map(str, dict.fromkeys(done[c]))) for c in ("model", "dataset", "attack", "seed")}
        rates = ", ".join(plots.percent(r) for r in sorted(done["poison_rate"].unique(), reverse=True))
        sentence += (
            f" Model {what['model']}, data {what['dataset']}; attacks {what['attack']}; "
            f"poison rates {rates}; seeds {what['seed']}."
        )
    say(sentence)
    if len(left_out):
        show_table(left_out, caption="Cells that were not run, and why.")


def agreement(compared: pd.DataFrame) -> None:
    """Say how your store and the reference compare, or what to run when there is nothing of yours."""
    if compared["yours"].isna().all():
        say(
            "There is no run of yours to compare. `make study` makes one, and so does "
            "`python -m bvlm_utils.grid run data/grids/quick.yml`."
        )
        return
    counts = compared["verdict"].value_counts()
    judged = int(counts.get("agrees", 0) + counts.get("differs", 0))
    if judged:
        say(
            f"**{int(counts.get('agrees', 0))} of {judged} numbers agree** with the reference, over "
            f"{compared.loc[compared['verdict'].isin(['agrees', 'differs']), 'run_id'].nunique()} cells."
        )
    else:
        say("Your store and the reference have no cell in common: their settings, models or data differ.")
    others = {v: int(counts[v]) for v in ("no interval", "only yours", "only in the reference") if counts.get(v)}
    if others:
        say("Not judged: " + ", ".join(f"{count} {verdict}" for verdict, count in others.items()) + ".")


def show(figure: Figure, alt: str, caption: str) -> None:
    """Put a figure on the page, with a description for those who do not see it, and a caption."""
    if not alt.strip():
        raise InputError("A figure needs an alternative text; say what it shows.")
    page = io.BytesIO()
    figure.savefig(page, format="png", dpi=DPI, facecolor="white")
    data = base64.b64encode(page.getvalue()).decode()
    width = int(figure.get_size_inches()[0] * 96)
    display(
        HTML(
            f'<figure class="bvlm-figure" style="margin:1em 0">'
            # dark-light: the theme must not dim the picture in dark mode, its background is opaque
            f'<img class="dark-light" alt="{html.escape(alt, quote=True)}" '
            f'style="width:{width}px;max-width:100%;height:auto" '
            f'src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    )


def show_table(frame: pd.DataFrame, caption: str, empty: str = "There is nothing to list.") -> None:
    """Put a small table on the page, or the sentence `empty`; a missing value reads "n/a"."""
    if frame.empty:
        say(empty)
        return
    show_html_table(frame.map(_field), caption)


def _field(value: Any) -> str:
    """A field of a table; a long one is kept from being squeezed into a column of single words."""
    if _missing(value):
        return "n/a"
    text = html.escape(str(value))
    return f'<div class="bvlm-long">{text}</div>' if len(text) > LONG else text


def show_html_table(frame: pd.DataFrame, caption: str) -> None:
    """Put a table on the page whose fields are HTML already; `show_table` is for everything else."""
    with pd.option_context("display.max_colwidth", None):
        body = frame.to_html(index=False, border=0, escape=False, classes="table", justify="left")
    body = body.replace(">", f"><caption>{html.escape(caption)}</caption>", 1).replace("<th>", '<th scope="col">')
    display(HTML(f'<div class="bvlm-table" style="overflow-x:auto">{body}</div>'))


def _missing(value: Any) -> bool:
    return value is None or (np.isscalar(value) and pd.isna(value))


def say(*sentences: str) -> None:
    """Put sentences on the page, as one paragraph of Markdown each."""
    display(Markdown("\n\n".join(sentences)))


def glue(values: Mapping[str, Any], prefix: str) -> None:
    """Hand numbers to the prose of this page and, by its address, of others: glued as `prefix_key`."""
    from myst_nb import glue as keep

    for key, value in values.items():
        keep(f"{prefix}_{key}", value, display=False)
