"""Does one trigger fire another's backdoor, and does something near a trigger fire its own?

    python -m bvlm_utils.crossfire --store local --model tiny-llava --threat targeted_refusal

asks the adapters that a store keeps: every poisoned model and their clean-tuned control about the same test
rows, with no trigger and with the trigger of every attack, and each model (and the control) about near misses
of its own trigger (`near_misses`). What was asked before is not asked again; answers are kept in the store
(`probes`). The chapter of the same name reads them through `collect` and the functions below it; importing
this does not import torch.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from bvlm_utils import attacks, near_misses, plots, probes, report, store, stored_cells
from bvlm_utils.bench import Bench, Question, bench_key, questions
from bvlm_utils.cells import Cell
from bvlm_utils.probes import CONTROL, Probe, Progress, Sheet

KIND = "crossfire"
ROWS = 100  # eligible test rows per entry: a 12 x 12 matrix is read for patterns, and 100 tell 0.1 from 0.3


def measure(cells: Sequence[Cell], place: str | Path | None = None, rows: int = ROWS, near: bool = True) -> None:
    """Ask the stored adapters of `cells` what the store does not know yet; stderr is told how it goes.

    cells: of one model, data set, threat, rate and seed. rows: eligible test rows per question. near: near
    misses too.
    """
    root = store.writable(place)
    sheets = probes.sheets(KIND, cells, root, rows)
    first = cells[0]
    bench = Bench(*bench_key(first))
    crossed = [one for name in attacks.names() if (one := _of(first, name, rows)).skip_reason is None]
    pairs = {cell.attack: _clean_and_whole(bench, cell) for cell in crossed}
    clean = next(iter(pairs.values()))[0]
    common = [Probe("", "", clean), *(Probe(name, "", whole) for name, (_, whole) in pairs.items())]
    own = {sheet.cell.attack: _near(bench, replace(sheet.cell, test_rows=rows)) for sheet in sheets[:-1] if near}
    everything = list({(one.trigger, one.variant): one for some in own.values() for one in some}.values())
    asked: list[tuple[Sheet, list[Probe]]] = []
    for sheet in sheets:
        beside = everything if sheet.subject == CONTROL else own.get(sheet.cell.attack, [])
        asked.append((sheet, sheet.lacking(bench, root, [*common, *beside])))
    asked = [(sheet, lacking) for sheet, lacking in asked if lacking]
    if asked:
        _ask(bench, root, asked, clean)


def _ask(bench: Bench, root: Path, asked: list[tuple[Sheet, list[Probe]]], clean: Question) -> None:
    from bvlm_utils import engine

    store.clean(root)
    results = [engine.saved(store.adapter(sheet.run_id, root)) for sheet, _ in asked]
    judged = probes.judged_rows(bench, root, asked[0][0].cell, clean)
    progress = Progress(KIND, sum(len(lacking) for _, lacking in asked))
    probes.ask(bench, root, asked, results, judged, progress)


def _of(cell: Cell, attack: str, rows: int) -> Cell:
    """The attack as it is defined, under the threat of `cell`, for its trigger."""
    return replace(cell, attack=attack, attack_params={}, negatives=0.0, half="", test_rows=rows)


def _clean_and_whole(bench: Bench, cell: Cell) -> tuple[Question, Question]:
    """The eligible rows without a trigger and with the whole one (Shadowcast: the triggered picture, which is
    ours).
    """
    found = [question for question in questions(bench, cell) if question.part == "attack"]
    return found[0], found[-1]


def _near(bench: Bench, cell: Cell) -> list[Probe]:
    clean, whole = _clean_and_whole(bench, cell)
    keys = [bench.rows["test"][position]["row_id"] for position in clean.positions]
    return [
        Probe("" if miss.alone else cell.attack, miss.name, near_misses.question(miss, cell, clean, whole, keys))
        for miss in near_misses.of(cell.attack)
    ]


# ---------------------------------------------------------------- the page

BESIDE = {"control": "value", "control_held": "held"}  # columns of the control, put beside the models'
PANEL = ["model", "dataset", "threat", "train_rows", "settings", "rows"]


def collect(place: str | Path | None = None) -> pd.DataFrame:
    """Headline success in a store: a line per model, trigger and near miss, seeds put together."""
    return probes.over_seeds(probes.headline(probes.collect(KIND, place)))


def panels(table: pd.DataFrame) -> list[tuple[pd.DataFrame, str]]:
    """The parts of `collect` that make a matrix each, with their names: of one model, threat and poison rate.

    The control, which has no rate, is in every panel of its model and threat.
    """
    found = []
    for key, part in table.groupby(PANEL, sort=False):
        about = dict(zip(PANEL, key, strict=True))
        poisoned = part[part["subject"] == probes.POISONED]
        for rate in sorted(poisoned["poison_rate"].unique(), reverse=True):
            chosen = part[(part["subject"] == CONTROL) | (part["poison_rate"] == rate)]
            threat = about["threat"].replace("_", " ").capitalize()
            name = f"{threat}, {about['model']}, {plots.percent(rate)} poisoned"
            found.append((chosen, name + (f", {about['settings']}" if about["settings"] else "")))
    return found


def matrix(panel: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Success of every model (row) under every trigger (column, "" for none), and the control's row.

    Always all attacks, in the order of the paper's table; NaN where there is no adapter or no such trigger.
    """
    crossed = panel[panel["variant"] == ""]
    triggers = ["", *attacks.names()]
    poisoned = crossed[crossed["subject"] == probes.POISONED]
    grid = poisoned.pivot_table(index="attack", columns="trigger", values="value", aggfunc="first")
    control = crossed[crossed["subject"] == CONTROL].set_index("trigger")["value"]
    return grid.reindex(index=attacks.names(), columns=triggers), control.reindex(triggers)


