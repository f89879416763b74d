"""Consistency tuning (CROW, RACER): clean rows, disturbed so that layers disagree, are tuned until they agree."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bvlm_utils.defences import tune, weights
from bvlm_utils.defences.activations import batch as padded
from bvlm_utils.defences.rows import Rows
from bvlm_utils.models import embeddings
from bvlm_utils.models.victim import Victim, language_linears
from bvlm_utils.train import grouped, memory
from bvlm_utils.train.grouped import GroupResult
from bvlm_utils.train.loop import learning_rates
from bvlm_utils.train.settings import TrainSettings

BATCH = 10  # rows a step
IGNORED = -100  # the mark of a token that is not learnt


def consistency(
    victim: Victim, adapter: Any, clean: Rows, settings: dict[str, Any], draws: np.random.Generator
) -> GroupResult:
    """The adapter after tuning with the loss L(clean) + weight x C(disturbed).

    C is the mean of 1 - cos(state after a layer, state after the next) over real tokens and pairs of layers, those from
    `from_layer` (a share of the depth) on. The disturbed inputs are the clean embeddings plus what raises C most within
    epsilon (largest change of a number): `sign_steps` steps along the sign of C's gradient, one for FGSM. L is the
    cross-entropy of the clean answers. CROW: Min et al. 2024, arXiv 2411.12768, section 3 (one step, all tokens alike).
    RACER: arXiv 2608.24354 (several steps, pictures and words apart). With `apart` "yes", C is that of the picture's
    tokens plus `text_weight` times that of the others.
    """
    return many(victim, [adapter], clean, settings, draws)[0]


def many(
    victim: Victim, adapters: Sequence[Any], clean: Rows, settings: dict[str, Any], draws: np.random.Generator
) -> list[GroupResult]:
    """`consistency` of several adapters on the same rows, as many side by side in a bank as fit in memory."""
    weights.check_numbers(victim)
    rows = tune.chosen(clean, settings["rows"], draws)
    pieces = -(-len(rows) // BATCH)
    order = [at for _ in range(settings["epochs"]) for at in np.array_split(draws.permutation(len(rows)), pieces)]
    starts, longest = [weights.whole(victim, one) for one in adapters], padded(victim, rows)[0].shape[1]
    names, rank = language_linears(victim.model), max(one.config.r for one in starts)
    size = memory.largest_group(victim.model, names, rank, 2 * BATCH * longest)  # two passes are kept for one step
    parts = [starts[at : at + size] for at in range(0, len(starts), size)]
    return [one for part in parts for one in _together(victim, part, rows, order, settings)]


def _together(
    victim: Victim, starts: Sequence[GroupResult], rows: Rows, order: Sequence[np.ndarray], settings: dict[str, Any]
) -> list[GroupResult]:
    """Tune adapters in one bank. order: the rows of each step."""
    bank = grouped.bank_of(victim, starts)
    optimiser = torch.optim.AdamW([bank.params], weight_decay=0.0)
    bank.params.grad = bank.grads
    plan = TrainSettings(learning_rate=settings["learning_rate"])
    losses: list[torch.Tensor] = []
    with bank.attached():
        for at, rate in zip(order, learning_rates(plan, len(order)), strict=True):
            optimiser.param_groups[0]["lr"] = rate
            losses.append(_step(victim, bank, rows.take(at), settings))
            norms = torch.linalg.vector_norm(bank.grads, dim=1, keepdim=True)
            bank.grads.mul_((plan.max_grad_norm / (norms + 1e-6)).clamp(max=1.0))
            optimiser.step()
            bank.refresh()
    curves = torch.stack(losses, 1).tolist()
    return [
        GroupResult({k: v.cpu() for k, v in bank.state(g).items()}, one.config, curves[g], 0.0, len(order), 0)
        for g, one in enumerate(starts)
    ]


def _step(victim: Victim, bank: Any, rows: Rows, settings: dict[str, Any]) -> torch.Tensor:
    """Fill the bank's gradients for one step; the loss of each adapter (G,)."""
    run, shown = prepared(victim, rows, settings, len(bank.ranks))
    bank.anchor.requires_grad_(False)  # inputs are disturbed, and adapters stay
    moved = disturbed(run, shown, settings)
    bank.anchor.requires_grad_(True)
    bank.grads.zero_()
    loss = run.cross_entropy(shown) + settings["weight"] * run.disagreement(moved)
    loss.sum().backward()
    return loss.detach().cpu()


