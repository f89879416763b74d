"""Small cells and grids that several test files make."""

import sys

import yaml

from bvlm_utils.run import study

SMALL = {"dataset": "scenes-vqa", "train_rows": 64, "test_rows": 8, "poison_rates": [0.1]}


def small(attack="BadNets-MM", threat="malicious_injection", **others):
    return study.cells(threat=threat, attacks=[attack], **SMALL | others)


def write(folder, *jobs, **others):
    file = folder / "grid.yml"
    file.write_text(yaml.safe_dump({"jobs": list(jobs), **others}))
    return file


def job(notebook="targeted_refusal", **parameters):
    return {"notebook": notebook, "parameters": {**SMALL, **parameters}}


def command(*arguments):
    return [sys.executable, "-m", "bvlm_utils.grid", *map(str, arguments)]
