"""The chapter on crossed triggers and near misses: its numbers, tables, figures and captions."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bvlm_book import figures, tables, words
from bvlm_book.probes import near_misses, records
from bvlm_book.probes.records import CONTROL, CROSSFIRE, POISONED
from bvlm_utils import attacks
from bvlm_utils.attacks import declare
from bvlm_utils.checks import check_number
from bvlm_utils.store.table import FIRES

Panels = Sequence[tuple[pd.DataFrame, str]]  # of `tables.panels`
DEGRADED = ("image: JPEG, quality 50", "image: half the resolution")


def numbers(place: str | Path | None = None) -> dict[str, str]:
    """Over all matrices of a store, to be glued: unrelated triggers that work (strange), or above a tenth; the models
    and inputs behind them; the highest rate of a clean-tuned model; changes of working triggers that still work.
    """
    table = collect(place)
    matrices = [panel for panel, _ in tables.panels(table)] or [table]
    crossed = pd.concat([unrelated(panel) for panel in matrices])
    strange = crossed["value"]
    where = crossed["threat"].isin(crossed.loc[strange > FIRES, "threat"])
    both = [all(attacks.info(name).modality != "image" for name in pair)
            for pair in zip(crossed["attack"], crossed["trigger"], strict=True)]  # fmt: skip
    misses = pd.concat([near_misses_of_working(panel) for panel in matrices])
    other, text = misses["variant"].str.contains(": other "), misses["variant"].str.startswith("text")
    pictures = misses[other & ~text].groupby("attack", sort=False)["value"]
    changes = {"other_text": other & text, "other_image": other & ~text, "degraded": misses["variant"].isin(DEGRADED)}
    return {
        "threats": ", ".join(crossed.loc[where, "threat"].unique()).replace("_", " ") or "n/a",
        "words": words.of(strange[where & pd.Series(both, crossed.index, dtype=bool)] > FIRES, "n/a"),
        "by_attack": ", ".join(f"{name} {words.of(group > FIRES)}" for name, group in pictures) or "n/a",
        "strange": words.of(strange > FIRES, "n/a"), "tenth": words.of(strange > 0.1, "n/a"),
        "models": str(sum(len(firing(panel)) for panel in matrices) or "n/a"),
        "inputs": words.span(table["n"].dropna().astype(int)),
        "control": words.number(table.query("subject == @CONTROL and variant == ''")["value"].max()),
    } | {name: words.of(misses.loc[mask, "value"] > FIRES, "n/a") for name, mask in changes.items()}  # fmt: skip


def strangers(panel: pd.DataFrame) -> str:
    return words.of(unrelated(panel)["value"] > FIRES)


def changed(panels: Panels) -> str:
    return words.of(value > FIRES for panel, _ in panels for value in near_misses_of_working(panel)["value"])


def near_misses_of_working(panel: pd.DataFrame) -> pd.DataFrame:
    """Changed triggers of models whose own trigger works; not bimodal ones, whose other part may work alone."""
    misses = panel.query("subject == @POISONED and variant != '' and trigger == attack and modality != 'bimodal'")
    return misses[misses["attack"].isin(firing(panel))]


def collect(place: str | Path | None = None) -> pd.DataFrame:
    """Headline success in a store: a line per model, trigger and near miss, seeds put together."""
    return records.over_seeds(records.headline(records.collect(CROSSFIRE, place)))


def matrix(panel: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Success of every model (row) under every trigger (column, "" for none), and the control's; NaN if not asked."""
    crossed, triggers = panel[panel["variant"] == ""], ["", *attacks.names()]
    grid = crossed[crossed["subject"] == POISONED].pivot_table(
        index="attack", columns="trigger", values="value", aggfunc="first")  # fmt: skip
    control = crossed[crossed["subject"] == CONTROL].set_index("trigger")["value"]
    return grid.reindex(index=attacks.names(), columns=triggers), control.reindex(triggers)


def related(attack: str, other: str) -> bool:
    """Do two attacks' triggers share a part or a word?"""
    first, second = attacks.info(attack), attacks.info(other)
    halves = ((first.text, second.text), (first.image, second.image))
    return any(half and half == other_half for half, other_half in halves) or bool(_words(first) & _words(second))


def _words(info: declare.AttackInfo) -> set[str]:
    """The words of a trigger; parameters of these names may be something else in an attack that we do not know."""
    word, words = info.defaults.get("word"), info.defaults.get("words")
    return {value for value in (word, *(words if isinstance(words, list) else ())) if isinstance(value, str)}


