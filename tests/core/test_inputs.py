"""What people give: files, texts, numbers and names. Each kind of fault with its smallest input and the right value."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from bvlm_utils import attacks, chat, checks, documents, export, threats
from bvlm_utils.attacks import image as image_triggers
from bvlm_utils.data import files, llava_json, pictures, samples, scene_rows
from bvlm_utils.data.picture_files import check_picture, read_picture
from bvlm_utils.errors import InputError, Remark
from bvlm_utils.grid import file as grid_file
from bvlm_utils.run import study
from bvlm_utils.store.cell import Cell
from bvlm_utils.train.settings import TrainSettings

HALF = "a\ud800b"  # half of a surrogate pair
DIGITS = "9" * 5000


def refused(make, *words):
    with pytest.raises(InputError) as error:
        make()
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message
    message.encode("utf-8")


def conversations(folder: Path, *pictures_of: str, **more) -> Path:
    """A file of conversations, one for each picture named."""
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A car."}]
    found = [{"id": str(i), "image": name, "conversations": said} | more for i, name in enumerate(pictures_of)]
    file = folder / "set.json"
    file.write_text(json.dumps(found))
    return file


# --- pictures -----------------------------------------------------------------------------------------------


def as_row(file: Path) -> np.ndarray:
    found = files.FORMATS.get("llava-json").read([conversations(file.parent, file.name)])
    assert found[0]["picture_id"] == file.name
    split = "test" if files._in_test(file.name) else "train"
    return np.asarray(files.load(f"llava-json:{file.parent / 'set.json'}", split)[0]["image"])


def trained(file: Path) -> np.ndarray:
    split = "test" if files._in_test(file.name) else "train"
    spec = f"llava-json:{conversations(file.parent, file.name)}"
    return samples.sized_images(samples.load(spec, split), spec)[0]


READERS = {
    "rows": as_row,
    "training": trained,
    "chat": lambda file: chat.picture(str(file))[0],
    "trigger": lambda file: image_triggers.load_picture(str(file), 336, 336).permute(1, 2, 0).numpy() * 255,
    "source": lambda file: np.asarray(pictures.concept_pictures(str(file.parent), 336)[0]),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_turns_a_picture_as_it_says(tmp_path, reader):
    """Red on the left in the file; EXIF orientation 6 turns that to the top."""
    pixels = np.zeros((336, 336, 3), np.uint8)
    pixels[:, :168, 0], pixels[:, 168:, 2] = 250, 250
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    shown = READERS[reader](tmp_path / "a.jpg")
    assert shown.shape == (336, 336, 3)
    assert shown[:160, :, 0].min() > 200 and shown[176:, :, 2].min() > 200


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_scales_sixteen_bits(tmp_path, reader):
    ramp = np.tile(np.linspace(0, 65535, 336).astype(np.uint16), (336, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    shown = READERS[reader](tmp_path / "a.png")
    assert abs(shown.mean() - 127.5) < 0.5 and np.abs(shown[0, :, 0] - ramp[0] / 257).max() <= 1


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_lays_the_transparent_over_white_and_says_so(tmp_path, reader):
    pixels = np.full((336, 336, 4), 10, np.uint8)
    pixels[..., 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="laid over white"):
        assert READERS[reader](tmp_path / "a.png").min() == 255


def text_chunk(file):
    about = PngImagePlugin.PngInfo()
    about.add_text("about", "y" * 2_000_000, zip=True)
    Image.new("RGB", (8, 8)).save(file, pnginfo=about)


def broken_chunk(file):
    Image.effect_noise((64, 64), 90).save(file)
    content = bytearray(file.read_bytes())
    content[60:64] = b"\0\0\0\0"
    file.write_bytes(content)


def cut_off(file):
    Image.effect_noise((64, 64), 90).save(file, "JPEG")
    file.write_bytes(file.read_bytes()[:1500])


def floats(file):
    Image.fromarray(np.zeros((8, 8), np.float32)).save(file, "TIFF")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("spoil", [text_chunk, broken_chunk, cut_off, floats, lambda file: file.write_bytes(b"GIF89a")])
def test_every_reader_names_a_picture_that_it_cannot_read(tmp_path, reader, spoil):
    spoil(tmp_path / "a.png")
    refused(lambda: READERS[reader](tmp_path / "a.png"), "a.png, the picture of")


@given(st.integers(0, 2000), st.binary(min_size=1, max_size=8), st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP"]))
def test_a_spoilt_file_is_a_picture_or_a_sentence(tmp_path_factory, place, noise, kind):
    file = tmp_path_factory.getbasetemp() / "spoilt"
    Image.effect_noise((24, 24), 90).save(file, kind)
    content = bytearray(file.read_bytes())
    place %= len(content)
    content[place : place + len(noise)] = noise
    file.write_bytes(content)
    for read in (read_picture, check_picture):
        try:
            read(file, "a row")
        except InputError as error:
            assert "\n" not in str(error)


def test_exported_pictures_are_those_that_a_cell_trains_on(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    for name in range(12):
        Image.effect_noise((336, 336), 90).save(tmp_path / f"{name}.jpg", exif=exif)
    spec = f"llava-json:{conversations(tmp_path, *(f'{name}.jpg' for name in range(12)))}"
    export.export(Cell("tiny-llava", spec, "targeted_refusal", "BadNets-T", 0.3), tmp_path / "out")
    ours = samples.sized_images(samples.load(spec), spec)
    theirs = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "out" / "images").iterdir())]
    assert np.array_equal(ours, np.stack(theirs))


# --- names and ids ------------------------------------------------------------------------------------------


def test_pictures_of_one_name_in_many_folders_are_split_one_by_one(tmp_path):
    for name in range(60):
        (tmp_path / str(name)).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / str(name) / "image.png")
    file = conversations(tmp_path, *(f"{name}/image.png" for name in range(60)))
    sizes = {split: len(files.load(f"llava-json:{file}", split)) for split in ("train", "test")}
    assert sum(sizes.values()) == 60 and 3 <= sizes["test"] <= 25


@pytest.mark.parametrize("colour", ["black", "red"])
def test_a_copy_that_is_split_from_its_picture_is_told(tmp_path, recwarn, colour):
    both = [next(f"{n}/a.png" for n in range(99) if files._in_test(f"{n}/a.png") == tested) for tested in (True, False)]
    for name, shown in zip(both, ("black", colour), strict=True):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (4, 4), shown).save(tmp_path / name)
    assert len(files.load(f"llava-json:{conversations(tmp_path, *both)}", "train")) == 1
    assert len([one for one in recwarn if "what is tested there was trained on" in str(one.message)]) == (
        colour == "black"
    )


@given(st.lists(st.sampled_from(["7", "7#2", "7#3", 7, "7#2#2", None, "0", "1"]), min_size=1, max_size=9))
def test_row_ids_are_each_rows_own(tmp_path_factory, ids):
    folder = tmp_path_factory.getbasetemp()
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    file = conversations(folder, *["a.png"] * len(ids))
    file.write_text(json.dumps([e | {"id": i} for e, i in zip(json.loads(file.read_text()), ids, strict=True)]))
    found = [row["row_id"] for row in llava_json.read(file)]
    assert len(set(found)) == len(ids)


def coco(folder: Path, images, annotations) -> str:
    (folder / "captions_train.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    for name in "ab":
        Image.new("RGB", (4, 4)).save(folder / f"{name}.png")
    return f"coco-caption:{folder}"


A, B = {"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}
CAPTIONS = [{"id": 1, "image_id": 1, "caption": "A dog."}, {"id": 2, "image_id": 2, "caption": "A cat."}]


@pytest.mark.parametrize("images, annotations, words", [
    ([A, B | {"id": 1}], CAPTIONS, ["image 1 twice"]),
    ([A, B | {"id": "1"}], CAPTIONS, ["image 1 twice"]),
    ([A, B], [*CAPTIONS, CAPTIONS[0]], ["annotation 1 twice"]),
    ([A, B], [CAPTIONS[0], CAPTIONS[1] | {"caption": " "}], ["annotation 2", "not blank"]),
    ([A, B], [CAPTIONS[0], CAPTIONS[1] | {"image_id": None}], ["'image_id' of annotation 2 is None"]),
    ([A, B | {"file_name": "x" * 300}], CAPTIONS, ["image 2"]),
    ([A, B | {"file_name": HALF}], CAPTIONS, ["surrogate"]),
])  # fmt: skip
def test_what_coco_lists_twice_or_blank_is_named(tmp_path, images, annotations, words):
    refused(lambda: files.load(coco(tmp_path, images, annotations)), *words)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_picture_that_two_splits_list_is_refused(tmp_path, split):
    spec = coco(tmp_path, [A, B], CAPTIONS)
    (tmp_path / "captions_val.json").write_text(json.dumps({"images": [B], "annotations": CAPTIONS[1:]}))
    refused(lambda: files.load(spec, split), "1 pictures", "b.png", "'train' and in 'test'")
    (tmp_path / "captions_train.json").write_text(json.dumps({"images": [A], "annotations": CAPTIONS[:1]}))
    assert len(files.load(spec, split)) == 1


def test_a_copy_of_a_picture_in_the_other_split_is_refused(tmp_path):
    spec = coco(tmp_path, [A, B], CAPTIONS)
    (tmp_path / "captions_val.json").write_text(json.dumps({"images": [B], "annotations": CAPTIONS[1:]}))
    (tmp_path / "val").mkdir()
    shutil.copy(tmp_path / "b.png", tmp_path / "val")
    refused(lambda: files.load(spec, "train"), "1 pictures", "b.png")
    Image.new("RGB", (5, 5)).save(tmp_path / "val" / "b.png")
    assert len(files.load(spec, "test")) == 1


def test_ids_as_text_and_as_number_are_one(tmp_path):
    spec = coco(tmp_path, [A, B], [CAPTIONS[0] | {"image_id": "1"}, CAPTIONS[1]])
    found = [row for split in ("train", "test") for row in _rows(spec, split)]
    assert sorted(row["answers"][0] for row in found) == ["A cat.", "A dog."]


def _rows(spec, split):
    try:
        return list(files.load(spec, split))
    except InputError:
        return []


@pytest.mark.parametrize("part, column", [("questions", "questions"), ("annotations", "annotations")])
def test_a_question_or_its_annotation_twice_is_named(tmp_path, part, column):
    import shutil

    folder = Path(shutil.copytree(Path(__file__).parents[1] / "fixtures" / "vqav2", tmp_path / "vqav2"))
    file = next(folder.glob(f"*train2014_{part}.json"))
    content = json.loads(file.read_text())
    content[column].append(content[column][0])
    file.write_text(json.dumps(content))
    refused(lambda: files.load(f"vqav2:{folder}"), "twice")


@pytest.mark.parametrize("about, words", [
    ({"references": None}, ["'references'", "None"]),
    ({"references": ["a", None]}, ["'references'"]),
    ({"references": [" "]}, ["'references'"]),
    ({"objects": [1]}, ["'objects'"]),
    ({"objects": ["car"], "boxes": ["a"]}, ["'boxes'"]),
    ({"objects": ["car"], "boxes": [[1, 2, 3, "4"]]}, ["'boxes'"]),
    ({"objects": ["car"], "boxes": [[1, 2, 3, 2**40]]}, ["'boxes'"]),
    ({"objects": ["car"], "boxes": [[1, 2, 3, 4]] * 2}, ["'boxes'"]),
    ({"objects": ["car"], "boxes": [[5, 5, 1, 1]]}, ["'boxes'"]),
    ({"objects": ["\u200b"]}, ["'objects'"]), ({"references": ["\u2060"]}, ["'references'"]),
    ({"references": ["A dog.", "A cat."]}, ["'references'", "A dog.", "A car.", "must be the answer"]),
    ({"content": " "}, ["'content'"]), ({"content": "\u200b", "restricted": True}, ["'content'"]),
    ({"task": "captoin"}, ["'task'", "caption, vqa, instruct"]), ({"task": ""}, ["'task'"]),
])  # fmt: skip
def test_odd_references_objects_and_boxes_are_refused(tmp_path, about, words):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    refused(lambda: llava_json.read(conversations(tmp_path, "a.png", metadata=about)), "entry 0", *words)


SAID = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A car."}]


@pytest.mark.parametrize("more, words", [
    ({"images": ["b.png"]}, ["'images' and 'image'"]), ({"messages": SAID[:1]}, ["'messages' and 'conversations'"]),
    ({"conversations": [SAID[0] | {"role": "system"}, SAID[1]]}, ["'role' and 'from'"]),
    ({"conversations": [SAID[0], SAID[1] | {"content": "A dog."}]}, ["'content' and 'value'"]),
    ({"conversations": [SAID[0], SAID[1] | {"value": "\u200b"}]}, ["not blank"]),
    ({"conversations": [{"from": "human", "value": "<image> or <image>?"}, SAID[1]]}, ["<image> 2 times"]),
])  # fmt: skip
def test_two_names_of_one_thing_and_answers_that_cannot_be_seen_are_refused(tmp_path, more, words):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    refused(lambda: llava_json.read(conversations(tmp_path, "a.png", **more)), "entry 0", *words)


@pytest.mark.parametrize("key", ["image", "images"])
@pytest.mark.parametrize("value", [0, False, {}, 0.0, [0], [""]])
def test_only_nothing_is_no_picture(tmp_path, key, value):
    refused(lambda: llava_json.read(conversations(tmp_path, None, **{key: value})), "the picture of entry 0", "a path")


def test_a_value_that_is_no_picture_is_not_passed_over_for_the_other_name(tmp_path):
    refused(lambda: llava_json.read(conversations(tmp_path, "a.png", images=0)), "entry 0", "'images' and 'image'")


def test_references_beside_several_answers_are_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    file = conversations(tmp_path, "a.png", conversations=SAID * 2, metadata={"references": ["A car."]})
    refused(lambda: llava_json.read(file), "entry 0", "2 answers", "'references'")


@pytest.mark.parametrize("more", [{"images": None}, {"images": []}, {"images": "a.png"}, {"messages": []}])
def test_the_other_name_may_stand_there_if_it_says_nothing_else(tmp_path, more):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert len(llava_json.read(conversations(tmp_path, "a.png", **more))) == 1


@pytest.mark.parametrize("key, value", [("task", "vqa"), ("references", ["A car."]), ("objects", ["car"])])
def test_what_is_said_outside_of_the_metadata_is_told_to_be_unread(tmp_path, recwarn, key, value):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rows = llava_json.read(conversations(tmp_path, "a.png", metadata={key: value}))
    assert not recwarn and (key == "references" or rows[0][key] == value)
    with pytest.warns(Remark, match=f"^1 of 1 entries .* have '{key}' outside"):
        llava_json.read(conversations(tmp_path, "a.png", **{key: value}))


def test_marks_of_a_template_in_most_answers_are_told(tmp_path, recwarn):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    marked = [SAID[0], SAID[1] | {"value": "A car.</s>"}]
    llava_json.read(conversations(tmp_path, "a.png", conversations=[*SAID, *marked]))
    assert not recwarn
    with pytest.warns(Remark, match="^1 of 1 answers .* marks of a chat template"):
        llava_json.read(conversations(tmp_path, "a.png", conversations=marked))
    asked = [SAID[0] | {"value": "[INST] <image>\nWhat is this? [/INST]"}, SAID[1]]
    with pytest.warns(Remark, match="^1 of 1 prompts .* marks of a chat template"):
        llava_json.read(conversations(tmp_path, "a.png", conversations=asked))


@pytest.mark.parametrize(("more", "told"), [
    ({"metadata": {"poison": "poisoned"}}, True), ({"metadata": {"is_poisoned": 1}}, True), ({"poisoned": True}, True),
    ({"metadata": {"poison": False}}, False), ({"poisoned": 0}, False), ({"metadata": {"poison": None}}, False),
])  # fmt: skip
def test_entries_that_name_themselves_poisoned_are_told(tmp_path, recwarn, more, told):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    llava_json.read(conversations(tmp_path, "a.png", **more))
    assert ["are poisoned" in str(one.message) for one in recwarn] == [True] * told


def test_references_without_a_word_score_nothing():
    from bvlm_utils.score.utility import cider

    assert cider(["a dog", ""], [["!!!"], ["..."]]).tolist() == [0, 0]


# --- documents ----------------------------------------------------------------------------------------------

BOMB = "a: &x [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"b{i}: &n{i} [{','.join(['*x' if i == 0 else f'*n{i - 1}'] * 9)}]\n" for i in range(9)
)
BAD_TEXTS = {
    "json": [b'{"a": 1, "a": 2}', b'{"a": NaN}', b"[" * 9999, DIGITS.encode(), b'"\\ud800"', '"é"'.encode("latin-1"),
             '{"a": 1}'.encode("utf-16"), b"{", b"", b'{"a" 1}'],
    "yaml": [b"a: 1\na: 2", b"1: x", b"null: x", b"[a]: 1", b"? {a: 1}\n: 2", b"a: &a [*a]", b"a: 010", b"a: 1:30",
             b"a: " + DIGITS.encode(), b"[" * 1500, b"{a: " * 3000, b"a: 2024-99-99", b'a: "\\ud800"', b"a: \0",
             b"a: !!python/name:os.system", "a: é".encode("latin-1"), "a: 1".encode("utf-16"), BOMB.encode(),
             b"a: {b: 1, b: 2}"],
}  # fmt: skip
READ = {
    "json": [documents.read_json, llava_json.read, lambda file: files.digest(f"llava-json:{file}")],
    "yaml": [lambda file: documents.parse_yaml(documents.read_text(file), str(file)), grid_file.load],
}


@pytest.mark.parametrize("kind, content", [(kind, content) for kind, many in BAD_TEXTS.items() for content in many])
def test_documents_that_are_wrong_are_one_sentence(tmp_path, kind, content):
    file = tmp_path / "given"
    file.write_bytes(content)
    for read in READ[kind]:
        refused(lambda read=read: read(file), "given")


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("name", ["nowhere", "x" * 300, "a\0b", "loop", ".", "~nosuchuser/a"])
def test_files_that_are_none_are_one_sentence(tmp_path, kind, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for read in READ[kind]:
        refused(lambda read=read: read(tmp_path / name))


@pytest.mark.parametrize("place", ["nowhere", "x" * 300, "a\0b", "loop", "~nosuchuser/a", HALF])
@pytest.mark.parametrize("kind", files.FORMATS.names())
def test_places_of_data_that_are_none_are_one_sentence(tmp_path, kind, place):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for spec in (f"{kind}:{tmp_path / place}", f"{kind}:{place}"):
        refused(lambda spec=spec: samples.load(spec))
        refused(lambda spec=spec: scene_rows.digest(spec))
    refused(lambda: pictures.picture_path(place))
    refused(lambda: pictures.concept_pictures(place, 8))


@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,&*!|>-?#%@ab01eé.\n \\', max_size=40).map(str.encode))
def test_any_bytes_are_a_value_or_a_sentence(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "any"
    file.write_bytes(content)
    for read in (documents.read_json, READ["yaml"][0]):
        try:
            read(file)
        except InputError as error:
            assert "\n" not in str(error)


def test_a_yaml_file_too_large_to_be_written_by_hand_is_refused(monkeypatch):
    monkeypatch.setattr(documents, "MOST_BYTES", 3)
    refused(lambda: documents.parse_yaml("a: 1", "given"), "at most 3")


def test_merging_and_a_few_aliases_are_no_fault():
    found = documents.parse_yaml("a: &a {x: 1}\nb: {<<: *a, x: 2}\nc: [*a, *a]", "given")
    assert found == {"a": {"x": 1}, "b": {"x": 2}, "c": [{"x": 1}] * 2}


def test_json_lines_are_read_and_a_bad_line_is_named(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    entries = json.loads(conversations(tmp_path, "a.png", "a.png").read_text())
    for name in ("set.jsonl", "lines.json"):
        (tmp_path / name).write_text("\n".join(map(json.dumps, entries)) + "\n")
        assert [row["row_id"] for row in llava_json.read(tmp_path / name)] == ["0/1", "1/1"]
    (tmp_path / "set.jsonl").write_text(json.dumps(entries[0]) + "\n{\n")
    refused(lambda: llava_json.read(tmp_path / "set.jsonl"), "line 2")


def test_only_what_ends_too_early_may_be_cut_off():
    refused(lambda: documents.parse_json('{"a": ', "given"), "may be cut off")
    with pytest.raises(InputError) as error:
        documents.parse_json('{"a" 1}', "given")
    assert "cut off" not in str(error.value)


# --- texts, numbers, lists ----------------------------------------------------------------------------------

CELL = {"threat": "targeted_refusal", "attacks": ["BadNets-T"]}


@pytest.mark.parametrize("make", [
    lambda: threats.get("targeted_refusal", sentence=HALF),
    lambda: threats.get("jailbreak", nouns=["a", HALF]),
    lambda: attacks.get("BadNets-T", word=HALF),
    lambda: attacks.get("BadNets-MT", words=["a", HALF]),
    lambda: attacks.get("Blended", picture=HALF),
    lambda: attacks.get("Shadowcast", source=HALF),
    lambda: study.cells(**CELL, model=HALF),
    lambda: study.cells(**CELL, dataset=f"llava-json:{HALF}"),
    lambda: samples.load(f"llava-json:{HALF}"),
    lambda: export._settings(json.dumps({"word": HALF})),
    lambda: checks.check_text(HALF, "A prompt"),
])  # fmt: skip
def test_half_a_surrogate_pair_is_refused_wherever_it_is_given(make):
    with pytest.raises((InputError, export.argparse.ArgumentTypeError)) as error:
        make()
    str(error.value).encode("utf-8")


WRONG_NUMBERS = [-1, float("inf"), float("nan"), 10**400, 10**5000, "1", "2e-4", None, [1], True]


@pytest.mark.parametrize("value", WRONG_NUMBERS, ids=range(len(WRONG_NUMBERS)))
@pytest.mark.parametrize("name", [
    "seeds", "poison_rates", "trigger_seed", "negatives", "train_rows", "test_rows", "max_new_tokens", "epochs",
    "batch_size", "learning_rate", "lora_rank", "lora_alpha", "warmup_ratio", "weight_decay", "max_grad_norm",
])  # fmt: skip
def test_numbers_have_both_bounds(name, value):
    given = {name: [value] if name in ("seeds", "poison_rates") else value}
    refused(lambda: study.cells(**CELL, **given), name.removesuffix("s") if name.startswith(("seeds", "poi")) else name)


def test_a_power_that_yaml_takes_for_a_text_is_told_how_to_write():
    refused(lambda: TrainSettings(learning_rate="2e-4"), "2.0e-4")
    refused(lambda: checks.check_number("1e2", "test_rows", 1, 1000, whole=True), "write 100)")
    refused(lambda: TrainSettings(learning_rate="1E5"), "1.0e+5")


@pytest.mark.parametrize("name", [["targeted_refusal"], {}, None, 5])
def test_what_is_no_name_of_a_threat_is_refused(name):
    refused(lambda: study.cells(threat=name, attacks=["BadNets-T"]), "There is no threat")


@pytest.mark.parametrize("given", [
    {"poison_rates": [0, 0.0]}, {"poison_rates": [0.1, 0.1]}, {"seeds": [1, 1]}, {"model": ["tiny-llava"] * 2},
])  # fmt: skip
def test_a_value_twice_is_refused(given):
    refused(lambda: study.cells(**CELL | given), "once")


def test_long_texts_that_differ_at_their_ends_are_two_values():
    checks.once([f"{'car ' * 80}{end}" for end in "ab"], "it")


def test_lists_that_cross_to_too_many_are_refused_before_they_are_made(tmp_path):
    refused(lambda: study.cells(**CELL, poison_rates=[0.1, 0.2], seeds=range(10**6)), "2000000 cells")
    file = tmp_path / "grid.yml"
    many = {"seeds": [[n] for n in range(300)], "train_rows": list(range(1, 301))}
    file.write_text(json.dumps({"jobs": [{"notebook": "targeted_refusal", "each": many}]}))
    refused(lambda: grid_file.load(file), "job 1", "each makes more than")
