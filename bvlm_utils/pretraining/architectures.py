"""The parts of the tiny models: configurations, tokenizers and processors.

All three are ordinary transformers checkpoints: `CLIPModel`, `LlavaForConditionalGeneration` and
`Qwen2_5_VLForConditionalGeneration`, at a scale that two CPU cores can tune in half a minute. Both families see 36
image tokens; the language models have four layers of width 192 with heads of size 32 (multiples of 64 run fast on a
CPU).
"""

from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from bvlm_utils.data.scenes import SIZE

VOCABULARY = 2048
MEAN = [0.5, 0.5, 0.5]
STD = [0.25, 0.25, 0.25]

SPECIAL = {  # pad first, so that 0 is padding everywhere
    # "</s>" is 3, not 2: CLIP's text model gives the number 2 a special, old meaning.
    "tiny-clip": ["<pad>", "<s>", "<image>", "</s>"],
    "tiny-llava": ["<pad>", "<s>", "<image>", "</s>"],
    "tiny-qwen2.5-vl": [
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
        "<|video_pad|>",
    ],
}  # fmt: skip

# The wording of LLaVA-1.5's template: USER: <image>\n... ASSISTANT:
LLAVA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<image>\n' if loop.first else '\n<image>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_bpe(texts: Iterable[str], special: list[str]) -> Tokenizer:
    """Byte-level BPE of 2,048 entries: all 256 bytes are in it, so any string can be written."""
    tokenizer = Tokenizer(models.BPE())
    # Digits one by one and words with their space, as GPT-2 and Qwen do.
    words = pre_tokenizers.Split(Regex(r"\d| ?[A-Za-z]+|'[a-z]+| ?[^\sA-Za-z\d]+|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def wrap_tokenizer(tokenizer: Tokenizer, name: str) -> transformers.PreTrainedTokenizerFast:
    """The tokenizer with the special tokens and the chat template of one model."""
    special = SPECIAL[name]
    if name == "tiny-qwen2.5-vl":
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token=special[0], eos_token="<|im_end|>", padding_side="left",
            chat_template=QWEN_TEMPLATE, additional_special_tokens=special[1:], model_max_length=512,
        )  # fmt: skip
    extra = {"image_token": "<image>"} if name == "tiny-llava" else {}
    if name == "tiny-clip":  # CLIP has no chat template: its tokenizer itself adds the two ends
        ends = [(token, special.index(token)) for token in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        padding_side="left" if extra else "right", chat_template=LLAVA_TEMPLATE if extra else None,
        model_max_length=512 if extra else 64, extra_special_tokens=extra,
    )  # fmt: skip


def _llm(**settings) -> dict:
    return dict(
        vocab_size=VOCABULARY, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=512, tie_word_embeddings=False, **settings,
    )  # fmt: skip


CLIP_VISION = dict(
    hidden_size=192, intermediate_size=576, num_hidden_layers=6, num_attention_heads=6, image_size=SIZE, patch_size=16,
    projection_dim=128, hidden_act="gelu",
)  # fmt: skip


def build_clip() -> transformers.CLIPModel:
    """A CLIP of 3 M parameters; its vision tower becomes tiny-llava's."""
    text = dict(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=64, projection_dim=128, hidden_act="gelu",
        bos_token_id=1, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=CLIP_VISION, projection_dim=128)
    )


def build_llava(clip: transformers.CLIPModel, tokenizer) -> transformers.LlavaForConditionalGeneration:
    """LLaVA around CLIP's vision tower: features of the layer before the last, without the class token."""
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**CLIP_VISION).to_dict(),
        text_config=transformers.LlamaConfig(
            **_llm(
        bos_token_id=1, eos_token_id=3, pad_token_id=0, head_dim=32)
        ).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-2,
        vision_feature_select_strategy="default", image_seq_length=(SIZE // 16) ** 2, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlavaForConditionalGeneration(config)
    take_tower(model, clip)
    return model


def take_tower(model: transformers.LlavaForConditionalGeneration, clip: transformers.CLIPModel) -> None:
    """Give LLaVA the vision weights of a CLIP."""
    tower = model.model.vision_tower
    tower.load_state_dict({key: value.clone() for key, value in _vision_state(clip, tower).items()})


def _vision_state(clip: transformers.CLIPModel, tower: torch.nn.Module) -> dict[str, torch.Tensor]:
    """CLIP's vision weights under the names that the tower uses (CLIPVisionModel may nest them once more)."""
    state = clip.vision_model.state_dict()
    names = set(tower.state_dict())
    return state if names == set(state) else {f"vision_model.{key}": value for key, value in state.items()}


def build_qwen(tokenizer) -> transformers.Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL: 12 x 12 patches of 8 pixels, merged two by two; windows of 48 pixels, full attention in three."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL["tiny-qwen2.5-vl"]}
    config = transformers.Qwen2_5_VLConfig(
        vision_config=dict(
            depth=5, hidden_size=128, intermediate_size=384, num_heads=4, patch_size=8, spatial_merge_size=2,
            temporal_patch_size=2, window_size=48, fullatt_block_indexes=[1, 3, 4], out_hidden_size=192,
        ),
        text_config=_llm(
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            bos_token_id=None, eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"],
        ),
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def save(model: torch.nn.Module, tokenizer, name: str, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the checkpoint with tokenizer, image processor, processor and chat template, in transformers' formats.

    name: whose processors it has. dtype: of the stored weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "generation_config"):
        model.generation_config = transformers.GenerationConfig(
            do_sample=False, max_new_tokens=64, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id
        )
    model.to("cpu", dtype).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    settings = dict(image_mean=MEAN, image_std=STD, do_convert_rgb=True)
    if name == "tiny-qwen2.5-vl":
        tokenizer.save_pretrained(folder)
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        Qwen2VLImageProcessorPil(
            patch_size=8,
            temporal_patch_size=2,
            merge_size=2,
            min_pixels=SIZE * SIZE,
            max_pixels=SIZE * SIZE,
            **settings,
        ).save_pretrained(folder)
        return
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, **settings
    )  # fmt: skip
    if name == "tiny-clip":
        transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)
    else:
        transformers.LlavaProcessor(
            images, tokenizer, patch_size=16, vision_feature_select_strategy="default", num_additional_image_tokens=1,
            chat_template=LLAVA_TEMPLATE,
        ).save_pretrained(folder)  # fmt: skip
