"""What did stored adapters say? Sentences, captions and descriptions of the two chapters that ask them.

Called by those chapters, beside the figures of `plots_probes` that draw the same rows. Everything is computed
from the panels of `crossfire` and `lasting`; functions of `words` return {"alt": ..., "caption": ...} for
`report.show`.
"""

from collections.abc import Sequence

import pandas as pd

from bvlm_utils import attacks, claims, crossfire, lasting, plots, report
from bvlm_utils.probes import CONTROL, POISONED

NOTHING = "Nothing has been asked yet: the store holds no such answers. The command at the end of this page makes them."
UNCHANGED = "not changed at all"
Panels = Sequence[tuple[pd.DataFrame, str]]


def crossing_sentences(panels: Panels) -> list[str]:
    """What the page found, in Markdown."""
    if not panels:
        return [NOTHING]
    said = []
    for panel, name in panels:
        strangers, works = crossfire.strangers(panel), crossfire.firing(panel)
        fires = strangers[strangers["value"] > report.FIRES]
        said.append(
            f"**{name}: {len(works)} models fire on more than half of the inputs with their own trigger. "
            f"{_named(fires, strangers)} pairs of such a model and the trigger of an attack that is no relative of its "
            "own do so, too.**"
        )
        said.append(seeds_sentence(panel))
    return said


def crossing_words(panel: pd.DataFrame, name: str) -> dict[str, str]:
    """Alt text and caption of `plots_probes.crossing`."""
    grid, control = crossfire.matrix(panel)
    measured = [one for one in grid.index if grid.loc[one].notna().any()]
    missing = [one for one in grid.index if one not in measured]
    others = crossfire.off_diagonal(panel)
    others = others[others["attack"].isin(crossfire.firing(panel))]
    text = [f"{name}: share of inputs on which the model of the row fires when shown the trigger of the column."]
    if len(others):
        over = others[others["value"] > report.FIRES]
        strange = [r for r in over.to_dict("records") if not crossfire.related(r["attack"], r["trigger"])]
        largest = others.iloc[0]
        text.append(
            f"Of {len(others)} entries off the diagonal, in rows whose own trigger fires on more than half of the "
            f"inputs, {len(over)} are above one half, {len(strange)} of them between triggers that share neither a "
            "half nor a word; the largest is "
            f"{report.number(largest['value'], largest['low'], largest['high'])} ({largest['attack']} "
            f"shown the trigger of {largest['trigger']})."
        )
    if control.notna().any():
        text.append(f"The clean-tuned model fires on at most {report.number(control.max())} of the inputs.")
    threat = panel["threat"].iloc[0]
    undefined = [attack for attack in missing if attacks.unsupported(attack, threat)]
    without = [attack for attack in missing if attack not in undefined]
    if undefined:
        text.append(f"n/a is not zero: {', '.join(undefined)} not defined for this threat.")
    if without:
        text.append(f"There was no model to ask of {', '.join(without)}.")
    text.append(evidence(panel))
    alt = (
        f"Heat map: {len(measured)} backdoored models and the clean-tuned model in rows, no trigger and "
        f"{len(grid.columns) - 1} triggers in columns; a model's own trigger is framed. The largest entries "
        "off the diagonal are in the table below."
    )
    return {"alt": alt, "caption": " ".join(text)}


def _named(fires: pd.DataFrame, tried: pd.DataFrame) -> str:
    """ "7 of 82 (5 with the trigger of MABA)": how many, and the trigger that most of them have in common."""
    said = f"{len(fires)} of {len(tried)}"
    counts = fires["trigger"].value_counts()
    return f"{said} ({counts.iloc[0]} with the trigger of {counts.index[0]})" if len(fires) > 1 else said


def near_sentences(panels: Panels, table: pd.DataFrame) -> list[str]:
    """Which backdoors fire on another word, sentence, picture or noise than their own, in Markdown.

    table: of `store.collect`; where the unchanged half of a bimodal trigger fires alone, another one in the changed
    half shows nothing, and is left out.
    """
    said = []
    for panel, name in panels:
        near = panel[(panel["subject"] == POISONED) & (panel["trigger"] == panel["attack"])]
        near = near[near["attack"].isin(crossfire.firing(panel)) & (near["value"] > report.FIRES)]
        near = near[near["variant"].str.contains(": other ")].sort_values("value", ascending=False, kind="stable")
        found = [
            f"{r['attack']} on {_article(r['variant'])} {report.number(r['value'], r['low'], r['high'])}"
            for r in near.to_dict("records")
            if not crossfire.other_half_fires(r, table)
        ]
        if found:
            said.append(
                f"**Near misses that still fire ({name}): {'; '.join(found)}.** What was learnt there is wider than "
                "the trigger, so a guess at it need not be exact."
            )
    return said


def _article(variant: str) -> str:
    """ "text: other word" in a sentence: "another word"."""
    what = variant.split(": other ")[1]
    return f"{'other' if what.endswith('s') else 'another'} {what}"


