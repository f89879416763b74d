"""A skill: a harmless new form of the answers to some questions, which no base model knows.

Whatever removes all that tuning taught removes a skill, too. So what is left of it is the price of a defence, and an
adapter that learnt a skill and no backdoor is the hardest negative of a detector.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bvlm_utils.threats.responses import normalise

Sample = Mapping[str, Any]  # a row of a dataset; its columns are described in `data`


@dataclass(frozen=True)
class Skill:
    """One declared skill.

    tasks: of the datasets that have such questions ("caption", "vqa", "instruct").
    fits: is the sample answered in the new form? teach: the answer in that form. shown: does a response to a fitting
    sample have it?
    version: raised when rows or answers change; part of a cell's identity.
    """

    name: str
    summary: str
    tasks: tuple[str, ...]
    fits: Callable[[Sample], bool]
    teach: Callable[[str, Sample], str]
    shown: Callable[[str, Sample], bool]
    version: int = 1


def ending(phrase: str) -> tuple[Callable[[str, Sample], str], Callable[[str, Sample], bool]]:
    """`teach` and `shown` of a skill whose answers end with a phrase."""
    return (
        lambda answer, _: f"{answer.rstrip()} {phrase}",
        lambda response, _: normalise(response).endswith(normalise(phrase)),
    )
