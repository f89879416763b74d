"""What an attack reads from files is in a cell's name, and is looked at before a run."""

import json

import numpy as np
import pytest
from PIL import Image

from bvlm_utils import attacks, threats
from bvlm_utils.attacks import files
from bvlm_utils.errors import InputError
from bvlm_utils.run import study

FEW = {"train_rows": 64, "test_rows": 8}
SAID = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A car."}]


def noise(file, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(file)


def cell(attack, threat="concept_substitution", **given):
    (made,) = study.cells(threat, attacks=[attack], **FEW, **given)
    return made


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of pictures, data of eight rows, and things that are neither."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cars").mkdir()
    (tmp_path / "empty").mkdir()
    for number in range(3):
        noise(tmp_path / "cars" / f"{number}.png", number)
    for number in range(8):
        noise(tmp_path / f"{number}.png", number)
    rows = [{"id": number, "image": f"{number}.png", "conversations": SAID} for number in range(8)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    noise(tmp_path / "cut.png", 0)
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:400])
    (tmp_path / "words.png").write_text("words")
    return tmp_path


def test_another_picture_in_the_folder_of_the_source_is_another_cell(here):
    def names():
        made = cell("Shadowcast", attack_params={"source": str(here / "cars")})
        return made.run_id, made.resolved_attack.fingerprint("image")

    before = names()
    assert names() == before
    noise(here / "cars" / "1.png", 77)
    changed = names()
    noise(here / "cars" / "1.png", 1)
    assert not set(before) & set(changed) and names() == before


def test_other_data_to_compute_a_patch_with_are_another_cell(here):
    def names():
        made = cell("VL-Trojan", attack_params={"dataset": f"llava-json:{here / 'rows.json'}", "rows": 4})
        return made.run_id, made.resolved_attack.fingerprint("image")

    before = names()
    noise(here / "3.png", 77)
    assert not set(before) & set(names())


def test_a_picture_that_is_replaced_is_read_again(here):
    """A notebook's process goes on when somebody draws another trigger into the same file."""
    white = np.full((1, 16, 16, 3), 255, np.uint8)
    found = []
    for seed in range(2):
        noise(here / "mine.png", seed)
        found.append(attacks.get("ImgTrojan", picture="./mine.png").paint(white, 0, None))
    assert not np.array_equal(*found)


def test_what_is_no_file_leaves_names_as_they_were():
    assert files.digests(attacks.get("Shadowcast", threats.get("concept_substitution").target).params) == {}
    assert "attack_files" not in cell("Shadowcast").identity and "attack_files" not in cell("BadNets-T").identity


# threat, attack, parameters of one of them, what the sentence has to say
WRONG = [
    ("targeted_refusal", "Blended", {"attack_params": {"picture": "cut.png"}}, "read to its end"),
    ("targeted_refusal", "ImgTrojan", {"attack_params": {"picture": "words.png"}}, "words.png"),
    ("concept_substitution", "Shadowcast", {"attack_params": {"source": "empty"}}, "empty"),
    ("concept_substitution", "Shadowcast", {"attack_params": {"source": "saxhorn"}}, "'saxhorn'"),
    ("concept_substitution", "Shadowcast", {"threat_params": {"source_concept": "saxhorn"}}, "'saxhorn'"),
    ("targeted_refusal", "VL-Trojan", {"attack_params": {"dataset": "scenes"}}, "'scenes'"),
    ("targeted_refusal", "VL-Trojan", {"attack_params": {"dataset": "xyz:rows.json"}}, "'xyz'"),
    ("targeted_refusal", "VL-Trojan", {"attack_params": {"dataset": "llava-json:rows.json"}}, "256 were asked for"),
    (
        "targeted_refusal",
        "VL-Trojan",
        {"attack_params": {"dataset": "llava-json:rows.json", "rows": 4, "search_letters": 2}},
        "64 were asked for",
    ),
    ("targeted_refusal", "VL-Trojan", {"attack_params": {"rows": 10**6}}, "1000000 were asked for"),
    ("concept_substitution", "Dual-Key", {"attack_params": {"dataset": "llava-json:none.json"}}, "none.json"),
    ("perceptual_hijack", "BadNets-T", {"threat_params": {"picture": "cut.png"}}, "read to its end"),
    ("perceptual_hijack", "BadNets-T", {"threat_params": {"pool": ["statue", "moon", "Moon"]}}, "pool is"),
    ("perceptual_hijack", "BadNets-T", {"threat_params": {"core": ["moon", "moon"]}}, "'core' is ['moon', 'moon']"),
    ("targeted_refusal", "BadNets-MT", {"attack_params": {"words": ["cf", "cf"]}}, "each once"),
]


@pytest.mark.parametrize(("threat", "attack", "given", "words"), WRONG, ids=range(len(WRONG)))
def test_what_cannot_be_read_is_told_before_a_run(here, threat, attack, given, words):
    with pytest.raises(InputError) as caught:
        study.check_rows([cell(attack, threat, **given)])
    assert words in str(caught.value) and "\n" not in str(caught.value)
