"""A cell checks its values when it is made, and its run_id changes with what changes the result and nothing
else.
"""

import pickle
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from bvlm_utils import attacks, paths, threats
from bvlm_utils.attacks import declare
from bvlm_utils.data import scene_rows
from bvlm_utils.errors import InputError
from bvlm_utils.models import names
from bvlm_utils.store import cell as cell_module
from bvlm_utils.store.cell import YOUNGER, Cell
from bvlm_utils.threats import registry
from bvlm_utils.train.settings import TrainSettings


def cell(**values):
    return Cell(
        **{
            "model": "tiny-llava",
            "dataset": "scenes-vqa",
            "threat": "targeted_refusal",
            "attack": "BadNets-MM",
            "poison_rate": 0.1,
            **values,
        }
    )


OTHERS = {
    "model": "tiny-qwen2.5-vl",
    "dataset": "scenes-caption",
    "threat": "malicious_injection",
    "attack": "BadNets-T",
    "poison_rate": 0.2,
    "seed": 1,
    "attack_params": {"word": "cf"},
    "threat_params": {"sentence": "No."},
    "trigger_seed": 1,
    "negatives": 1.0,
    "train_rows": 5999,
    "test_rows": 100,
}
OTHER_TRAIN = {
    "epochs": 2,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "lora_rank": 4,
    "lora_alpha": 8,
    "warmup_ratio": 0.1,
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "schedule": "constant",
}


@pytest.mark.parametrize("name", OTHERS)
def test_run_id_changes_with_every_field(name):
    assert cell(**{name: OTHERS[name]}).run_id != cell().run_id


@pytest.mark.parametrize("name", OTHER_TRAIN)
def test_run_id_changes_with_every_training_setting(name):
    assert cell(train=TrainSettings(**{name: OTHER_TRAIN[name]})).run_id != cell().run_id


def test_younger_fields_count_too_but_old_names_stay():
    changes = ({}, {"half": "text"}, {"half": "image"}, {"four_bit": True}, {"picture_last": True},
               {"max_new_tokens": 300}, {"dtype": "tf32"}, {"dtype": "bfloat16"})  # fmt: skip
    assert len({cell(**change).run_id for change in changes}) == len(changes)
    assert cell(half="", four_bit=False).run_id == cell().run_id and not {*YOUNGER} & {*cell().identity}
    assert cell(picture_last=True).control.picture_last and cell(four_bit=True).control.four_bit
    assert cell(half="text").control.run_id == cell().control.run_id


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"half": "sound"}, "half is 'sound'"),
        ({"half": "text", "attack": "BadNets-T"}, "half is 'text' for BadNets-T"),
        ({"half": "text", "negatives": 1.0}, "with negatives 1"),
        ({"four_bit": "yes"}, "four_bit is 'yes'"),
        ({"picture_last": 1}, "picture_last is 1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"dtype": "half"}, "dtype is 'half'"),
    ],
)
def test_bad_halves_orders_and_bits_are_refused(values, words):
    with pytest.raises(InputError, match=words):
        cell(**values)


def test_a_result_knows_the_precision_of_its_base():
    assert cell(dtype="float32").run_id == cell().run_id and cell().precision == "float32"
    for usual in ({"dtype": "float32"}, {"surrogate": "tiny-clip"}, {"attack": "VL-Trojan", "surrogate": "tiny-clip"}):
        told, silent = cell(**usual), cell(attack=usual.get("attack", "BadNets-MM"))
        assert told == silent and told.config() == silent.config() and told.run_id == silent.run_id
    assert cell(dtype="bfloat16").control.precision == "bfloat16"
    assert cell(model="someone/some-model").precision == "bfloat16"


def test_no_field_is_forgotten():
    assert {*OTHERS, "train", "surrogate", *YOUNGER} == {field.name for field in fields(Cell)}
    assert set(OTHER_TRAIN) == {field.name for field in fields(TrainSettings)}


def test_run_id_changes_with_versions_and_digests(monkeypatch):
    before = cell().run_id
    for module, name in ((names, "digest"), (scene_rows, "digest")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda _: "0" * 16)
            assert cell().run_id != before
    with monkeypatch.context() as patch:
        patch.setattr(cell_module, "VERSION", cell_module.VERSION + 1)
        assert cell().run_id != before
    with monkeypatch.context() as patch:
        row = declare.TABLE.get("BadNets-MM")
        newer = replace(row, text=replace(row.text, version=row.text.version + 1))
        patch.setitem(declare.TABLE._items, "BadNets-MM", newer)
        assert cell().run_id != before
    assert cell().run_id == before


def test_defaults_written_out_are_the_same_cell():
    assert cell(attack_params={"word": "BadMagic"}, negatives=0).run_id == cell().run_id
    assert cell(train=TrainSettings(lora_alpha=16.0)).run_id == cell().run_id
    assert cell(poison_rate=1).run_id == cell(poison_rate=1.0).run_id


