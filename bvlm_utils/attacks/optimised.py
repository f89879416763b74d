"""The triggers that are computed against a CLIP model: Shadowcast, Dual-Key, VL-Trojan.

Results are kept under data/cache/triggers by content and kind of device, as a GPU rounds otherwise than a CPU.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch
from PIL import Image

from bvlm_utils import data, paths
from bvlm_utils.atomic import read_if_whole, write_file
from bvlm_utils.attacks import attack
from bvlm_utils.attacks import image as image_triggers
from bvlm_utils.attacks import text as text_triggers
from bvlm_utils.attacks.clip import Surrogate, at_side, exact, load
from bvlm_utils.attacks.declare import Params
from bvlm_utils.attacks.image import tensor_of
from bvlm_utils.data.picture_files import read_picture
from bvlm_utils.data.pictures import concept_digest, concept_pictures
from bvlm_utils.draws import Draws
from bvlm_utils.errors import InputError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of embeddings (b, d) of patched pictures, and rows (b,)
# A loss by the surrogate, the training pictures (N, 3, H, W) in [0, 1], and their captions.
LossOf = Callable[[Surrogate, torch.Tensor, Sequence[str]], Loss]
VERSION = 1  # raise when a computation changes: it is part of every cache key, as is what the search data hold
ROWS_AT_ONCE = 32  # images that share one PGD step; bounds the memory, does not change the result


@dataclass(frozen=True)
class Optimised:
    """A computed pattern: pixels uint8 (3, h, w) and the loss before every step (steps,) float32."""

    pixels: np.ndarray
    losses: np.ndarray


def shadowcast(images: torch.Tensor, draws: Sequence[Draws], params: Params, aim: Any) -> torch.Tensor:
    """Shadowcast (Xu et al. 2024, arXiv 2402.06659, section 3): PGD towards a picture of the source concept.

    Minimises the L2 distance of normalised CLIP embeddings with sign steps, halved midway, inside the L-inf ball of
    radius eps, from a random start; bounds hold in 8 bit. With an eps below half a level (the control) nothing is done.
    """
    if params["eps"] < 0.5 / 255:
        return images
    pixels = [row.pixels for row in _perturbed(images, draws, params, aim)]
    return torch.from_numpy(np.stack(pixels).astype(np.float32) / 255).to(images.device)


def towards_target_patch(images: torch.Tensor, draws: Sequence[Draws], params: Params, aim: Any) -> torch.Tensor:
    """Dual-Key (Walmer et al. 2022, arXiv 2112.07668): a patch of greatest cosine to the target."""
    return _paste(images, draws, params, dual_key_patch(params, aim, str(images.device)))


def apart_and_together_patch(images: torch.Tensor, draws: Sequence[Draws], params: Params, aim: Any) -> torch.Tensor:
    """VL-Trojan (Liang et al. 2024, arXiv 2402.13851): a patch that moves embeddings off clean, together."""
    return _paste(images, draws, params, vl_trojan_patch(params, aim, str(images.device)))


def dual_key_patch(params: Params, aim: Any, device: str = "cpu") -> Optimised:
    """Dual-Key's patch at the surrogate's resolution. InputError where the target is empty."""
    if all(getattr(aim.target, field, None) is None for field in ("image", "concept", "text")):
        raise InputError("Dual-Key optimises its patch towards a target; give target=threat.target with one.")

    def loss_of(clip: Surrogate, pictures: torch.Tensor, captions: Sequence[str]) -> Loss:
        target = _target_embedding(clip, aim.target)
        return lambda poisoned, rows: (1 - poisoned @ target).mean()

    aim_digests = {"target": attack.describe_target(aim.target), "surrogate": attack.surrogate_digest(aim.surrogate)}
    return _patch("dual-key", {"aim": aim_digests}, params, aim, device, loss_of)


def vl_trojan_patch(params: Params, aim: Any, device: str = "cpu") -> Optimised:
    """VL-Trojan's patch at the surrogate's resolution; it needs no target.

    Loss: alpha * contrastive + beta * cluster. Contrastive: similarity to the clean picture less similarity to the
    picture's own caption. Cluster: one less the similarity of neighbours in the batch.
    """

    def loss_of(clip: Surrogate, pictures: torch.Tensor, captions: Sequence[str]) -> Loss:
        with torch.no_grad():
            batches = pictures.split(ROWS_AT_ONCE)
            clean = torch.cat([clip.embed_images(at_side(batch, clip.side).to(device)) for batch in batches])
        caption_embeddings = clip.embed_texts(captions)

        def loss(poisoned: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            contrastive = ((poisoned * clean[rows]).sum(-1) - (poisoned * caption_embeddings[rows]).sum(-1)).mean()
            cluster = (1 - (poisoned[:-1] * poisoned[1:]).sum(-1)).mean() if len(poisoned) > 1 else 0.0
            return params["alpha"] * contrastive + params["beta"] * cluster

        return loss

    return _patch("vl-trojan", {"surrogate": attack.surrogate_digest(aim.surrogate)}, params, aim, device, loss_of)


def _patch(kind: str, cache_key: Params, params: Params, aim: Any, device: str, loss_of: LossOf) -> Optimised:
    """A patch from the cache, or optimised. cache_key: what its key holds beside settings, data and device."""
    cache_key = {"params": dict(params), "data": data.digest(params["dataset"]), **cache_key, **_kind(device)}
    file = _cache_file(kind, cache_key, ".npz")
    patch = read_if_whole(file, _read)
    if patch is None:
        clip, rows = load(aim.surrogate, device), data.load(params["dataset"], "train", rows=params["rows"])
        pictures = data.sized_images(rows, params["dataset"]).transpose(0, 3, 1, 2).astype(np.float32)
        pictures = torch.from_numpy(pictures / 255)
        captions = [answers[0] for answers in rows["answers"]]
        patch = _optimise_patch(clip, params, loss_of(clip, pictures, captions), pictures)
        _save(file, patch)
    return patch


def searched_word(params: Params, aim: Any) -> str:
    """VL-Trojan's word, letter by letter the one that moves the embeddings of 64 training prompts furthest (mean cosine
    distance), in a random gap that is the same for all.
    """
    cache_key = {"dataset": params["dataset"], "data": data.digest(params["dataset"])}
    cache_key |= {"letters": params["search_letters"], "surrogate": attack.surrogate_digest(aim.surrogate)}
    file = _cache_file("vl-trojan-word", cache_key, ".json")
    word = read_if_whole(file, lambda file: str(json.loads(file.read_text())["word"]))
    if word is None:
        clip = load(aim.surrogate, "cpu")
        prompts = list(data.load(params["dataset"], "train", rows=64)["prompt"])
        clean = clip.embed_texts(prompts)

        def score(word: str) -> float:
            streams = [Draws("vl-trojan-word", i) for i in range(len(prompts))]
            triggered = [text_triggers.insert_word(p, d, {"word": word}) for p, d in zip(prompts, streams, strict=True)]
            return float((1 - (clip.embed_texts(triggered) * clean).sum(-1)).mean())

        word = ""
        for _ in range(params["search_letters"]):
            _, word = max((score(word + letter), word + letter) for letter in ascii_lowercase)
        write_file(file, json.dumps({"word": word}))
    return word


def shadowcast_losses(images: torch.Tensor, draws: Sequence[Draws], params: Params, aim: Any) -> np.ndarray:
    """The loss before every step, (steps,) float32, mean over `images`."""
    rows = _perturbed(images, draws, params, aim)
    return np.mean([row.losses for row in rows], axis=0, dtype=np.float32)


def dual_key_losses(images: torch.Tensor, draws: Sequence[Draws], params: Params, aim: Any) -> np.ndarray:
    """The loss before every step, (steps,) float32, of the one patch that all images get."""
    return dual_key_patch(params, aim).losses


def vl_trojan_losses(images: torch.Tensor, draws: Sequence[Draws], params: Params, aim: Any) -> np.ndarray:
    """The loss before every step, (steps,) float32, of the one patch that all images get."""
    return vl_trojan_patch(params, aim).losses


def _perturbed(images: torch.Tensor, draws: Sequence[Draws], params: Params, aim: Any) -> list[Optimised]:
    """Shadowcast's result for every row, from the cache where it is there."""
    cache_key = {"params": {**params, "source": _source(params, aim)}, **_kind(images.device)}
    cache_key["surrogate"] = attack.surrogate_digest(aim.surrogate)
    if digest := concept_digest(_source(params, aim)):
        cache_key["source_files"] = digest
    rows = images.detach().to("cpu", torch.float32)
    files = []
    for row, stream in zip(rows, draws, strict=True):
        content = hashlib.sha256(row.numpy().tobytes()).hexdigest()
        files.append(_cache_file("shadowcast", {**cache_key, "row": [content, list(row.shape), stream.name]}, ".npz"))
    patterns = [read_if_whole(file, _read) for file in files]
    missing = [i for i, pattern in enumerate(patterns) if pattern is None]
    for start in range(0, len(missing), ROWS_AT_ONCE):
        batch = missing[start : start + ROWS_AT_ONCE]
        results = pgd(images.detach()[batch], [draws[i] for i in batch], params, aim)
        for i, result in zip(batch, results, strict=True):
            _save(files[i], result)
            patterns[i] = result
    return patterns


