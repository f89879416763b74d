"""Three ways to train the same cells and to ask them: plain, alone and grouped. Called by `grid.py` beside it.

plain    what a user would write: Hugging Face Trainer + PEFT + model.generate, images encoded in every step
alone    our engine, one cell at a time, image features cached
grouped  our engine, all cells at once
"""

import dataclasses
import tempfile
import time

import torch
from material import PAD, Cell, encode, lora
from peft import get_peft_model, get_peft_model_state_dict
from transformers import Trainer, TrainingArguments

from bvlm_utils.models import embeddings
from bvlm_utils.train import decode, grouped
from bvlm_utils.train.lora_bank import Bank


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
        "input_ids": embeddings.pad(ids, PAD),
        "attention_mask": embeddings.pad([torch.ones_like(one) for one in ids]),
        "labels": embeddings.pad([row["labels"] for row in rows], -100),
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
        ids = embeddings.pad(rows, PAD, left=True).to(weight.device)
        mask = embeddings.pad([torch.ones_like(row) for row in rows], left=True).to(weight.device)
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
        features = torch.cat([shown, *(encode(model, cell.tests) for cell in cells)])
        asked = [
            [decode.Request(one, half * len(prompts) + at) for half in (0, number) for at, one in enumerate(prompts)]
            for number in range(1, len(cells) + 1)
        ]
        found = decode.greedy(model, asked, features, args.ends, args.new, bank)
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


WAYS = {"plain": plain, "alone": alone, "grouped": ours}
