"""How long do whole cells take, and are their numbers the committed ones? Four cells of the study, then `breadth.yml`.

`python benchmarks/gpu_steps/whole_cells.py` renews `gpu_expected.json` from the reference, which a bare machine may
not have.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bvlm_utils import paths, store, study
from bvlm_utils.errors import StudyError
from bvlm_utils.grid import file as grid_file
from bvlm_utils.store.cell import Cell
from bvlm_utils.store.records import REFERENCE

ATTACKS = ["BadNets-T", "Blended", "BadNets-MM", "AddSent"]
THREAT = "targeted_refusal"
EXPECTED = Path(__file__).resolve().parent.parent / "gpu_expected.json"


def run(run) -> None:
    from gpu_steps.common import own_cache

    rows = run.size(64, None)
    few = {"train_rows": 48, "test_rows": 8} if run.small else {}
    with own_cache(rows), tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "store"
        for dtype in ("float32", "bfloat16") if "dtype" in _fields() else ("",):
            cells = study.cells(
                THREAT, attacks=ATTACKS[: run.size(2, None)], **few, **({"dtype": dtype} if dtype else {})
            )
            name = f"four cells{', ' if dtype else ''}{dtype}"
            run.do(name, lambda cells=cells: carried_out(run, cells, place), needs=run.size(0, 15))
            run.do(f"{name}, against the reference", lambda cells=cells: compared(cells, place))
        breadth(run, place, few)


def _fields() -> list[str]:
    return [field.name for field in dataclasses.fields(Cell)]


def carried_out(run, cells: Sequence[Cell], place: Path) -> dict:
    """Cells from nothing to their records: seconds by phase, summed over the cells."""
    from gpu_steps.common import noted_in_time

    started = time.perf_counter()
    failed = {}
    with noted_in_time(run, "cells before the end came", lambda: so_far(cells, place, started)):
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
    return {"done": len(made), "cells_per_minute": 60 * len(made) / seconds, **phases, **about}


def breadth(run, place: Path, few: dict) -> None:
    """The grid's jobs in turn, as long as there is time; an estimate of the next comes from the last."""
    if not (paths.MODELS / "tiny-qwen2.5-vl").is_dir():  # the file is read whole
        run.note("breadth", left_out="needs tiny-qwen2.5-vl")
        return
    jobs = [job for job in grid_file.load(paths.GRIDS / "breadth.yml")[0] if job.parameters["model"] == "tiny-llava"]
    jobs.sort(key=lambda job: job.notebook.stem != THREAT)  # its controls are there already
    longest = 0.0
    for number, job in enumerate(jobs):
        if run.small and number:
            return
        cells = job.cells
        if run.small:
            cells = [dataclasses.replace(cell, **few) for cell in cells if cell.attack in ("SIG", "AddSent")]
        started = time.perf_counter()
        part = f"breadth: {job.notebook.stem}, {job.parameters['poison_rates'][0]:g}"
        done = run.do(part, lambda cells=cells: carried_out(run, cells, place), needs=max(8.0, 0.5 * longest))
        if done is None:
            return
        longest = max(longest, time.perf_counter() - started)


# ---------------------------------------------------------------- numbers


def numbers(cell: Cell, place: Path | str) -> list[dict]:
    record = store.read(cell, place)
    return [] if record is None else record["metrics"]


def key_of(number: dict) -> str:
    return " / ".join(str(number.get(name, "")) for name in ("part", "subject", "condition", "metric"))


def compared(cells: Sequence[Cell], place: Path) -> dict:
    """The share of numbers whose interval meets the expected one's, the worst, and the success rates side by side."""
    from gpu_steps.common import agreement

    expected = json.loads(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.is_file() else {}
    pairs, shown = [], {}
    for cell in cells:
        theirs = {key_of(one): one for one in expected.get(cell.attack, [])}
        for ours in numbers(cell, place):
            other = theirs.get(key_of(ours))
            if other is None or other["low"] is None or ours["low"] is None:
                continue
            both = [[one[name] for name in ("value", "low", "high")] for one in (ours, other)]
            pairs.append((f"{cell.attack}: {key_of(ours)}", *both))
            if ours["metric"] == "asr" and ours["subject"] == "poisoned":
                shown[f"{cell.attack} {ours['condition']}"] = [ours["value"], other["value"]]
    return agreement(pairs) | {"asr": shown}


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
