"""The attacker's own CLIP model: how it sees pictures and words. It is frozen; gradients go to pictures only."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bvlm_utils.checks import brief, file_state
from bvlm_utils.errors import InputError
from bvlm_utils.models import files, opening, pixels

# CLIP's own settings (Radford et al. 2021), for a checkpoint that was saved without its image processor.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
TEXTS_AT_ONCE, IMAGES_AT_ONCE = 256, 64


@dataclass(frozen=True)
class Surrogate:
    """A frozen CLIPModel. side: pixels of its square input. mean, std: (1, 3, 1, 1), to normalise its pictures."""

    name: str
    model: Any
    side: int
    mean: torch.Tensor
    std: torch.Tensor
    device: torch.device

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's own tokenizer, read when text is first embedded."""
        return opening.tokenizer(opening.folder(self.name))

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) in [0, 1], resized to the model's input and normalised; differentiable."""
        return (at_side(images, self.side) - self.mean) / self.std

    def embed_images(self, images: torch.Tensor, normalise: bool = True) -> torch.Tensor:
        """images (B, 3, H, W) in [0, 1] to (B, d) projected embeddings, of length 1 unless told otherwise."""
        embedding = self.model.get_image_features(pixel_values=self.pixels(images)).pooler_output
        return F.normalize(embedding, dim=-1) if normalise else embedding

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts to (n, d) projected embeddings of length 1; long ones are cut, and marks in them are text."""
        limit = self.model.config.text_config.max_position_embeddings
        embeddings = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            batch = list(texts[start : start + TEXTS_AT_ONCE])
            ids = self.tokenizer(
                batch, padding=True, truncation=True, max_length=limit, return_tensors="pt", split_special_tokens=True
            ).to(self.device)
            features = self.model.get_text_features(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"])
            embeddings.append(F.normalize(features.pooler_output, dim=-1))
        return torch.cat(embeddings)


@contextmanager
def exact() -> Iterator[None]:
    """Products in float32 while the block runs, whatever the victim uses: a GPU's TF32 would give other triggers."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def load(name: str, device: str = "cpu") -> Surrogate:
    """A CLIP checkpoint (folder or hub id), frozen, float32. InputError where there is none."""
    folder = opening.folder(name)
    return _loaded(name, device, folder, tuple(map(file_state, files.read(folder))))


@lru_cache(maxsize=2)
def _loaded(name: str, device: str, folder: Path, states: tuple[tuple[int, ...], ...]) -> Surrogate:
    """states: of the files, which may be others when a notebook asks again."""
    from transformers import CLIPModel

    model = opening.weights(CLIPModel, folder, dtype=torch.float32)
    model = model.to(opening.device(device)).eval().requires_grad_(False)
    # Since transformers 5 a processor keeps its settings in its own file; before, the image processor had one alone.
    processors = [folder / name for name in files.PROCESSORS]
    image_settings, all_settings = (files.table(file) if file.is_file() else {} for file in processors)
    settings = all_settings.get("image_processor", image_settings)
    if not isinstance(settings, dict):
        raise InputError(f"{processors[1]} has image_processor {brief(settings)}; it must be a table of settings.")
    settings = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD} | settings
    values = pixels.normalisation(settings, f"The image processor of the CLIP in {folder}")
    mean, std = (torch.tensor(value, device=device).reshape(1, 3, 1, 1) for value in values)
    return Surrogate(name, model, model.config.vision_config.image_size, mean, std, torch.device(device))


def at_side(images: torch.Tensor, side: int) -> torch.Tensor:
    """images (B, 3, H, W) in [0, 1] as (B, 3, side, side), bicubic; differentiable."""
    if tuple(images.shape[-2:]) == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(0, 1)


def relevance(images: torch.Tensor, surrogate: str) -> torch.Tensor:
    """Grad-CAM maps (B, H, W) of images (B, 3, H, W) in [0, 1]; without the usual ReLU, as the map is only ranked."""
    clip = load(surrogate, str(images.device))
    return torch.cat([_maps(batch, clip) for batch in images.detach().split(IMAGES_AT_ONCE)])


def top_region(images: torch.Tensor, surrogate: str, share: float) -> torch.Tensor:
    """The mask (B, 1, H, W): 1.0 where relevance is at or above its (1 - share) quantile, else 0.0."""
    cam = relevance(images, surrogate)
    flat = cam.flatten(1)
    below = flat.shape[1] - int(flat.shape[1] * share)
    if below <= 0:
        return torch.ones_like(cam)[:, None]
    threshold = flat.kthvalue(below, dim=1).values
    return (cam >= threshold[:, None, None]).to(images.dtype)[:, None]


def _maps(images: torch.Tensor, clip: Surrogate) -> torch.Tensor:
    layer = clip.model.vision_model.encoder.layers[-1].layer_norm1
    leaves: list[torch.Tensor] = []

    def make_leaf(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        """The backward pass ends here: weights and earlier layers need no gradient."""
        leaves.append(output.detach().requires_grad_())
        return leaves[0]

    handle = layer.register_forward_hook(make_leaf)
    try:
        with torch.enable_grad():
            clip.embed_images(images, normalise=False).square().sum().backward()
    finally:
        handle.remove()
    tokens = leaves[0].detach()[:, 1:]  # (B, n, d) without the class token
    weights = leaves[0].grad[:, 1:].mean(dim=1, keepdim=True)  # (B, 1, d)
    side = int(tokens.shape[1] ** 0.5)
    cam = (weights * tokens).sum(-1).reshape(-1, 1, side, side)
    return F.interpolate(cam, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
