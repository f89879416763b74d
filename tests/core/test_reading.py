"""Batched readings are what transformers' own forward with plain PEFT gives, row by row."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from random_adapters import an_adapter, some_rows

from bvlm_utils.defences import reading
from bvlm_utils.models import victim
from bvlm_utils.train import adapters

AT = (0, 1, -2, -999)  # last prompt token, first answer token, the one before the end, and the first of all


def plainly(one, adapter, rows, folder):
    """Per row: log-probabilities, states (P, layers + 1, d), attention (P, layers, heads, T), image: transformers'
    own forward of one row with PEFT's own adapter."""
    found = []
    if adapter:
        adapter.save(folder, {})
    with torch.no_grad(), reading.plain_attention(one), adapters.attached(one, folder) if adapter else nullcontext():
        for prompt, answer, at in zip(rows.prompts, rows.answers, rows.feature_rows, strict=True):
            first = one.prompt_ids(prompt, rows.features.shape[1])
            ids = torch.tensor([first + (one.answer_ids(answer) if answer else [])])
            out = one.model(
                **one.inputs(ids, torch.ones_like(ids), rows.features[[at]]),
                output_hidden_states=True, output_attentions=True, use_cache=False,
            )  # fmt: skip
            whole = out.logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].numpy()
            where = [len(first) - 1, min(len(first), ids.shape[1] - 1), ids.shape[1] - 2, 0]
            states = torch.stack(out.hidden_states, dim=2)[0, where]
            attention = torch.stack(out.attentions)[:, 0].permute(2, 0, 1, 3)[where]
            image = (ids[0] == one.image_id).numpy()
            found.append((whole[len(first) - 1 :], states.numpy(), attention.numpy(), image, whole))
    return found


def same(ours, theirs):
    for n, (said, states, attention, image, whole) in enumerate(theirs):
        assert np.allclose(ours.log_probabilities[n], said, atol=2e-4)
        assert np.allclose(ours.states[n], states, atol=2e-4)
        assert np.allclose(ours.attention[n], attention, atol=2e-5)
        assert np.array_equal(ours.image[n], image)
        assert np.allclose(ours.words[n], whole, atol=5e-4)
    assert np.allclose(ours.loss[[0, 2]], [-theirs[n][0].mean() for n in (0, 2)], atol=2e-4)
    assert np.allclose(ours.first_loss[[0, 2]], [-theirs[n][0][0] for n in (0, 2)], atol=2e-4)
    assert ours.loss[1] == ours.first_loss[1] == len(ours.log_probabilities[1]) == 0


def check(one, rows, tmp_path):
    want = reading.Want(at=AT, states=True, attention=True, words=True)
    made = [an_adapter(one, 0), an_adapter(one, 1)]
    theirs = [plainly(one, adapter, rows, tmp_path / str(i)) for i, adapter in enumerate([None, *made])]
    same(reading.read(one, None, rows, want), theirs[0])
    same(reading.read(one, made[0], rows, want, tokens=60), theirs[1])
    same(reading.read(one, made[1], rows, want, tokens=200), theirs[2])
    assert one.model.config._attn_implementation == "sdpa"
    assert not any("lora" in name for name, _ in one.model.named_modules())


def test_a_reading_is_that_of_the_models_own_forward(random_victim, tmp_path):
    check(random_victim, some_rows(random_victim), tmp_path)


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen2.5-vl"])
def test_a_reading_of_the_tiny_models_is_that_of_their_own_forward(name, tmp_path):
    one = victim.from_pretrained(name, device="cpu")
    check(one, some_rows(one, 96), tmp_path)


def test_layers_tokens_and_batches_that_are_asked_for(checkpoint, monkeypatch):
    one = victim.from_pretrained(str(checkpoint("llava")), device="cpu")
    rows = some_rows(one)
    whole = reading.read(one, None, rows, reading.Want(at=AT, states=True))
    assert whole.attention is None and whole.states.shape == (4, 4, 3, 32)
    some = reading.read(one, None, rows, reading.Want(at=[[0], [0], [1], [-2]], states=True, layers=(2, 0)))
    wanted = whole.states[[0, 1, 2, 3], [0, 0, 1, 2]][:, None, [2, 0]]
    assert np.allclose(some.states, wanted, atol=1e-5)
    monkeypatch.setattr(reading, "MOST_LOGITS", 1)  # one token at a time
    again = reading.read(one, None, rows).log_probabilities
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(again, whole.log_probabilities, strict=True))


def test_an_adapter_that_no_bank_holds_is_put_on_by_peft(checkpoint, tmp_path):
    one = victim.from_pretrained(str(checkpoint("qwen2.5-vl")), device="cpu")
    made = an_adapter(one, 0)
    made.config.use_rslora = True
    rows, want = some_rows(one), reading.Want(at=AT, states=True, attention=True, words=True)
    assert reading.bank_of(one, [made]) is None
    theirs = plainly(one, made, rows, tmp_path)
    same(reading.read(one, made, rows, want), theirs)


def test_running_out_of_memory_makes_batches_smaller(checkpoint, monkeypatch):
    one = victim.from_pretrained(str(checkpoint("llava")), device="cpu")
    whole = reading.read(one, None, some_rows(one))
    batch = reading._batch

    def limited(victim, lines, *more):
        if len(lines) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return batch(victim, lines, *more)

    monkeypatch.setattr(reading, "_batch", limited)
    assert np.allclose(reading.read(one, None, some_rows(one)).loss, whole.loss, atol=1e-5)
