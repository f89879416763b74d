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
import tempfile
import time
from pathlib import Path

import torch
from keep import Kept
from material import PAD, SHAPES, Cell, build, encode, lora, make_cell, random_material, real_material
from peft import get_peft_model, get_peft_model_state_dict
from transformers import Trainer, TrainingArguments
from transformers.utils import logging

from bvlm_utils import decode, grouped, sequences, victim
from bvlm_utils.bank import Bank

# --- the plain way


class Rows(torch.utils.data.Dataset):
    def __init__(self, cell: Cell):
        self.cell, self.order = cell, [i for batch in cell.plan.steps for i in batch]

    def __len__(self):
        return len(self.order)

    def __getitem__(self, at):
        row, plan = self.order[at], self.cell.plan
        ids, count = plan.ids[row], plan.answers[row]
        labels = torch.cat([torch.full_like(ids[:-count], -100), ids[-count:]])
        return {"input_ids": ids, "labels": labels, "pixel_values": self.cell.pixels[row]}


def collate(rows: list[dict]) -> dict:
    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": sequences.pad(ids, PAD),
        "attention_mask": sequences.pad([torch.ones_like(one) for one in ids]),
        "labels": sequences.pad([row["labels"] for row in rows], -100),
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
    }


class InOrder(Trainer):
    """A Trainer that takes the rows in the order in which the dataset has them, so that all ways see the same
    batches.
    """

    def _get_train_sampler(self, *args):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def plain_train(model, names, cell: Cell, args):
    peft = get_peft_model(model, lora(args, names))
    peft.load_state_dict(
        {key.replace(".weight", ".default.weight"): value for key, value in cell.plan.start.items()},
        strict=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            per_device_train_batch_size=args.batch,
            num_train_epochs=1,
            learning_rate=args.rate,
            lr_scheduler_type="cosine",
            weight_decay=0.0,
            max_grad_norm=1.0,
            save_strategy="no",
            report_to=[],
            logging_strategy="no",
            remove_unused_columns=False,
            disable_tqdm=True,
            use_cpu=args.device == "cpu",
            bf16=args.dtype == torch.bfloat16,
        )
        InOrder(model=peft, args=settings, train_dataset=Rows(cell), data_collator=collate).train()
    peft.eval()
    return peft


def plain_decode(model, prompts, pixels, args) -> list[list[int]]:
    answers, weight = [], next(model.parameters())
    for at in range(0, len(prompts), args.decode_batch):
        rows = [torch.tensor(one) for one in prompts[at : at + args.decode_batch]]
        ids = sequences.pad(rows, PAD, left=True).to(weight.device)
        mask = sequences.pad([torch.ones_like(row) for row in rows], left=True).to(weight.device)
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=pixels[at : at + len(rows)].to(weight),
            max_new_tokens=args.new,
            do_sample=False,
            eos_token_id=args.ends,
            pad_token_id=PAD,
        )
        for row in out[:, ids.shape[1] :].tolist():
            over = [at for at, token in enumerate(row) if token in args.ends]
            answers.append(row[: over[0]] if over else row)
    return answers


def plain(model, names, cells, material, args) -> dict:
    states, answers, times = [], [], [0.0, 0.0]
    for cell in cells:
        with Clock(times, 0, args):
            peft = plain_train(model, names, cell, args)
        with Clock(times, 1, args):
            answers.append(
                [plain_decode(peft, material.asked, pixels, args) for pixels in (material.shown, cell.tests)]
            )
        states.append({key: value.float().cpu().clone() for key, value in get_peft_model_state_dict(peft).items()})
        peft.unload()
    return {"train": times[0], "decode": times[1], "states": states, "answers": answers}


# --- our way


