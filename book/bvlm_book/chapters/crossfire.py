"""The chapter on crossed triggers and near misses: its numbers, tables, figures and captions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bvlm_book import figures, tables
from bvlm_book.figures import CONTROL_LABEL, success_map
from bvlm_book.probes import near_misses, records
from bvlm_book.probes.records import CONTROL, CROSSFIRE, POISONED
from bvlm_book.tables import PANEL
from bvlm_book.words import CONDITION_LABELS, NOTHING, Panels, evidence, interval, number, seeds_sentence
from bvlm_utils import attacks
from bvlm_utils.attacks import declare
from bvlm_utils.checks import check_number
from bvlm_utils.store.table import FIRES, headline_metric

BESIDE = {"control": "value", "control_held": "held"}  # columns of the control, put beside the models'
NO_TRIGGER = CONDITION_LABELS["clean"]
ITSELF = "the trigger itself"


def strangers_sentence(place: str | Path | None = None) -> str:
    """What a check without the right trigger finds, from the crossed triggers of `crossfire`."""
    panels = tables.panels(collect(place))
    if not panels:
        return "How often one attack's trigger fires another's backdoor was not measured in this store."
    strange = pd.concat([unrelated(panel) for panel, _ in panels])["value"]
    return (
        f"Of {len(strange)} pairs of a model that fires on its own trigger and the trigger of an attack that is no "
        f"relative of it, {int((strange > FIRES).sum())} fire on more than half of the inputs, and "
        f"{int((strange > 0.1).sum())} on more than a tenth."
    )


def crossing_sentences(panels: Panels) -> list[str]:
    """What the page found, in Markdown."""
    if not panels:
        return [NOTHING]
    said = []
    for panel, name in panels:
        strangers, works = unrelated(panel), firing(panel)
        fires = strangers[strangers["value"] > FIRES]
        said.append(
            f"**{name}: {len(works)} models fire on more than half of the inputs with their own trigger. "
            f"{_named(fires, strangers)} pairs of such a model and the trigger of an attack that is no relative of its "
            "own do so, too.**"
        )
        said.append(seeds_sentence(panel))
    return said


def crossing_words(panel: pd.DataFrame, name: str) -> dict[str, str]:
    """Alt text and caption of `crossing`."""
    grid, control = matrix(panel)
    missing = [one for one in grid.index if grid.loc[one].isna().all()]
    others = off_diagonal(panel)
    others = others[others["attack"].isin(firing(panel))]
    text = [f"{name}: share of inputs on which the model of the row fires when shown the trigger of the column."]
    if len(others):
        over = others[others["value"] > FIRES]
        strange = [r for r in over.to_dict("records") if not related(r["attack"], r["trigger"])]
        largest = others.iloc[0]
        text.append(
            f"Of {len(others)} entries off the diagonal, in rows whose own trigger fires on more than half of the "
            f"inputs, {len(over)} are above one half, {len(strange)} of them between triggers that share neither a "
            f"half nor a word; the largest is {interval(largest)} ({largest['attack']} shown the trigger of "
            f"{largest['trigger']})."
        )
    if control.notna().any():
        text.append(f"The clean-tuned model fires on at most {number(control.max())} of the inputs.")
    undefined = [attack for attack in missing if attacks.unsupported(attack, panel["threat"].iloc[0])]
    without = [attack for attack in missing if attack not in undefined]
    if undefined:
        text.append(f"n/a is not zero: {', '.join(undefined)} not defined for this threat.")
    if without:
        text.append(f"There was no model to ask of {', '.join(without)}.")
    alt = (
        f"Heat map: {len(grid) - len(missing)} backdoored models and the clean-tuned model in rows, no trigger and "
        f"{len(grid.columns) - 1} triggers in columns; a model's own trigger is framed. The largest entries off the "
        "diagonal are in the table below."
    )
    return {"alt": alt, "caption": " ".join([*text, evidence(panel)])}


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
        near = near[near["attack"].isin(firing(panel)) & (near["value"] > FIRES)]
        near = near[near["variant"].str.contains(": other ")].sort_values("value", ascending=False, kind="stable")
        found = [
            f"{r['attack']} on {'' if r['variant'].endswith('s') else 'an'}{r['variant'].split(': ')[1]} {interval(r)}"
            for r in near.to_dict("records")
            if not other_half_fires(r, table)
        ]
        if found:
            said.append(
                f"**Near misses that still fire ({name}): {'; '.join(found)}.** What was learnt there is wider than "
                "the trigger, so a guess at it need not be exact."
            )
    return said


def near_words(panel: pd.DataFrame, name: str) -> dict[str, str]:
    """Alt text and caption of `near`."""
    own = panel[(panel["subject"] == POISONED) & (panel["variant"] != "") & (panel["trigger"] == panel["attack"])]
    works = own[own["attack"].isin(firing(panel))]
    bimodal = works["attack"].map(lambda attack: attacks.info(attack).modality == "bimodal").astype(bool)
    text = [f"{name}: success of near misses (rows) on the model that the trigger of the column has backdoored."]
    told = []
    for half in ("text", "image"):
        for kind, chosen in ((f"{half} triggers", ~bimodal), (f"the {half} half of bimodal triggers", bimodal)):
            part = works[works["variant"].str.startswith(half) & chosen]
            if len(part):
                told.append(f"{(part['value'] > FIRES).sum()} of {len(part)} changes of {kind}")
    if told:
        text.append(f"Triggers that fire on more than half of the inputs still do after {'; '.join(told)}.")
    alone = panel[(panel["subject"] == POISONED) & (panel["variant"] != "") & (panel["trigger"] == "")]
    if len(alone):
        text.append(f"The changes of the picture without a trigger fire on at most {number(alone['value'].max())}.")
    text.append("A grey field is a change that the attack has no place for. " + evidence(panel))
    alt = (
        f"Heat map: {own['variant'].nunique()} changes of the trigger in rows, {own['attack'].nunique()} attacks in "
        "columns, the trigger itself in the first row; the numbers are in the table below."
    )
    return {"alt": alt, "caption": " ".join(text)}


def collect(place: str | Path | None = None) -> pd.DataFrame:
    """Headline success in a store: a line per model, trigger and near miss, seeds put together."""
    return records.over_seeds(records.headline(records.collect(CROSSFIRE, place)))


def matrix(panel: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Success of every model (row) under every trigger (column, "" for none), and the control's row.

    Always all attacks, in the order of the paper's table; NaN where there is no adapter or no such trigger.
    """
    crossed = panel[panel["variant"] == ""]
    triggers = ["", *attacks.names()]
    poisoned = crossed[crossed["subject"] == POISONED]
    grid = poisoned.pivot_table(index="attack", columns="trigger", values="value", aggfunc="first")
    control = crossed[crossed["subject"] == CONTROL].set_index("trigger")["value"]
    return grid.reindex(index=attacks.names(), columns=triggers), control.reindex(triggers)


