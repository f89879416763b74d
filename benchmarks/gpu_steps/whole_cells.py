"""How long do whole cells take, and are their numbers the committed ones? `quick.yml`, four cells in bfloat16, then
`breadth.yml`.

`python benchmarks/gpu_steps/whole_cells.py` renews `gpu_expected.json` from the reference, which a bare machine may
not have.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bvlm_utils import paths, store, study
from bvlm_utils.errors import StudyError
from bvlm_utils.grid import file as grid_file
from bvlm_utils.score import intervals
from bvlm_utils.score.judge import VERDICTS
from bvlm_utils.store.cell import Cell
from bvlm_utils.store.records import REFERENCE

ATTACKS = ["BadNets-T", "Blended", "BadNets-MM", "AddSent"]
THREAT, RATE = "targeted_refusal", 0.1
EXPECTED = Path(__file__).resolve().parent.parent / "gpu_expected.json"
ANSWER = ["part", "subject", "condition", "row_id"]  # what two stored answers are the same question by
OF_ALL = ("published", "published_soft")  # verdicts that count rows which are not judged, too
Pairs = list[tuple[str, Sequence[float], Sequence[float]]]  # as `common.agreement` takes them


def run(run) -> None:
    from gpu_steps.common import own_cache

    few = {"train_rows": 48, "test_rows": 8} if run.small else {}
    with own_cache(run.size(64, None)), tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "store"
        against = run.size(place, REFERENCE)  # the reference has no cell of so few rows: a rehearsal has itself

        def measured(part: str, cells: Sequence[Cell], needs: float) -> dict | None:
            found = run.do(part, lambda: carried_out(run, part, cells, place), needs=needs)
            if found is not None:
                run.do(f"{part}, against the reference", lambda: compared(cells, place, against))
            return found

        cells = [cell for job in grid_file.load(paths.GRIDS / "quick.yml")[0] for cell in job.cells]
        if run.small:
            cells = [dataclasses.replace(cell, **few) for cell in cells if cell.attack == "BadNets-T"]
        measured("quick.yml", cells, run.size(0, 15))
        cells = study.cells(THREAT, attacks=ATTACKS[: run.size(2, None)], **few, dtype="bfloat16")
        measured("four cells, bfloat16", cells, run.size(0, 12))
        breadth(run, measured, few)


def carried_out(run, part: str, cells: Sequence[Cell], place: Path) -> dict:
    """Cells from nothing to their records: seconds by phase, summed over the cells that the store lacks."""
    from gpu_steps.common import noted_in_time

    started = time.perf_counter()
    cells = [cell for cell in cells if not store.has(cell, place)]
    failed = {}
    with noted_in_time(run, f"{part}, before the end came", lambda: so_far(cells, place, started)):
        try:
            study.run_cells(cells, place)
        except StudyError as error:  # the other cells of the list were run
            failed = {"failed": str(error).splitlines()[-1].strip()[-200:]}
    return so_far(cells, place, started) | failed


def so_far(cells: Sequence[Cell], place: Path, started: float) -> dict:
    records = [record for record in (store.read(cell, place) for cell in cells) if record]
    seconds = time.perf_counter() - started
    phases: dict[str, float] = {}
    for record in records:
        for phase, took in record.get("seconds", {}).items():
            phases[f"{phase}_s"] = phases.get(f"{phase}_s", 0.0) + took
    made = [record for record in records if record["status"] == "done"]
    about = {name: made[0][name] for name in ("device", "dtype", "tuned_together") if made}
    rate = 60 * len(made) / seconds
    return {"done": len(made), "cells_per_minute": rate, "wall_s": seconds, **phases, **about}


def breadth(run, measured, few: dict) -> None:
    """The grid's jobs in turn, as long as there is time; an estimate of the next comes from the last."""
    if not (paths.MODELS / "tiny-qwen2.5-vl").is_dir():  # the file is read whole
        run.note("breadth", left_out="needs tiny-qwen2.5-vl")
        return
    every = grid_file.load(paths.GRIDS / "breadth.yml")[0]
    jobs = [job for job in every if job.parameters["model"] == "tiny-llava"]
    # one rate after the other; of the first threat controls and some cells are there already
    jobs.sort(key=lambda job: (-job.parameters["poison_rates"][0], job.notebook.stem != THREAT))
    longest = done = seconds = 0.0
    for job in jobs[: run.size(1, None)]:
        cells = job.cells
        if run.small:
            cells = [dataclasses.replace(cell, **few) for cell in cells if cell.attack in ("SIG", "AddSent")]
        started = time.perf_counter()
        part = f"breadth: {job.notebook.stem}, {job.parameters['poison_rates'][0]:g}"
        found = measured(part, cells, max(8.0, 0.5 * longest))
        if found is None:
            break
        longest = max(longest, time.perf_counter() - started)  # with the comparison
        done, seconds = done + found["done"], seconds + found["wall_s"]
    if done:
        run.do("breadth.yml at this rate", lambda: whole(every, 60 * done / seconds))


