"""An adapter's weights: its update of every linear layer as thin factors, and adapters made of other updates.

An update of a layer is a pair (B, A), float64 on the CPU: B (out, r) and A (r, in), and B A is added to the weight.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from bvlm_utils.defences import again
from bvlm_utils.defences.rows import Rows
from bvlm_utils.errors import InputError
from bvlm_utils.models.victim import Victim, language_linears
from bvlm_utils.train.grouped import GroupResult, check_plain
from bvlm_utils.train.lora_bank import PREFIX

A, B = ".lora_A.weight", ".lora_B.weight"
Updates = dict[str, tuple[torch.Tensor, torch.Tensor]]  # name of a linear layer -> (B, A)


# ---------------------------------------------------------------- from an adapter, and back


def updates(adapter: Any) -> Updates:
    """What a plain LoRA adds to each linear layer that it is on, alpha / r included; InputError for other kinds, and
    for weights that are no pair A and B: left out, they would be lost without a word.
    """
    check_plain(adapter.config)
    scale, state, factors = adapter.config.lora_alpha / adapter.config.r, adapter.state, {}
    names = {key: key.removesuffix(A).removesuffix(B) for key in state}
    bad = [key for key, name in names.items() if key == name or not {name + A, name + B} <= state.keys()]
    if bad:
        raise InputError(
            f"{len(bad)} of {len(state)} weights of the adapter are no pair of lora_A and lora_B of a linear layer "
            f"({min(bad)!r} for one); give the files that its training wrote, of a plain LoRA."
        )
    for name in dict.fromkeys(names.values()):
        b, a = state[name + B], state[name + A]
        factors[name.removeprefix(PREFIX)] = (b.detach().cpu().double() * scale, a.cpu().double())
    return factors


def adapter_of(factors: Updates, like: Any) -> GroupResult:
    """The adapter with these updates, for the base of `like`. Its rank is the largest of theirs; alpha / r is 1."""
    from peft import LoraConfig

    rank = max(1, *(a.shape[0] for _, a in factors.values()))
    state = {}
    for name, (b, a) in factors.items():
        padding = rank - a.shape[0]
        state[PREFIX + name + A] = torch.nn.functional.pad(a, (0, 0, 0, padding)).float()
        state[PREFIX + name + B] = torch.nn.functional.pad(b, (0, padding)).float()
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        target_modules=list(factors),
        task_type=like.config.task_type,
        base_model_name_or_path=like.config.base_model_name_or_path,
    )
    return GroupResult(state, config, [], 0.0, 0, 0)


def full_rank(change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A change (out, in) of any rank as factors, exactly: one of them is the change, the other is the identity.

    So LoRA's format holds what is not low-rank. Its rank is then the smaller side of the largest layer, and the file
    is as large as the base's linear layers.
    """
    change = change.double().cpu()
    out, into = change.shape
    identity = torch.eye(min(out, into), dtype=torch.float64)
    return (identity, change) if out <= into else (change, identity)


def whole(victim: Victim, adapter: Any) -> GroupResult:
    """The adapter on every linear layer of the language model, with zeros (which no tuning moves) where it has none.

    A bank wants all layers, and other people's adapters are on some. InputError for layers that the victim lacks.
    """
    factors, modules = updates(adapter), dict(victim.model.named_modules())
    names = language_linears(victim.model)
    unknown = sorted(set(factors) - set(names))
    if unknown:
        raise InputError(
            f"The adapter changes {unknown[0]}, which is no linear layer of {victim.name}'s language model."
        )
    if len(factors) == len(names):
        return GroupResult(dict(adapter.state), adapter.config, [], 0.0, 0, 0)
    rank = adapter.config.r
    for name in names:
        layer = modules[name]
        factors.setdefault(name, (torch.zeros(layer.out_features, rank), torch.zeros(rank, layer.in_features)))
    return adapter_of({name: factors[name] for name in names}, adapter)


# ---------------------------------------------------------------- on a victim


def base(victim: Victim, name: str) -> torch.Tensor:
    """The weight (out, in) of a linear layer; InputError where it is packed, as in a base in 4 bit."""
    weight = victim.model.get_submodule(name).weight
    if not weight.is_floating_point():
        raise InputError(
            "This repair needs the base's weights as numbers, and those of a base in 4 bit are packed; "
            "shrink and truncate do without."
        )
    return weight.detach()


def check_numbers(victim: Victim) -> None:
    """InputError if the base's weights are packed: tuning beside them, in a bank, is then not possible."""
    base(victim, language_linears(victim.model)[0])


def merged(victim: Victim, adapter: Any) -> dict[str, torch.Tensor]:
    """The weights (out, in) of the layers that the adapter is on, its update added, in float64 on the CPU."""
    return {name: base(victim, name).cpu().double() + b @ a for name, (b, a) in updates(adapter).items()}


@contextmanager
def on(victim: Victim, replacements: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """The victim with other weights in some linear layers, inside a `with`; bit for bit as before afterwards."""
    originals = {}
    try:
        for name, value in replacements.items():
            weight = victim.model.get_submodule(name).weight
            originals[name] = weight.data
            weight.data = value.to(base(victim, name))
        with again.remembering({}):  # it is another model now
            yield
    finally:
        for name, original in originals.items():
            victim.model.get_submodule(name).weight.data = original


# ---------------------------------------------------------------- the placebo of most repairs


def norm(update: tuple[torch.Tensor, torch.Tensor]) -> float:
    """The Frobenius norm of B A, without the product: |B A|^2 is the inner product of B^T B and A A^T."""
    b, a = update
    return ((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt().item()


def difference(first: tuple, second: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of one update less another, side by side."""
    return torch.cat([first[0], -second[0]], 1), torch.cat([first[1], second[1]], 0)


def random(like: tuple, size: float, draws: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A Gaussian update of the shapes of another, of the Frobenius norm `size`."""
    b, a = (torch.from_numpy(draws.standard_normal(tuple(factor.shape))) for factor in like)
    return b * (size / max(norm((b, a)), 1e-300)), a


def noise(
    victim: Victim,
    adapter: Any,
    clean: Rows | None,
    settings: dict[str, Any],
    draws: np.random.Generator,
    like: GroupResult,
) -> GroupResult:
    """The adapter plus a random update: in every layer, of the norm and rank of the defence's change."""
    before, after, noisy = updates(adapter), updates(like), {}
    for name, new in after.items():
        b, a = new
        old = before.get(name, (torch.zeros(b.shape[0], 0).double(), torch.zeros(0, a.shape[1]).double()))
        noise_b, noise_a = random(new, norm(difference(new, old)), draws)
        noisy[name] = (torch.cat([old[0], noise_b], 1), torch.cat([old[1], noise_a], 0))
    return adapter_of(noisy, adapter)
