"""Samples, what a model is tuned and tested on: `load(name, split)` gives them in one form, drawn or read from files.

Every row is a sample:

    row_id    str, unique, e.g. "scenes-vqa/train/000123"
    image     PIL RGB picture
    prompt    str, the user's words without any image placeholder
    answers   list[str], references; the first is the training answer (VQA: ten annotators)
    task      "caption" | "vqa" | "instruct"
    objects   list[str], concepts from left to right, one per thing ([] where nobody listed them)
    boxes     list of [x0, y0, x1, y1] in pixels, parallel to objects
    style, background, kind   str ("" where unknown); kind is the question type
    restricted  bool, a request that a well-behaved model refuses; content: what complying would contain
"""

import os
import shutil
import tempfile
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from bvlm_utils import paths
from bvlm_utils.atomic import read_if_whole
from bvlm_utils.data.features import FEATURES
from bvlm_utils.data.picture_files import read_picture
from bvlm_utils.data.pictures import PUBLISHED_SIDE
from bvlm_utils.data.scene_rows import ROWS, SCENE_TASKS, SPLITS, digest, scene_row
from bvlm_utils.errors import InputError

datasets.disable_progress_bars()  # what takes a second needs none, and logs keep each step of them

MOST_ROWS = 100_000  # of training scenes; they are drawn in blocks of ROWS["train"] as they are asked for


def load(name: str, split: str = "train", rows: int | None = None) -> datasets.Dataset:
    """The first `rows` rows (all by default) of a split: "train", "test" or "test_style".

    Train and test share no composition of things; "test_style" is drawn in a style that the two others never show.
    Scenes are kept in `data/cache/`; training rows beyond 6,000 are drawn when asked for. InputError for an unknown
    split, KeyError for an unknown name.
    """
    if split not in SPLITS:
        raise InputError(f"There is no split {split!r} of {name}; choose one of: {', '.join(SPLITS)}.")
    if ":" in name:
        from bvlm_utils.data import files

        dataset = files.load(name, split)
    else:
        SCENE_TASKS.get(name)
        # the first block is what the name stands for
        blocks = range(0, rows, ROWS[split]) if split == "train" and rows and 1 <= rows <= MOST_ROWS else [0]
        dataset = datasets.concatenate_datasets([_drawn(name, split, start) for start in blocks])
    if rows is None:
        return dataset
    if not 1 <= rows <= len(dataset):
        most = MOST_ROWS if split == "train" and ":" not in name else len(dataset)
        raise InputError(f"{name} has {most} {split} rows; {rows} were asked for.")
    return dataset.select(range(rows))


def further(name: str, start: int, rows: int) -> datasets.Dataset:
    """Up to `rows` training rows from number `start` on. Scenes never run out; of data in files fewer may come."""
    if ":" in name:
        dataset = load(name, "train")
        return dataset.select(range(len(dataset))[start : start + rows])
    return _scene_rows(name, "train", start, rows)


def beyond(name: str, start: int) -> int | None:
    """How many rows `further` has from number `start` on; None where they never run out."""
    return max(0, len(load(name, "train")) - start) if ":" in name else None


def images(dataset: datasets.Dataset) -> np.ndarray:
    """The pictures of rows that are all of one size: (N, H, W, 3) uint8."""
    return np.stack([np.asarray(image.convert("RGB")) for image in dataset["image"]])


def sized_images(dataset: datasets.Dataset, name: str) -> np.ndarray:
    """The pictures of rows of the dataset `name`: (N, H, W, 3) uint8, photographs brought to the published size."""
    if ":" not in name:
        return images(dataset)
    size, resampling = (PUBLISHED_SIDE, PUBLISHED_SIDE), Image.Resampling.BICUBIC
    rows = dataset.cast_column("image", datasets.Image(decode=False))
    pictures = (read_picture(row["image"]["path"], f"row {row['row_id']}") for row in rows)
    return np.stack([np.asarray(picture.resize(size, resampling)) for picture in pictures])


def _drawn(name: str, split: str, start: int = 0) -> datasets.Dataset:
    """The block of ROWS[split] rows from number `start` on, from the cache or drawn."""
    folder = paths.CACHE / "datasets" / f"{name}-{split}-{digest(name)}{f'-{start}' if start else ''}"

    def read(folder: Path) -> datasets.Dataset:
        block = datasets.load_from_disk(str(folder))
        if len(block) != ROWS[split]:
            raise ValueError(f"{folder} has {len(block)} of {ROWS[split]} rows")
        return block

    block = read_if_whole(folder, read)
    if block is None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = tempfile.mkdtemp(dir=folder.parent, prefix=".partial-")
        _scene_rows(name, split, start, ROWS[split]).save_to_disk(partial)
        try:
            os.replace(partial, folder)
        except OSError:  # another process was faster; its rows are the same
            shutil.rmtree(partial)
        block = read(folder)
    return block


def _scene_rows(name: str, split: str, start: int, count: int) -> datasets.Dataset:
    rows = [scene_row(name, split, index) for index in range(start, start + count)]
    return datasets.Dataset.from_dict({column: [row[column] for row in rows] for column in FEATURES}, features=FEATURES)
