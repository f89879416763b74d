"""The defences that act while a model answers, each on a case of which the answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_adapters import an_adapter
from sklearn.metrics import roc_auc_score

from bvlm_utils import defences
from bvlm_utils.defences import answering, cleangen, cleansight, insensitivity, onion, pictures, purify, reading
from bvlm_utils.defences.rows import Answered, Rows
from bvlm_utils.errors import InputError
from bvlm_utils.models import victim

WORDS = ["What is in this picture?", "A red car and a small dog.", "Where is the green background?", "A dog?"]
NEW = 6


def inputs_of(one, count=6, side=24):
    shown = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    prompts = [WORDS[i % 4] for i in range(count)]
    return Rows(prompts, [""] * count, one.encode(shown), np.arange(count), ["a"] * count, shown)


@pytest.fixture(scope="module")
def llava(checkpoint):
    return victim.from_pretrained(str(checkpoint("llava")), device="cpu")


@pytest.fixture
def one_answer(monkeypatch):
    """Nothing is asked; the prompts and the hidden tokens that would have been are noted instead."""
    noted = []

    def answers(one, adapter, rows, max_new_tokens, unseen=None):
        noted.append((list(rows.prompts), unseen))
        return ["an answer"] * len(rows)

    monkeypatch.setattr(answering, "answers", answers)
    return noted


# ---------------------------------------------------------------- all of them, on all architectures


def run_all(one, side):
    inputs, clean, adapter = inputs_of(one, 4, side), inputs_of(one, 6, side), an_adapter(one, 0)
    for name in defences.names("inference"):
        if "population" in defences.info(name).params:
            continue  # it reads a population of other adapters
        small = {"max_new_tokens": NEW, "copies": 1}
        defence = defences.get(name, **{key: small[key] for key in small if key in defences.info(name).params})
        found = defence.answer(one, adapter, inputs, clean)
        with_placebo = [found, defence.placebo(found, one, adapter, inputs, clean)] if defence.info.placebo else [found]
        for given in with_placebo:
            assert len(given.answers) == given.suspicion.size == given.changed.size == 4, name
            assert np.isfinite(given.suspicion).all() and (given.changed >= 0).all(), name
    assert answering.answers(one, None, inputs, NEW) == one.generate(inputs.prompts, inputs.features, NEW)
    with reading.attached(one, adapter):
        expected = one.generate(inputs.prompts, inputs.features, NEW)
    assert answering.answers(one, adapter, inputs, NEW) == expected


def test_all_run_on_every_architecture(random_victim):
    run_all(random_victim, 24)
    hidden(random_victim, 24)


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen2.5-vl"])
def test_all_run_on_the_tiny_models(name):
    one = victim.from_pretrained(name, device="cpu")
    run_all(one, 96)
    hidden(one, 96)
    both_write_one_answer(one, inputs_of(one, 4, 96))


def hidden(one, side):
    """A picture all of whose tokens are hidden says nothing, and one that is hidden in part says what is left."""
    rows = inputs_of(one, 4, side)
    where = [np.flatnonzero(np.array(request.ids) == one.image_id) for request in answering.requests(one, rows)]
    blank = replace(rows, features=rows.features.flip(0) * 3)
    assert answering.answers(one, None, rows, NEW, where) == answering.answers(one, None, blank, NEW, where)
    part = rows.features.clone()
    part[:, 1] = part[:, 1] * -5 + 3  # what only the hidden token shows
    first = [own[1:2] for own in where]
    said = answering.answers(one, None, rows, NEW, first)
    assert said == answering.answers(one, None, replace(rows, features=part), NEW, first)
    assert answering.answers(one, None, rows, NEW, [()] * 4) == answering.answers(one, None, rows, NEW)


# ---------------------------------------------------------------- where the model looks


def test_distances_are_whitened():
    clean = np.random.default_rng(0).normal(size=(20_000, 2)) * [1, 10]
    found = cleansight.distances(np.array([[0, 0], [3, 0], [0, 30]]), clean)
    assert np.allclose(found, [0, 3, 3], atol=0.1)


def test_the_tokens_that_draw_the_look_are_masked_where_it_is_unusual(monkeypatch, one_answer):
    draws = np.random.default_rng(0)

    def look(one, adapter, rows, window):
        ratios, shares = draws.normal(size=(len(rows), 4)), np.full((len(rows), 36), 0.31)
        if rows.prompts[0] == "input":
            ratios[3] += 30  # one input is looked at in another way,
            shares[3, [5, 7]] = 0.33  # at two of its tokens, by more than 0.02 x 576 / 36
        return cleansight.Look(ratios, list(shares), [np.arange(10, 46)] * len(rows))

    monkeypatch.setattr(cleansight, "look", look)
    inputs = Rows(["input"] * 6, [""] * 6, None, np.arange(6), [""] * 6)
    found = defences.get("cleansight").answer(None, None, inputs, replace(inputs, prompts=["clean"] * 6))
    assert found.suspicion.argmax() == 3 and found.suspicion[3] > 1 and found.changed[3] == 2
    assert list(one_answer[0][1][3]) == [15, 17]
    assert (found.changed[[0, 1, 2, 4, 5]] == 0).all() and list(found.alarms) == list(found.suspicion > 1)


def test_without_its_picture_all_image_tokens_are_masked(llava, one_answer):
    inputs = inputs_of(llava)
    found = defences.get("blind").answer(llava, None, inputs)
    for request, unseen, count in zip(answering.requests(llava, inputs), one_answer[0][1], found.changed, strict=True):
        assert [at for at, token in enumerate(request.ids) if token == llava.image_id] == list(unseen)
        assert count == len(unseen) > 0
    assert set(found.suspicion) == {0}


def test_the_placebo_masks_as_many_image_tokens(llava, one_answer):
    inputs = inputs_of(llava)
    like = Answered([""] * 6, np.arange(6.0), np.array([0.0, 2, 9, 0, 1, 3]))
    defences.get("cleansight").placebo(like, llava, None, inputs, inputs)
    for request, unseen, count in zip(answering.requests(llava, inputs), one_answer[0][1], like.changed, strict=True):
        assert len(set(unseen)) == count and all(request.ids[at] == llava.image_id for at in unseen)


def test_the_look_is_that_of_the_model_s_attention(random_victim):
    rows, adapter = inputs_of(random_victim, 2), an_adapter(random_victim, 0)
    found = cleansight.look(random_victim, adapter, rows, (0.5, 1))
    whole = reading.read(random_victim, adapter, rows, reading.Want(attention=True))
    seen, image = whole.attention[1][0, 1:], whole.image[1]
    behind = np.flatnonzero(image)[-1] + 1
    assert np.allclose(found.ratios[1], (seen[..., image].sum(-1) / seen[..., behind:].sum(-1)).ravel(), rtol=1e-3)
    assert np.allclose(found.shares[1], seen[-1][:, image].max(0), atol=1e-5)


# ---------------------------------------------------------------- two models in one decode


def both_write_one_answer(one, inputs):
    adapter = an_adapter(one, 0)
    settings = {"max_new_tokens": NEW}
    base, tuned = answering.answers(one, None, inputs, NEW), answering.answers(one, adapter, inputs, NEW)
    everything = cleangen._both(one, adapter, inputs, settings, lambda ratios, numbers: torch.ones_like(ratios) > 0)
    assert everything.answers == base and (everything.suspicion == 1).all()
    assert everything.changed.tolist() == [
        min(NEW, len(ids) + 1) for ids in written(one, inputs)
    ]  # the end counts as a token
    nothing = defences.get("cleangen", ratio=1e9, max_new_tokens=NEW).answer(one, adapter, inputs)
    assert nothing.answers == tuned and (nothing.changed == 0).all()
    zero = replace(adapter, state={name: value * (".lora_A." in name) for name, value in adapter.state.items()})
    same = defences.get("cleangen", ratio=1.001, max_new_tokens=NEW).answer(one, zero, inputs)
    assert same.answers == base and (same.changed == 0).all()


def written(one, inputs):
    from bvlm_utils.train import decode

    return decode.greedy(one.model, [answering.requests(one, inputs)], inputs.features, decode.ends_of(one), NEW)[0]


def test_both_models_write_one_answer(random_victim):
    both_write_one_answer(random_victim, inputs_of(random_victim, 5))


def test_a_token_that_the_base_would_not_write_is_replaced(llava):
    """By hand, on the first token: the base's likeliest stands where the tuned model's is so many times as probable."""
    inputs, adapter = inputs_of(llava), an_adapter(llava, 1)
    tokens, ratios = [], []
    for number, prompt in enumerate(inputs.prompts):
        ids = torch.tensor([llava.prompt_ids(prompt, inputs.features.shape[1])])
        logits = []
        for own in (None, adapter):
            with torch.no_grad(), reading.attached(llava, own):
                logits.append(
                    llava.forward(ids, torch.ones_like(ids), inputs.features[[number]])[0, -1].log_softmax(-1)
                )
        token = logits[1].argmax()
        tokens.append((logits[0].argmax(), token))
        ratios.append((logits[1] - logits[0])[token].exp().item())
    limit = float(np.mean(sorted(ratios)[2:4]))
    found = defences.get("cleangen", ratio=limit, max_new_tokens=1).answer(llava, adapter, inputs)
    firsts = [base if ratio >= limit else own for (base, own), ratio in zip(tokens, ratios, strict=True)]
    ends = llava.tokenizer.eos_token_id
    expected = ["" if token == ends else llava.tokenizer.decode([token]).strip() for token in firsts]
    assert found.answers == expected
    assert found.changed.tolist() == [float(ratio >= limit) for ratio in ratios] and found.changed.sum() == 3


# ---------------------------------------------------------------- perturbations


@pytest.mark.parametrize("read", ["first", "answer"])
def test_an_answer_that_nothing_moves_is_as_probable_as_before(llava, read):
    inputs, adapter = inputs_of(llava), an_adapter(llava, 0)
    defence = defences.get("insensitivity", amount=0, copies=2, read=read, max_new_tokens=NEW)
    found = defence.answer(llava, adapter, inputs, inputs)
    assert found.answers == answering.answers(llava, adapter, inputs, NEW)
    known = reading.read(llava, adapter, replace(inputs, answers=found.answers))
    assert np.allclose(found.suspicion, -(known.first_loss if read == "first" else known.loss), atol=1e-4)
    # A picture blended with itself stays; those blended with it do not.
    clean = replace(inputs, pictures=inputs.pictures[:1])
    moved = defences.get("insensitivity", amount=0.9, copies=2, read=read, max_new_tokens=NEW)
    again = moved.answer(llava, adapter, inputs, clean).suspicion
    assert np.isclose(again[0], found.suspicion[0], atol=1e-4) and not np.allclose(again, found.suspicion, atol=1e-3)


def test_each_perturbation_changes_its_half(llava):
    inputs, draws = inputs_of(llava), np.random.default_rng(0)
    settings = defences.get("insensitivity").params
    words = insensitivity.perturbed(llava, inputs, inputs, {**settings, "perturb": "words"}, draws, 0)
    assert torch.equal(words.features, inputs.features) and words.prompts != inputs.prompts
    scale = insensitivity.perturbed(llava, inputs, inputs, {**settings, "perturb": "scale"}, draws, 1)
    assert scale.prompts == inputs.prompts
    assert np.array_equal(scale.pictures, pictures.brighten(inputs.pictures, 3, draws))
    with pytest.raises(InputError, match="picture"):
        insensitivity.perturbed(llava, replace(inputs, pictures=None), inputs, settings, draws, 0)


def test_a_placebo_suspects_at_random_and_keeps_the_answers():
    """Two sets of inputs that the defence tells apart are one to its placebo."""
    defence, inputs = defences.get("insensitivity"), Rows(["a"] * 400, [""] * 400, None, np.arange(400), [""] * 400)
    high, low = (Answered(["a"] * 400, np.full(400, level), np.zeros(400)) for level in (9.0, 0.0))
    random = [defence.placebo(like, None, None, inputs, None, seed=seed) for seed, like in enumerate((high, low))]
    assert random[0].answers == high.answers
    truth = np.repeat([1, 0], 400)
    assert 0.4 < roc_auc_score(truth, np.concatenate([one.suspicion for one in random])) < 0.6


# ---------------------------------------------------------------- words and pictures


def test_odd_words_are_left_out_of_the_prompt(monkeypatch, one_answer):
    def perplexity(one, rows):
        return np.array([10 + 90 * ("cf" in prompt.split()) for prompt in rows.prompts])

    monkeypatch.setattr(onion, "perplexity", perplexity)
    inputs = Rows(["what cf is this", "what is this", "cf"], [""] * 3, None, np.arange(3), [""] * 3)
    clean = replace(inputs, prompts=["what is it", "where is it", "it"])
    found = defences.get("onion").answer(None, None, inputs, clean)
    assert one_answer[-1][0] == ["what is this", "what is this", "cf"]
    assert found.changed.tolist() == [1, 0, 0] and found.suspicion.tolist() == [90, 0, 0]
    assert found.alarms.tolist() == [True, False, False]
    defences.get("onion").placebo(found, None, None, inputs, clean)
    random = one_answer[-1][0]
    assert [len(prompt.split()) for prompt in random] == [3, 3, 1] and random[1:] == inputs.prompts[1:]


@pytest.mark.parametrize("name", ["jpeg", "blur", "resize", "crop", "drop"])
def test_what_does_not_change_the_picture_is_not_suspicious(llava, name):
    inputs = inputs_of(llava)
    plain = replace(inputs, pictures=np.full_like(inputs.pictures, 90))
    plain = pictures.shown(llava, plain, plain.pictures)
    amount = {"blur": {"amount": 0.1}}.get(name, {})  # 24 pixels are few
    defence = defences.get(name, max_new_tokens=NEW, **amount)
    assert (defence.answer(llava, None, plain).changed <= 1).all()
    strange = defence.answer(llava, None, inputs)
    assert (strange.changed > 1).all()
    shown = pictures.CHANGES[name](inputs.pictures, defence.params["amount"], defence._draws(0))
    changed = pictures.shown(llava, inputs, shown)
    assert strange.answers == answering.answers(llava, None, changed, NEW)
    own = answering.answers(llava, None, inputs, NEW)
    assert strange.suspicion.tolist() == [float(a != b) for a, b in zip(strange.answers, own, strict=True)]
    with pytest.raises(InputError, match=name):
        getattr(purify, name)(llava, None, replace(inputs, pictures=None), None, {}, None)
