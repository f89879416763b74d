"""What enters the language model when image features are known, as in `victim.forward`; whether numbers come out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from bvlm_utils.errors import InputError


def embed(model: nn.Module, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """ids (N, T) int64 with image tokens in place, features (N, n, d) -> input embeddings (N, T, d), no gradient."""
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(ids)
        image = ids == model.config.image_token_id
        return embeddings.masked_scatter(image.unsqueeze(-1), features.to(embeddings))


def positions(model: nn.Module, row: Sequence[int], position_cache: dict) -> torch.Tensor | None:
    """The rotary positions of one row without padding: (3, T) for models with multimodal positions, else None.

    They depend on the place and size of the (square) image alone: a dict `position_cache` keeps them for many rows.
    """
    inner = model.model
    if not hasattr(inner, "get_rope_index"):
        return None
    image = model.config.image_token_id
    count = row.count(image)
    start = row.index(image) if count else 0
    if (start, count, len(row)) not in position_cache:
        side = round(count**0.5)
        if side * side != count:
            raise ValueError(f"An image of {count} tokens is not square; give square pictures.")
        merge = inner.config.vision_config.spatial_merge_size
        types = torch.zeros(1, len(row), dtype=torch.int64)
        types[0, start : start + count] = 1
        grid = torch.tensor([[1, side * merge, side * merge]]) if count else None
        rotary, _ = inner.get_rope_index(torch.zeros_like(types), mm_token_type_ids=types, image_grid_thw=grid)
        position_cache[start, count, len(row)] = rotary[:, 0]
    return position_cache[start, count, len(row)]


def pad(rows: Sequence[torch.Tensor], value: int = 0, left: bool = False) -> torch.Tensor:
    """Rows (..., T_i) of one kind -> (..., N, T) for the longest T, filled with `value` at one side."""
    side, time_first = "left" if left else "right", [row.movedim(-1, 0) for row in rows]
    padded = pad_sequence(time_first, batch_first=True, padding_value=value, padding_side=side)  # (N, T, ...)
    return padded.permute(*range(2, padded.dim()), 0, 1)


def check_logits(_: Any, logits: torch.Tensor) -> torch.Tensor:
    """The logits; InputError if some are NaN or infinite: the model would write token 0 without a word, and such
    answers would pass for ones without a backdoor. The arguments are those of transformers' `LogitsProcessor`.
    """
    if not logits.isfinite().all():
        raise InputError(
            "The model's answers cannot be computed, as their logits are no numbers: some weights of it or of its "
            "adapter are too large for its dtype; lower the adapter's lora_alpha, take float32, or give other weights."
        )
    return logits
