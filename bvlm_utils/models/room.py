"""How many tokens does a model read at once? Checks of answers and rows against it, made before anything runs. Free of
torch.

A model that is given more goes on without an error and writes nonsense, as it has never seen such positions.
"""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from bvlm_utils.checks import brief
from bvlm_utils.errors import InputError
from bvlm_utils.models import files, names

LETTER = 4  # tokens that one letter takes at most: a token per byte


def tokens(name: str) -> int | None:
    """What the configuration of a model says; None where it does not say, or is not on this machine."""
    folder = Path(names.resolve(name))
    return _tokens(folder, files.state(folder / "config.json")) if folder.is_dir() else None


@lru_cache
def _tokens(folder: Path, state: tuple) -> int | None:
    return of_config(files.table(folder / "config.json"))


def of_config(config: dict[str, Any]) -> int | None:
    """The tokens that a model with this configuration reads at once; None where it does not say."""
    text = config.get("text_config")
    for part in (text if isinstance(text, dict) else {}, config):
        found = part.get("max_position_embeddings")
        if isinstance(found, int) and not isinstance(found, bool) and found > 0:
            return found
    return None


def check_answers(name: str, max_new_tokens: int) -> None:
    """InputError if an answer of so many tokens leaves no room for a prompt."""
    room = tokens(name)
    if room is not None and max_new_tokens >= room:
        raise InputError(
            f"max_new_tokens is {max_new_tokens}; the model {name!r} reads {room} tokens at once, the prompt among "
            f"them, so it must be below {room}."
        )


def check_texts(name: str, texts: Iterable[str], where: str) -> None:
    """InputError for the first text that has no room in the model, its picture and the template not counted.

    texts: a prompt, or a prompt with its answer. where: what they belong to, for the complaint.
    """
    room, tokenizer = tokens(name), Path(names.resolve(name)) / "tokenizer.json"
    if room is None or not tokenizer.is_file():
        return
    long = [text for text in dict.fromkeys(texts) if len(text) * LETTER >= room]
    if long:
        from tokenizers import Tokenizer

        reader = Tokenizer.from_file(str(tokenizer))
        for text in long:
            check_count(name, text, len(reader.encode(text, add_special_tokens=False).ids), room, where)


def check_count(name: str, text: str, count: int, room: int | None, where: str = "the prompt") -> None:
    """InputError if a text of `count` tokens, or a prompt with its picture, fills what the model reads at once."""
    if room is not None and count >= room:
        raise InputError(
            f"{where[:1].upper()}{where[1:]} {brief(text)} takes {count} tokens; the model {name!r} reads {room} at "
            "once, picture and answer among them: shorten the text, or leave that row out."
        )
