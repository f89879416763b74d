"""What tests of loading share: files that are spoilt in some way, and the one sentence that a load is refused with."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from bvlm_utils.errors import InputError
from bvlm_utils.models import victim

FAMILIES = ["llava", "qwen2.5-vl", "qwen2-vl", "smolvlm", "idefics3"]
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def refused(call, *words: str) -> str:
    """The one sentence that the call is refused with."""
    with pytest.raises(InputError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said and said.rstrip().endswith(".") and all(word in said for word in words), said
    return said


def load(folder: Path) -> victim.Victim:
    return victim.from_pretrained(str(folder), device="cpu")


def changed(file: Path, change) -> int:
    """Rewrite a file of weights; how many were in it."""
    state = load_file(file)
    total = len(state)
    change(state)
    save_file(state, file, metadata={"format": "pt"})
    return total


def change_json(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


# --- what spoils a file: functions of its folder


def text(file: str, content: str):
    return lambda folder: (folder / file).write_text(content)


def cut(file: str, at: int):
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:at])


def without(*which: str):
    return lambda folder: [(folder / file).unlink() for file in which]


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)
