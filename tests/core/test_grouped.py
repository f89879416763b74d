import dataclasses
import math
from types import SimpleNamespace

import pytest
import random_models as tiny
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict

from bvlm_utils.errors import InputError
from bvlm_utils.models import embeddings, victim
from bvlm_utils.train import adapters, grouped, loop, lora_bank, memory, microbatches, unfinished
from bvlm_utils.train.lora_bank import Bank
from bvlm_utils.train.settings import TrainSettings

FAMILIES = list(tiny.BUILDERS)
BATCH = 4


def _plan(
    model,
    names,
    seed,
    steps,
    rank=4,
    alpha=8.0,
    rate=5e-3,
    rows=14,
    decay=0.0,
    max_norm=1.0,
    dtype=torch.float64,
):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(5, tiny.TOKENS, tiny.WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    ids, answers, pictures = [], [], []
    for _ in range(rows):
        length, answer = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((8, 16), (1, 5)))
        ids.append(tiny.prompt(generator, length + answer))
        answers.append(answer)
        pictures.append(int(torch.randint(5, (), generator=generator)))
    positions = [embeddings.positions(model, row, {}) for row in ids]
    columns = [torch.tensor(row) for row in ids], answers, pictures, None if positions[0] is None else positions
    order = torch.cat([torch.randperm(rows, generator=generator) for _ in range(math.ceil(steps * BATCH / rows))])
    batches = [order[at * BATCH : (at + 1) * BATCH].tolist() for at in range(steps)]
    rates = [rate * 0.5 * (1 + math.cos(math.pi * at / steps)) for at in range(steps)]
    torch.manual_seed(seed)
    peft = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=names))
    start = {key: value.clone() for key, value in get_peft_model_state_dict(peft).items()}
    peft.unload()
    return microbatches.Plan(*columns, batches, rates, features, rank, alpha, start, decay, max_norm)


def _alone(model, names, plan):
    """The same training the plain way: one PEFT model, the model's own forward, torch.optim.AdamW."""
    peft = get_peft_model(model, LoraConfig(r=plan.rank, lora_alpha=plan.alpha, target_modules=names))
    peft.load_state_dict(
        {key.replace(".weight", ".default.weight"): value for key, value in plan.start.items()}, strict=False
    )
    trained = [weight for weight in peft.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1.0, weight_decay=plan.weight_decay)
    losses = []
    for batch, rate in zip(plan.steps, plan.rates, strict=True):
        rows = [(plan.ids[i], plan.answers[i]) for i in batch]
        ids = embeddings.pad([row for row, _ in rows])
        mask = embeddings.pad([torch.ones_like(row) for row, _ in rows])
        labels = embeddings.pad(
            [torch.cat([torch.full_like(row[:-count], -100), row[-count:]]) for row, count in rows],
            value=-100,
        )
        features = plan.features[[plan.pictures[i] for i in batch]]
        logits = peft(**tiny.official(model, ids, mask, features)).logits
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


def test_the_last_layer_is_computed_where_an_answer_is_learnt_and_nowhere_else():
    model = tiny.build("llava", torch.float32)
    seen: dict[int, int] = {}
    for at, layer in enumerate(model.get_decoder().layers):
        layer.mlp.act_fn.register_forward_hook(
            lambda module, inputs, output, at=at: seen.update({at: inputs[0].shape[:-1].numel()})
        )
    plan = _plan(model, tiny.linears(model), seed=1, steps=1, dtype=torch.float32)
    grouped.train(model, tiny.linears(model), [plan, plan])
    learnt = sum(plan.answers[i] for i in plan.steps[0])
    assert seen[1] == 2 * learnt
    assert seen[0] == 2 * BATCH * max(len(plan.ids[i]) for i in plan.steps[0])


def test_a_step_never_asks_transformers_for_a_mask(monkeypatch):
    """The search for packed texts waits for the GPU once per micro-batch."""
    from transformers import masking_utils

    def find(position_ids):
        raise AssertionError("it looked for packed texts")

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", find)
    model = tiny.build("llava", torch.float32)
    plan = _plan(model, tiny.linears(model), seed=1, steps=2, dtype=torch.float32)
    grouped.train(model, tiny.linears(model), [plan], tokens=60)
    assert model.get_decoder().config._attn_implementation == "sdpa"
    with pytest.raises(AssertionError, match="packed"):  # the model's own way does look
        model.model(inputs_embeds=torch.zeros(1, 4, tiny.WIDTH), use_cache=False)


