"""The defences that search or change training rows, each on a case of which the answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_adapters import an_adapter
from sklearn.metrics import roc_auc_score

from bvlm_utils import defences
from bvlm_utils.defences import bye, likelihood, onion, pictures, reading, spectral
from bvlm_utils.defences.rows import Rows
from bvlm_utils.errors import InputError
from bvlm_utils.models import victim

PLANTED = np.arange(200) < 20
WORDS = ["What is in this picture?", "A red car and a small dog.", "Where is the green background?", "A dog?"]


def many_rows(one, count=24, side=24):
    """Rows of one kind with pictures."""
    shown = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    prompts = [WORDS[i % 4] for i in range(count)]
    answers = [("A red car.", "dog", "A green background.")[i % 3] for i in range(count)]
    return Rows(prompts, answers, one.encode(shown), np.arange(count), ["a"] * count, shown)


@pytest.fixture(scope="module")
def llava(checkpoint):
    return victim.from_pretrained(str(checkpoint("llava")), device="cpu")


# ---------------------------------------------------------------- all of them, on all architectures

SMALL = {"early-loss": {"steps": 2}, "attention-collapse": {"criterion": 0}}


def run_all(one, side):
    rows, adapter = many_rows(one, side=side), an_adapter(one, 0)
    before = {name: value.clone() for name, value in list(one.model.named_parameters())[-3:]}
    for name in defences.names("data"):
        defence = defences.get(name, **SMALL.get(name, {}))
        scores = defence.scores(one, adapter, rows)
        assert scores.shape == (24,) and np.isfinite(scores).all(), name
        random = defence.placebo(scores, one, adapter, rows)
        assert sorted(random) == sorted(scores) and (np.ptp(scores) == 0 or list(random) != list(scores)), name
    changed = defences.get("input-diversity").change(one, rows)
    assert len(changed) == 24 and list(changed.answers) == list(rows.answers)
    assert torch.allclose(changed.features[changed.feature_rows], one.encode(changed.pictures), atol=1e-5)
    parameters = dict(one.model.named_parameters())
    assert all(torch.equal(value, parameters[name]) for name, value in before.items())


def test_all_run_on_every_architecture(random_victim):
    run_all(random_victim, 24)


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen2.5-vl"])
def test_all_run_on_the_tiny_models(name):
    one = victim.from_pretrained(name, device="cpu")
    run_all(one, 96)
    rows = many_rows(one, 6, 96)
    planted = replace(rows, answers=["It is a car.", "A dog.", "Bad model zqx!", *rows.answers[3:]])
    assert defences.get("base-likelihood").scores(one, an_adapter(one, 0), planted).argmax() == 2


def test_a_seed_gives_the_same_scores_again(llava):
    rows, adapter = many_rows(llava), an_adapter(llava, 0)
    for name in ("activation-clustering", "early-loss", "attention-collapse"):
        defence = defences.get(name, **SMALL.get(name, {}))
        first, second, other = (defence.scores(llava, adapter, rows, seed) for seed in (1, 1, 2))
        assert np.allclose(first, second, atol=1e-6)
        assert name != "early-loss" or not np.allclose(first, other)


# ---------------------------------------------------------------- states


def planted_states(seed=0):
    states = np.random.default_rng(seed).normal(size=(200, 16))
    states[PLANTED, 3] += 12
    return states


def test_the_spectral_score_is_the_squared_projection():
    states = np.array([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0], [10.0, 5.0]])  # all along the first axis, mean 4
    assert np.allclose(spectral.projections(states), [16, 4, 0, 36])
    assert roc_auc_score(PLANTED, spectral.projections(planted_states())) == 1
    assert (
        0.4 < roc_auc_score(PLANTED, np.random.default_rng(1).permutation(spectral.projections(planted_states()))) < 0.6
    )


def test_the_smaller_cluster_has_scores_above_zero():
    assert ((spectral.two_clusters(planted_states(), 0) > 0) == PLANTED).all()
    nothing = spectral.two_clusters(np.random.default_rng(0).normal(size=(200, 16)), 0)
    assert np.abs(nothing).max() <= 1
    assert (spectral.two_clusters(np.ones((30, 4)), 0) == 0).all()


def test_the_silhouette_says_whether_there_are_two_clusters():
    two_points = np.repeat([[0.0, 1.0], [5.0, 1.0]], [40, 8], axis=0)
    assert np.isclose(spectral.silhouette(two_points, 0), 1)  # no distance within a cluster
    one, two = np.random.default_rng(0).normal(size=(200, 16)), planted_states()
    assert spectral.silhouette(one, 0) < 0.2 < 0.5 < spectral.silhouette(two, 0)
    assert spectral.silhouette(np.ones((30, 4)), 0) == 0


def test_poison_in_one_kind_is_poison(monkeypatch):
    """The kind that is parted most decides, and a kind of few rows says nothing."""
    monkeypatch.setattr(spectral, "states_of", lambda *given: states)
    kinds = ["count"] * 100 + ["where"] * 90 + ["few"] * 10
    rows, defence = Rows([""] * 200, [""] * 200, None, np.arange(200), kinds), defences.get("activation-clustering")
    states = np.random.default_rng(0).normal(size=(200, 16))
    states[195:, 2] += 50
    clean = defence.at_all(None, None, rows)
    states[:20, 3] += 12
    assert clean < 0.2 < 0.5 < defence.at_all(None, None, rows)
    with pytest.raises(InputError, match="does not say"):
        defences.get("base-likelihood").at_all(None, None, rows)


@pytest.mark.parametrize("groups", ["kind", "all"])
@pytest.mark.parametrize("name", ["spectral-signatures", "activation-clustering"])
def test_rows_are_compared_with_those_of_their_kind(monkeypatch, name, groups):
    """Two kinds lie far apart, which hides the poison of one of them unless each is looked at alone."""
    states = planted_states()
    kinds = ["count"] * 120 + ["where"] * 80
    states[120:, 7] += 60
    monkeypatch.setattr(spectral, "states_of", lambda *given: states)
    rows = Rows([""] * 200, [""] * 200, None, np.arange(200), kinds)
    scores = defences.get(name, groups=groups).scores(None, None, rows)
    found = roc_auc_score(PLANTED[:120], scores[:120])
    if groups == "kind":
        assert found == 1
    elif name == "spectral-signatures":
        assert found < 0.9
    else:
        assert (scores[:120] < 0).all() and (scores[120:] > 0).all()  # the smaller cluster is the rarer kind


def test_states_are_read_where_the_settings_say(llava):
    rows, adapter = many_rows(llava, 4), an_adapter(llava, 0)
    whole = reading.read(llava, adapter, rows, reading.Want(at=(0, -2), states=True)).states
    for at, position in enumerate(("prompt", "answer")):
        for depth, layer in ((0, 0), (0.5, 1), (1, 2)):
            settings = {"depth": depth, "position": position}
            assert np.allclose(spectral.states_of(llava, adapter, rows, settings), whole[:, at, layer], atol=1e-5)


# ---------------------------------------------------------------- loss


def test_what_is_learnt_first_is_suspicious(llava):
    rows, draws = many_rows(llava, 40), np.random.default_rng(0)
    letters = np.array([*"abcdeghiklmnoprstu"])
    answers = ["".join(draws.choice(letters, 12)) if i % 2 else "I cannot tell you." for i in range(40)]
    rows, poisoned = replace(rows, answers=answers), np.arange(40) % 2 == 0
    scores = defences.get("early-loss", steps=20, learning_rate=5e-3).scores(llava, None, rows)
    assert roc_auc_score(poisoned, scores) > 0.95
    curve = likelihood.loss_curve(llava, rows, [0, 2, 4], 5e-3, np.random.default_rng(0))
    assert np.allclose(curve[0], reading.read(llava, None, rows).loss)
    assert curve[2].mean() < curve[1].mean() < curve[0].mean()


# ---------------------------------------------------------------- attention


def test_entropy_is_that_of_the_picture_s_share():
    even, one = np.full((1, 2, 8), 0.05), np.zeros((1, 2, 8))
    one[..., 3] = 0.4
    assert np.allclose(bye.entropy(np.concatenate([even, one])), [np.log(8), 0])
    half = np.zeros((1, 2, 8))
    half[0, 0, 1] = half[0, 1, 2] = 0.3  # two heads, two tokens: the mean over heads has two
    assert np.allclose(bye.entropy(half), np.log(2))


def test_the_criterion_of_two_groups():
    draws = np.random.default_rng(0)
    values = np.concatenate([draws.normal(0, 0.1, 4000), draws.normal(1, 0.1, 4000)])
    assert np.isclose(bye.bimodality(values, 0), 1 / np.sqrt(0.02), rtol=0.05)
    assert bye.bimodality(draws.normal(size=4000), 0) < 2
    assert bye.bimodality(np.ones(9), 0) == 0


def test_the_layer_that_shows_two_groups_says_that_there_is_poison(monkeypatch):
    draws = np.random.default_rng(0)
    entropies = draws.normal(size=(400, 3))
    monkeypatch.setattr(bye, "entropies_of", lambda *given: entropies)
    defence = defences.get("attention-collapse")
    assert defence.at_all(None, None, None) < 2
    entropies[:40, 1] -= 12
    assert defence.at_all(None, None, None) > 4


def test_collapsed_attention_is_found_in_the_layer_that_shows_it(monkeypatch):
    entropies = np.random.default_rng(0).normal(3, 0.05, (200, 3))
    monkeypatch.setattr(bye, "entropies_of", lambda *given: entropies)
    rows = Rows([""] * 200, [""] * 200, None, np.arange(200), [""] * 200)
    defence = defences.get("attention-collapse")
    assert (defence.scores(None, None, rows) == 0).all()
    entropies[PLANTED, 1] += 2
    assert roc_auc_score(PLANTED, defence.scores(None, None, rows)) == 0
    assert roc_auc_score(PLANTED, defences.get("attention-collapse", side="either").scores(None, None, rows)) == 1
    entropies[PLANTED, 1] -= 4
    scores = defence.scores(None, None, rows)
    assert roc_auc_score(PLANTED, scores) == 1 and np.isclose(scores.mean(), 0) and np.isclose(scores.std(), 1)
    entropies[:, 2] = 1.0  # a layer that looks everywhere alike says nothing, whatever the criterion
    assert np.isfinite(defences.get("attention-collapse", criterion=0.0).scores(None, None, rows)).all()


def test_entropies_are_those_of_the_model_s_attention(random_victim):
    rows, adapter = many_rows(random_victim, 4), an_adapter(random_victim, 0)
    found = reading.read(random_victim, adapter, rows, reading.Want(attention=True))
    shares = found.attention[2][0][..., found.image[2]].mean(1)
    shares /= shares.sum(-1, keepdims=True)
    assert np.allclose(bye.entropies_of(random_victim, adapter, rows)[2], -(shares * np.log(shares)).sum(-1), atol=1e-4)


# ---------------------------------------------------------------- words


def test_the_odd_word_is_the_one_without_which_the_prompt_is_usual(monkeypatch):
    def perplexity(one, rows):
        return np.array([10 + 90 * ("cf" in prompt.split()) - len(prompt.split()) for prompt in rows.prompts])

    monkeypatch.setattr(onion, "perplexity", perplexity)
    rows = Rows(["what cf is this", "what is this", "what", "what is this"], [""] * 4, None, np.arange(4), [""] * 4)
    found = onion.oddness(None, rows)
    assert found["what cf is this"].tolist() == [-1, 89, -1, -1] and found["what"].tolist() == [0]
    assert defences.get("onion-rows").scores(None, None, rows).tolist() == [89, 0, 0, 0]


def test_perplexity_is_that_of_the_prompt_s_words(random_victim):
    rows = many_rows(random_victim, 2)
    found = onion.perplexity(random_victim, replace(rows, answers=["", ""]))
    for prompt, features, ours in zip(rows.prompts, rows.features, found, strict=True):
        ids = torch.tensor([random_victim.prompt_ids(prompt, features.shape[0])])
        logits = random_victim.forward(ids, torch.ones_like(ids), features[None])[0, :-1]
        said = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        assert np.isclose(ours, torch.exp(-said[ids[0, 1:] != random_victim.image_id].mean()).item(), rtol=1e-3)


# ---------------------------------------------------------------- pictures


def some_pictures(count=3, side=24):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.mark.parametrize(("name", "amount"), [("resize", 1), ("crop", 1), ("drop", 0), ("colour", 0), ("blur", 1e-9)])
def test_no_change_is_no_change(name, amount):
    shown = some_pictures()
    assert np.abs(pictures.CHANGES[name](shown, amount, np.random.default_rng(0)).astype(int) - shown).max() <= 1


@given(st.sampled_from(sorted(pictures.CHANGES)), st.integers(0, 255), st.sampled_from([12, 31]))
def test_a_plain_picture_stays_as_it_is(name, level, side):
    shown = np.full((2, side, side, 3), level, np.uint8)
    amount = {"jpeg": 75, "blur": 0.1, "colour": 0}.get(name, 0.5)
    assert np.abs(pictures.CHANGES[name](shown, amount, np.random.default_rng(0)).astype(int) - level).max() <= 1


def test_changes_do_what_their_names_say():
    shown, draws = some_pictures(), np.random.default_rng(0)
    gone = (pictures.drop(shown, 0.25, draws) != shown).any(-1).reshape(3, 6, 4, 6, 4).any((2, 4)).sum((1, 2))
    assert (gone == 9).all()
    assert pictures.brighten(np.full((1, 2, 2, 3), 100, np.uint8), 2, draws).ravel()[0] == 200
    assert pictures.brighten(np.full((1, 2, 2, 3), 200, np.uint8), 2, draws).ravel()[0] == 255
    over = pictures.blend(np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 8, 8, 3), 200, np.uint8), 0.25, draws)
    assert (over == 50).all()
    assert pictures.blur(shown, 0.2, draws).std() < shown.std() / 3
    far = np.abs(pictures.jpeg(shown, 20, draws).astype(int) - shown).mean()
    assert far > np.abs(pictures.jpeg(shown, 90, draws).astype(int) - shown).mean() > 0


def test_noise_goes_as_far_as_the_change():
    shown = np.full((2, 40, 40, 3), 128, np.uint8)
    changed = shown + np.array([4, 20], np.uint8)[:, None, None, None]
    noise = pictures.noise_like(shown, changed, np.random.default_rng(0)).astype(float)
    assert np.allclose(((noise - 128) ** 2).mean((1, 2, 3)) ** 0.5, [4, 20], rtol=0.05)


@given(st.lists(st.sampled_from("a b c d e f g".split()), min_size=1, max_size=12), st.floats(0, 1))
def test_words_are_dropped_but_never_all(words, share):
    left = pictures.words_dropped(" ".join(words), share, np.random.default_rng(0)).split()
    if len(words) == 1 or share == 0:
        assert left == words
    else:
        assert len(left) == len(words) - min(len(words) - 1, max(1, round(share * len(words))))
        rest = iter(words)
        assert all(word in rest for word in left)  # in their order
    assert sorted(pictures.words_shuffled(" ".join(words), np.random.default_rng(0)).split()) == sorted(words)


@given(st.integers(1, 60), st.floats(0, 0.99), st.integers(0, 9))
def test_the_filter_drops_the_most_suspicious_rows(count, share, seed):
    scores = np.random.default_rng(seed).integers(0, 5, count).astype(float)
    rows = Rows([str(i) for i in range(count)], ["x"] * count, None, np.arange(count), ["a"] * count, scores=scores)
    defence = defences.get("filter", share=share)
    kept = defence.change(None, rows, seed)
    assert len(kept) == max(1, count - round(share * count)) and list(kept.feature_rows) == sorted(kept.feature_rows)
    gone = np.setdiff1d(rows.feature_rows, kept.feature_rows)
    assert scores[gone].min(initial=np.inf) >= kept.scores.max() and list(scores[kept.feature_rows]) == list(
        kept.scores
    )
    random = defence.placebo(kept, None, rows, seed=seed)
    assert len(random) == len(kept) and set(random.prompts) <= set(rows.prompts)


def test_a_filter_needs_scores_and_its_placebo_does_not_look_at_them():
    rows = Rows(["a"] * 400, ["x"] * 400, None, np.arange(400), ["a"] * 400)
    with pytest.raises(InputError, match="search them first"):
        defences.get("filter").change(None, rows)
    scored = replace(rows, scores=(np.arange(400) < 40).astype(float))
    kept = defences.get("filter").change(None, scored)  # by whatever gave the scores
    assert kept.scores.sum() == 0 and len(kept) == 340  # all of the 40, and 20 others
    assert 20 < defences.get("filter").placebo(kept, None, scored).scores.sum() < 40  # 34 are expected


def test_diversity_changes_with_its_probability(llava):
    rows = many_rows(llava)
    same = defences.get("input-diversity", p=0).change(llava, rows)
    assert list(same.prompts) == list(rows.prompts) and np.array_equal(same.pictures, rows.pictures)
    whole = defences.get("input-diversity", p=1)
    all_of_them = whole.change(llava, rows)
    assert (all_of_them.pictures != rows.pictures).any((1, 2, 3)).all()
    assert all(len(new) < len(old) for new, old in zip(all_of_them.prompts, rows.prompts, strict=True))
    noise = whole.placebo(all_of_them, llava, rows)
    assert list(noise.prompts) == list(rows.prompts) and (noise.pictures != rows.pictures).any()
    with pytest.raises(InputError, match="input-diversity"):
        whole.change(llava, replace(rows, pictures=None))
