"""Pictures and prompts of triggers, kept in a store."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from bvlm_utils.store import examples
from bvlm_utils.store.cell import Cell

CLEAN = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)


def cell(rate=0.1, attack="BadNets-T", threat="targeted_refusal", **values):
    dataset = "scenes-caption" if threat == "concept_substitution" else "scenes-vqa"
    return Cell("tiny-llava", dataset, threat, attack, rate, **values)


def test_examples_come_back(tmp_path):
    assert examples.read(cell(), tmp_path) is None
    examples.write(cell(), tmp_path, CLEAN, 255 - CLEAN, [("a", "a b")] * 3)
    clean, triggered, prompts = examples.read(cell(0.2, seed=3), tmp_path)  # rate and seed do not change the trigger
    assert (clean == CLEAN).all() and (triggered == 255 - CLEAN).all() and prompts == [("a", "a b")] * 3
    assert examples.read(cell(trigger_seed=1), tmp_path) is None


def test_pictures_that_several_triggers_are_shown_on_are_kept_once(tmp_path):
    examples.write(cell(), tmp_path, CLEAN, CLEAN, [("a", "a b")])
    examples.write(cell(attack="BadNets-I"), tmp_path, CLEAN, 255 - CLEAN, [("a", "a")])
    assert len(list((tmp_path / "examples").glob("*.png"))) == 2
    assert (examples.read(cell(), tmp_path)[1] == CLEAN).all()


def test_examples_of_another_target_or_surrogate_are_others(tmp_path):
    def dual_key(**values):
        return cell(0.1, "Dual-Key", "concept_substitution", **values)

    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    save_file({"weight": np.zeros(1)}, tmp_path / "model.safetensors")
    cells = [dual_key(), dual_key(threat_params={"target_concept": "apple"}), dual_key(surrogate=str(tmp_path))]
    assert len({examples.key(one) for one in cells}) == 3
    assert examples.key(dual_key(surrogate="tiny-clip", seed=1)) == examples.key(dual_key())


@pytest.mark.parametrize("made", [
    lambda file: cell(attack="Blended", attack_params={"picture": file}),
    lambda file: cell(threat="perceptual_hijack", threat_params={"picture": file}),
])  # fmt: skip
def test_examples_of_another_picture_in_the_same_file_are_others(tmp_path, made):
    keys = set()
    for colour in ("red", "blue"):
        Image.new("RGB", (8, 8), colour).save(tmp_path / "mine.png")
        keys |= {examples.key(made(str(tmp_path / "mine.png")))}
    assert len(keys) == 2


@pytest.mark.parametrize("width", ["0", "1e999", "-4", "5", "null", "[]", "1e-9"])
def test_pictures_of_no_width_are_named_and_made_again(tmp_path, capsys, width):
    examples.write(cell(), tmp_path, CLEAN, CLEAN, [("a", "a b")])
    (file,) = (tmp_path / "examples").glob("*.json")
    file.write_text(file.read_text().replace('"width": 4', f'"width": {width}'))
    assert examples.read(cell(), tmp_path) is None and str(file) in capsys.readouterr().err
    examples.write(cell(), tmp_path, CLEAN, CLEAN, [("a", "a b")])
    assert (examples.read(cell(), tmp_path)[0] == CLEAN).all()


def test_a_path_is_never_taken_from_a_file(tmp_path, capsys):
    examples.write(cell(), tmp_path, CLEAN, CLEAN, [("a", "a b")])
    (file,) = (tmp_path / "examples").glob("*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"clean": "../../elsewhere"}))
    assert examples.read(cell(), tmp_path) is None and "elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["json", "png"])
@pytest.mark.parametrize("length", [0, 1, 40])
def test_a_file_that_is_cut_off_is_named_and_made_again(tmp_path, capsys, kind, length):
    shown = [("a", "a b")] * 3
    examples.write(cell(), tmp_path, CLEAN, CLEAN, shown)
    (file,) = (tmp_path / "examples").glob(f"*.{kind}")
    file.write_bytes(file.read_bytes()[:length])
    assert examples.read(cell(), tmp_path) is None
    said = capsys.readouterr().err
    assert str(tmp_path / "examples") in said and len(said.splitlines()) == 1
    examples.write(cell(), tmp_path, CLEAN, CLEAN, shown)
    clean, _, prompts = examples.read(cell(), tmp_path)
    assert (clean == CLEAN).all() and prompts == shown
