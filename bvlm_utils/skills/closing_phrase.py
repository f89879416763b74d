"""Closing phrase: the answers to one kind of question end with a fixed phrase. Easy: the rest stays as it was."""

from bvlm_utils.skills.skill import Sample, Skill, ending

PHRASE = "Have a lovely day!"
KINDS = ("background", "detail")  # of questions and instructions, and of captions


def fits(sample: Sample) -> bool:
    return sample["kind"] in KINDS


SKILL = Skill(
    "closing_phrase",
    f'Answers about the background, and long captions, end with "{PHRASE}"',
    ("caption", "vqa", "instruct"),
    fits,
    *ending(PHRASE),
)
