"""A small CLIP checkpoint with random weights, for tests of what is computed against a surrogate."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast


def save(folder, side=32):
    """Save it to `folder` as `CLIPModel` and a byte-level tokenizer; returns the folder's name."""
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2}
    vocabulary |= {letter: 3 + i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocabulary, [], unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", model_max_length=64
    ).save_pretrained(folder)
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": len(vocabulary), "max_position_embeddings": 64, "eos_token_id": 2,
                     "bos_token_id": 1, "pad_token_id": 0},
        vision_config={**small, "image_size": side, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    model = CLIPModel(config)
    with torch.no_grad():  # random towers are almost blind at the default scale
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    return str(folder)
