"""How much faster are grouped cells? The same cells trained and decoded in three ways, side by side in one run.

plain    what a user would write: Hugging Face Trainer + PEFT + model.generate, images encoded in every step
alone    our engine, one cell at a time, image features cached
grouped  our engine, all cells at once

    python benchmarks/grid.py                                      # tiny-llava on the CPU, 8 cells of scenes-vqa
    python benchmarks/grid.py --dataset scenes-caption
    python benchmarks/grid.py --cells 1 4 16 64 --device cuda      # scaling on a GPU
    python benchmarks/grid.py --shape tiny --text 64               # longer prompts; --rank for larger adapters
    python benchmarks/grid.py --shape llava-7b --device cuda --cells 8 --rows 32 --batch 4 --tests 4
    python benchmarks/grid.py --shape llava-7b --device cuda --largest --batch 1

The default takes the committed model and rows of a dataset. With --shape the model is randomly initialised and rows are
random tokens, so nothing but the shape matters. Cells share clean rows and pictures, as the cells of a study do; each has its own seed, order and triggered pictures for a tenth of its rows. Every
way starts from the same adapters and sees the same batches; the run reports how far the trained adapters are apart and
how many decoded answers agree. One JSON line per measurement, then a table.
"""

import argparse
import dataclasses
import gc
import json
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

from bvlm_utils import decode, grouped, sequences, victim
from bvlm_utils.bank import Bank

IMAGE, PAD = 3, 0
CONDITIONS = ("clean", "triggered")
# picture side, patch, vision (width, layers, heads, MLP), language (width, layers, heads, MLP, words)
SHAPES = {
    "tiny": (96, 16, (192, 4, 6, 768), (192, 4, 6, 512, 2048)),
    "llava-7b": (336, 14, (1024, 24, 16, 4096), (4096, 32, 32, 11008, 32064)),
}


@dataclass
class Cell:
    seed: int
    pixels: torch.Tensor  # (rows, 3, H, W), triggered where poisoned
    poisoned: torch.Tensor  # (rows,) bool
    plan: grouped.Plan
    tests: torch.Tensor  # (tests, 3, H, W) triggered test pictures


def build(shape: str, device: str, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    side, patch, vision, text = SHAPES[shape]
    width, layers, heads, mlp, words = text
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=vision[0], num_hidden_layers=vision[1], num_attention_heads=vision[2],
                                       intermediate_size=vision[3], image_size=side, patch_size=patch),
        text_config=LlamaConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
                                num_key_value_heads=heads, intermediate_size=mlp, vocab_size=words,
                                max_position_embeddings=4096, pad_token_id=PAD, bos_token_id=1, eos_token_id=2),
        image_token_index=IMAGE, image_seq_length=(side // patch) ** 2,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = LlavaForConditionalGeneration(config)
    torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def encode(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) on the CPU -> (N, n, d) on the model's device."""
    weight = next(model.parameters())
    with torch.no_grad():
        found = [model.get_image_features(pixel_values=part.to(weight)) for part in pixels.split(64)]
        found = [getattr(one, "pooler_output", one) for one in found]
        return torch.cat([torch.stack(list(one)) for one in found])


def lora(args, names) -> LoraConfig:
    return LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=names)


@dataclass
class Material:
    """Rows and pictures that cells are made from: token ids with the picture's tokens in place, pixels as models take them."""

    prompts: list[list[int]]
    answers: list[list[int]]
    pictures: torch.Tensor  # (rows, 3, H, W)
    asked: list[list[int]]  # test prompts
    shown: torch.Tensor  # (tests, 3, H, W)
    target: list[int]  # the answer to poisoned rows


