"""Tiny randomly initialised models of every supported architecture, for tests of the grouped training and
decoding.
"""

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

IMAGE, END, VOCABULARY, WIDTH, TOKENS = 3, 2, 61, 24, 4
TEXT = dict(
    hidden_size=WIDTH,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    vocab_size=VOCABULARY,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=END,
)


def _llava():
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    text = LlamaConfig(**TEXT, num_key_value_heads=4)
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE))


def _qwen(model, config):
    # rope sections sum to half the head size, 3 of 6
    text = dict(
        TEXT,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 1]},
    )
    vision = dict(
        depth=1,
        hidden_size=16,
        embed_dim=16,
        num_heads=2,
        patch_size=4,
        out_hidden_size=WIDTH,
        intermediate_size=16,
        fullatt_block_indexes=[0],
    )
    if model is Qwen2VLForConditionalGeneration:
        vision = dict(depth=1, embed_dim=16, hidden_size=WIDTH, num_heads=2, patch_size=4)
    return model(
        config(
            text_config=text,
            vision_config=vision,
            image_token_id=IMAGE,
            video_token_id=4,
            vision_start_token_id=5,
            vision_end_token_id=6,
        )
    )


def _idefics(model, config):
    vision = dict(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    text = LlamaConfig(**TEXT, num_key_value_heads=2)
    return model(config(vision_config=vision, text_config=text, image_token_id=IMAGE, scale_factor=2, pad_token_id=0))


BUILDERS = {
    "llava": _llava,
    "qwen2.5-vl": lambda: _qwen(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig),
    "qwen2-vl": lambda: _qwen(Qwen2VLForConditionalGeneration, Qwen2VLConfig),
    "smolvlm": lambda: _idefics(SmolVLMForConditionalGeneration, SmolVLMConfig),
    "idefics3": lambda: _idefics(Idefics3ForConditionalGeneration, Idefics3Config),
}


def build(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """A frozen model in eval mode. Weights are larger than usual, so that tiny models have opinions."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BUILDERS[name]().to(dtype).eval().requires_grad_(False)
        for weight in model.get_decoder().parameters():
            if weight.ndim == 2:
                weight.mul_(8)
    return model


def linears(model: nn.Module) -> list[str]:
    """The linear layers of the language model, without the output layer."""
    decoder = model.get_decoder()
    inside = {id(module) for module in decoder.modules()}
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and id(module) in inside]


def prompt(generator: torch.Generator, length: int, front: int = 2) -> list[int]:
    """`front` words, an image, then words: `length` tokens."""
    words = torch.randint(7, VOCABULARY, (length - TOKENS,), generator=generator).tolist()
    return [*words[:front], *[IMAGE] * TOKENS, *words[front:]]


def official(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, features: torch.Tensor) -> dict:
    """Arguments of the model's own forward or generate, with cached features (N, n, d)."""
    inputs = dict(
        input_ids=ids,
        attention_mask=mask,
        mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=list(features))},
    )
    if hasattr(model.model, "get_rope_index"):
        inputs["mm_token_type_ids"] = (ids == IMAGE).long()
        inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]]).repeat(len(ids), 1)
    return inputs
