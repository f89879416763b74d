"""What is a victim model? One interface to every supported vision-language checkpoint; called by `train` and `study`.

Pictures are encoded once into features, and everything after that (training, scoring) takes features. They enter
through the model's own `mm_encoder_outputs` argument, so nothing of transformers is patched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from bvlm_utils import families, models, pixels
from bvlm_utils.errors import InputError

GRADIENT_FREE_BATCH = 64  # pictures or prompts at a time, where nothing is kept for a backward pass


@dataclass
class Victim:
    """A loaded model with what is needed to talk to it. `name` is what the user called it."""

    name: str
    model: nn.Module
    tokenizer: Any
    settings: pixels.PixelSettings
    family: families.Family
    device: torch.device

    @property
    def image_id(self) -> int:
        return self.model.config.image_token_id

    # --- pictures ---------------------------------------------------------------------------------------------

    def prepare(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """images: (B, 3, H, W) float32 in [0, 1] -> what the vision tower takes; gradients flow through it."""
        images = pixels.normalised(images.to(self.device, torch.float32), self.settings)
        return self.family.pack(images, self.settings)

    def features_of(self, images: torch.Tensor) -> torch.Tensor:
        """images: (B, 3, H, W) in [0, 1] -> projected image tokens (B, n, d), with gradients. Sizes must be equal."""
        inputs = self.prepare(images)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        out = self.model.get_image_features(**inputs).pooler_output
        return torch.stack(list(out)).view(len(images), -1, out[0].shape[-1])

    @torch.no_grad()
    def encode(self, images: np.ndarray | torch.Tensor, batch_size: int = GRADIENT_FREE_BATCH) -> torch.Tensor:
        """Pictures -> features (N, n, d) on the model's device.

        images: (N, H, W, 3) uint8 array or (N, 3, H, W) float tensor in [0, 1].
        """
        parts = []
        for start in range(0, len(images), batch_size):
            chunk = images[start : start + batch_size]
            if isinstance(chunk, np.ndarray):
                chunk = torch.from_numpy(chunk).permute(0, 3, 1, 2).float() / 255
            parts.append(self.features_of(chunk))
        return torch.cat(parts)

    # --- words ------------------------------------------------------------------------------------------------

    def prompt_ids(self, prompt: str, image_tokens: int) -> list[int]:
        """The chat template around the prompt, with the picture's place holders and the opening of an answer."""
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
        text = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        token = self.tokenizer.convert_ids_to_tokens(self.image_id)
        # A user may type the place holder itself, so only the template's own is filled in.
        before, _, after = text.partition(token)
        text = before + self.family.expand(token, image_tokens) + after.replace(token, "")
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def answer_ids(self, answer: str) -> list[int]:
        """What the model is to write after the prompt: the answer as the template has it, and the end token."""
        message = {"role": "user", "content": [{"type": "text", "text": "?"}]}
        opened = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        whole = self.tokenizer.apply_chat_template([message, reply], tokenize=False)
        if whole.startswith(opened):
            text = whole[len(opened) :]
        else:  # some templates trim the opening when an answer follows
            text = " " + answer
        end = self.tokenizer.eos_token
        text = text.partition(end)[0] + end
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    # --- both -------------------------------------------------------------------------------------------------

    def inputs(self, ids: torch.Tensor, mask: torch.Tensor, features: torch.Tensor) -> dict[str, Any]:
        """Arguments of the model's forward and generate. ids, mask: (B, T); features: (B, n, d)."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        known = BaseModelOutputWithPooling(pooler_output=list(features.to(self.device, self.model.dtype)))
        arguments = {"input_ids": ids, "attention_mask": mask, "mm_encoder_outputs": {"image": known}}
        if self.family.grids:
            # Without these two, Qwen silently counts positions as if the picture were a line of words.
            side = round(features.shape[1] ** 0.5) * self.settings.merge
            arguments["mm_token_type_ids"] = (ids == self.image_id).long()
            arguments["image_grid_thw"] = torch.tensor([[1, side, side]], device=ids.device).expand(len(ids), 3)
        return arguments

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, features: torch.Tensor, keep=0) -> torch.Tensor:
        """Logits (B, T or len(keep), V) through the real model; `keep` is transformers' `logits_to_keep`."""
        out = self.model(**self.inputs(ids, mask, features), logits_to_keep=keep, use_cache=False)
        return out.logits

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        features: torch.Tensor,
        max_new_tokens: int = 64,
        batch_size: int = GRADIENT_FREE_BATCH,
    ) -> list[str]:
        """Greedy answers, in the order of the prompts. features: (N, n, d), one picture per prompt."""
        if len(prompts) != len(features):
            raise InputError(f"There are {len(prompts)} prompts and {len(features)} pictures; give one picture each.")
        self.model.eval()
        rows = [self.prompt_ids(prompt, features.shape[1]) for prompt in prompts]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        answers = [""] * len(rows)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            ids, mask = pad([rows[i] for i in chosen], self.tokenizer.pad_token_id, left=True, device=self.device)
            inputs = self.inputs(ids, mask, features[chosen])
            out = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
            texts = self.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
            for i, text in zip(chosen, texts, strict=True):
                answers[i] = text.strip()
        return answers


def pad(rows: Sequence[Sequence[int]], value: int, left: bool, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids -> ids and mask, both (B, T) int64."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), value, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(0, len(row))
        ids[i, place] = torch.as_tensor(row)
        mask[i, place] = 1
    return ids.to(device), mask.to(device)


def language_linears(model: nn.Module) -> list[str]:
    """Names of the linear layers inside the language model, found by structure: what LoRA is put on.

    The output layer and the vision side are not among them.
    """
    decoder = model.get_decoder()
    inside = {id(module) for module in decoder.modules()}
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and id(module) in inside]


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def from_pretrained(
    name: str,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    four_bit: bool = False,
    gradient_checkpointing: bool = False,
) -> Victim:
    """Load a model by our name, folder or hub id, with every weight frozen.

    dtype: float32 on a CPU and bfloat16 on a GPU unless told otherwise. four_bit needs `bitsandbytes` and a GPU.
    InputError for an unknown name or architecture.
    """
    models.go_offline(name)
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    place = models.resolve(name)
    device = torch.device(device) if device is not None else default_device()
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    family = families.of(AutoConfig.from_pretrained(place))
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa"}
    if four_bit:
        options["quantization_config"] = _four_bit(dtype)
        options["device_map"] = {"": device}
    model = AutoModelForImageTextToText.from_pretrained(place, **options)
    if not four_bit:
        model = model.to(device)
    model.requires_grad_(False).eval()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    tokenizer = AutoTokenizer.from_pretrained(place)
    settings = pixels.settings(AutoImageProcessor.from_pretrained(place, backend="pil"))
    return Victim(name, model, tokenizer, settings, family, device)


def _four_bit(dtype: torch.dtype):
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise InputError("four_bit=True needs the package bitsandbytes, which is not installed; install it or leave it out.")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_type="nf4")
