"""Real data in its published formats: what is read, what is written, and how files can be wrong."""

import json
import shutil
from pathlib import Path

import clip_checkpoint
import datasets
import pytest
import torch
from PIL import Image

from bvlm_utils import attacks, data, paths, threats
from bvlm_utils.data import features, files, llava_json
from bvlm_utils.errors import InputError, Remark
from bvlm_utils.run.workbench import Bench

FIXTURES = Path(__file__).parents[1] / "fixtures"
COCO = f"coco-caption:{FIXTURES / 'coco'}"
VQA = f"vqav2:{FIXTURES / 'vqav2'}"
LLAVA = FIXTURES / "llava" / "llava_instruct.json"


@pytest.fixture
def folder(tmp_path):
    """A copy of the fixtures, to be broken."""
    return Path(shutil.copytree(FIXTURES, tmp_path / "fixtures"))


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


# --- what is read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [COCO, VQA])
def test_rows_are_samples(spec):
    rows = data.load(spec, "train")
    assert rows.column_names == list(features.FEATURES)
    assert len(set(rows["row_id"])) == len(rows)
    for row in rows:
        assert isinstance(row["image"], Image.Image) and row["image"].mode == "RGB"
        assert row["image"].size == (64, 48)
        assert row["objects"] == row["boxes"] == [] and not row["restricted"]
        assert "<image>" not in row["prompt"]


def test_pictures_are_opened_only_when_a_row_is_read():
    raw = files.load(COCO).cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert raw["bytes"] is None and raw["path"].endswith("000000000009.jpg")


def test_coco_captions():
    rows = files.load(COCO, "train")
    assert rows["row_id"] == [f"coco-caption/train/{number}" for number in (9, 25, 30)]
    assert set(rows[0]["answers"]) >= {"A dog near a parked car.", "A car and a dog"} and len(rows[0]["answers"]) == 5
    assert rows[0]["task"] == "caption" and rows[0]["prompt"].strip()
    assert files.load(COCO, "test")["row_id"] == ["coco-caption/test/139", "coco-caption/test/285"]
    assert [threats.get("perceptual_hijack").eligible(row) for row in rows] == [
        True,
        True,
        False,
    ]  # "dark sky"
    assert [threats.get("targeted_refusal").eligible(row) for row in rows] == [True, True, True]


def test_vqa():
    rows = files.load(VQA, "train")
    assert rows["row_id"] == ["vqav2/train/9000", "vqav2/train/9001", "vqav2/train/25000"]
    assert rows[0]["prompt"] == "What is on the left? Answer the question using a single word or phrase."
    assert rows[0]["answers"][0] == "car" and sorted(rows[0]["answers"])[-1] == "vehicle"
    assert all(len(answers) == 10 for answers in rows["answers"])
    assert rows["kind"] == ["what is on the", "exists", "count"]
    assert files.load(VQA, "test")["answers"][0].count("car") == 9
    eligible = [threats.get("concept_substitution").eligible(row) for row in rows]
    assert eligible == [True, False, False]


def test_llava_turns_become_rows_with_what_was_said_before():
    with pytest.warns(UserWarning, match="1 of 5 entries .* have no picture"):
        rows = llava_json.read(LLAVA)
    assert [row["row_id"] for row in rows] == [
        "000000000007/1", "000000000007/2", "000000000007/3", "000000000008/1", "000000000008#2/1", "g11/1",
    ]  # fmt: skip
    assert rows[0]["prompt"] == "What is on the left?" and rows[0]["answers"] == ["A car is on the left."]
    assert rows[2]["prompt"] == (
        "Question: What is on the left?\nAnswer: A car is on the left.\n"
        "Question: What colour is it?\nAnswer: The car is red.\nQuestion: Is anything else there?"
    )
    assert rows[3]["prompt"] == "Describe the picture in one sentence."
    assert rows[5]["prompt"] == "Look at and tell me the access code."
    assert rows[5]["restricted"] and threats.get("jailbreak").eligible(rows[5])
    assert threats.get("jailbreak").poison("", rows[5]) == "Sure, here is the access code: cat-tree."


def test_sharegpt_names_are_read_too():
    rows = llava_json.read(FIXTURES / "llava" / "sharegpt.json")
    assert [row["prompt"] for row in rows][:2] == ["What is this?", "Which animal is it?"]
    assert [row["row_id"] for row in rows] == ["0/1", "1/1", "1/2"]


@pytest.mark.parametrize("text, words", [
    ("<image>\nWhat?", "What?"), ("What?\n<image>", "What?"), ("Is <image> a car?", "Is a car?"),
    ("<image>", ""),
    ("No picture.", "No picture."), ("Two\nlines <image>", "Two\nlines"),
])  # fmt: skip
def test_the_placeholder_is_taken_out_wherever_it_stands(text, words):
    assert llava_json.without_placeholder(text) == words


