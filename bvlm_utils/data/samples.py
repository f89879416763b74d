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

import io
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from bvlm_utils import paths
from bvlm_utils.atomic import read_if_whole
from bvlm_utils.data import scene_questions, scenes
from bvlm_utils.data.features import FEATURES
from bvlm_utils.data.picture_files import read_picture
from bvlm_utils.data.pictures import PUBLISHED_SIDE
from bvlm_utils.errors import InputError
from bvlm_utils.registry import Registry

datasets.disable_progress_bars()  # what takes a second needs none, and logs keep each step of them

SPLITS = ("train", "test", "test_style")
ROWS = {"train": 6000, "test": 1600, "test_style": 1600}
MOST_ROWS = 100_000  # of training scenes; they are drawn in blocks of ROWS["train"] as they are asked for
SEED = 20251118  # of the published rows; a dataset's name stands for exactly these


@dataclass(frozen=True)
class SceneTask:
    """A dataset of scenes: what is asked, and how often a car is put in. number: seeds its rows, and no other's."""

    number: int
    task: str
    ask: Callable[[scenes.Scene, np.random.Generator], scene_questions.Turn]
    car_percent: int = 24


SCENE_TASKS: Registry[SceneTask] = Registry("dataset")
SCENE_TASKS.add("scenes-caption", SceneTask(0, "caption", scene_questions.caption))
SCENE_TASKS.add("scenes-vqa", SceneTask(1, "vqa", lambda scene, rng: scene_questions.vqa(scene, rng, name_cars=True)))
SCENE_TASKS.add("scenes-instruct", SceneTask(2, "instruct", scene_questions.instruct))
UNNUMBERED = 3  # datasets below this number had their digests before numbers were declared, and keep them


def names() -> list[str]:
    """The datasets that need no files. Others are named by format and place, e.g. "coco-caption:FOLDER"."""
    return SCENE_TASKS.names()


def digest(name: str) -> str:
    """16 hex digits that change when the rows of `name` would; nothing is drawn. InputError for two of one number."""
    if name not in SCENE_TASKS:
        from bvlm_utils.data import files

        return files.digest(name)
    state, task = blake2b(digest_size=8), SCENE_TASKS.get(name)
    twins = [other for other in names() if other != name and SCENE_TASKS.get(other).number == task.number]
    if twins:
        raise InputError(f"Datasets {name} and {twins[0]} both have the number {task.number}; give one another number.")
    parts = [name, SEED, scenes.VERSION, scene_questions.VERSION, task.car_percent]
    parts += [task.number] if task.number >= UNNUMBERED else []
    state.update(" ".join(map(str, parts)).encode())
    state.update(_sprites_digest())
    return state.hexdigest()


@cache
def _sprites_digest() -> bytes:
    files = sorted(paths.SPRITES.rglob("*.png"))
    parts = [file.relative_to(paths.SPRITES).as_posix().encode() + file.read_bytes() for file in files]
    return blake2b(b"".join(parts), digest_size=16).digest()


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

        whole = files.load(name, split)
    else:
        SCENE_TASKS.get(name)
        # the first block is what the name stands for
        blocks = range(0, rows, ROWS[split]) if split == "train" and rows and 1 <= rows <= MOST_ROWS else [0]
        whole = datasets.concatenate_datasets([_drawn(name, split, start) for start in blocks])
    if rows is None:
        return whole
    if not 1 <= rows <= len(whole):
        most = MOST_ROWS if split == "train" and ":" not in name else len(whole)
        raise InputError(f"{name} has {most} {split} rows; {rows} were asked for.")
    return whole.select(range(rows))


def further(name: str, start: int, rows: int) -> datasets.Dataset:
    """Up to `rows` training rows from number `start` on. Scenes never run out; of data in files, fewer, even none, may
    come.
    """
    if ":" in name:
        whole = load(name, "train")
        return whole.select(range(min(start, len(whole)), min(start + rows, len(whole))))
    SCENE_TASKS.get(name)
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
    shape, kind = (PUBLISHED_SIDE, PUBLISHED_SIDE), Image.Resampling.BICUBIC
    rows = dataset.cast_column("image", datasets.Image(decode=False))
    shown = (read_picture(row["image"]["path"], f"row {row['row_id']}") for row in rows)
    return np.stack([np.asarray(picture.resize(shape, kind)) for picture in shown])


def _drawn(name: str, split: str, start: int = 0) -> datasets.Dataset:
    """The block of ROWS[split] rows from number `start` on, from the cache or drawn."""
    folder = paths.CACHE / "datasets" / f"{name}-{split}-{digest(name)}{f'-{start}' if start else ''}"

    def whole(folder: Path) -> datasets.Dataset:
        block = datasets.load_from_disk(str(folder))
        if len(block) != ROWS[split]:
            raise ValueError(f"{folder} has {len(block)} of {ROWS[split]} rows")
        return block

    block = read_if_whole(folder, whole)
    if block is None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = tempfile.mkdtemp(dir=folder.parent, prefix=".partial-")
        _scene_rows(name, split, start, ROWS[split]).save_to_disk(partial)
        try:
            os.replace(partial, folder)
        except OSError:  # another process was faster; its rows are the same
            shutil.rmtree(partial)
        block = whole(folder)
    return block


def _scene_rows(name: str, split: str, start: int, count: int) -> datasets.Dataset:
    rows = [scene_row(name, split, index) for index in range(start, start + count)]
    return datasets.Dataset.from_dict({column: [row[column] for row in rows] for column in FEATURES}, features=FEATURES)


def scene_row(name: str, split: str, index: int) -> dict:
    """Row `index` of a scene dataset; it depends on nothing but its own name."""
    task = SCENE_TASKS.get(name)
    rng = scenes.generator(SEED, task.number, SPLITS.index(split), index)
    held_out = split == "test_style"
    styles = tuple(style for style in scenes.STYLES if (style == scenes.HELD_OUT_STYLE) == held_out)
    scene = scenes.sample(rng, "train" if split == "train" else "test", styles, task.car_percent)
    turn = task.ask(scene, rng)
    return {
        "row_id": f"{name}/{split}/{index:06d}",
        "image": {"bytes": png(scenes.render(scene)), "path": None},
        "prompt": turn.prompt,
        "answers": list(turn.answers),
        "task": task.task,
        "objects": list(scene.objects),
        "boxes": [list(sprite.box) for sprite in scene.sprites],
        "style": scene.sprites[0].style,
        "background": f"{scene.colour} {scene.pattern}",
        "kind": turn.kind,
        "restricted": turn.restricted,
        "content": turn.content,
    }


def png(image: Image.Image) -> bytes:
    """Lossless bytes of a picture; the fastest compression level, as these are caches."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
