"""The chapter "Does it last?": success after further clean tuning and after merging."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, rules, tables, words
from bvlm_book.figures import ASR, CONTROL_LABEL, success_map
from bvlm_book.probes import records
from bvlm_book.probes.records import CONTROL, FRESH, LASTING, POISONED, SAME_ROWS
from bvlm_book.words import NOTHING, Panels, evidence_of_probes, seeds_sentence
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

ROWS_LABELS = {
    FRESH: "clean rows that no model was tuned on",
    SAME_ROWS: "the rows that they were tuned on, clean",
}

PANEL = ["model", "dataset", "threat", "train_rows", "settings", "rows"]
GREY = "#7F7F7F"  # of the clean-tuned control


def cleaning_sentence(place: str | Path | None = None) -> str:
    """What clean tuning leaves, from `lasting`: at the largest number of further steps."""
    said = []
    for panel, name in panels(collect(place)):
        worked, alive = survivors(panel)
        if len(worked):
            said.append(
                f"{name}: after {further_steps(worked)}, {len(alive)} of {len(worked)} "
                "backdoors that fired on more than half of their inputs still do "
                f"({', '.join(alive['attack']) or 'none'})."
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
    """Alt text and caption of `chapters.lasting.steps`."""
    shown = after_steps(panel)
    poisoned = shown[shown["subject"] == POISONED]
    last = poisoned["steps"].max()
    start, end = (poisoned[poisoned["steps"] == at].set_index("attack") for at in (0, last))
    common = [attack for attack in start.index if attack in end.index]
    text = [f"{name}: success with the full trigger after further tuning on clean rows."]
    strong = [attack for attack in common if start.loc[attack, "value"] > FIRES]
    if strong:
        kept = [attack for attack in strong if end.loc[attack, "value"] > FIRES]
        worst = min(strong, key=lambda attack: end.loc[attack, "value"])
        text.append(
            f"Of {len(strong)} backdoors that fire on more than half of the inputs at first, {len(kept)} "
            f"still do after {int(last)} steps; the weakest then is {worst}, "
            f"{words.number(*end.loc[worst, ['value', 'low', 'high']])}."
        )
    control = shown[shown["subject"] == CONTROL]
    if len(control):
        text.append(
            f"The clean-tuned model, tuned further alike, fires on at most {words.number(control['value'].max())}."
        )
    text.append(evidence_of_probes(shown))
    alt = (
        "Line chart with intervals, one panel per trigger modality: success rate of "
        f"{poisoned['attack'].nunique()} attacks after 0 to {int(last)} further steps; the numbers are in "
        "the table below."
    )
    return {"alt": alt, "caption": " ".join(text)}


def merging_words(panel: pd.DataFrame, name: str) -> dict[str, str]:
    """Alt text and caption of `chapters.lasting.merging`."""
    shown = after_merging(panel)
    poisoned = shown[shown["subject"] == POISONED]
    values = poisoned.pivot_table(index="attack", columns="variant", values="value", aggfunc="first")
    text = [f"{name}: success with the full trigger, with the adapter beside the base and merged into it."]
    for state in (one for one in MERGED_LABELS if one and one in values):
        if "" in values:
            change = (values[state] - values[""]).dropna()
            if len(change):
                most = change.abs().idxmax()
                said = f"changed by at most {change[most]:+.2f} ({most})"
                text.append(f"{label(state).capitalize()}: {said if change[most] else UNCHANGED}.")
    text.append(evidence_of_probes(shown))
    alt = (
        f"Heat map: {poisoned['attack'].nunique()} backdoored models in rows, states of the weights in "
        "columns; the numbers are in the table below."
    )
    return {"alt": alt, "caption": " ".join(text)}


def collect(place: str | Path | None = None) -> pd.DataFrame:
    """Headline success and utility in every state, a line per model, trigger and state, seeds put together.

    Columns of `probes.records.over_seeds`, `steps` (0, 10, ...; NaN for merged states) and `trained`: how many steps
    the model's own training took, NaN where its record is not in the store.
    """
    table = records.collect(LASTING, place)
    found = records.over_seeds(pd.concat([records.headline(table), table[table["metric"] == "utility"]]))
    steps = pd.to_numeric(found["variant"].where(found["variant"] != "", "0"), errors="coerce")
    model = ["subject", "attack", *PANEL, "poison_rate"]
    trained = table.assign(trained=table["run_id"].map(_trained(table["run_id"], place)).astype(float))
    trained = trained.groupby(model, dropna=False, as_index=False)["trained"].max()
    return found.assign(steps=steps).merge(trained, how="left", on=model)


def _trained(run_ids: pd.Series, place: str | Path | None) -> dict[str, float]:
    """The steps of training that the records of a store tell of."""
    found = {}
    for run_id in run_ids.unique():
        found[run_id] = (record(run_id, place) or {}).get("training", {}).get("steps")
    return found


def further_steps(lines: pd.DataFrame) -> str:
    """ "100 further steps on clean rows (their own training took 188)"; lines: those of `survivors`."""
    said = f"{lines['steps'].iloc[0]:.0f} further steps on clean rows"
    took = list(dict.fromkeys(f"{steps:.0f}" for steps in sorted(lines["trained"].dropna().unique())))
    return said + (f" (their own training took {' to '.join(dict.fromkeys((took[0], took[-1])))})" if took else "")


def panels(table: pd.DataFrame) -> list[tuple[pd.DataFrame, str]]:
    """As `tables.panels`: of one model, threat and poison rate each, with their names."""
    return tables.panels(table)


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
    """Success of every model in every state, to read, with the control's rates and the models' utility and
    clean rate.

    shown: `after_steps` or `after_merging` of the panel.
    """
    states, lines = list(dict.fromkeys(shown["variant"])), []
    own = shown[shown["subject"] == POISONED]
    for attack in (name for name in attacks.names() if name in set(own["attack"])):
        poisoned = panel[(panel["subject"] == POISONED) & (panel["attack"] == attack)]
        control = shown[(shown["subject"] == CONTROL) & (shown["trigger"] == attack)]
        utility = poisoned[poisoned["metric"] == "utility"]
        clean = poisoned[(poisoned["part"] == "attack") & (poisoned["trigger"] == "")]
        for state in states:
            lines.append(
                {
                    "attack": attack,
                    "state": label(state) if state or shown["steps"].isna().any() else "0 further steps",
                    "success rate": _cell(own[own["attack"] == attack], state),
                    "clean-tuned": _cell(control, state, interval=False),
                    "without a trigger": _cell(clean, state, interval=False),
                    "utility": _cell(utility, state, interval=False),
                }
            )
    return pd.DataFrame(lines)


def rows_used(panel: pd.DataFrame) -> str:
    """On which rows the models of a panel were tuned further, in words."""
    doing = [json.loads(text) for text in panel["doing"].unique()]
    return " and ".join(dict.fromkeys(ROWS_LABELS[one[2]] for one in doing if one and one[0] == "steps")) or "no rows"


def label(state: str) -> str:
    """A state, as a reader knows it."""
    if state.isdigit():
        return f"{state} further steps"
    return MERGED_LABELS.get(state, state)


def _cell(rows: pd.DataFrame, state: str, interval: bool = True) -> str:
    found = rows[rows["variant"] == state]
    if found.empty:
        return words.number(None)
    line = found.iloc[0]
    return words.number(line["value"], line["low"], line["high"]) if interval else words.number(line["value"])


def steps(shown: pd.DataFrame) -> Figure:
    """Success after further steps, a panel per modality. shown: lines of `chapters.lasting.after_steps`."""
    if shown.empty:
        return figures.nothing("No adapter was tuned further.")
    counts = sorted(shown["steps"].unique())
    modalities = figures.in_order(shown["modality"], words.MODALITIES)
    figure, axes = figures.new_figure(len(modalities), 3.4 if len(modalities) > 1 else 6.4, 4.2, sharey=True)
    for axis, modality in zip(axes, modalities, strict=True):
        part = shown[shown["modality"] == modality]
        control = part[part["subject"] == CONTROL].groupby("steps")["value"].max()
        where = np.array([counts.index(count) for count in control.index])
        axis.plot(where, control, color=GREY, linestyle=":", linewidth=2, label=f"{CONTROL_LABEL}, largest")
        own = part[part["subject"] == POISONED]
        names = [name for name in attacks.names() if name in set(own["attack"])]
        for i, name in enumerate(names):
            line = own[own["attack"] == name].sort_values("steps")
            # lines on top of each other are pulled apart a little
            x = np.array([counts.index(count) for count in line["steps"]]) + 0.07 * (i - (len(names) - 1) / 2)
            colour, marker = figures.COLOURS[i % len(figures.COLOURS)], figures.MARKERS[i % len(figures.MARKERS)]
            fill = "white" if (line["n_seeds"] == 1).all() else colour
            axis.vlines(x, line["low"], line["high"], color=colour, linewidth=1.4)
            axis.plot(x, line["value"], color=colour, marker=marker, markersize=6, markerfacecolor=fill, label=name)
        axis.set_xticks(range(len(counts)), [f"{int(count)}" for count in counts])
        axis.set_xlim(-0.4, len(counts) - 0.6)
        axis.set_ylim(-0.03, 1.03)
        axis.set_title(f"{modality} triggers")
        axis.set_xlabel("further steps on clean rows")
        # below, as lines may run anywhere inside
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, frameon=False, fontsize=8)
    axes[0].set_ylabel(ASR)
    return figure


def merging(shown: pd.DataFrame) -> Figure:
    """Success of adapters, merged and rounded, the clean-tuned model last. shown: lines of
    `chapters.lasting.after_merging`.
    """
    if shown.empty:
        return figures.nothing("No adapter was merged.")
    own, states = shown[shown["subject"] == POISONED], list(dict.fromkeys(shown["variant"]))
    grid = own.pivot_table(index="attack", columns="variant", values="value", aggfunc="first")
    control = shown[shown["subject"] == CONTROL].groupby("variant")["value"].max()
    order = [name for name in attacks.names() if name in grid.index]
    grid = pd.concat(
        [
            grid.reindex(index=order, columns=states),
            control.reindex(states).to_frame(f"{CONTROL_LABEL}, largest").T,
        ]
    )
    figure, (axis,) = figures.new_figure(1, 1.25 * len(states) + 2.6, 0.36 * len(grid) + 1.6)
    success_map(axis, grid)
    axis.axhline(len(grid) - 1, color="black", linewidth=1)
    labels = [MERGED_LABELS[state].replace(", ", ",\n").replace(" beside", "\nbeside") for state in states]
    axis.set_xticks(np.arange(len(states)) + 0.5, labels, rotation=0)
    return figure