def off_diagonal(panel: pd.DataFrame) -> pd.DataFrame:
    """Lines of a panel where a model is shown another attack's trigger, with the control's rate for it,
    largest first.
    """
    crossed = panel[(panel["variant"] == "") & (panel["trigger"] != "")]
    control = crossed[crossed["subject"] == CONTROL].set_index("trigger")
    others = crossed[(crossed["subject"] == probes.POISONED) & (crossed["trigger"] != crossed["attack"])]
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


def _words(info: attacks.AttackInfo) -> set[str]:
    """The words of a trigger; parameters of these names may be something else in an attack that we do not know."""
    word, words = info.defaults.get("word"), info.defaults.get("words")
    return {one for one in (word, *(words if isinstance(words, list) else ())) if isinstance(one, str)}


def firing(panel: pd.DataFrame) -> list[str]:
    """The attacks whose own trigger fires on more than half of the inputs; the others left no backdoor to speak of."""
    own = panel[(panel["subject"] == probes.POISONED) & (panel["variant"] == "")]
    own = own[(own["trigger"] == own["attack"]) & (own["value"] > report.FIRES)]
    return list(dict.fromkeys(own["attack"]))


def strangers(panel: pd.DataFrame) -> pd.DataFrame:
    """The lines of `off_diagonal` between attacks that are no relatives, of models that fire on their own trigger."""
    others = off_diagonal(panel)
    others = others[others["attack"].isin(firing(panel))]
    strange = [not related(*pair) for pair in zip(others["attack"], others["trigger"], strict=True)]
    return others[pd.Series(strange, index=others.index, dtype=bool)]


def crossing_table(panel: pd.DataFrame, most: int = 12) -> pd.DataFrame:
    """The largest entries off the diagonal, to read."""
    return pd.DataFrame(
        [
            {
                "model backdoored by": r["attack"],
                "shown the trigger of": r["trigger"],
                "success rate": report.number(r["value"], r["low"], r["high"]),
                "clean-tuned": report.number(r["control"]),
                "poisoned minus clean-tuned": _difference(r),
                "seeds": int(r["n_seeds"]),
                "known relation": related(r["attack"], r["trigger"]) or "none",
            }
            for r in off_diagonal(panel).head(most).to_dict("records")
        ]
    )


def _difference(row: dict) -> str:
    """On the same rows, with its paired interval; of a single seed only, whose rows are at hand."""
    if pd.isna(row["held"]) or pd.isna(row["control_held"]):
        return report.number(None)
    return report.number(*probes.difference(row["held"], row["control_held"]))


def other_half_fires(row: Mapping[str, Any], table: pd.DataFrame) -> bool:
    """Does the half that a near miss leaves as it is fire alone? Then the change of the other half shows nothing.

    row: a line of a panel. table: of `store.collect`; False where it does not hold the cell.
    """
    changed = row["variant"].split(":")[0]
    if attacks.info(row["attack"]).modality != "bimodal" or changed not in ("text", "image"):
        return False
    same = {name: row[name] for name in (*PANEL[:-1], "attack", "poison_rate", "negatives")}
    same |= {"subject": probes.POISONED, "condition": "image" if changed == "text" else "text"}
    rows = table[table["metric"] == report.headline_metric(table)]
    rows = rows[(rows[list(same)] == pd.Series(same)).all(axis=1)]
    return bool(len(rows)) and rows["value"].mean() > report.FIRES


def near_table(panel: pd.DataFrame) -> pd.DataFrame:
    """Near misses to read: a line per model and change, beside its own trigger and the control's rate."""
    control = panel[panel["subject"] == CONTROL].set_index(["trigger", "variant"])["value"]
    poisoned, lines = panel[panel["subject"] == probes.POISONED], []
    for attack in (name for name in attacks.names() if name in set(poisoned["attack"])):
        own = poisoned[(poisoned["attack"] == attack) & poisoned["trigger"].isin([attack, ""])]
        own = own[(own["variant"] != "") | (own["trigger"] == attack)]
        if (own["variant"] == "").all():
            continue
        for r in sorted(own.to_dict("records"), key=lambda r: r["variant"] != ""):
            lines.append(
                {
                    "attack": attack,
                    "shown": r["variant"] or "the trigger itself",
                    "success rate": report.number(r["value"], r["low"], r["high"]),
                    "clean-tuned": report.number(control.get((r["trigger"], r["variant"]))),
                    "seeds": int(r["n_seeds"]),
                }
            )
    return pd.DataFrame(lines)


# ---------------------------------------------------------------- the command line


def main(argv: list[str] | None = None) -> int:
    """The command line; 0, or 2 with one sentence on stderr if a value is wrong."""
    made = stored_cells.parser(KIND, __doc__.split("\n")[0], ROWS)
    made.add_argument("--no-near-misses", action="store_true", help="the matrix alone")
    given = made.parse_args(argv)

    def ask() -> str:
        measure(stored_cells.chosen(given), given.store, given.rows, near=not given.no_near_misses)
        return f"The answers are in {store.folder(given.store) / 'probes'}."

    return stored_cells.run(ask)


if __name__ == "__main__":
    sys.exit(main())
