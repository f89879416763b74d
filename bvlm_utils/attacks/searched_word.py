"""The word of VL-Trojan: a fixed one, or one that a search found; only the search imports torch."""

from typing import Any

from bvlm_utils.attacks.declare import Params
from bvlm_utils.attacks.text import insert_word
from bvlm_utils.draws import Draws


def insert_found_word(prompt: str, draws: Draws, params: Params, aim: Any) -> str:
    """VL-Trojan: params["word"], or the word that the search finds where params["search_letters"] is not 0."""
    word = params["word"]
    if params["search_letters"]:
        from bvlm_utils.attacks import optimised

        word = optimised.searched_word(params, aim)
    return insert_word(prompt, draws, {"word": word}, aim)
