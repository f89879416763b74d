"""Does the script for a GPU run? Its steps in their smallest size on the CPU, its sequencer with steps that fail."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from bvlm_utils import attacks, paths, store, study
from bvlm_utils.store.records import REFERENCE

BENCHMARKS = paths.ROOT / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    "step",
    ["card", "check", "attention", "grid", "profile", "decode", "large", "poison", "optimised", "cells", "defences"],
)
def test_every_part_of_a_step_ends(gpu, step, tmp_path):
    """In one process: the script starts one per step."""
    assert step in gpu.STEPS
    out = tmp_path / "gpu.jsonl"
    assert gpu.main([step, "--out", str(out), "--size", "small", "--limit", "600"]) == 0
    found = lines(out)
    assert found and all(line["step"] == step and line["seconds"] >= 0 for line in found)
    assert not [line for line in found if "failed" in line or "left_out" in line]
    table = gpu.table(out)
    assert all(f"| {step} | {line['part']} |" in table for line in found)
    assert all(f"| {other} | | | NOT RUN |" in table for other in gpu.STEPS)  # no step has said that it ended


def test_a_part_that_fails_is_named_and_the_next_goes_on(gpu, tmp_path, capsys):
    from gpu_steps.common import Run

    run = Run("card", tmp_path / "out", small=True, limit=60)
    assert run.do("bad", lambda: 1 / 0) is None
    assert run.do("good", lambda: {"one": 1}) == {"one": 1}
    assert run.do("late", dict, needs=1000) is None
    bad, good, late = lines(run.out)
    assert bad["failed"] == "ZeroDivisionError: division by zero" and good["one"] == 1 and "left_out" in late
    assert "FAILED: ZeroDivisionError" in gpu.table(run.out)


STAND_IN = """#!/usr/bin/env python3
import json, os, sys, time
words = sys.argv[sys.argv.index(next(one for one in sys.argv if one.endswith("gpu.py"))) :]
step, out = words[1], words[words.index("--out") + 1]
if step == "table":
    os.execv(sys.executable, [sys.executable, *words])
with open(out, "a") as file:
    file.write(json.dumps({"step": step, "part": "first", "seconds": 1.0, "value": 3}) + "\\n")
if step == "check":
    sys.exit('Fatal "quoted" │ last words')
if step == "grid":
    time.sleep(600)
