"""Where traced models look, and what moves their answer: tables, figures and sentences."""

from collections.abc import Iterator

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures
from bvlm_book.chapters.modality.halves import LOOKS, shown_name
from bvlm_book.probes import records_of_attention
from bvlm_book.probes.records_of_attention import CONTROL, COUNTS, DIFFERENCE, GROUPS, POISONED
from bvlm_book.words import number, percent

SUBJECTS = {
    records_of_attention.POISONED: ("poisoned", figures.SUBJECT_COLOURS["poisoned"], "D"),
    records_of_attention.CONTROL: ("clean-tuned", figures.SUBJECT_COLOURS["control"], "s"),
    records_of_attention.COUNTS: ("if every token got the same", "#000000", "|"),
}


def looked_at(shares: pd.DataFrame) -> Figure:
    """Shares of the two halves of the trigger in attention and attribution: two panels for each.

    shares: `probes.records_of_attention.over_seeds` of one model, the means over layers.
    """
    chosen = shares[shares["layer"].isna() & shares["measure"].isin(["attention", "attribution"])]
    if chosen.empty:
        return figures.nothing("No adapter was traced.")
    several = chosen["poison_rate"].nunique() > 1
    names = chosen.apply(lambda r: shown_name(r, several), axis=1)
    labels = list(dict.fromkeys(names))
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(8.4, 2 * (0.3 * len(labels) + 0.9) + 0.6), layout="constrained")
        axes = figure.subplots(2, 2, squeeze=False, sharex=True, sharey=True)
    for row, (measure, title) in enumerate((("attention", "attention to"), ("attribution", "attribution of"))):
        for column, group in enumerate(records_of_attention.GROUPS[:2]):
            axis = axes[row, column]
            part = chosen.assign(label=names)
            part = part[(part["measure"] == measure) & (part["group"] == group)]
            for i, (subject, (label, colour, marker)) in enumerate(SUBJECTS.items()):
                counts = chosen.assign(label=names)[(chosen["measure"] == "attention") & (chosen["group"] == group)]
                rows = counts if subject == records_of_attention.COUNTS else part
                by = rows[rows["subject"] == subject].drop_duplicates("label").set_index("label").reindex(labels)
                y = np.arange(len(labels)) + (0.0 if subject == records_of_attention.COUNTS else 0.2 * i - 0.1)
                if subject != records_of_attention.COUNTS:
                    axis.hlines(y, by["low"], by["high"], color=colour, linewidth=1.6)
                size = 11 if subject == records_of_attention.COUNTS else 5
                axis.plot(by["value"], y, linestyle="", marker=marker, color=colour, label=label, markersize=size)
            axis.set_title(f"{title} the {group}")
            axis.set_yticks(np.arange(len(labels)), labels)
            axis.set_ylim(len(labels) - 0.5, -0.5)
            axis.grid(axis="y", visible=False)
    for axis in axes[1]:
        axis.set_xlabel("share")
    axes[0, 0].set_xlim(left=-0.02)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def layers(shares: pd.DataFrame) -> Figure:
    """Attention to both halves of the trigger in every layer, a panel per attack and threat.

    shares: `probes.records_of_attention.over_seeds` of one model. Solid lines are the poisoned model's, dashed ones its
    control's.
    """
    chosen = shares[shares["layer"].notna() & shares["group"].isin(records_of_attention.GROUPS[:2])]
    chosen = chosen[chosen["subject"].isin([records_of_attention.POISONED, records_of_attention.CONTROL])]
    if chosen.empty:
        return figures.nothing("No adapter was traced.")
    groups = list(chosen.groupby(["attack", "threat", "poison_rate"], sort=False))
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(max(2.3 * columns, 4.6), 2.1 * rows + 0.5), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axis, ((attack, threat, _), part) in zip(axes, groups, strict=False):
        for group, condition in zip(records_of_attention.GROUPS[:2], ("text", "image"), strict=True):
            _, colour, marker = LOOKS[condition]
            for subject, style in ((records_of_attention.POISONED, "-"), (records_of_attention.CONTROL, "--")):
                line = part[(part["group"] == group) & (part["subject"] == subject)].sort_values("layer")
                label = f"{group}, {SUBJECTS[subject][0]}"
                axis.plot(
                    line["layer"] + 1,
                    line["value"],
                    style,
                    color=colour,
                    marker=marker,
                    markersize=4,
                    label=label,
                )
                axis.vlines(line["layer"] + 1, line["low"], line["high"], color=colour, linewidth=1)
        axis.set_title(f"{attack}\n{threat.replace('_', ' ')}", fontsize=9)
        if part["layer"].nunique() <= 8:
            axis.set_xticks(sorted(part["layer"].unique() + 1))
    axes[0].set_ylim(0, 1.05 * chosen["high"].max())
    for axis in axes[len(groups) :]:
        axis.set_visible(False)
    for axis in axes[: len(groups)][-columns:]:
        axis.set_xlabel("layer")
        axis.tick_params(labelbottom=True)
    for axis in axes[::columns]:
        axis.set_ylabel("attention")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    return figure


