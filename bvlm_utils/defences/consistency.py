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
    batches = -(-len(rows) // BATCH)
    order = [
        positions
        for _ in range(settings["epochs"])
        for positions in np.array_split(draws.permutation(len(rows)), batches)
    ]
    starts, longest = [weights.whole(victim, adapter) for adapter in adapters], padded(victim, rows)[0].shape[1]
    names, rank = language_linears(victim.model), max(start.config.r for start in starts)
    size = memory.largest_group(victim.model, names, rank, 2 * BATCH * longest)  # two passes are kept for one step
    groups = [starts[first : first + size] for first in range(0, len(starts), size)]
    return [result for group in groups for result in _together(victim, group, rows, order, settings)]


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
        for positions, rate in zip(order, learning_rates(plan, len(order)), strict=True):
            optimiser.param_groups[0]["lr"] = rate
            losses.append(_step(victim, bank, rows.take(positions), settings))
            norms = torch.linalg.vector_norm(bank.grads, dim=1, keepdim=True)
            bank.grads.mul_((plan.max_grad_norm / (norms + 1e-6)).clamp(max=1.0))
            optimiser.step()
            bank.refresh()
    curves = torch.stack(losses, 1).tolist()
    return [
        GroupResult({k: v.cpu() for k, v in bank.state(g).items()}, start.config, curves[g], 0.0, len(order), 0)
        for g, start in enumerate(starts)
    ]


def _step(victim: Victim, bank: Any, rows: Rows, settings: dict[str, Any]) -> torch.Tensor:
    """Fill the bank's gradients for one step; the loss of each adapter (G,)."""
    run, inputs = prepared(victim, rows, settings, len(bank.ranks))
    bank.anchor.requires_grad_(False)  # inputs are disturbed, and adapters stay
    disturbed_inputs = disturbed(run, inputs, settings)
    bank.anchor.requires_grad_(True)
    bank.grads.zero_()
    loss = run.cross_entropy(inputs) + settings["weight"] * run.disagreement(disturbed_inputs)
    loss.sum().backward()
    return loss.detach().cpu()


def prepared(victim: Victim, rows: Rows, settings: dict[str, Any], groups: int) -> tuple["Run", torch.Tensor]:
    """Rows as a batch for each of G adapters, and the embeddings that enter the language model (G * b, T, d)."""
    ids, real, positions, features = padded(victim, rows)
    inputs = embeddings.embed(victim.model, ids, features).repeat(groups, 1, 1)
    is_answer = torch.zeros_like(real)
    for n, answer in enumerate(rows.answers):
        end = int(real[n].sum())
        is_answer[n, end - len(victim.answer_ids(answer)) : end] = True
    targets = ids.masked_fill(~is_answer, IGNORED).repeat(groups, 1)
    positions = None if positions is None else positions.repeat(1, groups, 1)
    image = (ids == victim.image_id).repeat(groups, 1)
    return Run(victim, positions, real.repeat(groups, 1), image, settings, groups, targets), inputs


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

    def states(self, inputs: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The normed last states, and the states after each layer: (G * b, T, d)."""
        with _after_layers(self.model) as layer_states:
            hidden = self.model.model(
                inputs_embeds=inputs, attention_mask=self.real.long(), position_ids=self.positions, use_cache=False
            ).last_hidden_state
        return hidden, layer_states

    def cross_entropy(self, inputs: torch.Tensor) -> torch.Tensor:
        """The mean over each adapter's answer tokens, (G,)."""
        hidden, targets = self.states(inputs)[0][:, :-1], self.targets[:, 1:]
        is_answer = targets != IGNORED
        logits = self.model.get_output_embeddings()(hidden[is_answer]).float()
        losses = F.cross_entropy(logits, targets[is_answer], reduction="none")
        return losses.view(self.groups, -1).mean(1)  # every adapter has the same rows

    def disagreement(self, inputs: torch.Tensor) -> torch.Tensor:
        """C of each adapter, (G,)."""
        layer_states = self.states(inputs)[1][self.first :]
        distances = sum(
            1 - F.cosine_similarity(a, b, dim=-1) for a, b in zip(layer_states, layer_states[1:], strict=False)
        )
        distances = distances / (len(layer_states) - 1)  # (G * b, T)
        total = torch.zeros(self.groups, device=distances.device, dtype=distances.dtype)
        for tokens, weight in self.parts:
            sums = (distances * tokens).view(self.groups, -1).sum(1)
            total = total + weight * sums / tokens.view(self.groups, -1).sum(1).clamp(min=1)
        return total


def disturbed(run: Run, inputs: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    """Embeddings within epsilon of `inputs` at which layers disagree more; the step is 2.5 epsilon over the steps."""
    epsilon, steps = settings["epsilon"], settings["sign_steps"]
    size = epsilon if steps == 1 else 2.5 * epsilon / steps  # as Madry et al. 2018 walk; RACER does not say
    result = inputs.clone()
    for _ in range(steps):
        result.requires_grad_(True)
        (gradient,) = torch.autograd.grad(run.disagreement(result).sum(), result)
        result = result.detach() + size * gradient.sign()
        result = inputs + (result - inputs).clamp(-epsilon, epsilon)
    return result


@contextmanager
def _after_layers(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What leaves each layer of the language model, before any last norm, inside a `with`."""
    layer_states: list[torch.Tensor] = []

    def leave(module, inputs, output):
        layer_states.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(leave) for layer in model.get_decoder().layers]
    try:
        yield layer_states
    finally:
        for handle in handles:
            handle.remove()
