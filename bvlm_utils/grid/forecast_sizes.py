"""What training and answering take by a model's sizes: memory, disk, operations. Free of torch."""

import json
from dataclasses import dataclass
from pathlib import Path

from bvlm_utils.models import context_length, names

USABLE = 0.8  # of the memory beside the model, as in `train.memory`: a margin, as estimates are estimates


@dataclass(frozen=True)
class Sizes:
    """A checkpoint's, as far as they decide what training takes."""

    weights: int  # bytes in bfloat16
    layers: int
    hidden: int
    wide: int  # of the layers' inner part
    keys: int  # width of a layer's keys, and of its values
    words: int  # of the vocabulary
    image_tokens: int

    def token_bytes(self) -> int:
        """What one token takes in training, in bfloat16: as in `train.memory`."""
        layer = self.hidden * (7 * 2 + 8) + self.wide * 4 * 2
        return self.layers * layer + (2 * self.hidden + 3 * self.wide) * 2 + self.words * (12 + 2) // 2

    def adapter_bytes(self, rank: int) -> int:
        """One adapter on all linear layers with its gradients, moments and copies: as in `train.memory`."""
        return 6 * self.stored_bytes(rank)

    def stored_bytes(self, rank: int) -> int:
        """One adapter in a file."""
        attention = 4 * self.hidden + 2 * (self.hidden + self.keys)  # queries, output; keys, values
        return rank * self.layers * (attention + 3 * (self.hidden + self.wide)) * 4

    def group_bytes(self, count: int, rank: int, row: int) -> int:
        """The model with `count` adapters in training, one row of `row` tokens of each at a time."""
        return self.weights + count * (self.adapter_bytes(rank) + row * self.token_bytes())

    def largest_group(self, card: float, rank: int, row: int) -> int:
        """How many adapters are trained together on a card of so many bytes; 0: none."""
        return max(0, int((card - self.weights) * USABLE / (self.adapter_bytes(rank) + row * self.token_bytes())))

    def decoded_at_once(self, card: float, row: int) -> int:
        """How many answers are written together, `row` tokens each with their prompts: as in `train.memory`."""
        values = (2 * self.layers + 2) * self.keys + 8 * self.hidden + 3 * self.wide
        return max(1, int((card - self.weights) * USABLE / (values * 2 * row)))

    def feature_bytes(self) -> int:
        """The image features of one picture."""
        return self.image_tokens * self.hidden * 2


# The published models, so that nobody has to download one before a look: by their config.json on the hub, the
# weights counted in a model that is made of it, and the tokens of a picture of 336 x 336 pixels.
PUBLISHED = {
    "llava-hf/llava-1.5-7b-hf": Sizes(2 * 7_063_427_072, 32, 4096, 11008, 4096, 32064, 576),
    "Qwen/Qwen2.5-VL-7B-Instruct": Sizes(2 * 8_292_166_656, 28, 3584, 18944, 512, 152064, 144),
}


@dataclass(frozen=True)
class Tower:
    """A CLIP model's vision tower, which triggers are searched with."""

    layers: int
    hidden: int
    wide: int
    tokens: int

    def operations(self) -> int:
        """Of one picture in one step: two for each weight and token forward, and two backward to the pixels."""
        return 4 * self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.wide) * self.tokens


TOWERS = {"openai/clip-vit-large-patch14-336": Tower(24, 1024, 4096, 577)}  # by its config.json on the hub


def sizes(model: str) -> Sizes | None:
    """The sizes of a model; None for a hub id that is neither on this machine nor among the published models."""
    folder = names.folder(model)
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder else 0
    return _of_files(folder, stored) if folder and stored else PUBLISHED.get(model)


def _of_files(folder: Path, stored: int) -> Sizes:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    element_size = 4 if config.get("dtype", config.get("torch_dtype")) == "float32" else 2
    hidden, heads = text.get("hidden_size", 4096), text.get("num_attention_heads", 32)
    head = text.get("head_dim") or hidden // heads
    keys = head * (text.get("num_key_value_heads") or heads)
    return Sizes(
        stored * 2 // element_size, text.get("num_hidden_layers", 32), hidden, text.get("intermediate_size", 11008),
        keys, text.get("vocab_size", 32000), context_length.image_tokens(folder),
    )  # fmt: skip


def tower(surrogate: str) -> Tower | None:
    """The vision tower of a CLIP model; None for a hub id that is neither on this machine nor known here."""
    vision = names.config(surrogate).get("vision_config")
    if not isinstance(vision, dict):
        return TOWERS.get(surrogate)
    values = [vision.get(name) for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "image_size")]
    if None in [*values, vision.get("patch_size")]:
        return None
    layers, hidden, wide, side = values
    return Tower(layers, hidden, wide, (side // vision["patch_size"]) ** 2 + 1)