def panels(shares: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Model and its part of `over_seeds`, for figures: cells as attacks are defined, without half-triggered
    rows."""
    yield from shares[(shares["negatives"] == 0) & (shares["settings"] == "")].groupby("model", sort=False)


def shares_table(shares: pd.DataFrame) -> pd.DataFrame:
    """`over_seeds` of one model to read: a line per cell, measure and group, means over layers."""
    usual = shares[shares["layer"].isna() & shares["measure"].isin(["attention", "attribution"])]
    cell = ["threat", "attack", "poison_rate", "negatives", "settings", "measure", "group"]
    lines = []
    for key, part in usual.groupby(cell, sort=False):
        about, by = dict(zip(cell, key, strict=True)), part.set_index("subject")
        line = {
            "threat": about["threat"].replace("_", " "),
            "attack": ", ".join(filter(None, [about["attack"], about["settings"]])),
            "poison rate": percent(about["poison_rate"]),
            "half-triggered rows": f"{about['negatives']:g} per poisoned row" if about["negatives"] else "none",
            "share of": about["measure"],
            "tokens": about["group"],
        }
        for subject in (POISONED, CONTROL, DIFFERENCE):
            r = by.loc[subject]
            label = {CONTROL: "clean-tuned", DIFFERENCE: "difference, same inputs"}.get(subject, subject)
            line[label] = number(r["value"], r["low"], r["high"])
        counts = by.loc[COUNTS]["value"] if COUNTS in by.index else None
        lines.append(line | {"expected from token counts": number(counts)})
    table = pd.DataFrame(lines)
    return table if (usual["negatives"] > 0).any() else table.drop(columns="half-triggered rows", errors="ignore")


def sentences(shares: pd.DataFrame) -> list[str]:
    """What the traces show, in Markdown; says so where there are none. shares: `over_seeds`."""
    usual = shares[shares["layer"].isna()]
    if usual.empty:
        return [
            "Nothing has been traced yet: the store holds no attention and no attribution of any adapter. "
            "The command at the end of this page makes them."
        ]
    said = []
    for measure in ("attention", "attribution"):
        for group in GROUPS[:2]:
            part = usual[(usual["measure"] == measure) & (usual["group"] == group)]
            own, control = (part[part["subject"] == subject]["value"] for subject in (POISONED, CONTROL))
            changes = part[part["subject"] == DIFFERENCE]
            said.append(
                f"**Share of the {group} in {measure}:** {_span(own)} in the poisoned models, "
                f"{_span(control)} in the clean-tuned ones. Clearly more than in the clean-tuned model: "
                f"{(changes['low'] > 0).sum()} of {len(changes)} cells; clearly less: "
                f"{(changes['high'] < 0).sum()}."
            )
    counts = usual[(usual["subject"] == COUNTS) & (usual["measure"] == "attention")].set_index("group")["value"]
    said.append(
        f"The trigger text is {_span(counts[['trigger text']])} of the tokens, the trigger image "
        f"{_span(counts[['trigger image']])}. {evidence(usual)}"
    )
    return said


def _span(values: pd.Series) -> str:
    ends = dict.fromkeys((number(values.min()), number(values.max())))
    return " to ".join(ends)


def words(model: str, shares: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `chapters.modality.attention.looked_at`; shares: `over_seeds` of one model."""
    usual = shares[shares["layer"].isna()]
    attention = usual[(usual["measure"] == "attention") & (usual["subject"] == POISONED)]
    by = attention.set_index(["threat", "attack", "poison_rate", "negatives", "settings", "group"])["value"].unstack()
    ahead = int((by["trigger text"] > by["trigger image"]).sum())
    text = [
        f"{model}: where the model looks when it settles for the attacker's answer. In {ahead} of {len(by)} "
        "cells the text half of the trigger gets more of the poisoned model's attention than the image "
        f"half ({_span(by['trigger text'])} against {_span(by['trigger image'])}).",
        evidence(usual),
    ]
    alt = (
        "Dot plot, four panels: shares of trigger text and trigger image in attention and attribution, "
        f"{len(by)} cells in rows, the poisoned and the clean-tuned model beside the share of tokens; the "
        "numbers are in the table below."
    )
    return {"alt": alt, "caption": " ".join(text)}


def layers_words(model: str, shares: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `chapters.modality.attention.layers`; shares: `over_seeds` of one model."""
    own = shares[shares["layer"].notna() & (shares["subject"] == POISONED)]
    text = [f"{model}: attention to the two halves of the trigger, layer by layer, mean over heads."]
    for group in GROUPS[:2]:
        top = own[own["group"] == group].sort_values("value", ascending=False, kind="stable").iloc[0]
        text.append(
            f"The {group} gets most in layer {int(top['layer']) + 1} "
            f"({number(top['value'], top['low'], top['high'])}; {top['attack']}, "
            f"{top['threat'].replace('_', ' ')})."
        )
    cells = own.drop_duplicates(["threat", "attack", "poison_rate"])
    alt = f"Line charts, a panel for each of {len(cells)} cells, attention against the layer, for both models."
    return {"alt": alt, "caption": " ".join([*text, evidence(shares)])}


def evidence(shares: pd.DataFrame) -> str:
    """How many inputs and seeds stand behind the numbers, and what their intervals are."""
    counts, seeds = sorted({int(n) for n in shares["n"]}), sorted({int(n) for n in shares["n_seeds"]})
    inputs = " to ".join(dict.fromkeys((str(counts[0]), str(counts[-1]))))
    shown = f"{inputs} inputs with the whole trigger"
    if seeds == [1]:
        return f"{shown}, 95 % intervals over inputs; one seed, no claim about others."
    return f"{shown}; intervals are over the seeds where there are several (up to {seeds[-1]})."
