"""The table of threats, and the one way to get a threat by its name."""

from dataclasses import fields
from typing import Any

from bvlm_utils.checks import brief, is_wording
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


def get(name: str, **params: Any) -> Threat:
    """The threat called `name`, with its default parameters where `params` gives no others.

    An unknown name is a KeyError that lists the names; an unknown parameter or a bad value is an InputError.
    """
    threat = THREATS.get(name)
    known = {field.name: field.default for field in fields(threat)}
    for key, value in params.items():
        if key not in known:
            raise InputError(f"Threat {name!r} has no parameter {key!r}; its parameters are: {', '.join(known)}.")
        is_list = isinstance(known[key], tuple)
        given = value if is_list and isinstance(value, list | tuple) else [value]
        if is_list == isinstance(value, str) or not given or not all(map(is_wording, given)):
            wants = "a list of texts" if is_list else "a text"
            raise InputError(
                f"Threat {name!r}: parameter {key!r} is {brief(value)}; it must be {wants}, none of it blank."
            )
        params[key] = tuple(given) if is_list else value
    return threat(**params)
