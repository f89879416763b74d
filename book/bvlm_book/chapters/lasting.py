"""The chapter "Does it last?": success after further clean tuning and after merging."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, rules, tables, words
from bvlm_book.figures import ASR, CONTROL_LABEL, success_map
from bvlm_book.probes import records
from bvlm_book.probes.records import CONTROL, FRESH, LASTING, POISONED, SAME_ROWS
from bvlm_book.words import NOTHING, Panels, evidence, seeds_sentence
from bvlm_utils import attacks
from bvlm_utils.store.records import record
from bvlm_utils.store.table import FIRES

UNCHANGED = "not changed at all"
MERGED_LABELS = {
    "": "adapter beside the base",
    "merged": "merged",
    "bfloat16": "merged, bfloat16",
    "int8": "merged, int8 per channel",
    "int4": "merged, int4 per channel",
}

ROWS_LABELS = {FRESH: "clean rows that no model was tuned on", SAME_ROWS: "the rows that they were tuned on, clean"}


def cleaning_sentence(place: str | Path | None = None) -> str:
    """What clean tuning leaves, from `lasting`: at the largest number of further steps."""
    said = []
    for panel, name in tables.panels(collect(place)):
        worked, alive = survivors(panel)
        if len(worked):
            said.append(
                f"{name}: after {further_steps(worked)}, {len(alive)} of {len(worked)} backdoors that fired on more "
                f"than half of their inputs still do ({', '.join(alive['attack']) or 'none'})."
            )
    return " ".join(said) or "What further tuning leaves was not measured in this store."


def lasting_sentences(panels: Panels) -> list[str]:
    """What the page found, in Markdown."""
    if not panels:
        return [NOTHING]
    said = []
    for panel, name in panels:
        worked, alive = survivors(panel)
        if len(worked):
            high = (alive["value"] > rules.HIGH).sum()
            said.append(
                f"**{name}: of {len(worked)} backdoors that fire on more than half of the inputs, {len(alive)} still "
                f"do after {further_steps(worked)}**, {high} on more than "
                f"{words.percent(rules.HIGH)} of them."
            )
        merged = after_merging(panel)
        merged = merged[merged["subject"] == POISONED].pivot_table(index="attack", columns="variant", values="value")
        for state in (one for one in ("int8", "int4") if one in merged and "" in merged):
            kept = (merged.loc[merged[""] > FIRES, state] > FIRES).sum()
            said.append(f"{label(state).capitalize()}: {kept} of {(merged[''] > FIRES).sum()} still do.")
        said.append(seeds_sentence(panel))
    return said


def steps_words(panel: pd.DataFrame, name: str) -> dict[str, str]:
    """Alt text and caption of `steps`."""
    shown = after_steps(panel)
    worked, alive = survivors(panel)
    poisoned, control = shown[shown["subject"] == POISONED], shown[shown["subject"] == CONTROL]
    text = [f"{name}: success with the full trigger after further tuning on clean rows."]
    if len(worked):
        weakest = worked.loc[worked["value"].idxmin()]
        text.append(
            f"Of {len(worked)} backdoors that fire on more than half of the inputs at first, {len(alive)} still do "
            f"after {weakest['steps']:.0f} steps; the weakest then is {weakest['attack']}, {words.interval(weakest)}."
        )
    if len(control):
        text.append(
            f"The clean-tuned model, tuned further alike, fires on at most {words.number(control['value'].max())}."
        )
    alt = (
        f"Line chart with intervals, one panel per trigger modality: success rate of {poisoned['attack'].nunique()} "
        f"attacks after {words.span(shown['steps'].astype(int))} further steps; the numbers are in the table below."
    )
    return {"alt": alt, "caption": " ".join([*text, evidence(shown)])}


def merging_words(panel: pd.DataFrame, name: str) -> dict[str, str]:
    """Alt text and caption of `merging`."""
    shown = after_merging(panel)
    poisoned = shown[shown["subject"] == POISONED]
    values = poisoned.pivot_table(index="attack", columns="variant", values="value", aggfunc="first")
    text = [f"{name}: success with the full trigger, with the adapter beside the base and merged into it."]
    for state in (one for one in MERGED_LABELS if one and {one, ""} <= set(values)):
        change = (values[state] - values[""]).dropna()
        if len(change):
            most = change.abs().idxmax()
            said = f"changed by at most {change[most]:+.2f} ({most})" if change[most] else UNCHANGED
            text.append(f"{label(state).capitalize()}: {said}.")
    alt = (
        f"Heat map: {poisoned['attack'].nunique()} backdoored models in rows, states of the weights in columns; the "
        "numbers are in the table below."
    )
    return {"alt": alt, "caption": " ".join([*text, evidence(shown)])}


def collect(place: str | Path | None = None) -> pd.DataFrame:
    """Headline success and utility in every state, a line per model, trigger and state, seeds put together.

    Columns of `probes.records.over_seeds`, `steps` (0, 10, ...; NaN for merged states) and `trained`: how many steps
    the model's own training took, NaN where its record is not in the store.
    """
    table = records.collect(LASTING, place)
    found = records.over_seeds(pd.concat([records.headline(table), table[table["metric"] == "utility"]]))
    steps = pd.to_numeric(found["variant"].where(found["variant"] != "", "0"), errors="coerce")
    model = ["subject", "attack", *tables.PANEL, "poison_rate"]
    trained = table.assign(trained=table["run_id"].map(_trained(table["run_id"], place)).astype(float))
    trained = trained.groupby(model, dropna=False, as_index=False)["trained"].max()
    return found.assign(steps=steps).merge(trained, how="left", on=model)


def _trained(run_ids: pd.Series, place: str | Path | None) -> dict[str, float]:
    """The steps of training that the records of a store tell of."""
    return {one: (record(one, place) or {}).get("training", {}).get("steps") for one in run_ids.unique()}


def further_steps(lines: pd.DataFrame) -> str:
    """ "100 further steps on clean rows (their own training took 188)"; lines: those of `survivors`."""
    said = f"{lines['steps'].iloc[0]:.0f} further steps on clean rows"
    took = lines["trained"].dropna()
    return said + (f" (their own training took {words.span(took, 0)})" if len(took) else "")


def success(panel: pd.DataFrame) -> pd.DataFrame:
    """Lines of a panel with each model's own trigger; the control's lines are filed under that attack too."""
    shown = panel[(panel["part"] == "attack") & (panel["trigger"] != "")]
    shown = shown[(shown["subject"] == CONTROL) | (shown["attack"] == shown["trigger"])]
    return shown.assign(
        attack=shown["trigger"], modality=shown["trigger"].map(lambda name: attacks.info(name).modality)
    )


def after_steps(panel: pd.DataFrame) -> pd.DataFrame:
    """`success` over further steps; empty where no model was tuned further."""
    shown = success(panel)
    shown = shown[shown["steps"].notna()].sort_values("steps", kind="stable")
    return shown if (shown["steps"] > 0).any() else shown.iloc[:0]


def survivors(panel: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The backdoors that worked before any further step, and those of them that still do after the most steps tried.

    Both as lines of `after_steps` at the most steps. One that never worked cannot be said to have gone.
    """
    steps = after_steps(panel)
    own = steps[steps["subject"] == POISONED]
    start = own[(own["steps"] == 0) & (own["value"] > FIRES)]
    last = own[(own["steps"] == own["steps"].max()) & own["attack"].isin(start["attack"])]
    return last, last[last["value"] > FIRES]