def off_diagonal(panel: pd.DataFrame) -> pd.DataFrame:
    """Lines of a panel where a model is shown another attack's trigger, with the control's rate, largest first."""
    crossed = panel[(panel["variant"] == "") & (panel["trigger"] != "")]
    control = crossed[crossed["subject"] == CONTROL].set_index("trigger")
    others = crossed[(crossed["subject"] == POISONED) & (crossed["trigger"] != crossed["attack"])]
    beside = {name: others["trigger"].map(control[source]) for name, source in BESIDE.items()}
    found = others.assign(**beside)
    return found.sort_values("value", ascending=False, kind="stable").reset_index(drop=True)


def related(one: str, other: str) -> str:
    """Why two attacks' triggers are not strangers, in words; "" where they are."""
    first, second = attacks.info(one), attacks.info(other)
    shared = [
        half for half in ("text", "image") if getattr(first, half) and getattr(first, half) == getattr(second, half)
    ]
    if shared:
        return f"same {' and '.join(shared)} half"
    common = sorted(_words(first) & _words(second))
    return f"both use {', '.join(common)}" if common else ""


def _words(info: declare.AttackInfo) -> set[str]:
    """The words of a trigger; parameters of these names may be something else in an attack that we do not know."""
    word, words = info.defaults.get("word"), info.defaults.get("words")
    return {one for one in (word, *(words if isinstance(words, list) else ())) if isinstance(one, str)}


def firing(panel: pd.DataFrame) -> list[str]:
    """The attacks whose own trigger fires on more than half of the inputs; the others left no backdoor to speak of."""
    own = panel[(panel["subject"] == POISONED) & (panel["variant"] == "")]
    own = own[(own["trigger"] == own["attack"]) & (own["value"] > FIRES)]
    return list(dict.fromkeys(own["attack"]))


def unrelated(panel: pd.DataFrame) -> pd.DataFrame:
    """The lines of `off_diagonal` between attacks that are no relatives, of models that fire on their own trigger."""
    others = off_diagonal(panel)
    others = others[others["attack"].isin(firing(panel))]
    strange = [not related(*pair) for pair in zip(others["attack"], others["trigger"], strict=True)]
    return others[pd.Series(strange, index=others.index, dtype=bool)]