def firing(panel: pd.DataFrame) -> list[str]:
    """The attacks whose own trigger works, on more than half of the inputs; the others left no backdoor."""
    works = panel.query("subject == @POISONED and variant == '' and trigger == attack and value > @FIRES")
    return list(dict.fromkeys(works["attack"]))


def unrelated(panel: pd.DataFrame) -> pd.DataFrame:
    """Unrelated triggers shown to models whose own works, with the control's value and held, largest first."""
    crossed = panel.query("variant == '' and trigger != ''")
    control = crossed[crossed["subject"] == CONTROL].set_index("trigger")[["value", "held"]]
    pairs = crossed[(crossed["subject"] == POISONED) & crossed["attack"].isin(firing(panel))]
    strange = np.array([not related(*pair) for pair in zip(pairs["attack"], pairs["trigger"], strict=True)], bool)
    rows = pairs[strange].join(control.add_prefix("control_"), on="trigger")
    return rows.sort_values("value", ascending=False, kind="stable", ignore_index=True)


def crossing_table(panels: Panels, most: int = 6) -> pd.DataFrame:
    """The largest entries between attacks that are no relatives, over all matrices, to read."""
    check_number(most, "most", 0, 1000, whole=True)
    if not panels:
        return pd.DataFrame()
    rows = pd.concat([unrelated(panel).assign(panel=name) for panel, name in panels])
    return tables.readable(rows.sort_values("value", ascending=False, kind="stable").head(most), {
        "matrix": lambda row: row["panel"].removesuffix(" poisoned"), "backdoor": "attack", "trigger shown": "trigger",
        "success": words.interval, "difference": _difference,
    })  # fmt: skip


def _difference(row: dict) -> str:
    """The paired difference from the control on the same rows; of a single seed only, whose rows are at hand."""
    if pd.isna(row["held"]) or pd.isna(row["control_held"]):
        return words.number(None)
    return words.number(*records.difference(row["held"], row["control_held"]))


def crossing(panel: pd.DataFrame) -> Figure:
    """Models (rows) under all triggers (columns), the clean-tuned one last. panel: of `tables.panels`."""
    grid, control = matrix(panel)
    grid = grid.dropna(how="all").dropna(axis="columns", how="all")
    grid.loc[figures.CONTROL_LABEL] = control
    grid = grid.rename(columns={"": words.CONDITION_LABELS["clean"]})
    figure, (axis,) = figures.new_figure(1, 9.4, 0.33 * len(grid) + 1.6)
    figures.success_map(axis, grid)
    for row, attack in enumerate(grid.index[:-1]):
        column = list(grid.columns).index(attack)
        axis.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="#D55E00", linewidth=2.5, zorder=5))
    axis.axhline(len(grid) - 1, color="black", linewidth=1)
    axis.axvline(1, color="black", linewidth=1)
    axis.set(xlabel="trigger shown", ylabel="model backdoored by")
    return figure


def nearly(panels: Panels) -> pd.DataFrame:
    """Mean success by near miss (lines, words first) and panel, of the attacks that `near_misses_of_working` counts."""
    if not panels:
        return pd.DataFrame()
    named = [(panel, name.replace(" % ", "\u00a0% ").replace(", ", "\n")) for panel, name in panels]
    parts = [near_misses_of_working(panel).assign(panel=name) for panel, name in named]
    grid = pd.concat(parts).pivot_table(index="variant", columns="panel", values="value", sort=False)
    names = dict.fromkeys(miss.name for misses in near_misses.NEAR.values() for miss in misses)
    kinds = ("text", "image", "no trigger")  # the words first, then the picture
    changes = [name for kind in kinds for name in names if name.startswith(kind) and name in grid.index]
    return grid.reindex(changes).rename_axis(None)


def near(grid: pd.DataFrame) -> Figure:
    figure, (axis,) = figures.new_figure(1, 1.4 * grid.shape[1] + 2.4, 0.27 * len(grid) + 0.9)
    figures.success_map(axis, grid, missing="")
    names, size = list(grid.columns), 8
    if figures.is_narrow():
        names, size = [textwrap.fill(name, 12) for name in names], 7.5
    axis.set_xticks(axis.get_xticks(), names, rotation=0, ha="center", fontsize=size)
    return figure
