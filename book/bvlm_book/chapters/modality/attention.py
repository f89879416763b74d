"""Where traced models look, and what moves their answer: tables, figures and sentences."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, tables, words
from bvlm_book.chapters.modality.halves import LOOKS, row_names
from bvlm_book.probes.records import CONTROL, POISONED
from bvlm_book.probes.records_of_attention import COUNTS, DIFFERENCE, GROUPS
from bvlm_book.words import number

# Label, colour, marker, and by how much and how large its points stand apart.
SUBJECTS = {
    POISONED: ("poisoned", figures.SUBJECT_COLOURS["poisoned"], "D", -0.1, 5),
    CONTROL: ("clean-tuned", figures.SUBJECT_COLOURS["control"], "s", 0.1, 5),
    COUNTS: ("if every token got the same", "#000000", "|", 0.0, 11),
}


def looked_at(shares: pd.DataFrame) -> Figure:
    """Shares of the two halves of the trigger in attention and attribution: two panels for each.

    shares: `probes.records_of_attention.over_seeds` of one model, the means over layers.
    """
    chosen = shares[shares["layer"].isna() & shares["measure"].isin(["attention", "attribution"])]
    if chosen.empty:
        return figures.nothing("No adapter was traced.")
    chosen = chosen.assign(label=row_names(chosen))
    labels = list(dict.fromkeys(chosen["label"]))
    figure, axes = figures.new_figure(2, 4.2, 0.3 * len(labels) + 1.2, rows=2, sharex=True, sharey=True)
    panels = [(measure, group) for measure in ("attention", "attribution") for group in GROUPS[:2]]
    for axis, (measure, group) in zip(axes, panels, strict=True):
        for subject, (label, colour, marker, shift, size) in SUBJECTS.items():
            # how many tokens there are is noted with the attention only
            part = chosen[chosen["measure"] == ("attention" if subject == COUNTS else measure)]
            part = part[(part["group"] == group) & (part["subject"] == subject)]
            by = part.drop_duplicates("label").set_index("label").reindex(labels)
            if subject == COUNTS:
                by = by.assign(low=np.nan, high=np.nan)  # the same for all models
            at, look = np.arange(len(labels)) + shift, {"color": colour, "marker": marker, "markersize": size}
            figures.points(axis, at, by, label=label, **look)
        axis.set_title(f"{measure} {'to' if measure == 'attention' else 'of'} the {group}")
        figures.name_rows(axis, labels)
    for axis in axes[2:]:
        axis.set_xlabel("share")
    axes[0].set_xlim(left=-0.02)
    figures.legend_below(figure, axes[0])
    return figure


def layers(shares: pd.DataFrame) -> Figure:
    """Attention to both halves of the trigger in every layer, a panel per attack and threat.

    shares: `probes.records_of_attention.over_seeds` of one model. Solid lines are the poisoned model's, dashed ones its
    control's.
    """
    chosen = shares[shares["layer"].notna() & shares["group"].isin(GROUPS[:2])]
    chosen = chosen[chosen["subject"].isin([POISONED, CONTROL])]
    if chosen.empty:
        return figures.nothing("No adapter was traced.")
    groups = list(chosen.groupby(["attack", "threat", "poison_rate"], sort=False))
    columns = min(4, len(groups))
    figure, axes = figures.new_figure(
        columns, max(2.3, 4.6 / columns), 2.25, rows=-(-len(groups) // columns), sharex=True, sharey=True
    )
    for axis, ((attack, _, _), part) in zip(axes, groups, strict=False):
        for group, condition in zip(GROUPS[:2], ("text", "image"), strict=True):
            _, colour, marker = LOOKS[condition]
            for subject, style in ((POISONED, "-"), (CONTROL, "--")):
                line = part[(part["group"] == group) & (part["subject"] == subject)].sort_values("layer")
                look = {"color": colour, "marker": marker, "linestyle": style, "markersize": 4}
                label = f"{group}, {SUBJECTS[subject][0]}"
                figures.points(axis, line["layer"] + 1, line, upright=True, label=label, **look)
        axis.set_title(f"{attack}\n{words.threat(part.iloc[0])}", fontsize=9)
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
    figures.legend_below(figure, axes[0], columns=2)
    return figure


def panels(shares: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Model and its part of `over_seeds`, for figures: cells as attacks are defined, without half-triggered
    rows."""
    yield from shares[(shares["negatives"] == 0) & (shares["settings"] == "")].groupby("model", sort=False)