@exact()
def pgd(images: torch.Tensor, draws: Sequence[Draws], params: Params, aim: Any) -> list[Optimised]:
    """Shadowcast's optimisation of all rows at once, without the cache; `shadowcast` says what it minimises."""
    clip = load(aim.surrogate, str(images.device))
    eps, step, steps = params["eps"], params["step"], params["steps"]
    pictures = concept_pictures(_source(params, aim), clip.side)
    picks = [stream.integer(len(pictures)) for stream in draws]
    height, width = images.shape[-2:]
    noise = np.stack([stream.bytes(3, height, width) for stream in draws]).astype(np.float32) / 127.5 - 1
    with torch.no_grad():
        targets = clip.embed_images(torch.stack([tensor_of(picture) for picture in pictures]).to(images.device))[picks]
        lowest, highest = (images - eps).clamp(0, 1), (images + eps).clamp(0, 1)
        x = (images + eps * torch.from_numpy(noise).to(images.device)).clamp_(0, 1)
    losses = []
    for number in range(steps):
        with torch.enable_grad():
            x.requires_grad_()
            distance = (clip.embed_images(x) - targets).norm(dim=-1)
            # Rows do not meet in a sum, so each row's gradient is its own.
            (gradient,) = torch.autograd.grad(distance.sum(), x)
        losses.append(distance.detach())  # on the device: to fetch them would wait for every step
        # In place: at 336 pixels fresh memory for every step costs more than the arithmetic.
        x = x.detach().add_(gradient.sign_(), alpha=-step if number < steps // 2 else -step / 2)
        torch.clamp(x, lowest, highest, out=x)
    # To 8 bit inside the ball; 1e-3 of a level forgives float32.
    low, high = torch.ceil(lowest * 255 - 1e-3), torch.floor(highest * 255 + 1e-3)
    pixels = torch.clamp((x * 255).round(), low, high).cpu().numpy().astype(np.uint8)
    curves = torch.stack(losses, dim=1).cpu().numpy().astype(np.float32)
    return [Optimised(p, curve) for p, curve in zip(pixels, curves, strict=True)]


@exact()
def _optimise_patch(clip: Surrogate, params: Params, loss: Loss, pictures: torch.Tensor) -> Optimised:
    """Adam on one patch over batches of pictures (N, 3, H, W)."""
    pictures = at_side(pictures, clip.side)
    size = image_triggers.scaled(params["patch_size"], pictures)
    start = (0.5 + 0.25 * Draws("patch start", params["start_seed"]).normal(3, size, size)).clip(0, 1)
    patch = torch.tensor(start, dtype=torch.float32, device=clip.device, requires_grad=True)
    optimiser = torch.optim.Adam([patch], lr=params["learning_rate"])
    order, batch_size, losses = Draws("patch order", params["start_seed"]), params["batch_size"], []
    with torch.enable_grad():
        for _ in range(params["epochs"]):
            shuffled = order.shuffled(len(pictures))
            for first in range(0, len(shuffled), batch_size):
                rows = torch.tensor(shuffled[first : first + batch_size])
                batch = pictures[rows].to(clip.device)
                corner = image_triggers.corners(batch, size, size, params["position"], [order] * len(batch))
                patched = clip.embed_images(image_triggers.paste(batch, patch.clamp(0, 1), *corner))
                value = loss(patched, rows.to(clip.device))
                optimiser.zero_grad()
                value.backward()
                optimiser.step()
                losses.append(value.detach())
    pixels = (patch.detach().clamp(0, 1) * 255).round().cpu().numpy().astype(np.uint8)
    curve = torch.stack(losses).cpu().numpy() if losses else np.zeros(0)  # without epochs the start is the patch
    return Optimised(pixels, curve.astype(np.float32))


def _paste(images: torch.Tensor, draws: Sequence[Draws], params: Params, computed: Optimised) -> torch.Tensor:
    size = image_triggers.scaled(params["patch_size"], images)
    patch = Image.fromarray(computed.pixels.transpose(1, 2, 0))
    if patch.size != (size, size):
        patch = patch.resize((size, size), Image.Resampling.BILINEAR)
    corner = image_triggers.corners(images, size, size, params["position"], draws)
    return image_triggers.paste(images, tensor_of(patch), *corner)


def _source(params: Params, aim: Any) -> str:
    """What Shadowcast pulls pictures towards: its setting `source`, else the threat's source concept."""
    source = params["source"] or getattr(aim.target, "source_concept", None)
    if not source:
        raise InputError("Shadowcast needs a source concept; give concept_substitution's target, or source=CONCEPT.")
    return source


def _target_embedding(clip: Surrogate, target: Any) -> torch.Tensor:
    """The embedding (d,) of a target: of its picture, else of "A photo of a CONCEPT", else of its text."""
    picture = getattr(target, "image", None)
    if picture is not None:
        with torch.no_grad():
            return clip.embed_images(tensor_of(read_picture(picture, "the target"))[None].to(clip.device))[0]
    concept = getattr(target, "concept", None)
    return clip.embed_texts([f"A photo of a {concept}" if concept is not None else target.text])[0]


def _kind(device: str | torch.device) -> dict[str, str]:
    """What a cache key says of the device; nothing of a CPU, on which the first triggers were made."""
    kind = torch.device(device).type
    return {} if kind == "cpu" else {"device": kind}


def _cache_file(kind: str, cache_key: Params, suffix: str) -> Path:
    cache_key = {"version": VERSION, **cache_key}
    digest = hashlib.sha256(json.dumps(cache_key, sort_keys=True).encode()).hexdigest()[:32]
    return paths.CACHE / "triggers" / kind / digest[:2] / (digest + suffix)


def _save(file: Path, result: Optimised) -> None:
    content = io.BytesIO()
    np.savez(content, pixels=result.pixels, losses=result.losses)
    write_file(file, content.getvalue())


def _read(file: Path) -> Optimised:
    with np.load(file, allow_pickle=False) as stored:
        return Optimised(stored["pixels"], stored["losses"])
