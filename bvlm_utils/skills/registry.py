"""The one way to get a skill by its name, and what can be wrong with one."""

from collections.abc import Iterable

from bvlm_utils import data
from bvlm_utils.checks import brief, is_text
from bvlm_utils.data.scene_rows import SCENE_TASKS
from bvlm_utils.errors import InputError, in_words
from bvlm_utils.skills.skill import Sample, Skill
from bvlm_utils.skills.table import SKILLS

names, get = SKILLS.names, SKILLS.get


def fitting(dataset: str) -> list[str]:
    """The names of the skills that a dataset has questions for; none for data in files: nobody listed their kinds."""
    if dataset not in data.names():
        return []
    return [name for name in names() if SCENE_TASKS.get(dataset).task in get(name).tasks]


def check(name: str, dataset: str) -> None:
    """InputError unless the dataset has questions for the skill; UnknownName where there is no such skill."""
    get(name)
    choices = fitting(dataset)
    if name not in choices:
        advice = f"take one of: {', '.join(choices)}" if choices else "skills are for scenes"
        raise InputError(f"skill is {name!r}, for which {dataset} has no questions; {advice}.")


def rehearse(skill: Skill, rows: Iterable[Sample]) -> None:
    """InputError for a skill of others that fails on a row, or teaches what is no text; a run would find out later."""
    for row in rows:
        try:
            answer = skill.teach(row["answers"][0], row) if skill.fits(row) else ""
            skill.shown(answer if is_text(answer) else "", row)
        except (Exception, SystemExit) as error:  # in code that is not ours anything may go wrong
            reason = in_words(error)
            raise InputError(f"Skill {skill.name!r} fails on row {row['row_id']} ({reason}); mend its code.") from error
        if not is_text(answer):
            raise InputError(f"Skill {skill.name!r} teaches {brief(answer)} for row {row['row_id']}; teach a text.")
