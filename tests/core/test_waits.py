"""What would make the host wait for a GPU, without one: no step of training may, and decoding looks seldom."""

import dataclasses

import pytest
import random_models as tiny
import torch
from test_decode import _bank, _features, _requests
from test_grouped import _plan
from torch.overrides import TorchFunctionMode

from bvlm_utils.train import decode, grouped

FAMILIES = list(tiny.BUILDERS)
# They need a value of the device on the host; the length of what nonzero and unique give is one, too.
WAITING = {"item", "tolist", "cpu", "numpy", "nonzero", "masked_select", "unique", "unique_consecutive", "equal",
           "allclose", "is_nonzero", "__bool__", "__float__", "__int__", "__index__"}  # fmt: skip


class Waits(TorchFunctionMode):
    """Counts the calls for which a GPU's host would wait."""

    def __init__(self):
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        masked = name in ("__getitem__", "__setitem__") and _is_mask(args[1])
        if name in WAITING or masked:
            self.calls.append(name)
        return func(*args, **(kwargs or {}))


def _is_mask(index) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)


def _counted(work, *arguments, **options):
    with Waits() as waits:
        work(*arguments, **options)
    return waits.calls


@pytest.mark.parametrize("wait", [
    lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: x[x > 0], lambda x: bool(x[0] > 0), lambda x: x.cpu(),
    lambda x: torch.nonzero(x), lambda x: float(x[1]),
])  # fmt: skip
def test_what_waits_is_counted(wait):
    assert len(_counted(wait, torch.arange(3))) == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("home", ["cpu", "meta"])
def test_no_step_of_training_needs_a_value_of_the_device(family, home):
    """On the meta device there are no values: a step that waited for one would fail."""
    model = tiny.build(family, torch.float32)
    names = tiny.linears(model)
    plans = [_plan(model, names, seed, steps=3, dtype=torch.float32) for seed in (1, 2)]
    plans = [dataclasses.replace(plan, features=plan.features.to(home)) for plan in plans]
    group = grouped._Group(model.to("meta"), names, plans)
    with group.bank.attached(), grouped._trainable(model):
        for step in range(3):
            assert grouped._gradients(model, group, step, tokens=60) == 60
            grouped._update(group, step)
    assert group.losses.is_meta and group.bank.params.is_meta
    with pytest.raises(RuntimeError, match="meta"):
        group.losses.tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("choose", [None, lambda logits, owners: logits.argmax(dim=-1)])
def test_decoding_looks_at_what_is_done_every_eighth_token(family, choose, monkeypatch):
    monkeypatch.setattr(decode, "LOOK", {"cpu": decode.LOOK["cuda"]})
    model = tiny.build(family, torch.float32)
    bank, requests = _bank(model, 2), [_requests(1, 4), _requests(2, 4)]

    def calls(tokens):
        options = {"bank": bank, "tokens": 10**6, "choose": choose}
        return _counted(decode.greedy, model, requests, _features(), {tiny.END}, tokens, **options)

    few, many = calls(9), calls(9 + 16)
    assert len(many) - len(few) == 2, many
