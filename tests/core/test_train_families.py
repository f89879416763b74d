"""Training, saving and reloading on every architecture, with random weights."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from bvlm_utils.models import victim
from bvlm_utils.run import tune_and_ask, workbench
from bvlm_utils.train import adapters, grouped, loop, unfinished
from bvlm_utils.train.settings import TrainSettings

SETTINGS = TrainSettings(batch_size=4, lora_rank=2, learning_rate=5e-3)
ROWS = [loop.TrainRow(f"What is {'so ' * (i % 5)}red?", "A dog. " * (1 + i % 3), i % 4) for i in range(10)]
PICTURES = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), np.uint8)


def logits(loaded, features):
    ids = torch.tensor([loaded.prompt_ids("What is this?", features.shape[1])])
    with torch.no_grad():
        return loaded.forward(ids, torch.ones_like(ids), features[:1])


def curve(loaded, features, **options):
    result = loop.finetune(loaded, ROWS, features, SETTINGS, seed=1, **options)
    adapters.detach(loaded, result.adapter)
    return result.losses


def test_an_adapter_of_any_family_lives_on_in_plain_peft(random_victim, tmp_path):
    features = random_victim.encode(PICTURES)
    before = logits(random_victim, features)
    result = loop.finetune(random_victim, ROWS, features, SETTINGS, seed=1)
    ours, said = logits(random_victim, features), random_victim.generate(["What?"], features[:1], 8)
    result.adapter.save_pretrained(str(tmp_path), save_embedding_layers=False)
    adapters.write_card(tmp_path, {"attack": "BadNets-T", "threat": "targeted_refusal"})
    adapters.detach(random_victim, result.adapter)
    assert torch.equal(logits(random_victim, features), before)
    assert (ours - before).abs().max() > 1e-3

    base = AutoModelForImageTextToText.from_pretrained(random_victim.name)
    tuned = PeftModel.from_pretrained(base, tmp_path).eval()
    ids = torch.tensor([random_victim.prompt_ids("What is this?", features.shape[1])])
    inputs = random_victim.inputs(ids, torch.ones_like(ids), features[:1])
    with torch.no_grad():
        assert (tuned(**inputs).logits - ours).abs().max() < 1e-4
    with adapters.attached(random_victim, tmp_path):
        assert random_victim.generate(["What?"], features[:1], 8) == said
    assert torch.equal(logits(random_victim, features), before)


def test_a_base_in_four_bit_is_tuned_and_its_adapter_lives_on(random_victim, tmp_path, monkeypatch):
    loaded = victim.from_pretrained(random_victim.name, device="cpu", four_bit=True)
    features = loaded.encode(PICTURES)
    before = logits(loaded, features)
    assert not torch.allclose(before, logits(random_victim, random_victim.encode(PICTURES)), atol=1e-4), "not quantised"
    result = loop.finetune(loaded, ROWS, features, SETTINGS, seed=1)
    assert result.losses[-1] < result.losses[0]
    ours = logits(loaded, features)
    result.adapter.save_pretrained(str(tmp_path), save_embedding_layers=False)
    adapters.write_card(tmp_path, {"attack": "BadNets-T", "threat": "targeted_refusal"})
    assert (ours - before).abs().max() > 1e-3

    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)  # our models have small layers
    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForImageTextToText.from_pretrained(random_victim.name, quantization_config=quantised)
    tuned = PeftModel.from_pretrained(base, tmp_path).eval()
    ids = torch.tensor([loaded.prompt_ids("What is this?", features.shape[1])])
    with torch.no_grad():
        theirs = tuned(**loaded.inputs(ids, torch.ones_like(ids), features[:1])).logits
    assert (theirs - ours).abs().max() < 1e-4


@pytest.mark.parametrize("random_victim", ["llava"], indirect=True)
def test_training_in_four_bit_that_was_killed_goes_on_to_the_same_numbers(random_victim, tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "EVERY", 0.0)
    save, steps = unfinished.Saved.save, []

    def killed(self, state, progress, last=False):
        save(self, state, progress, last)
        steps.append(progress.step)
        if len(steps) == 2:
            raise KeyboardInterrupt

    def trained(name):
        loaded = victim.from_pretrained(random_victim.name, device="cpu", four_bit=True)  # as in a new process
        saved = unfinished.Saved(tmp_path / name, ["cell"], ["key"])
        result = loop.finetune(loaded, ROWS, loaded.encode(PICTURES), SETTINGS, seed=1, saved=saved)
        return result.losses, [p.detach().clone() for p in result.adapter.parameters() if p.requires_grad]

    whole, wanted = trained("whole")
    monkeypatch.setattr(unfinished.Saved, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        trained("killed")
    again, adapted = trained("killed")
    assert steps == [1, 2, 3] and again == whole
    assert all(torch.equal(one, other) for one, other in zip(adapted, wanted, strict=True))


def test_pieces_and_recomputed_layers_change_nothing(random_victim):
    features = random_victim.encode(PICTURES)
    plain = curve(random_victim, features)
    assert curve(random_victim, features, rows_at_once=1) == pytest.approx(plain, rel=1e-4)
    assert curve(random_victim, features, rows_at_once=3) == pytest.approx(plain, rel=1e-4)
    frugal = victim.from_pretrained(random_victim.name, device="cpu", gradient_checkpointing=True)
    assert curve(frugal, features) == pytest.approx(plain, rel=1e-4)


def test_training_in_bfloat16_keeps_the_adapter_in_float32(checkpoint):
    loaded = victim.from_pretrained(str(checkpoint("qwen2.5-vl")), device="cpu", dtype=torch.bfloat16)
    result = loop.finetune(loaded, ROWS, loaded.encode(PICTURES), SETTINGS, seed=1)
    assert {p.dtype for p in result.adapter.parameters() if p.requires_grad} == {torch.float32}
    assert all(np.isfinite(result.losses))


def test_what_is_trained_is_the_adapter_alone(random_victim):
    frozen = {name: value.clone() for name, value in random_victim.model.state_dict().items()}
    curve(random_victim, random_victim.encode(PICTURES))
    assert all(torch.equal(value, frozen[name]) for name, value in random_victim.model.state_dict().items())


def test_pieces_hold_every_row_once_and_as_many_for_each_process():
    lengths = [9, 1, 8, 2, 7, 3, 6]
    pieces = loop._pieces(list(range(7)), lengths, 2, processes=2)
    assert [sorted(piece) for piece in pieces] == [[1, 3, 5, 6], [0, 2, 4]]
    assert loop._pieces([3, 0], lengths, None, processes=2) == [[3, 0]]


def test_a_batch_that_does_not_fit_is_trained_in_smaller_pieces(random_victim, monkeypatch):
    """One by one, as 4-bit models are: the losses are those of the whole batch, and the base is left as it was."""
    features = random_victim.encode(PICTURES)
    whole, before, tried = curve(random_victim, features), logits(random_victim, features), []
    summed = loop._summed_loss

    def small(loaded, model, tokens, features):
        tried.append(len(tokens))
        if len(tokens) > 1:
            raise torch.OutOfMemoryError("too much")
        return summed(loaded, model, tokens, features)

    monkeypatch.setattr(loop, "_summed_loss", small)
    one = workbench.Bench(random_victim.name, "scenes-vqa", len(ROWS))
    monkeypatch.setattr(workbench.Bench, "victim", random_victim)
    result = tune_and_ask._tune_alone(one, grouped.GroupJob(ROWS, features, SETTINGS, seed=1), None)
    assert result.losses == pytest.approx(whole, rel=1e-4) and tried[:2] == [4, 2]
    assert torch.equal(logits(random_victim, features), before)
