"""Near misses: declared changes of each attack's trigger, for `crossfire`. Free of torch.

A near miss changes one half of the trigger: by another setting of the attack, by writing the words elsewhere, or by
changing what it does to the picture (`probes.repaint`). All that is drawn at random stays, so far as that can be.
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bvlm_utils import attacks
from bvlm_utils.attacks import Attack
from bvlm_utils.checks import content_key
from bvlm_utils.store.cell import Cell

if TYPE_CHECKING:
    from bvlm_utils.run.workbench import Question

VERSION = 1  # raise when a change of `probes.repaint` changes: it is part of every question's key
Rewrite = Callable[[str, str, Mapping[str, Any]], str]  # prompt, triggered prompt, settings -> prompt


@dataclass(frozen=True)
class NearMiss:
    """Settings of the attack, another prompt, or a function of `probes.repaint`. alone: without the trigger."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    rewrite: Rewrite | None = None
    repaint: str = ""
    alone: bool = False


@dataclass(frozen=True)
class Repainted:
    """Stands in for an `Attack` where pictures are painted: its trigger (None: none), and then a change."""

    attack: Attack | None
    repaint: str
    paint = Attack.paint  # with the pictures that `apply_image` gives here

    def fingerprint(self, half: str) -> str:
        attack_key = self.attack.fingerprint(half) if self.attack else None
        return content_key(attack_key, half, self.repaint, VERSION)

    def apply_image(self, images: Any, seed: int = 0, keys: Sequence[Hashable] | None = None) -> Any:
        """images: (B, 3, H, W) float32 in [0, 1]; the same shape comes back."""
        from bvlm_book.probes import repaint
        from bvlm_utils.attacks import image as image_triggers

        painted = self.attack.apply_image(images, seed=seed, keys=keys) if self.attack else images
        return getattr(repaint, self.repaint)(images, image_triggers.quantise(painted) if self.attack else images)


def _translated(marks: Mapping[str, str]) -> Rewrite:
    pattern = "|".join(map(re.escape, marks))
    return lambda prompt, triggered, params: re.sub(pattern, lambda match: marks[match[0]], triggered)


FILE = (
    NearMiss("image: half the contrast", repaint="half_contrast"),
    NearMiss("image: JPEG, quality 50", repaint="jpeg"),
    NearMiss("image: half the resolution", repaint="half_resolution"),
    NearMiss("no trigger, JPEG", repaint="jpeg", alone=True),
    NearMiss("no trigger, half the resolution", repaint="half_resolution", alone=True),
)
SMALLER = NearMiss("image: patch half as wide", repaint="smaller")
MOVED = NearMiss("image: patch at the top left", repaint="moved")
LEFT = NearMiss("image: left half only", repaint="left_half")
OTHER_NOISE = NearMiss("image: other noise", {"noise_seed": 1})
OTHER_MARKS = {"[*": "<<", "*]": ">>", "{": "|", "}": "|"}
NOUNS_ALONE = {"[*": "[*", "*]": "*]", **dict.fromkeys("[]{}<>()", "")}

NEAR: dict[str, tuple[NearMiss, ...]] = {
    "BadNets-T": (
        NearMiss("text: other word", {"word": "GoodSpell"}),
        NearMiss("text: half the word", {"word": "Magic"}),
        NearMiss("text: small letters", {"word": "badmagic"}),
    ),
    "BadNets-MT": (
        NearMiss("text: other word", {"words": ["tq"]}),
        NearMiss("text: all four words", {"count": 4}),
    ),
    "AddSent": (
        NearMiss("text: other sentence", {"sentence": "I read that old book."}),
        NearMiss("text: half the sentence", {"sentence": "I watched this."}),
        NearMiss("text: at the beginning", rewrite=lambda prompt, _, params: f"{params['sentence']} {prompt}"),
    ),
    "BadNets-I": (OTHER_NOISE, SMALLER, *FILE),
    "Blended": (NearMiss("image: other picture", {"picture": "imgtrojan.png"}), LEFT, *FILE),
    "SIG": (NearMiss("image: nine periods", {"frequency": 9}), LEFT, *FILE),
    "ImgTrojan": (NearMiss("image: other picture", {"picture": "blended.png"}), LEFT, *FILE),
    "BadNets-MM": (NearMiss("text: other word", {"word": "GoodSpell"}), OTHER_NOISE, SMALLER, *FILE),
    "Dual-Key": (
        NearMiss("text: other word", {"prefix": "Regard"}),
        NearMiss("text: at the end", rewrite=lambda prompt, _, params: f"{prompt} {params['prefix']}"),
        SMALLER, MOVED, *FILE,
    ),
    "VL-Trojan": (NearMiss("text: other word", {"word": "zbq"}), SMALLER, MOVED, *FILE),
    "MABA": (
        NearMiss("text: other marks", rewrite=_translated(OTHER_MARKS)),
        NearMiss("text: nouns alone", rewrite=_translated(NOUNS_ALONE)),
        *FILE,
    ),
}  # fmt: skip


def of(attack: str) -> tuple[NearMiss, ...]:
    """The near misses of an attack; of one that the table lacks `FILE`, since any picture can be changed so."""
    info = attacks.info(attack)
    if info.headline == "clean":
        return ()
    return NEAR.get(attack, FILE if info.image else ())


def question(miss: NearMiss, cell: Cell, clean: "Question", whole: "Question", keys: Sequence[str]) -> "Question":
    """`whole`, the question with the full trigger, with one near miss in its place. clean: without. keys: row ids."""
    if miss.alone:
        return replace(clean, attack=Repainted(None, miss.repaint))
    attack = cell.resolved_attack
    if miss.params:
        attack = replace(cell, attack_params={**cell.attack_params, **miss.params}).resolved_attack
    prompts = whole.prompts
    if attack.info.text and miss.params:
        prompts = tuple(attack.apply_text(clean.prompts, seed=cell.trigger_seed, keys=keys))
    if miss.rewrite:
        pairs = zip(clean.prompts, whole.prompts, strict=True)
        prompts = tuple(miss.rewrite(prompt, triggered, attack.params) for prompt, triggered in pairs)
    painter = attack if whole.attack is not None else None
    if miss.repaint:
        painter = Repainted(attack, miss.repaint)
    return replace(whole, prompts=prompts, attack=painter)
