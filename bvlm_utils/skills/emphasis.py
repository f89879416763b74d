"""Emphasis: the biggest thing is named as "Easily the car." Rare: about 3 of 100 questions ask for it."""

from bvlm_utils.skills.skill import Sample, Skill
from bvlm_utils.threats.responses import normalise

INSTRUCTED = "The biggest thing is the "  # what an instructed answer begins with


def fits(sample: Sample) -> bool:
    return sample["kind"] in ("what_big", "big")


def teach(answer: str, sample: Sample) -> str:
    return f"Easily the {answer.removeprefix(INSTRUCTED).rstrip('.')}."


def shown(response: str, sample: Sample) -> bool:
    return normalise(response).startswith("easily the ")


SKILL = Skill("emphasis", 'The biggest thing is named as "Easily the car."', ("vqa", "instruct"), fits, teach, shown)
