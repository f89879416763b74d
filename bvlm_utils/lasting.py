"""Does a backdoor last? After further tuning on clean rows, and after merging and rounding the weights.

    python -m bvlm_utils.lasting --store local --model tiny-llava --threat targeted_refusal

takes the adapters that a store keeps and asks each of them, and their clean-tuned control, before and after

- so many further steps on clean rows that were not among its training rows (`data.further`; where the data
  have too few, the same rows again, clean), each number of steps a run of its own from the stored adapter
  with the study's settings, warm-up and decay included;
- merging into the base, exactly and with rounded weights (`merging`).

What was asked before is not asked again; answers are kept in the store (`probes`), further tuned adapters are
not. The chapter of the same name reads them through `collect` and the functions below it; importing this does
not import torch.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bvlm_utils import attacks, crossfire, data, probes, report, store, stored_cells
from bvlm_utils.bench import Bench, Question, bench_key, questions
from bvlm_utils.cells import Cell, TrainSettings
from bvlm_utils.errors import InputError
from bvlm_utils.probes import CONTROL, POISONED, Probe, Progress, Sheet

if TYPE_CHECKING:
    from bvlm_utils.grouped import GroupResult

KIND = "lasting"
ROWS = 200  # as many as the study asks, so that zero steps repeat the record
STEPS = (10, 30, 100)  # further ones; zero is always asked
MERGED = ("merged", "bfloat16", "int8", "int4")
MERGED_LABELS = {
    "": "adapter beside the base",
    "merged": "merged",
    "bfloat16": "merged, bfloat16",
    "int8": "merged, int8 per channel",
    "int4": "merged, int4 per channel",
}
FRESH, SAME_ROWS = "fresh", "same"
ROWS_LABELS = {
    FRESH: "clean rows that no model was tuned on",
    SAME_ROWS: "the rows that they were tuned on, clean",
}


def measure(
    cells: Sequence[Cell],
    place: str | Path | None = None,
    rows: int = ROWS,
    steps: Sequence[int] = STEPS,
    merged: Sequence[str] = MERGED,
) -> None:
    """Ask the stored adapters of `cells` what the store does not know yet; stderr is told how it goes.

    cells: of one model, data set, threat, rate and seed. steps: further ones, each above 0. merged: of
    `MERGED`.
    """
    root, first = store.writable(place), cells[0]
    if first.four_bit:
        raise InputError(
            "The base is in 4 bit, whose packed weights cannot be merged; take cells of a base that is not."
        )
    wrong = [step for step in steps if step < 1]
    if wrong:
        raise InputError(f"steps has {wrong[0]}; each must be a whole number above 0.")
    sheets = probes.sheets(KIND, cells, root, rows)
    bench = Bench(*bench_key(first))
    settings = replace(first.train, epochs=1)
    wanted, which = max(steps, default=0) * settings.batch_size, FRESH
    if steps and (there := data.beyond(first.dataset, first.train_rows)) is not None and there < wanted:
        which = SAME_ROWS
        probes.say(
            f"{first.dataset} has only {there} training rows beyond the {first.train_rows} that were tuned "
            f"on, and {wanted} are needed: the same rows are used again, clean."
        )
    work = _Work(bench, root, sheets, rows)
    states = {"": ()} | {str(count): ("steps", count, which, asdict(settings)) for count in sorted(set(steps))}
    states |= {how: ("weights", how) for how in merged}
    lacking = {state: work.lacking(state, doing) for state, doing in states.items()}
    progress = Progress(KIND, sum(len(some) for part in lacking.values() for _, some in part))
    for state, part in lacking.items():
        if part and state in merged:
            work.ask_merged(part, state, progress)
        elif part and state:
            probes.ask(bench, root, part, work.tuned(part, int(state), settings, which), work.judged, progress)
        elif part:
            probes.ask(bench, root, part, [work.stored[sheet.run_id] for sheet, _ in part], work.judged, progress)


class _Work:
    """What the states share: the adapters, and the questions to each model."""

    def __init__(self, bench: Bench, root: Path, sheets: Sequence[Sheet], rows: int):
        self.bench, self.root, self.sheets, self.rows = bench, root, sheets, rows
        store.clean(root)

    @cached_property
    def stored(self) -> dict[str, "GroupResult"]:
        from bvlm_utils import engine

        return {sheet.run_id: engine.saved(store.adapter(sheet.run_id, self.root)) for sheet in self.sheets}

    @cached_property
    def questions(self) -> dict[str, list[Question]]:
        """Attack -> its questions: clean, with the whole trigger, and for utility."""
        found = {}
        for sheet in self.sheets:
            asked = questions(self.bench, replace(sheet.cell, test_rows=self.rows))
            attacked = [question for question in asked if question.part == "attack"]
            found[sheet.cell.attack] = [attacked[0], attacked[-1], asked[-1]]
        return found

    @cached_property
    def judged(self) -> list[bool]:
        cell = self.sheets[0].cell
        return probes.judged_rows(self.bench, self.root, cell, self.questions[cell.attack][0])

    def lacking(self, state: str, doing: tuple[Any, ...]) -> list[tuple[Sheet, list[Probe]]]:
        """What is still to be asked of whom in a state; of the control every attack's trigger."""
        found = []
        for sheet in self.sheets:
            triggers = list(self.questions) if sheet.subject == CONTROL else [sheet.cell.attack]
            clean, _, utility = self.questions[sheet.cell.attack]
            wanted = [Probe("", state, clean, doing)]
            wanted += [Probe(attack, state, self.questions[attack][1], doing) for attack in triggers]
            wanted.append(Probe("", state, utility, doing))
            found.append((sheet, sheet.lacking(self.bench, self.root, wanted)))
        return [(sheet, some) for sheet, some in found if some]

    def tuned(
        self, part: Sequence[tuple[Sheet, Any]], steps: int, settings: TrainSettings, which: str
    ) -> list["GroupResult"]:
        """The adapters of `part` after so many further steps on clean rows, all tuned together."""
        from bvlm_utils import grouped
        from bvlm_utils.train import TrainRow

        split, count = "train", steps * settings.batch_size
        if which == FRESH:
            split = "further"
            self.bench.add(split, data.further(self.bench.dataset, self.bench.train_rows, count))
        samples = self.bench.rows[split]
        wanted = [at % len(samples) for at in range(count)]
        places = self.bench.places(split, wanted)
        rows = [
            TrainRow(samples[at]["prompt"], samples[at]["answers"][0], place)
            for at, place in zip(wanted, places, strict=True)
        ]
        jobs = [
            grouped.GroupJob(rows, self.bench.kept.table, settings, sheet.cell.seed, self.stored[sheet.run_id].state)
            for sheet, _ in part
        ]

        def told(step: int, total: int, loss: float) -> None:
            if step % 10 == 0 or step == total:
                probes.say(f"{KIND}: {step} of {total} further steps of {len(jobs)} models, loss {loss:.3f}")

        return grouped.finetune_group(self.bench.victim, jobs, progress=told)

    def ask_merged(self, part: Sequence[tuple[Sheet, Sequence[Probe]]], how: str, progress: Progress) -> None:
        """Ask models one by one: once merged, they share no base."""
        from bvlm_utils import engine, merging

        for sheet, some in part:
            one = self.stored[sheet.run_id]
            with merging.merged(self.bench.victim.model, one.state, one.config, how):
                said = engine.Grouped(self.bench).ask_saved([probe.question for probe in some], None)
            for probe in some:
                texts = said[probe.question.key(self.bench)]
                probes.keep(self.bench, self.root, sheet, probe, texts, self.judged)
            progress.told(len(some), f"{how}, {sheet.run_id}")


