"""A grid that is killed goes on where it was."""

import os
import signal
import subprocess
import sys
import time

import psutil
from small import command, job, write

from bvlm_utils import paths, store
from bvlm_utils.atomic import PARTIAL
from bvlm_utils.grid import __main__ as grid
from bvlm_utils.grid import file as grid_file
from bvlm_utils.grid import job as grid_job


def start(file, place, *options):
    return subprocess.Popen(
        command("run", file, "--store", f"{place}/", *options),
        cwd=paths.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(what, process, seconds=240):
    until = time.monotonic() + seconds
    while not (found := what()):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.1)
    return found


def test_a_killed_grid_resumes(tmp_path, capsys):
    """SIGTERM while the kernel starts, SIGKILL after the first cell, then a run to the end: nothing lost,
    nothing twice.
    """
    file, place = write(tmp_path, job(attacks=["BadNets-T", "BadNets-I"])), tmp_path / "store"
    ((one,), _) = grid_file.load(file)

    first = start(file, place)
    children = wait_for(lambda: psutil.Process(first.pid).children(recursive=True), first)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM" in first.stdout.read()
    assert not psutil.wait_procs(children, timeout=10)[1], "the kernel outlived the runner"

    second = start(file, place, "--plain")  # cell by cell, so that one is done before the other
    record = place / one.cells[0].run_id / "record.json"
    wait_for(record.is_file, second)
    children = psutil.Process(second.pid).children(recursive=True)
    os.kill(second.pid, signal.SIGKILL)
    second.wait(60)
    assert not psutil.wait_procs(children, timeout=30)[1], "the kernel outlived the runner"
    store.collect(place)  # every record is complete
    kept = {path: path.stat().st_mtime_ns for path in place.glob("*/record.json")}
    assert record in kept and place / one.cells[1].run_id / "record.json" not in kept

    done = subprocess.run(command("run", file, "--store", f"{place}/"), cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 to run" in done.stdout and "Every cell has its record." in done.stdout
    assert done.stderr == "" and "Warning" not in done.stdout
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert set(store.collect(place)["run_id"]) == {cell.run_id for cell in one.cells}
    assert not list(place.glob(f"**/{PARTIAL}*"))
    assert grid_job.output(one, place).is_file()
    assert grid.main(["run", str(file), "--store", f"{place}/"]) == 0
    assert "0 to run" in capsys.readouterr().out


def test_a_reader_who_has_seen_enough_of_a_list_is_no_error():
    command = (
        f"{sys.executable} -m bvlm_utils.grid run data/grids/breadth.yml --dry-run --store /nowhere/at/all | head -n 1"
    )
    done = subprocess.run(["bash", "-c", command], cwd=paths.ROOT, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 1 and done.stderr == ""