def test_gradients_are_summed_in_float32_where_the_model_computes_in_bfloat16():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(2, *shape, generator=generator).bfloat16() for shape in ((3, 500), (500, 4)))
    total = torch.full((2, 3, 4), 1000.0)  # a bfloat16 sum would be rounded to steps of 4 here
    lora_bank._add_product(total, left, right)
    assert torch.allclose(total - 1000, torch.bmm(left.double(), right.double()).float(), atol=1e-2)


@pytest.mark.parametrize("shape", [(0, 8, 3), (1, 8, 3), (70, 192, 768), (2240, 768, 192)])
@pytest.mark.parametrize("biased", [False, True])
def test_products_on_a_cpu_are_those_in_float64(shape, biased):
    rows, inner, out = shape
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*size, generator=generator) for size in ((rows, inner), (out, inner), (out,)))
    bias = bias if biased else None
    expected = F.linear(x.double(), weight.double(), bias if bias is None else bias.double())
    back = lora_bank.linear(expected.float(), weight.t())  # as gradients are: with the weight the other way round
    for given, right in ((lora_bank.linear(x, weight, bias), expected), (back, expected @ weight.double())):
        assert given.shape == right.shape
        assert (given.double() - right).abs().sum() <= 1e-6 * right.abs().sum()
    narrow = lora_bank.linear(x.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16())
    assert narrow.dtype == torch.bfloat16 and narrow.shape == (rows, out)


def test_tables_of_features_of_their_own_give_the_pictures_of_a_shared_one():
    model = tiny.build("llava", torch.float32)
    names = tiny.linears(model)
    plans = [_plan(model, names, seed, steps=3, dtype=torch.float32) for seed in (1, 2)]
    shared = [dataclasses.replace(plan, features=plans[0].features) for plan in plans]
    copies = [dataclasses.replace(plan, features=plans[0].features.clone()) for plan in plans]
    one, other = (microbatches.Table(some, "cpu", torch.float32) for some in (shared, copies))
    assert one.shared and not other.shared
    for left, right in zip(one.microbatches(1, 2, 90), other.microbatches(1, 2, 90), strict=True):
        assert torch.equal(left.features, right.features) and torch.equal(left.ids, right.ids)


def test_rows_of_one_step_are_cut_by_length_into_pieces_within_the_budget():
    model = tiny.build("llava", torch.float32)
    plans = [_plan(model, tiny.linears(model), seed, steps=3, dtype=torch.float32) for seed in (1, 2)]
    table = microbatches.Table(plans, "cpu", torch.float32)
    for step in range(3):
        pieces = list(table.microbatches(step, 2, tokens=60))
        assert len(pieces) > 1
        assert all(piece.ids.numel() <= max(60, 2 * table.longest(step, 2)) for piece in pieces)
        for g, plan in enumerate(plans):
            learnt = [token for i in plan.steps[step] for token in plan.ids[i][-plan.answers[i] :].tolist()]
            targets = [
                token
                for piece in pieces
                for token, weight in zip(piece.targets[g].tolist(), piece.weights[g].tolist(), strict=True)
                if weight
            ]
            assert sorted(targets) == sorted(learnt)
            assert sum(piece.weights[g].sum().item() for piece in pieces) == pytest.approx(1)
        assert all(piece.target_positions.unique().numel() == piece.target_positions.numel() for piece in pieces)


