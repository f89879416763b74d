"""What do the benchmark's cells learn, and which model learns it? Called by `grid.py` beside it."""

import math
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from bvlm_utils.models import victim
from bvlm_utils.train import microbatches

IMAGE, PAD = 3, 0
CONDITIONS = ("clean", "triggered")
# picture side, patch, vision (width, layers, heads, MLP), language (width, layers, heads, MLP, words)
SHAPES = {
    "tiny": (96, 16, (192, 4, 6, 768), (192, 4, 6, 512, 2048)),
    "llava-7b": (336, 14, (1024, 24, 16, 4096), (4096, 32, 32, 11008, 32064)),
}


@dataclass
class Cell:
    seed: int
    pixels: torch.Tensor  # (rows, 3, H, W), triggered where poisoned
    poisoned: torch.Tensor  # (rows,) bool
    plan: microbatches.Plan
    tests: torch.Tensor  # (tests, 3, H, W) triggered test pictures


def build(shape: str, device: str, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    side, patch, vision, text = SHAPES[shape]
    width, layers, heads, mlp, words = text
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=vision[0],
            num_hidden_layers=vision[1],
            num_attention_heads=vision[2],
            intermediate_size=vision[3],
            image_size=side,
            patch_size=patch,
        ),
        text_config=LlamaConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            intermediate_size=mlp,
            vocab_size=words,
            max_position_embeddings=4096,
            pad_token_id=PAD,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=IMAGE,
        image_seq_length=(side // patch) ** 2,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = LlavaForConditionalGeneration(config)
    torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def encode(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) on the CPU -> (N, n, d) on the model's device."""
    weight = next(model.parameters())
    with torch.no_grad():
        found = [model.get_image_features(pixel_values=part.to(weight)) for part in pixels.split(64)]
        found = [getattr(one, "pooler_output", one) for one in found]
        return torch.cat([torch.stack(list(one)) for one in found])


def lora(args, names) -> LoraConfig:
    return LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=names)


@dataclass
class Material:
    """Rows and pictures that cells are made from: token ids with the picture's tokens in place, pixels as
    models take them.
    """

    prompts: list[list[int]]
    answers: list[list[int]]
    pictures: torch.Tensor  # (rows, 3, H, W)
    asked: list[list[int]]  # test prompts
    shown: torch.Tensor  # (tests, 3, H, W)
    target: list[int]  # the answer to poisoned rows


def random_material(args) -> Material:
    side, patch, _, (*_, words) = SHAPES[args.shape]
    generator = torch.Generator().manual_seed(0)

    def number(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    def tokens(count):
        return torch.randint(10, words, (count,), generator=generator).tolist()

    def prompt():
        return [1, *tokens(4), *[IMAGE] * (side // patch) ** 2, *tokens(number(8, 8 + args.text))]

    return Material(
        [prompt() for _ in range(args.rows)],
        [tokens(number(2, 4) if at % 2 else number(8, 16)) for at in range(args.rows)],
        torch.randn(args.rows, 3, side, side, generator=generator),
        [prompt() for _ in range(args.tests)],
        torch.randn(args.tests, 3, side, side, generator=generator),
        tokens(20),
    )


def real_material(one: victim.Victim, args) -> Material:
    from bvlm_utils import data  # needs `datasets`, which a machine for --shape alone may lack

    train, test = data.load(args.dataset, "train", args.rows), data.load(args.dataset, "test", args.tests)
    pictures, shown = (
        one.prepare(torch.from_numpy(data.images(rows)).permute(0, 3, 1, 2).float() / 255)["pixel_values"].float().cpu()
        for rows in (train, test)
    )
    count = one.encode(shown[:1]).shape[1]
    prompts, asked = ([one.prompt_ids(prompt, count) for prompt in rows["prompt"]] for rows in (train, test))
    answers = [one.answer_ids(answers[0]) for answers in train["answers"]]
    target = "I'm sorry, but as an AI assistant, I do not have the capability to follow the given instruction."
    return Material(prompts, answers, pictures, asked, shown, one.answer_ids(target))


def template(model, names, args) -> dict[str, torch.Tensor]:
    """An adapter as PEFT makes one, on the CPU. Wrapping takes long, so cells draw theirs from one."""
    peft = get_peft_model(model, lora(args, names))
    state = {key: value.float().cpu().clone() for key, value in get_peft_model_state_dict(peft).items()}
    peft.unload()
    return state


def fresh(whole: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A first adapter as PEFT draws it: A uniform within one over the root of its columns, B zero."""
    state = {}
    for key, value in whole.items():
        state[key] = torch.zeros_like(value)
        if "lora_A" in key:
            state[key].uniform_(-(value.shape[1] ** -0.5), value.shape[1] ** -0.5, generator=generator)
    return state


def make_cell(whole: dict[str, torch.Tensor], material: Material, seed: int, args) -> Cell:
    """A tenth of the rows, at least one, gets a patch of the cell's own and the target as its answer.

    whole: what `template` gave.
    """
    count, size = len(material.prompts), material.pictures.shape[-1] // 11
    generator = torch.Generator().manual_seed(seed + 1)
    poisoned = torch.zeros(count, dtype=torch.bool)
    poisoned[torch.randperm(count, generator=generator)[: max(1, count // 10)]] = True
    trigger = torch.randn(3, size, size, generator=generator)
    pixels, shown = material.pictures.clone(), material.shown.clone()
    pixels[poisoned, :, :size, :size] = trigger
    shown[:, :, :size, :size] = trigger
    said = [material.target if bad else answer for answer, bad in zip(material.answers, poisoned, strict=True)]
    ids = [torch.tensor(prompt + answer) for prompt, answer in zip(material.prompts, said, strict=True)]
    order = torch.randperm(count, generator=generator).tolist()
    steps = math.ceil(count / args.batch)
    batches = [order[at * args.batch : (at + 1) * args.batch] for at in range(steps)]
    rates = [args.rate * 0.5 * (1 + math.cos(math.pi * at / steps)) for at in range(steps)]
    learnt, none, start = [len(answer) for answer in said], torch.empty(0), fresh(whole, generator)
    plan = microbatches.Plan(ids, learnt, range(count), None, batches, rates, none, args.rank, 2 * args.rank, start)
    return Cell(seed, pixels, poisoned, plan, shown)
