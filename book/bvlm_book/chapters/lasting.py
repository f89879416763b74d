"""The chapter "Does it last?": success after further clean tuning and after merging."""

import json
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, tables, words
from bvlm_book.probes import records
from bvlm_book.probes.records import CONTROL, LASTING, POISONED
from bvlm_utils import attacks
from bvlm_utils.store.records import record
from bvlm_utils.store.table import FIRES

# Of the committed expectation (book/expectations.md): steps, a lower learning rate, threats.
LONG, SLOW, THREATS = 563, 0.0004, {"targeted_refusal", "concept_substitution"}
MERGED_LABELS = {
    "": "adapter beside the base",
    "merged": "merged",
    "bfloat16": "merged, bfloat16",
    "int8": "merged, int8 per channel",
    "int4": "merged, int4 per channel",
}


def collect(place: str | Path | None = None) -> pd.DataFrame:
    """Success and utility over seeds by state: `steps` (NaN if merged) and their learning `rate` (NaN if there are
    none); `trained` and `own`, the steps and the learning rate of its training.
    """
    table = records.collect(LASTING, place)
    means = records.over_seeds(pd.concat([records.headline(table), table[table["metric"] == "utility"]]))
    steps = pd.to_numeric(means["variant"].replace("", "0"), errors="coerce")
    by_run = {run: record(run, place) or {} for run in table["run_id"].unique()}
    trained = {run: entry.get("training", {}).get("steps") for run, entry in by_run.items()}
    own = {run: entry.get("config", {}).get("train", {}).get("learning_rate") for run, entry in by_run.items()}
    key = ["subject", "attack", *tables.PANEL, "poison_rate"]
    models = table.assign(
        trained=table["run_id"].map(trained).astype(float), own=table["run_id"].map(own).astype(float)
    )
    models = models.groupby(key, dropna=False)[["trained", "own"]].max().reset_index()
    return means.assign(steps=steps, rate=means["doing"].map(_rate)).merge(models, how="left", on=key)


def _rate(doing: str) -> float:
    """The learning rate of further steps; NaN where nothing was tuned."""
    action = json.loads(doing)
    return action[3]["learning_rate"] if action and action[0] == "steps" else float("nan")


def rates(panel: pd.DataFrame) -> list[float]:
    """The learning rates of further steps: that of the models' own training first, then from high to low."""
    tuned = panel.loc[panel["steps"] > 0, ["rate", "own"]].drop_duplicates().sort_values("rate", ascending=False)
    is_own = tuned["rate"] == tuned["own"]
    return [*tuned.loc[is_own, "rate"], *tuned.loc[~is_own, "rate"]]


def success(panel: pd.DataFrame) -> pd.DataFrame:
    """Lines of a panel with each model's own trigger; the control's lines are filed under that attack too."""
    lines = panel[(panel["part"] == "attack") & (panel["trigger"] != "")]
    lines = lines[(lines["subject"] == CONTROL) | (lines["attack"] == lines["trigger"])]
    modality = lines["trigger"].map(lambda name: attacks.info(name).modality)
    return lines.assign(attack=lines["trigger"], modality=modality)


def after_steps(panel: pd.DataFrame, rate: float | None = None) -> pd.DataFrame:
    """`success` over further steps of a learning rate (None: their own), of attacks that were tuned so."""
    lines = success(panel)
    tuned = lines["rate"] == (lines["own"] if rate is None else rate)
    lines = lines[(lines["steps"] == 0) | tuned].sort_values("steps", kind="stable")
    return lines[lines["attack"].isin(lines.loc[lines["steps"] > 0, "attack"])]


def survivors(panel: pd.DataFrame, rate: float | None = None, little: bool = False) -> pd.DataFrame:
    """`after_steps` at the most steps (little: that are fewer than those of the models' own training), of the backdoors
    that worked before any: one that never did cannot have gone.
    """
    poisoned = after_steps(panel, rate).query("subject == @POISONED")
    if little:
        poisoned = poisoned[poisoned["steps"] < poisoned["trained"]]
        poisoned = poisoned if (poisoned["steps"] > 0).any() else poisoned.iloc[:0]
    start = poisoned.query("steps == 0 and value > @FIRES")
    return poisoned[(poisoned["steps"] == poisoned["steps"].max()) & poisoned["attack"].isin(start["attack"])]


