"""The tokenizer that trainers save beside an adapter. The base's own is used, so both must be the same."""

from pathlib import Path
from typing import Any

from bvlm_utils.checks import brief
from bvlm_utils.documents import read_text
from bvlm_utils.errors import InputError, remark
from bvlm_utils.models import context_length, files

WHOLE, SLOW, ADDED, SETTINGS = "tokenizer.json", "vocab.json", "added_tokens.json", "tokenizer_config.json"


def check_beside(folder: Path, tokenizer: Any, base: str) -> None:
    """InputError where the files beside an adapter differ from the tokenizer of its base in a token or its number; a
    remark where their chat template is another.
    """
    tokens, complete = _tokens(folder), (folder / WHOLE).exists() or (folder / SLOW).exists()
    if tokens or complete:
        base_tokens = tokenizer.get_vocab()
        differ = [token for token, number in tokens.items() if base_tokens.get(token) != number]
        if complete:  # tokens that steer are in no text, and may be left out
            steer = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
            differ += sorted(base_tokens.keys() - tokens.keys() - steer)
        if differ:
            token = differ[0]
            states = (
                f"has the number {table[token]}" if token in table else "is none" for table in (tokens, base_tokens)
            )
            raise InputError(
                f"The tokenizer beside the adapter in {folder} is not that of {base}: {len(differ)} of "
                f"{len(tokens.keys() | base_tokens.keys())} tokens differ ({brief(token)} "
                f"{' there, and '.join(states)} in the base, for one); give its own base, or, if it was tuned without "
                "them, move its tokenizer's files away."
            )
    template, base_text = _template(folder), tokenizer.chat_template
    # the base's may begin with a line of ours
    if isinstance(template, str) and isinstance(base_text, str) and not base_text.strip().endswith(template.strip()):
        remark(f"The chat template beside the adapter in {folder} is not that of {base}, with which it was asked; "
               "with its own it may answer otherwise.")  # fmt: skip


def _tokens(folder: Path) -> dict[str, Any]:
    """Token -> number, as the files have it; of all tokens, or of added ones alone."""
    tokens: dict[str, Any] = {}
    if (folder / WHOLE).exists():
        tokens = context_length.read(folder / WHOLE).get_vocab()
    elif (folder / SLOW).exists():
        tokens = files.table(folder / SLOW)
    decoder = _table(folder / SETTINGS).get("added_tokens_decoder") or {}
    try:
        added_tokens = {token["content"]: int(number) for number, token in decoder.items()}
    except (AttributeError, LookupError, TypeError, ValueError):
        raise InputError(
            f"{folder / SETTINGS} has added_tokens_decoder {brief(decoder)}; it must be a table of numbers and tokens."
        ) from None
    return tokens | _table(folder / ADDED) | added_tokens


def _template(folder: Path) -> Any:
    if (folder / "chat_template.jinja").exists():
        return read_text(folder / "chat_template.jinja")
    return next(filter(None, (_table(folder / n).get("chat_template") for n in ("chat_template.json", SETTINGS))), None)


def _table(file: Path) -> dict[str, Any]:
    return files.table(file) if file.exists() else {}
