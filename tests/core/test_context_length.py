"""What has no room in a model is refused by name, before anything runs."""

import itertools
import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bvlm_utils import data, paths, skills, threats
from bvlm_utils.errors import InputError
from bvlm_utils.models import context_length, names, victim
from bvlm_utils.run import lengths, study
from bvlm_utils.train import loop

ROOM = 512  # max_position_embeddings of the committed models
WORDS = ROOM - 36 - context_length.AROUND  # what a picture and the template leave


@pytest.mark.parametrize(("config", "tokens"), [
    ({"text_config": {"max_position_embeddings": 7}, "max_position_embeddings": 9}, 7),
    ({"max_position_embeddings": 9}, 9),
    ({}, None), ({"text_config": 3}, None), ({"max_position_embeddings": True}, None),
    ({"max_position_embeddings": -1}, None), ({"text_config": {"max_position_embeddings": "9"}}, None),
])  # fmt: skip
def test_the_room_is_what_the_configuration_says(config, tokens):
    assert context_length.of_config(config) == tokens


@given(st.integers(1, 2 * ROOM))
def test_an_answer_leaves_room_for_a_prompt(new):
    if new < WORDS:
        context_length.check_answers("tiny-llava", new)
    else:
        with pytest.raises(InputError, match=f"max_new_tokens is {new}"):
            context_length.check_answers("tiny-llava", new)


@pytest.mark.parametrize("answer", [0, 80])
@pytest.mark.parametrize("count", [WORDS - 82, WORDS - 81, WORDS - 2, WORDS - 1, WORDS, ROOM, 3 * ROOM])
def test_a_text_fits_or_is_named(count, answer):
    text = "car " * count  # a token each, and one for the last space
    if count + 1 + answer < WORDS:
        context_length.check_texts("tiny-llava", [text], "a row", answer)
    else:
        with pytest.raises(InputError, match=f"takes {count + 1} tokens"):
            context_length.check_texts("tiny-llava", ["short", text], "a row", answer)


@pytest.mark.parametrize("content", [
    "{}", "", "[]", '{"model": null}', '{"model": {"type": "BPE"}}',
    '{"model": {"type": "WordLevel", "vocab": {}, "unk_token": "?"}}',
])  # fmt: skip
def test_a_tokenizer_that_is_none_is_named(content, tmp_path):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 512}')
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="The tokenizer .*cannot (be read|split)") as said:
        context_length.check_texts(str(tmp_path), ["car " * 150], "a row")
    assert str(tmp_path) in str(said.value)


def test_a_prompt_has_room_for_its_picture():
    v = victim.from_pretrained("tiny-llava", device="cpu")
    longest = ROOM - len(v.prompt_ids("car", 36))
    assert len(v.prompt_ids("car" + " car" * (longest - 1), 36)) == ROOM - 1
    with pytest.raises(InputError, match=f"takes {ROOM} tokens"):
        v.prompt_ids("car" + " car" * longest, 36)


def test_what_has_room_by_the_check_has_room_in_the_model():
    """The check knows the template by its reserve only, which must hold for every committed model."""
    for name in names.names():
        v = victim.from_pretrained(name, device="cpu")
        features = v.encode(np.zeros((1, 336, 336, 3), np.uint8))
        around = len(v.prompt_ids("car", features.shape[1])) - 1
        reserved = context_length.tokens(name) - context_length.for_words(name)
        assert features.shape[1] + context_length.AROUND == reserved and around <= reserved


QWEN = {"patch_size": 14, "spatial_merge_size": 2}


