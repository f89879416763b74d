"""What do kills, full disks and damaged files cost? A grid of small cells is stopped, starved and cut, and counted.

    python benchmarks/faults.py [--cells 96] [--kills 20] [--seed 0] [--stand-in] [--folder FOLDER] [--out FILE]

Kills are SIGKILL, SIGTERM and SIGINT, each a random number of records after the run has begun. --stand-in writes
records without training, which tests the store alone and takes seconds; the full form trains every cell. Prints a line
per fault; exit code 1 if anything was lost. Expected of all: no finished cell lost, no half record, the rest goes on,
each damage named.
"""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

from bvlm_utils import paths, store
from bvlm_utils.run import study
from bvlm_utils.store import damage, packed, packing
from bvlm_utils.store.cell import Cell

Figures = dict[str, Any]  # of one fault
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SMALL = {"dataset": "scenes-vqa", "train_rows": 32, "test_rows": 2, "batch_size": 8, "max_new_tokens": 30}
THREATS, ATTACKS = ("targeted_refusal", "malicious_injection"), ("BadNets-T", "BadNets-MT", "AddSent")


def cells_of(count: int) -> list[Cell]:
    """Small cells of two threats; the last seeds make up the number."""
    seeds = list(range(-(-count // (len(THREATS) * len(ATTACKS)))))
    made = [study.cells(t, attacks=ATTACKS, poison_rates=[0.25], seeds=seeds, **SMALL) for t in THREATS]
    return [cell for own in made for cell in own][:count]


def stand_in(folder: Path, count: int) -> None:
    """Write records as training would, without training; slowly enough to be killed in between."""
    cells = cells_of(count)
    for cell in cells:
        time.sleep(0.02)
        if not store.has(cell, folder):
            about = {"status": "done", "metrics": [], "modality": "text", "n_poisoned": 1, "provenance": {}}
            store.write(cell, folder, about, save_adapter=_adapter, replace=True)


def _adapter(folder: Path) -> None:
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"a": np.zeros(50_000)}, folder / "adapter_model.safetensors")


def command(given: argparse.Namespace, folder: Path, grid: Path) -> list[str]:
    if given.stand_in:
        return [sys.executable, __file__, "--write", str(folder), "--cells", str(given.cells)]
    return [sys.executable, "-m", "bvlm_utils.grid", "run", str(grid), "--store", f"{folder}/"]


def write_grid(file: Path, cells: Sequence[Cell]) -> None:
    seeds = sorted({cell.seed for cell in cells})
    settings = SMALL | {"attacks": list(ATTACKS), "poison_rates": [0.25], "seeds": seeds}
    file.write_text(yaml.safe_dump({"jobs": [{"notebook": name, "parameters": settings} for name in THREATS]}))


def whole(folder: Path) -> dict[str, int]:
    """run_id -> time of the record, of those that are whole; SystemExit names one that is not."""
    found = {}
    for file in folder.glob("[!.]*/record.json"):
        if isinstance(damage.record(file.read_text(), file.parent.name), str):
            raise SystemExit(f"HALF A RECORD: {file}")
        found[file.parent.name] = file.stat().st_mtime_ns
    return found


def kills(given: argparse.Namespace, folder: Path, grid: Path, rng: random.Random) -> Figures:
    """Kill the run again and again, then let it end."""
    before, lost, gone_on, deaf = {}, 0, 0, 0
    for number in range(given.kills):
        process = subprocess.Popen(
            command(given, folder, grid), cwd=paths.ROOT, preexec_fn=_interruptible,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        _wait(process, folder, len(before) + rng.randrange(8), given.longest)
        time.sleep(rng.uniform(0, 0.2 if given.stand_in else 3))
        process.send_signal(SIGNALS[number % len(SIGNALS)])
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:  # a library that was being loaded took the signal for itself
            process.kill()
            process.wait()
            deaf += 1
        time.sleep(0.2 if given.stand_in else 2)  # what the run had started ends with it
        now = whole(folder)
        lost += sum(now.get(name) != when for name, when in before.items())
        gone_on += len(now) > len(before)
        print(f"kill {number + 1}: {len(now)} records, {lost} lost or written twice", file=sys.stderr, flush=True)
        before = now
    code = run(given, folder, grid)
    done = whole(folder)
    lost += sum(done.get(name) != when for name, when in before.items())
    missing = sum(cell.run_id not in done for cell in cells_of(given.cells))
    return {
        "fault": "kills", "kills": given.kills, "signals without effect": deaf,
        "kills that left more records than before": gone_on, "records before the last run": len(before),
        "exit code of the last run": code, "cells": given.cells,
        "cells missing": missing, "records lost or written twice": lost,
        "partial files left": len(list(folder.glob("**/.partial-*"))), "as expected": not (code or missing or lost),
    }  # fmt: skip


def _wait(process: subprocess.Popen, folder: Path, records: int, longest: float) -> None:
    """Until the store has so many records, so that a kill finds work to destroy; not for ever."""
    until = time.monotonic() + longest
    while process.poll() is None and time.monotonic() < until:
        if len(list(folder.glob("[!.]*/record.json"))) >= records:
            return
        time.sleep(0.05)


def _interruptible() -> None:
    """A shell makes what it starts in the background deaf to SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(given: argparse.Namespace, folder: Path, grid: Path, largest: int | None = None) -> int:
    """The exit code of a run to its end. largest: bytes of the longest file that the disk takes."""

    def limit() -> None:
        if largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    return subprocess.run(
        command(given, folder, grid), cwd=paths.ROOT, check=False, capture_output=True, preexec_fn=limit
    ).returncode


def full_disk(given: argparse.Namespace, folder: Path, grid: Path) -> Figures:
    """A disk that takes no file above 100 KB, then one that does."""
    first, kept = run(given, folder, grid, 100_000), len(whole(folder))
    second, done = run(given, folder, grid), len(whole(folder))
    return {
        "fault": "full disk", "exit code": first, "whole records": kept, "exit code with room again": second,
        "whole records then": done, "as expected": bool(first) and not second,
    }  # fmt: skip


def two_at_once(given: argparse.Namespace, folder: Path, grid: Path) -> Figures:
    both = [subprocess.Popen(command(given, folder, grid), cwd=paths.ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
    codes = [process.wait() for process in both]
    return {"fault": "two runs at once", "exit codes": codes, "whole records": len(whole(folder)),
            "as expected": codes == [0, 0]}  # fmt: skip


def cut(file: Path, rng: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content))])


def damages(given: argparse.Namespace, folder: Path, grid: Path, rng: random.Random) -> Figures:
    """Cut a record, a cache file and a control's adapter; what is left is read, and the next run mends it."""
    pick = {
        "record": sorted(folder.glob("[!.]*/record.json")),
        "cache": sorted(folder.glob("cache/*.json")),
        "adapter": sorted(folder.glob("*clean-tuned*/adapter/*.safetensors")) or sorted(folder.glob("*/adapter/*.s*")),
    }
    before = len(whole(folder))
    for files in pick.values():
        if files:
            cut(rng.choice(files), rng)
    read = len(store.collect(folder)["run_id"].unique())
    code = run(given, folder, grid)
    after = len(whole(folder))
    return {
        "fault": "files cut off at a random byte", "cut": [kind for kind, files in pick.items() if files],
        "whole records before": before, "cells read beside the damage": read, "exit code of the next run": code,
        "whole records after it": after, "as expected": not code and after == before,
    }  # fmt: skip


def packed_files(source: Path, folder: Path, rng: random.Random) -> Figures:
    """Cut each file of a packed store; the sentence names it."""
    named = 0
    packing.pack(source, folder)
    names = [packed.INDEX, packed.RECORDS, packed.TABLE]
    for name in names:
        content = (folder / name).read_bytes()
        cut(folder / name, rng)
        reads = f"from bvlm_utils.store import records as r\nr.collect({str(folder)!r}), r.records({str(folder)!r})"
        words = subprocess.run(
            [sys.executable, "-c", reads], cwd=paths.ROOT, check=False, capture_output=True, text=True
        ).stderr
        named += "InputError" in words and name in words
        (folder / name).write_bytes(content)
    return {"fault": "files of a packed store cut off", "files": len(names), "named": named,
            "as expected": named == len(names)}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=96)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=120.0, help="seconds before a kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stand-in", action="store_true")
    parser.add_argument("--only-kills", action="store_true")
    parser.add_argument("--folder", help="where the stores are made (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="keep the figures in this JSON file")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)  # the stand-in's own process
    given = parser.parse_args(argv)
    if given.write:
        stand_in(given.write, given.cells)
        return 0
    rng, lines = random.Random(given.seed), []
    if given.out:
        from keep import Kept  # loads torch

        kept = Kept("faults", "cpu", os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for line in faults(given, Path(folder), rng):
            print("; ".join(f"{name}: {value}" for name, value in line.items()), flush=True)
            lines.append(line)
    if given.out:
        kept.write(given.out, given, lines)
    return int(not all(line["as expected"] for line in lines))


def faults(given: argparse.Namespace, root: Path, rng: random.Random) -> Iterator[Figures]:
    grid = root / "grid.yml"
    write_grid(grid, cells_of(given.cells))
    yield kills(given, root / "killed", grid, rng)
    if not given.only_kills:
        yield damages(given, root / "killed", grid, rng)
        yield full_disk(given, root / "full", grid)
        yield two_at_once(given, root / "two", grid)
        yield packed_files(_as_of_a_clean_tree(root / "killed"), root / "packed", rng)


def _as_of_a_clean_tree(folder: Path) -> Path:
    """`pack` refuses records of a changed working tree; those of a test may be."""
    for file in folder.glob("[!.]*/record.json"):
        found = json.loads(file.read_text())
        found["provenance"].pop("git_changed", None)
        file.write_text(json.dumps(found))
    return folder


if __name__ == "__main__":
    sys.exit(main())
