"""How much faster are grouped cells? The same cells, trained and decoded in three ways, side by side.

plain    what a user would write: Hugging Face Trainer + PEFT + model.generate, images encoded in every step
alone    our engine, one cell at a time, image features cached
grouped  our engine, all cells at once

    python benchmarks/grid.py                                  # tiny-llava on the CPU, 8 cells of scenes-vqa
    python benchmarks/grid.py --dataset scenes-caption
    python benchmarks/grid.py --cells 1 4 16 64 --device cuda  # scaling on a GPU
    python benchmarks/grid.py --rank 4 16 64                   # scaling with the rank of the adapters
    python benchmarks/grid.py --shape tiny --text 16 64 256    # scaling with the length of prompts
    python benchmarks/grid.py --shape llava-7b --device cuda --cells 8 --rows 32 --batch 4 --tests 4
    python benchmarks/grid.py --shape llava-7b --device cuda --largest --batch 1

The default takes the committed model and rows of a dataset. With --shape the model is randomly initialised
and rows are random tokens, so nothing but the shape matters. Cells share clean rows and pictures, as the
cells of a study do; each has its own seed, order and triggered pictures for a tenth of its rows. Every way
starts from the same adapters and sees the same batches; the run reports how far the trained adapters are
apart and how many decoded answers agree, and fails if in float32 they do not. One JSON line per measurement,
then a table; --out FILE keeps them (the book reads benchmarks/results/).
"""

import argparse
import dataclasses
import gc
import itertools
import json
import math
import sys
from pathlib import Path

import torch
from keep import Kept
from material import SHAPES, build, encode, make_cell, random_material, real_material, template
from transformers.utils import logging
from ways import WAYS, Clock

from bvlm_utils.models import victim
from bvlm_utils.train import decode, grouped, lora_bank, memory

DTYPES = ("float32", "tf32", "bfloat16")

# --- measuring


def reset_peak(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: start the peak of resident memory anew


def peak(device: str) -> float:
    """GiB since `reset_peak`."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def gemm_peak(model, args, seconds: float = 0.02) -> float:
    """FLOP/s of plain matrix products of this model's shapes (the MLP's), here and now.

    A card gets more rows, or the launch would be measured; and blocks of at least `seconds`, or the clock would.
    """
    weight = model.get_decoder().layers[0].mlp.up_proj.weight
    rows, best, count = torch.randn(65536 if args.device == "cuda" else 4096, weight.shape[1]).to(weight), 0.0, 4
    for _ in range(12):
        times = [0.0]
        with Clock(times, 0, args):
            for _ in range(count):
                lora_bank.linear(rows, weight)
        best = max(best, count * 2 * rows.numel() * weight.shape[0] / times[0])
        if times[0] < seconds:
            count *= 2
    return best


def needed_flops(model, names, cells) -> float:
    """Products with frozen weights that no exact method avoids: forward and input gradient for each real
    token; in the last layer, for all but keys and values, for each answer's token only."""
    modules = dict(model.named_modules())
    last = f".{model.config.get_text_config().num_hidden_layers - 1}."
    tokens = sum(len(cell.plan.ids[i]) for cell in cells for batch in cell.plan.steps for i in batch)
    learnt = sum(cell.plan.answers[i] for cell in cells for batch in cell.plan.steps for i in batch)
    flops = model.get_output_embeddings().weight.numel() * 4 * learnt
    for name in names:
        tail = last in name and not name.endswith(("k_proj", "v_proj"))
        flops += modules[name].weight.numel() * 4 * (learnt if tail else tokens)
    return flops


def distance(one: dict, other: dict, start: dict) -> float:
    """How far two trained adapters are apart, relative to how far training moved them."""
    apart = sum((one[key] - other[key]).square().sum() for key in one)
    moved = sum((one[key] - start[key]).square().sum() for key in one)
    return math.sqrt(apart / moved)


def equal(line: dict) -> bool:
    """Are adapters and answers those of the plain way, where it ran beside? In float32, up to rounding."""
    return line.get("same_answers", 1.0) == 1.0 and line.get("adapter_distance", 0.0) < 1e-2


def measure(model, names, material, args) -> list[dict]:
    lines, whole = [], template(model, names, args)
    for count in args.cells:
        cells = [make_cell(whole, material, seed, args) for seed in range(count)]
        found = run_ways(model, names, material, cells, args)
        peak_flops = gemm_peak(model, args)
        for way, result in found.items():
            line = one_line(way, result, found.get("plain"), cells, args)
            line["gemm_share"] = needed_flops(model, names, cells[: result["cells"]]) / result["train"] / peak_flops
            short = {key: round(value, 5) if isinstance(value, float) else value for key, value in line.items()}
            print(json.dumps(short), flush=True)
            lines.append(line)
    return lines


