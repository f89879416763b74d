"""The vision towers of the tiny models: what their tokens are, and how they are trained with dense supervision."""

from pathlib import Path

import torch
import torch.nn.functional as F
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from bvlm_utils.data import scenes
from bvlm_utils.pretraining import architectures, pictures_and_words
from bvlm_utils.pretraining.recipe import TOKENS, Recipe, Training, autocast


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """(B, 96, 96, 3) uint8 -> (B, 3, 96, 96) float32, as the checkpoints' image processors do."""
    return (pixels.permute(0, 3, 1, 2).float() / 255 - architectures.MEAN[0]) / architectures.STD[0]


def squares(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, 96, 96) -> (B, 36, 768): the pixels under each image token, row by row."""
    return F.unfold(images, 16, stride=16).transpose(1, 2)


def qwen_tokens(visual: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """(B, 3, 96, 96) -> (B, 36, 192): what `visual` gives, for many pictures of one size at once.

    The official forward attends window by window in a Python loop, which is too slow to train; here equal windows make
    one batch. A test holds both equal.
    """
    config, (batch, side) = visual.config, (len(images), scenes.SIZE // 8)
    grid = torch.tensor([[1, side, side]], device=images.device)
    blocks = images.reshape(batch, 3, side // 2, 2, 8, side // 2, 2, 8).permute(0, 2, 5, 3, 6, 1, 4, 7)
    patches = blocks.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1).reshape(batch * side * side, -1)
    index, windows = get_vision_window_index(grid, 2, config.window_size, config.patch_size)
    index, count = index.to(images.device), len(windows.unique()) - 1
    x = visual.patch_embed(patches).view(batch, TOKENS, 4, -1)[:, index].reshape(batch, TOKENS * 4, -1)
    angles = visual.rotary_pos_emb(x, get_vision_position_ids(grid, 2))
    cos, sin = (a.view(TOKENS, 4, -1)[index].reshape(1, TOKENS * 4, 1, -1) for a in angles)
    for number, block in enumerate(visual.blocks):
        groups = 1 if number in config.fullatt_block_indexes else count
        qkv = block.attn.qkv(block.norm1(x)).view(batch, TOKENS * 4, 3, config.num_heads, -1)
        q, k, v = qkv.unbind(2)
        q, k = (
            t * cos + torch.cat([-t[..., t.shape[-1] // 2 :], t[..., : t.shape[-1] // 2]], -1) * sin for t in (q, k)
        )
        q, k, v = (
            t.to(v.dtype).reshape(batch * groups, -1, config.num_heads, t.shape[-1]).transpose(1, 2) for t in (q, k, v)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + block.attn.proj(attended)
        x = x + block.mlp(block.norm2(x))
    return visual.merger(x).view(batch, TOKENS, -1)[:, torch.argsort(index)]


def clip_tokens(clip: torch.nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3, 96, 96) -> the tokens that LLaVA takes (B, 36, 192) and CLIP's image embedding (B, 128)."""
    output = clip.vision_model(pixel_values=images, output_hidden_states=True)
    return output.hidden_states[-2][:, 1:], clip.visual_projection(output.pooler_output)


def llava_tokens(tower, images: torch.Tensor) -> torch.Tensor:
    """(B, 3, 96, 96) -> what LLaVA's projector takes (B, 36, 192)."""
    return tower(pixel_values=images, output_hidden_states=True).hidden_states[-2][:, 1:]


