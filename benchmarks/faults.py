"""What do kills, full disks and damaged files cost? A grid of small cells is stopped, starved and cut, and counted.

    python benchmarks/faults.py [--cells 96] [--kills 20] [--seed 0] [--stand-in] [--folder FOLDER]

Kills are SIGKILL, SIGTERM and SIGINT at random moments. --stand-in writes records without training, which tests the
store alone and takes seconds; the full form trains every cell. Prints one figure a line; exit code 1 if anything was
lost. Expected of all: no finished cell lost, no half record, the rest goes on, each damage named.
"""

import argparse
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import save_file

from bvlm_utils import paths, store
from bvlm_utils.run import study
from bvlm_utils.store import damage, packed, packing
from bvlm_utils.store.cell import Cell

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SMALL = {"dataset": "scenes-vqa", "train_rows": 32, "test_rows": 2, "batch_size": 8, "max_new_tokens": 4}
THREATS, ATTACKS = ("targeted_refusal", "malicious_injection"), ("BadNets-T", "BadNets-MT", "AddSent")


def cells_of(count: int) -> list[Cell]:
    """Small cells of two threats; the last seeds make up the number."""
    seeds = list(range(-(-count // (len(THREATS) * len(ATTACKS)))))
    made = [study.cells(t, attacks=ATTACKS, poison_rates=[0.25], seeds=seeds, **SMALL) for t in THREATS]
    return [cell for own in made for cell in own][:count]


def stand_in(place: Path, count: int) -> None:
    """Write records as training would, without training; slowly enough to be killed in between."""
    cells = cells_of(count)
    print("begun", flush=True)
    for cell in cells:
        time.sleep(0.02)
        if not store.has(cell, place):
            about = {"status": "done", "metrics": [], "modality": "text", "n_poisoned": 1, "provenance": {}}
            store.write(cell, place, about, save_adapter=_adapter, replace=True)


def _adapter(folder: Path) -> None:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    save_file({"a": np.zeros(50_000)}, folder / "adapter_model.safetensors")


def command(given: argparse.Namespace, place: Path, grid: Path) -> list[str]:
    if given.stand_in:
        return [sys.executable, __file__, "--write", str(place), "--cells", str(given.cells)]
    return [sys.executable, "-m", "bvlm_utils.grid", "run", str(grid), "--store", f"{place}/"]


def write_grid(file: Path, cells: Sequence[Cell]) -> None:
    seeds = sorted({cell.seed for cell in cells})
    settings = SMALL | {"attacks": list(ATTACKS), "poison_rates": [0.25], "seeds": seeds}
    file.write_text(yaml.safe_dump({"jobs": [{"notebook": name, "parameters": settings} for name in THREATS]}))


def whole(place: Path) -> dict[str, int]:
    """run_id -> time of the record, of those that are whole; SystemExit names one that is not."""
    found = {}
    for file in place.glob("[!.]*/record.json"):
        if isinstance(damage.record(file.read_text(), file.parent.name), str):
            raise SystemExit(f"HALF A RECORD: {file}")
        found[file.parent.name] = file.stat().st_mtime_ns
    return found


def kills(given: argparse.Namespace, place: Path, grid: Path, rng: random.Random) -> bool:
    """Kill the run again and again, then let it end."""
    before, lost, gone_on = {}, 0, 0
    for number in range(given.kills):
        process = subprocess.Popen(
            command(given, place, grid), cwd=paths.ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        if given.stand_in:
            process.stdout.readline()
        time.sleep(rng.uniform(0, 1.0 if given.stand_in else given.longest))
        process.send_signal(SIGNALS[number % len(SIGNALS)])
        process.communicate(timeout=120)
        time.sleep(0.2 if given.stand_in else 2)  # what the run had started ends with it
        now = whole(place)
        lost += sum(now.get(name) != when for name, when in before.items())
        gone_on += len(now) > len(before)
        before = now
    print(f"kills: {given.kills}; records before the last run: {len(before)}; lost or written twice: {lost}; "
          f"kills that left more than before: {gone_on}")  # fmt: skip
    started = time.monotonic()
    code = subprocess.run(command(given, place, grid), cwd=paths.ROOT, check=False).returncode
    done = whole(place)
    missing = [cell for cell in cells_of(given.cells) if cell.run_id not in done]
    lost += sum(done.get(name) != when for name, when in before.items())
    left = len(list(place.glob("**/.partial-*")))
    print(f"the run to the end: exit code {code}, {time.monotonic() - started:.0f} s, {len(missing)} of {given.cells} "
          f"cells missing, {lost} lost or written twice, {left} partial files")  # fmt: skip
    return not (code or missing or lost)


def full_disk(given: argparse.Namespace, place: Path, grid: Path) -> bool:
    """A disk that takes no file above 100 KB, then one that does."""
    limit = (100_000, 100_000)
    first = subprocess.run(
        command(given, place, grid), cwd=paths.ROOT, check=False, capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    kept = whole(place)
    second = subprocess.run(command(given, place, grid), cwd=paths.ROOT, check=False, capture_output=True)
    print(f"full disk: exit code {first.returncode}, {len(kept)} whole records; with room again: {second.returncode}, "
          f"{len(whole(place))} whole records")  # fmt: skip
    return bool(first.returncode) and not second.returncode


def two_at_once(given: argparse.Namespace, place: Path, grid: Path) -> bool:
    both = [subprocess.Popen(command(given, place, grid), cwd=paths.ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
    codes = [process.wait() for process in both]
    print(f"two runs at once: exit codes {codes}, {len(whole(place))} whole records")
    return codes == [0, 0]


def cut(file: Path, rng: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content))])


def damages(given: argparse.Namespace, place: Path, grid: Path, rng: random.Random) -> bool:
    """Cut a record, a cache file and a control's adapter; what is left is read, and the next run mends it."""
    pick = {
        "record": sorted(place.glob("[!.]*/record.json")),
        "cache": sorted(place.glob("cache/*.json")),
        "adapter": sorted(place.glob("*clean-tuned*/adapter/*.safetensors")) or sorted(place.glob("*/adapter/*.s*")),
    }
    before = len(whole(place))
    for kind, files in pick.items():
        if files:
            cut(rng.choice(files), rng)
            print(f"cut off at a random byte: {kind}")
    read = len(store.collect(place)["run_id"].unique())
    code = subprocess.run(command(given, place, grid), cwd=paths.ROOT, check=False).returncode
    print(f"damages: {before} records, {read} cells read beside the damage; the next run: exit code {code}, "
          f"{len(whole(place))} whole records")  # fmt: skip
    return not code and len(whole(place)) == before


def packed_files(place: Path, folder: Path, rng: random.Random) -> bool:
    """Cut each file of a packed store; the sentence names it."""
    named = 0
    packing.pack(place, folder)
    names = [packed.INDEX, packed.RECORDS, packed.TABLE]
    for name in names:
        content = (folder / name).read_bytes()
        cut(folder / name, rng)
        code = [
            sys.executable,
            "-c",
            f"from bvlm_utils.store import records as r\nr.collect({str(folder)!r}), r.records({str(folder)!r})",
        ]
        said = subprocess.run(code, cwd=paths.ROOT, check=False, capture_output=True, text=True).stderr
        named += "InputError" in said and name in said
        (folder / name).write_bytes(content)
    print(f"packed store: {named} of {len(names)} files that were cut off are named")
    return named == len(names)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=96)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=25.0, help="seconds before a kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stand-in", action="store_true")
    parser.add_argument("--only-kills", action="store_true")
    parser.add_argument("--folder", help="where the stores are made (default: a temporary folder)")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)  # the stand-in's own process
    given = parser.parse_args(argv)
    if given.write:
        stand_in(given.write, given.cells)
        return 0
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        root, grid = Path(folder), Path(folder) / "grid.yml"
        write_grid(grid, cells_of(given.cells))
        good = [kills(given, root / "killed", grid, rng)]
        if not given.only_kills:
            good.append(damages(given, root / "killed", grid, rng))
            good.append(full_disk(given, root / "full", grid))
            good.append(two_at_once(given, root / "two", grid))
            good.append(packed_files(_without_adapters(root / "killed"), root / "packed", rng))
    print(json.dumps({"all as expected": all(good)}))
    return int(not all(good))


def _without_adapters(place: Path) -> Path:
    """`pack` refuses records of a changed working tree; those of a test may be."""
    for file in place.glob("[!.]*/record.json"):
        found = json.loads(file.read_text())
        found["provenance"].pop("git_changed", None)
        file.write_text(json.dumps(found))
    return place


if __name__ == "__main__":
    sys.exit(main())
