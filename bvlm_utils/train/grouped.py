"""Grouped training: the cells of a job trained together, each exactly as it would be alone.

One frozen base, G adapters in a `Bank`, and per step one batch of each job side by side. Jobs share the base and the
number of image tokens, nothing else. A test holds G grouped runs equal to G runs of `train.loop.finetune`.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bvlm_utils.checks import brief, content_key
from bvlm_utils.errors import InputError
from bvlm_utils.models import embeddings as model_inputs
from bvlm_utils.models.victim import Victim, language_linears
from bvlm_utils.train import adapters, memory, unfinished
from bvlm_utils.train import loop as plain
from bvlm_utils.train.adapters import GroupResult
from bvlm_utils.train.lora_bank import Bank, pick
from bvlm_utils.train.microbatches import Plan, Table
from bvlm_utils.train.settings import TrainSettings

# Settings of PEFT that change what an adapter computes, and that a bank does not know.
NOT_IN_A_BANK = ("use_rslora", "use_dora", "lora_bias", "bias", "rank_pattern", "alpha_pattern", "modules_to_save")
CAUSAL = "causal_without_masks"  # our name for transformers' own SDPA
Progress = Callable[[int, int, float], None] | None  # of the step, the number of steps, the mean loss
BETAS, EPSILON = (0.9, 0.999), 1e-8  # AdamW's defaults, as in `train`


@dataclass(frozen=True)
class GroupJob:
    """What `train.loop.finetune` takes. start: PEFT state to go on from. name: a killed group is known again by it."""

    rows: Sequence[plain.TrainRow]
    features: torch.Tensor
    settings: TrainSettings
    seed: int
    start: Mapping[str, torch.Tensor] | None = None
    name: str = ""


def finetune_group(
    victim: Victim, jobs: Sequence[GroupJob], progress: Progress = None, folder: Path | None = None
) -> list[GroupResult]:
    """Tune one adapter per job, all at once, as `train.loop.finetune` would tune each; results in the jobs' order.

    Equal jobs are trained once; those that do not fit in memory together in several groups. progress, folder: as in
    `train`.
    """
    for number, job in enumerate(jobs):
        if not job.rows:
            raise InputError(f"Job {number} of the group has no training rows; give at least one.")
    if not jobs:
        return []
    keys = [(tuple(job.rows), id(job.features), job.settings, job.seed, id(job.start)) for job in jobs]
    unique: dict[tuple, GroupJob] = {}
    for key, job in zip(keys, jobs, strict=True):  # all names stay, so that each cell of a killed group is known again
        name = unfinished.APART.join([unique[key].name, job.name]) if key in unique else job.name
        unique[key] = replace(job, name=name)
    names, plans = language_linears(victim.model), _plans(victim, list(unique.values()))
    longest = max(len(row) for plan in plans for row in plan.ids)
    size = memory.largest_group(victim.model, names, max(plan.rank for plan in plans), longest)
    parts = [plans[at : at + size] for at in range(0, len(plans), size)]
    results = [result for part in parts for result in train(victim.model, names, part, None, progress, folder)]
    by_key = dict(zip(unique, results, strict=True))
    return [by_key[key] for key in keys]


def check_plain(config: Any) -> None:
    """InputError for a LoRA whose update is not (alpha / r) B A alone, the same r and alpha everywhere."""
    for name in NOT_IN_A_BANK:
        if getattr(config, name) not in (False, None, "none", {}, []):
            raise InputError(
                f"An adapter sets {name} to {brief(getattr(config, name))}, and only plain LoRAs are asked together, "
                "repaired or looked into; give one that was trained without that."
            )


def bank_of(victim: Victim, results: Sequence[GroupResult]) -> Bank:
    """The trained adapters side by side, for `train.decode.answer`; InputError for one that is no plain LoRA."""
    for result in results:
        check_plain(result.config)
    ranks, alphas = [result.config.r for result in results], [result.config.lora_alpha for result in results]
    bank = Bank(victim.model, language_linears(victim.model), ranks, alphas)
    for g, result in enumerate(results):
        bank.load(g, result.state)
    return bank


def _plans(victim: Victim, jobs: Sequence[GroupJob]) -> list[Plan]:
    """Token ids, batches, rates and first adapters of the jobs; what several jobs share is made once."""
    from peft import get_peft_model_state_dict

    position_cache: dict = {}

    @cache
    def tokens(prompt: str, answer: str, image_tokens: int) -> tuple[torch.Tensor, int, torch.Tensor | None]:
        answer_ids = victim.answer_ids(answer)
        ids = victim.prompt_ids(prompt, image_tokens, len(answer_ids)) + answer_ids
        return torch.tensor(ids), len(answer_ids), model_inputs.positions(victim.model, ids, position_cache)

    @cache
    def fresh(settings: TrainSettings, seed: int) -> tuple[dict[str, torch.Tensor], Any]:
        adapter = adapters.attach_lora(victim, settings, seed)
        state = {name: value.clone() for name, value in get_peft_model_state_dict(adapter).items()}
        config = adapter.peft_config["default"]
        adapters.detach(victim, adapter)
        return state, config

    plans = []
    for job in jobs:
        settings = job.settings
        rows = [tokens(row.prompt, row.answer, job.features.shape[1]) for row in job.rows]
        ids, answers, positions = zip(*rows, strict=True)
        columns = (ids, answers, [row.feature_index for row in job.rows], None if positions[0] is None else positions)
        rank, alpha = settings.lora_rank, settings.lora_alpha
        start, config = fresh(TrainSettings(lora_rank=rank, lora_alpha=alpha), job.seed)
        start = start if job.start is None else dict(job.start)
        steps = plain.batches(len(rows), settings, job.seed)
        rates = plain.learning_rates(settings, len(steps))
        limits = (settings.weight_decay, settings.max_grad_norm or 0.0)
        plans.append(Plan(*columns, steps, rates, job.features, rank, alpha, start, *limits, config, job.name))
    return plans


class _Group:
    """Plans being trained together, the longest first, so that those still at work are always the first k."""

    def __init__(self, model: nn.Module, names: Sequence[str], plans: list[Plan]):
        self.plans = plans
        self.bank = bank = Bank(model, names, [plan.rank for plan in plans], [plan.alpha for plan in plans])
        for g, plan in enumerate(plans):
            bank.load(g, plan.start)
        self.table = Table(plans, bank.device, bank.params.dtype)
        self.moments = (torch.zeros_like(bank.params), torch.zeros_like(bank.params))
        rates = list(zip_longest(*(plan.rates for plan in plans), fillvalue=0.0))
        self.rates = torch.tensor(rates, dtype=torch.float64).unsqueeze(-1).to(bank.device)  # (S, G, 1), padded with 0
        self.decay = torch.tensor([[plan.weight_decay] for plan in plans]).to(bank.params)  # (G, 1)
        limits = [plan.max_norm or float("inf") for plan in plans]
        self.max_norm = torch.tensor(limits).to(bank.params)  # (G,)
        self.losses = torch.zeros(len(rates), len(plans), dtype=bank.params.dtype, device=bank.device)  # (S, G)

    def state(self) -> dict[str, torch.Tensor]:
        """All that changes with the steps, a row for each plan."""
        first, second = self.moments
        return {"adapters": self.bank.params, "first": first, "second": second, "losses": self.losses.T}


def _keys(plans: Sequence[Plan]) -> list[str]:
    """What saved states are found by; names stand for rows, model and data."""
    return [
        content_key(plan.name, plan.rank, plan.alpha, list(map(list, plan.steps)), list(plan.rates),
                    plan.weight_decay, plan.max_norm, str(plan.features.dtype)) for plan in plans
    ]  # fmt: skip


def train(
    model: nn.Module,
    names: Sequence[str],
    plans: Sequence[Plan],
    tokens: int | None = None,
    progress: Progress = None,
    folder: Path | None = None,
) -> list[GroupResult]:
    """Train one adapter per plan on the linear layers `names` of the frozen `model`; results in the plans' order.

    tokens: how many tokens, padding included, go through the model at once (default: `train.memory.tokens_at_once`). A
    group that does not fit in memory is trained in two halves. progress(step, steps, mean loss) is called after each
    step. folder: where the state is saved now and then, and gone on from.
    """
    tokens = tokens or memory.tokens_at_once(model, names, max(plan.rank for plan in plans), len(plans))
    try:
        return train_together(model, names, plans, tokens, progress, folder)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not memory.ran_out(error) or len(plans) == 1:
            raise
    memory.release()
    halves = (plans[: len(plans) // 2], plans[len(plans) // 2 :])
    return [result for half in halves for result in train(model, names, half, tokens, progress, folder)]


def train_together(
    model: nn.Module, names: Sequence[str], plans: Sequence[Plan], tokens: int, progress: Progress, folder: Path | None
) -> list[GroupResult]:
    """`train` in one group; torch.OutOfMemoryError if one row of each plan is too much."""
    started = time.perf_counter()
    order = sorted(range(len(plans)), key=lambda g: -len(plans[g].steps))
    group = _Group(model, names, [plans[g] for g in order])
    bank, total = group.bank, len(group.losses)
    saved, first, spent = unfinished.Saved(folder, [plan.name for plan in group.plans], _keys(group.plans)), 0, 0.0
    if state := saved.load(group.state()):
        first, tokens, spent = state.step, state.tokens, state.seconds
        bank.refresh()
    with bank.attached(), _trainable(model):
        for step in range(first, total):
            bank.active = sum(len(plan.steps) > step for plan in group.plans)
            tokens = _gradients(model, group, step, tokens)
            _update(group, step)
            seconds = spent + time.perf_counter() - started
            saved.save(group.state(), unfinished.Progress(step + 1, tokens, seconds), step + 1 == total)
            if progress is not None:
                progress(step + 1, total, group.losses[step, : bank.active].mean().item())
    seconds = (spent + time.perf_counter() - started) / len(plans)
    losses = group.losses.tolist()
    results: dict[int, GroupResult] = {}
    for at, g in enumerate(order):
        plan = plans[g]
        adapter = {key: value.cpu() for key, value in bank.state(at).items()}
        tokens_seen = sum(len(plan.ids[i]) for batch in plan.steps for i in batch)
        plan_losses = [row[at] for row in losses[: len(plan.steps)]]
        results[g] = GroupResult(adapter, plan.config, plan_losses, seconds, len(plan.steps), tokens_seen)
    return [results[g] for g in range(len(plans))]


@contextmanager
def _trainable(model: nn.Module) -> Iterator[None]:
    """The model as training needs it while the block runs.

    Evaluation mode, as language models have no dropout, unless layers are recomputed, which works in training mode
    only; and plain causal attention, as rows are padded on the right, where it never looks. For an attention function
    that it does not know, transformers makes no mask, which would wait for the GPU.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    config, training = model.get_decoder().config, model.training
    attention = config._attn_implementation
    model.train(model.is_activation_checkpointing)
    if attention == "sdpa" and "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
        AttentionInterface.register(CAUSAL, sdpa_attention_forward)
        config._attn_implementation = CAUSAL
    try:
        yield
    finally:
        config._attn_implementation = attention
        model.train(training)


