"""The chapter "Does it last?": success after further clean tuning and after merging."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, rules, tables, words
from bvlm_book.figures import ASR, CONTROL_LABEL, success_map
from bvlm_book.probes import records
from bvlm_book.probes.records import CONTROL, LASTING, POISONED
from bvlm_book.words import evidence
from bvlm_utils import attacks
from bvlm_utils.store.records import record
from bvlm_utils.store.table import FIRES

NUMBERS = (
    "worked", "alive", "strong", "weakest", "steps", "trained", "control", "int8", "int4",
    "utility", "utility_after", "utility_int4",
)  # fmt: skip
MERGED_LABELS = {
    "": "adapter beside the base",
    "merged": "merged",
    "bfloat16": "merged, bfloat16",
    "int8": "merged, int8 per channel",
    "int4": "merged, int4 per channel",
}


def numbers(place: str | Path | None = None) -> dict[str, str]:
    """`NUMBERS` over all models of a store, to be glued; "n/a" where nothing was measured.

    worked: backdoors that worked before. alive, strong: of these, those that still work after the most further steps,
    and on over 90 % of the inputs; weakest: the rate of the weakest. steps: how many those were; trained: the steps of
    the models' own training. int8, int4: those that work after rounding. control: the clean-tuned models' highest rate.
    utility: of the backdoored models before, after the most steps, and at four bits.
    """
    found = dict.fromkeys(NUMBERS, "n/a")
    panels = [panel for panel, _ in tables.panels(collect(place))]
    pairs = [pair for panel in panels if len((pair := survivors(panel))[0])]
    if pairs:
        last, alive = (pd.concat(part) for part in zip(*pairs, strict=True))
        found |= {
            "worked": str(len(last)),
            "alive": str(len(alive)),
            "strong": str(int((alive["value"] > rules.HIGH).sum())),
            "weakest": words.interval(last.loc[last["value"].idxmin()]),
            "steps": words.span(last["steps"], 0),
            "trained": words.span(last["trained"].dropna(), 0),
            "control": words.number(max(_control(after_steps(panel)) for panel in panels)),
            "utility": _utility(panels, "0"),
            "utility_after": _utility(panels, f"{last['steps'].max():g}"),
        }
    merged = [rounded(panel) for panel in panels if len(after_merging(panel))]
    for state in ("int8", "int4") if merged else ():
        kept = pd.concat([one[state] for one in merged if state in one])
        found[state] = f"{int((kept > FIRES).sum())} of {len(kept)}"
        found["utility_int4"] = _utility(panels, "int4")
    return found


def _utility(panels: Sequence[pd.DataFrame], state: str) -> str:
    """The utility of the backdoored models in one state, from the least to the largest."""
    rows = pd.concat(panels)
    rows = rows[(rows["metric"] == "utility") & (rows["subject"] == POISONED)]
    return words.span(rows.loc[rows["variant"].replace("", "0") == state, "value"].dropna(), 2)


def _control(shown: pd.DataFrame) -> float:
    return shown.loc[shown["subject"] == CONTROL, "value"].max()


def rounded(panel: pd.DataFrame) -> pd.DataFrame:
    """Success by state (column) of the backdoors (line) that work before they are merged."""
    merged = after_merging(panel)
    merged = merged[merged["subject"] == POISONED]
    values = merged.pivot_table(index="attack", columns="variant", values="value", aggfunc="first")
    return values[values[""] > FIRES]


def steps_words(panel: pd.DataFrame, name: str) -> dict[str, str]:
    """Title, alternative text and caption of `steps`."""
    worked, alive = survivors(panel)
    title = f"{name}: {len(alive)} of {len(worked)} backdoors survive further tuning."
    alt = f"Line chart with intervals: success rate after further steps, one panel per kind of trigger. {title}"
    return {"title": title, "alt": alt, "caption": evidence(after_steps(panel))}


def merging_words(panel: pd.DataFrame, name: str) -> dict[str, str]:
    """Title, alternative text and caption of `merging`."""
    values = rounded(panel)
    kept = {state: int((values[state] > FIRES).sum()) for state in values if state.startswith("int")}
    title = f"{name}: " + " and ".join(f"{kept[one]} of {len(values)} work at {one}" for one in kept) + "."
    alt = f"Heat map of success rates: backdoored models in rows, states of the weights in columns. {title}"
    return {"title": title, "alt": alt, "caption": evidence(after_merging(panel))}


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
        axis.set_xlabel("further steps")
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
