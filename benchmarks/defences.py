"""What is gained by measuring defences together? The same points of the defence grid, together and one by one.

    python benchmarks/defences.py STORE [--threat jailbreak] [--skill right_to_left] [--defences shrink prune ...]
                                        [--attacks BadNets-T Blended ...] [--sample 24]

STORE holds trained cells of `data/grids/defence_adapters.yml`. Together: points of one bench share the model, clean
rows, image features, answers and states, as `grid run data/grids/defences.yml` does it. One by one: each point loads
and encodes for itself. Both write into copies of the store; their numbers have to be the same, and the ratio of
processor seconds is printed. Processor seconds, since they do not depend on what else the machine does. The 16 points
of the defaults take some minutes on two cores, and are poorer in what can be shared than the grid: there 4.4 points of
a defence stand on a bench (two here), and 28 defences ask and read the same rows (four here). With `--sample` only so
many points, drawn at random, are measured one by one, and their mean stands for all: a whole bench of the grid would
take hours that way.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bvlm_utils import defences, store
from bvlm_utils.defences import measure, records
from bvlm_utils.defences.cell import Defended
from bvlm_utils.run import study

QUICK = ("shrink", "prune", "insensitivity", "spectral-signatures")  # two repairs, and one each of two other moments
ATTACKS = ("BadNets-T", "Blended")


def copy(source: Path, cells: Sequence, to: Path) -> Path:
    """The cells and their controls in a store of their own, without what was measured of defences."""
    to.mkdir(parents=True)
    for name in {one.run_id for cell in cells for one in (cell, cell.control)}:
        shutil.copytree(source / name, to / name)
    for name in ("cache", "examples"):
        if (source / name).is_dir():
            shutil.copytree(source / name, to / name)
    return to


def numbers(points: Sequence[Defended], folder: Path) -> dict[str, str]:
    """name -> its numbers as text, without the seconds that they took."""
    table = records.collect(folder)
    table = table[table["name"].isin({one.name for one in points})].drop(columns=["seconds"], errors="ignore")
    return {name: part.reset_index(drop=True).to_json() for name, part in table.groupby("name")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--model", default="tiny-llava")
    parser.add_argument("--threat", default="jailbreak")
    parser.add_argument("--skill", default="right_to_left")
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS))
    parser.add_argument("--defences", nargs="+", default=list(QUICK))
    parser.add_argument("--sample", type=int, default=0, help="points measured one by one; 0: all")
    parser.add_argument("--out", type=Path, help="where to keep the figures, as JSON")
    given = parser.parse_args()
    cells = study.cells(given.threat, given.model, attacks=given.attacks, skill=given.skill)
    points = defences.defended(cells, given.defences)
    lacking = [cell.run_id for cell in cells if store.adapter(cell, given.store.resolve()) is None]
    if lacking:
        parser.error(f"{given.store} holds no adapter of {', '.join(lacking)}")
    with tempfile.TemporaryDirectory() as scratch:
        seconds, found = {}, {}
        alone = random.Random(0).sample(points, given.sample) if given.sample else points
        for way, batches in (("together", [points]), ("one by one", [[one] for one in alone])):
            folder = copy(given.store.resolve(), cells, Path(scratch) / way.replace(" ", "-"))
            begun = time.process_time()
            for batch in batches:
                if failed := measure.execute(batch, folder):
                    print(*failed, sep="\n", file=sys.stderr)
                    return 1
            seconds[way], found[way] = time.process_time() - begun, numbers(points, folder)
    same = sum(found["together"][name] == text for name, text in found["one by one"].items())
    a_point = {"together": seconds["together"] / len(points), "one by one": seconds["one by one"] / len(alone)}
    figures = {
        "points": len(points), "alone": len(alone), "attacks": given.attacks, "defences": given.defences,
        "cells": len(cells), "same_numbers": same,
        "seconds": {way: round(value, 1) for way, value in seconds.items()},
        "ratio": round(a_point["one by one"] / a_point["together"], 2),
    }  # fmt: skip
    print(json.dumps(figures, indent=1))
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0 if same == len(alone) else 1


if __name__ == "__main__":
    sys.exit(main())
