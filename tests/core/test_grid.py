"""A grid runs what is left, and says in its exit code and words what happened."""

import json
import os
import signal
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from small import SMALL, job, write

from bvlm_utils import defences, store
from bvlm_utils.atomic import PARTIAL
from bvlm_utils.errors import InputError, Remark
from bvlm_utils.grid import __main__ as grid
from bvlm_utils.grid import file as grid_file
from bvlm_utils.grid import job as grid_job
from bvlm_utils.grid import measure as grid_measure
from bvlm_utils.run import study
from bvlm_utils.store import damage, packing, provenance, records


def test_status_and_table(tmp_path, capsys):
    file = write(tmp_path, job(attacks=["BadNets-T", "Shadowcast"]))
    ((one,), _) = grid_file.load(file)
    place = tmp_path / "store"
    study.run_cells([c for c in one.cells if c.attack == "Shadowcast"], place)
    store.write_failure(one.cells[0], place, "Traceback\nValueError: no luck")
    assert grid.main(["status", str(file), "--store", f"{place}/"]) == 0
    said = capsys.readouterr().out
    assert "1 skipped, 1 failed" in said and "no luck" in said
    assert grid.main(["table", str(file), "--store", f"{place}/"]) == 0
    said = capsys.readouterr().out
    assert "Shadowcast" in said and "skipped" in said and "n/a" in said


def measured_here(cells, run, again=None):
    """Stands for the measuring process; good for cells that need no training."""
    study.measure([cell for cell in cells if cell.skip_reason], run.folder)


def leave(output, parameters, exception=None):
    """What papermill leaves."""
    about = {"parameters": parameters, "exception": exception}
    Path(output).write_text(json.dumps({"metadata": {"papermill": about}}))


@pytest.fixture
def no_kernels(monkeypatch):
    """Stands for papermill: a notebook that leaves its output; the attacks of those that were executed."""
    import papermill

    executed = []

    def execute(source, output, parameters, **_):
        executed.append(parameters["attacks"])
        leave(output, parameters)

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    return executed


def test_a_failing_notebook_does_not_stop_the_grid(tmp_path, capsys, monkeypatch):
    """A kernel that fails is started once more; then the next job has its turn, and the exit code is 1."""
    import papermill

    tried = []

    def execute(source, output, parameters, **_):
        tried.append(parameters["attacks"])
        if parameters["attacks"] == ["BadNets-T"]:
            raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    monkeypatch.setattr(grid_measure, "measure", measured_here)
    file = write(tmp_path, job(attacks=["BadNets-T"]), job(attacks=["Shadowcast"]))
    assert grid.main(["run", str(file), "--store", f"{tmp_path}/store"]) == 1
    assert tried == [["BadNets-T"], ["BadNets-T"], ["Shadowcast"]]
    said = capsys.readouterr().out
    assert "FAILED" in said and "Kernel died" in said and "1 of 2 notebooks failed: 01-targeted_refusal" in said
    assert "no record" in said


def test_without_a_terminal_every_finished_cell_is_a_line(tmp_path, capsys, monkeypatch, no_kernels):
    monkeypatch.setattr(grid_measure, "measure", measured_here)
    file = write(tmp_path, job(attacks=["Shadowcast"], poison_rates=[0.1, 0.2]))
    assert grid.main(["run", str(file), "--store", f"{tmp_path}/store"]) == 0
    said = capsys.readouterr().out
    ((one,), _) = grid_file.load(file)
    assert all(f"/2 {cell.run_id}" in said for cell in one.cells) and "\r" not in said


def test_the_environment_is_left_as_it_was_found(tmp_path, monkeypatch, no_kernels):
    monkeypatch.setenv(records.VARIABLE, "smoke")
    monkeypatch.setattr(grid_measure, "measure", measured_here)
    before = dict(os.environ)
    file = write(tmp_path, job(attacks=["Shadowcast"]))
    for options in ([], ["--force"], ["--rescore", "--plain"]):
        assert grid.main(["run", str(file), "--store", f"{tmp_path}/store", *options]) == 0
    assert dict(os.environ) == before