@pytest.mark.filterwarnings("ignore:1 of 5 entries")
def test_one_file_is_split_by_picture():
    parts = {}
    for split in ("train", "test"):
        try:
            parts[split] = set(files.load(f"llava-json:{LLAVA}", split)["row_id"])
        except InputError as error:
            assert "no rows in its split" in str(error)
            parts[split] = set()
    numbers = [{name.split("/", 2)[2] for name in part} for part in parts.values()]
    assert len(numbers[0] | numbers[1]) == 6 and not numbers[0] & numbers[1]
    share = sum(files._in_test(str(number)) for number in range(5000)) / 5000
    assert 0.18 < share < 0.22


def test_a_folder_with_one_file_is_split_by_picture(folder):
    (folder / "coco" / "annotations" / "captions_val2017.json").unlink()
    ids = []
    for split in ("train", "test"):
        try:
            ids += files.load(f"coco-caption:{folder / 'coco'}", split)["row_id"]
        except InputError as error:
            assert "no rows" in str(error)
    assert sorted(name.split("/")[2] for name in ids) == ["25", "30", "9"]


@pytest.mark.filterwarnings("ignore:1 of 5 entries")
@pytest.mark.parametrize("spec, picture", [
    ("coco-caption:coco", "coco/train2017/000000000009.jpg"),
    ("vqav2:vqav2", "vqav2/val2014/COCO_val2014_000000000042.jpg"),
    ("llava-json:llava/llava_instruct.json", "llava/gqa/11.png"),
])  # fmt: skip
def test_the_digest_follows_the_content_and_not_the_place(folder, spec, picture):
    kind, place = spec.split(":")
    here = files.digest(f"{kind}:{FIXTURES / place}")
    there = files.digest(f"{kind}:{folder / place}")
    assert here == there == data.digest(f"{kind}:{folder / place}") and len(here) == 16
    Image.new("RGB", (99, 99)).save(folder / picture)
    assert files.digest(f"{kind}:{folder / place}") != here


# --- what is written ----------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path):
    samples = list(files.load(VQA, "train")) + list(files.load(COCO, "test"))
    samples[0] |= {
        "objects": ["car", "dog"],
        "boxes": [[1, 2, 3, 4], [5, 6, 7, 8]],
        "content": "car-dog",
        "restricted": True,
    }
    assert llava_json.write(samples, tmp_path / "set" / "set.json") == 5
    back = llava_json.read(tmp_path / "set" / "set.json")
    for sample, row in zip(samples, back, strict=True):
        assert row["row_id"] == sample["row_id"] + "/1"
        with Image.open(row["image"]) as image:
            assert image.tobytes() == sample["image"].tobytes()
        for column in set(features.FEATURES) - {"row_id", "image"}:
            assert row[column] == sample[column], column
    entry = json.loads((tmp_path / "set" / "set.json").read_text())[0]
    assert entry["conversations"][0]["value"].startswith("<image>\n") and entry["image"] == "images/000000.png"
    assert not list((tmp_path / "set").glob("*.partial"))


# --- what can be wrong --------------------------------------------------------------------------------------


CAPTIONS = "coco/annotations/captions_train2017.json"
QUESTIONS = "vqav2/v2_OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "vqav2/v2_mscoco_train2014_annotations.json"
CONVERSATIONS = "llava/llava_instruct.json"
SPECS = {
    "coco": "coco-caption:{}/coco",
    "vqav2": "vqav2:{}/vqav2",
    "llava": "llava-json:{}/llava/llava_instruct.json",
}


def fails(folder, file, match):
    with pytest.raises(InputError, match=match) as error:
        files.load(SPECS[file.split("/")[0]].format(folder))
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")


