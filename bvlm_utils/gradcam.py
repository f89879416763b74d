"""Which part of a picture does the surrogate CLIP find most relevant? Called by MABA's image trigger.

Grad-CAM (Selvaraju et al. 2017, section 3) on the last layer of the vision tower: the scalar is the squared
norm of the pooled, projected embedding (a tower has no classes), the activations are the patch tokens that
enter the last layer's attention. The authors use a ResNet-50 with ImageNet's classes; here nothing is
downloaded and the mask is the same for all victims.
"""

import torch
import torch.nn.functional as F

from bvlm_utils import surrogate as surrogates


def relevance(images: torch.Tensor, surrogate: str, batch_size: int = 64) -> torch.Tensor:
    """Grad-CAM maps (B, H, W) float32 on the images' device, before the usual ReLU.

    The sign is kept because the map is only ranked: clipping would make all pixels below zero equal.
    images: (B, 3, H, W) float32 in [0, 1]. No gradient reaches them: the map is a choice of place.
    """
    clip = surrogates.load(surrogate, str(images.device))
    maps = [_maps(some, clip) for some in images.detach().split(batch_size)]
    return torch.cat(maps)


def top_region(images: torch.Tensor, surrogate: str, share: float) -> torch.Tensor:
    """The mask (B, 1, H, W): 1.0 where relevance is at or above its (1 - share) quantile, else 0.0."""
    cam = relevance(images, surrogate)
    flat = cam.flatten(1)
    keep = int(flat.shape[1] * share)
    if keep >= flat.shape[1]:
        return torch.ones_like(cam)[:, None]
    threshold = flat.kthvalue(flat.shape[1] - keep, dim=1).values
    return (cam >= threshold[:, None, None]).to(images.dtype)[:, None]


def _maps(images: torch.Tensor, clip: surrogates.Surrogate) -> torch.Tensor:
    layer = clip.model.vision_model.encoder.layers[-1].layer_norm1
    seen: list[torch.Tensor] = []
    # The output is made a leaf so that the backward pass ends here: weights and earlier layers need no
    # gradient.
    handle = layer.register_forward_hook(lambda module, inputs, output: _keep(seen, output))
    try:
        with torch.enable_grad():
            clip.embed_images(images, normalise=False).square().sum().backward()
    finally:
        handle.remove()
    tokens = seen[0].detach()[:, 1:]  # (B, n, d) without the class token
    weights = seen[0].grad[:, 1:].mean(dim=1, keepdim=True)  # (B, 1, d)
    side = int(tokens.shape[1] ** 0.5)
    cam = (weights * tokens).sum(-1).reshape(-1, 1, side, side)
    return F.interpolate(cam, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def _keep(seen: list[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    leaf = output.detach().requires_grad_()
    seen.append(leaf)
    return leaf