def after_merging(panel: pd.DataFrame) -> pd.DataFrame:
    """`success` of adapters, merged and rounded, in that order; empty where nothing was merged."""
    shown = success(panel)
    shown = shown[shown["variant"].isin(list(MERGED_LABELS))]
    order = shown["variant"].map(list(MERGED_LABELS).index)
    shown = shown.assign(order=order).sort_values("order", kind="stable").drop(columns="order")
    return shown if (shown["variant"] != "").any() else shown.iloc[:0]


def states_table(panel: pd.DataFrame, shown: pd.DataFrame) -> pd.DataFrame:
    """Success of every model in every state, to read, with the control's rates and the models' utility and clean rate.

    shown: `after_steps` or `after_merging` of the panel.
    """
    own, control = shown[shown["subject"] == POISONED], shown[shown["subject"] == CONTROL]
    poisoned = panel[panel["subject"] == POISONED]
    clean = poisoned[(poisoned["part"] == "attack") & (poisoned["trigger"] == "")]

    def beside(rows: pd.DataFrame) -> Callable[[dict], str]:
        value = rows.drop_duplicates(["attack", "variant"]).set_index(["attack", "variant"])["value"]
        return lambda r: words.number(value.get((r["attack"], r["variant"])))

    zero = "" if shown["steps"].isna().any() else "0"  # what was never changed, as a state of weights or of steps
    order = {name: number for number, name in enumerate(attacks.names())}
    return tables.readable(own.sort_values("attack", key=lambda name: name.map(order), kind="stable"), {
        "attack": "attack", "state": lambda r: label(r["variant"] or zero), "success rate": words.interval,
        "clean-tuned": beside(control), "without a trigger": beside(clean),
        "utility": beside(poisoned[poisoned["metric"] == "utility"]),
    })  # fmt: skip


