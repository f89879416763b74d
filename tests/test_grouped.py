import math

import pytest
import random_models as tiny
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict

from bvlm_utils import grouped, sequences
from bvlm_utils.bank import Bank

FAMILIES = list(tiny.BUILDERS)
BATCH = 4


def _plan(model, names, seed, steps, rank=4, alpha=8.0, rate=5e-3, rows=14, decay=0.0, max_norm=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(5, tiny.TOKENS, tiny.WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    made = []
    for _ in range(rows):
        length, answer = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((8, 16), (1, 5)))
        ids = tiny.prompt(generator, length + answer)
        made.append(grouped.Row(torch.tensor(ids), answer, int(torch.randint(5, (), generator=generator)),
                                sequences.positions(model, ids)))
    order = torch.cat([torch.randperm(rows, generator=generator) for _ in range(math.ceil(steps * BATCH / rows))])
    batches = [order[at * BATCH : (at + 1) * BATCH].tolist() for at in range(steps)]
    rates = [rate * 0.5 * (1 + math.cos(math.pi * at / steps)) for at in range(steps)]
    torch.manual_seed(seed)
    peft = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=names))
    start = {key: value.clone() for key, value in get_peft_model_state_dict(peft).items()}
    peft.unload()
    return grouped.Plan(made, batches, rates, features, rank, alpha, start, decay, max_norm)


def _alone(model, names, plan):
    """The same training the plain way: one PEFT model, the model's own forward, torch.optim.AdamW."""
    peft = get_peft_model(model, LoraConfig(r=plan.rank, lora_alpha=plan.alpha, target_modules=names))
    peft.load_state_dict({key.replace(".weight", ".default.weight"): value for key, value in plan.start.items()},
                         strict=False)
    trained = [weight for weight in peft.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1.0, weight_decay=plan.weight_decay)
    losses = []
    for batch, rate in zip(plan.steps, plan.rates, strict=True):
        rows = [plan.rows[i] for i in batch]
        ids = sequences.pad([row.ids for row in rows])
        mask = sequences.pad([torch.ones_like(row.ids) for row in rows])
        labels = sequences.pad([torch.cat([torch.full_like(row.ids[: -row.answer], -100), row.ids[-row.answer :]])
                                for row in rows], value=-100)
        logits = peft(**tiny.official(model, ids, mask, plan.features[[row.feature for row in rows]])).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        if plan.max_norm:
            torch.nn.utils.clip_grad_norm_(trained, plan.max_norm)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        losses.append(loss.item())
    state = {key: value.clone() for key, value in get_peft_model_state_dict(peft).items()}
    peft.unload()
    return state, losses


def _distance(one, other):
    return max((one[key] - other[key]).abs().max().item() for key in one)


@pytest.mark.parametrize("family", FAMILIES)
def test_grouped_runs_equal_separate_peft_runs_in_float64(family):
    model = tiny.build(family)
    names = tiny.linears(model)
    plans = [
        _plan(model, names, seed=1, steps=50),
        _plan(model, names, seed=2, steps=50, rank=2, alpha=16.0, rate=2e-3, max_norm=0.0),
        _plan(model, names, seed=3, steps=20, rows=3, decay=0.1, max_norm=0.05),
    ]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    # a small budget, so that batches are cut into pieces
    results = grouped.train(model, names, plans, tokens=90)
    for plan, result in zip(plans, results, strict=True):
        state, losses = _alone(model, names, plan)
        assert _distance(plan.start, state) > 1e-3  # it did learn something
        assert set(state) == set(result.state)
        assert _distance(state, result.state) < 1e-6
        assert result.losses == pytest.approx(losses, abs=1e-6)
        assert result.steps == len(plan.steps)
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("family", FAMILIES)
def test_grouped_runs_equal_separate_peft_runs_in_float32(family):
    model = tiny.build(family, torch.float32)
    names = tiny.linears(model)
    plans = [_plan(model, names, seed, steps=10, rate=1e-3, dtype=torch.float32) for seed in (1, 2)]
    for plan, result in zip(plans, grouped.train(model, names, plans), strict=True):
        state, losses = _alone(model, names, plan)
        assert _distance(state, result.state) < 1e-4
        assert result.losses == pytest.approx(losses, abs=1e-4)