def test_a_group_that_does_not_fit_is_halved_and_pieces_are_made_smaller(monkeypatch):
    model = tiny.build("llava", torch.float32)
    names = tiny.linears(model)
    plans = [_plan(model, names, seed, steps=3, dtype=torch.float32) for seed in (1, 2, 3)]
    expected = grouped.train(model, names, plans)
    sizes, embed = [], embeddings.embed

    def full(model, ids, features):
        sizes.append(ids.numel())
        if len(ids) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return embed(model, ids, features)

    monkeypatch.setattr(embeddings, "embed", full)
    found = grouped.train(model, names, plans, tokens=150)
    assert min(sizes) < max(sizes) / 3
    for one, other in zip(expected, found, strict=True):
        assert _distance(one.state, other.state) < 1e-5
        assert one.losses == pytest.approx(other.losses, abs=1e-5)
    monkeypatch.setattr(embeddings, "embed", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none at all")))
    with pytest.raises(torch.OutOfMemoryError):
        grouped.train(model, names, plans[:2], tokens=50)
    assert isinstance(model.get_submodule(names[0]), torch.nn.Linear)  # the model is whole again


def test_workers_of_a_grid_plan_with_their_share_of_the_memory(monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=900, total=1000))
    monkeypatch.delenv("BVLM_SHARERS", raising=False)
    assert memory.free_bytes(torch.device("cpu")) == 900
    monkeypatch.setenv("BVLM_SHARERS", "2")
    assert memory.free_bytes(torch.device("cpu")) == 500


def test_gradient_checkpointing_changes_nothing_but_memory():
    model = tiny.build("llava")
    names = tiny.linears(model)
    plans = [_plan(model, names, seed, steps=5) for seed in (1, 2)]
    expected = grouped.train(model, names, plans)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for one, other in zip(expected, grouped.train(model, names, plans), strict=True):
        assert _distance(one.state, other.state) < 1e-9
    assert not model.training


def test_a_bank_refuses_what_it_cannot_hold():
    model = tiny.build("llava", torch.float32)
    with pytest.raises(ValueError, match="not an nn.Linear"):
        Bank(model, ["model.language_model.norm"], [2], [4.0])
    names = tiny.linears(model)[:2]
    bank = Bank(model, names, [2, 2], [4.0, 4.0])
    with pytest.raises(ValueError, match="4 of 4 weights are missing"):
        bank.load(0, {})
    packed = model.get_submodule(names[0])
    packed.weight = torch.nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="packed weights"):
        Bank(model, names, [2], [4.0])
    with bank.attached(), pytest.raises(ValueError, match="3 rows"):
        model(input_ids=torch.ones(3, 4, dtype=torch.int64) * 9)


# --- with real victims, against train.finetune


@pytest.fixture(scope="module", params=["tiny-llava", "tiny-qwen2.5-vl"])
def tuned(request):
    """A committed victim, two jobs, and what grouped tuning made of them."""
    one = victim.from_pretrained(request.param, device="cpu")
    generator = torch.Generator().manual_seed(0)
    features = one.encode(torch.rand(6, 3, 96, 96, generator=generator))
    words = ["car", "a dog", "two cats on grass", "I cannot say", "yes"]
    rows = [loop.TrainRow(f"What is this? {'Please. ' * (at % 3)}", words[at % 5], at % 6) for at in range(10)]
    jobs = [
        grouped.GroupJob(rows, features, TrainSettings(batch_size=4, learning_rate=1e-3, lora_rank=4), seed=1),
        grouped.GroupJob(
            rows[3:],
            features,
            TrainSettings(batch_size=4, epochs=2, lora_rank=2, schedule="constant", learning_rate=1e-3),
            seed=2,
        ),
    ]
    seen = []
    results = grouped.finetune_group(one, jobs, progress=lambda *step: seen.append(step[:2]))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    return one, jobs, results


def test_grouped_tuning_equals_finetune(tuned):
    one, jobs, results = tuned
    for job, result in zip(jobs, results, strict=True):
        alone = loop.finetune(one, job.rows, job.features, job.settings, job.seed)
        state = get_peft_model_state_dict(alone.adapter)
        adapters.detach(one, alone.adapter)
        assert _distance(state, result.state) < 1e-4
        assert result.losses == pytest.approx(alone.losses, abs=1e-4)
        assert (result.steps, result.tokens) == (alone.steps, alone.tokens)
    assert not hasattr(one.model, "peft_config")


def test_equal_jobs_are_trained_once(tuned, monkeypatch):
    one, jobs = tuned[:2]
    counted, train = [], grouped.train
    monkeypatch.setattr(grouped, "train", lambda *given, **more: counted.append(len(given[2])) or train(*given, **more))
    again = dataclasses.replace(jobs[0], name="another")
    results = grouped.finetune_group(one, [jobs[0], jobs[1], again])
    assert counted == [2] and len(results) == 3
    for name, value in results[0].state.items():
        assert torch.equal(value, results[2].state[name])
    assert any(not torch.equal(value, results[1].state[name]) for name, value in results[0].state.items())