def test_a_run_that_was_stopped_before_a_notebook_executes_it_later(tmp_path, monkeypatch, no_kernels):
    file = write(tmp_path, job(attacks=["Shadowcast"]))
    monkeypatch.setattr(grid_measure, "measure", measured_here)
    monkeypatch.setattr(grid, "_execute", lambda *_: (_ for _ in ()).throw(grid.Stopped(signal.SIGTERM)))
    assert grid.main(["run", str(file), "--store", f"{tmp_path}/store"]) == 128 + signal.SIGTERM
    monkeypatch.undo()
    import papermill

    executed = []
    monkeypatch.setattr(
        papermill,
        "execute_notebook",
        lambda source, output, parameters, **_: executed.append(1) or leave(output, parameters),
    )
    for _ in range(2):
        assert grid.main(["run", str(file), "--store", f"{tmp_path}/store"]) == 0
    assert len(executed) == 1
    assert (tmp_path / "store" / "notebooks" / "grid" / "01-targeted_refusal.ipynb").exists()


def test_a_notebook_of_another_grid_one_that_failed_or_a_half_one_is_executed_again(tmp_path, monkeypatch, no_kernels):
    """Its records are all there, so that only its words and pictures would have been the old ones."""
    monkeypatch.setattr(grid_measure, "measure", measured_here)
    both = write(tmp_path, job(attacks=["Shadowcast"], poison_rates=[0.1, 0.2]))
    store_options = ["--store", f"{tmp_path}/store"]
    output = tmp_path / "store" / "notebooks" / "grid" / "01-targeted_refusal.ipynb"
    assert grid.main(["run", str(both), *store_options]) == 0 and len(no_kernels) == 1
    half = write(tmp_path, job(attacks=["Shadowcast"], poison_rates=[0.1]))
    assert grid.main(["run", str(half), *store_options]) == 0 and len(no_kernels) == 2
    assert json.loads(output.read_text())["metadata"]["papermill"]["parameters"]["poison_rates"] == [0.1]
    good, about = output.read_text(), json.loads(output.read_text())["metadata"]["papermill"]["parameters"]
    for number, spoilt in enumerate(("", good[:40], "[]", '{"metadata": {}}', "exception"), 3):
        leave(output, about, True) if spoilt == "exception" else output.write_text(spoilt)
        assert grid.main(["run", str(half), *store_options]) == 0 and len(no_kernels) == number
    assert grid.main(["run", str(half), *store_options]) == 0 and len(no_kernels) == 7


def test_two_grids_in_one_store_have_a_notebook_each_and_leave_the_others_work_alone(tmp_path, monkeypatch, no_kernels):
    monkeypatch.setattr(grid_measure, "measure", measured_here)
    rates = {"first": 0.1, "second": 0.2}
    files = [write(tmp_path, job(attacks=["Shadowcast"], poison_rates=[rate])).rename(tmp_path / f"{name}.yml")
             for name, rate in rates.items()]  # fmt: skip
    others = tmp_path / "store" / "notebooks" / "second"
    others.mkdir(parents=True)
    at_work = [others / f"{PARTIAL}{socket.gethostname()}+{os.getppid()}+01-targeted_refusal.ipynb",
               others.parent / f"{grid_measure.LOGS}of-another-cell.log"]  # fmt: skip
    for file in at_work:
        file.write_text("")
    for file in [*files, *files]:
        assert grid.main(["run", str(file), "--store", f"{tmp_path}/store"]) == 0
    assert len(no_kernels) == 2 and all(file.exists() for file in at_work)
    for name, rate in rates.items():
        about = json.loads((others.parent / name / "01-targeted_refusal.ipynb").read_text())
        assert about["metadata"]["papermill"]["parameters"]["poison_rates"] == [rate]


@pytest.mark.parametrize("name", damage.FOLDERS)
def test_a_link_to_a_disk_that_is_away_is_told_before_anything_is_trained(tmp_path, capsys, name):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / name).symlink_to(tmp_path / "away")
    file = write(tmp_path, job(attacks=["BadNets-T"]))
    for options in ([], ["--dry-run"]):
        assert grid.main(["run", str(file), "--store", f"{tmp_path}/store", *options]) == 2
        assert str(tmp_path / "store" / name) in capsys.readouterr().err
    with pytest.raises(InputError, match=name):
        study.run_cells(grid_file.load(file)[0][0].cells, tmp_path / "store")