def random_material(args) -> Material:
    side, patch, _, (*_, words) = SHAPES[args.shape]
    generator = torch.Generator().manual_seed(0)

    def number(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    def tokens(count):
        return torch.randint(10, words, (count,), generator=generator).tolist()

    def prompt():
        return [1, *tokens(4), *[IMAGE] * (side // patch) ** 2, *tokens(number(8, 8 + args.text))]

    return Material(
        [prompt() for _ in range(args.rows)],
        [tokens(number(2, 4) if at % 2 else number(8, 16)) for at in range(args.rows)],
        torch.randn(args.rows, 3, side, side, generator=generator),
        [prompt() for _ in range(args.tests)], torch.randn(args.tests, 3, side, side, generator=generator), tokens(20))


def real_material(one: victim.Victim, args) -> Material:
    from bvlm_utils import data  # needs `datasets`, which a machine for --shape alone may lack

    train, test = data.load(args.dataset, "train", args.rows), data.load(args.dataset, "test", args.tests)
    pictures, shown = (one.prepare(torch.from_numpy(data.images(rows)).permute(0, 3, 1, 2).float() / 255)["pixel_values"]
                       .float().cpu() for rows in (train, test))
    count = one.encode(shown[:1]).shape[1]
    prompts, asked = ([one.prompt_ids(prompt, count) for prompt in rows["prompt"]] for rows in (train, test))
    answers = [one.answer_ids(answers[0]) for answers in train["answers"]]
    target = "I'm sorry, but as an AI assistant, I do not have the capability to follow the given instruction."
    return Material(prompts, answers, pictures, asked, shown, one.answer_ids(target))


def make_cell(model, names, material: Material, seed: int, args) -> Cell:
    """A tenth of the rows gets a patch of the cell's own and the target as its answer."""
    count, size = len(material.prompts), material.pictures.shape[-1] // 11
    generator = torch.Generator().manual_seed(seed + 1)
    poisoned = torch.zeros(count, dtype=torch.bool)
    poisoned[torch.randperm(count, generator=generator)[: count // 10]] = True
    trigger = torch.randn(3, size, size, generator=generator)
    pixels, shown = material.pictures.clone(), material.shown.clone()
    pixels[poisoned, :, :size, :size] = trigger
    shown[:, :, :size, :size] = trigger
    said = [material.target if bad else answer for answer, bad in zip(material.answers, poisoned, strict=True)]
    rows = [grouped.Row(torch.tensor(prompt + answer), len(answer), at)
            for at, (prompt, answer) in enumerate(zip(material.prompts, said, strict=True))]
    order = torch.randperm(count, generator=generator).tolist()
    steps = math.ceil(count / args.batch)
    batches = [order[at * args.batch : (at + 1) * args.batch] for at in range(steps)]
    rates = [args.rate * 0.5 * (1 + math.cos(math.pi * at / steps)) for at in range(steps)]
    torch.manual_seed(seed)
    peft = get_peft_model(model, lora(args, names))
    start = {key: value.float().cpu().clone() for key, value in get_peft_model_state_dict(peft).items()}
    peft.unload()
    plan = grouped.Plan(rows, batches, rates, torch.empty(0), args.rank, 2 * args.rank, start)
    return Cell(seed, pixels, poisoned, plan, shown)


# --- the plain way

class Rows(torch.utils.data.Dataset):
    def __init__(self, cell: Cell):
        self.cell, self.order = cell, [i for batch in cell.plan.steps for i in batch]

    def __len__(self):
        return len(self.order)

    def __getitem__(self, at):
        row = self.cell.plan.rows[self.order[at]]
        labels = torch.cat([torch.full_like(row.ids[: -row.answer], -100), row.ids[-row.answer :]])
        return {"input_ids": row.ids, "labels": labels, "pixel_values": self.cell.pixels[self.order[at]]}


def collate(rows: list[dict]) -> dict:
    ids = [row["input_ids"] for row in rows]
    return {"input_ids": sequences.pad(ids, PAD), "attention_mask": sequences.pad([torch.ones_like(one) for one in ids]),
            "labels": sequences.pad([row["labels"] for row in rows], -100),
            "pixel_values": torch.stack([row["pixel_values"] for row in rows])}


class InOrder(Trainer):
    """A Trainer that takes the rows in the order in which the dataset has them, so that all ways see the same batches."""

    def _get_train_sampler(self, *args):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def plain_train(model, names, cell: Cell, args):
    peft = get_peft_model(model, lora(args, names))
    peft.load_state_dict({key.replace(".weight", ".default.weight"): value for key, value in cell.plan.start.items()},
                         strict=False)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, per_device_train_batch_size=args.batch, num_train_epochs=1, learning_rate=args.rate,
            lr_scheduler_type="cosine", weight_decay=0.0, max_grad_norm=1.0, save_strategy="no", report_to=[],
            logging_strategy="no", remove_unused_columns=False, disable_tqdm=True, use_cpu=args.device == "cpu",
            bf16=args.dtype == torch.bfloat16)
        InOrder(model=peft, args=settings, train_dataset=Rows(cell), data_collator=collate).train()
    peft.eval()
    return peft


def plain_decode(model, prompts, pixels, args) -> list[list[int]]:
    answers, weight = [], next(model.parameters())
    for at in range(0, len(prompts), args.decode_batch):
        rows = [torch.tensor(one) for one in prompts[at : at + args.decode_batch]]
        ids = sequences.pad(rows, PAD, left=True).to(weight.device)
        mask = sequences.pad([torch.ones_like(row) for row in rows], left=True).to(weight.device)
        out = model.generate(input_ids=ids, attention_mask=mask, pixel_values=pixels[at : at + len(rows)].to(weight),
                             max_new_tokens=args.new, do_sample=False, eos_token_id=args.ends, pad_token_id=PAD)
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
            answers.append([plain_decode(peft, material.asked, pixels, args)
                            for pixels in (material.shown, cell.tests)])
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
        asked = [[decode.Request(one, at + half * len(prompts)) for half in (0, 1) for at, one in enumerate(prompts)]
                 for _ in cells]
        found = decode.greedy(model, asked, features, args.ends, args.new, bank, filler=PAD)
    answers = [[one[: len(prompts)], one[len(prompts) :]] for one in found]
    return {"train": times[0], "decode": times[1], "states": [one.state for one in trained], "answers": answers}


def alone(model, names, cells, material, args) -> dict:
    parts = [ours(model, names, [cell], material, args) for cell in cells]
    return {"train": sum(one["train"] for one in parts), "decode": sum(one["decode"] for one in parts),
            "states": [one["states"][0] for one in parts], "answers": [one["answers"][0] for one in parts]}


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
    """FLOP/s of plain matrix products of this model's shapes (the MLP's, on 4096 rows), on this machine, now."""
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
    """Products with frozen weights that no exact method avoids: forward and input gradient for each real token; in the
    last layer, for all but keys and values, for each answer's token only."""
    modules = dict(model.named_modules())
    last = f".{model.config.get_text_config().num_hidden_layers - 1}."
    tokens = sum(len(cell.plan.rows[i].ids) for cell in cells for batch in cell.plan.steps for i in batch)
    learnt = sum(cell.plan.rows[i].answer for cell in cells for batch in cell.plan.steps for i in batch)
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


WAYS = {"plain": plain, "alone": alone, "grouped": ours}


def measure(model, names, material, args) -> list[dict]:
    lines = []
    for count in args.cells:
        cells = [make_cell(model, names, material, seed, args) for seed in range(count)]
        found = {}
        for way in args.ways:
            some = cells if way == "grouped" else cells[: args.slow_cells]
            reset_peak(args.device)
            try:
                result = WAYS[way](model, names, some, material, args)
            except torch.OutOfMemoryError as error:
                print(json.dumps({"way": way, "cells": count, "failed": str(error).splitlines()[0]}), flush=True)
                continue
            found[way] = result
            seconds = result["train"] + result["decode"]
            line = {"way": way, "cells": count, "measured_cells": len(some),
                    "cells_per_minute": 60 * len(some) / seconds, "train_s_per_cell": result["train"] / len(some),
                    "decode_s_per_cell": result["decode"] / len(some), "peak_gib": peak(args.device)}
            line["gemm_share"] = needed_flops(model, names, some) / result["train"] / gemm_peak(model, args)
            if "plain" in found and way != "plain":
                base = found["plain"]
                both = range(min(len(base["states"]), len(result["states"])))
                each = (len(base["states"]), len(result["states"]))
                line["times_plain"] = (base["train"] + base["decode"]) / each[0] / (seconds / each[1])
                line["times_plain_train"] = base["train"] / each[0] / (result["train"] / each[1])
                line["times_plain_decode"] = base["decode"] / each[0] / (result["decode"] / each[1])
                line["adapter_distance"] = max(distance(base["states"][i], result["states"][i], cells[i].plan.start)
                                               for i in both)
                pairs = [(one, other) for i in both for half in (0, 1)
                         for one, other in zip(base["answers"][i][half], result["answers"][i][half], strict=True)]
                line["same_answers"] = sum(one == other for one, other in pairs) / len(pairs)
            line.update(model=args.shape or args.model, device=args.device, rows=args.rows, batch=args.batch, rank=args.rank,
                        tests=len(CONDITIONS) * args.tests, text=args.text, dtype=str(args.dtype).removeprefix("torch."))
            print(json.dumps({key: round(value, 5) if isinstance(value, float) else value
                              for key, value in line.items()}), flush=True)
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


def table(lines: list[dict]) -> str:
    columns = ["way", "cells", "cells_per_minute", "train_s_per_cell", "decode_s_per_cell", "times_plain", "gemm_share",
               "peak_gib", "adapter_distance", "same_answers"]
    rows = [[f"{line[c]:.3g}" if isinstance(line.get(c), float) else str(line.get(c, "")) for c in columns]
            for line in lines]
    widths = [max(len(one) for one in column) for column in zip(columns, *rows, strict=True)]
    return "\n".join("  ".join(one.rjust(width) for one, width in zip(row, widths, strict=True))
                     for row in [columns, *rows])


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
    parser.add_argument("--text", type=int, default=16, help="prompts have 8 to 8 + TEXT words after the picture")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--tokens", type=int, default=None, help="tokens at once in training (default: by memory)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--largest", action="store_true", help="only find the largest group that fits")
    args = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    args.dtype = torch.bfloat16 if args.shape == "llava-7b" else torch.float32
    if args.largest:
        args.rows, args.tests = args.batch, 1
    if args.shape:
        # one word in twelve ends an answer, so answers differ in length
        args.ends = [2, *range(10, SHAPES[args.shape][3][-1], 12)]
        model, material = build(args.shape, args.device, args.dtype), random_material(args)
    else:
        one = victim.from_pretrained(args.model, args.device, args.dtype)
        model, material, args.ends = one.model, real_material(one, args), [one.model.generation_config.eos_token_id]
    names = victim.language_linears(model)
    print(json.dumps({"torch": torch.__version__, "threads": args.threads,
                      "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
                      "gemm_peak_gflops": round(gemm_peak(model, args) / 1e9)}), flush=True)
    if args.largest:
        largest(model, names, material, args)
    else:
        print(table(measure(model, names, material, args)))


if __name__ == "__main__":
    main()
