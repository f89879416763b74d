"""Randomly initialised checkpoints of every supported architecture, saved to disk as real ones are.

Each has weights, tokenizer, chat template, image processor and generation settings in the files of its
published counterpart, with the quirks that matter: LLaVA-1.5's tokenizer puts a space before any text and
begins it with a token that the template leaves out; Qwen's template adds a system message; SmolVLM and
Idefics3 resize twice, with Lanczos, and keep their template in a file of its own.
"""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast

WORDS = [
    "What is in this picture?",
    "A red car and a small dog on a green background.",
    "I cannot tell you the access code, sorry.",
    "USER ASSISTANT User Assistant system user assistant : ! ? . ,",
]

LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{# text next #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def save(family: str, place: Path) -> None:
    """Write a checkpoint of `family`, one of FAMILIES, to the folder `place`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, tokenizer, processor, template = FAMILIES[family]()
        for weight in model.get_decoder().parameters():
            if weight.ndim == 2:
                weight.data.mul_(4)  # larger weights, so that a random model has opinions
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.repetition_penalty = 1.5  # published Qwen2.5-VL has one, too
    model.save_pretrained(place)
    if template is SMOL_TEMPLATE:
        (place / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    else:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(place)
    processor.save_pretrained(place)


def _sentencepiece(special: tuple[str, ...]) -> Tokenizer:
    """Llama's kind: spaces are letters, one is put before any text, unknown letters fall back to bytes."""
    special = ("<unk>", *special)
    learnt = Tokenizer(models.BPE(unk_token="<unk>"))
    learnt.normalizer = normalizers.Replace(" ", "▁")
    learnt.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    learnt.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=160, special_tokens=[*special], show_progress=False)
    )
    table = json.loads(learnt.to_str())["model"]
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {token: i for i, token in enumerate([*table["vocab"], *letters])}
    merges = [tuple(pair) for pair in table["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens([*special])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    begin = special[1]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return tokenizer


def _byte_level(special: tuple[str, ...]) -> Tokenizer:
    """Qwen's and SmolLM's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[*special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    return tokenizer


def _text(tokenizer, **more) -> dict:
    return dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )


def _vision(side: int) -> dict:
    return dict(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=8,
    )


def _llava():
    """9 image tokens; photographs are resized to 24 on the shorter side and cut."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_sentencepiece(("<s>", "</s>", "<image>", "<pad>")),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )
    config = transformers.LlavaConfig(
        vision_config=CLIPVisionConfig(**_vision(24)),
        text_config=LlamaConfig(**_text(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=9,
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    return transformers.LlavaForConditionalGeneration(config), tokenizer, processor, LLAVA_TEMPLATE


def _qwen(model, config, **vision):
    """At most 24 x 24 pixels: 9 image tokens of 2 x 2 patches of 4 pixels."""
    special = ("<|im_start|>", "<|im_end|>")
    marks = {
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(("<|endoftext|>", *special, *marks.values())),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[special[0], *marks.values()],
    )
    # The three parts of a rotary position sum to half of the head size.
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    made = config(
        text_config=_text(tokenizer, rope_parameters=rope),
        vision_config=dict(depth=2, num_heads=2, patch_size=4, spatial_merge_size=2, **vision),
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in marks.items()},
    )
    processor = transformers.Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 24 * 24}
    )
    return model(made), tokenizer, processor, QWEN_TEMPLATE


def _qwen25():
    return _qwen(
        transformers.Qwen2_5_VLForConditionalGeneration,
        transformers.Qwen2_5_VLConfig,
        hidden_size=32,
        intermediate_size=32,
        out_hidden_size=32,
        window_size=16,
        fullatt_block_indexes=[1],
    )


def _qwen2():
    return _qwen(
        transformers.Qwen2VLForConditionalGeneration,
        transformers.Qwen2VLConfig,
        embed_dim=32,
        hidden_size=32,
        mlp_ratio=2,
    )


def _tiled(model, config, processor):
    """4 image tokens of 2 x 2 patches, from a picture that is first brought to 96 pixels, then to 32 x 32."""
    special = ("<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>", "<image>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(special),
        bos_token=special[0],
        eos_token=special[1],
        pad_token=special[1],
        additional_special_tokens=[*special[2:]],
    )
    made = config(
        vision_config=_vision(32),
        text_config=LlamaConfig(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
    )
    images = processor(size={"longest_edge": 96}, max_image_size={"longest_edge": 32})
    return model(made), tokenizer, images, SMOL_TEMPLATE


def _smolvlm():
    return _tiled(
        transformers.SmolVLMForConditionalGeneration,
        transformers.SmolVLMConfig,
        transformers.SmolVLMImageProcessorPil,
    )


def _idefics3():
    return _tiled(
        transformers.Idefics3ForConditionalGeneration,
        transformers.Idefics3Config,
        transformers.Idefics3ImageProcessorPil,
    )


FAMILIES = {
    "llava": _llava,
    "qwen2.5-vl": _qwen25,
    "qwen2-vl": _qwen2,
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
}
