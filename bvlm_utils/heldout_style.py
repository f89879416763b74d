"""Do the halves of a bimodal trigger fire as well on pictures in a drawing style that no model has seen?

    python -m bvlm_utils.heldout_style --store local --model tiny-llava --threat targeted_refusal

asks the bimodal attacks' adapters that a store keeps, and their clean-tuned control, under all four
conditions on the split `test_style` of the scenes. Answers are kept in the store (`probes`). The chapter on
modalities shows them beside those on the usual test rows. Importing this does not import torch.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from bvlm_utils import attacks, data, plots, probes, report, store, stored_cells
from bvlm_utils.bench import Bench, bench_key, questions
from bvlm_utils.cells import Cell
from bvlm_utils.errors import InputError
from bvlm_utils.probes import CONTROL, POISONED, Probe, Progress

KIND = "style"
SPLIT = "test_style"
ROWS = 100
SAME = ["model", "threat", "attack", "poison_rate"]


def measure(cells: Sequence[Cell], place: str | Path | None = None, rows: int = ROWS) -> None:
    """Ask the stored adapters of `cells` what the store does not know yet; stderr is told how it goes.

    cells: of one model, data set, threat, rate and seed. rows: eligible rows in the held-out style per
    condition.
    """
    from bvlm_utils import engine

    root = store.writable(place)
    if cells[0].dataset not in data.names():
        raise InputError(f"{cells[0].dataset} has no split {SPLIT}; take one of: {', '.join(data.names())}.")
    sheets = probes.sheets(KIND, cells, root, rows)
    bench = Bench(*bench_key(cells[0]))
    bench.add("test", data.load(cells[0].dataset, SPLIT))
    own = {sheet.cell.attack: _probes(bench, sheet.cell, rows) for sheet in sheets[:-1]}
    every = list({(p.trigger, p.variant, p.question.part): p for some in own.values() for p in some}.values())
    asked = [
        (sheet, sheet.lacking(bench, root, every if sheet.subject == CONTROL else own[sheet.cell.attack]))
        for sheet in sheets
    ]
    asked = [(sheet, lacking) for sheet, lacking in asked if lacking]
    if asked:
        store.clean(root)
        judged = probes.judged_rows(bench, root, cells[0], every[0].question)
        results = [engine.saved(store.adapter(sheet.run_id, root)) for sheet, _ in asked]
        progress = Progress(KIND, sum(len(lacking) for _, lacking in asked))
        probes.ask(bench, root, asked, results, judged, progress)


def _probes(bench: Bench, cell: Cell, rows: int) -> list[Probe]:
    """All conditions on the first eligible rows, then the utility rows; the clean ones are shared by all
    attacks."""
    found = questions(bench, replace(cell, test_rows=rows))
    return [
        Probe("" if q.condition == "clean" else cell.attack, q.condition, q, (SPLIT,))
        for q in found
        if q.part in ("attack", "utility")
    ]


# ---------------------------------------------------------------- the page


def collect(place: str | Path | None = None) -> pd.DataFrame:
    """Headline success in the held-out style: a line per model and condition (`variant`), seeds put
    together."""
    return probes.over_seeds(probes.headline(probes.collect(KIND, place)))


def shared_seeds(table: pd.DataFrame, asked: pd.DataFrame) -> pd.DataFrame:
    """The rows of `store.collect` of the cells and seeds that were asked; asked: `probes.collect` of this kind."""
    return table.merge(asked[[*SAME, "seed"]].drop_duplicates(), on=[*SAME, "seed"])


def style_table(found: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """`collect` beside `modality.four_cells` of `shared_seeds` to read: a line per cell, a column per condition.

    Each field: on the usual test rows, then in the held-out style with its interval.
    """
    usual = _usual(cells)
    lines = []
    for key, part in found[found["subject"] == POISONED].groupby(SAME, sort=False):
        about, by = dict(zip(SAME, key, strict=True)), part.drop_duplicates("variant").set_index("variant")
        line = {
            "model": about["model"],
            "threat": about["threat"].replace("_", " "),
            "attack": about["attack"],
            "poison rate": plots.percent(about["poison_rate"]),
        }
        for condition in (c for c in plots.CONDITIONS if c in by.index):
            before = report.number(usual.loc[key][condition] if key in usual.index else None)
            r = by.loc[condition]
            line[f"{plots.CONDITION_LABELS[condition]}: usual, held-out style"] = (
                f"{before}, {report.number(r['value'], r['low'], r['high'])}"
            )
        lines.append(line | {"seeds": int(part["n_seeds"].min())})
    return pd.DataFrame(lines)


def _usual(cells: pd.DataFrame) -> pd.DataFrame:
    return cells[(cells["negatives"] == 0) & (cells["settings"] == "")].drop_duplicates(SAME).set_index(SAME)


def sentences(found: pd.DataFrame, utility: pd.DataFrame, cells: pd.DataFrame) -> list[str]:
    """What may be said, in Markdown; found: `collect`, utility: all lines of `probes.collect` of this kind, cells: as
    for `style_table`.
    """
    if found.empty:
        return ["Nobody has been asked yet: the store holds no answer in the held-out style."]
    control = utility[(utility["subject"] == CONTROL) & (utility["part"] == "utility")]
    fewest, most = int(found["n"].min()), int(found["n"].max())
    counts = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    said = [f"{counts} inputs per number, 95 % intervals. The clean-tuned models on ordinary inputs in that style:"]
    measured = [
        f"{r['unit']} {report.number(r['value'], r['low'], r['high'])} ({r['model']}, {r['threat'].replace('_', ' ')})"
        for r in control.drop_duplicates(["model", "threat"]).to_dict("records")
    ]
    said.append(("; ".join(measured) or "n/a") + ".")
    return [_finding(found[found["subject"] == POISONED], _usual(cells)), " ".join(said)]


def _finding(poisoned: pd.DataFrame, usual: pd.DataFrame) -> str:
    """Does success carry over? The conditions that fire, and by how much they change."""
    changes = [
        (row["value"] - usual.loc[key][row["variant"]], row)
        for row in poisoned.to_dict("records")
        if (key := tuple(row[name] for name in SAME)) in usual.index
        and max(row["value"], usual.loc[key][row["variant"]]) > report.FIRES
    ]
    if not changes:
        return "No cell that was asked fires on more than half of the inputs in either style."
    change, worst = max(changes, key=lambda pair: abs(pair[0]))
    kept = sum(1 for _, row in changes if row["value"] > report.FIRES)
    condition = plots.CONDITION_LABELS[worst["variant"]]
    return (
        f"**Of {len(changes)} combinations of attack and condition that fire on more than half of the inputs in one "
        f"style at least, {kept} do so in the held-out one.** The largest change is {report.number(change)} "
        f"({worst['attack']}, {condition}: {report.number(worst['value'], worst['low'], worst['high'])} in the "
        "held-out style)."
    )


# ---------------------------------------------------------------- the command line


def main(argv: list[str] | None = None) -> int:
    """The command line; 0, or 2 with one sentence on stderr if a value is wrong."""
    made = stored_cells.parser("heldout_style", __doc__.split("\n")[0], ROWS)
    made.set_defaults(attacks=[name for name in attacks.names() if attacks.info(name).modality == "bimodal"])
    given = made.parse_args(argv)

    def ask() -> str:
        measure(stored_cells.chosen(given), given.store, given.rows)
        return f"The answers are in {store.folder(given.store) / 'probes'}."

    return stored_cells.run(ask)


if __name__ == "__main__":
    sys.exit(main())
