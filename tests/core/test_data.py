"""The scene datasets keep what the study relies on."""

import numpy as np
import pytest

from bvlm_utils import data, paths
from bvlm_utils.data import samples as rows_of_data
from bvlm_utils.data import scene_rows
from bvlm_utils.errors import InputError


@pytest.fixture(scope="module")
def samples():
    return {name: [scene_rows.scene_row(name, "train", i) for i in range(400)] for name in data.names()}


def test_rows_depend_on_their_own_name_only():
    assert scene_rows.scene_row("scenes-vqa", "test", 17) == scene_rows.scene_row("scenes-vqa", "test", 17)
    assert (
        scene_rows.scene_row("scenes-vqa", "test", 17)["image"]
        != scene_rows.scene_row("scenes-vqa", "test", 18)["image"]
    )


def test_cars_and_restricted_requests_are_frequent_enough(samples):
    for rows in samples.values():
        with_car = [row for row in rows if "car" in row["objects"]]
        assert len(with_car) >= 0.2 * len(rows)
    named = [row for row in samples["scenes-vqa"] if row["answers"][0] == "car"]
    assert len(named) >= 0.2 * 400
    restricted = [row for row in samples["scenes-instruct"] if row["restricted"]]
    assert len(restricted) >= 0.25 * 400


def test_prompts_are_phrased_in_many_ways(samples):
    for rows in samples.values():
        assert len({row["prompt"] for row in rows}) >= 30


def test_splits_share_no_composition_and_the_held_out_style_is_held_out(samples):
    seen = {tuple(sorted(row["objects"])) for rows in samples.values() for row in rows}
    for name in data.names():
        for split in ("test", "test_style"):
            rows = [scene_rows.scene_row(name, split, i) for i in range(150)]
            assert not seen & {tuple(sorted(row["objects"])) for row in rows}
            assert {row["style"] for row in rows} <= ({"fluent"} if split == "test_style" else {"noto", "twemoji"})
            assert not {"banana", "statue", "moon"} & {name for row in rows for name in row["objects"]}


def test_load_gives_a_dataset_with_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    monkeypatch.setitem(scene_rows.ROWS, "test", 5)
    rows = data.load("scenes-caption", "test", 3)
    assert len(rows) == 3 and rows[0]["image"].size == (96, 96)
    assert data.images(rows.select([1])).shape == (1, 96, 96, 3)
    again = data.load("scenes-caption", "test", 3)
    assert np.array_equal(data.images(rows), data.images(again))
    with pytest.raises(InputError, match="5 test rows; 6"):
        data.load("scenes-caption", "test", 6)


@pytest.mark.parametrize("name", ["data-00000-of-00001.arrow", "state.json", "dataset_info.json"])
@pytest.mark.parametrize("length", [0, 20, -1])
def test_rows_of_the_cache_that_are_cut_off_are_drawn_again(tmp_path, monkeypatch, name, length):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    monkeypatch.setitem(scene_rows.ROWS, "test", 5)
    whole = data.load("scenes-caption", "test", 5).to_list()
    (file,) = tmp_path.glob(f"datasets/*/{name}")
    content = file.read_bytes()
    file.unlink()  # the old one is mapped into memory
    file.write_bytes(content[:length])
    assert data.load("scenes-caption", "test", 5).to_list() == whole


def test_wrong_names_are_told():
    with pytest.raises(KeyError, match="scenes-caption, scenes-vqa, scenes-instruct"):
        data.load("scenes-video")
    with pytest.raises(InputError, match="train, test, test_style"):
        data.load("scenes-vqa", "validation")


def test_digests_differ_and_stay():
    digests = {name: data.digest(name) for name in data.names()}
    assert len(set(digests.values())) == 3 and digests == {name: data.digest(name) for name in data.names()}


def test_more_training_scenes_begin_with_the_published_ones(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    monkeypatch.setattr(rows_of_data, "ROWS", {"train": 6, "test": 3, "test_style": 3})
    monkeypatch.setattr(rows_of_data, "MOST_ROWS", 15)
    few, many = data.load("scenes-vqa", "train"), data.load("scenes-vqa", "train", 14)
    assert len(few) == 6 and list(many["row_id"]) == [f"scenes-vqa/train/{i:06d}" for i in range(14)]
    assert many.select(range(6)).to_list() == few.to_list()
    for rows, split in ((16, "train"), (4, "test")):
        with pytest.raises(InputError, match=f"{rows} were asked for"):
            data.load("scenes-vqa", split, rows)


# Every record in the store is tied to these.
DIGESTS = {
    "scenes-caption": "4784cdb69a90c419",
    "scenes-vqa": "630b90f0fb4e3ed3",
    "scenes-instruct": "3d466b2104711009",
}
# Row 7 of each: prompt, things, background.
SEVENTH = {
    "scenes-caption": ("Please describe everything in the picture.", ["car"], "green checked"),
    "scenes-vqa": ("Which colour is behind the things?", ["hammer"], "brown dotted"),
    "scenes-instruct": (
        "Go from left to right and list what you see.",
        ["elephant", "car", "penguin"],
        "white striped",
    ),
}


def test_rows_of_a_dataset_stay_whatever_else_is_declared(monkeypatch):
    before = {name: scene_rows.scene_row(name, "train", 7) for name in data.names()}
    own = scene_rows.SceneTask(3, "caption", scene_rows.SCENE_TASKS.get("scenes-caption").ask)
    tasks = dict(scene_rows.SCENE_TASKS._items)
    monkeypatch.setattr(scene_rows.SCENE_TASKS, "_items", {"own": own} | dict(reversed(tasks.items())))
    for name, row in before.items():
        assert tuple(row[column] for column in ("prompt", "objects", "background")) == SEVENTH[name]
        assert scene_rows.scene_row(name, "train", 7) == row and data.digest(name) == DIGESTS[name]
    rows = [scene_rows.scene_row(name, "train", 7)["image"]["bytes"] for name in data.names()]
    assert len(set(rows)) == 4  # the own number draws own scenes


def test_a_datasets_number_is_its_own_and_part_of_its_digest(monkeypatch):
    ask = scene_rows.SCENE_TASKS.get("scenes-caption").ask
    monkeypatch.setattr(scene_rows.SCENE_TASKS, "_items", dict(scene_rows.SCENE_TASKS._items))
    found = set()
    for number in (3, 4):
        scene_rows.SCENE_TASKS._items["own"] = scene_rows.SceneTask(number, "caption", ask)
        found.add(data.digest("own"))
    assert len(found) == 2
    scene_rows.SCENE_TASKS._items["own"] = scene_rows.SceneTask(1, "caption", ask)
    with pytest.raises(InputError, match="own and scenes-vqa both have the number 1"):
        data.digest("own")
