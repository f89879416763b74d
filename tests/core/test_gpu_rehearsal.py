"""Does the script for a GPU run? Its steps in their smallest size on the CPU, its sequencer with steps that fail."""

import json
import os
import subprocess

import pytest

from bvlm_utils import paths

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


def test_answers_of_a_timed_model_end_where_its_own_do(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import grid

    from bvlm_utils.train import decode

    args = grid.parser().parse_args([])
    _, _, one = grid.loaded(args)
    assert args.ends == decode.ends_of(one) and all(isinstance(end, int) for end in args.ends)
