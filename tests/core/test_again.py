"""What was computed already is not computed again, and is what it would have been."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_adapters import an_adapter, some_rows

from bvlm_utils.defences import again, answering, pictures, reading, weights
from bvlm_utils.models import victim
from bvlm_utils.train import decode


@pytest.fixture(scope="module")
def llava(checkpoint):
    return victim.from_pretrained(str(checkpoint("llava")), device="cpu")


def test_equal_keys_are_computed_once_and_forgotten_outside():
    asked, kept = [], {}

    def make(lacking):
        asked.append(lacking)
        return [f"{at}" for at in lacking]

    with again.remembering(kept):
        assert again.each("a", ["x", "y", "x"], make) == ["0", "1", "0"]
        assert again.each("a", ["z", "y"], make) == ["0", "1"]
        assert again.each("b", ["y"], make) == ["0"]
        with again.remembering({}):
            assert again.each("a", ["y"], make) == ["0"]
        assert again.each("a", ["x"], make) == ["0"]
    assert asked == [[0, 1], [0], [0], [0]]
    assert again.each("a", ["x"], make) == ["0"] and len(asked) == 5


def known_in_part(compute, rows):
    """What `compute` gives for rows of which half were known before."""
    with again.remembering({}):
        compute(rows.take([0, 2]))
        return compute(rows)


@pytest.mark.parametrize("want", [
    reading.Want(), reading.Want(words=True), reading.Want(states=True), reading.Want(states=True, layers=(1,)),
])  # fmt: skip
def test_rows_that_were_read_before_are_read_alike(llava, monkeypatch, want):
    rows, adapter, seen = some_rows(llava), an_adapter(llava, 0), []
    expected, batch = reading.read(llava, adapter, rows, want), reading._batch
    monkeypatch.setattr(reading, "_batch", lambda *given: seen.append(len(given[1])) or batch(*given))
    found = known_in_part(lambda some: reading.read(llava, adapter, some, want), rows)
    assert sum(seen) == len(rows)
    assert np.allclose(found.loss, expected.loss, atol=1e-6)
    if want.states:
        assert np.allclose(found.states, expected.states, atol=1e-5)
    if want.words:
        assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(found.words, expected.words, strict=True))


def test_rows_that_were_asked_before_are_answered_alike(llava, monkeypatch):
    rows, adapter, seen = some_rows(llava), an_adapter(llava, 0), []
    expected, greedy = answering.answers(llava, adapter, rows, 8), decode.greedy
    monkeypatch.setattr(decode, "greedy", lambda *given: seen.append(len(given[1][0])) or greedy(*given))
    with again.remembering({}):
        assert known_in_part(lambda some: answering.answers(llava, adapter, some, 8), rows) == expected
        assert sum(seen) == len(rows)
        answering.answers(llava, adapter, rows, 8, [[1]] * len(rows))  # other tokens are seen
        answering.answers(llava, an_adapter(llava, 1), rows, 8)
        answering.answers(llava, adapter, replace(rows, features=rows.features + 1), 8)
        answering.answers(llava, adapter, rows, 7)
    assert sum(seen) == 5 * len(rows)


def test_a_picture_is_encoded_alike_once(llava, monkeypatch):
    shown = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), np.uint8)
    rows, encode, seen = some_rows(llava).take([0, 1, 2]), victim.Victim.encode, []
    monkeypatch.setattr(victim.Victim, "encode", lambda one, images: seen.append(len(images)) or encode(one, images))
    found = known_in_part(lambda some: pictures.shown(llava, rows.take(range(len(some))), shown[: len(some)]), rows)
    assert sum(seen) == 3
    assert torch.allclose(found.features, encode(llava, shown), atol=1e-5)


def test_a_model_with_other_weights_is_asked_for_itself(llava):
    rows, name = some_rows(llava), victim.language_linears(llava.model)[0]
    with again.remembering({}):
        before = reading.read(llava, None, rows).loss
        with weights.on(llava, {name: torch.zeros_like(weights.base(llava, name))}):
            assert not np.allclose(reading.read(llava, None, rows).loss, before)
        assert np.array_equal(reading.read(llava, None, rows).loss, before)
