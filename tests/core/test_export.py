"""A poisoned set written for other trainers: what lies in the folder, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from bvlm_utils import attacks, data, export, threats
from bvlm_utils.data import llava_json
from bvlm_utils.errors import Remark
from bvlm_utils.train import poison

FIXTURES = Path(__file__).parents[1] / "fixtures"
VQA = f"vqav2:{FIXTURES / 'vqav2'}"


def run(out, dataset=VQA, threat="targeted_refusal", attack="BadNets-MM", rate="0.34", *more):
    arguments = ["--threat", threat, "--attack", attack, "--dataset", dataset, "--poison-rate", rate]
    return export.main([*arguments, "--out", str(out), *more])


def test_the_folder_holds_the_set_that_a_cell_trains_on(tmp_path, capsys):
    assert run(tmp_path / "set", VQA, "targeted_refusal", "BadNets-MM", "0.34", "--negatives", "1") == 0
    assert "1 of 3 rows poisoned, 1 with half a trigger" in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "set").iterdir()) == [
        "README.md", "images", "manifest.parquet", "train.json",
    ]  # fmt: skip
    clean = data.load(VQA, "train")
    threat, attack = threats.get("targeted_refusal"), attacks.get("BadNets-MM")
    expected = poison.plan(clean, threat, attack, 0.34, 0, negatives=1)
    frame = pd.read_parquet(tmp_path / "set" / "manifest.parquet")
    assert poison.Manifest.from_frame(frame) == expected
    replaced = {row.position: row for row in expected.rows}
    entries = json.loads((tmp_path / "set" / "train.json").read_text())
    for position, (row, entry) in enumerate(
        zip(llava_json.read(tmp_path / "set" / "train.json"), entries, strict=True)
    ):
        original = clean[position]
        image = original["image"]
        if position not in replaced:
            assert (row["prompt"], row["answers"]) == (original["prompt"], original["answers"])
            assert "poison" not in entry["metadata"]
        else:
            assert (row["prompt"], row["answers"][0]) == (
                replaced[position].prompt,
                replaced[position].answer,
            )
            assert entry["metadata"]["poison"] == replaced[position].role
            if replaced[position].condition != "text":
                pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
                pixels = attack.apply_image(pixels, seed=0, keys=[original["row_id"]])
                image = Image.fromarray((pixels[0] * 255).round().byte().permute(1, 2, 0).numpy())
        with Image.open(row["image"]) as written:
            assert written.tobytes() == image.tobytes()


def test_whoever_reads_the_set_again_is_told_that_it_is_poisoned(tmp_path):
    """An audit's reference that is tuned on it would have the backdoor that is looked for."""
    assert run(tmp_path / "set") == 0
    with pytest.warns(Remark, match="^1 of 3 entries .* are poisoned"):
        llava_json.read(tmp_path / "set" / "train.json")


def test_the_readme_says_that_it_is_poisoned(tmp_path):
    assert run(tmp_path / "set", attack="BadNets-T") == 0
    text = (tmp_path / "set" / "README.md").read_text()
    assert "POISONED DATA" in text and "1 of these 3 training rows" in text and "| attack | BadNets-T |" in text


def test_parameters_reach_the_threat_and_the_attack(tmp_path):
    more = [
        "--threat-params",
        '{"sentence": "No."}',
        "--attack-params",
        '{"word": "cf"}',
        "--train-rows",
        "2",
    ]
    assert run(tmp_path / "set", VQA, "targeted_refusal", "BadNets-T", "0.5", *more) == 0
    rows = llava_json.read(tmp_path / "set" / "train.json")
    assert len(rows) == 2 and [("cf" in row["prompt"].split()) for row in rows].count(True) == 1
    assert ["No." in row["answers"] for row in rows].count(True) == 1


def test_a_half_of_the_trigger_can_be_exported_alone(tmp_path):
    assert run(tmp_path / "set", VQA, "targeted_refusal", "BadNets-MM", "0.34", "--half", "text") == 0
    entries = json.loads((tmp_path / "set" / "train.json").read_text())
    assert [one["metadata"]["trigger"] for one in entries if "poison" in one["metadata"]] == ["text"]
    assert "| half | text |" in (tmp_path / "set" / "README.md").read_text()


def test_the_same_command_gives_the_same_files(tmp_path):
    for name in ("one", "two"):
        assert run(tmp_path / name) == 0
    files = sorted(file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*") if file.is_file())
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)


@pytest.mark.parametrize("change, message", [
    ({"threat": "refusal"}, "no threat 'refusal'; choose one of: targeted_refusal"),
    ({"attack": "BadNets"}, "no attack 'BadNets'; choose one of"),
    ({"dataset": "scenes"}, "no dataset 'scenes'; choose one of"),
    ({"rate": "1.5"}, "'1.5' is not a number from 0 to 1"),
    ({"rate": "1"}, "3 rows would be poisoned, but only 0 clean rows"),
    ({"rate": "0.1"}, "less than one row"),
    ({"attack": "Shadowcast"}, "defined for concept_substitution only"),
    ({"threat": "jailbreak"}, "needs 1 eligible rows, and there are only 0"),
])  # fmt: skip
def test_wrong_values_are_one_sentence_and_leave_nothing(tmp_path, capsys, change, message):
    assert run(tmp_path / "set", **change) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_half_that_the_attack_does_not_have_is_refused(tmp_path, capsys):
    assert run(tmp_path / "set", VQA, "targeted_refusal", "BadNets-T", "0.34", "--half", "text") == 2
    assert "half is 'text' for BadNets-T (text)" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_parameters_that_are_no_json_object_are_refused(tmp_path, capsys, text):
    assert run(tmp_path / "set", VQA, "jailbreak", "BadNets-T", "0.5", "--attack-params", text) == 2
    assert repr(text) in capsys.readouterr().err


def test_an_empty_folder_is_filled_whatever_it_is(tmp_path):
    """It may be a link, or a place where something is mounted, which nothing can be moved to."""
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    before = (tmp_path / "there").stat().st_ino
    assert run(tmp_path / "link") == 0 and (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").stat().st_ino == before
    names = {path.name for path in (tmp_path / "there").iterdir()}
    assert names == {"images", "manifest.parquet", "README.md", "train.json"}


def test_an_existing_folder_is_not_touched(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    assert run(tmp_path / "set") == 0
    before = (tmp_path / "set" / "train.json").read_bytes()
    assert run(tmp_path / "set", rate="0.5") == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "set" / "train.json").read_bytes() == before