def shares_table(shares: pd.DataFrame) -> pd.DataFrame:
    """`over_seeds` of one model to read: a line per cell, measure and group, means over layers."""
    usual = shares[shares["layer"].isna() & shares["measure"].isin(["attention", "attribution"])]
    cell = ["threat", "attack", "poison_rate", "negatives", "settings", "measure", "group"]
    negatives = {"half-triggered rows": words.negatives} if (usual["negatives"] > 0).any() else {}
    counts = usual[usual["subject"] == COUNTS].set_index(cell)["value"]
    about = {
        "threat": words.threat, "attack": lambda r: ", ".join(filter(None, [r["attack"], r["settings"]])),
        "poison rate": words.rate,
    }  # fmt: skip
    return tables.readable(tables.beside(usual, cell, "subject"), about | negatives | {
        "share of": "measure", "tokens": "group", "poisoned": POISONED, "clean-tuned": CONTROL,
        "difference, same inputs": DIFFERENCE,
        "expected from token counts": lambda r: number(counts.get(tuple(r[name] for name in cell))),
    })  # fmt: skip


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
                f"**Share of the {group} in {measure}:** {words.span(own, 2)} in the poisoned models, "
                f"{words.span(control, 2)} in the clean-tuned ones. Clearly more than in the clean-tuned model: "
                f"{(changes['low'] > 0).sum()} of {len(changes)} cells; clearly less: "
                f"{(changes['high'] < 0).sum()}."
            )
    counts = usual[(usual["subject"] == COUNTS) & (usual["measure"] == "attention")].set_index("group")["value"]
    said.append(
        f"The trigger text is {words.span(counts[['trigger text']], 2)} of the tokens, the trigger image "
        f"{words.span(counts[['trigger image']], 2)}. {words.evidence(usual)}"
    )
    return said


def looked_at_words(model: str, shares: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `looked_at`; shares: `over_seeds` of one model."""
    usual = shares[shares["layer"].isna()]
    attention = usual[(usual["measure"] == "attention") & (usual["subject"] == POISONED)]
    by = attention.set_index(["threat", "attack", "poison_rate", "negatives", "settings", "group"])["value"].unstack()
    ahead = int((by["trigger text"] > by["trigger image"]).sum())
    caption = (
        f"{model}: where the model looks when it settles for the attacker's answer. In {ahead} of {len(by)} cells the "
        "text half of the trigger gets more of the poisoned model's attention than the image half "
        f"({words.span(by['trigger text'], 2)} against {words.span(by['trigger image'], 2)}). {words.evidence(usual)}"
    )
    alt = (
        "Dot plot, four panels: shares of trigger text and trigger image in attention and attribution, "
        f"{len(by)} cells in rows, the poisoned and the clean-tuned model beside the share of tokens; the "
        "numbers are in the table below."
    )
    return {"alt": alt, "caption": caption}


def layers_words(model: str, shares: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `layers`; shares: `over_seeds` of one model."""
    own = shares[shares["layer"].notna() & (shares["subject"] == POISONED)]
    text = [f"{model}: attention to the two halves of the trigger, layer by layer, mean over heads."]
    for group in GROUPS[:2]:
        top = own[own["group"] == group].sort_values("value", ascending=False, kind="stable").iloc[0]
        where = f"{words.interval(top)}; {top['attack']}, {words.threat(top)}"
        text.append(f"The {group} gets most in layer {int(top['layer']) + 1} ({where}).")
    cells = own.drop_duplicates(["threat", "attack", "poison_rate"])
    alt = f"Line charts, a panel for each of {len(cells)} cells, attention against the layer, for both models."
    return {"alt": alt, "caption": " ".join([*text, words.evidence(shares)])}