def _gradients(model: nn.Module, group: _Group, step: int, tokens: int) -> int:
    """Fill the bank's gradients and note the losses of one step; the number of tokens at once that memory held."""
    bank = group.bank
    while True:
        bank.grads.zero_()
        group.losses[step] = 0
        try:
            for batch in group.table.microbatches(step, bank.active, tokens):
                embeddings = model_inputs.embed(model, batch.ids, batch.features)
                bank.positions = batch.target_positions
                output = model.model(inputs_embeds=embeddings, position_ids=batch.positions, use_cache=False)
                logits = model.get_output_embeddings()(pick(output.last_hidden_state, batch.target_positions))
                if logits.dtype in (torch.float16, torch.bfloat16):
                    logits = logits.float()
                losses = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
                loss = losses.view(batch.targets.shape).mul(batch.weights).sum(dim=1)  # (G,)
                loss.sum().backward()
                group.losses[step, : bank.active] += loss.detach()
            bank.positions = None
            return tokens
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            least = bank.active * group.table.longest(step, bank.active)  # one row of each plan
            if not memory.ran_out(error) or tokens <= least:
                raise
        batch = embeddings = output = logits = losses = loss = None
        memory.release()
        tokens = max(least, tokens // 2)


def _update(group: _Group, step: int) -> None:
    """Clip each adapter's gradient by its own norm, then AdamW (Loshchilov and Hutter 2019), in torch.optim's order."""
    k = group.bank.active
    params, grads = group.bank.params[:k], group.bank.grads[:k]
    first, second = (moment[:k] for moment in group.moments)
    rates = group.rates[step, :k]
    norms = torch.linalg.vector_norm(grads, dim=1)
    grads.mul_((group.max_norm[:k] / (norms + 1e-6)).clamp(max=1.0).unsqueeze(1))
    params.mul_(1 - rates.to(params) * group.decay[:k])
    first.lerp_(grads, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(grads, grads, value=1 - BETAS[1])
    corrections = [1 - beta ** (step + 1) for beta in BETAS]
    scale = second.sqrt().div_(corrections[1] ** 0.5).add_(EPSILON)
    params.sub_(first / scale * (rates / corrections[0]).to(params))
    group.bank.refresh()