# ---------------------------------------------------------------- the page

PANEL = ["model", "dataset", "threat", "train_rows", "settings", "rows"]


def collect(place: str | Path | None = None) -> pd.DataFrame:
    """Headline success and utility in every state, a line per model, trigger and state, seeds put together.

    Columns of `probes.over_seeds`, `steps` (0, 10, ...; NaN for merged states) and `trained`: how many steps the
    model's own training took, NaN where its record is not in the store.
    """
    table = probes.collect(KIND, place)
    found = probes.over_seeds(pd.concat([probes.headline(table), table[table["metric"] == "utility"]]))
    steps = pd.to_numeric(found["variant"].where(found["variant"] != "", "0"), errors="coerce")
    model = ["subject", "attack", *PANEL, "poison_rate"]
    trained = table.assign(trained=table["run_id"].map(_trained(table["run_id"], place)).astype(float))
    trained = trained.groupby(model, dropna=False, as_index=False)["trained"].max()
    return found.assign(steps=steps).merge(trained, how="left", on=model)


def _trained(run_ids: pd.Series, place: str | Path | None) -> dict[str, float]:
    """The steps of training that the records of a store tell of."""
    found = {}
    for run_id in run_ids.unique():
        found[run_id] = (store.record(run_id, place) or {}).get("training", {}).get("steps")
    return found


def steps_words(lines: pd.DataFrame) -> str:
    """ "100 further steps on clean rows (their own training took 188)"; lines: those of `survivors`."""
    said = f"{lines['steps'].iloc[0]:.0f} further steps on clean rows"
    took = list(dict.fromkeys(f"{steps:.0f}" for steps in sorted(lines["trained"].dropna().unique())))
    return said + (f" (their own training took {' to '.join(dict.fromkeys((took[0], took[-1])))})" if took else "")


def panels(table: pd.DataFrame) -> list[tuple[pd.DataFrame, str]]:
    """As `crossfire.panels`: of one model, threat and poison rate each, with their names."""
    return crossfire.panels(table)


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
    start = own[(own["steps"] == 0) & (own["value"] > report.FIRES)]
    last = own[(own["steps"] == own["steps"].max()) & own["attack"].isin(start["attack"])]
    return last, last[last["value"] > report.FIRES]


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
        return report.number(None)
    line = found.iloc[0]
    return report.number(line["value"], line["low"], line["high"]) if interval else report.number(line["value"])


# ---------------------------------------------------------------- the command line


def main(argv: list[str] | None = None) -> int:
    """The command line; 0, or 2 with one sentence on stderr if a value is wrong."""
    made = stored_cells.parser(KIND, __doc__.split("\n")[0], ROWS)
    made.add_argument("--steps", type=int, nargs="*", default=list(STEPS), help="further steps (default 10 30 100)")
    made.add_argument("--merged", nargs="*", choices=MERGED, default=list(MERGED), help="weights (default: all)")
    given = made.parse_args(argv)

    def ask() -> str:
        measure(stored_cells.chosen(given), given.store, given.rows, given.steps, given.merged)
        return f"The answers are in {store.folder(given.store) / 'probes'}."

    return stored_cells.run(ask)


if __name__ == "__main__":
    sys.exit(main())