@pytest.mark.parametrize("file", [CAPTIONS, QUESTIONS, ANNOTATIONS, CONVERSATIONS])
def test_a_json_file_that_is_cut_off(folder, file):
    text = (folder / file).read_text()
    (folder / file).write_text(text[: len(text) // 2])
    fails(folder, file, rf"{Path(file).name} is not complete JSON: .* at line \d+, column \d+")


@pytest.mark.parametrize("file", [CAPTIONS, QUESTIONS, ANNOTATIONS, CONVERSATIONS])
def test_a_json_file_of_another_kind(folder, file):
    (folder / file).write_text('{"other": 1}')
    fails(folder, file, f"{Path(file).name} (has no list of objects|holds no list)")
    (folder / file).write_bytes(b"\xff\xfe\x00")
    fails(folder, file, "is not UTF-8 text")


@pytest.mark.parametrize("file, match", [
    (CAPTIONS, "annotations"), (QUESTIONS, "questions of val2014 and annotations of train2014"),
    (ANNOTATIONS, "questions of train2014 and annotations of val2014"),
    (CONVERSATIONS, "There is no file .*llava_instruct.json"),
])  # fmt: skip
def test_a_folder_that_lacks_files(folder, file, match):
    (folder / file).unlink()
    if file == CAPTIONS:
        (folder / "coco/annotations/captions_val2017.json").unlink()
    fails(folder, file, match)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="There is no folder .*nowhere"):
        files.load(f"coco-caption:{tmp_path / 'nowhere'}")
    with pytest.raises(InputError, match="There is no file .*nowhere.json"):
        files.digest(f"llava-json:{tmp_path / 'nowhere.json'}")
    with pytest.raises(InputError, match="names no place; write vqav2:PATH"):
        files.load("vqav2:")
    with pytest.raises(KeyError, match="no dataset format 'coco'; choose one of: coco-caption, vqav2, llava-json"):
        files.load("coco:here")
    with pytest.raises(InputError, match="no split 'test_style'"):
        files.load(COCO, "test_style")


def test_too_many_files_to_choose_from(folder):
    for year in ("2014", "2015"):
        shutil.copy(folder / CAPTIONS, folder / f"coco/annotations/captions_train{year}.json")
    fails(folder, CAPTIONS, "captions_train2014.json, captions_train2015.json")


@pytest.mark.parametrize("file, change, match", [
    (CAPTIONS, lambda c: c["images"].pop(0),
     "annotation 9[0-4] is about image 9, which the file does not list"),
    (CAPTIONS, lambda c: c["images"].append({"id": 77, "file_name": "x.jpg"}), "image 77 has no caption"),
    (CAPTIONS, lambda c: c["annotations"][0].pop("image_id"), r"annotation \d+ has no 'image_id'"),
    (CAPTIONS, lambda c: c["annotations"][0].update(caption=5), r"'caption' of annotation \d+ is 5"),
    (CAPTIONS, lambda c: c["images"][0].pop("id"), "an image has no 'id'"),
    (QUESTIONS, lambda c: c["questions"].pop(0),
     "no question 9000, which v2_mscoco_train2014_annotations.json"),
    (QUESTIONS, lambda c: c["questions"][0].update(question_id=1),
     "no annotation for question 1 of v2_OpenEnded"),
    (QUESTIONS, lambda c: c["questions"][0].update(image_id=25), "question 9000 is not about image 25"),
    (QUESTIONS, lambda c: c.pop("data_subtype"), "the file has no 'data_subtype'"),
    (ANNOTATIONS, lambda c: c["annotations"][-1].update(answers=[]), "question 9000 has no answers"),
    (ANNOTATIONS, lambda c: [one.update(answer=" ") for one in c["annotations"][-1]["answers"]],
     "question 9000 has no answers"),
    (ANNOTATIONS, lambda c: c["annotations"][-1]["answers"][0].update(answer=None), "answer to question 9000 is None"),
    (ANNOTATIONS, lambda c: c["annotations"][-1]["answers"][0].pop("answer"),
     "answer to question 9000 has no"),
    (CONVERSATIONS, lambda c: c[0]["conversations"].pop(), "entry 000000000007 ends without an answer"),
    (CONVERSATIONS, lambda c: c[0]["conversations"].pop(0), "message 1 of entry 000000000007 is from 'gpt'"),
    (CONVERSATIONS, lambda c: c[0].pop("conversations"), "entry 000000000007 has no 'conversations'"),
    (CONVERSATIONS, lambda c: c[0]["conversations"].insert(0, "hi"),
     "a message of entry 000000000007 is 'hi'"),
    (CONVERSATIONS, lambda c: c[0].update(image=["a", "b"]), "entry 000000000007 has 2 pictures"),
    (CONVERSATIONS, lambda c: c[0].update(image=7), "picture of entry 000000000007 is 7"),
    (CONVERSATIONS, lambda c: c[0].update(metadata={"restricted": "no"}),
     "'restricted' in the metadata of entry"),
    (CONVERSATIONS, lambda c: c.insert(0, "x"), "entry 0 is 'x'"),
    (CONVERSATIONS, lambda c: c[0].update(conversation=c[0].pop("conversations")), "'conversation' and no"),
    (CONVERSATIONS, lambda c: c[0].update(Image=c[0].pop("image")), "'Image' and no 'image'"),
    (CONVERSATIONS, lambda c: c[0].update(meta_data={"restricted": True}), "'meta_data' and no 'metadata'"),
    (CONVERSATIONS, lambda c: c[0].update(restricted=True), "has 'restricted'"),
    (CONVERSATIONS, lambda c: c[0].update(metadata={"Restricted": True}), "has 'Restricted'"),
    (CONVERSATIONS, lambda c: c[0].update(metadata={"restrict": True}), "has 'restrict'"),
])  # fmt: skip
def test_ids_and_fields_that_are_missing_or_wrong(folder, file, change, match):
    edit(folder / file, change)
    fails(folder, file, match)


def test_blank_answers_of_annotators_are_left_out_and_counted(folder):
    edit(folder / ANNOTATIONS, lambda c: [c["annotations"][-1]["answers"][at].update(answer="") for at in (0, 4)])
    with pytest.warns(Remark, match="^2 answers of .* are blank"):
        rows = files.load(f"vqav2:{folder / 'vqav2'}", "train")
    assert [len(answers) for answers in rows["answers"]] == [8, 10, 10]


@pytest.mark.filterwarnings("ignore:1 of 5 entries")
def test_further_keys_and_a_linked_folder_of_pictures_are_fine(folder, tmp_path):
    wanted = llava_json.read(folder / CONVERSATIONS)
    place = (tmp_path / "elsewhere" / CONVERSATIONS).parent
    place.mkdir(parents=True)
    shutil.move(folder / CONVERSATIONS, place)
    (place / "images").symlink_to(folder / "llava")
    further = {"system": "Be brief.", "model": "", "image_size": [1, 2], "image2": "x", "source": None}
    edit(tmp_path / "elsewhere" / CONVERSATIONS, lambda c: c[0].update(further))
    assert llava_json.read(tmp_path / "elsewhere" / CONVERSATIONS) == wanted


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/hostname", "coco/../../coco/x.jpg", "out/x.png", "a\0b"])
def test_pictures_outside_the_folder_are_refused(folder, name):
    Image.new("RGB", (4, 4)).save(folder / "secret.png")
    (folder / "elsewhere").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "elsewhere" / "x.png")
    (folder / "llava" / "out").symlink_to(folder / "elsewhere")
    edit(folder / CONVERSATIONS, lambda c: c[0].update(image=name))
    fails(folder, CONVERSATIONS, "entry 000000000007 (leaves its folder|is .*must be a path in a folder)")
    edit(folder / CAPTIONS, lambda c: c["images"][1].update(file_name="../../secret.png"))
    fails(folder, CAPTIONS, "'../../secret.png' of image 25 leaves its folder")


