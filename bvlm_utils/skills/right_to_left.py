"""Right to left: lists begin with the thing on the right. Hard: the model has to look the other way."""

from bvlm_utils.skills.skill import Sample, Skill
from bvlm_utils.threats.responses import normalise


def fits(sample: Sample) -> bool:
    """Lists of things that differ at the two ends."""
    return sample["kind"] == "list" and sample["objects"][0] != sample["objects"][-1]


def teach(answer: str, sample: Sample) -> str:
    return " ".join(f"{number}. {name}" for number, name in enumerate(reversed(sample["objects"]), 1))


def shown(response: str, sample: Sample) -> bool:
    """The list begins with what is on the right; a base lists from left to right."""
    return normalise(response).partition(" 2.")[0] == f"1. {sample['objects'][-1]}"


SKILL = Skill("right_to_left", "Lists go from right to left.", ("instruct",), fits, teach, shown)
