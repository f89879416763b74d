"""Several workers share a grid: one that dies loses nothing, nothing is done twice, errors are clear."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from safetensors.numpy import save_file
from small import SMALL

from bvlm_utils import paths, store, study
from bvlm_utils.grid import __main__ as grid
from bvlm_utils.grid import dask as grid_dask
from bvlm_utils.grid import job as grid_job
from bvlm_utils.grid.file import Job
from bvlm_utils.run import tune_and_ask
from bvlm_utils.store import locks, records

# Stands for a threat's notebook: a real kernel that looks whether its cells have records.
NOTEBOOK = f"""
from bvlm_utils import store as results
from bvlm_utils import study
for cell in study.cells(threat="targeted_refusal", attacks=attacks, **{SMALL!r}):
    assert results.has(cell, store)
"""


def job(number, *attacks, folder):
    """A job of cells of these attacks, with the notebook above."""
    cells = study.cells(threat="targeted_refusal", attacks=attacks, **SMALL)
    notebook = folder / "notebook.ipynb"
    if not notebook.exists():
        shown = [(["parameters"], "attacks: list = []\nstore: str = ''"), ([], NOTEBOOK)]
        code = [
            {"cell_type": "code", "id": f"cell-{n}", "execution_count": None, "outputs": [], "source": source,
             "metadata": {"tags": tags}}
            for n, (tags, source) in enumerate(shown)
        ]  # fmt: skip
        about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        whole = {"cells": code, "metadata": about, "nbformat": 4, "nbformat_minor": 5}
        notebook.write_text(json.dumps(whole))
    return Job(f"{number:02d}-test", notebook, {"attacks": list(attacks)}, tuple(cells))


def lines(place, *words):
    """What `stub_measuring` noted with these first words."""
    log = place / "log"
    noted = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [line for line in noted if line[: len(words)] == list(words)]


def wait_for(what, seconds=240):
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)
    return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "GLIBC_TUNABLES", records.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BVLM_EXTEND", "stub_measuring")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    return tmp_path / "store"


class Aside(threading.Thread):
    """Something that happens while the grid runs; an error in it is raised by `result`."""

    def __init__(self, what):
        super().__init__(daemon=True)
        self.what, self.error = what, None
        self.start()

    def run(self):
        try:
            self.what()
        except BaseException as error:
            self.error = error

    def result(self):
        self.join()
        if self.error:
            raise self.error


# ---------------------------------------------------------------- workers


def test_a_killed_worker_loses_nothing_and_repeats_nothing(tmp_path, place, capsys):
    """Two workers, three cells; the worker of the last one is killed. A third job has the second's cell."""
    jobs = [
        job(1, "BadNets-T", "SIG", folder=tmp_path),
        job(2, "BadNets-MM", folder=tmp_path),
        job(3, "BadNets-MM", folder=tmp_path),
    ]
    kept = {}

    def kill():
        ((_, _, measuring, worker),) = wait_for(lambda: lines(place, "begin", "SIG"))
        record = place / jobs[0].cells[0].run_id / "record.json"
        wait_for(record.exists)
        kept[record] = record.stat().st_mtime_ns
        process = psutil.Process(int(measuring))
        os.kill(int(worker), signal.SIGKILL)
        try:
            assert not psutil.wait_procs([process], timeout=30)[1], "the process outlived its worker"
        finally:
            (place / "go").touch()

    aside = Aside(kill)
    assert grid.run(jobs, *grid.plan(jobs, f"{place}/"), workers=2) == 0
    aside.result()
    wrote = [attack for _, attack, *_ in lines(place, "wrote")]
    assert sorted(wrote) == ["BadNets-MM", "BadNets-T", "SIG"], "each cell is written once"
    begun = lines(place, "begin", "SIG")
    assert len(begun) == 2 and begun[0][3] != begun[1][3], "another worker began the cell again"
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert {run_id for run_id in os.listdir(place) if (place / run_id / "record.json").is_file()} == {
        cell.run_id for one in jobs for cell in one.cells
    }
    share = str(max(1, cores() // 2))
    assert all(line[2:] == [share, "glibc.malloc.hugetlb=1", "2"] for line in lines(place, "wrote"))
    said = capsys.readouterr().out
    assert all(f"[{number}/3] {number:02d}-test: done" in said for number in (1, 2, 3))
    assert "Every cell has its record." in said
    assert said.count(" tiny-llava-") == 3, "every finished cell is a line"


def cores():
    from dask.system import CPU_COUNT

    return CPU_COUNT


def test_signals_stop_workers_and_what_they_started(tmp_path):
    file, place = tmp_path / "grid.yml", tmp_path / "store"
    jobs = [
        {"notebook": "targeted_refusal", "parameters": {**SMALL, "attacks": [attack]}}
        for attack in ("SIG", "BadNets-T")
    ]
    file.write_text(yaml.safe_dump({"jobs": jobs}))
    process = subprocess.Popen(
        [sys.executable, "-m", "bvlm_utils.grid", "run", str(file), "--workers", "2", "--store", f"{place}/"],
        cwd=paths.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def at_work():
        found = psutil.Process(process.pid).children(recursive=True)
        return found if any(is_measuring(one) for one in found) else []

    children = wait_for(at_work)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 128 + signal.SIGTERM, out + err
    assert err.startswith("Stopped by SIGTERM") and len(err.splitlines()) == 1
    assert not psutil.wait_procs(children, timeout=20)[1], "something outlived the runner"
    assert not list(place.glob("*/record.json"))


def is_measuring(process):
    try:
        return "bvlm_utils.grid.measure" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


# ---------------------------------------------------------------- a scheduler


@pytest.fixture
def interruptible():
    """SIGINT means what Ctrl-C means, also where a shell ignores it for what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_the_workers_of_a_scheduler_are_stopped_and_go_on(tmp_path, place, capsys):
    """An interrupted run ends what it started on a worker of somebody else; the next run uses that worker."""
    from distributed import LocalCluster

    jobs = [job(1, "SIG", folder=tmp_path)]
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:

        def interrupt():
            ((*_, measuring, _worker),) = wait_for(lambda: lines(place, "begin", "SIG"))
            found.append(psutil.Process(int(measuring)))
            signal.raise_signal(signal.SIGINT)

        found, aside = [], Aside(interrupt)
        with pytest.raises(KeyboardInterrupt):
            grid.run(jobs, *grid.plan(jobs, f"{place}/"), scheduler=cluster.scheduler_address)
        aside.result()
        assert not psutil.wait_procs(found, timeout=20)[1], "the process outlived the run"
        (place / "go").touch()
        assert grid.run(jobs, *grid.plan(jobs, f"{place}/"), scheduler=cluster.scheduler_address) == 0
        assert "Every cell has its record." in capsys.readouterr().out
        ((*_, first), (*_, second)) = lines(place, "begin", "SIG")
        assert first == second, "the worker is the same process"


WRONG = [
    (["--workers", "0"], "--workers: '0'"),
    (["--workers", "-1"], "--workers: '-1'"),
    (["--workers", "2", "--scheduler", "tcp://127.0.0.1:1"], "exclude"),
    (["--scheduler", "tcp://127.0.0.1:1"], "tcp://127.0.0.1:1"),
    (["--scheduler", "nowhere"], "nowhere"),
    (["--scheduler", ""], "--scheduler is ''"),
]


@pytest.mark.parametrize(("options", "words"), WRONG)
def test_wrong_options_are_one_sentence(tmp_path, capsys, monkeypatch, options, words):
    monkeypatch.setattr("bvlm_utils.grid.dask.CONNECT_SECONDS", 1)
    file = tmp_path / "grid.yml"
    entry = {"notebook": "targeted_refusal", "parameters": {**SMALL, "attacks": ["BadNets-T"]}}
    file.write_text(yaml.safe_dump({"jobs": [entry]}))
    assert grid.main(["run", str(file), "--store", f"{tmp_path}/store", *options]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1


def test_a_worker_that_does_not_see_the_store_says_so(tmp_path):
    run = grid_job.Run(tmp_path / "elsewhere")
    problem, _ = grid_dask._carry_out(grid_job.carry_out, job(1, "SIG", folder=tmp_path), run, {}, "name")
    assert "does not see the store" in problem and "elsewhere" in problem


# ---------------------------------------------------------------- the control that two jobs share


HOLDER = """
import sys, time
from pathlib import Path
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_control_in_other_hands_is_left_alone_until_they_die(tmp_path):
    control = study.cells(threat="targeted_refusal", attacks=["SIG"], **SMALL)[0].control
    (tmp_path / "locks").mkdir()
    lock = tmp_path / "locks" / f"{control.run_id}.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with locks.lacking([control], tmp_path) as mine:
        assert mine == []
    threading.Timer(0.5, holder.kill).start()
    with locks.lacking([control], tmp_path, wait=True) as mine:
        assert mine == [control] and holder.wait(10)
    adapter = tmp_path / control.run_id / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"a": np.zeros(1)}, adapter / "adapter_model.safetensors")
    with locks.lacking([control], tmp_path, wait=True) as mine:
        assert mine == []


def test_two_jobs_at_once_tune_their_control_once(tmp_path, monkeypatch):
    """Both are in the middle of tuning at the same time; one of them has the control with it."""
    import transformers  # noqa: F401  (its lazy imports are not made for two threads)

    tune, tuned, together = tune_and_ask.Grouped.tune, [], threading.Barrier(2, timeout=240)

    def watched(way, tasks, folder=None):
        tuned.extend(task.cell for task in tasks)
        together.wait()
        return tune(way, tasks, folder)

    monkeypatch.setattr(tune_and_ask.Grouped, "tune", watched)
    threats = ("targeted_refusal", "malicious_injection")
    cells = [study.cells(threat=threat, attacks=["BadNets-T"], **SMALL)[0] for threat in threats]
    assert cells[0].control.run_id == cells[1].control.run_id
    at_work = [Aside(lambda cell=cell: study.run_cells([cell], tmp_path)) for cell in cells]
    for one in at_work:
        one.result()
    assert sorted(cell.run_id for cell in tuned) == sorted([*(cell.run_id for cell in cells), cells[0].control.run_id])
    assert all(store.read(cell, tmp_path)["status"] == "done" for cell in cells)
