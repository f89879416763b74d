"""How long does a bench of the defence grid take, and are its numbers the committed ones?

One of the ten benches of `defences_core.yml`: six attacks, their adapters, 19 defences and their placebos.
`python benchmarks/gpu_steps/defence_points.py` renews `gpu_expected_defences.json` from the reference, which a bare
machine may not have.
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from bvlm_utils import defences, paths, store
from bvlm_utils.defences import measure, records
from bvlm_utils.defences.cell import Defended
from bvlm_utils.grid import file as grid_file
from bvlm_utils.run import study
from bvlm_utils.store.records import REFERENCE

EXPECTED = Path(__file__).resolve().parent.parent / "gpu_expected_defences.json"
GRID, THREAT, SKILL = "defences_core.yml", "targeted_refusal", "counts_in_words"
COMPARED = ("asr_payload", "skill", "auroc")  # of a poisoned model
FEW = ("shrink", "attention-collapse", "cleansight")  # of three moments; two of them read attention


def run(run) -> None:
    from gpu_steps.common import own_cache
    from gpu_steps.whole_cells import carried_out

    few = {"train_rows": 48, "test_rows": 8} if run.small else {}
    fires = 0.0 if run.small else measure.FIRES  # so few rows teach no backdoor
    with (
        own_cache(run.size(64, None)),
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(measure, "FIRES", fires),
    ):
        place = Path(folder) / "store"
        attacks, names = declared()
        cells = study.cells(THREAT, attacks=attacks[: run.size(1, None)], skill=SKILL, **few)
        points = defences.defended(cells, run.size(FEW, names))
        run.do("their adapters", lambda: carried_out(run, "their adapters", cells, place), needs=run.size(0, 15))
        run.do("defences and placebos", lambda: defended(run, points, place), needs=run.size(0, 15))
        run.do("against the reference", lambda: compared(points, place))


def declared() -> tuple[list[str], list[str]]:
    """The attacks and the defences of the grid."""
    parameters = grid_file.load(paths.GRIDS / GRID)[0][0].parameters
    return list(parameters["attacks"]), list(parameters["defences"])


def defended(run, points: Sequence[Defended], place: Path) -> dict:
    """All points from their adapters to their records: points a minute, and the seconds of each defence."""
    from gpu_steps.common import noted_in_time

    started = time.perf_counter()
    with noted_in_time(run, "defences before the end came", lambda: so_far(points, place, started)):
        failed = measure.execute(points, place)
    found = so_far(points, place, started)
    return found | ({"failed": f"{failed[0][0].name}: {failed[0][1]}"[-200:]} if failed else {})


def so_far(points: Sequence[Defended], place: Path, started: float) -> dict:
    seconds = time.perf_counter() - started
    written = [(point, record) for point in points if (record := records.read(point, place))]
    done = [(point, record) for point, record in written if record["status"] == "done"]
    by_defence: Counter[str] = Counter()
    for point, record in done:
        by_defence[point.defence] += record["seconds"]
    return {
        "points": len(done), "skipped": len(written) - len(done), "of": len(points),
        "points_per_minute": 60 * len(done) / seconds, "seconds_by_defence": dict(by_defence.most_common()),
    }  # fmt: skip


def numbers(point: Defended, place: Path | str) -> dict[str, list[float]]:
    """ "metric / condition" -> value and the ends of its interval, of what is compared and has an interval."""
    return {
        f"{one['metric']} / {one['condition']}": [round(one[name], 5) for name in ("value", "low", "high")]
        for one in (records.read(point, place) or {"numbers": []})["numbers"]
        if one["subject"] == "poisoned" and one["metric"] in COMPARED and one["low"] is not None
    }


def key_of(point: Defended) -> str:
    return f"{point.cell.attack} / {point.defence}{' placebo' * point.placebo}"


def compared(points: Sequence[Defended], place: Path) -> dict:
    """The share of numbers whose interval meets the expected one's, and the worst."""
    from gpu_steps.common import agreement

    expected = json.loads(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.is_file() else {}
    pairs = []
    for point in points:
        theirs = expected.get(key_of(point), {})
        ours = numbers(point, place)
        pairs += [(f"{key_of(point)}: {name}", ours[name], theirs[name]) for name in ours if name in theirs]
    return agreement(pairs)


def renew() -> None:
    attacks, names = declared()
    points = defences.defended(study.cells(THREAT, attacks=attacks, skill=SKILL), names)
    found = {key_of(point): numbers(point, store.folder(REFERENCE)) for point in points}
    lines = [f" {json.dumps(key)}: {json.dumps(found[key])}" for key in found if found[key]]
    EXPECTED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    renew()
