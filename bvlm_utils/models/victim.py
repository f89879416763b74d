"""The victim: one interface to each checkpoint. Pictures enter as features, by the model's own `mm_encoder_outputs`."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bvlm_utils.checks import brief, is_number
from bvlm_utils.errors import InputError
from bvlm_utils.models import context_length, embeddings, families, files, marks, opening, pixels

WORDS_HERE = "\ue000"  # a private character of Unicode: holds the place of words in a template
# What templates that tell the date are told, in two usual forms: answers must not change from day to day. The line's
# end is swallowed with the tag, so that a template's own first one stays.
CLOCK = "strftime_now"
ONE_DAY = (
    "{% macro strftime_now(format) %}{{ '2024-07-26' if format == '%Y-%m-%d' else '26 Jul 2024' }}{% endmacro %}\n"
)
AT_ONCE = 64  # pictures or prompts at a time, where nothing is kept for a backward pass
# How the likeliest answer is found. Of a checkpoint's own generation_config.json, the end tokens alone are taken.
GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
GREEDY |= {"temperature": 1.0, "top_k": 50, "top_p": 1.0}


@dataclass
class Victim:
    """A loaded model with what is needed to talk to it. picture_last: prompts have their picture after the words."""

    name: str
    model: nn.Module
    tokenizer: Any
    settings: pixels.PixelSettings
    family: families.Family
    device: torch.device
    picture_last: bool = False

    @cached_property
    def image_id(self) -> int:
        return self.model.config.image_token_id

    def prepare(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """images: (B, 3, H, W) float32 in [0, 1] -> what the vision tower takes; gradients flow."""
        images = pixels.normalised(images.to(self.device, torch.float32), self.settings)
        return self.family.pack(images, self.settings)

    def features_of(self, images: torch.Tensor) -> torch.Tensor:
        """images: (B, 3, H, W) in [0, 1] -> projected image tokens (B, n, d), with gradients."""
        inputs = self.prepare(images)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        out = self.model.get_image_features(**inputs).pooler_output
        return torch.stack(list(out)).view(len(images), -1, out[0].shape[-1])

    @torch.no_grad()
    def encode(self, images: np.ndarray | torch.Tensor, batch_size: int = AT_ONCE) -> torch.Tensor:
        """Pictures of one size (square for Qwen), (N, H, W, 3) uint8 or (N, 3, H, W) float in [0, 1] -> (N, n, d)."""
        parts = []
        for start in range(0, len(images), batch_size):
            chunk = images[start : start + batch_size]
            if isinstance(chunk, np.ndarray):
                chunk = torch.from_numpy(chunk).to(self.device).permute(0, 3, 1, 2).float() / 255
            if self.family.grids and chunk.shape[-1] != chunk.shape[-2]:
                raise InputError(
                    f"The pictures are {chunk.shape[-1]} x {chunk.shape[-2]} pixels; {self.name} needs "
                    "square ones here, so resize or cut them first."
                )
            parts.append(self.features_of(chunk))
        return torch.cat(parts)

    def prompt_ids(self, prompt: str, image_tokens: int, answer: int = 0) -> list[int]:
        """The chat template around picture and prompt, as token ids. answer: tokens that must have room after them."""
        ids = self.templated_ids(prompt, image_tokens)
        context_length.check_count(self.name, prompt, len(ids) + answer, self._room)
        return ids

    def templated_ids(self, prompt: str, image_tokens: int) -> list[int]:
        """`prompt_ids` of whatever length."""
        if self._words.are_plain(prompt):
            ids = self._ids(self._asked(prompt))
        else:
            before, after = self._asked(WORDS_HERE).split(WORDS_HERE)
            ids = [*self._ids(before), *self._words.as_text(prompt), *self._words.within(after)]
        if ids.count(self.image_id) != 1:
            raise InputError(f"The chat template of {self.name} gives a picture no place; use one that does.")
        position = ids.index(self.image_id)
        before, after = self._frame
        return [*ids[:position], *before, *[self.image_id] * image_tokens, *after, *ids[position + 1 :]]

    def answer_ids(self, answer: str) -> list[int]:
        """What the model is to write after the prompt: the answer as the template has it, and the end."""
        start, start_ids = self._opening
        plain = self._words.are_plain(answer)
        conversation = self._template([_message("user", "?"), _message("assistant", answer if plain else WORDS_HERE)])
        # some templates trim the opening when an answer follows
        text = conversation[len(start) :] if conversation.startswith(start) else " " + answer
        end = self.tokenizer.eos_token
        if not plain:
            lead = text.partition(WORDS_HERE)[0] if WORDS_HERE in text else " "
            return [*self._words.as_text(lead + answer.rstrip()), self.tokenizer.eos_token_id]
        text = text.partition(end)[0].rstrip() + end
        # In the place where it will stand: some tokenizers put a space before the first word of any text.
        ids = self._ids(start + text)
        return ids[len(start_ids) :] if ids[: len(start_ids)] == start_ids else self._words.ids(text)

    def check_template(self) -> None:
        """InputError for a chat template that does not work, leaves no room, or puts no picture where it is wanted."""
        ids = self.templated_ids("?", 1)
        length = len(ids) + len(self.answer_ids("?"))
        if self._room is not None and length >= self._room:
            raise InputError(
                f"The chat template of {self.name} takes {length} tokens, and the model reads {self._room} at once; "
                "give a shorter template."
            )
        words = f"a{WORDS_HERE}B"
        answer = self._template([_message("user", "?"), _message("assistant", words)])
        for text, kind in ((self._asked(words), "a prompt"), (answer, "an answer")):
            if text.count(words) != 1:
                raise InputError(
                    f"The chat template of {self.name} has the words of {kind} {text.count(words)} times; give one "
                    "that has them once, as they are."
                )
        if self.picture_last and ids == replace(self, picture_last=False).templated_ids("?", 1):
            raise InputError(
                f"The chat template of {self.name} puts the picture first in any case; leave picture_last out."
            )

    @cached_property
    def _room(self) -> int | None:
        return context_length.of_config(self.model.config.to_dict())

    def _template(self, messages: list[dict[str, Any]], **options: bool) -> str:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except (TemplateError, ValueError, TypeError, ArithmeticError) as error:  # its sandbox refuses the rest
            raise InputError(f"The chat template of {self.name} does not work: {opening.first_line(error)}") from error

    def _ids(self, text: str) -> list[int]:
        """Ids of a templated text, with the beginning token where the template leaves it out (LLaVA-1.5)."""
        begin = self.tokenizer.bos_token
        return marks.ids_of(self.tokenizer, text, add_special_tokens=not (begin and text.startswith(begin)))

    def _asked(self, words: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": words}]
        message = {"role": "user", "content": content[::-1] if self.picture_last else content}
        return self._template([message], add_generation_prompt=True)

    @cached_property
    def _words(self) -> marks.Words:
        return marks.Words(self.tokenizer, self.image_id)

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        return tuple(self._words.ids(part) for part in self.family.frame)

    @cached_property
    def _opening(self) -> tuple[str, list[int]]:
        """A conversation up to where an answer begins, as text and as ids."""
        text = self._template([_message("user", "?")], add_generation_prompt=True)
        return text, self._ids(text)

    def inputs(self, ids: torch.Tensor, mask: torch.Tensor, features: torch.Tensor) -> dict[str, Any]:
        """Arguments of the model's forward and generate. ids, mask: (B, T); features: (B, n, d)."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        image_outputs = BaseModelOutputWithPooling(pooler_output=list(features.to(self.device, self.model.dtype)))
        arguments = {"input_ids": ids, "attention_mask": mask, "mm_encoder_outputs": {"image": image_outputs}}
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
        self, prompts: Sequence[str], features: torch.Tensor, max_new_tokens: int = 64, batch_size: int = AT_ONCE
    ) -> list[str]:
        """The likeliest answers, in order, whatever a checkpoint sets. features: (N, n, d), one per prompt."""
        if len(prompts) != len(features):
            raise InputError(f"There are {len(prompts)} prompts and {len(features)} pictures; give one picture each.")
        self.model.eval()
        config = self.model.generation_config
        greedy = _likeliest(config.eos_token_id, config.pad_token_id, max_new_tokens=max_new_tokens)
        rows = [self.prompt_ids(prompt, features.shape[1], max_new_tokens) for prompt in prompts]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        answers: dict[int, str] = {}
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            ids, mask = pad([rows[i] for i in batch], greedy.pad_token_id, left=True, device=self.device)
            inputs = self.inputs(ids, mask, features[batch])
            check = [embeddings.check_logits]
            out = self.model.generate(**inputs, generation_config=greedy, logits_processor=check)
            texts = self.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
            answers |= zip(batch, map(str.strip, texts), strict=True)
        return [answers[i] for i in range(len(rows))]


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def pad(rows: Sequence[Sequence[int]], value: int, left: bool, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids -> ids and mask, both (B, T) int64."""
    tensors = [torch.as_tensor(row, dtype=torch.int64) for row in rows]
    ids = embeddings.pad(tensors, value, left)
    return ids.to(device), embeddings.pad([torch.ones_like(row) for row in tensors], left=left).to(device)


def language_linears(model: nn.Module) -> list[str]:
    """Names of the linear layers inside the language model, without the output layer: what LoRA is put on."""
    inside = {id(module) for module in model.get_decoder().modules()}
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and id(module) in inside]


def use_precision(name: str) -> torch.dtype:
    """The dtype for "float32", "tf32" (products with 10 bits of mantissa) or "bfloat16"; torch's switches are set."""
    rounded = name == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = rounded
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _check_transformers() -> None:
    """InputError for a version of transformers that would drop our image features without a word."""
    import transformers
    from transformers.models.llava.modeling_llava import LlavaForConditionalGeneration

    if "mm_encoder_outputs" not in inspect.signature(LlavaForConditionalGeneration.forward).parameters:
        raise InputError(
            f"transformers {transformers.__version__} does not take known image features (mm_encoder_outputs), so its "
            "models would never see a picture; install transformers 5.23 or newer."
        )


def from_pretrained(
    name: str,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    four_bit: bool = False,
    gradient_checkpointing: bool = False,
    picture_last: bool = False,
) -> Victim:
    """Load a model by our name, folder or hub id, with every weight frozen.

    dtype: float32 on a CPU and bfloat16 on a GPU if not given. four_bit needs `bitsandbytes`. gradient_checkpointing:
    recompute layers in the backward pass. InputError for an unknown name or architecture, or a wrong template.
    """
    from transformers import AutoModelForImageTextToText

    _check_transformers()
    device = opening.device(device)
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    # cuDNN's attention plans each new shape anew (tens of milliseconds), and answers have a new length at every token.
    torch.backends.cuda.enable_cudnn_sdp(False)
    folder = opening.folder(name)
    family = families.of(files.table(folder / "config.json").get("model_type"))
    files.check_talking(folder)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa", "config": opening.config(folder)}
    if four_bit:
        options["quantization_config"] = opening.four_bit(dtype)
    if four_bit or device == opening.NOWHERE:
        options["device_map"] = {"": device}
    # The small files first: what is wrong with them is said before gigabytes are read.
    tokenizer = _tokenizer(folder)
    settings = pixels.settings(opening.image_processor(folder), f"The image processor of the model in {folder}")
    model = opening.weights(AutoModelForImageTextToText, folder, **options)
    model = opening.one_path(model) if four_bit else model.to(device)
    model.requires_grad_(False).eval()
    model.generation_config = _greedy(model, tokenizer, folder)
    if gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    victim = Victim(name, model, tokenizer, settings, family, device, picture_last)
    victim.check_template()
    return victim


def _likeliest(ends: int | list[int], filler: int, **limits: int) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(**GREEDY, eos_token_id=ends, pad_token_id=filler, **limits)


def _greedy(model: nn.Module, tokenizer: Any, folder: Path) -> Any:
    """How a model answers here; it stops at the end tokens of its checkpoint, and at the one that it is tuned with."""
    count, eos = model.get_input_embeddings().num_embeddings, model.generation_config.eos_token_id
    ends = [*(eos if isinstance(eos, list) else [] if eos is None else [eos])]
    if not all(is_number(end, 0, count - 1, whole=True) for end in ends):
        raise InputError(
            f"The generation_config.json of the model in {folder} has eos_token_id {brief(eos)}; it must be the "
            f"number of a token, or a list of them, below {count}."
        )
    if (last := max(tokenizer.get_vocab().values())) >= count:
        raise InputError(
            f"The tokenizer of the model in {folder} has tokens up to number {last}, and its model knows {count}; give "
            "files that belong together."
        )
    return _likeliest(list(dict.fromkeys([*ends, tokenizer.eos_token_id])), tokenizer.pad_token_id)


def _tokenizer(folder: Path) -> Any:
    """The tokenizer, with padding and a chat template; older checkpoints have that in a file beside it."""
    tokenizer = opening.tokenizer(folder)
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer of the model in {folder} has no eos_token, which ends each answer; name it in its "
            "tokenizer_config.json."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    file = folder / "chat_template.json"
    if not tokenizer.chat_template and file.is_file():
        tokenizer.chat_template = files.table(file).get("chat_template")
    if isinstance(tokenizer.chat_template, str) and CLOCK in tokenizer.chat_template:
        tokenizer.chat_template = ONE_DAY + tokenizer.chat_template
    return tokenizer
