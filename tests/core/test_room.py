"""What has no room in a model is refused by name, before anything runs."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bvlm_utils import paths
from bvlm_utils.errors import InputError
from bvlm_utils.models import room, victim
from bvlm_utils.run import study

ROOM = 512  # max_position_embeddings of the committed models


@pytest.mark.parametrize(("config", "tokens"), [
    ({"text_config": {"max_position_embeddings": 7}, "max_position_embeddings": 9}, 7),
    ({"max_position_embeddings": 9}, 9),
    ({}, None), ({"text_config": 3}, None), ({"max_position_embeddings": True}, None),
    ({"max_position_embeddings": -1}, None), ({"text_config": {"max_position_embeddings": "9"}}, None),
])  # fmt: skip
def test_the_room_is_what_the_configuration_says(config, tokens):
    assert room.of_config(config) == tokens


@given(st.integers(1, 2 * ROOM))
def test_an_answer_leaves_room_for_a_prompt(new):
    if new < ROOM:
        room.check_answers("tiny-llava", new)
    else:
        with pytest.raises(InputError, match=f"max_new_tokens is {new}"):
            room.check_answers("tiny-llava", new)


@pytest.mark.parametrize("count", [ROOM - 2, ROOM - 1, ROOM, 3 * ROOM])
def test_a_text_fits_or_is_named(count):
    text = "car " * count  # a token each, and one for the last space
    if count + 1 < ROOM:
        room.check_texts("tiny-llava", [text], "a row")
    else:
        with pytest.raises(InputError, match=f"takes {count + 1} tokens"):
            room.check_texts("tiny-llava", ["short", text], "a row")


def test_a_prompt_has_room_for_its_picture():
    v = victim.from_pretrained("tiny-llava", device="cpu")
    longest = ROOM - len(v.prompt_ids("car", 36))
    assert len(v.prompt_ids("car" + " car" * (longest - 1), 36)) == ROOM - 1
    with pytest.raises(InputError, match=f"takes {ROOM} tokens"):
        v.prompt_ids("car" + " car" * longest, 36)


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
