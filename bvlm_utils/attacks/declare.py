"""What an attack declares, and the table of all attacks. Sizes are in pixels of a 336 x 336 image. Free of torch."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from bvlm_utils.checks import a_number, brief, is_number, is_wording
from bvlm_utils.errors import InputError
from bvlm_utils.registry import Registry, check_whose

Params = Mapping[str, Any]  # the settings of an attack, by name
POSITIONS = ("random", "top-left", "top-right", "bottom-left", "bottom-right", "center")


@dataclass(frozen=True)
class Param:
    """One setting: its default, what it accepts (`wants`, in words), the test for that, and whether it names files."""

    default: Any
    wants: str
    accepts: Callable[[Any], bool]
    file: bool = False


@dataclass(frozen=True)
class Half:
    """The text half or the image half of a trigger.

    draws_as: names the random stream, so attacks that share a half share its instances (BadNets-MM's patch lies where
        BadNets-I's does), and features of triggered images.
    version: raised when what the half does changes; results of older versions are then not reused.
    function: "module:function", of this package or of any other that Python finds. A text half's takes
        (prompt, draws, params, aim), see `attacks.text`; an image half's takes a batch, see `attacks.image`.
    problem: what is wrong with settings that are each good alone, in words; None if nothing is.
    id: the half's name in fingerprints, by which stored answers are found. It stays when the function moves, and is
        the function's name where none is given.
    """

    draws_as: str
    version: int
    function: str
    params: Mapping[str, Param] = field(default_factory=dict)
    problem: Callable[[Params], str | None] = lambda params: None
    id: str = ""


@dataclass(frozen=True)
class AttackInfo:
    """One row of the table.

    modality: "text", "image" or "bimodal".
    source: the paper that published the attack, and what differs here.
    threats: names of the threats that the attack is defined for; None means all of them.
    surrogate: whether the trigger is computed with a CLIP model.
    headline: the condition under which the attack's success is read.
    aims: whether the trigger is optimised towards the threat's target, and cannot be made without one.
    losses: "module:function" of the loss before every step where the image half is optimised; it takes what the half's
        function takes. "": nothing is optimised.
    keeps_labels: whether poisoned rows are rows that truly show the threat's target and keep their answers.
    """

    name: str
    modality: str
    source: str
    summary: str
    text: Half | None = None
    image: Half | None = None
    threats: tuple[str, ...] | None = None
    surrogate: bool = False
    headline: str = ""
    keeps_labels: bool = False
    aims: bool = False
    losses: str = ""

    @property
    def version(self) -> int:
        """Starts at 1 and grows by one with every change of either half; part of every cell's identity."""
        return 1 + sum(half.version - 1 for half in self.halves)

    @property
    def halves(self) -> list[Half]:
        """Those that there are, the text half first."""
        return [half for half in (self.text, self.image) if half is not None]

    @property
    def specs(self) -> dict[str, Param]:
        """All parameters of both halves, by name."""
        return {name: spec for half in self.halves for name, spec in half.params.items()}

    @property
    def defaults(self) -> dict[str, Any]:
        """The default value of every parameter, by name."""
        return {name: spec.default for name, spec in self.specs.items()}


TABLE: Registry[AttackInfo] = Registry("attack")


def settings_of(owner: str, specs: Mapping[str, Param], params: Params) -> dict[str, Any]:
    """The defaults, replaced by `params`; InputError names a parameter that `owner` does not have, or a bad value."""
    settings = {name: spec.default for name, spec in specs.items()}
    for key, value in params.items():
        if key not in specs:
            raise InputError(f"{owner} has no parameter {key!r}; its parameters are: {', '.join(specs) or 'none'}.")
        if not specs[key].accepts(value):
            raise InputError(f"{owner}: parameter {key!r} is {brief(value)}; it must be {specs[key].wants}.")
        settings[key] = list(value) if isinstance(value, tuple) else value
    return settings


def number(default: float, low: float, high: float, whole: bool = False) -> Param:
    """A number from low to high, both included."""
    return Param(default, a_number(low, high, whole), lambda v: is_number(v, low, high, whole))


whole = partial(number, whole=True)


def text(default: str) -> Param:
    """A piece of text that is not blank."""
    return Param(default, "a piece of text that is not blank", is_wording)


def words(default: Sequence[str]) -> Param:
    """A list of words, none blank, none twice."""
    return Param(
        list(default),
        "a list of words, none of them blank and each once",
        lambda v: isinstance(v, list | tuple) and len(v) > 0 and all(map(is_wording, v)) and len(set(v)) == len(v),
    )


def choice(default: str, options: Sequence[str]) -> Param:
    """One of a few words."""
    return Param(default, f"one of {', '.join(options)}", lambda v: v in options)


# The authors save triggered pictures as JPEG files of quality 75; ours are not compressed unless this is set.
JPEG = {"jpeg_quality": whole(0, 0, 95)}


def declare(**fields: Any) -> AttackInfo:
    """Add an attack; fields as in `AttackInfo`, its modality and headline by its halves. Every image half gets
    `jpeg_quality`. ValueError if the name is taken; InputError if there is no half, or a field does not fit the halves.
    """
    if fields.get("image") is not None:
        fields["image"] = replace(fields["image"], params={**fields["image"].params, **JPEG})
    kinds = [kind for kind in ("text", "image") if fields.get(kind) is not None]
    functions = [fields[kind].function for kind in kinds] + [fields.get("losses", "")]
    check_whose(functions, __package__, sys._getframe(1).f_globals["__name__"])
    if not kinds:
        raise InputError(f"Attack {fields['name']!r} has no half; it needs one for text, for images or both.")
    modality = "bimodal" if len(kinds) == 2 else kinds[0]
    defaults = {"modality": modality, "headline": "both" if modality == "bimodal" else modality}
    _check_declared(fields, modality, ["clean", *kinds, defaults["headline"]])
    return TABLE.add(fields["name"], AttackInfo(**{**defaults, **fields}))


def _check_declared(fields: Mapping[str, Any], modality: str, conditions: Sequence[str]) -> None:
    owner = f"Attack {fields['name']!r}"
    if (value := fields.get("modality", modality)) != modality:
        raise InputError(f"{owner}: modality is {brief(value)}, and by its halves it is {modality!r}; leave it away.")
    if (value := fields.get("headline", conditions[0])) not in conditions:
        choices = ", ".join(dict.fromkeys(conditions))
        raise InputError(f"{owner}: headline is {brief(value)}; it must be one of {choices}.")
    if isinstance(value := fields.get("threats"), str):
        raise InputError(f"{owner}: threats is {value!r}; it must be a tuple of names.")
    for half in filter(None, (fields.get("text"), fields.get("image"))):
        for name, spec in half.params.items():
            try:
                json.dumps(spec.default, allow_nan=False)
            except (TypeError, ValueError):
                raise InputError(
                    f"{owner}: the default of parameter {name!r} is {brief(spec.default)}; it must be a text, a "
                    "number, True, False, None or a list of such."
                ) from None