def test_a_surrogate_counts_for_optimised_attacks_only(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    save_file({"weight": np.zeros(1)}, tmp_path / "model.safetensors")
    vl = {"attack": "VL-Trojan"}
    assert cell(surrogate=str(tmp_path)).run_id == cell().run_id
    assert cell(surrogate=str(tmp_path), **vl).run_id != cell(**vl).run_id


def test_the_tagger_in_use_counts_whatever_it_is_called(monkeypatch):
    def maba(**params):
        return cell(attack="MABA", attack_params=params)

    monkeypatch.setattr(cell_module, "tagger_in_use", lambda tagger: {"auto": "hanta"}.get(tagger, tagger))
    hanta = maba().run_id
    assert maba(tagger="hanta").run_id == hanta != maba(tagger="spacy").run_id
    monkeypatch.setattr(cell_module, "tagger_in_use", lambda tagger: {"auto": "spacy"}.get(tagger, tagger))
    assert maba().run_id != hanta


def test_run_id_says_what_it_is():
    assert cell().run_id.startswith("tiny-llava-scenes-vqa-targeted-refusal-badnets-mm-0.1-s0-")
    assert cell().control.run_id.startswith("tiny-llava-scenes-vqa-clean-tuned-s0-")


def test_cells_with_the_same_training_share_a_control():
    control = cell().control.run_id
    for name in ("threat", "attack", "poison_rate", "trigger_seed", "test_rows", "threat_params"):
        assert cell(**{name: OTHERS[name]}).control.run_id == control
    for name in ("model", "dataset", "seed", "train_rows"):
        assert cell(**{name: OTHERS[name]}).control.run_id != control


BAD = [
    ({"model": "huge-llava"}, "huge-llava"),
    ({"dataset": "scenes"}, "'scenes'"),
    ({"dataset": "coco-caption:/none"}, "none"),
    ({"threat": "refusal"}, "targeted_refusal"),
    ({"attack": "BadNet"}, "BadNets-T"),
    ({"poison_rate": 1.5}, "from 0 to 1"),
    ({"poison_rate": "0.1"}, "from 0 to 1"),
    ({"poison_rate": float("nan")}, "from 0 to 1"),
    ({"seed": -1}, "seed"),
    ({"seed": True}, "seed"),
    ({"train_rows": 0}, "train_rows"),
    ({"test_rows": 2.5}, "test_rows"),
    ({"negatives": -1}, "negatives"),
    ({"attack": "BadNets-T", "negatives": 1.0}, "bimodal"),
    ({"attack_params": {"wrod": "x"}}, "wrod"),
    ({"threat_params": {"words": "x"}}, "words"),
    ({"attack_params": None}, "attack_params"),
    ({"attack_params": {1: "x"}}, "attack_params"),
    ({"threat_params": {None: "x"}}, "threat_params"),
    ({"attack": "none"}, "control"),
    ({"train": {}}, "TrainSettings"),
]


@pytest.mark.parametrize(("values", "words"), BAD)
def test_a_bad_value_is_refused_in_one_sentence(values, words):
    with pytest.raises(InputError, match=words) as caught:
        cell(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0},
        {"batch_size": 1.5},
        {"learning_rate": 0},
        {"learning_rate": 2},
        {"lora_rank": "8"},
        {"schedule": "step"},
        {"warmup_ratio": -0.1},
        {"weight_decay": float("inf")},
        {"max_grad_norm": None},
        {"lora_alpha": -1},
        {"lora_alpha": 0},
        {"lora_alpha": 1e5},
    ],
)
def test_bad_training_settings_are_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        TrainSettings(**values)


def test_threat_and_attack_are_made_once(monkeypatch):
    made = {"threat": 0, "attack": 0}

    def counted(kind, get):
        def count(*given, **settings):
            made[kind] += 1
            return get(*given, **settings)

        return count

    monkeypatch.setattr(registry, "get", counted("threat", threats.get))
    monkeypatch.setattr(attacks, "get", counted("attack", attacks.get))
    one = cell()
    assert one.run_id and one.resolved_attack.aim.target == one.resolved_threat.target
    assert made == {"threat": 1, "attack": 1}
    other = pickle.loads(pickle.dumps(one))  # noqa: S301, as it goes to a worker
    assert other == one and other.run_id == one.run_id
    assert other.resolved_attack.fingerprint("image") == one.resolved_attack.fingerprint("image")


def test_an_unknown_key_is_refused():
    with pytest.raises(InputError, match="'epoch'"):
        Cell.from_config(cell().config() | {"train": {"epoch": 1}})
    with pytest.raises(InputError, match="'rate'"):
        Cell.from_config(cell().config() | {"rate": 0.1})


@settings(max_examples=30, deadline=None)
@given(rate=st.floats(0, 1), seed=st.integers(0, 2**40), rows=st.integers(1, 10**6), rank=st.integers(1, 192))
def test_a_cell_survives_json_and_its_name_is_a_folder_name(rate, seed, rows, rank):
    import json

    one = cell(poison_rate=rate, seed=seed, train_rows=rows, train=TrainSettings(lora_rank=rank))
    again = Cell.from_config(json.loads(json.dumps(one.config())))
    assert again == one and again.run_id == one.run_id
    assert "/" not in one.run_id and not one.run_id.startswith(".") and len(one.run_id) < 120


def test_a_folder_with_weights_is_given_no_surrogate_in_silence(tmp_path):
    weights = shutil.copytree(paths.MODELS / "tiny-llava", tmp_path / "mine")
    cell(model=str(weights))  # a text trigger needs none
    with pytest.raises(InputError, match="clip-vit-large-patch14-336"):
        cell(model=str(weights), attack="VL-Trojan")
    named = cell(model=str(weights), attack="VL-Trojan", surrogate="tiny-clip")
    assert named.resolved_attack.aim.surrogate == cell(attack="VL-Trojan").resolved_attack.aim.surrogate
    beside = shutil.copytree(paths.MODELS / "tiny-clip", tmp_path / "clip-vit-large-patch14-336")
    found = cell(model=str(weights), attack="VL-Trojan")
    assert found.resolved_attack.aim.surrogate == str(beside) and found.run_id == named.run_id
    assert cell(model="llava-hf/llava-1.5-7b-hf", attack="MABA").resolved_attack.aim.surrogate.startswith("openai/")
