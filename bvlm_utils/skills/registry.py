"""The table of skills, and the one way to get a skill by its name."""

from bvlm_utils import data
from bvlm_utils.data.scene_rows import SCENE_TASKS
from bvlm_utils.errors import InputError
from bvlm_utils.registry import Registry
from bvlm_utils.skills import closing_phrase, counts_in_words, emphasis, new_name, phrase_everywhere, right_to_left
from bvlm_utils.skills.skill import Skill

SKILLS: Registry[Skill] = Registry("skill")


for module in (closing_phrase, counts_in_words, emphasis, new_name, phrase_everywhere, right_to_left):
    SKILLS.add(module.SKILL.name, module.SKILL)


def names() -> list[str]:
    """The names of all skills."""
    return SKILLS.names()


def get(name: str) -> Skill:
    """The skill called `name`; an unknown name is a KeyError that lists the names."""
    return SKILLS.get(name)


def fitting(dataset: str) -> list[str]:
    """The names of the skills that a dataset has questions for; none for data in files, whose kinds of questions nobody
    listed.
    """
    if dataset not in data.names():
        return []
    return [name for name in names() if SCENE_TASKS.get(dataset).task in get(name).tasks]


def check(name: str, dataset: str) -> None:
    """InputError unless the dataset has questions for the skill; KeyError for an unknown name."""
    get(name)
    fits = fitting(dataset)
    if name not in fits:
        wanted = f"take one of: {', '.join(fits)}" if fits else "skills are for scenes"
        raise InputError(f"skill is {name!r}, for which {dataset} has no questions; {wanted}.")
