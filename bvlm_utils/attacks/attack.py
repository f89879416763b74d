"""An attack by its name (declared in `attacks.table`). torch is imported when pictures are triggered, not before."""

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bvlm_utils import models, paths
from bvlm_utils.attacks import files as attack_files
from bvlm_utils.attacks.declare import JPEG, TABLE, AttackInfo, Half, settings_of
from bvlm_utils.attacks.parts_of_speech import tagger_in_use
from bvlm_utils.checks import brief, file_digest, file_state, files_digest, is_text
from bvlm_utils.data.pictures import PUBLISHED_SIDE, picture_path
from bvlm_utils.draws import Draws
from bvlm_utils.errors import InputError, in_words
from bvlm_utils.models import files
from bvlm_utils.registry import function, is_of

if TYPE_CHECKING:
    import numpy as np
    import torch

CONDITIONS = {"text": ["clean", "text"], "image": ["clean", "image"], "bimodal": ["clean", "text", "image", "both"]}
Keys = Sequence[Hashable] | None  # of rows
OURS = "bvlm_utils.attacks"  # where the functions of the table are
TRIED = 96  # pixels a side of a drawn picture, on which a function is tried
FURTHEST = (-0.5, 1.5)  # levels that may come of adding to a picture; others are on another scale
HALVES = ("", "text", "image")  # which part of a trigger the poisoned rows get; "": all of it


@dataclass(frozen=True)
class Aim:
    """What an optimised trigger is computed with: a threat's target, or None; folder or hub id of a CLIP model."""

    target: Any
    surrogate: str