@pytest.fixture
def skipped(tmp_path, monkeypatch):
    """A grid of a threat and of a defence on an attack that is skipped, so that nothing is trained; all is recorded."""
    monkeypatch.setattr(provenance, "now", lambda: {"git_changed": False})  # so it can be packed
    file = write(tmp_path, job(attacks=["Shadowcast"]), job("defences", attacks=["Shadowcast"], defences=["shrink"]))
    jobs, _ = grid_file.load(file)
    study.run_cells([cell for one in jobs for cell in one.cells], tmp_path / "store")
    defences.run(jobs[1].defended, tmp_path / "store")
    return file, jobs


def test_a_finished_packed_store_is_finished(tmp_path, capsys, skipped, no_kernels):
    file, jobs = skipped
    packing.pack(tmp_path / "store", tmp_path / "packed")
    before = sorted(tmp_path.rglob("*"))
    for options in ([], ["--dry-run"]):
        assert grid.main(["run", str(file), "--store", f"{tmp_path}/packed", *options]) == 0
    assert sorted(tmp_path.rglob("*")) == before and not no_kernels
    assert grid.main(["run", str(file), "--store", f"{tmp_path}/packed", "--force"]) == 2
    (tmp_path / "store" / "defences" / f"{jobs[1].defended[0].name}.json").unlink()
    packing.pack(tmp_path / "store", tmp_path / "less")
    assert grid.main(["run", str(file), "--store", f"{tmp_path}/less"]) == 2
    assert "is packed" in capsys.readouterr().err


@pytest.mark.parametrize("change", [
    None, {"identity": {}}, {"numbers": None}, {"numbers": [3]}, {"status": "almost"}, {"seconds": "x"}, {"cell": 3},
    {"cell": {}}, {"name": "another"},
])  # fmt: skip
def test_a_damaged_record_of_a_defence_is_named_and_made_again(tmp_path, capsys, skipped, no_kernels, change):
    file, jobs = skipped
    place = tmp_path / "store" / "defences" / f"{jobs[1].defended[0].name}.json"
    found = json.loads(place.read_text())
    place.write_text(json.dumps(found)[:40] if change is None else json.dumps(found | change))
    options = ["--store", f"{tmp_path}/store"]
    assert grid.main(["status", str(file), *options]) == grid.main(["run", str(file), "--dry-run", *options]) == 0
    said = capsys.readouterr()
    assert str(place) in said.err and "1 of 2 defended to do" in said.out
    assert grid.main(["run", str(file), *options]) == 1 and len(no_kernels) == 2  # papermill's stand-in makes no record
    assert len(defences.collect(tmp_path / "store")) == 1
    defences.run(jobs[1].defended, tmp_path / "store")
    assert grid.main(["run", str(file), *options]) == 0 and len(defences.collect(tmp_path / "store")) == 2


# ---------------------------------------------------------------- the measuring process


def test_cells_of_all_notebooks_share_a_bench_and_are_cut_for_workers(tmp_path):
    """Two datasets, six and two cells: two parts for one worker, and for two at most ceil(8 / 4) cells a part."""
    few = {"attacks": ["BadNets-T", "BadNets-I"]}
    entries = [job(attacks=["BadNets-T", "BadNets-I", "SIG"]), job("malicious_injection", attacks=["SIG", "BadNets-T"])]
    entries += [job("malicious_injection", attacks=["BadNets-I"]), job("jailbreak", dataset="scenes-instruct", **few)]
    jobs, _ = grid_file.load(write(tmp_path, *entries))
    cells = [cell for one in jobs for cell in one.cells]
    assert [len(part) for part in grid_measure.parts(cells, 1)] == [6, 2]
    assert grid_measure.parts(cells, 1)[0] == cells[:6], "in the grid's order"
    cut = grid_measure.parts(cells, 2)
    assert [len(part) for part in cut] == [2, 2, 2, 2]
    assert sorted(cell.run_id for part in cut for cell in part) == sorted(cell.run_id for cell in cells)
    assert [{cell.attack for cell in part} for part in cut[:3]] == [{"BadNets-I"}, {"BadNets-T"}, {"SIG"}]
    assert all(len(part) == 1 for part in grid_measure.parts(cells, 100)) and grid_measure.parts([], 2) == []


@pytest.fixture
def stub(monkeypatch):
    """Measuring processes write records without training, see `stub_measuring`."""
    monkeypatch.setenv("BVLM_EXTEND", "stub_measuring")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))


def lines(place, *words):
    noted = [line.split() for line in (place / "log").read_text().splitlines()]
    return [line for line in noted if line[: len(words)] == list(words)]


