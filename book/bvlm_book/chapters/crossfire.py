"""The chapter on crossed triggers and near misses: its numbers, tables, figures and captions."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bvlm_book import figures, tables
from bvlm_book.figures import CONTROL_LABEL, success_map
from bvlm_book.probes import near_misses, records
from bvlm_book.probes.records import CONTROL, CROSSFIRE, POISONED
from bvlm_book.words import CONDITION_LABELS, Panels, interval, number, span
from bvlm_utils import attacks
from bvlm_utils.attacks import declare
from bvlm_utils.checks import check_number
from bvlm_utils.store.table import FIRES

BESIDE = {"control": "value", "control_held": "held"}  # columns of the control, put beside the models'
NO_TRIGGER = CONDITION_LABELS["clean"]
NUMBERS = (
    "strange", "tenth", "models", "most_seeds", "inputs", "control", "other_text", "other_image", "degraded",
)  # fmt: skip
DEGRADED = ("image: JPEG, quality 50", "image: half the resolution")


def numbers(place: str | Path | None = None) -> dict[str, str]:
    """`NUMBERS` over all matrices of a store, to be glued; "n/a" where nothing was asked.

    strange: of pairs of a model whose own trigger works and an unrelated trigger, those that work; tenth: those above
    a tenth. models, most_seeds, inputs: behind them. control: the highest rate of a clean-tuned model. other_text,
    other_image, degraded: changed triggers that still work, of those of working triggers.
    """
    found = collect(place)
    matrices = [panel for panel, _ in tables.panels(found)]
    if not matrices:
        return dict.fromkeys(NUMBERS, "n/a")
    strange = pd.concat([unrelated(panel) for panel in matrices])["value"]
    changed = pd.concat([near_misses_of_working(panel) for panel in matrices])
    other = changed["variant"].str.contains(": other ")
    text = changed["variant"].str.startswith("text")
    return {
        "strange": _of(strange > FIRES),
        "tenth": _of(strange > 0.1),
        "models": str(sum(len(firing(panel)) for panel in matrices)),
        "most_seeds": str(int(found["n_seeds"].max())),
        "inputs": span(found["n"].dropna().astype(int)),
        "control": number(found.loc[(found["subject"] == CONTROL) & (found["variant"] == ""), "value"].max()),
        "other_text": _of(changed.loc[other & text, "value"] > FIRES),
        "other_image": _of(changed.loc[other & ~text, "value"] > FIRES),
        "degraded": _of(changed.loc[changed["variant"].isin(DEGRADED), "value"] > FIRES),
    }


def _of(passed: pd.Series) -> str:
    """ "3 of 8"."""
    return f"{int(passed.sum())} of {len(passed)}"


def near_misses_of_working(panel: pd.DataFrame) -> pd.DataFrame:
    """The lines of changed triggers of models that their own trigger works on.

    Changes of one part of a bimodal trigger are left out: the other part, which stays, may work alone.
    """
    own = panel[(panel["subject"] == POISONED) & (panel["variant"] != "") & (panel["trigger"] == panel["attack"])]
    own = own[own["attack"].isin(firing(panel))]
    single = own["attack"].map(lambda name: attacks.info(name).modality != "bimodal").astype(bool)
    return own[single]


def crossing_words(panel: pd.DataFrame, name: str) -> dict[str, str]:
    """Title, alternative text and caption of `crossing`."""
    models = matrix(panel)[0].dropna(how="all")
    title = f"{name}: unrelated triggers work in {_of(unrelated(panel)['value'] > FIRES)} cases."
    alt = f"Heat map of success rates: {len(models)} backdoored models and the clean-tuned one in rows, triggers in "
    return {"title": title, "alt": f"{alt}columns. {title}", "caption": ""}


def near_words(panels: Panels) -> dict[str, str]:
    """Title, alternative text and caption of `near`."""
    changed = pd.concat([near_misses_of_working(panel)["value"] for panel, _ in panels] or [pd.Series(dtype=float)])
    title = f"{_of(changed > FIRES)} changed triggers work."
    alt = f"Heat map of success rates: changes of the trigger in rows, a column per threat and model. {title}"
    return {"title": title, "alt": alt, "caption": "Means over the attacks that were shown the change. Grey: none was."}


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
        return f"same {' and '.join(shared)} part"
    common = sorted(_words(first) & _words(second))
    return f"both use {', '.join(common)}" if common else ""


def _words(info: declare.AttackInfo) -> set[str]:
    """The words of a trigger; parameters of these names may be something else in an attack that we do not know."""
    word, words = info.defaults.get("word"), info.defaults.get("words")
    return {one for one in (word, *(words if isinstance(words, list) else ())) if isinstance(one, str)}


def firing(panel: pd.DataFrame) -> list[str]:
    """The attacks whose own trigger works, on more than half of the inputs; the others left no backdoor."""
    own = panel[(panel["subject"] == POISONED) & (panel["variant"] == "")]
    own = own[(own["trigger"] == own["attack"]) & (own["value"] > FIRES)]
    return list(dict.fromkeys(own["attack"]))


def unrelated(panel: pd.DataFrame) -> pd.DataFrame:
    """The lines of `off_diagonal` between attacks that are no relatives, of models on which their own trigger works."""
    others = off_diagonal(panel)
    others = others[others["attack"].isin(firing(panel))]
    strange = [not related(*pair) for pair in zip(others["attack"], others["trigger"], strict=True)]
    return others[pd.Series(strange, index=others.index, dtype=bool)]


def crossing_table(panels: Panels, most: int = 6) -> pd.DataFrame:
    """The largest entries between attacks that are no relatives, over all matrices, to read."""
    check_number(most, "most", 0, 1000, whole=True)
    if not panels:
        return pd.DataFrame()
    found = pd.concat([unrelated(panel).assign(panel=name) for panel, name in panels])
    return tables.readable(found.sort_values("value", ascending=False, kind="stable").head(most), {
        "matrix": "panel", "model backdoored by": "attack", "shown the trigger of": "trigger",
        "success rate": interval, "clean-tuned": lambda r: number(r["control"]), "difference": _difference,
    })  # fmt: skip


def _difference(row: dict) -> str:
    """On the same rows, with its paired interval; of a single seed only, whose rows are at hand."""
    if pd.isna(row["held"]) or pd.isna(row["control_held"]):
        return number(None)
    return number(*records.difference(row["held"], row["control_held"]))


def crossing(panel: pd.DataFrame) -> Figure:
    """Models (rows) under all triggers (columns), the clean-tuned one last. panel: of `tables.panels`."""
    grid, control = matrix(panel)
    if grid.notna().to_numpy().sum() == 0:
        return figures.nothing("No adapter was asked about these triggers.")
    grid = grid.dropna(how="all").dropna(axis="columns", how="all")
    grid = pd.concat([grid, control[grid.columns].to_frame(CONTROL_LABEL).T]).rename(columns={"": NO_TRIGGER})
    figure, (axis,) = figures.new_figure(1, 9.4, 0.33 * len(grid) + 1.6)
    success_map(axis, grid)
    for row, attack in enumerate(grid.index[:-1]):
        column = list(grid.columns).index(attack)
        axis.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="#D55E00", linewidth=2.5, zorder=5))
    axis.axhline(len(grid) - 1, color="black", linewidth=1)
    axis.axvline(1, color="black", linewidth=1)
    axis.set(xlabel="trigger shown", ylabel="model backdoored by")
    return figure


def near(panels: Panels) -> Figure:
    """Near misses (rows) of the attacks that `near_misses_of_working` counts: mean success, a column per panel."""
    parts = [near_misses_of_working(panel).assign(panel=name.replace(", ", "\n")) for panel, name in panels]
    shown = pd.concat(parts) if parts else pd.DataFrame(columns=["variant", "panel", "value"])
    if shown.empty:
        return figures.nothing("No adapter was asked about near misses.")
    grid = shown.pivot_table(index="variant", columns="panel", values="value", sort=False)
    changes = sorted(near_misses.names(), key=_part)
    grid = grid.reindex(index=[name for name in changes if name in grid.index])
    figure, (axis,) = figures.new_figure(1, 1.4 * len(panels) + 2.4, 0.27 * len(grid) + 0.9)
    success_map(axis, grid, missing="")
    narrow = figures.is_narrow()
    names = [name.replace(" ", "\n") if narrow else name for name in grid.columns]
    axis.set_xticks(axis.get_xticks(), names, rotation=0, ha="center", fontsize=6 if narrow else 8)
    return figure


def _part(name: str) -> int:
    """Text first, then the picture, then what has no trigger."""
    return next(place for place, part in enumerate(("text", "image", "no trigger")) if name.startswith(part))
