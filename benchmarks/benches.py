"""What does a grid save by measuring all cells of a bench in one process? Processor seconds of opening its benches.

    python benchmarks/benches.py [data/grids/breadth.yml] [--out benchmarks/results/benches.json]

A bench is what cells share: model, data and rows. Notebook by notebook, each notebook would open its own: import what
is needed, load the model, draw and read the rows, encode all clean training pictures. Measured by bench, each is
opened once. Each opening is timed in a process of its own; one is saved for each notebook after a bench's first.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from bvlm_utils.atomic import write_file
from bvlm_utils.grid import file
from bvlm_utils.run.workbench import Bench, bench_key

OPEN = """
import json, sys, time
from bvlm_utils.run.workbench import Bench
bench = Bench(**json.loads(sys.argv[1]))
bench.feature_rows("train", range(len(bench.rows["train"])))
print(time.process_time())
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("grid", nargs="?", type=Path, default="data/grids/breadth.yml")
    parser.add_argument("--out", type=Path, help="where to keep the figures, as JSON")
    given = parser.parse_args()
    notebooks: dict[tuple, int] = {}
    for job in file.load(given.grid)[0]:
        for key in {bench_key(cell) for cell in job.cells}:
            notebooks[key] = notebooks.get(key, 0) + 1
    lines = []
    for key, count in notebooks.items():
        bench = asdict(Bench(*key))
        command = [sys.executable, "-c", OPEN, json.dumps(bench)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds = float(done.stdout.split()[-1])
        lines.append({"model": bench["model"], "dataset": bench["dataset"], "notebooks": count, "seconds": seconds})
        print(f"{bench['model']}, {bench['dataset']}: {count} notebooks, {seconds:.1f} s to open", flush=True)
    saved = sum((line["notebooks"] - 1) * line["seconds"] for line in lines)
    print(f"{len(lines)} benches are opened in place of {sum(notebooks.values())}: {saved / 60:.1f} minutes are saved.")
    if given.out:
        result = {"benchmark": "benches", "grid": given.grid.name, "saved_minutes": round(saved / 60, 1)}
        write_file(given.out, json.dumps(result | {"lines": lines}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
