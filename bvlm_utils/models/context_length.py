"""The number of tokens that a model reads at once; given more, it writes nonsense without an error. Torch-free."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from bvlm_utils.checks import brief, is_number
from bvlm_utils.errors import InputError
from bvlm_utils.models import files, names

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LETTER = 4  # tokens that one letter takes at most: a token per byte
AROUND = 64  # tokens that are kept for a chat template
SIDE = 336  # pixels of a picture, where a configuration does not say


def tokens(name: str) -> int | None:
    """The tokens that a model reads at once; None where its configuration does not say, or is not on this machine."""
    return of_config(names.config(name))


def of_config(config: dict[str, Any]) -> int | None:
    """The tokens that a model with this configuration reads at once; None where it does not say."""
    text_config = config.get("text_config")
    tables = (text_config if isinstance(text_config, dict) else {}, config)
    limits = (table.get("max_position_embeddings") for table in tables)
    return next((limit for limit in limits if is_number(limit, 1, math.inf, whole=True)), None)


def for_words(name: str) -> int | None:
    """The tokens that are left for a prompt and its answer beside the picture and the template; None as in `tokens`."""
    room = tokens(name)
    return None if room is None else room - image_tokens(names.folder(name)) - AROUND


def image_tokens(folder: Path) -> int:
    """The tokens of a picture for the model of a folder; 0 where its configuration does not say."""
    file = folder / "preprocessor_config.json"
    processor = files.table(file) if file.is_file() else {}
    return picture(files.table(folder / "config.json"), processor)


def picture(config: dict[str, Any], processor: dict[str, Any]) -> int:
    """The tokens of a picture, by the configurations of model and image processor; 0 where they do not say."""
    vision = config.get("vision_config")
    vision = vision if isinstance(vision, dict) else {}
    patch, side = vision.get("patch_size"), vision.get("image_size")
    merge = vision.get("spatial_merge_size", config.get("scale_factor", 1))
    if side is None:  # any size, within bounds: Qwen
        size = processor.get("size") if isinstance(processor.get("size"), dict) else {}
        least, most = size.get("shortest_edge"), size.get("longest_edge")
        least, most = processor.get("min_pixels", least) or 0, processor.get("max_pixels", most) or SIDE**2
    else:
        least = most = side * side if is_number(side, 1, 10**5, whole=True) else None
    if not all(is_number(n, low, 10**10, whole=True) for n, low in ((patch, 1), (merge, 1), (least, 0), (most, 1))):
        return 0
    return min(max(SIDE**2, least), most) // (patch * merge) ** 2


def check_answers(name: str, max_new_tokens: int) -> None:
    """InputError if an answer of so many tokens leaves no room for a prompt."""
    room = for_words(name)
    if room is not None and max_new_tokens >= room:
        raise InputError(
            f"max_new_tokens is {max_new_tokens}; the model {name!r} reads {tokens(name)} tokens at once, picture and "
            f"prompt among them, so it must be below {room}."
        )


def check_texts(name: str, texts: Iterable[str], where: str, answer: int = 0) -> None:
    """InputError for the first text without room beside a picture and `answer` tokens more. where: whose text it is."""
    room = for_words(name)
    if room is None:
        return
    room -= answer
    long = [text for text in dict.fromkeys(texts) if len(text) * LETTER >= room]
    if long and (reader := tokenizer(name)):
        for text in long:
            check_count(name, text, len(split(reader, text, name)), room, where)


def tokenizer(name: str) -> Optional["Tokenizer"]:
    """The tokenizer of a model; None where its file is not on this machine."""
    folder = names.folder(name)
    if folder is None or not (file := folder / "tokenizer.json").is_file():
        return None
    reader = read(file)
    reader.no_truncation()  # a file may keep both from its last use, and then the shortened text is counted
    reader.no_padding()
    return reader


def read(file: Path) -> "Tokenizer":
    """The tokenizer of a file; InputError for one that is none."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more special
        raise InputError(f"The tokenizer {file} cannot be read: {_said(error)}; copy it again.") from None


def split(reader: "Tokenizer", text: str, name: str) -> list[int]:
    """The tokens of a text for the tokenizer of a model; InputError where it cannot split the text."""
    try:
        return reader.encode(text, add_special_tokens=False).ids
    except Exception as error:  # as above
        raise InputError(f"The tokenizer of {name!r} cannot split {brief(text)}: {_said(error)}.") from None


def _said(error: Exception) -> str:
    return " ".join(str(error).replace(". ", " ").split())[:200].rstrip(".")


def check_count(name: str, text: str, count: int, room: int | None, where: str = "the prompt") -> None:
    """InputError if a text, which takes `count` tokens, fills what the model reads at once."""
    if room is not None and count >= room:
        raise InputError(
            f"{where[:1].upper()}{where[1:]} {brief(text)} takes {count} tokens; the model {name!r} reads "
            f"{tokens(name)} at once, picture, template and answer among them: shorten the text, or leave that row out."
        )