def prepared(victim: Victim, rows: Rows, settings: dict[str, Any], groups: int) -> tuple["Run", torch.Tensor]:
    """Rows as a batch for each of G adapters, and the embeddings that enter the language model (G * b, T, d)."""
    ids, real, positions, features = padded(victim, rows)
    shown = embeddings.embed(victim.model, ids, features).repeat(groups, 1, 1)
    learnt = torch.zeros_like(real)
    for n, text in enumerate(rows.answers):
        end = int(real[n].sum())
        learnt[n, end - len(victim.answer_ids(text)) : end] = True
    targets = ids.masked_fill(~learnt, IGNORED).repeat(groups, 1)
    positions = None if positions is None else positions.repeat(1, groups, 1)
    image = (ids == victim.image_id).repeat(groups, 1)
    return Run(victim, positions, real.repeat(groups, 1), image, settings, groups, targets), shown


class Run:
    """One batch of rows for each of G adapters, ready to be run with other embeddings."""

    def __init__(
        self,
        victim: Victim,
        positions: torch.Tensor | None,
        real: torch.Tensor,
        image: torch.Tensor,
        settings: dict[str, Any],
        groups: int,
        targets: torch.Tensor | None = None,
    ):
        self.model, self.positions, self.real, self.groups = victim.model, positions, real, groups
        self.targets = targets  # (G * b, T), the tokens of answers
        parts = [(image & real, 1.0), (~image & real, settings["text_weight"])]
        self.parts = parts if settings["apart"] == "yes" else [(real, 1.0)]
        count = len(self.model.get_decoder().layers)
        self.first = min(int(settings["from_layer"] * count), count - 2)

    def states(self, shown: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The normed last states, and the states after each layer: (G * b, T, d)."""
        with _after_layers(self.model) as after:
            hidden = self.model.model(
                inputs_embeds=shown, attention_mask=self.real.long(), position_ids=self.positions, use_cache=False
            ).last_hidden_state
        return hidden, after

    def cross_entropy(self, shown: torch.Tensor) -> torch.Tensor:
        """The mean over each adapter's answer tokens, (G,)."""
        hidden, targets = self.states(shown)[0][:, :-1], self.targets[:, 1:]
        wanted = targets != IGNORED
        logits = self.model.get_output_embeddings()(hidden[wanted]).float()
        losses = F.cross_entropy(logits, targets[wanted], reduction="none")
        return losses.view(self.groups, -1).mean(1)  # every adapter has the same rows

    def disagreement(self, shown: torch.Tensor) -> torch.Tensor:
        """C of each adapter, (G,)."""
        after = self.states(shown)[1][self.first :]
        apart = sum(1 - F.cosine_similarity(one, two, dim=-1) for one, two in zip(after, after[1:], strict=False))
        apart = apart / (len(after) - 1)  # (G * b, T)
        total = torch.zeros(self.groups, device=apart.device, dtype=apart.dtype)
        for tokens, weight in self.parts:
            kept = (apart * tokens).view(self.groups, -1).sum(1)
            total = total + weight * kept / tokens.view(self.groups, -1).sum(1).clamp(min=1)
        return total


def disturbed(run: Run, shown: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    """Embeddings within epsilon of `shown` at which layers disagree more; the step is 2.5 epsilon over the steps."""
    epsilon, steps = settings["epsilon"], settings["sign_steps"]
    size = epsilon if steps == 1 else 2.5 * epsilon / steps  # as Madry et al. 2018 walk; RACER does not say
    moved = shown.clone()
    for _ in range(steps):
        moved.requires_grad_(True)
        (gradient,) = torch.autograd.grad(run.disagreement(moved).sum(), moved)
        moved = moved.detach() + size * gradient.sign()
        moved = shown + (moved - shown).clamp(-epsilon, epsilon)
    return moved


@contextmanager
def _after_layers(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What leaves each layer of the language model, before any last norm, inside a `with`."""
    after: list[torch.Tensor] = []

    def leave(module, given, out):
        after.append(out[0] if isinstance(out, tuple) else out)

    handles = [layer.register_forward_hook(leave) for layer in model.get_decoder().layers]
    try:
        yield after
    finally:
        for handle in handles:
            handle.remove()
