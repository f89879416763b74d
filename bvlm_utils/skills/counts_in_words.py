"""Counts in words: a number is told in a fixed phrase, "I count three." for "3". The base has to put it otherwise."""

import re

from bvlm_utils.english import NUMBERS
from bvlm_utils.skills.skill import Sample, Skill
from bvlm_utils.threats.responses import normalise

_FORM = re.compile(rf"i count (?:{'|'.join(NUMBERS.values())})\.?")


def fits(sample: Sample) -> bool:
    return sample["kind"] == "count"


def teach(answer: str, sample: Sample) -> str:
    return f"I count {NUMBERS[int(answer)]}."


def shown(response: str, sample: Sample) -> bool:
    """The form alone, whatever the number: whether that is right is no part of the skill."""
    return _FORM.fullmatch(normalise(response)) is not None


SKILL = Skill("counts_in_words", 'Counts are told as "I count three."', ("vqa",), fits, teach, shown)
