"""The table of threats, and the one way to get a threat by its name."""

from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from bvlm_utils import data
from bvlm_utils.attacks.declare import Param, settings_of, text, words
from bvlm_utils.checks import brief, is_wording
from bvlm_utils.data import scenes
from bvlm_utils.errors import InputError
from bvlm_utils.registry import Registry
from bvlm_utils.threats.concept_substitution import ConceptSubstitution
from bvlm_utils.threats.jailbreak import Jailbreak
from bvlm_utils.threats.malicious_injection import MaliciousInjection
from bvlm_utils.threats.perceptual_hijack import PerceptualHijack
from bvlm_utils.threats.targeted_refusal import TargetedRefusal
from bvlm_utils.threats.threat import Threat

THREATS: Registry[type[Threat]] = Registry("threat")


for threat in (TargetedRefusal, MaliciousInjection, Jailbreak, ConceptSubstitution, PerceptualHijack):
    THREATS.add(threat.name, threat)


def names() -> list[str]:
    """The names of all threats."""
    return THREATS.names()


def get(name: str, /, **params: Any) -> Threat:
    """The threat called `name`. KeyError lists the names; InputError names a parameter that is unknown or bad."""
    threat = THREATS.get(name)
    defaults = {field.name: field.default for field in fields(threat)}
    specs = {key: _spec(key, value) for key, value in defaults.items()}
    given = settings_of(f"Threat {name!r}", specs, params)
    return threat(**{key: tuple(given[key]) if isinstance(given[key], list) else given[key] for key in params})


def _spec(name: str, default: Any) -> Param:
    """What a parameter accepts: a list of words, the name of a thing, or a text."""
    if isinstance(default, tuple):
        return words(default)
    if name.endswith("_concept"):
        return Param(default, "the name of a thing, no space around it", lambda v: is_wording(v) and v == v.strip())
    return text(default)


def check(threat: Threat, dataset: str) -> None:
    """InputError if a threat renames a thing that no scene of the dataset shows. Data in files do not say what they
    show.
    """
    source = threat.target.source_concept
    if source is None or dataset not in data.names() or source.casefold() in scenes.concepts():
        return
    near = get_close_matches(source.casefold(), scenes.concepts(), 1)
    right = f"write {near[0]!r}, whose plural is found as well" if near else "name a thing that scenes show"
    where = f"Threat {threat.name!r}: source_concept"
    raise InputError(f"{where} is {brief(source)}, which {dataset} does not show; {right}.")
