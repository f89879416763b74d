"""The datasets of drawn scenes: which there are, what decides their rows, and a row of each. Free of `datasets`."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b

import numpy as np
from PIL import Image

from bvlm_utils import paths
from bvlm_utils.data import scene_questions, scenes
from bvlm_utils.errors import InputError
from bvlm_utils.registry import Registry

SPLITS = ("train", "test", "test_style")
ROWS = {"train": 6000, "test": 1600, "test_style": 1600}
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

names = SCENE_TASKS.names  # datasets that need no files; others are named by format and place: "coco-caption:FOLDER"


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


def scene_row(name: str, split: str, index: int) -> dict:
    """Row `index` of a scene dataset; it depends on nothing but its own name."""
    task = SCENE_TASKS.get(name)
    rng = scenes.generator(SEED, task.number, SPLITS.index(split), index)
    held_out = split == "test_style"
    styles = tuple(style for style in scenes.STYLES if (style == scenes.HELD_OUT_STYLE) == held_out)
    scene = scenes.sample(rng, "train" if split == "train" else "test", styles, task.car_percent)
    turn_columns = vars(task.ask(scene, rng))
    scene_columns = {"objects": list(scene.objects), "boxes": [list(sprite.box) for sprite in scene.sprites]}
    scene_columns |= {"style": scene.sprites[0].style, "background": f"{scene.colour} {scene.pattern}"}
    row = {"row_id": f"{name}/{split}/{index:06d}", "image": {"bytes": png(scenes.render(scene)), "path": None}}
    return row | turn_columns | {"answers": list(turn_columns["answers"]), "task": task.task} | scene_columns


def png(image: Image.Image) -> bytes:
    """Lossless bytes of a picture; the fastest compression level, as these are caches."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