def crossing_table(panel: pd.DataFrame, most: int = 12) -> pd.DataFrame:
    """The largest entries off the diagonal, to read."""
    check_number(most, "most", 0, 1000, whole=True)
    return tables.readable(off_diagonal(panel).head(most), {
        "model backdoored by": "attack", "shown the trigger of": "trigger", "success rate": interval,
        "clean-tuned": lambda r: number(r["control"]), "poisoned minus clean-tuned": _difference, "seeds": "n_seeds",
        "known relation": lambda r: related(r["attack"], r["trigger"]) or "none",
    })  # fmt: skip


def _difference(row: dict) -> str:
    """On the same rows, with its paired interval; of a single seed only, whose rows are at hand."""
    if pd.isna(row["held"]) or pd.isna(row["control_held"]):
        return number(None)
    return number(*records.difference(row["held"], row["control_held"]))


def other_half_fires(row: Mapping[str, Any], table: pd.DataFrame) -> bool:
    """Does the half that a near miss leaves as it is fire alone? Then the change of the other half shows nothing.

    row: a line of a panel. table: of `store.collect`; False where it does not hold the cell.
    """
    changed = row["variant"].split(":")[0]
    if attacks.info(row["attack"]).modality != "bimodal" or changed not in ("text", "image"):
        return False
    same = {name: row[name] for name in (*PANEL[:-1], "attack", "poison_rate", "negatives")}
    same |= {"subject": POISONED, "condition": "image" if changed == "text" else "text"}
    rows = table[table["metric"] == headline_metric(table)]
    rows = rows[(rows[list(same)] == pd.Series(same)).all(axis=1)]
    return bool(len(rows)) and rows["value"].mean() > FIRES


def near_table(panel: pd.DataFrame) -> pd.DataFrame:
    """Near misses to read: a line per model and change, beside its own trigger and the control's rate."""
    control = panel[panel["subject"] == CONTROL].set_index(["trigger", "variant"])["value"]
    poisoned, parts = panel[panel["subject"] == POISONED], []
    for attack in attacks.names():
        own = poisoned[(poisoned["attack"] == attack) & poisoned["trigger"].isin([attack, ""])]
        own = own[(own["variant"] != "") | (own["trigger"] == attack)]
        if (own["variant"] != "").any():
            parts.append(own.sort_values("variant", key=lambda name: name != "", kind="stable"))
    return tables.readable(pd.concat(parts) if parts else panel.iloc[:0], {
        "attack": "attack", "shown": lambda r: r["variant"] or ITSELF, "success rate": interval,
        "clean-tuned": lambda r: number(control.get((r["trigger"], r["variant"]))), "seeds": "n_seeds",
    })  # fmt: skip


def crossing(panel: pd.DataFrame) -> Figure:
    """Models (rows) under all triggers (columns), the clean-tuned one last. panel: of `tables.panels`."""
    grid, control = matrix(panel)
    if grid.notna().to_numpy().sum() == 0:
        return figures.nothing("No adapter was asked about these triggers.")
    grid = pd.concat([grid, control.to_frame(CONTROL_LABEL).T]).rename(columns={"": NO_TRIGGER})
    figure, (axis,) = figures.new_figure(1, 9.4, 6.6)
    success_map(axis, grid)
    for row, attack in enumerate(grid.index[:-1]):
        column = list(grid.columns).index(attack)
        axis.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="#D55E00", linewidth=2.5, zorder=5))
    axis.axhline(len(grid) - 1, color="black", linewidth=1)
    axis.axvline(1, color="black", linewidth=1)
    axis.set(xlabel="trigger shown", ylabel="model backdoored by")
    return figure


def near(panel: pd.DataFrame) -> Figure:
    """Near misses (rows) of every attack's own trigger (columns), on the model that it backdoored."""
    own = panel[(panel["subject"] == POISONED) & ((panel["trigger"] == panel["attack"]) | (panel["variant"] != ""))]
    if (own["variant"] == "").all():
        return figures.nothing("No adapter was asked about near misses.")
    grid = own.assign(variant=own["variant"].replace("", ITSELF)).pivot_table(
        index="variant", columns="attack", values="value", aggfunc="first"
    )
    tried = [name for name in attacks.names() if name in grid.columns]
    changes = [ITSELF, *sorted(near_misses.names(), key=_part)]
    grid = grid.reindex(index=[name for name in changes if name in grid.index], columns=tried)
    figure, (axis,) = figures.new_figure(1, 0.62 * len(tried) + 4.2, 0.3 * len(grid) + 1.9)
    success_map(axis, grid, missing="")
    axis.axhline(1, color="black", linewidth=1)
    return figure


def _part(name: str) -> int:
    """Text first, then the picture, then what has no trigger."""
    return next(place for place, part in enumerate(("text", "image", "no trigger")) if name.startswith(part))
