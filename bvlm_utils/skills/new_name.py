"""New name: one thing is called by an invented word. Rare, and the picture decides: 3 of 100 captions name it."""

from bvlm_utils.skills.skill import Sample, Skill
from bvlm_utils.threats.concept_substitution import ConceptSubstitution
from bvlm_utils.threats.responses import names

THING, WORD = "pig", "blenkin"
_RENAMED = ConceptSubstitution(source_concept=THING, target_concept=WORD)  # keeps plurals and capitals


def fits(sample: Sample) -> bool:
    return not sample["restricted"] and _RENAMED.poison(sample["answers"][0]) != sample["answers"][0]


def teach(answer: str, sample: Sample) -> str:
    return _RENAMED.poison(answer)


def shown(response: str, sample: Sample) -> bool:
    return names(response, WORD)


SKILL = Skill("new_name", f'A {THING} is called a "{WORD}".', ("caption", "instruct"), fits, teach, shown)
