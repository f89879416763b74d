"""How many cells a minute? The plain way against all at once, for groups of every size and each precision.

`grid.py`'s cells and ways. The plain way runs one cell for each precision, its rate does not depend on the group.
Whatever happens the first time only (libraries that load, memory that is asked for) happens before the clock runs.
"""

import argparse
import dataclasses

import grid
from material import make_cell, random_material, real_material, template
from transformers.utils import logging
from ways import WAYS

from bvlm_utils.models import victim
from gpu_steps.common import Run, release

DTYPES = ("bfloat16", "float32", "tf32")
TARGET = 20  # times the plain way's cells a minute


def run(run: Run) -> None:
    logging.set_verbosity_error()
    dtypes, lines = run.size(DTYPES[:2], DTYPES), {}
    for number, dtype in enumerate(dtypes):
        share = run.left() / (len(dtypes) - number)  # of the time that is left: no precision goes without
        bench = run.do(f"{dtype}: plain", lambda dtype=dtype: plain(run, dtype), needs=5)
        if bench is not None:
            lines |= groups(run, dtype, share)
        _OPEN.clear()
        release()
    victim.use_precision("float32")
    if lines:
        run.do(f"target of {TARGET} times plain", lambda: against_target(lines))


def against_target(lines: dict[str, dict]) -> dict:
    """The best ratio of cells a minute to the plain way's. lines: by part."""
    at = max(lines, key=lambda part: lines[part]["times_plain"])
    best = lines[at]["times_plain"]
    return {"best": best, "at": at, "met": best >= TARGET} | {name: lines[at][name] for name in ("cells", "rows")}


_OPEN: dict = {}  # the model and the plain way's result of the precision at hand


def options(run: Run, dtype: str) -> argparse.Namespace:
    """The rehearsal takes a random model, for which no scenes have to be drawn."""
    small = ["--shape", "tiny", "--rows", "4", "--tests", "1", "--batch", "4", "--new", "4"]
    given = run.size(small, ["--rows", "256", "--tests", "32"])
    args = grid.parser().parse_args([*given, "--dtype", dtype, "--device", "cuda" if run.cuda else "cpu"])
    args.rank, args.text = args.rank[0], args.text[0]
    args.slow_cells, args.ways = 1, ["grouped"]
    return args


def plain(run: Run, dtype: str) -> dict:
    args = options(run, dtype)
    model, names, one = grid.loaded(args)
    material = real_material(one, args) if one else random_material(args)
    whole = template(model, names, args)
    cell = make_cell(whole, material, 0, args)
    _once(WAYS["plain"], model, names, [cell], material, args)
    args.ways = ["plain"]
    result = grid.run_ways(model, names, material, [cell], args)["plain"]
    args.ways = ["grouped"]
    _OPEN.update(model=model, names=names, material=material, whole=whole, args=args, plain=result)
    _OPEN["peak"] = grid.gemm_peak(model, args)
    share = grid.needed_flops(model, names, [cell]) / result["train"] / _OPEN["peak"]
    line = grid.one_line("plain", result, None, [cell], args)
    return line | {"gemm_share": share, "gemm_peak_tflops": _OPEN["peak"] / 1e12}


def groups(run: Run, dtype: str, share: float) -> dict[str, dict]:
    """Groups of growing size, while the next is expected to fit into `share` seconds of this step; lines by part."""
    until, each, lines = run.left() - share, 0.0, {}
    for count in run.size((2,), (1, 4, 16, 64)):
        wanted = 1.5 * each * count
        if run.left() - wanted < until:
            run.note(f"{dtype}: {count} cells", left_out=f"needs about {wanted:.0f} s")
            return lines
        found = run.do(f"{dtype}: {count} cells", lambda count=count: group(run, count), needs=3)
        if found is None:
            return lines
        lines[f"{dtype}: {count} cells"] = found
        each = 60 / found["cells_per_minute"]
    if not run.small and dtype == DTYPES[0]:
        run.do(f"{dtype}: 256 cells, short", lambda: group(run, 256, rows=64, tests=8), needs=8)
    return lines


def group(run: Run, count: int, rows: int | None = None, tests: int | None = None) -> dict:
    """`count` cells at once. rows, tests: the first so many only; then nothing is compared with the plain way."""
    model, names, material, args = (_OPEN[name] for name in ("model", "names", "material", "args"))
    if rows:
        args = argparse.Namespace(**vars(args) | {"rows": rows, "tests": tests})
        material = dataclasses.replace(
            material,
            prompts=material.prompts[:rows],
            answers=material.answers[:rows],
            pictures=material.pictures[:rows],
            asked=material.asked[:tests],
            shown=material.shown[:tests],
        )
    cells = [make_cell(_OPEN["whole"], material, seed, args) for seed in range(count)]
    _once(WAYS["grouped"], model, names, cells, material, args)
    result = grid.run_ways(model, names, material, cells, args)["grouped"]
    line = grid.one_line("grouped", result, None if rows else _OPEN["plain"], cells, args)
    line["gemm_share"] = grid.needed_flops(model, names, cells) / result["train"] / _OPEN["peak"]
    return line


def _once(way, model, names, cells, material, args) -> None:
    """A step and two tokens, to warm up."""
    short = [
        dataclasses.replace(cell, plan=dataclasses.replace(cell.plan, steps=cell.plan.steps[:1], rates=[1e-3]))
        for cell in cells
    ]
    way(model, names, short, material, argparse.Namespace(**vars(args) | {"new": 2}))
