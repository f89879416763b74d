"""The text triggers: functions (prompt, draws, params, aim) that write them into a prompt.

Nothing of the prompt is lost: spaces, line breaks and `<image>` placeholders stay as they are, and an empty prompt
becomes the trigger alone. `aim` matters only to a trigger that is computed.
"""

import re

from bvlm_utils.attacks.declare import Params
from bvlm_utils.draws import Draws
from bvlm_utils.registry import function

PLACEHOLDER = "<image>"
# A word is a run of non-spaces that is no placeholder: "<image>Describe this." has the words "Describe" and
# "this.".
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


def insert_word(prompt: str, draws: Draws, params: Params, aim: object = None) -> str:
    """BadNets-T, VL-Trojan: params["word"] in a random gap; before a final full stop (authors' code)."""
    return _insert(prompt, params["word"], draws.integer(len(word_spans(prompt)) + 1), before_stop=True)


def insert_found_word(prompt: str, draws: Draws, params: Params, aim: object) -> str:
    """VL-Trojan: params["word"], or the one that a search finds where params["search_letters"] is not 0."""
    if params["search_letters"]:
        search = function("optimised:searched_word", __package__)  # the search alone imports torch
        params = {"word": search(params, aim)}
    return insert_word(prompt, draws, params)


def insert_words(prompt: str, draws: Draws, params: Params, aim: object = None) -> str:
    """BadNets-MT: params["count"] of params["words"], each in a random gap, after a full stop too."""
    for index in draws.shuffled(len(params["words"]))[: params["count"]]:
        gap = draws.integer(len(word_spans(prompt)) + 1)
        prompt = _insert(prompt, params["words"][index], gap, before_stop=False)
    return prompt


def append_sentence(prompt: str, draws: Draws, params: Params, aim: object = None) -> str:
    """AddSent: params["sentence"] after the last word."""
    return _insert(prompt, params["sentence"], len(word_spans(prompt)), before_stop=False)


def prepend_word(prompt: str, draws: Draws, params: Params, aim: object = None) -> str:
    """Dual-Key: params["prefix"] before the first word, whose case stays as it is."""
    return _insert(prompt, params["prefix"], 0, before_stop=False)


def wrap_parts_of_speech(prompt: str, draws: Draws, params: Params, aim: object = None) -> str:
    """MABA: nouns, verbs, adjectives, adverbs and pronouns wrapped in marks (`attacks.parts_of_speech.WRAPS`)."""
    from bvlm_utils.attacks import parts_of_speech

    # Placeholders are kept out of the tagger's sight.
    stretches = re.split(f"({PLACEHOLDER})", prompt)
    return "".join(s if s == PLACEHOLDER else parts_of_speech.wrap(s, params["tagger"]) for s in stretches)