def run_ways(model, names, material, cells, args) -> dict[str, dict]:
    """What each of `args.ways` took for the cells, and what came out; a way that runs out of memory is left out."""
    found: dict[str, dict] = {}
    for way in args.ways * args.repeat:  # taken in turns: the machine may be shared
        some = cells if way == "grouped" else cells[: args.slow_cells]
        reset_peak(args.device)
        try:
            result = WAYS[way](model, names, some, material, args)
        except (RuntimeError, MemoryError) as error:
            if not memory.ran_out(error):
                raise
            print(json.dumps({"way": way, "cells": len(cells), "failed": str(error).splitlines()[0]}), flush=True)
            continue
        result |= {"peak": peak(args.device), "cells": len(some)}
        for phase in ("train", "decode"):  # the fastest of the repeats
            result[phase] = min(result[phase], found.get(way, result)[phase])
        found[way] = result
    return found


def one_line(way: str, result: dict, base: dict | None, cells, args) -> dict:
    """The numbers of one way, and where the plain way ran beside, how they compare."""
    seconds, count = result["train"] + result["decode"], result["cells"]
    line = {
        "way": way,
        "cells": len(cells),
        "measured_cells": count,
        "cells_per_minute": 60 * count / seconds,
        "train_s_per_cell": result["train"] / count,
        "decode_s_per_cell": result["decode"] / count,
        "peak_gib": result["peak"],
    }
    if base and way != "plain":
        line |= compared(result, base, cells)
    return line | {
        "model": args.shape or args.model,
        "device": args.device,
        "rows": args.rows,
        "batch": args.batch,
        "rank": args.rank,
        "tests": 2 * args.tests,  # clean and triggered
        "text": args.text,
        "dtype": args.dtype_name,
    }


def compared(result: dict, base: dict, cells) -> dict:
    """Times the plain way, by phase, and how far adapters and answers are from its."""
    both = range(min(base["cells"], result["cells"]))
    pairs = [
        (one, other)
        for i in both
        for half in (0, 1)
        for one, other in zip(base["answers"][i][half], result["answers"][i][half], strict=True)
    ]

    def each(one, *phases):
        return sum(one[phase] for phase in phases) / one["cells"]

    return {
        "times_plain": each(base, "train", "decode") / each(result, "train", "decode"),
        "times_plain_train": each(base, "train") / each(result, "train"),
        "times_plain_decode": each(base, "decode") / each(result, "decode"),
        "adapter_distance": max(distance(base["states"][i], result["states"][i], cells[i].plan.start) for i in both),
        "same_answers": sum(one == other for one, other in pairs) / len(pairs),
    }