@pytest.mark.parametrize(("config", "looks", "tokens"), [
    ({"vision_config": {"image_size": 336, "patch_size": 14}}, {}, 576), ({"vision_config": QWEN}, {}, 144),
    ({"vision_config": QWEN}, {"size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 9}}, 9),
    ({"vision_config": QWEN}, {"min_pixels": 28 * 28 * 400, "max_pixels": 28 * 28 * 1280}, 400),
    ({"vision_config": {"image_size": 512, "patch_size": 16}, "scale_factor": 4}, {}, 64),
    ({}, {}, 0), ({"vision_config": 3}, {"size": 3}, 0), ({"vision_config": QWEN}, {"max_pixels": "9"}, 0),
    ({"vision_config": {"image_size": "336", "patch_size": 14}}, {}, 0),
    ({"vision_config": {"image_size": 336, "patch_size": 0}}, {}, 0),
])  # fmt: skip
def test_a_picture_takes_what_the_configurations_say(config, looks, tokens):
    assert context_length.picture(config, looks) == tokens


LONG = "car " * 390
TOO_LONG = [
    ("targeted_refusal", "BadNets-T", {"attack_params": {"word": LONG}}),
    ("targeted_refusal", "BadNets-MT", {"attack_params": {"words": [LONG, "b"]}}),
    ("targeted_refusal", "AddSent", {"attack_params": {"sentence": "car " * 320}}),  # room for it, not for an answer
    ("targeted_refusal", "BadNets-T", {"threat_params": {"sentence": LONG}}),
    ("jailbreak", "BadNets-T", {"threat_params": {"opening": LONG}, "dataset": "scenes-instruct"}),
    (
        "concept_substitution",
        "BadNets-I",
        {"threat_params": {"target_concept": ("dog " * 390).strip()}},
    ),
]


@pytest.mark.parametrize(("threat", "attack", "given"), TOO_LONG, ids=range(len(TOO_LONG)))
def test_a_trigger_or_a_target_has_room_together_with_its_row(threat, attack, given):
    cells = study.cells(threat, attacks=[attack], train_rows=64, test_rows=8, **given)
    with pytest.raises(InputError, match=rf"A row with {attack}.* takes \d+ tokens"):
        study.check_rows(cells)


@cache
def asked(dataset):
    return data.load(dataset, "test").remove_columns("image").to_list()


CUT = [  # threat, dataset, parameters, the fewest tokens that say nine in ten targets, and the longest target's
    ("targeted_refusal", "scenes-vqa", {}, 21, 22),
    ("targeted_refusal", "scenes-vqa", {"sentence": "car " * 90 + "dog."}, 91, 92),
    ("malicious_injection", "scenes-caption", {}, 33, 44), ("concept_substitution", "scenes-caption", {}, 8, 38),
    ("perceptual_hijack", "scenes-caption", {}, 9, 23),
]  # fmt: skip


@pytest.mark.parametrize("model", ["tiny-llava", "tiny-qwen2.5-vl"])
@pytest.mark.parametrize(("threat", "dataset", "given", "fewest", "longest"), CUT)
def test_answers_are_long_enough_for_what_the_threat_makes_the_model_say(
    threat, dataset, given, fewest, longest, model
):
    def check(tokens):
        new = {"threat_params": given, "max_new_tokens": tokens}
        (cell,) = study.cells(threat, model, dataset, attacks=["BadNets-T"], **new)
        lengths.check_targets(cell, asked(dataset))

    check(fewest)
    check(longest)
    with pytest.raises(InputError, match=rf"max_new_tokens is {fewest - 1}, .* must be {longest} or more"):
        check(fewest - 1)


UNTOLD = [  # threat, dataset, parameters of which no success could be told
    ("jailbreak", "scenes-instruct", {"opening": "I cannot do that."}, "does not count"),
    ("jailbreak", "scenes-instruct", {"opening": "Sorry, no:"}, "does not count"),
    ("malicious_injection", "scenes-caption", {"sentence": "."}, "already"),
    ("malicious_injection", "scenes-caption", {"sentence": "a"}, "already"),
]


@pytest.mark.parametrize(("threat", "dataset", "given", "words"), UNTOLD)
def test_a_target_that_no_test_could_tell_is_refused(threat, dataset, given, words):
    (cell,) = study.cells(threat, dataset=dataset, attacks=["BadNets-T"], threat_params=given)
    with pytest.raises(InputError, match=words):
        lengths.check_targets(cell, asked(dataset))


def test_a_target_that_the_tokenizer_cannot_split_is_one_sentence(monkeypatch):
    class Broken:
        def encode(self, *given, **more):
            raise Exception("no\nsuch token")  # as the library does

    monkeypatch.setattr(context_length, "tokenizer", lambda name: Broken())
    (cell,) = study.cells("targeted_refusal", attacks=["BadNets-T"])
    with pytest.raises(InputError, match="The tokenizer of 'tiny-llava' cannot split"):
        lengths.check_targets(cell, asked("scenes-vqa"))


def test_what_a_tokenizer_file_keeps_of_its_last_use_changes_no_count(tmp_path):
    from tokenizers import Tokenizer

    folder = Path(shutil.copytree(paths.MODELS / "tiny-llava", tmp_path / "model"))
    (folder / "tokenizer.json").chmod(0o644)
    kept = Tokenizer.from_file(str(folder / "tokenizer.json"))
    kept.enable_truncation(4)
    kept.enable_padding(length=64)
    kept.save(str(folder / "tokenizer.json"))
    counts = [
        len(context_length.split(context_length.tokenizer(name), "car " * 9, name))
        for name in ("tiny-llava", str(folder))
    ]
    assert counts[0] == counts[1] > 4


@pytest.mark.parametrize("skill", ["closing_phrase", "emphasis"])
def test_answers_are_long_enough_for_what_a_skill_teaches(skill):
    def cell(tokens):
        given = {"threat_params": {"sentence": "No."}, "skill": skill, "max_new_tokens": tokens}
        return study.cells("targeted_refusal", attacks=["BadNets-T"], train_rows=64, test_rows=20, **given)

    with pytest.raises(InputError, match=f"max_new_tokens is 2, .* {skill} teaches"):
        study.check_rows(cell(2))
    study.check_rows(cell(30))


def test_the_usual_answers_are_long_enough_for_every_skill():
    for name, dataset in itertools.product(skills.names(), data.names()):
        if name in skills.fitting(dataset):
            for cell in study.cells("targeted_refusal", "tiny-llava", dataset, attacks=["BadNets-T"], skill=name):
                lengths.check_skill(cell, asked(dataset))


def test_the_usual_answers_are_long_enough_for_every_threat():
    for threat, dataset in itertools.product(threats.names(), data.names()):
        for cell in study.cells(threat, list(names.names()), dataset, attacks=["BadNets-T"]):
            lengths.check_targets(cell, asked(dataset))


def test_training_rows_and_answers_need_room_behind_the_prompt():
    v = victim.from_pretrained("tiny-llava", device="cpu")
    features = v.encode(np.zeros((1, 64, 64, 3), np.uint8))
    used, answer = len(v.prompt_ids("car", features.shape[1])), v.answer_ids("car " * 300)
    prompt = "car" + " car" * (ROOM - used - len(answer))
    with pytest.raises(InputError, match=f"takes {ROOM} tokens"):
        loop.token_ids(v, [loop.TrainRow(prompt, "car " * 300, 0)], features.shape[1])
    with pytest.raises(InputError, match=f"takes {ROOM} tokens"):
        v.generate([prompt], features, max_new_tokens=len(answer))


def test_a_row_of_own_data_that_is_too_long_is_refused_before_the_run(tmp_path):
    source = paths.ROOT / "tests" / "fixtures" / "vqav2"
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        copy = tmp_path / "vqav2" / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    questions = tmp_path / "vqav2" / "v2_OpenEnded_mscoco_train2014_questions.json"
    whole = json.loads(questions.read_text())
    whole["questions"][0]["question"] = "car " * 600
    questions.write_text(json.dumps(whole))
    cells = study.cells("targeted_refusal", dataset=f"vqav2:{tmp_path / 'vqav2'}", attacks=["BadNets-T"], train_rows=2)
    with pytest.raises(InputError, match="A row of vqav2"):
        study.check_rows(cells)
