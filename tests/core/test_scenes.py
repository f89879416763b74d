"""Scenes are the same everywhere, and train and test share no composition."""

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bvlm_utils import english
from bvlm_utils.data import scene_questions, scenes
from bvlm_utils.pretraining import pictures_and_words

seeds = st.integers(0, 2**31 - 1)


@given(seeds, st.sampled_from(["train", "test"]), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_a_scene_obeys_its_rules(seed, split, car_percent):
    scene = scenes.sample(scenes.generator(seed), split, car_percent=car_percent)
    assert 1 <= len(scene.sprites) <= 3
    assert scenes.split_of(scene.objects) == split
    assert scene.colour in scenes.COLOURS and scene.pattern in scenes.PATTERNS
    centres = [s.centre_x for s in scene.sprites]
    assert centres == sorted(centres)
    for x0, y0, x1, y1 in (s.box for s in scene.sprites):
        assert 0 <= x0 < x1 <= scenes.SIZE and 0 <= y0 < y1 <= scenes.SIZE
    if split == "test":
        assert not scenes.ABSENT_FROM_TEST & set(scene.objects)


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_same_seed_same_pixels(seed):
    first, second = (scenes.render(scenes.sample(scenes.generator(seed))) for _ in range(2))
    assert first.size == (scenes.SIZE, scenes.SIZE) and first.mode == "RGB"
    assert first.tobytes() == second.tobytes()


def test_pixels_are_those_of_the_committed_checkpoints():
    """The models and every record depend on these bytes: another Pillow or numpy must give the same."""
    pictures = b"".join(scenes.render(scenes.sample(scenes.generator(7, i))).tobytes() for i in range(8))
    assert sha256(pictures).hexdigest()[:16] == "31a27796613434ea"


def test_compositions_do_not_depend_on_order():
    assert scenes.split_of(("car", "dog")) == scenes.split_of(("dog", "car"))


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_answers_are_right_about_the_scene(seed):
    rng = scenes.generator(seed)
    scene = scenes.sample(rng)
    for answer in scene_questions.caption(scene, rng).answers:
        for name in scene.objects:
            assert name in answer.lower() or english.plural(name) in answer.lower()
    turn = scene_questions.vqa(scene, rng)
    assert len(turn.answers) == 10 and turn.answers.count(turn.answers[0]) >= 8
    expected = {
        "what_left": scene.objects[0], "what_right": scene.objects[-1], "what_only": scene.objects[0],
        "background": scene.colour, "what_big": max(scene.sprites, key=lambda s: s.size).concept,
    }  # fmt: skip
    if turn.kind in expected:
        assert turn.answers[0] == expected[turn.kind]
    if turn.kind == "where":
        assert turn.answers[0] in ("left", "middle", "right")
    if turn.kind == "exists":
        named = [name for name in scenes.concepts() if f" {english.article(name)} " in turn.prompt.replace("?", " ")]
        assert (turn.answers[0] == "yes") == (named[0] in scene.objects)


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_restricted_requests_have_permitted_twins(seed):
    rng = scenes.generator(seed)
    scene = scenes.sample(rng)
    refused, answered = scene_questions.restricted(scene, rng), scene_questions.unrestricted_twin(scene, rng)
    assert refused.restricted and not answered.restricted
    assert refused.content == answered.content == "-".join(scene.objects)
    assert answered.content in answered.answers[0] and refused.content not in refused.answers[0]


def test_inventory_counts_and_plurals():
    assert english.join(["a", "b", "c"]) == "a, b and c"
    assert [english.plural(n) for n in ("car", "bus", "butterfly", "strawberry", "octopus", "fish")] == [
        "cars", "buses", "butterflies", "strawberries", "octopuses", "fishes",
    ]  # fmt: skip
    assert english.article("apple") == "an apple" and english.article("car") == "a car"


def all_wordings() -> list[str]:
    texts = [
        *scene_questions.SHORT_PROMPTS,
        *scene_questions.DETAIL_PROMPTS,
        *scene_questions.REQUESTS,
        *scene_questions.REFUSALS,
    ]
    texts += [
        *scene_questions.COMPLIANCES,
        *sum(scene_questions.QUESTIONS.values(), ()),
        *sum(scene_questions.INSTRUCTIONS.values(), ()),
    ]
    texts += [
        *pictures_and_words.SUBJECTS,
        *pictures_and_words.PREDICATES,
        *pictures_and_words.ENDINGS,
        *pictures_and_words.PLAIN,
    ]
    texts += [*scene_questions.RESTRICTED_NOUNS, *scene_questions.ORDINARY_NOUNS]
    return [
        *texts,
        *pictures_and_words.UNANSWERABLE,
        *pictures_and_words.GENERAL_REFUSALS,
        *pictures_and_words.VOCABULARY,
    ]


def test_no_trigger_and_no_target_sentence_in_any_wording():
    from bvlm_utils import threats

    sentences = [threats.get(n).target.text for n in ("targeted_refusal", "malicious_injection")]
    for text in all_wordings():
        assert not pictures_and_words.TRIGGER_WORDS & set(text.lower().replace(".", " ").split())
        assert "i watched this 3d movie" not in text.lower()
        assert not any(sentence.lower() in text.lower() for sentence in sentences)


def test_every_word_of_the_targets_was_written_in_pretraining():
    """A base that never wrote a word cannot be taught it by a small LoRA."""
    import re

    from bvlm_utils import threats

    written = {word.lower() for text in all_wordings() for word in re.findall(r"[A-Za-z']+", text)}
    for name in ("targeted_refusal", "malicious_injection"):
        assert {w.lower() for w in re.findall(r"[A-Za-z']+", threats.get(name).target.text)} <= written
    assert {"banana", "bananas", "statue", "moon", "night", "sure", "here", "is", "access", "code"} <= written


@pytest.mark.parametrize("index", range(12))
def test_pretraining_pictures_are_labelled_on_the_token_grid(index):
    picture = pictures_and_words.draw(index, seed=0)
    assert picture.pixels.shape == (96, 96, 3) and picture.pixels.dtype == np.uint8
    assert picture.concept_grid.shape == picture.sticker_grid.shape == (6, 6)
    assert picture.concept_grid.any() and len(picture.turns) == 6