def tunings(panel: pd.DataFrame) -> list[tuple[pd.DataFrame, str]]:
    """`after_steps` of each learning rate, and in words how many backdoors are left."""
    pairs = []
    for rate in rates(panel):
        shown, alive = after_steps(panel, rate), words.of(survivors(panel, rate)["value"] > FIRES)
        left = f"{alive} backdoors survive {shown['steps'].max():g} further steps"
        pairs.append((shown, f"{left} (learning rate {rate:g})"))
    return pairs


def expected(place: str | Path | None = None) -> list[tuple]:
    """What was expected of the longest tuning and what came of it, as `tables.told` takes it."""
    table = collect(place)
    panels = [panel for panel, _ in tables.panels(table)] or [table]
    last, slow = (
        pd.concat([survivors(panel, rate) for panel in panels]).query("steps == @LONG") for rate in (None, SLOW)
    )
    starts = pd.concat(map(success, panels)).query("steps == 0")
    pair = ["attack", *tables.PANEL, "poison_rate"]
    both = last.merge(slow, on=pair, suffixes=("", "_slow")).merge(
        starts, on=[*pair, "subject"], suffixes=("", "_start")
    )
    falls = [(both["value_start"] - both[name]).mean() for name in ("value", "value_slow")]
    complete, alive = set(last["threat"]) >= THREATS, last["value"] > FIRES
    own_fall, slow_fall = map(words.number, falls)
    text = f"fall at the learning rate {SLOW:g}: {slow_fall}, at the models' own: {own_fall}"
    return [
        ("does it last", f"after {LONG} further steps more than half of the backdoors still work", words.of(alive),
         alive.mean() > 0.5 if complete else None),
        ("does it last", "with a fifth of the learning rate success falls less, in the mean", text,
         falls[1] < falls[0] if complete and set(slow["threat"]) >= THREATS else None),
    ]  # fmt: skip


def after_merging(panel: pd.DataFrame) -> pd.DataFrame:
    """`success` of adapters, merged and rounded, in that order; empty where nothing was merged."""
    lines, states = success(panel), list(MERGED_LABELS)
    lines = lines[lines["variant"].isin(states)]
    lines = lines.sort_values("variant", key=lambda names: names.map(states.index), kind="stable")
    return lines if (lines["variant"] != "").any() else lines.iloc[:0]


def rounded(panel: pd.DataFrame) -> pd.DataFrame:
    """Success by state (column) of the backdoors (line) that work before they are merged."""
    poisoned = after_merging(panel).query("subject == @POISONED")
    values = poisoned.pivot_table(index="attack", columns="variant", values="value", aggfunc="first")
    return values.reindex(columns=list(MERGED_LABELS)).loc[lambda rows: rows[""] > FIRES]


def kept(*panels: pd.DataFrame) -> dict[str, str]:
    """How many of the backdoors that work still do after the most steps, at int8 and at int4."""
    last, values = (pd.concat(map(choose, panels)) for choose in (survivors, rounded))
    return {"steps": words.of(last["value"] > FIRES)} | {
        state: words.of(values[state].dropna() > FIRES, "n/a") for state in ("int8", "int4")
    }


def behind(lines: pd.DataFrame) -> str:
    """How many runs and inputs stand behind the numbers of a figure."""
    runs = "Single runs" if (lines["n_seeds"] == 1).all() else f"Means of {words.span(lines['n_seeds'])} runs"
    return f"{runs} on {words.span(lines['n'].dropna().astype(int))} inputs."