def ours(model, names, cells, material, args) -> dict:
    """All `cells` at once."""
    times = [0.0, 0.0]
    with Clock(times, 0, args):
        shared, plans = encode(model, material.pictures), []
        for cell in cells:
            features = shared.clone()
            features[cell.poisoned.to(features.device)] = encode(model, cell.pixels[cell.poisoned])
            plans.append(dataclasses.replace(cell.plan, features=features))
        trained = grouped.train(model, names, plans, tokens=args.tokens)
    with Clock(times, 1, args):
        bank = Bank(model, names, [args.rank] * len(cells), [2 * args.rank] * len(cells))
        for g, one in enumerate(trained):
            bank.load(g, one.state)
        prompts, shown = material.asked, encode(model, material.shown)
        features = [torch.cat([shown, encode(model, cell.tests)]) for cell in cells]
        asked = [
            [decode.Request(one, at + half * len(prompts)) for half in (0, 1) for at, one in enumerate(prompts)]
            for _ in cells
        ]
        found = decode.greedy(model, asked, features, args.ends, args.new, bank, filler=PAD)
    answers = [[one[: len(prompts)], one[len(prompts) :]] for one in found]
    return {
        "train": times[0],
        "decode": times[1],
        "states": [one.state for one in trained],
        "answers": answers,
    }


def alone(model, names, cells, material, args) -> dict:
    parts = [ours(model, names, [cell], material, args) for cell in cells]
    return {
        "train": sum(one["train"] for one in parts),
        "decode": sum(one["decode"] for one in parts),
        "states": [one["states"][0] for one in parts],
        "answers": [one["answers"][0] for one in parts],
    }


# --- measuring


class Clock:
    """Adds the seconds of a block to `times[at]`."""

    def __init__(self, times, at, args):
        self.times, self.at, self.cuda = times, at, args.device == "cuda"

    def __enter__(self):
        if self.cuda:
            torch.cuda.synchronize()
        self.started = time.perf_counter()

    def __exit__(self, *_):
        if self.cuda:
            torch.cuda.synchronize()
        self.times[self.at] += time.perf_counter() - self.started


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


def gemm_peak(model, args) -> float:
    """FLOP/s of plain matrix products of this model's shapes (the MLP's, 4096 rows), here and now."""
    weight = model.get_decoder().layers[0].mlp.up_proj.weight
    rows, best = torch.randn(4096, weight.shape[1]).to(weight), 0.0
    for _ in range(12):
        times = [0.0]
        with Clock(times, 0, args):
            for _ in range(4):
                rows @ weight.T
        best = max(best, 4 * 2 * rows.numel() * weight.shape[0] / times[0])
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


WAYS = {"plain": plain, "alone": alone, "grouped": ours}


def measure(model, names, material, args) -> list[dict]:
    lines = []
    for count in args.cells:
        cells = [make_cell(model, names, material, seed, args) for seed in range(count)]
        found: dict[str, dict] = {}
        for way in args.ways * args.repeat:  # taken in turns: the machine may be shared
            some = cells if way == "grouped" else cells[: args.slow_cells]
            reset_peak(args.device)
            try:
                result = WAYS[way](model, names, some, material, args)
            except torch.OutOfMemoryError as error:
                print(json.dumps({"way": way, "cells": count, "failed": str(error).splitlines()[0]}), flush=True)
                continue
            result["peak"] = peak(args.device)
            for phase in ("train", "decode"):  # the fastest of the repeats
                result[phase] = min(result[phase], found.get(way, result)[phase])
            found[way] = result
        for way, result in found.items():
            some = cells if way == "grouped" else cells[: args.slow_cells]
            seconds = result["train"] + result["decode"]
            line = {
                "way": way,
                "cells": count,
                "measured_cells": len(some),
                "cells_per_minute": 60 * len(some) / seconds,
                "train_s_per_cell": result["train"] / len(some),
                "decode_s_per_cell": result["decode"] / len(some),
                "peak_gib": result["peak"],
            }
            line["gemm_share"] = needed_flops(model, names, some) / result["train"] / gemm_peak(model, args)
            if "plain" in found and way != "plain":
                base = found["plain"]
                both = range(min(len(base["states"]), len(result["states"])))
                each = (len(base["states"]), len(result["states"]))
                line["times_plain"] = (base["train"] + base["decode"]) / each[0] / (seconds / each[1])
                line["times_plain_train"] = base["train"] / each[0] / (result["train"] / each[1])
                line["times_plain_decode"] = base["decode"] / each[0] / (result["decode"] / each[1])
                line["adapter_distance"] = max(
                    distance(base["states"][i], result["states"][i], cells[i].plan.start) for i in both
                )
                pairs = [
                    (one, other)
                    for i in both
                    for half in (0, 1)
                    for one, other in zip(base["answers"][i][half], result["answers"][i][half], strict=True)
                ]
                line["same_answers"] = sum(one == other for one, other in pairs) / len(pairs)
            line.update(
                model=args.shape or args.model,
                device=args.device,
                rows=args.rows,
                batch=args.batch,
                rank=args.rank,
                tests=2 * args.tests,  # clean and triggered
                text=args.text,
                dtype=str(args.dtype).removeprefix("torch."),
            )
            print(
                json.dumps(
                    {key: round(value, 5) if isinstance(value, float) else value for key, value in line.items()}
                ),
                flush=True,
            )
            lines.append(line)
    return lines


