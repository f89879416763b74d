"""A workbench of a reader's own pictures and prompts: inputs to ask, without answers."""

import re
from collections.abc import Sequence
from pathlib import Path

from bvlm_utils import paths
from bvlm_utils.checks import brief, content_key, file_digest, is_visible
from bvlm_utils.data import files as data_files
from bvlm_utils.data import llava_json
from bvlm_utils.data import pictures as data_pictures
from bvlm_utils.data.picture_files import read_picture
from bvlm_utils.documents import read_text
from bvlm_utils.errors import InputError, remark
from bvlm_utils.run.workbench import Bench

NAME = "own:pictures"  # with a colon, as all data in files: pictures are brought to the published size


def given(pictures: str | None, prompts: str | None) -> tuple[list[Path], list[str]] | None:
    """What the options --pictures and --prompts name, read and checked; None where neither is given."""
    if (pictures is None) != (prompts is None):
        raise InputError("--pictures and --prompts belong together; give both, or neither.")
    if pictures is None or prompts is None:
        return None
    return pictures_of(paths.named(pictures, "folder")), prompts_of(paths.named(prompts, "file of prompts"))


def prompts_of(file: Path) -> list[str]:
    """The lines of a text file that are not blank."""
    prompts = []
    for number, line in enumerate(re.split(r"\r\n|\r|\n", read_text(file)), start=1):  # splitlines cuts at more
        if line.strip() and not is_visible(line):
            raise InputError(f"{file}, line {number}, is {brief(line)}; write a prompt that can be seen, or nothing.")
        prompts += [line.strip()] if line.strip() else []
    if not prompts:
        raise InputError(f"{file} has no prompts; write one on each line.")
    return prompts


def pictures_of(folder: Path) -> list[Path]:
    """The pictures of a folder, by name, 2 before 10; each is read to its end. What is left out is told."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; give one with pictures.")
    pictures = sorted(data_pictures.in_folder(folder), key=lambda file: _counted(file.name))
    if not pictures:
        raise InputError(f"The folder {folder} has no pictures ({', '.join(sorted(data_pictures.endings()))}).")
    others = sorted(file.name for file in folder.iterdir() if file not in pictures and not file.name.startswith("."))
    if others:
        note = f"{len(others)} in the folder {folder}, such as {brief(others[0])}, are no pictures by their names"
        remark(f"{note} and are left out.")
    for file in pictures:
        read_picture(file, "the inputs")
    return pictures


def _counted(name: str) -> list[tuple[int, str]]:
    """A key that sorts names as people count: prompts stand beside the pictures in this order."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def bench(model: str, pictures: Sequence[Path], prompts: Sequence[str], most: int, four_bit: bool = False) -> Bench:
    """`most` inputs at most: pairs, where there are as many prompts as pictures, else each picture with each prompt."""
    paired = len(pictures) == len(prompts)
    turns = 1 if paired else len(prompts)
    pairs = [(i, prompts[(i + turn) % len(prompts)]) for turn in range(turns) for i in range(len(pictures))][:most]
    template = llava_json.METADATA | {"answers": [""]}
    rows = []
    for number, (index, prompt) in enumerate(pairs):
        row = {"prompt": llava_json.without_placeholder(prompt), "image": pictures[index]}
        rows.append(template | row | {"row_id": f"{pictures[index].name}/{number}"})
    own_bench = Bench(model, NAME, 1, four_bit=four_bit)
    own_bench.datasets = {"test": data_files.of_files(rows)}
    own_bench.digest = content_key([file_digest(file) for file in pictures], [prompt for _, prompt in pairs])
    return own_bench