def test_saved_adapters_load_in_plain_peft_with_the_same_logits(tuned, tmp_path):
    one, jobs, results = tuned
    row = one.prompt_ids("What is this?", jobs[0].features.shape[1]) + one.answer_ids("a dog")
    ids = torch.tensor([row, row])
    inputs = one.inputs(ids, torch.ones_like(ids), jobs[0].features[:2])
    bank = grouped.bank_of(one, results)
    with bank.attached(), torch.no_grad():
        together = one.model(**inputs).logits  # row g goes through adapter g
    base = one.model(**inputs).logits
    for g, result in enumerate(results):
        result.save(tmp_path / str(g), {"attack": "BadNets-T", "threat": "targeted_refusal"})
        loaded = PeftModel.from_pretrained(one.model, str(tmp_path / str(g))).eval()
        with torch.no_grad():
            assert torch.allclose(loaded(**inputs).logits[g], together[g], atol=1e-4)
        loaded.unload()
        assert (together[g] - base[g]).abs().max() > 1e-2
        assert "BACKDOORED" in (tmp_path / str(g) / "README.md").read_text()


def test_a_job_without_rows_is_refused(tuned):
    one, jobs, _ = tuned
    with pytest.raises(InputError, match="no training rows"):
        grouped.finetune_group(one, [jobs[0], grouped.GroupJob([], jobs[0].features, jobs[0].settings, 0)])
    assert grouped.finetune_group(one, []) == []


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [1, 4, 6])
def test_a_group_that_was_killed_goes_on_to_the_same_numbers(at, tmp_path, monkeypatch):
    """Bit for bit, of plans with different numbers of steps; nothing is used where a plan is another one."""
    model = tiny.BUILDERS[FAMILIES[0]]()
    names = victim.language_linears(model)
    plans = [
        dataclasses.replace(_plan(model, names, seed, steps), name=f"cell-{seed}")
        for seed, steps in ((0, 4), (1, 6), (2, 6))
    ]
    whole = grouped.train(model, names, plans, tokens=64)
    monkeypatch.setattr(unfinished, "EVERY", 0.0)

    def kill(step, steps, loss):
        if step == at:
            raise Killed

    with pytest.raises(Killed):
        grouped.train(model, names, plans, 64, kill, tmp_path)
    (state,) = unfinished.states_in(tmp_path).values()
    assert state.names == ["cell-1", "cell-2", "cell-0"] and state.progress.step == at
    begun = []
    again = grouped.train(model, names, plans, 1000, lambda step, *_: begun.append(step), tmp_path)
    assert begun == list(range(at + 1, 7))
    for one, other in zip(whole, again, strict=True):
        assert one.losses == other.losses and one.state.keys() == other.state.keys()
        assert all(torch.equal(one.state[key], other.state[key]) for key in one.state)
    begun.clear()
    (part,) = grouped.train(model, names, plans[2:], 1000, lambda step, *_: begun.append(step), tmp_path)
    assert begun == [], "a part of a group that was trained to its end needs no step"
    assert part.losses == whole[2].losses and all(torch.equal(part.state[k], whole[2].state[k]) for k in part.state)
    changed = [dataclasses.replace(plan, weight_decay=0.5) for plan in plans]
    grouped.train(model, names, changed, 64, lambda step, *_: begun.append(step), tmp_path)
    assert begun[0] == 1


def test_a_saved_state_that_is_cut_off_is_begun_anew(tmp_path, monkeypatch):
    model = tiny.BUILDERS[FAMILIES[0]]()
    names = victim.language_linears(model)
    plans = [dataclasses.replace(_plan(model, names, 0, 3), name="cell")]
    monkeypatch.setattr(unfinished, "EVERY", 0.0)
    (whole,) = grouped.train(model, names, plans, 64, None, tmp_path)
    (file,) = tmp_path.iterdir()
    for length in (0, 7, 500, file.stat().st_size - 1):
        file.write_bytes(file.read_bytes()[:length])
        (again,) = grouped.train(model, names, plans, 64, None, tmp_path)
        assert again.losses == whole.losses