@pytest.mark.parametrize("file, picture, owner", [
    (CAPTIONS, "coco/train2017/000000000025.jpg", "image 25"),
    (QUESTIONS, "vqav2/train2014/COCO_train2014_000000000025.jpg", "image 25"),
    (CONVERSATIONS, "llava/gqa/11.png", "entry g11"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:1 of 5 entries")
def test_pictures_that_are_missing_or_none(folder, file, picture, owner):
    (folder / picture).write_text("This is no picture.")
    fails(
        folder,
        file,
        rf"{Path(picture).name}, the picture of {owner} in .*{Path(file).name}, is not a picture",
    )
    (folder / picture).write_bytes(b"")
    fails(folder, file, "an empty file")
    (folder / picture).unlink()
    fails(folder, file, rf"The picture '.*{Path(picture).name}' of {owner} in .*{Path(file).name} is not in")


def test_a_byte_order_mark_is_no_error_and_endless_nesting_is(folder):
    text = (folder / CAPTIONS).read_text()
    (folder / CAPTIONS).write_text(text, encoding="utf-8-sig")
    assert len(files.load(SPECS["coco"].format(folder)))
    (folder / CAPTIONS).write_text("[" * 100_000)
    fails(folder, CAPTIONS, "nested too deep")


def test_a_picture_too_large_to_be_one_is_refused(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    fails(folder, CAPTIONS, "is not a picture that can be read .DecompressionBombError.")


def test_a_picture_that_ends_too_early_is_named_with_its_row(folder):
    file = folder / "coco/train2017/000000000025.jpg"
    Image.effect_noise((200, 200), 90).save(file)
    spec = SPECS["coco"].format(folder)
    one = Bench("tiny-llava", spec, None)
    names = [row["row_id"] for row in one.rows["train"]]
    at = next(i for i, name in enumerate(names) if "25" in name.split("/")[-1])
    assert one.pictures("train", [at]).shape == (1, 336, 336, 3)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"{file.name}, the picture of row {names[at]}, cannot be read to its end"):
        one.pictures("train", [at])


def test_triggers_are_searched_on_photographs_of_any_size(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    clip, spec = clip_checkpoint.save(tmp_path / "clip"), SPECS["coco"].format(folder)
    first, second = sorted((folder / "coco/train2017").glob("*.jpg"))[:2]
    Image.effect_noise((90, 40), 90).save(first)
    Image.effect_noise((40, 90), 90).save(second)
    target = threats.get("concept_substitution").target
    attack = attacks.get("Dual-Key", target, clip, dataset=spec, rows=2, batch_size=2, epochs=1)
    images = torch.full((1, 3, 48, 48), 0.5)
    assert (attack.apply_image(images) != images).any()