def largest(model, names, material, args) -> None:
    """The largest group that trains, by doubling and then bisection, one step each."""
    works, fails, whole = 0, None, template(model, names, args)
    while fails is None or fails - works > max(1, works // 8):
        count = works * 2 or 1
        if fails is not None:
            count = (works + fails) // 2
        cell = make_cell(whole, material, 0, args)
        plan = dataclasses.replace(cell.plan, features=encode(model, cell.pixels))
        reset_peak(args.device)
        try:
            # no halving here: the question is whether the group fits as one
            grouped.train_together(model, names, [plan] * count, args.tokens or 1, None, None)
            works = count
            print(json.dumps({"largest": count, "peak_gib": round(peak(args.device), 2)}), flush=True)
        except (RuntimeError, MemoryError) as error:
            if not memory.ran_out(error):
                raise
            fails = count
            print(json.dumps({"too_large": count}), flush=True)


# Operator names and what they are for; the rest is elementwise: norms, gates, rotations, sums, copies.
KINDS = {
    "products with frozen weights": ("aten::mm", "aten::addmm", "aten::linear", "mkldnn::_linear"),
    "products with adapters": ("aten::bmm", "aten::baddbmm_", "aten::addmm_"),
    "attention": ("aten::_scaled_dot_product",),
}


def profile(model, names, material, args) -> None:
    """Where the time of grouped training goes, by kind of operator, on the CPU's own clock of each thread."""
    from torch.profiler import ProfilerActivity

    whole = template(model, names, args)
    cells = [make_cell(whole, material, seed, args) for seed in range(args.cells[0])]
    features = encode(model, material.pictures)
    plans = [dataclasses.replace(cell.plan, features=features) for cell in cells]
    grouped.train(
        model,
        names,
        [dataclasses.replace(plan, steps=plan.steps[:1], rates=plan.rates[:1]) for plan in plans],
    )
    activity = ProfilerActivity.CUDA if args.device == "cuda" else ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as seen:
        grouped.train(model, names, plans, tokens=args.tokens)
    shares: dict[str, float] = {}
    for event in seen.key_averages():
        kind = next((kind for kind, ops in KINDS.items() if event.key.startswith(ops)), None)
        kind = kind or ("elementwise and the rest" if event.key.startswith("aten::") else "Python and autograd")
        time_us = event.self_device_time_total if args.device == "cuda" else event.self_cpu_time_total
        shares[kind] = shares.get(kind, 0.0) + time_us
    total = sum(shares.values())
    print(
        json.dumps(
            {kind: round(time_us / total, 3) for kind, time_us in sorted(shares.items(), key=lambda x: -x[1])}
            | {
                "seconds": round(total / 1e6, 2),
                "needed_gemm_seconds": round(needed_flops(model, names, cells) / gemm_peak(model, args), 2),
            }
        )
    )


def table(lines: list[dict]) -> str:
    columns = [
        "way",
        "cells",
        "text",
        "rank",
        "cells_per_minute",
        "train_s_per_cell",
        "decode_s_per_cell",
        "times_plain",
        "gemm_share",
        "peak_gib",
        "adapter_distance",
        "same_answers",
    ]
    rows = [
        [f"{line[c]:.3g}" if isinstance(line.get(c), float) else str(line.get(c, "")) for c in columns]
        for line in lines
    ]
    widths = [max(len(one) for one in column) for column in zip(columns, *rows, strict=True)]
    return "\n".join(
        "  ".join(one.rjust(width) for one, width in zip(row, widths, strict=True)) for row in [columns, *rows]
    )


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = options.add_argument
    add("--model", default="tiny-llava", help="a LLaVA checkpoint")
    add("--dataset", default="scenes-vqa")
    add("--shape", choices=SHAPES, help="a random model of this shape instead")
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--dtype", choices=DTYPES, help="default: float32, bfloat16 for llava-7b")
    add("--cells", type=int, nargs="+", default=[8], help="how many cells, one measurement for each")
    add("--slow-cells", type=int, default=2, help="plain and alone run this many of them")
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    add("--rows", type=int, default=256, help="training rows of a cell")
    add("--tests", type=int, default=32, help="test prompts for each of two conditions")
    add("--batch", type=int, default=32)
    add("--decode-batch", type=int, default=64, help="batch of model.generate")
    add("--new", type=int, default=24, help="new tokens at most")
    words = "--shape: prompts have 8 to 8 + TEXT words after the picture"
    add("--text", type=int, nargs="+", default=[16], help=words)
    add("--rank", type=int, nargs="+", default=[8], help="LoRA rank")
    add("--rate", type=float, default=1e-3)
    add("--tokens", type=int, default=None, help="tokens at once in training (default: by memory)")
    add("--repeat", type=int, default=1, help="times in turns; the fastest counts")
    add("--threads", type=int, default=2)
    add("--largest", action="store_true", help="only find the largest group that fits")
    add("--profile", action="store_true", help="only say where grouped training spends its time")
    add("--out", type=Path, help="keep the measurements in this JSON file")
    return options


def loaded(args) -> tuple:
    """The model of the options with its names of layers, and the victim around it; `args` gets dtype and ends."""
    args.dtype_name = args.dtype or ("bfloat16" if args.shape == "llava-7b" else "float32")
    args.dtype = victim.use_precision(args.dtype_name)
    one = None if args.shape else victim.from_pretrained(args.model, args.device, args.dtype)
    if args.shape:
        # one word in twelve ends an answer, so answers differ in length
        args.ends = [2, *range(10, SHAPES[args.shape][3][-1], 12)]
        model = build(args.shape, args.device, args.dtype)
    else:
        args.ends, model = decode.ends_of(one), one.model
    return model, victim.language_linears(model), one


def main() -> None:
    options = parser()
    args = options.parse_args()
    if args.out and (args.largest or args.profile):
        options.error("--out keeps measurements; --largest and --profile make none.")
    if len(args.text) > 1 and not args.shape:
        options.error("--text takes several values with --shape only: rows of a dataset are as long as they are.")
    kept = Kept("grid", args.device, args.threads)
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    if args.largest:
        args.rows, args.tests = args.batch, 1
    model, names, one = loaded(args)
    about = {
        "torch": torch.__version__,
        "threads": args.threads,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "gemm_peak_gflops": round(gemm_peak(model, args) / 1e9),
    }
    print(json.dumps(about), flush=True)
    lines = []
    for text, rank in itertools.product(args.text, args.rank):
        point = argparse.Namespace(**vars(args) | {"text": text, "rank": rank})
        material = real_material(one, point) if one else random_material(point)
        if args.largest:
            largest(model, names, material, point)
        elif args.profile:
            profile(model, names, material, point)
        else:
            lines += measure(model, names, material, point)
    if not lines:
        return
    print(table(lines))
    if args.out:
        kept.write(args.out, args, lines)
    if wrong := [line for line in lines if line["dtype"] == "float32" and not equal(line)]:
        print(f"Not equal to the plain way: {json.dumps(wrong)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
