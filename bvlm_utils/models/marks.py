"""Words that read like a token that steers the model, such as "</s>": cut into text before a tokenizer reads them."""

import re
from functools import cached_property
from typing import Any

from bvlm_utils.checks import brief, check_text
from bvlm_utils.errors import InputError


class Words:
    """What a tokenizer makes of people's words, in which no token may steer the model."""

    def __init__(self, tokenizer: Any, image_id: int):
        self.tokenizer, self.image_id = tokenizer, image_id

    @cached_property
    def marks(self) -> dict[int, str]:
        """The tokens that steer the model, by id: all that are special but the one for what is unknown."""
        special = (i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special)
        ids = {self.image_id, *self.tokenizer.all_special_ids, *special} - {self.tokenizer.unk_token_id}
        return {i: self.tokenizer.convert_ids_to_tokens(i) for i in ids}

    def are_plain(self, words: str) -> bool:
        """Does no mark stand in the words? InputError for words that a tokenizer cannot hold."""
        check_text(words, "A prompt or an answer")
        return self.marks.keys().isdisjoint(self.ids(words))

    def as_text(self, words: str) -> list[int]:
        """Ids of words with marks, each cut behind its first letter to be text. InputError if one is left."""
        longest_first = sorted(self.marks.values(), key=len, reverse=True)
        places = "|".join(f"(?<={re.escape(mark[0])})(?={re.escape(mark[1:])})" for mark in longest_first)
        ids = [i for part in re.split(places, words) for i in self.within(part)]
        mark = next((self.marks[i] for i in ids if i in self.marks), None)
        if mark is not None:
            raise InputError(f"The text {brief(words)} has the model's own mark {mark!r} in it; take it out.")
        return ids

    def within(self, text: str) -> list[int]:
        """Ids of a text in the midst of another: some tokenizers put a space before the first word of any text."""
        lead, all_ids = self.ids("\n"), self.ids(f"\n{text}")
        return all_ids[len(lead) :] if all_ids[: len(lead)] == lead else self.ids(text)

    def ids(self, text: str) -> list[int]:
        return ids_of(self.tokenizer, text, add_special_tokens=False)


def ids_of(tokenizer: Any, text: str, **options: bool) -> list[int]:
    """Ids of a text; InputError where the tokenizer cannot split it."""
    try:
        return tokenizer(text, **options)["input_ids"]
    except Exception as error:  # the library raises nothing more special
        raise InputError(f"The model's tokenizer cannot split {brief(text)} ({type(error).__name__}).") from error
