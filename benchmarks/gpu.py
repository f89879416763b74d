"""What does a GPU do with the core? One step of the first ten minutes on a card; `gpu.sh` runs them all.

    python benchmarks/gpu.py STEP --out FILE [--size small|full] [--limit SECONDS]
    python benchmarks/gpu.py table --out FILE

Each part of a step appends one JSON line to FILE as soon as it is done; one that fails says why, and the others go
on. `table` prints what FILE holds. --size small is a rehearsal that needs no card. Results belong in
`benchmarks/results/`, named after the card.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

# step -> the module of `gpu_steps` that does it, and what it is about
STEPS = {
    "card": "card",
    "check": "check",
    "attention": "attention",
    "grid": "rate",
    "profile": "profiler",
    "decode": "decoding",
    "large": "large",
    "poison": "poison",
    "optimised": "optimised",
    "cells": "whole_cells",
    "defences": "defence_points",
}
PER_LINE = 14  # numbers of a part that the table shows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=[*STEPS, "draw", "table"])
    parser.add_argument("--out", type=Path, required=True, help="the file that lines are appended to")
    parser.add_argument("--size", choices=["small", "full"], default="full")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that the step has")
    chosen = parser.parse_args(argv)
    if chosen.step == "table":
        print(table(chosen.out))
        return 0
    if chosen.step == "draw":  # scenes that later steps need, drawn while the first ones run
        draw()
        return 0
    from gpu_steps.common import Run  # imports torch
    from transformers.utils import logging

    logging.disable_progress_bar()

    run = Run(chosen.step, chosen.out, chosen.size == "small", chosen.limit)
    module = importlib.import_module(f"gpu_steps.{STEPS[chosen.step]}")
    module.run(run)
    return 0


def draw() -> None:
    from bvlm_utils import data

    for name in data.names():
        for split in ("train", "test"):
            data.load(name, split)


def table(file: Path) -> str:
    """All parts of all steps, in the order in which they ended; at the end what is missing."""
    written = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    lines = [json.loads(line) for line in written if line.endswith("}")]  # a step may be stopped in the midst of one
    rows = ["| step | part | seconds | result |", "|---|---|---:|---|"]
    for line in lines:
        if line["part"] != "end" or line.get("failed"):
            rows.append(f"| {line['step']} | {line['part']} | {line.get('seconds', '')} | {_result(line)} |")
    ended = {line["step"] for line in lines if line["part"] == "end"}
    rows += [f"| {step} | | | NOT RUN |" for step in STEPS if step not in ended]
    return "\n".join(rows)


def _result(line: dict) -> str:
    if "failed" in line:
        return "FAILED: " + str(line["failed"]).replace("|", "/")
    if "left_out" in line:
        return "left out: " + line["left_out"]
    numbers = {key: value for key, value in line.items() if key not in ("step", "part", "seconds")}
    shown = [f"{key} {value}" for key, value in numbers.items() if not isinstance(value, (dict, list))]
    return ", ".join(shown[:PER_LINE]).replace("|", "/")


if __name__ == "__main__":
    sys.exit(main())