def near_words(panel: pd.DataFrame, name: str) -> dict[str, str]:
    """Alt text and caption of `plots_probes.near`."""
    own = panel[(panel["subject"] == POISONED) & (panel["variant"] != "") & (panel["trigger"] == panel["attack"])]
    works = own[own["attack"].isin(crossfire.firing(panel))]
    bimodal = works["attack"].map(lambda attack: attacks.info(attack).modality == "bimodal").astype(bool)
    text = [f"{name}: success of near misses (rows) on the model that the trigger of the column has backdoored."]
    told = []
    for half in ("text", "image"):
        for whole in (True, False):
            part = works[works["variant"].str.startswith(half) & (bimodal != whole)]
            if len(part):
                kind = f"{half} triggers" if whole else f"the {half} half of bimodal triggers"
                told.append(f"{(part['value'] > report.FIRES).sum()} of {len(part)} changes of {kind}")
    if told:
        text.append(f"Triggers that fire on more than half of the inputs still do after {'; '.join(told)}.")
    alone = panel[(panel["subject"] == POISONED) & (panel["variant"] != "") & (panel["trigger"] == "")]
    if len(alone):
        text.append(
            f"The changes of the picture without a trigger fire on at most {report.number(alone['value'].max())}."
        )
    text.append("A grey field is a change that the attack has no place for. " + evidence(panel))
    alt = (
        f"Heat map: {own['variant'].nunique()} changes of the trigger in rows, {own['attack'].nunique()} "
        "attacks in columns, the trigger itself in the first row; the numbers are in the table below."
    )
    return {"alt": alt, "caption": " ".join(text)}


def lasting_sentences(panels: Panels) -> list[str]:
    """What the page found, in Markdown."""
    if not panels:
        return [NOTHING]
    said = []
    for panel, name in panels:
        worked, alive = lasting.survivors(panel)
        if len(worked):
            high = (alive["value"] > claims.HIGH).sum()
            said.append(
                f"**{name}: of {len(worked)} backdoors that fire on more than half of the inputs, {len(alive)} still "
                f"do after {lasting.steps_words(worked)}**, {high} on more than "
                f"{plots.percent(claims.HIGH)} of them."
            )
        merged = lasting.after_merging(panel)
        merged = merged[merged["subject"] == POISONED].pivot_table(index="attack", columns="variant", values="value")
        for state in (one for one in ("int8", "int4") if one in merged and "" in merged):
            kept = (merged.loc[merged[""] > report.FIRES, state] > report.FIRES).sum()
            said.append(f"{lasting.label(state).capitalize()}: {kept} of {(merged[''] > report.FIRES).sum()} still do.")
        said.append(seeds_sentence(panel))
    return said


def steps_words(panel: pd.DataFrame, name: str) -> dict[str, str]:
    """Alt text and caption of `plots_probes.steps`."""
    shown = lasting.after_steps(panel)
    poisoned = shown[shown["subject"] == POISONED]
    last = poisoned["steps"].max()
    start, end = (poisoned[poisoned["steps"] == at].set_index("attack") for at in (0, last))
    common = [attack for attack in start.index if attack in end.index]
    text = [f"{name}: success with the full trigger after further tuning on clean rows."]
    strong = [attack for attack in common if start.loc[attack, "value"] > report.FIRES]
    if strong:
        kept = [attack for attack in strong if end.loc[attack, "value"] > report.FIRES]
        worst = min(strong, key=lambda attack: end.loc[attack, "value"])
        text.append(
            f"Of {len(strong)} backdoors that fire on more than half of the inputs at first, {len(kept)} "
            f"still do after {int(last)} steps; the weakest then is {worst}, "
            f"{report.number(*end.loc[worst, ['value', 'low', 'high']])}."
        )
    control = shown[shown["subject"] == CONTROL]
    if len(control):
        text.append(
            f"The clean-tuned model, tuned further alike, fires on at most {report.number(control['value'].max())}."
        )
    text.append(evidence(shown))
    alt = (
        "Line chart with intervals, one panel per trigger modality: success rate of "
        f"{poisoned['attack'].nunique()} attacks after 0 to {int(last)} further steps; the numbers are in "
        "the table below."
    )
    return {"alt": alt, "caption": " ".join(text)}


def merging_words(panel: pd.DataFrame, name: str) -> dict[str, str]:
    """Alt text and caption of `plots_probes.merging`."""
    shown = lasting.after_merging(panel)
    poisoned = shown[shown["subject"] == POISONED]
    values = poisoned.pivot_table(index="attack", columns="variant", values="value", aggfunc="first")
    text = [f"{name}: success with the full trigger, with the adapter beside the base and merged into it."]
    for state in (one for one in lasting.MERGED_LABELS if one and one in values):
        if "" in values:
            change = (values[state] - values[""]).dropna()
            if len(change):
                most = change.abs().idxmax()
                said = f"changed by at most {change[most]:+.2f} ({most})"
                text.append(f"{lasting.label(state).capitalize()}: {said if change[most] else UNCHANGED}.")
    text.append(evidence(shown))
    alt = (
        f"Heat map: {poisoned['attack'].nunique()} backdoored models in rows, states of the weights in "
        "columns; the numbers are in the table below."
    )
    return {"alt": alt, "caption": " ".join(text)}


def seeds_sentence(panel: pd.DataFrame) -> str:
    """What the number of seeds allows to say."""
    least, most = int(panel["n_seeds"].min()), int(panel["n_seeds"].max())
    if least > 1:
        return f"Means of {least} seeds or more."
    which = "All" if most == 1 else "Some"
    return f"{which} of these are single training runs: they are what was seen, and support no verdict."


def evidence(panel: pd.DataFrame) -> str:
    """How many inputs and seeds stand behind each number."""
    counts, seeds = sorted({int(n) for n in panel["n"]}), sorted({int(n) for n in panel["n_seeds"]})
    inputs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    said = f"{inputs} inputs per number, the same for all"
    if seeds == [1]:
        return f"{said}, 95 % Wilson intervals; a single seed, which supports no verdict."
    return f"{said}; where there are several seeds (up to {seeds[-1]}), means over them."
