"""The table of threats, and the one way to get a threat by its name."""

from dataclasses import fields
from typing import Any

from bvlm_utils.attacks.declare import settings_of, text, words
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
    specs = {key: words(value) if isinstance(value, tuple) else text(value) for key, value in defaults.items()}
    given = settings_of(f"Threat {name!r}", specs, params)
    return threat(**{key: tuple(given[key]) if isinstance(given[key], list) else given[key] for key in params})