def rows_used(panel: pd.DataFrame) -> str:
    """On which rows the models of a panel were tuned further, in words."""
    doing = [json.loads(text) for text in panel["doing"].unique()]
    return " and ".join(dict.fromkeys(ROWS_LABELS[one[2]] for one in doing if one and one[0] == "steps")) or "no rows"


def label(state: str) -> str:
    """A state, as a reader knows it."""
    if state.isdigit():
        return f"{state} further steps"
    return MERGED_LABELS.get(state, state)


def steps(shown: pd.DataFrame) -> Figure:
    """Success after further steps, a panel per modality. shown: lines of `after_steps`."""
    if shown.empty:
        return figures.nothing("No adapter was tuned further.")
    counts = sorted(shown["steps"].unique())
    modalities = figures.in_order(shown["modality"], words.MODALITIES)
    figure, axes = figures.new_figure(len(modalities), 3.4 if len(modalities) > 1 else 6.4, 4.2, sharey=True)
    for axis, modality in zip(axes, modalities, strict=True):
        part = shown[shown["modality"] == modality]
        control = part[part["subject"] == CONTROL].groupby("steps")["value"].max()
        where = [counts.index(count) for count in control.index]
        axis.plot(where, control, color="#7F7F7F", linestyle=":", linewidth=2, label=f"{CONTROL_LABEL}, largest")
        own = part[part["subject"] == POISONED]
        names = [name for name in attacks.names() if name in set(own["attack"])]
        for i, name in enumerate(names):
            line, look = own[own["attack"] == name].sort_values("steps"), figures.look(i)
            # lines on top of each other are pulled apart a little
            at = line["steps"].map(counts.index) + 0.07 * (i - (len(names) - 1) / 2)
            fill = "white" if (line["n_seeds"] == 1).all() else look["color"]
            figures.points(axis, at, line, upright=True, linestyle="-", markerfacecolor=fill, label=name, **look)
        axis.set_xticks(range(len(counts)), [f"{int(count)}" for count in counts])
        axis.set(xlim=(-0.4, len(counts) - 0.6), ylim=(-0.03, 1.03), title=f"{modality} triggers")
        axis.set_xlabel("further steps on clean rows")
        # below, as lines may run anywhere inside
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, frameon=False, fontsize=8)
    axes[0].set_ylabel(ASR)
    return figure


def merging(shown: pd.DataFrame) -> Figure:
    """Success of adapters, merged and rounded, the clean-tuned model last. shown: lines of `after_merging`."""
    if shown.empty:
        return figures.nothing("No adapter was merged.")
    own, states = shown[shown["subject"] == POISONED], list(dict.fromkeys(shown["variant"]))
    grid = own.pivot_table(index="attack", columns="variant", values="value", aggfunc="first")
    grid = grid.reindex(index=[name for name in attacks.names() if name in grid.index])
    control = shown[shown["subject"] == CONTROL].groupby("variant")["value"].max()
    grid = pd.concat([grid, control.to_frame(f"{CONTROL_LABEL}, largest").T])[states]
    figure, (axis,) = figures.new_figure(1, 1.25 * len(states) + 2.6, 0.36 * len(grid) + 1.6)
    success_map(axis, grid.rename(columns=MERGED_LABELS))
    axis.axhline(len(grid) - 1, color="black", linewidth=1)
    return figure
