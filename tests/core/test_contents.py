"""A data set's digest follows its pictures' contents, and reads them once."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from PIL import Image

from bvlm_utils import data, paths
from bvlm_utils.data import contents, files, local_files
from bvlm_utils.errors import InputError

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture
def coco(tmp_path, monkeypatch):
    """COCO's captions with a cache of their own, as if all had been there for a while."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(contents, "SETTLED", 0.0)
    return Path(shutil.copytree(next(FIXTURES.glob("**/annotations")).parent, tmp_path / "coco"))


def pictures(folder: Path) -> list[str]:
    return sorted(str(file) for file in folder.glob("*/*.jpg"))


def digest(folder: Path) -> str:
    return data.digest(f"coco-caption:{folder}")


def test_other_pictures_of_the_same_size_and_time_are_another_data_set(coco):
    before = digest(coco)
    for file in map(Path, pictures(coco)):
        then, content = file.stat(), bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(then.st_atime_ns, then.st_mtime_ns))
        assert file.stat().st_size == then.st_size
    assert digest(coco) != before


def test_a_picture_is_read_once(coco, monkeypatch):
    files = pictures(coco)
    time.sleep(0.02)
    first = contents.digests(files, contents.states(files))
    read = []
    monkeypatch.setattr(contents, "_digest", lambda file: read.append(file) or "0" * 32)
    assert contents.digests(files, contents.states(files)) == first and read == []
    Image.new("RGB", (9, 9)).save(files[0])
    second = contents.digests(files, contents.states(files))
    assert read == [files[0]] and second == ["0" * 32, *first[1:]]


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_picture_that_is_cut_off_is_refused_before_a_run(coco, share):
    cut = Path(pictures(coco)[0])
    digest(coco)
    cut.write_bytes(cut.read_bytes()[: int(share * cut.stat().st_size)])
    with pytest.raises(InputError, match=f"{cut.name}.*to its end"):
        digest(coco)


def test_what_has_just_changed_is_not_remembered(coco, monkeypatch):
    monkeypatch.setattr(contents, "SETTLED", 60.0)
    files = pictures(coco)
    contents.digests(files, contents.states(files))
    assert not list((paths.CACHE / "contents").glob("*.json"))


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": 1}', '{"FILE": [1, 2, 3]}', "\x00"])
def test_a_damaged_cache_is_made_again(damage, coco):
    files = pictures(coco)
    time.sleep(0.02)
    first = contents.digests(files, contents.states(files))
    (cache,) = (paths.CACHE / "contents").glob("*.json")
    cache.write_text(damage.replace("FILE", files[0]))
    assert contents.digests(files, contents.states(files)) == first


def test_no_cache_can_be_written(coco):
    paths.CACHE.write_text("a file where a folder should be")
    files = pictures(coco)
    assert len(set(contents.digests(files, contents.states(files)))) == len(files)


def test_a_picture_that_went_is_one_sentence(coco):
    digest(coco)
    gone = Path(pictures(coco)[0])
    gone.unlink()
    with pytest.raises(InputError, match=gone.name):
        digest(coco)


def test_many_files_are_remembered_in_one_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(contents, "SETTLED", 0.0)
    monkeypatch.setattr(contents, "MANY", 10)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(50):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(folder / f"{number}", "PNG")
    files = sorted(map(str, folder.iterdir()))
    time.sleep(0.02)
    assert len(set(contents.digests(files, contents.states(files)))) == 50
    (cache,) = (paths.CACHE / "contents").glob("*.json")
    assert len(json.loads(cache.read_text())) == 50


@pytest.mark.parametrize("place", ["a" * 300, "~nosuchuser/x", "a\0b", "\ud800"])
def test_no_data_can_be_at_such_a_place(place):
    with pytest.raises(InputError, match="data"):
        data.digest(f"coco-caption:{place}")


def in_another_process(monkeypatch):
    """What only this process remembers is forgotten."""
    monkeypatch.setattr(contents, "_LOOKED", {})
    monkeypatch.setattr(contents, "_MADE", {})
    monkeypatch.setattr(contents, "_CHECKED", {})
    for remembered in (files._found, files._digest, files._loaded):
        remembered.cache_clear()