def largest(model, names, material, args) -> None:
    """The largest group that trains, by doubling and then bisection, one step each."""
    works, fails = 0, None
    while fails is None or fails - works > max(1, works // 8):
        count = works * 2 or 1
        if fails is not None:
            count = (works + fails) // 2
        cell = make_cell(model, names, material, 0, args)
        plan = dataclasses.replace(cell.plan, features=encode(model, cell.pixels))
        reset_peak(args.device)
        try:
            # no halving here: the question is whether the group fits as one
            grouped.train_together(model, names, [plan] * count, args.tokens or 1)
            works = count
            print(json.dumps({"largest": count, "peak_gib": round(peak(args.device), 2)}), flush=True)
        except torch.OutOfMemoryError:
            fails = count
            print(json.dumps({"too_large": count}), flush=True)


# Operator names and what they are for; the rest is elementwise: norms, gates, rotations, sums, copies.
KINDS = {
    "products with frozen weights": ("aten::mm", "aten::addmm", "aten::linear"),
    "products with adapters": ("aten::bmm", "aten::baddbmm_", "aten::addmm_"),
    "attention": ("aten::_scaled_dot_product",),
}


def profile(model, names, material, args) -> None:
    """Where the time of grouped training goes, by kind of operator, on the CPU's own clock of each thread."""
    from torch.profiler import ProfilerActivity

    cells = [make_cell(model, names, material, seed, args) for seed in range(args.cells[0])]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny-llava", help="a LLaVA checkpoint")
    parser.add_argument("--dataset", default="scenes-vqa")
    parser.add_argument("--shape", choices=SHAPES, help="a random model of this shape instead")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--cells", type=int, nargs="+", default=[8], help="how many cells, one measurement for each")
    parser.add_argument("--slow-cells", type=int, default=2, help="plain and alone run this many of them")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rows", type=int, default=256, help="training rows of a cell")
    parser.add_argument("--tests", type=int, default=32, help="test prompts for each of two conditions")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--decode-batch", type=int, default=64, help="batch of model.generate")
    parser.add_argument("--new", type=int, default=24, help="new tokens at most")
    parser.add_argument(
        "--text", type=int, nargs="+", default=[16], help="--shape: prompts have 8 to 8 + TEXT words after the picture"
    )
    parser.add_argument("--rank", type=int, nargs="+", default=[8], help="LoRA rank")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--tokens", type=int, default=None, help="tokens at once in training (default: by memory)")
    parser.add_argument("--repeat", type=int, default=1, help="times in turns; the fastest counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--largest", action="store_true", help="only find the largest group that fits")
    parser.add_argument("--profile", action="store_true", help="only say where grouped training spends its time")
    parser.add_argument("--out", type=Path, help="keep the measurements in this JSON file")
    args = parser.parse_args()
    if args.out and (args.largest or args.profile):
        parser.error("--out keeps measurements; --largest and --profile make none.")
    if len(args.text) > 1 and not args.shape:
        parser.error("--text takes several values with --shape only: rows of a dataset are as long as they are.")
    kept = Kept("grid", args.device, args.threads)
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    args.dtype = torch.bfloat16 if args.shape == "llava-7b" else torch.float32
    if args.largest:
        args.rows, args.tests = args.batch, 1
    one = None if args.shape else victim.from_pretrained(args.model, args.device, args.dtype)
    if args.shape:
        # one word in twelve ends an answer, so answers differ in length
        args.ends = [2, *range(10, SHAPES[args.shape][3][-1], 12)]
        model = build(args.shape, args.device, args.dtype)
    else:
        args.ends, model = [one.model.generation_config.eos_token_id], one.model
    names = victim.language_linears(model)
    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "threads": args.threads,
                "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
                "gemm_peak_gflops": round(gemm_peak(model, args) / 1e9),
            }
        ),
        flush=True,
    )
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