def whole(jobs: Sequence[grid_file.Job], rate: float) -> dict:
    """How long one rate on one model takes, and all of the grid, if each cell takes what those that ran took."""
    kinds = {"one_rate": [job for job in jobs if job.parameters["model"] == "tiny-llava"
                          and job.parameters["poison_rates"] == [RATE]], "all": jobs}  # fmt: skip
    counts = {name: sum(not cell.skip_reason for job in some for cell in job.cells) for name, some in kinds.items()}
    return {"cells_per_minute": rate} | {
        key: value
        for name, count in counts.items()
        for key, value in ((f"cells_of_{name}", count), (f"minutes_of_{name}", count / rate))
    }


# ---------------------------------------------------------------- numbers


def numbers(cell: Cell, place: Path | str) -> list[dict]:
    record = store.read(cell, place)
    return [] if record is None else record["metrics"]


def key_of(number: dict) -> str:
    return " / ".join(str(number.get(name, "")) for name in ("part", "subject", "condition", "metric"))


def compared(cells: Sequence[Cell], place: Path | str, against: Path | str) -> dict:
    """How many numbers agree with those of the store `against` in float32, and the worst.

    Answers that both have stored are paired by row: a number agrees if the interval of the difference has zero. Where
    none are, it agrees if its own interval and the expected one (`EXPECTED`) meet.
    """
    from gpu_steps.common import agreement

    there = [(cell, dataclasses.replace(cell, dtype="")) for cell in cells]
    both = [(cell, other) for cell, other in there if _done(cell, place) and _done(other, against)]
    pairs = [pair for cell, other in both for pair in paired(cell, place, other, against)]
    found = {"by": "paired intervals", "cells": len(both)}
    if not both:
        pairs, found = overlapping(cells, place)
    return agreement(pairs) | found


def _done(cell: Cell, place: Path | str) -> bool:
    record = store.read(cell, place)
    return record is not None and record["status"] == "done"


def paired(cell: Cell, place: Path | str, other: Cell, against: Path | str) -> Iterator[tuple]:
    """For each test of each subject under each condition: its name, our share minus theirs with the ends of its paired
    interval, and zero. Rows are those that both have judged.
    """
    ours, theirs = store.responses(cell, place), store.responses(other, against)
    rows = ours.merge(theirs, on=ANSWER, suffixes=("", " there"))
    for label, some in rows.groupby(ANSWER[:3], sort=False):
        for name in [name for name in VERDICTS if name != "judged"]:
            kept = some if name in OF_ALL else some[some["judged"] & some["judged there"]]
            kept = kept[[name, f"{name} there"]].dropna()
            if kept.empty:
                continue
            of_scores = name == "score"
            sides = (kept[column].astype(float if of_scores else bool) for column in kept)
            numbers = (intervals.paired_means if of_scores else intervals.paired_shares)(*sides)
            if None not in numbers:
                yield f"{cell.attack}: {' / '.join(label)} / {name}", numbers, (0.0, 0.0, 0.0)


def overlapping(cells: Sequence[Cell], place: Path | str) -> tuple[Pairs, dict]:
    """Our numbers beside the expected ones, and the success rates to be shown side by side."""
    expected = json.loads(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.is_file() else {}
    pairs, shown = [], {}
    cells = [cell for cell in cells if (cell.threat, cell.poison_rate) == (THREAT, RATE) and cell.attack in expected]
    for cell in cells:
        theirs = {key_of(one): one for one in expected[cell.attack]}
        for ours in numbers(cell, place):
            other = theirs.get(key_of(ours))
            if other is None or other["low"] is None or ours["low"] is None:
                continue
            both = [[one[name] for name in ("value", "low", "high")] for one in (ours, other)]
            pairs.append((f"{cell.attack}: {key_of(ours)}", *both))
            if ours["metric"] == "asr" and ours["subject"] == "poisoned":
                shown[f"{cell.attack} {ours['condition']}"] = [ours["value"], other["value"]]
    return pairs, {"by": "overlap with the expected intervals", "cells": len(cells), "asr": shown}


def renew() -> None:
    cells = study.cells(THREAT, attacks=ATTACKS)
    kept = ("part", "subject", "condition", "metric", "value", "low", "high")
    found = {
        cell.attack: [{name: one[name] for name in kept if name in one} for one in numbers(cell, REFERENCE)]
        for cell in cells
    }
    text = ",\n".join(
        f' "{attack}": [\n  ' + ",\n  ".join(json.dumps(one) for one in lines) + "\n ]"
        for attack, lines in found.items()
    )
    EXPECTED.write_text("{\n" + text + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    renew()