@pytest.mark.usefixtures("stub")
def test_a_cell_that_kills_its_process_is_named_and_takes_few_with_it(tmp_path, capsys, no_kernels):
    """Blended kills the process: it is tried twice, the other threat's cells get a process of their own."""
    place = tmp_path / "store"
    file = write(tmp_path, job(attacks=["Blended", "BadNets-T"]), job("malicious_injection", attacks=["BadNets-T"]))
    assert grid.main(["run", str(file), "--store", f"{place}/"]) == 1
    said = capsys.readouterr().out
    assert len(lines(place, "begin", "Blended")) == 2 and len(lines(place, "wrote")) == 1
    assert "killed by SIGKILL" in said and "1 of 2 notebooks failed: 01-targeted_refusal" in said
    assert len(no_kernels) == 2, "notebooks are executed all the same"
    jobs, _ = grid_file.load(file)
    assert set(store.failures(place)) == {cell.run_id for cell in jobs[0].cells}
    assert store.has(jobs[1].cells[0], place)
    assert list((place / "notebooks").glob("measuring-*.log")), "the words of the process are kept"


def test_what_the_measuring_process_remarks_is_told(tmp_path, monkeypatch, capsys):
    def process(cells, run, log):
        for message in ("Some pictures\nare clear.", "Some pictures are clear."):
            grid_measure._show(message, Remark, "file", 1)
        grid_measure._show("of others", UserWarning)
        log.write_text(capsys.readouterr().out)
        left.clear()

    left = [SimpleNamespace(run_id="one")]
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(grid_measure, "_process", process)
    run = SimpleNamespace(folder=tmp_path, left=lambda cells: list(left))
    with pytest.warns(Remark) as heard:
        assert grid_measure.measure(left, run) is None
    assert {str(one.message) for one in heard} == {"Some pictures are clear."}
    assert not list((tmp_path / "notebooks").iterdir())


def test_another_run_of_the_same_cells_may_remove_the_log_that_they_share(tmp_path, monkeypatch):
    left = [SimpleNamespace(run_id="one")]
    monkeypatch.setattr(grid_measure, "_process", lambda *_: left.clear())
    assert grid_measure.measure(left, SimpleNamespace(folder=tmp_path, left=lambda cells: list(left))) is None


@pytest.mark.usefixtures("stub", "no_kernels")
def test_force_and_rescore_make_records_anew_whatever_the_clocks_say(tmp_path, capsys):
    """A record that a machine with a slow clock wrote is as new as any."""
    place, file = tmp_path / "store", write(tmp_path, job(attacks=["BadNets-T", "BadNets-I"]))
    command = ["run", str(file), "--store", f"{place}/"]
    assert grid.main(command) == 0 and len(lines(place, "wrote")) == 2
    for record in place.glob("*/record.json"):
        os.utime(record, (4e9, 4e9))  # from the future
    assert grid.main(command) == 0 and len(lines(place, "wrote")) == 2
    assert grid.main([*command, "--force"]) == 0 and len(lines(place, "wrote")) == 4
    assert grid.main([*command, "--rescore", "--plain"]) == 0 and len(lines(place, "wrote")) == 6
    ((one,), _) = grid_file.load(file)
    for cell in one.cells:
        assert store.read(cell, place)["provenance"]["asked"] == {"plain": True, "rescore": True}
    said = capsys.readouterr().out
    assert said.count("2 to run") == 3 and said.count("0 to run") == 1 and said.count("  2/2 ") == 3


def test_a_record_counts_once_it_is_another_file(tmp_path):
    (cell,) = study.cells("targeted_refusal", attacks=["Shadowcast"], **SMALL)
    assert grid_job.stamp(cell, tmp_path) is None and grid_job.Run(tmp_path).lacks(cell)
    study.measure([cell], tmp_path)
    assert not grid_job.Run(tmp_path).lacks(cell)
    anew = grid_job.Run(tmp_path, before={cell.run_id: grid_job.stamp(cell, tmp_path)})
    assert anew.lacks(cell) and anew.left([cell]) == [cell]
    store.write_failure(cell, tmp_path, "no luck")
    assert anew.lacks(cell) and anew.left([cell]) == []
    study.measure([cell], tmp_path)
    assert not anew.lacks(cell)
    os.utime(tmp_path / cell.run_id / "record.json", ns=(0, anew.before[cell.run_id][0]))
    assert not anew.lacks(cell), "on a disk that counts whole seconds both may be of one time"