"""


def test_the_sequencer_stops_what_takes_too_long_and_goes_on(tmp_path, gpu):
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    environment = os.environ | {"PYTHON": str(stand_in), "SECONDS_IN_ALL": "8", "LEAST": "4"}
    environment.pop("WHEELS", None)
    done = subprocess.run(
        ["bash", str(BENCHMARKS / "gpu.sh"), str(tmp_path / "out"), "full"],
        env=environment, text=True, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    table = (tmp_path / "out" / "table.md").read_text()
    assert done.stdout.endswith(table) and len(list((tmp_path / "out").iterdir())) <= 8
    assert "| card | first | 1.0 | value 3 |" in table
    assert "| check | end |  | FAILED: Fatal 'quoted'" in table
    assert "| grid | end |  | FAILED: stopped after" in table
    assert "| large | end |  | FAILED: no time was left |" in table
    assert "NOT RUN" not in table


def test_the_steps_take_nine_minutes_at_most_and_the_readme_says_how_long(gpu):
    script, readme = ((BENCHMARKS / name).read_text() for name in ("gpu.sh", "README.md"))
    steps = dict(one.split(":") for one in re.search(r"\$\{STEPS:-(.*?)\}", script).group(1).split())
    assert set(steps) == set(gpu.STEPS)
    assert sum(map(int, steps.values())) <= 540
    section = readme[readme.index("## On a GPU\n\n```") :]
    assert dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", section, re.MULTILINE)) == steps


def test_numbers_are_compared_by_row_where_answers_are_stored_and_by_overlap_elsewhere(gpu, tmp_path, monkeypatch):
    from gpu_steps import common, whole_cells

    (cell,) = cells = study.cells(whole_cells.THREAT, attacks=whole_cells.ATTACKS[:1], dtype="bfloat16")
    (known,) = study.cells(whole_cells.THREAT, attacks=whole_cells.ATTACKS[:1])
    same = whole_cells.compared([known], REFERENCE, REFERENCE)
    assert same["by"] == "paired intervals" and same["numbers"] == same["intervals_meet"] > 0 == same["worst"]
    elsewhere = whole_cells.compared([known], REFERENCE, tmp_path)
    assert elsewhere["by"] != same["by"] and elsewhere["numbers"] == elsewhere["intervals_meet"] > 0
    assert whole_cells.compared(cells, tmp_path, REFERENCE)["numbers"] == 0, "nothing was measured"

    answers = store.responses(known, REFERENCE)
    fired = (answers["part"] == "attack") & (answers["subject"] == "poisoned") & (answers["condition"] == "text")
    changed = answers.assign(success=answers["success"].where(~fired, False)).sample(frac=1, random_state=0)
    monkeypatch.setattr(store, "responses", lambda one, where: answers if where == "ours" else changed)
    pairs = {name: numbers for name, numbers, _ in whole_cells.paired(cell, "ours", known, "theirs")}
    name = f"{cell.attack}: attack / poisoned / text / success"
    value, low, high = pairs.pop(name)
    assert value == answers[fired & answers["judged"]]["success"].mean() > 0.9 and 0 < low < value <= high
    assert all(value == 0 for value, *_ in pairs.values()), "rows are paired by name, not by place"
    found = common.agreement(whole_cells.paired(cell, "ours", known, "theirs"))
    assert found["numbers"] - found["intervals_meet"] == 1 and found["worst_is"] == name


def test_the_whole_grid_is_told_by_the_rate_of_its_cells(gpu):
    from gpu_steps import whole_cells

    from bvlm_utils.grid import file as grid_file

    jobs = grid_file.load(paths.GRIDS / "breadth.yml")[0]
    found = whole_cells.whole(jobs, 10.0)
    cells = [cell for job in jobs for cell in job.cells if not cell.skip_reason]
    one = [cell for cell in cells if cell.model == "tiny-llava" and cell.poison_rate == whole_cells.RATE]
    assert found["minutes_of_all"] == len(cells) / 10 and found["minutes_of_one_rate"] == len(one) / 10


def test_the_ratio_to_the_plain_way_is_held_against_its_target(gpu):
    from gpu_steps import rate

    lines = {f"{n} cells": {"times_plain": ratio, "cells": n, "rows": 8} for n, ratio in ((1, 2.0), (4, 20.0))}
    assert rate.against_target(lines) == {"best": 20.0, "at": "4 cells", "met": True, "cells": 4, "rows": 8}
    assert not rate.against_target({"1 cells": lines["1 cells"]})["met"]


def test_the_revision_is_read_without_git(gpu, tmp_path):
    from gpu_steps import card

    assert card.revision(tmp_path) == "unknown"
    git, root = tmp_path / "first" / ".git", tmp_path / "first"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert card.revision(root) == "unknown"
    (git / "packed-refs").write_text("# pack-refs with: peeled\n1111 refs/heads/main2\n2222 refs/heads/main\n^33\n")
    assert card.revision(root) == "2222"
    (git / "refs" / "heads" / "main").write_text("4444\n")
    assert card.revision(root) == "4444"
    beside, tree = git / "worktrees" / "tree", tmp_path / "tree"
    for folder in (beside, tree):
        folder.mkdir(parents=True)
    (tree / ".git").write_text(f"gitdir: {beside}\n")
    (beside / "HEAD").write_text("ref: refs/heads/main\n")
    (beside / "commondir").write_text("../..\n")
    assert card.revision(tree) == "4444"
    (beside / "HEAD").write_text("5555\n")
    assert card.revision(tree) == "5555"


def test_every_trigger_of_a_picture_is_timed_or_pasted_as_another(gpu):
    import poisoning
    from gpu_steps import poison

    with_picture = {name for name in attacks.names() if attacks.info(name).image}
    assert with_picture == {*poisoning.ATTACKS, *poison.PASTED, "Shadowcast"}  # which `optimised` times
    halves = [attacks.info(name).image for name in ("BadNets-I", "BadNets-MM")]
    assert halves[0] == halves[1]


def test_checks_that_saw_nothing_fail(gpu, monkeypatch):
    """Pictures that differ, a card that refused no memory, a training that began anew."""
    from gpu_steps import check, common, limits

    def failed(found):
        return "failed" in common.judged(found)

    assert not failed({"distance": 0.0, "bound": 0.0}) and failed({"distance": float("nan"), "bound": 1.0})
    assert not failed(check.encoded("cpu", 8, "float32"))
    monkeypatch.setattr(check, "PIXELS", -1.0)
    assert failed(check.encoded("cpu", 8, "float32"))

    load = limits.victim.from_pretrained
    monkeypatch.setattr(limits.victim, "from_pretrained", lambda name, device, dtype: load(name, "cpu", dtype))
    monkeypatch.setattr(limits.unfinished.Saved, "load", lambda *_: None)
    assert failed(limits.half_trained("cpu", 8))
    monkeypatch.setattr(limits, "GROUP", 1)
    for name, value in (("_held", 0), ("_failures", 0), ("_limit", None)):
        monkeypatch.setattr(limits, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 0)
    assert failed(limits.halving("cuda:0", 8))


def test_a_compiler_that_fails_is_named_and_leaves_the_layers(gpu, tmp_path, monkeypatch):
    from gpu_steps import profiler, rate
    from gpu_steps.common import Run

    def broken(*_, **__):
        raise RuntimeError("backend='inductor' raised:\n  no C compiler found\nand more")

    run = Run("profile", tmp_path / "out", small=True, limit=60)
    args = rate.options(run, "float32")
    args.rows, args.tests = 2, 1
    profiler.load(args)
    monkeypatch.setattr(profiler, "COMPILED", (1, 2))
    monkeypatch.setattr(torch, "compile", broken)
    found = profiler.compiled(run, "compiled", 1)
    assert found["failed"] == "the compiler: RuntimeError: no C compiler found" and found["eager_ms_per_step"] > 0
    assert not any("forward" in vars(layer) for layer in profiler._OPEN["model"].get_decoder().layers)
    profiler._OPEN.clear()


def test_four_bit_is_left_out_where_nothing_packs(gpu, tmp_path, monkeypatch):
    from gpu_steps import large
    from gpu_steps.common import Run

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert "bitsandbytes" in large.packed(Run("large", tmp_path / "out", small=True, limit=60), 2)["left_out"]


def test_answers_of_a_timed_model_end_where_its_own_do(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import grid

    from bvlm_utils.train import decode

    args = grid.parser().parse_args([])
    _, _, one = grid.loaded(args)
    assert args.ends == decode.ends_of(one) and all(isinstance(end, int) for end in args.ends)
