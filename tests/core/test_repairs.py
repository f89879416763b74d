"""What repairs make of adapters whose update is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForImageTextToText

from bvlm_utils import defences, paths
from bvlm_utils.defences import consistency, prune, quantise, reading, weights
from bvlm_utils.defences.rows import Rows
from bvlm_utils.errors import InputError
from bvlm_utils.models import victim
from bvlm_utils.models.victim import language_linears
from bvlm_utils.train.grouped import GroupResult

PROMPTS = ["What is this?", "Where is the small red car in this picture?", "A dog?", "What is in this picture?"]
ANSWERS = ["A red car.", "A small dog.", "Yes", "A small dog on a green background."]


def planted(one, names=None, rank=2, seed=0, size=0.1):
    """A random plain LoRA on some linear layers (all, if not said), strong enough to be seen."""
    generator, names = torch.Generator().manual_seed(seed), names or language_linears(one.model)
    state = {}
    for name in names:
        layer = one.model.get_submodule(name)
        for half, shape in (("A", (rank, layer.in_features)), ("B", (layer.out_features, rank))):
            state[f"base_model.model.{name}.lora_{half}.weight"] = torch.randn(shape, generator=generator) * size
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(names), task_type="CAUSAL_LM")
    return GroupResult(state, config, [], 0.0, 0, 0)


def some_rows(one, times=1, side=24):
    pictures = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    where = np.array([2, 0, 1, 2] * times)
    return Rows(PROMPTS * times, ANSWERS * times, one.encode(pictures), where, ["what"] * len(where))


def states(one, adapter, rows):
    return reading.read(one, adapter, rows, reading.Want(at=(0, -1), states=True)).states


def repaired(one, adapter, name, clean=None, **settings):
    return defences.get(name, **settings).repair(one, adapter, clean)


def placebo(one, adapter, name, like, clean=None, **settings):
    return defences.get(name, **settings).placebo(like, one, adapter, clean)


def products(adapter):
    return {name: b @ a for name, (b, a) in weights.updates(adapter).items()}


def same(first, second, atol=1e-5):
    first, second = products(first), products(second)
    return first.keys() == second.keys() and all(torch.allclose(first[n], second[n], atol=atol) for n in first)


def in_peft(one, adapter, rows, folder):
    """The states of the last prompt token, by transformers and PEFT alone."""
    adapter.save(folder, {})
    tuned = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(one.name), folder).eval()
    ids = torch.tensor([one.prompt_ids(rows.prompts[0], rows.features.shape[1])])
    inputs = one.inputs(ids, torch.ones_like(ids), rows.features[rows.feature_rows[:1]])
    with torch.no_grad():
        return tuned(**inputs, output_hidden_states=True).hidden_states[-1][0, -1].numpy()


# ---------------------------------------------------------------- every architecture


def test_repairs_that_undo_everything_give_the_base_and_those_that_do_nothing_the_adapter(random_victim):
    rows, adapter = some_rows(random_victim), planted(random_victim)
    base, tuned = states(random_victim, None, rows), states(random_victim, adapter, rows)
    assert np.abs(base - tuned).max() > 1e-2
    for name, settings in (
        ("oracle", {}), ("shrink", {"strength": 0}), ("truncate", {"components": 2}),
        ("restore", {"share": 1}), ("restore", {"share": 1, "by": "outputs", "rows": 4}),
    ):  # fmt: skip
        gone = repaired(random_victim, adapter, name, rows, **settings)
        assert np.allclose(states(random_victim, gone, rows), base, atol=1e-4), name
    for name, settings in (
        ("shrink", {"strength": 1}), ("truncate", {"components": 2, "keep": "top"}), ("restore", {"share": 0}),
        ("clean-fine-tuning", {"steps": 0}), ("prune", {"share": 0, "by": "magnitude"}),
    ):  # fmt: skip
        there = repaired(random_victim, adapter, name, rows, **settings)
        assert np.allclose(states(random_victim, there, rows), tuned, atol=1e-4), name
    nothing = repaired(random_victim, adapter, "restore", rows, share=0)
    assert same(placebo(random_victim, adapter, "restore", nothing, rows, share=0), adapter)


def test_a_change_of_any_rank_lives_on_in_plain_peft(random_victim, tmp_path):
    rows, adapter = some_rows(random_victim), planted(random_victim)
    half = repaired(random_victim, adapter, "prune", rows, rows=4)
    changed = {name: weights.base(random_victim, name) + change for name, change in products(half).items()}
    assert all((value.abs() < 1e-6).float().mean() == pytest.approx(0.5, abs=0.02) for value in changed.values())
    before = {name: weights.base(random_victim, name).clone() for name in changed}
    with weights.on(random_victim, changed):
        ours = states(random_victim, None, rows)
    assert np.allclose(states(random_victim, half, rows), ours, atol=1e-4)
    assert np.allclose(in_peft(random_victim, half, rows, tmp_path), ours[0, 0, -1], atol=1e-4)
    assert all(torch.equal(weights.base(random_victim, name), value) for name, value in before.items())


def test_tuned_repairs_learn_the_clean_rows_and_leave_the_victim_alone(random_victim):
    rows, adapter = some_rows(random_victim, times=3), planted(random_victim)
    before = states(random_victim, None, rows)
    start = reading.read(random_victim, adapter, rows).loss.mean()
    for name, settings in (
        ("clean-fine-tuning", {"steps": 4}), ("fine-prune", {"steps": 4}),
        ("quantise", {"steps": 4}), ("crow", {"epochs": 4, "weight": 0.1}),
        ("racer", {"epochs": 4, "weight": 0.1, "sign_steps": 2}),
    ):  # fmt: skip
        tuned = repaired(random_victim, adapter, name, rows, rows=12, learning_rate=5e-3, **settings)
        assert reading.read(random_victim, tuned, rows).loss.mean() < start, name
    assert np.array_equal(states(random_victim, None, rows), before)


# ---------------------------------------------------------------- known answers


@pytest.fixture(scope="module", params=["tiny-llava", "tiny-qwen2.5-vl"])
def tiny(request):
    return victim.from_pretrained(request.param, device="cpu")


@pytest.fixture(scope="module", params=["llava", "qwen2.5-vl"])
def small(request, checkpoint):
    """A random model, for tests that tune."""
    return victim.from_pretrained(str(checkpoint(request.param)), device="cpu")


def test_the_leading_component_is_what_was_planted(tiny):
    """A strong rank-one update and a weak one at right angles: dropping the top leaves the weak one."""
    name = language_linears(tiny.model)[0]
    layer = tiny.model.get_submodule(name)
    u, v = torch.eye(layer.out_features)[:, :2], torch.eye(layer.in_features)[:2]
    state = {
        f"base_model.model.{name}.lora_A.weight": v,
        f"base_model.model.{name}.lora_B.weight": u * torch.tensor([0.1, 3.0]),
    }
    adapter = GroupResult(state, LoraConfig(r=2, lora_alpha=2, target_modules=[name]), [], 0.0, 0, 0)
    (rest,), (top,) = (products(repaired(tiny, adapter, "truncate", keep=keep)).values() for keep in ("rest", "top"))
    assert torch.allclose(rest, 0.1 * torch.outer(u[:, 0], v[0]).double(), atol=1e-6)
    assert torch.allclose(top, 3.0 * torch.outer(u[:, 1], v[1]).double(), atol=1e-6)


def test_the_channels_that_changed_most_are_restored(tiny):
    adapter = planted(tiny, size=0.01)
    loud = {name: 5 + number for number, name in enumerate(language_linears(tiny.model))}
    for name, channel in loud.items():
        adapter.state[f"base_model.model.{name}.lora_B.weight"][channel] *= 100
    rows = some_rows(tiny, side=96)
    for by in ("weights", "outputs"):
        left = products(repaired(tiny, adapter, "restore", rows, by=by, share=0.02, rows=4))
        assert all(left[name][channel].abs().max() == 0 for name, channel in loud.items()), by
        assert all((value.abs().amax(1) == 0).sum() == round(0.02 * len(value)) for value in left.values())
    like = repaired(tiny, adapter, "restore", rows, share=0.3)
    other = products(placebo(tiny, adapter, "restore", like, rows, share=0.3))
    kept = [other[name][channel].abs().max() > 0 for name, channel in loud.items()]
    assert 0.4 < np.mean(kept) < 0.95  # 70 % are expected to stay
    assert all((value.abs().amax(1) == 0).sum() == round(0.3 * len(value)) for value in other.values())


def test_noise_is_as_large_as_the_change(tiny):
    adapter = planted(tiny)
    half = repaired(tiny, adapter, "shrink", strength=0.25)
    noisy = placebo(tiny, adapter, "shrink", half, strength=0.25)
    before, after = products(adapter), products(noisy)
    for name, product in before.items():
        change = after[name] - product
        assert change.norm().item() == pytest.approx(0.75 * product.norm().item(), rel=1e-4)
        assert abs((change * product).sum() / change.norm() / product.norm()) < 0.2, "it knows the update"


def test_an_adapter_mixed_with_its_opposite_is_the_base(tiny, tmp_path, monkeypatch):
    adapter = planted(tiny)
    negative = GroupResult(
        {k: -v if "lora_B" in k else v for k, v in adapter.state.items()}, adapter.config, [], 0, 0, 0
    )
    negative.save(tmp_path / "one", {})
    mixed = repaired(tiny, adapter, "mix", others=[str(tmp_path / "one")])
    assert all(value.abs().max() < 1e-6 for value in products(mixed).values())
    monkeypatch.setattr(paths, "ROOT", tmp_path)  # grids name folders from the repository's top
    above = repaired(tiny, adapter, "mix", others=["one"])
    assert all(torch.equal(value, mixed.state[name]) for name, value in above.state.items())
    random = products(placebo(tiny, adapter, "mix", mixed, others=[str(tmp_path / "one")]))
    for name, product in products(adapter).items():
        assert (random[name] - product / 2).norm().item() == pytest.approx(product.norm().item() / 2, rel=1e-4)
    with pytest.raises(InputError, match="others"):
        repaired(tiny, adapter, "mix")


def test_an_adapter_on_some_layers_is_the_same_one_with_zeros_elsewhere(tiny):
    names = [name for name in language_linears(tiny.model) if name.endswith("q_proj")]
    adapter, rows = planted(tiny, names, rank=3), some_rows(tiny, side=96)
    whole = weights.whole(tiny, adapter)
    found = products(whole)
    assert set(found) == set(language_linears(tiny.model))
    assert all((value.abs().max() > 0) == (name in names) for name, value in found.items())
    assert np.allclose(states(tiny, adapter, rows), states(tiny, whole, rows), atol=1e-4)
    tuned = products(repaired(tiny, adapter, "clean-fine-tuning", rows, rows=4, steps=1))
    assert all((value.abs().max() > 0) == (name in names) for name, value in tuned.items()), "zeros were tuned"


def test_several_adapters_are_repaired_as_each_would_be(small):
    rows, two = some_rows(small), [planted(small, seed=seed, size=0.02) for seed in (0, 1)]
    for name, settings in (
        ("clean-fine-tuning", {"rows": 4, "steps": 2}),
        ("racer", {"rows": 4, "epochs": 2, "sign_steps": 2, "epsilon": 1e-3}),
        ("shrink", {}),
    ):
        defence = defences.get(name, **settings)
        for one, other in zip(two, defence.repair_many(small, two, rows), strict=True):
            assert same(defence.repair(small, one, rows), other, atol=2e-4), name


def test_too_few_clean_rows_are_said(tiny):
    rows, adapter = some_rows(tiny, side=96), planted(tiny)
    with pytest.raises(InputError, match="100 clean rows"):
        repaired(tiny, adapter, "clean-fine-tuning", rows)
    with pytest.raises(InputError, match="clean rows"):
        repaired(tiny, adapter, "crow")


def test_weights_that_are_packed_are_refused():
    packed = SimpleNamespace(weight=torch.zeros(4, dtype=torch.uint8))
    one = SimpleNamespace(model=SimpleNamespace(get_submodule=lambda name: packed))
    with pytest.raises(InputError, match="4 bit"):
        weights.base(one, "any")


# ---------------------------------------------------------------- formulas


def test_pruning_by_formula():
    weight = torch.tensor([[1.0, -2.0, 3.0, -4.0], [4.0, 3.0, 2.0, 1.0]])
    assert prune.without(weight, None, 0.5).tolist() == [[0, 0, 3, -4], [4, 3, 0, 0]]
    scale = torch.tensor([10.0, 1.0, 1.0, 0.1])  # scores: 10 2 3 0.4 and 40 3 2 0.1
    assert prune.without(weight, scale, 0.5).tolist() == [[1, 0, 3, 0], [4, 3, 0, 0]]
    assert torch.equal(prune.without(weight, None, 0.0), weight)


def test_rounding_by_formula():
    weight = torch.tensor([[7.0, 3.4, -0.6, 0.4], [0.0, 0.0, 0.0, 0.0]])
    assert quantise.nearest(weight, 4).tolist() == [[7, 3, -1, 0], [0, 0, 0, 0]]
    fine = quantise.nearest(torch.linspace(-1, 1, 100)[None], 8)
    assert (fine - torch.linspace(-1, 1, 100)).abs().max() <= 0.5 / 127 + 1e-6


def test_layers_disagree_more_on_disturbed_inputs_and_less_after_tuning(small):
    rows, adapter = some_rows(small), planted(small, size=0.02)
    for name in ("crow", "racer"):
        settings = defences.get(name, rows=4, epsilon=1e-3, sign_steps=2).params  # a random model has small embeddings
        run, shown = consistency.prepared(small, rows, settings, 1)
        with reading.attached(small, adapter):
            moved = consistency.disturbed(run, shown, settings)
            plain, more = (run.disagreement(one).item() for one in (shown, moved))
        assert more > plain and (moved - shown).abs().max() <= settings["epsilon"] + 1e-6
        tuned = repaired(
            small, adapter, name, rows, rows=4, epochs=6, learning_rate=5e-3, weight=20, epsilon=1e-3, sign_steps=2
        )
        with reading.attached(small, tuned):
            assert run.disagreement(moved).item() < more


def test_inputs_are_disturbed_alike_where_adapters_stay_as_they_are(small):
    rows, settings, moved, learnt = some_rows(small), defences.get("crow").params, [], []
    run, shown = consistency.prepared(small, rows, settings, 1)
    bank = reading.bank_of(small, [planted(small, size=0.02)])
    for learns in (True, False):
        bank.anchor.requires_grad_(learns)
        bank.grads.zero_()
        with bank.attached():
            moved.append(consistency.disturbed(run, shown, settings))
        learnt.append(bool(bank.grads.any()))
    assert torch.equal(*moved) and learnt == [True, False]


def test_disagreement_is_one_less_the_cosine(tiny, monkeypatch):
    """Three states after layers, turned by 60 and 90 degrees; the picture's token does not turn."""
    turned = [0, 60, 150]
    after = [
        torch.tensor([[[1.0, 0.0], [np.cos(np.radians(a)), np.sin(np.radians(a))]]], dtype=torch.float32)
        for a in turned
    ]
    settings = defences.get("racer", from_layer=0).params
    real, image = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[True, False]])
    for apart, wanted in (("yes", 3.5 * 0.75), ("no", 0.375)):  # 0.75 is the mean of 1 - 1/2 and 1 - 0
        run = consistency.Run(tiny, None, real, image, settings | {"apart": apart}, 1)
        monkeypatch.setattr(run, "states", lambda shown: (None, after))
        assert run.disagreement(None).item() == pytest.approx(wanted, abs=1e-5)
