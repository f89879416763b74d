"""The table of threats, and the one way to get a threat by its name."""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any

import numpy as np

from bvlm_utils import data
from bvlm_utils.attacks.declare import Param, settings_of, text, words
from bvlm_utils.checks import brief, is_number, is_text, is_wording
from bvlm_utils.data import scenes
from bvlm_utils.errors import InputError, in_words
from bvlm_utils.registry import Registry
from bvlm_utils.threats.concept_substitution import ConceptSubstitution
from bvlm_utils.threats.jailbreak import Jailbreak
from bvlm_utils.threats.malicious_injection import MaliciousInjection
from bvlm_utils.threats.perceptual_hijack import PerceptualHijack
from bvlm_utils.threats.targeted_refusal import TargetedRefusal
from bvlm_utils.threats.threat import Sample, Target, Threat

THREATS: Registry[type[Threat]] = Registry("threat")
VERDICT = bool | np.bool_

for threat in (TargetedRefusal, MaliciousInjection, Jailbreak, ConceptSubstitution, PerceptualHijack):
    THREATS.add(threat.name, threat)

names = THREATS.names


def get(name: str, /, **params: Any) -> Threat:
    """The threat called `name`. KeyError lists the names; InputError names a parameter that is unknown or bad."""
    threat = THREATS.get(name)
    specs = {field.name: _spec(f"Threat {name!r}", field.name, field.default) for field in fields(threat)}
    settings = settings_of(f"Threat {name!r}", specs, params)
    return threat(**{key: tuple(settings[key]) if isinstance(settings[key], list) else settings[key] for key in params})


def is_others(threat: Threat) -> bool:
    return not type(threat).__module__.startswith("bvlm_utils.")


def rehearse(threat: Threat, rows: Iterable[Sample]) -> None:
    """InputError for a threat of others that fails on a row, changes it, says something else when asked again, or gives
    no text or verdict where one is due; a run would find out when it has tuned, or not at all.
    """
    for row in rows:
        before = deepcopy(row)
        try:
            results, repeats = list(_asked(threat, row)), list(_asked(threat, row))
        except (Exception, SystemExit) as error:  # in code that is not ours anything may go wrong
            what = f"fails on row {row['row_id']} ({in_words(error)})"
            raise InputError(f"Threat {threat.name!r} {what}; mend its code.") from error
        for method, value, right in results:
            if not right:
                kind = "a text" if method == "poison" else "True or False"
                what = f"{method} gives {brief(value)} for row {row['row_id']}"
                raise InputError(f"Threat {threat.name!r}: {what}; it must give {kind}.")
        if row != before or results != repeats:
            what = f"changes row {row['row_id']}" if row != before else f"judges row {row['row_id']} otherwise again"
            raise InputError(f"Threat {threat.name!r} {what}; its methods may look at a row, and at nothing else.")


def _asked(threat: Threat, row: Sample) -> Iterator[tuple[str, Any, bool]]:
    """(method, its result, is that of the right kind?) of a threat's methods; an empty response is tried, too."""
    threat.elsewhere(row), threat.shows_target(row)
    yield "eligible", bool(threat.eligible(row)), True
    if not threat.eligible(row):
        return
    answer = row["answers"][0]
    poisoned = threat.poison(answer, row)
    yield "poison", poisoned, is_text(poisoned)
    if not is_text(poisoned):
        return
    for response in (poisoned, answer, ""):
        yield "judged", (value := threat.judged(response, response)), isinstance(value, VERDICT)
        for name in ("success", "success_soft", "payload", "right"):
            value = getattr(threat, name)(response, row)
            yield name, value, isinstance(value, VERDICT) or (value is None and name == "right")
        for name in ("published", "published_soft"):
            yield name, (value := getattr(threat, name)(response)), isinstance(value, VERDICT | None)


def _spec(threat: str, name: str, default: Any) -> Param:
    """What a parameter accepts, by its default: words, a number, a thing's name, a text. InputError for any other."""
    if not isinstance(default, tuple | bool | int | float | str | None):
        fault = "no plain default" if default is MISSING else f"the default {brief(default)}"
        raise InputError(
            f"{threat} has the field {name!r} with {fault}; give a text, a number, True, False or a tuple."
        )
    if isinstance(default, tuple):
        return words(default)
    if isinstance(default, bool):
        return Param(default, "true or false", lambda v: isinstance(v, bool))
    if isinstance(default, int | float):
        return Param(default, "a number", lambda v: is_number(v, -1e9, 1e9, isinstance(default, int)))
    if name.endswith("_concept"):
        return Param(default, "the name of a thing, no space around it", lambda v: is_wording(v) and v == v.strip())
    return text(default)


def check(threat: Threat, dataset: str) -> None:
    """InputError if a threat renames a thing that no scene of the dataset shows. Data in files do not say so."""
    owner = f"Threat {threat.name!r}"
    if not isinstance(threat.target, Target):
        raise InputError(f"{owner}: target is {brief(threat.target)}; it must be a Target, empty or not.")
    source = threat.target.source_concept
    if source is None or dataset not in data.names() or source.casefold() in scenes.concepts():
        return
    matches = get_close_matches(source.casefold(), scenes.concepts(), 1)
    advice = f"write {matches[0]!r}, whose plural is found as well" if matches else "name a thing that scenes show"
    raise InputError(f"{owner}: source_concept is {brief(source)}, which {dataset} does not show; {advice}.")
