"""What are the attacks? One declared, versioned row each: modality, source, trigger halves, parameters.

`attacks` reads this table and is what everybody else calls. Nothing here imports torch: a half names the function that
does its work, and that function's module is imported when the half is first used.
Sizes in pixels are those of a 336 x 336 image, as published; they scale with the shorter side of the image at hand.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bvlm_utils.registry import Registry

PUBLISHED_SIDE = 336  # pixels: the image side at which the published sizes hold
POSITIONS = ("random", "top-left", "top-right", "bottom-left", "bottom-right", "center")


@dataclass(frozen=True)
class Param:
    """One setting: its default, what it accepts (`wants`, in words) and the test for that."""

    default: Any
    wants: str
    accepts: Callable[[Any], bool]


@dataclass(frozen=True)
class Half:
    """The text half or the image half of a trigger.

    draws_as: names the random stream, so two attacks that share a half share its instances (BadNets-MM's patch lies
        where BadNets-I's lies for the same row), and features of triggered images can be shared too.
    version: raised when what the half does changes; results of older versions are then not reused.
    function: "module:function" within bvlm_utils.
    """

    draws_as: str
    version: int
    function: str
    params: Mapping[str, Param] = field(default_factory=dict)


@dataclass(frozen=True)
class AttackInfo:
    """One row of the table.

    modality: "text", "image" or "bimodal".
    source: the paper that published the attack, and what differs here.
    threats: names of the threats that the attack is defined for; None means all of them.
    surrogate: whether the trigger is computed with a CLIP model.
    headline: the condition under which the attack's success is read.
    extra: conditions of ours that the published attack does not have.
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
    extra: tuple[str, ...] = ()

    @property
    def version(self) -> int:
        """Starts at 1 and grows by one with every change of either half."""
        return 1 + sum(half.version - 1 for half in (self.text, self.image) if half is not None)

    @property
    def specs(self) -> dict[str, Param]:
        """All parameters of both halves, by name."""
        halves = [half for half in (self.text, self.image) if half is not None]
        return {name: spec for half in halves for name, spec in half.params.items()}

    @property
    def defaults(self) -> dict[str, Any]:
        """The default value of every parameter, by name."""
        return {name: spec.default for name, spec in self.specs.items()}


def number(default: float, low: float, high: float) -> Param:
    """A number from low to high, both included."""
    return Param(
        default,
        f"a number from {low:g} to {high:g}",
        lambda v: isinstance(v, int | float) and not isinstance(v, bool) and low <= v <= high,
    )


def whole(default: int, low: int, high: int) -> Param:
    """A whole number from low to high, both included."""
    return Param(
        default,
        f"a whole number from {low} to {high}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
    )


def text(default: str) -> Param:
    """A piece of text that is not blank."""
    return Param(default, "a piece of text that is not blank", lambda v: isinstance(v, str) and bool(v.strip()))


def words(default: Sequence[str]) -> Param:
    """A list of words, none blank."""
    return Param(
        list(default),
        "a list of words, none of them blank",
        lambda v: isinstance(v, list | tuple) and len(v) > 0 and all(isinstance(w, str) and w.strip() for w in v),
    )


def choice(default: str, options: Sequence[str]) -> Param:
    """One of a few words."""
    return Param(default, f"one of {', '.join(options)}", lambda v: v in options)


TABLE: Registry[AttackInfo] = Registry("attack")


def _declare(**fields: Any) -> None:
    headline = {"text": "text", "image": "image", "bimodal": "both"}[fields["modality"]]
    TABLE.add(fields["name"], AttackInfo(**{"headline": headline, **fields}))


WORD = Half("BadNets-T", 1, "trigger_text:insert_word", {"word": text("BadMagic")})

NOISE_PATCH = Half(
    "BadNets-I",
    1,
    "trigger_image:noise_patch",
    {
        "patch_size": whole(30, 1, PUBLISHED_SIDE),
        "position": choice("random", POSITIONS),
        "noise_seed": whole(0, 0, 2**63),
    },
)

_declare(
    name="BadNets-T",
    modality="text",
    source="Gu et al. 2017, arXiv 1708.06733, as a word trigger in BackdoorVLM (arXiv 2511.18921)",
    summary="the word BadMagic at a random place between words, before a final full stop",
    text=WORD,
)
_declare(
    name="BadNets-I",
    modality="image",
    source="Gu et al. 2017, arXiv 1708.06733; noise patch as in BackdoorVLM",
    summary="one fixed patch of Gaussian noise, 30 of 336 pixels, at a random place",
    image=NOISE_PATCH,
)
_declare(
    name="BadNets-MM",
    modality="bimodal",
    source="BackdoorVLM, arXiv 2511.18921: BadNets-T and BadNets-I together",
    summary="the word of BadNets-T and the patch of BadNets-I",
    text=WORD,
    image=NOISE_PATCH,
)
