"""The tuning of a model: one LoRA adapter, one loop, to be read from top to bottom. `train.grouped` tunes many."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bvlm_utils.errors import InputError
from bvlm_utils.models.victim import Victim, pad
from bvlm_utils.train.adapters import attach_lora, detach
from bvlm_utils.train.settings import TrainSettings
from bvlm_utils.train.unfinished import Progress, Saved


@dataclass(frozen=True)
class TrainRow:
    """One training example; `feature_index` says which row of the features is its picture."""

    prompt: str
    answer: str
    feature_index: int


@dataclass
class TrainResult:
    """A tuned adapter, still attached. losses: per step, nats per label token. tokens: of all steps, unpadded."""

    adapter: Any
    losses: list[float]
    seconds: float
    steps: int
    tokens: int


def order(count: int, epochs: int, seed: int) -> list[list[int]]:
    """The order of `count` rows in each epoch. It knows nothing of poison, so a control shares it."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 1])))
    return [generator.permutation(count).tolist() for _ in range(epochs)]


def batches(count: int, settings: TrainSettings, seed: int) -> list[list[int]]:
    """The rows of every step, in order; an epoch's last batch may be smaller."""
    size = settings.batch_size
    return [rows[i : i + size] for rows in order(count, settings.epochs, seed) for i in range(0, count, size)]


def learning_rates(settings: TrainSettings, steps: int) -> list[float]:
    """The rate of each step: a linear warm-up, then a cosine to zero or a constant."""
    warm = max(int(settings.warmup_ratio * steps), 1)
    rates = []
    for step in range(steps):
        if step < warm:
            share = (step + 1) / warm
        elif settings.schedule == "cosine":
            share = (1 + np.cos(np.pi * (step - warm) / max(steps - warm, 1))) / 2
        else:
            share = 1.0
        rates.append(settings.learning_rate * float(share))
    return rates


def _accelerator(device: torch.device) -> Any:
    from accelerate import Accelerator  # slow to load

    if device.type == "cuda":
        torch.cuda.set_device(device)  # Accelerator takes the current card
    return Accelerator(cpu=device.type == "cpu")


def finetune(
    victim: Victim,
    rows: Sequence[TrainRow],
    features: torch.Tensor,
    settings: TrainSettings,
    seed: int,
    rows_at_once: int | None = None,
    saved: Saved | None = None,
) -> TrainResult:
    """Tune a LoRA adapter on `rows`; it stays attached to `victim.model` until `detach`.

    features: (F, n, d) cached image features. rows_at_once: batches are cut into pieces of so many rows of similar
    length, for less memory. saved: keeps the state now and then, to go on from. Under `accelerate launch` or `torchrun`
    each process takes a share of every batch; the losses are those of one process.
    """
    if not rows:
        raise InputError("There are no training rows; give at least one.")
    accelerator = _accelerator(victim.device)
    adapter = attach_lora(victim, settings, seed)
    try:
        adapter.train()
        parameters = [p for p in adapter.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        model, optimiser = accelerator.prepare(adapter, optimiser)
        tokens = token_ids(victim, rows, features.shape[1])
        lengths = [len(prompt) + len(answer) for prompt, answer in tokens]
        steps = batches(len(rows), settings, seed)
        state = _state(parameters, optimiser, len(steps))
        progress = (saved and saved.load(state)) or Progress(0, 0, 0.0)
        started = time.perf_counter() - progress.seconds
        for step, rate in list(enumerate(learning_rates(settings, len(steps))))[progress.step :]:
            batch = steps[step]
            optimiser.param_groups[0]["lr"] = rate
            # The mean is over all label tokens of the batch, whichever piece or process holds them.
            labels = sum(len(tokens[i][1]) for i in batch)
            total = torch.zeros((), device=victim.device)
            for piece in _pieces(batch, lengths, rows_at_once, accelerator.num_processes):
                share = piece[accelerator.process_index :: accelerator.num_processes]
                # A process without a row runs one for nothing: all of them must go through every backward pass.
                indices = share or piece[:1]
                feature_rows = [rows[i].feature_index for i in indices]
                loss = _summed_loss(victim, model, [tokens[i] for i in indices], features[feature_rows]) * bool(share)
                # DDP averages gradients over processes.
                accelerator.backward(loss * accelerator.num_processes / labels)
                total += loss.detach()
            if settings.max_grad_norm:
                accelerator.clip_grad_norm_(parameters, settings.max_grad_norm)
            optimiser.step()
            optimiser.zero_grad()
            state["losses"][0, step] = accelerator.reduce(total, "sum").item() / labels
            if saved and accelerator.is_main_process:
                saved.save(state, Progress(step + 1, 0, time.perf_counter() - started), step + 1 == len(steps))
    except BaseException:
        detach(victim, adapter)  # or the victim would keep half an adapter
        raise
    adapter.eval()
    all_tokens = sum(lengths[i] for batch in steps for i in batch)
    return TrainResult(adapter, state["losses"][0].tolist(), time.perf_counter() - started, len(steps), all_tokens)


def _state(parameters: Sequence[torch.Tensor], optimiser: Any, steps: int) -> dict[str, torch.Tensor]:
    """All that changes with the steps, with one row for the one adapter; AdamW's moments are made for it."""
    state = {"losses": torch.zeros(1, steps, dtype=torch.float64)}
    for at, parameter in enumerate(parameters):
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        optimiser.state[parameter] = {"step": torch.zeros(())} | moments
        tensors = optimiser.state[parameter] | {"weights": parameter.data}
        state |= {f"{at}.{name}": tensor[None] for name, tensor in tensors.items()}
    return state


def token_ids(victim: Victim, rows: Sequence[TrainRow], image_tokens: int) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer of each row as ids. Texts come again and again, so each is looked up once."""
    answers = {text: victim.answer_ids(text) for text in {row.answer for row in rows}}
    longest: dict[str, int] = {}
    for row in rows:
        longest[row.prompt] = max(longest.get(row.prompt, 0), len(answers[row.answer]))
    prompts = {text: victim.prompt_ids(text, image_tokens, answer) for text, answer in longest.items()}
    return [(prompts[row.prompt], answers[row.answer]) for row in rows]


def _pieces(batch: list[int], lengths: Sequence[int], size: int | None, processes: int) -> list[list[int]]:
    """The rows of a batch in pieces of `size` rows for each process, short rows with short ones."""
    ordered = sorted(batch, key=lambda i: lengths[i])
    size = size * processes if size else len(ordered)
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def _summed_loss(victim: Victim, model, tokens: list, features: torch.Tensor) -> torch.Tensor:
    """Cross entropy summed over the answer tokens of some rows. features: (len(tokens), n, d)."""
    ids, mask = pad([p + a for p, a in tokens], victim.tokenizer.pad_token_id, left=False, device=victim.device)
    learn = torch.zeros(ids.shape, dtype=torch.bool)
    for i, (prompt, answer) in enumerate(tokens):
        learn[i, len(prompt) : len(prompt) + len(answer)] = True
    # Logits only for the columns that some row predicts a label from.
    columns = learn[:, 1:].any(0).nonzero().squeeze(1)
    learn, columns = learn[:, columns + 1].to(victim.device), columns.to(victim.device)
    logits = model(**victim.inputs(ids, mask, features), logits_to_keep=columns, use_cache=False).logits
    targets = ids[:, columns + 1].masked_fill(~learn, -100)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum")