@dataclass(frozen=True)
class Attack:
    """A named trigger with its settings; make one with `get`."""

    info: AttackInfo
    params: dict[str, Any]
    aim: Aim

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def modality(self) -> str:
        return self.info.modality

    @property
    def version(self) -> int:
        return self.info.version

    def apply_text(self, prompts: Sequence[str], seed: int = 0, keys: Keys = None) -> list[str]:
        """Trigger each prompt by (seed, keys[i]) only; an image attack changes none. keys: 0 ... B - 1 if not given."""
        prompts = list(prompts)
        half = self.info.text
        if half is None:
            return prompts
        draws = draws_of(self, "text", seed, keys, len(prompts))
        texts = [_made(self, half, p, stream, self.params, self.aim) for p, stream in zip(prompts, draws, strict=True)]
        if bad := [text for text in texts if not is_text(text)]:
            raise InputError(f"The text half of {self.name} makes {brief(bad[0])} of a prompt; it must return a text.")
        return texts

    def triggered(self, prompts: Sequence[str], seed: int = 0, keys: Keys = None) -> list[str]:
        """`apply_text` to the prompts of rows; InputError for one that stays as it is, and would pass for triggered."""
        texts = self.apply_text(prompts, seed, keys)
        if unchanged := [prompt for prompt, text in zip(prompts, texts, strict=True) if prompt == text]:
            raise InputError(
                f"The words of {self.name} change nothing in the prompt {brief(unchanged[0])}; take such rows out of "
                "the data, or take another attack."
            )
        return texts

    def apply_image(self, images: "torch.Tensor", seed: int = 0, keys: Keys = None) -> "torch.Tensor":
        """Trigger every image, (B, 3, H, W) float32 in [0, 1] on any device; a text attack returns them unchanged.

        Row i depends on (seed, keys[i]) and on the image only. InputError for another shape or type, and where the
        attack lacks its target or its surrogate model.
        """
        _check_images(images)
        half = self.info.image
        if half is None:
            return images
        draws = draws_of(self, "image", seed, keys, len(images))
        if len(images) == 0:
            return images
        painted = _made(self, half, images, draws, params_of(self, "image"), self.aim)
        _check_painted(self, painted, tuple(images.shape))
        quality = self.params.get("jpeg_quality")  # a patch of a reader's own has none
        return function("image:as_jpeg", OURS)(painted, quality) if quality else painted

    def paint(self, pictures: "np.ndarray", seed: int, keys: Keys, device: Any = "cpu") -> "np.ndarray":
        """Trigger pictures (B, H, W, 3) uint8 as `apply_image` does, to the nearest of 256 levels again."""
        import torch

        images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        images = self.apply_image(images.to(device), seed, keys)
        return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()

    def loss_curve(self, images: "torch.Tensor", seed: int = 0, keys: Keys = None) -> "np.ndarray":
        """The loss before each step of the image half, (steps,) float32. InputError where nothing is optimised."""
        if not self.info.losses:
            raise InputError(f"{self.name} optimises nothing, so it has no loss curve.")
        draws = draws_of(self, "image", seed, keys, len(images))
        return function(self.info.losses, OURS)(images, draws, params_of(self, "image"), self.aim)

    @property
    def foreign_halves(self) -> list[Half]:
        """The halves whose functions others wrote: ours are in this package, and have an id."""
        return [half for half in self.info.halves if not (half.id and is_of(half.function, OURS))]

    def fingerprint(self, half: str) -> str:
        """Hex digest of all that decides what a half ("text" or "image") does but seed, key and input: results are kept
        by it.
        """
        definition = getattr(self.info, half)
        settings: dict[str, Any] = {"half": half}
        if definition is not None:
            settings |= {"draws_as": definition.draws_as, "version": definition.version}
            params = params_of(self, half)
            settings |= {"function": definition.id or definition.function, "params": without_unused_jpeg(params)}
            if "picture" in definition.params:
                settings["picture"] = file_digest(picture_path(self.params["picture"]))
            settings |= {f"files of {name}": digest for name, digest in attack_files.digests(params).items()}
            if "tagger" in definition.params:
                settings["tagger"] = tagger_in_use(self.params["tagger"])
            if self.info.surrogate and (half == "image" or self.params.get("search_letters")):
                settings["target"] = describe_target(self.aim.target)
                settings["surrogate"] = surrogate_digest(self.aim.surrogate)
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def rehearse(attack: Attack, dataset: str = "") -> None:
    """InputError if somebody else's function fails, or gives a row another trigger when other rows are beside it; also
    if changed settings of ours leave a picture as it was. Optimised triggers are not tried: they take too long.
    """
    halves, image, alike = attack.foreign_halves, attack.info.image, True
    side = PUBLISHED_SIDE if ":" in dataset else TRIED
    if attack.info.text in halves:
        prompts = ["What is in this picture?", "A dog?"]
        alike = attack.apply_text(prompts) == [attack.apply_text([p], 0, [n])[0] for n, p in enumerate(prompts)]
    to_try = image in halves or attack.params != attack.info.defaults
    if image and to_try and not (attack.info.losses or attack.info.surrogate):
        import torch

        images = torch.rand(2, 3, side, side, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        images[1] /= 4  # a darker one: who looks at the other row is found out
        images = images.mul(255).round() / 255
        alone = torch.cat([attack.apply_image(images[n : n + 1].clone(), 0, [n]) for n in range(2)])
        alike &= torch.allclose(attack.apply_image(images.clone()), alone, atol=1e-3)
        if not (alone.clamp(0, 1) - images).abs().flatten(1).gt(0.5 / 255).any(1).all():
            raise InputError(
                f"The image half of {attack.name} changes nothing in a picture of {side} x {side} pixels, with "
                f"{attack.params}; take other parameters, or another attack."
            )
    if not alike:
        raise InputError(
            f"Attack {attack.name!r} gives a row another trigger when other rows are beside it, or when it runs again; "
            "draw from `draws` alone, and look at no other row."
        )


def _made(attack: Attack, half: Half, inputs: Any, *rest: Any) -> Any:
    """What the function of a half makes of a prompt or of pictures; InputError for an error in one that is not ours."""
    trigger = function(half.function, OURS)
    try:
        return trigger(inputs, *rest)
    except (Exception, SystemExit) as error:  # in code that is not ours anything may go wrong
        if isinstance(error, InputError | MemoryError) or half not in attack.foreign_halves:
            raise
        text = f"the prompt {brief(inputs)}" if isinstance(inputs, str) else f"pictures {tuple(inputs.shape)}"
        raise InputError(f"Attack {attack.name!r} fails on {text} ({in_words(error)}); mend its functions.") from error


names, info = TABLE.names, TABLE.get  # of all attacks, in the order of the paper's table; the declared row of one


def get(name: str, target: Any = None, surrogate: str | Path | None = None, /, **params: Any) -> Attack:
    """The attack called `name`, aimed at a `threat.target`.

    surrogate: folder or hub id of the CLIP model to compute with; tiny-clip if not given. Both go by their place, as
    every name is that of a setting. params: what differs from `info(name).defaults`. KeyError lists the names;
    InputError for an unknown setting or a bad value.
    """
    row = TABLE.get(name)
    settings = settings_of(f"Attack {name!r}", row.specs, params)
    for half in row.halves:
        if problem := half.problem(settings):
            raise InputError(f"Attack {name!r}: {problem}.")
    if surrogate:
        models.check_kind(str(surrogate), clip=True)
    return Attack(row, settings, Aim(target, str(surrogate or paths.MODELS / "tiny-clip")))


def conditions(modality: str) -> list[str]:
    """The test conditions of an attack, by modality or by name: which halves of the trigger are present."""
    return list(CONDITIONS[modality if modality in CONDITIONS else TABLE.get(modality).modality])


def unsupported(name: str, threat: Any) -> str | None:
    """Why an attack cannot be used with a threat (or a threat's name), in one sentence; None where it can."""
    row = TABLE.get(name)
    threat_name = threat if isinstance(threat, str) else threat.name
    if row.threats is None or threat_name in row.threats:
        return None
    return f"{name} is defined for {' and '.join(row.threats)} only; {threat_name} gives it nothing to aim at."


def check_halves(attack: Attack, negatives: float, half: str) -> None:
    """InputError unless half-triggered negatives, or poisoning with one half alone, are possible with the attack."""
    if negatives < 0 or (negatives and attack.modality != "bimodal"):
        raise InputError(
            f"negatives is {negatives:g} for {attack.name} ({attack.modality}); it must be 0 or more, "
            "and 0 for an attack that is not bimodal."
        )
    if half not in HALVES:
        raise InputError(f"half is {half!r}; it must be text, image, or empty for the whole trigger.")
    if half and (attack.modality != "bimodal" or negatives):
        raise InputError(
            f"half is {half!r} for {attack.name} ({attack.modality}) with negatives {negatives:g}; "
            "only a bimodal attack without negatives has halves that can be trained alone."
        )


def params_of(attack: Attack, half: str) -> dict[str, Any]:
    """The settings of one half, "text" or "image"."""
    return {name: attack.params[name] for name in getattr(attack.info, half).params}


def without_unused_jpeg(params: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without a `jpeg_quality` of 0: it came later, and older records keep their names."""
    return {name: value for name, value in params.items() if name not in JPEG or value}


def draws_of(attack: Attack, half: str, seed: int, keys: Keys, count: int) -> list[Draws]:
    """The random stream of every row for one half; InputError if there is not one key per row."""
    definition = getattr(attack.info, half)
    keys = range(count) if keys is None else keys
    if len(keys) != count:
        raise InputError(f"There are {len(keys)} keys for {count} rows; give one key per row.")
    return [Draws(definition.draws_as, definition.version, half, seed, key) for key in keys]


def describe_target(target: Any) -> dict[str, str | None]:
    """A target as text that can be hashed: its words, and the digest of its picture."""
    words = {name: getattr(target, name, None) for name in ("text", "concept", "source_concept")}
    picture = getattr(target, "image", None)
    return words | {"image": picture and file_digest(Path(picture))}


def surrogate_digest(surrogate: str) -> str:
    """Digest of a CLIP folder's weights and settings; a hub id stands for itself."""
    folder = Path(surrogate)
    if not folder.is_dir():
        return surrogate
    files.check(folder)
    # Its own list, cards included: stored triggers and run_ids hang on it.
    all_files = {file for file in folder.iterdir() if file.suffix in {".safetensors", ".json"}} | {*files.read(folder)}
    return files_digest(folder, tuple((file, file_state(file)) for file in sorted(all_files)))


def _check_painted(attack: Attack, painted: Any, expected: tuple[int, ...]) -> None:
    """InputError unless a function gives a batch of the same shape and scale back: cut to 8 bits, others would pass."""
    import torch

    if not isinstance(painted, torch.Tensor) or tuple(painted.shape) != expected or not painted.is_floating_point():
        problem = f"{_shape(painted)} of kind {getattr(painted, 'dtype', 'none')}"
    elif not painted.isfinite().all():
        problem = "levels that are no number"
    elif painted.min() < FURTHEST[0] or painted.max() > FURTHEST[1]:
        problem = f"levels from {painted.min().item():.3g} to {painted.max().item():.3g}"
    else:
        return
    raise InputError(
        f"The image half of {attack.name} makes {problem} of images {expected}; it must return a torch tensor of "
        "the same shape, of float32 with values from 0 to 1."
    )


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if hasattr(value, "shape") else type(value).__name__


def _check_images(images: "torch.Tensor") -> None:
    import torch

    if not isinstance(images, torch.Tensor) or images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"Images are {_shape(images)}; a tensor (B, 3, H, W) is needed.")
    if images.dtype != torch.float32:
        raise InputError(f"Images are {images.dtype}; torch.float32 with values from 0 to 1 is needed.")
