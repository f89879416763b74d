"""Random models of the published sizes, made on the device: nothing of them passes through the host."""

import types

import material
import torch
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from bvlm_utils.models import embeddings, families, victim
from bvlm_utils.train import microbatches

# text (width, layers, heads, keys' heads, MLP, words), vision (width, layers, heads, MLP, full attention), rotary parts
QWEN = {
    "tiny": ((64, 2, 4, 2, 96, 512), (32, 2, 2, 48, [1]), [2, 3, 3]),
    "7B": ((3584, 28, 28, 4, 18944, 152064), (1280, 32, 16, 3420, [7, 15, 23, 31]), [16, 24, 24]),
}
SIDE, PATCH, MERGE = 336, 14, 2
LEARNT = (16, 24)  # tokens of an answer, at least and fewer than


def llava(size: str, device: str) -> nn.Module:
    return material.build({"tiny": "tiny", "7B": "llava-7b"}[size], device, torch.bfloat16)


def qwen(size: str, device: str) -> nn.Module:
    text, vision, rotary = QWEN[size]
    width, layers, heads, keys, mlp, words = text
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": rotary}
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": keys,
            "intermediate_size": mlp,
            "vocab_size": words,
            "max_position_embeddings": 4096,
            "rope_parameters": rope,
            "pad_token_id": material.PAD,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        vision_config={
            "hidden_size": vision[0],
            "depth": vision[1],
            "num_heads": vision[2],
            "intermediate_size": vision[3],
            "fullatt_block_indexes": vision[4],
            "out_hidden_size": width,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "window_size": 112,
        },
        image_token_id=material.IMAGE,
        video_token_id=4,
        vision_start_token_id=5,
        vision_end_token_id=6,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def around(model: nn.Module, device: str) -> victim.Victim:
    """The model as `victim.inputs` feeds it; there are no words, so there is no tokenizer."""
    settings = types.SimpleNamespace(merge=MERGE)
    return victim.Victim("random", model, None, settings, families.of(model.config.model_type), torch.device(device))


def image_tokens(model: nn.Module) -> int:
    vision = model.config.vision_config
    if model.config.model_type == "llava":
        return (vision.image_size // vision.patch_size) ** 2
    return (SIDE // PATCH // MERGE) ** 2


def plan(model: nn.Module, start: dict, batch: int, steps: int, rank: int, seed: int = 0) -> microbatches.Plan:
    """`batch` rows of random words around one picture each, the same in each of `steps` steps."""
    config = model.config.get_text_config()
    generator = torch.Generator().manual_seed(seed)

    def words(low: int, high: int) -> list[int]:
        count = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(10, config.vocab_size, (count,), generator=generator).tolist()

    count, known, ids, learnt = image_tokens(model), {}, [], []
    for _ in range(batch):
        answer = words(*LEARNT)
        ids.append([1, *words(4, 5), *[material.IMAGE] * count, *words(16, 32), *answer])
        learnt.append(len(answer))
    positions = [embeddings.positions(model, row, known) for row in ids]
    weight = next(model.parameters())
    features = torch.randn(batch, count, config.hidden_size, device=weight.device).mul_(0.02).to(weight.dtype)
    return microbatches.Plan(
        [torch.tensor(row) for row in ids],
        learnt,
        range(batch),
        None if positions[0] is None else positions,
        [list(range(batch))] * steps,
        [1e-4] * steps,
        features,
        rank,
        2 * rank,
        start,
    )
