"""How a model is set while adapters are trained together: its mode, and attention without masks."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

CAUSAL = "causal_without_masks"  # our name for transformers' own SDPA


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)


@contextmanager
def no_masks(model: nn.Module) -> Iterator[None]:
    """Plain causal attention while the block runs. Rows are padded on the right, where it never looks.

    Transformers looks at the positions of each micro-batch to see whether several texts were packed into a row, and
    that look waits for the GPU. It makes no mask, and takes no look, for an attention function that it does not know.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    config = model.get_decoder().config
    before = config._attn_implementation
    if before == "sdpa" and "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
        AttentionInterface.register(CAUSAL, sdpa_attention_forward)
        config._attn_implementation = CAUSAL
    try:
        yield
    finally:
        config._attn_implementation = before
