"""How are the cells of a job trained together, each exactly as it would be alone? Called by `study` for a group of cells.

One frozen base, G adapters in a `Bank`, and per step one batch of each job side by side. Jobs share the base, the batch
size and nothing else: rows, seed, learning rate, schedule, rank and number of steps are each job's own. The semantics
are those of `train.finetune`; a test holds G grouped runs equal to G plain PEFT runs for every model family.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from bvlm_utils import sequences
from bvlm_utils.bank import Bank, pick
from bvlm_utils.errors import InputError

BETAS, EPSILON = (0.9, 0.999), 1e-8  # AdamW's defaults, as in `train`
IGNORED = -100


@dataclass(frozen=True)
class Row:
    """One training sequence: `ids` with image tokens expanded; the last `answer` of them are learnt."""

    ids: torch.Tensor  # (T,) int64
    answer: int
    feature: int
    positions: torch.Tensor | None = None  # (3, T) for models with multimodal positions


@dataclass(frozen=True)
class Plan:
    """What one adapter is to learn: rows in training order, in steps, with a learning rate for each step."""

    rows: Sequence[Row]
    steps: Sequence[Sequence[int]]  # per step, the positions in `rows` of its batch
    rates: Sequence[float]  # per step
    features: torch.Tensor  # (F, n, d)
    rank: int
    alpha: float
    start: dict[str, torch.Tensor]  # PEFT state dict that training starts from
    weight_decay: float = 0.0
    max_norm: float | None = 1.0


@dataclass
class Trained:
    """One adapter after training; `state` is a PEFT state dict on the CPU."""

    state: dict[str, torch.Tensor]
    losses: list[float]
    seconds: float  # this adapter's share of the group's time
    steps: int
    tokens: int  # without padding, over all steps


@dataclass
class _Group:
    """Plans being trained together, the longest first, so that those still at work are always the first k."""

    plans: list[Plan]
    bank: Bank
    moments: tuple[torch.Tensor, torch.Tensor]
    decay: torch.Tensor  # (G, 1)
    max_norm: torch.Tensor  # (G,)
    losses: list[list[torch.Tensor]] = field(default_factory=list)


def train(model: nn.Module, names: Sequence[str], plans: Sequence[Plan], tokens: int | None = None,
          progress: Callable[[int, int], None] | None = None) -> list[Trained]:
    """Train one adapter per plan on the linear layers `names` of the frozen `model`; results in the plans' order.

    tokens: how many tokens, padding included, go through the model at once (default: `tokens_at_once`). A batch is cut
    into micro-batches of rows of similar length, whose gradients add up to the batch's; a group that does not fit in
    memory is trained in two halves. progress(step, steps) is called after each step.
    """
    tokens = tokens or tokens_at_once(model, names, plans)
    try:
        return _train(model, names, plans, tokens, progress)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _out_of_memory(error) or len(plans) == 1:
            raise
    _free()
    half = len(plans) // 2
    return [one for part in (plans[:half], plans[half:]) for one in train(model, names, part, tokens, progress)]


def _train(model, names, plans, tokens, progress) -> list[Trained]:
    started = time.perf_counter()
    order = sorted(range(len(plans)), key=lambda g: -len(plans[g].steps))
    group = _start(model, names, [plans[g] for g in order])
    bank, total = group.bank, len(group.plans[0].steps)
    with bank.attached():
        for step in range(total):
            bank.active = sum(len(plan.steps) > step for plan in group.plans)
            tokens = _gradients(model, group, step, tokens)
            _update(group, step)
            if progress is not None:
                progress(step + 1, total)
    seconds = (time.perf_counter() - started) / len(plans)
    losses = [torch.stack(column).tolist() for column in group.losses]
    results: dict[int, Trained] = {}
    for at, g in enumerate(order):
        plan = plans[g]
        state = {key: value.cpu() for key, value in bank.state(at).items()}
        seen = sum(len(plan.rows[i].ids) for batch in plan.steps for i in batch)
        results[g] = Trained(state, losses[at], seconds, len(plan.steps), seen)
    return [results[g] for g in range(len(plans))]


def _start(model: nn.Module, names: Sequence[str], plans: list[Plan]) -> _Group:
    bank = Bank(model, names, [plan.rank for plan in plans], [plan.alpha for plan in plans])
    for g, plan in enumerate(plans):
        bank.load(g, plan.start)
    decay = torch.tensor([[plan.weight_decay] for plan in plans]).to(bank.params)
    limits = [float("inf") if plan.max_norm is None else plan.max_norm for plan in plans]
    moments = (torch.zeros_like(bank.params), torch.zeros_like(bank.params))
    return _Group(plans, bank, moments, decay, torch.tensor(limits).to(bank.params), [[] for _ in plans])


def _gradients(model: nn.Module, group: _Group, step: int, tokens: int) -> int:
    """Fill the bank's gradients and note the losses of one step; smaller micro-batches if memory runs out.

    Returns the number of tokens at once that worked.
    """
    bank = group.bank
    while True:
        bank.grads.zero_()
        losses = torch.zeros(bank.active, dtype=bank.params.dtype, device=bank.device)
        try:
            for ids, positions, features, places, targets, weights in micro_batches(group.plans[: bank.active], step,
                                                                                   tokens, bank.device):
                embeddings = sequences.embed(model, ids, features)
                bank.places = places
                hidden = model.model(inputs_embeds=embeddings, position_ids=positions,
                                     use_cache=False).last_hidden_state
                logits = model.get_output_embeddings()(pick(hidden, places))
                loss = _cross_entropy(logits, targets).mul(weights).sum(dim=1)
                loss.sum().backward()
                losses += loss.detach()
            break
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _out_of_memory(error) or tokens <= _least(group, step):
                raise
        embeddings = hidden = logits = loss = None
        _free()
        tokens = max(_least(group, step), tokens // 2)
    bank.places = None
    for g, loss in enumerate(losses):
        group.losses[g].append(loss)
    return tokens


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(G, L, V), (G, L) -> (G, L), at least in float32."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def micro_batches(plans: Sequence[Plan], step: int, tokens: int, device: torch.device | str) -> Iterator[tuple]:
    """The batches of one step, cut into pieces of at most `tokens` tokens (but at least one row per plan).

    Rows are sorted by length within each plan's batch, so a piece holds rows of similar length and little padding.
    Yields ids (k * b, T), positions (3, k * b, T) or None, features (k * b, n, d), places (k, L) of the states that
    predict an answer's token among the k * b * T, targets (k, L), and weights (k, L): one over the number of answer
    tokens in the plan's whole batch, and 0 at the places that only fill up (distinct ones, which get no gradient).
    """
    batches = [sorted(plan.steps[step], key=lambda i, plan=plan: -len(plan.rows[i].ids)) for plan in plans]
    counts = [sum(plan.rows[i].answer for i in batch) for plan, batch in zip(plans, batches, strict=True)]
    longest = max(map(len, batches))
    start = 0
    while start < longest:
        length = max(len(plan.rows[batch[start]].ids) for plan, batch in zip(plans, batches, strict=True)
                     if start < len(batch))
        size = min(longest - start, max(1, tokens // (len(plans) * length)))
        yield _piece(plans, [batch[start : start + size] for batch in batches], counts, size, device)
        start += size


def _piece(plans, batches, counts, size, device) -> tuple:
    rows, features, learnt = [], [], []
    for plan, batch in zip(plans, batches, strict=True):
        filled = [*batch, *[plan.steps[0][0]] * (size - len(batch))]  # a shorter batch is filled with unlearnt rows
        rows += [plan.rows[i] for i in filled]
        learnt += [len(batch)]
        features.append(plan.features[[plan.rows[i].feature for i in filled]])
    ids = sequences.pad([row.ids for row in rows])
    labels = torch.full_like(ids, IGNORED)
    for at, row in enumerate(rows):
        if at % size < learnt[at // size]:
            end = len(row.ids)
            labels[at, end - row.answer - 1 : end - 1] = row.ids[end - row.answer :]  # a state predicts its next token
    places, targets, weights = _learnt_places(labels.view(len(plans), -1), counts)
    positions = None if rows[0].positions is None else sequences.pad([row.positions for row in rows]).to(device)
    return (ids.to(device), positions, torch.cat([part.to(device) for part in features]), places.to(device),
            targets.to(device), weights.to(device))


def _learnt_places(labels: torch.Tensor, counts: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """labels: (k, M) with IGNORED -> places in k * M, targets and weights, each (k, L); see `micro_batches`."""
    learnt = labels != IGNORED
    most = max(1, int(learnt.sum(dim=1).max()))
    within = learnt.int().argsort(dim=1, descending=True, stable=True)[:, :most].sort(dim=1).values
    targets = labels.gather(1, within)
    weights = (targets != IGNORED) / torch.tensor(counts).clamp(min=1).unsqueeze(1)
    places = within + torch.arange(len(labels)).unsqueeze(1) * labels.shape[1]
    return places, targets.clamp(min=0), weights


def _update(group: _Group, step: int) -> None:
    """Clip each adapter's gradient by its own norm, then AdamW (Loshchilov and Hutter 2019), in torch.optim's order."""
    k = group.bank.active
    params, grads = group.bank.params[:k], group.bank.grads[:k]
    first, second = (moment[:k] for moment in group.moments)
    rates = torch.tensor([[plan.rates[step]] for plan in group.plans[:k]], dtype=torch.float64)
    norms = torch.linalg.vector_norm(grads, dim=1)
    grads.mul_((group.max_norm[:k] / (norms + 1e-6)).clamp(max=1.0).unsqueeze(1))
    params.mul_(1 - rates.to(params) * group.decay[:k])
    first.lerp_(grads, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(grads, grads, value=1 - BETAS[1])
    corrections = [1 - beta ** (step + 1) for beta in BETAS]
    scale = second.sqrt().div_(corrections[1] ** 0.5).add_(EPSILON)
    params.sub_(first / scale * (rates / corrections[0]).to(params))
    group.bank.refresh()


def tokens_at_once(model: nn.Module, names: Sequence[str], plans: Sequence[Plan]) -> int:
    """How many tokens to send through the model at once: what fits in memory, and on a CPU what stays near its caches."""
    device = next(model.parameters()).device
    free = _free_bytes(device) * 0.8 - len(plans) * adapter_bytes(model, names, max(plan.rank for plan in plans))
    return max(1, min(4096 if device.type == "cpu" else 65536, int(free / token_bytes(model))))


def largest_group(model: nn.Module, names: Sequence[str], rank: int, length: int) -> int:
    """How many adapters of `rank` fit in memory beside the model with one row of `length` tokens each; at least 1."""
    device = next(model.parameters()).device
    each = adapter_bytes(model, names, rank) + token_bytes(model) * (1 if device.type == "cpu" else length)
    return max(1, int(_free_bytes(device) * 0.8 / each))


def adapter_bytes(model: nn.Module, names: Sequence[str], rank: int) -> int:
    """One adapter's share of a bank: weights, gradients, two moments, one working copy, one low-precision copy."""
    modules = dict(model.named_modules())
    return sum(rank * sum(modules[name].weight.shape) for name in names) * 6 * 4


def token_bytes(model: nn.Module) -> int:
    """What one token's states, kept for the backward pass, take at most; counted from the layers' sizes."""
    config = model.config.get_text_config()
    item = next(model.parameters()).element_size()
    narrow, wide = config.hidden_size, config.intermediate_size
    return config.num_hidden_layers * (narrow * (10 * item + 24) + wide * 5 * item)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    import psutil  # accelerate depends on it

    return psutil.virtual_memory().available


def _least(group: _Group, step: int) -> int:
    """Tokens of the smallest micro-batch of a step: one row of each plan."""
    return group.bank.active * max(len(plan.rows[i].ids) for plan in group.plans[: group.bank.active]
                                   for i in plan.steps[step])


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; on a CPU torch says so with a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