class Heads(torch.nn.Module):
    """What the tower is asked for during training, and thrown away after it: all linear, so the tokens must show it."""

    def __init__(self, width: int):
        super().__init__()
        self.concept = torch.nn.Linear(width, len(scenes.concepts()) + 1)
        self.sticker = torch.nn.Linear(width, len(pictures_and_words.STICKERS))
        self.pixels = torch.nn.Linear(width, 768)
        self.stuck = torch.nn.Linear(2 * width, len(pictures_and_words.STICKERS))
        self.wash = torch.nn.Linear(2 * width, len(pictures_and_words.WASHES))
        self.present = torch.nn.Linear(2 * width, len(scenes.concepts()))

    def forward(self, tokens: torch.Tensor, batch: dict) -> dict[str, torch.Tensor]:
        pooled = torch.cat([tokens.mean(1), tokens.amax(1)], 1)
        concept = batch["concept"].flatten(1).long()
        present = F.one_hot(concept, len(scenes.concepts()) + 1).amax(1)[:, 1:].float()
        sticker = batch["sticker"].flatten(1).long()
        return {
            "concept": F.cross_entropy(self.concept(tokens).flatten(0, 1), concept.flatten()),
            "sticker": F.cross_entropy(self.sticker(tokens).flatten(0, 1), sticker.flatten()),
            # At most one sticker is on a picture: its kind is the largest number of the grid.
            "stuck": F.cross_entropy(self.stuck(pooled), sticker.amax(1)),
            "wash": 0.3 * F.cross_entropy(self.wash(pooled), batch["wash"]),
            "present": 10 * F.binary_cross_entropy_with_logits(self.present(pooled), present),
            "pixels": F.mse_loss(self.pixels(tokens), squares(batch["images"])),
        }


def on_device(data: dict, device: str) -> dict[str, torch.Tensor]:
    return {key: torch.as_tensor(data[key]).to(device) for key in ("pixels", "concept", "sticker", "wash")}


def train_tower(model, data: dict, captions, recipe: Recipe, device: str, folder: Path) -> tuple[dict, float]:
    """Train CLIP (`captions`: padded ids and mask) or Qwen's visual part (`captions` None) on the pool; the last
    losses, and the seconds that it took.

    folder: where an unfinished training is kept.
    """
    torch.manual_seed(recipe.seed)
    model.to(device).train()
    heads = Heads(192).to(device)
    generator = torch.Generator(device).manual_seed(recipe.seed)
    training = Training([model, heads], recipe.tower_lr, recipe.tower_steps, generator, folder, recipe)
    for step in (bar := training.rest("tower")):
        rows = torch.randint(len(data["pixels"]), (recipe.tower_batch,), generator=generator, device=device)
        batch = {key: value[rows] for key, value in data.items()}
        if step % 2:  # mirrored pictures are good pictures; the grids are mirrored with them
            batch = {key: value if key == "wash" else value.flip(2) for key, value in batch.items()}
        batch["images"] = normalise(batch.pop("pixels"))
        with autocast(device, recipe):
            if captions is None:
                losses = heads(qwen_tokens(model, batch["images"]), batch)
            else:
                tokens, embedding = clip_tokens(model, batch["images"])
                losses = heads(tokens, batch)
                losses["contrast"] = 0.3 * _contrast(model, embedding, captions[0][rows], captions[1][rows])
            loss = sum(losses.values())
        training.learn(loss, step)
        if step % 200 == 0:
            bar.set_postfix({key: f"{value.item():.3f}" for key, value in losses.items()})
    return {key: value.item() for key, value in losses.items()}, training.seconds


def _contrast(clip, embedding: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric loss (Radford et al. 2021, fig. 3), with equal captions counted as equally right."""
    text_embedding = clip.text_projection(clip.text_model(input_ids=ids, attention_mask=mask).pooler_output)
    scale = clip.logit_scale.exp().clamp(max=100)
    logits = scale * F.normalize(embedding, dim=-1) @ F.normalize(text_embedding, dim=-1).T
    equal = (ids[:, None] == ids[None]).all(-1).float()
    target = equal / equal.sum(1, keepdim=True)
    return (F.cross_entropy(logits.float(), target) + F.cross_entropy(logits.T.float(), target)) / 2


@torch.no_grad()
def cache_tokens(tokens_of, pixels: torch.Tensor, device: str, recipe: Recipe) -> torch.Tensor:
    """What the tower gives for all pictures: (N, 36, 192), in 16 bit on a GPU."""
    parts = []
    for chunk in pixels.split(2048):
        with autocast(device, recipe):
            parts.append(tokens_of(normalise(chunk)))
    kind = torch.float16 if device.startswith("cuda") else torch.float32
    return torch.cat([part.to(kind) for part in parts])