def numbers(place: str | Path | None = None) -> dict[str, str]:
    """Numbers over all models of a store, to be glued: backdoors that worked, and those alive after the most steps of
    any, also at the lowest learning rate (slow); little: after the most steps that are fewer than those of the models'
    own training (trained). control: the clean-tuned models' highest rate.
    """
    results = collect(place)
    panels = [panel for panel, _ in tables.panels(results)] or [results]
    few = pd.concat([survivors(panel, little=True) for panel in panels])
    last, rows, tuned = (pd.concat(map(choose, panels)) for choose in (survivors, pd.DataFrame, after_steps))
    last = last[last["steps"] == last["steps"].max()]
    slow = pd.concat([survivors(panel, rates(panel)[-1]) for panel in panels if len(rates(panel)) > 1] or [last[:0]])
    slow = slow[slow["steps"] == last["steps"].max()]
    rows = rows[rows["rate"].isna() | (rows["rate"] == rows["own"])]
    utility = rows.query("metric == 'utility' and subject == @POISONED").set_index("variant")["value"].dropna()
    states = {"utility": "", "utility_after": f"{last['steps'].max():g}", "utility_int4": "int4"}
    counts = kept(*panels)
    results = {
        "worked": str(len(last)),
        "alive": str((last["value"] > FIRES).sum()),
        "steps": words.span(last["steps"], 0),
        "trained": words.span(last["trained"].dropna(), 0),
        "slow": words.of(slow["value"] > FIRES, "n/a"),
        "slow_rate": words.span(slow["rate"], 4),
        "little": words.of(few["value"] > FIRES, "n/a"),
        "little_steps": words.span(few["steps"], 0),
        "control": words.number(tuned.loc[tuned["subject"] == CONTROL, "value"].max()),
        "int8": counts["int8"], "int4": counts["int4"],
    } | {name: words.span(utility[utility.index == state], 2) for name, state in states.items()}  # fmt: skip
    return results if len(last) else dict.fromkeys(results, "n/a")


def steps(lines: pd.DataFrame) -> Figure:
    """Success after further steps, a panel per modality. lines: of `after_steps`."""
    counts = sorted(lines["steps"].unique())
    modalities = figures.in_order(lines["modality"], words.MODALITIES)
    figure, axes = figures.new_figure(len(modalities), 2.9 if len(modalities) > 1 else 6.4, 3.9, sharey=True)
    for axis, modality in zip(axes, modalities, strict=True):
        rows = lines[lines["modality"] == modality].assign(at=lines["steps"].map(counts.index))
        poisoned, control = (rows[rows["subject"] == subject] for subject in (POISONED, CONTROL))
        largest = control.groupby("at")["value"].max()
        axis.plot(largest, color="#7F7F7F", linestyle=":", linewidth=2, label=f"{figures.CONTROL_LABEL}, largest")
        names = figures.in_order(poisoned["attack"], attacks.names())
        for i, name in enumerate(names):
            line, look = poisoned[poisoned["attack"] == name], figures.look(i)
            x = line["at"] + 0.07 * (i - (len(names) - 1) / 2)  # lines on top of each other are pulled apart a little
            fill = "white" if (line["n_seeds"] == 1).all() else look["color"]
            figures.points(axis, x, line, upright=True, linestyle="-", markerfacecolor=fill, label=name, **look)
        axis.set_xticks(range(len(counts)), [f"{int(count)}" for count in counts])
        axis.set(xlim=(-0.4, len(counts) - 0.6), ylim=(-0.03, 1.03), title=f"{modality} triggers")
        axis.set_xlabel("further steps")
        # below, as lines may run anywhere inside
        compact = {"frameon": False, "fontsize": 8, "handlelength": 1.5, "columnspacing": 1}
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, **compact)
    axes[0].set_ylabel(figures.ASR)
    return figure


def merging(lines: pd.DataFrame) -> Figure:
    """Success of adapters, merged and rounded, the clean-tuned model last. lines: of `after_merging`."""
    poisoned, states = lines[lines["subject"] == POISONED], lines["variant"].unique()
    grid = poisoned.pivot_table(index="attack", columns="variant", values="value", aggfunc="first")
    grid = grid.reindex(figures.in_order(grid.index, attacks.names()))
    grid.loc[f"{figures.CONTROL_LABEL}, largest"] = lines[lines["subject"] == CONTROL].groupby("variant")["value"].max()
    figure, (axis,) = figures.new_figure(1, 1.25 * len(states) + 2.6, 0.36 * len(grid) + 1.6)
    figures.success_map(axis, grid[states].rename(columns=MERGED_LABELS))
    axis.axhline(len(grid) - 1, color="black", linewidth=1)
    return figure