def test_the_next_process_neither_reads_the_captions_for_a_digest_nor_looks_into_the_pictures(coco, monkeypatch):
    time.sleep(0.02)
    before, rows = digest(coco), data.load(f"coco-caption:{coco}")
    in_another_process(monkeypatch)
    kind = files.FORMATS.get("coco-caption")
    with monkeypatch.context() as only_here:
        only_here.setattr(files.FORMATS, "get", lambda name: files.Format(kind.files, None))
        assert digest(coco) == before
    monkeypatch.setattr(local_files, "check_picture", None)
    assert data.load(f"coco-caption:{coco}")["row_id"] == rows["row_id"]


def test_a_picture_that_is_none_any_more_is_found_by_the_next_process(coco, monkeypatch):
    time.sleep(0.02)
    digest(coco)
    in_another_process(monkeypatch)
    Path(pictures(coco)[0]).write_bytes(b"no picture")
    with pytest.raises(InputError, match="not a picture"):
        digest(coco)
    Path(pictures(coco)[0]).unlink()
    in_another_process(monkeypatch)
    with pytest.raises(InputError, match="is not in"):
        digest(coco)


def test_pictures_of_a_new_folder_that_comes_first_are_found(coco, monkeypatch):
    """Thumbnails lay in `images`, and then the published folder came."""
    (coco / "images").mkdir()
    shutil.move(coco / "train2017", coco / "images" / "train2017")
    time.sleep(0.02)
    before = digest(coco)
    in_another_process(monkeypatch)
    assert digest(coco) == before
    shutil.copytree(coco / "images" / "train2017", coco / "train2017")
    for file in (coco / "train2017").glob("*.jpg"):
        Image.new("RGB", (9, 9)).save(file)
    assert digest(coco) != before


def test_other_captions_of_known_pictures_are_read(coco, monkeypatch):
    time.sleep(0.02)
    before = digest(coco)
    in_another_process(monkeypatch)
    file = next(coco.glob("annotations/*train*.json"))
    file.write_text(file.read_text().replace('"caption": "', '"caption": "So '))
    assert digest(coco) != before


def test_data_are_read_once_and_again_when_a_file_changes(coco, monkeypatch):
    """What a cell asks for, another one of the same process has asked for already."""
    kind, read = files.FORMATS.get("coco-caption"), []

    def rows(paths):
        read.append([path.name for path in paths])
        return kind.read(paths)

    spec = f"coco-caption:{coco}"
    before = data.load(spec)["answers"]
    monkeypatch.setattr(files.FORMATS, "get", lambda name: files.Format(kind.files, rows))
    assert data.load(spec)["answers"] == before and not read
    file = next(coco.glob("annotations/*train*.json"))
    file.write_text(file.read_text().replace('"caption": "', '"caption": "So '))
    after = data.load(spec)["answers"]
    assert read and after == [[f"So {text}" for text in texts] for texts in before]
    Path(pictures(coco)[0]).write_bytes(b"no picture")
    with pytest.raises(InputError, match="not a picture"):
        data.load(spec)


def test_a_digest_is_kept_no_longer_than_the_states_of_the_pictures(coco, monkeypatch):
    """Where looking at the files takes long: an hour of the clock passes with each look."""
    before, hours, real = digest(coco), [1.0], contents.file_state

    def slow(file):
        hours[0] += 3600.0
        return real(file)

    monkeypatch.setattr(contents.time, "monotonic", lambda: hours[0])
    monkeypatch.setattr(contents, "file_state", slow)
    monkeypatch.setattr(contents, "_LOOKED", {})
    monkeypatch.setattr(contents, "_MADE", {})
    assert digest(coco) == before
    Image.new("RGB", (9, 9)).save(pictures(coco)[0])
    hashed = files._digest.cache_info()
    assert digest(coco) == before and files._digest.cache_info() == hashed, "neither looked at nor compared"
    hours[0] += 1e9
    assert digest(coco) != before
