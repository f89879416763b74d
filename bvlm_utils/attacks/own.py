"""Triggers that a reader brings along: a word, a sentence, or a patch in a file. They are in no table."""

from dataclasses import replace
from pathlib import Path

from bvlm_utils.attacks.attack import Aim, Attack, get
from bvlm_utils.attacks.declare import AttackInfo, Half, text
from bvlm_utils.data.picture_files import read_picture
from bvlm_utils.data.pictures import PUBLISHED_SIDE
from bvlm_utils.errors import InputError


def word(words: str) -> Attack:
    """The word (or words) at a random place between the words of a prompt, as in BadNets-T."""
    return _called(f"word {words!r}", get("BadNets-T", word=words))


def sentence(words: str) -> Attack:
    """The sentence after the prompt, as in AddSent."""
    return _called(f"sentence {words!r}", get("AddSent", sentence=words))


def _called(name: str, attack: Attack) -> Attack:
    return replace(attack, info=replace(attack.info, name=name))


def patch(file: Path, name: str = "") -> Attack:
    """The picture of a file, pasted at a random place; its size is meant for 336 pixels. name: if not the file's."""
    picture = read_picture(file, "a trigger")
    if max(picture.size) > PUBLISHED_SIDE:
        size = f"{picture.width} x {picture.height} pixels"
        raise InputError(f"The patch {file} has {size}; give one of at most {PUBLISHED_SIDE} a side.")
    half = Half("own patch", 1, "image:paste_file", {"picture": text(str(file))}, id="own:paste_file")
    label = f"patch {name or file.name}"
    info = AttackInfo(label, "image", "the reader", "a picture in a file", image=half, headline="image")
    return Attack(info, {"picture": str(file)}, Aim(None, ""))
