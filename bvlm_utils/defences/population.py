"""The spectra of many adapters whose truth is known, as one small table: what weight detectors are fitted to.

    python -m bvlm_utils.defences population STORE [STORE ...] --out FILE.csv

A line per adapter of rank 8 that either has a backdoor that works or none, as the zoo takes them: what it is, the norm
of its whole update, and the features of `spectrum`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bvlm_utils.atomic import write_file
from bvlm_utils.defences import zoo
from bvlm_utils.errors import InputError
from bvlm_utils.paths import new_file

DIGITS = 6


def table(folders: Sequence[Path]) -> pd.DataFrame:
    """A line per adapter that was trained in a way of its own: what it is, norm, features."""
    from bvlm_utils.defences import spectrum

    lines = []
    for candidate in zoo.different(folders).values():
        truth = {zoo.BACKDOORED: int(candidate.kind == zoo.BACKDOORED), "kind": candidate.kind} | candidate.about
        numbers = {
            "norm": spectrum.norm(None, candidate.saved, None, {}, None, 0.0),
        } | spectrum.features(candidate.saved)
        lines.append(truth | {"run_id": candidate.record["run_id"]} | numbers)
    return pd.DataFrame(sorted(lines, key=lambda line: line["run_id"]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stores", nargs="+", help="stores with adapters: names, or folders")
    parser.add_argument("--out", required=True, help="CSV file")


def run(options: argparse.Namespace) -> None:
    folders, out = zoo.folders(options.stores), new_file(options.out)
    frame = table(folders)
    if frame.empty or frame[zoo.BACKDOORED].nunique() < 2:
        raise InputError("These stores hold no adapters of rank 8 with a working backdoor and none without one.")
    text = frame.to_csv(index=False, float_format=f"%.{DIGITS}g", lineterminator="\n")
    write_file(out, text)
    print(frame.groupby(["kind", "model"]).size().to_string())
    print(f"\n{len(frame)} adapters in {out}.")
