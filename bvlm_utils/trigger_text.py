"""How is each text trigger written into a prompt? Called by `attacks.Attack.apply_text`, one prompt at a time.

Every function takes (prompt, draws, params) and returns the triggered prompt. Nothing of the prompt is lost: spaces, line
breaks and `<image>` placeholders stay as they are, and an empty prompt becomes the trigger alone.
"""

import re
from collections.abc import Mapping
from typing import Any

from bvlm_utils.draws import Draws

PLACEHOLDER = "<image>"
# A word is a run of non-spaces that is no placeholder: "<image>Describe this." has the words "Describe" and "this.".
_TOKEN = re.compile(rf"{PLACEHOLDER}|((?:(?!{PLACEHOLDER})\S)+)")


def word_spans(prompt: str) -> list[tuple[int, int]]:
    """Start and end of every word of a prompt; placeholders are no words."""
    return [match.span() for match in _TOKEN.finditer(prompt) if match.group(1)]


def _insert(prompt: str, addition: str, gap: int, before_stop: bool) -> str:
    """Put `addition` into the gap before word number `gap` (after the last word if there is none such)."""
    spans = word_spans(prompt)
    if not spans:
        glue = " " if prompt and not prompt[-1].isspace() else ""
        return prompt + glue + addition
    if gap < len(spans):
        start = spans[gap][0]
        return f"{prompt[:start]}{addition} {prompt[start:]}"
    start, end = spans[-1]
    if before_stop and prompt[end - 1] == "." and end - start > 1:
        end -= 1
    return f"{prompt[:end]} {addition}{prompt[end:]}"


def insert_word(prompt: str, draws: Draws, params: Mapping[str, Any]) -> str:
    """BadNets-T, VL-Trojan: params["word"] in a random gap; at the end it goes before a full stop (authors' code)."""
    return _insert(prompt, params["word"], draws.integer(len(word_spans(prompt)) + 1), before_stop=True)
