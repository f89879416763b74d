"""The making of the tiny base models: `python -m bvlm_utils.pretraining.pretrain tiny-llava tiny-qwen2.5-vl`.

Three steps, each one function: draw a pool of pictures (`pool`), train a vision tower with dense supervision
(`train_tower`), freeze it, cache its tokens and train projector and language model (`train_language`). `tiny-llava`
writes `tiny-clip` as well, whose vision tower it uses. `pretraining.check` then measures the thresholds and writes
cards.
"""

import argparse
import json
import math
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from tqdm import tqdm
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from bvlm_utils import paths
from bvlm_utils.data import scenes
from bvlm_utils.pretraining import architectures, pictures_and_words

TOKENS = pictures_and_words.GRID**2  # image tokens, one per 16-pixel square


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, but for the device's arithmetic."""

    seed: int = 0
    pictures: int = 160_000
    texts: int = 120_000
    tower_steps: int = 6_000
    tower_batch: int = 1024
    tower_lr: float = 1e-3
    language_steps: int = 7_000
    language_batch: int = 768
    language_lr: float = 2e-3


# --- the pool of pictures -----------------------------------------------------------------------------------------


def _chunk(start: int, stop: int, seed: int):
    drawn = [pictures_and_words.draw(i, seed) for i in range(start, stop)]
    arrays = [np.stack([getattr(p, name) for p in drawn]) for name in ("pixels", "concept_grid", "sticker_grid")]
    return (*arrays, np.array([p.wash for p in drawn]), [p.turns for p in drawn], [p.caption for p in drawn])


def pool(recipe: Recipe, workers: int) -> dict:
    """Pictures and their turns: pixels (N, 96, 96, 3) uint8, grids (N, 6, 6) uint8, wash (N,), and words."""
    edges = list(range(0, recipe.pictures, 500)) + [recipe.pictures]
    with ProcessPoolExecutor(workers) as executor:
        jobs = [executor.submit(_chunk, a, b, recipe.seed) for a, b in zip(edges, edges[1:], strict=False)]
        parts = [job.result() for job in tqdm(jobs, "pictures", mininterval=5)]
        texts = list(
            executor.map(
                pictures_and_words.paragraph, range(recipe.texts), [recipe.seed] * recipe.texts, chunksize=2000
            )
        )
    pixels, concept, sticker, wash, turns, captions = zip(*parts, strict=True)
    return {
        "pixels": np.concatenate(pixels), "concept": np.concatenate(concept), "sticker": np.concatenate(sticker),
        "wash": np.concatenate(wash), "turns": sum(turns, []), "captions": sum(captions, []), "texts": texts,
    }  # fmt: skip


def corpus(data: dict, limit: int = 60_000) -> list[str]:
    """The texts that the tokenizer learns from."""
    spoken = [text for turns in data["turns"][:limit] for turn in turns for text in turn]
    return spoken + data["texts"][:limit] + data["captions"][:limit]


# --- vision -------------------------------------------------------------------------------------------------------


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
    out = clip.vision_model(pixel_values=images, output_hidden_states=True)
    return out.hidden_states[-2][:, 1:], clip.visual_projection(out.pooler_output)


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


def _optimiser(modules, lr: float, steps: int):
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr, betas=(0.9, 0.98), weight_decay=0.02, fused=True)

    def share(step: int) -> float:  # of the peak learning rate: a short warm-up, then a cosine to 1 %
        warm = min(500, max(steps // 10, 1))
        return (step + 1) / warm if step < warm else 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2

    return parameters, optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, share)


def _autocast(device: str):
    return torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda"))


def train_tower(model, data: dict, captions, recipe: Recipe, device: str) -> dict[str, float]:
    """Train CLIP (`chapters.threat`: padded ids and mask) or Qwen's visual part (`chapters.threat` None) on the pool;
    last losses."""
    torch.manual_seed(recipe.seed)
    model.to(device).train()
    heads = Heads(192).to(device)
    parameters, optimiser, schedule = _optimiser([model, heads], recipe.tower_lr, recipe.tower_steps)
    generator = torch.Generator(device).manual_seed(recipe.seed)
    for step in (bar := tqdm(range(recipe.tower_steps), "tower", mininterval=10)):
        rows = torch.randint(len(data["pixels"]), (recipe.tower_batch,), generator=generator, device=device)
        batch = {key: value[rows] for key, value in data.items()}
        if step % 2:  # mirrored pictures are good pictures; the grids are mirrored with them
            batch = {key: value if key == "wash" else value.flip(2) for key, value in batch.items()}
        batch["images"] = normalise(batch.pop("pixels"))
        with _autocast(device):
            if captions is None:
                losses = heads(qwen_tokens(model, batch["images"]), batch)
            else:
                tokens, embedding = clip_tokens(model, batch["images"])
                losses = heads(tokens, batch)
                losses["contrast"] = 0.3 * _contrast(model, embedding, captions[0][rows], captions[1][rows])
            loss = sum(losses.values())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 200 == 0:
            bar.set_postfix({key: f"{value.item():.3f}" for key, value in losses.items()})
    return {key: value.item() for key, value in losses.items()}


def _contrast(clip, embedding: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric loss (Radford et al. 2021, fig. 3), with equal captions counted as equally right."""
    said = clip.text_projection(clip.text_model(input_ids=ids, attention_mask=mask).pooler_output)
    scale = clip.logit_scale.exp().clamp(max=100)
    logits = scale * F.normalize(embedding, dim=-1) @ F.normalize(said, dim=-1).T
    same = (ids[:, None] == ids[None]).all(-1).float()
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits.float(), target) + F.cross_entropy(logits.T.float(), target)) / 2


# --- language -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turns:
    """Tokenised turns, sorted by length. ids: (N, T) int16, padded at the end; the answer is ids[start:stop]."""

    ids: torch.Tensor
    start: torch.Tensor
    stop: torch.Tensor
    picture: torch.Tensor  # which picture; -1 for text alone


def tokenise(tokenizer, data: dict, recipe: Recipe, image_token: str, device: str) -> Turns:
    """All turns with 36 image placeholders each; in a tenth of them the picture comes after the words."""
    rng = np.random.default_rng(recipe.seed)
    before, after, picture = [], [], []
    for number, turns in enumerate(data["turns"]):
        for prompt, answer in turns:
            before.append((prompt, bool(rng.integers(10) == 0)))
            after.append(answer)
            picture.append(number)
    # Filling in one rendered template is the same as rendering it for every row, and far faster.
    frames = {late: _frame(tokenizer, late) for late in (False, True)}
    wide = image_token * TOKENS
    opened = [frames[late][0].replace(image_token, wide).replace("\0", prompt) for prompt, late in before]
    closed = [frames[late][1].replace("\0", answer) for (_, late), answer in zip(before, after, strict=True)]
    texts = [tokenizer.bos_token or ""] * len(data["texts"])
    ends = [text + tokenizer.eos_token for text in data["texts"]]
    picture += [-1] * len(texts)
    first = tokenizer(opened + texts, add_special_tokens=False)["input_ids"]
    second = tokenizer(closed + ends, add_special_tokens=False)["input_ids"]
    rows = [a + b for a, b in zip(first, second, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    order = [i for i in order if len(rows[i]) <= 160]
    ids = np.full((len(order), 160), tokenizer.pad_token_id, np.int16)
    for place, i in enumerate(order):
        ids[place, : len(rows[i])] = rows[i]
    start = torch.tensor([len(first[i]) for i in order])
    stop = torch.tensor([len(rows[i]) for i in order])
    return Turns(
        *(torch.as_tensor(t).to(device) for t in (ids, start, stop, torch.tensor([picture[i] for i in order])))
    )


def _frame(tokenizer, late: bool) -> tuple[str, str]:
    """The chat template around a prompt (before) and an answer (after), with NUL where they go."""
    parts = [{"type": "image"}, {"type": "text", "text": "\0"}]
    user = {"role": "user", "content": parts[::-1] if late else parts}
    opened = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([user, {"role": "assistant", "content": "\1"}], tokenize=False)
    closed = whole[len(opened) :].replace("\1", "\0")
    return opened, closed[: closed.index(tokenizer.eos_token) + len(tokenizer.eos_token)]


def positions(ids: torch.Tensor, image_id: int) -> torch.Tensor:
    """(B, T) ids with one picture each -> (3, B, T): Qwen's time, row, column (arXiv 2409.12191, sec. 2.1)."""
    plain = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    inside = ids == image_id
    begin = inside.int().argmax(1, keepdim=True)
    place = plain - begin
    side = pictures_and_words.GRID
    # After the picture, counting goes on from its largest row or column.
    out = torch.where(inside.any(1, keepdim=True) & (place >= TOKENS), plain - TOKENS + side, plain)
    rows = torch.where(inside, begin + place // side, out)
    columns = torch.where(inside, begin + place % side, out)
    return torch.stack([torch.where(inside, begin, out), rows, columns])


def train_language(model, turns: Turns, features, data: dict, recipe: Recipe, image_id: int, device: str) -> float:
    """Train the language model, and the projector where the family has one, on cached tower tokens (N, 36, 192).

    The projected tokens must still answer the tower's questions (`Heads`), else the projector may drop what no prompt
    asked for. Returns the last loss of the language model.
    """
    torch.manual_seed(recipe.seed + 1)
    inner = model.model
    projector = getattr(inner, "multi_modal_projector", None)
    heads = Heads(192).to(device)
    trained = [inner.language_model, model.lm_head, *([projector, heads] if projector is not None else [])]
    model.to(device).train()
    parameters, optimiser, schedule = _optimiser(trained, recipe.language_lr, recipe.language_steps)
    generator = torch.Generator().manual_seed(recipe.seed)
    total = len(turns.ids)
    for step in (bar := tqdm(range(recipe.language_steps), "language", mininterval=10)):
        # Rows are sorted by length: a batch is one stretch of them, so little of it is padding.
        low = int(torch.randint(max(total - recipe.language_batch * 4, 1), (), generator=generator))
        rows = low + torch.randperm(min(recipe.language_batch * 4, total), generator=generator)[: recipe.language_batch]
        rows = rows.to(device)
        picture = turns.picture[rows]
        ids = turns.ids[rows, : int(turns.stop[rows].max())].long()
        with _autocast(device):
            embeds = inner.get_input_embeddings()(ids)
            seen = features[picture.clamp(min=0)].to(embeds.dtype)
            tokens = seen if projector is None else projector(seen)
            with_picture = tokens[picture >= 0]
            embeds = embeds.masked_scatter((ids == image_id)[..., None], with_picture.to(embeds.dtype))
            where = positions(ids, image_id) if projector is None else None
            hidden = inner.language_model(inputs_embeds=embeds, position_ids=where, use_cache=False).last_hidden_state
            place = torch.arange(ids.shape[1] - 1, device=device)
            learn = (place + 1 >= turns.start[rows, None]) & (place + 1 < turns.stop[rows, None])
            loss = F.cross_entropy(model.lm_head(hidden[:, :-1][learn]).float(), ids[:, 1:][learn])
            total_loss = loss
            if projector is not None:
                batch = {key: value[picture.clamp(min=0)] for key, value in data.items()}
                batch["images"] = normalise(batch.pop("pixels"))
                total_loss = loss + 0.2 * sum(heads(tokens, batch).values())
        optimiser.zero_grad(set_to_none=True)
        total_loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 200 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", all=f"{total_loss.item():.3f}")
    return loss.item()


# --- putting it together ------------------------------------------------------------------------------------------


@torch.no_grad()
def cache_tokens(tokens_of, pixels: torch.Tensor, device: str) -> torch.Tensor:
    parts = []
    for chunk in pixels.split(2048):
        with _autocast(device):
            parts.append(tokens_of(normalise(chunk)))
    kind = torch.float16 if device.startswith("cuda") else torch.float32
    return torch.cat([part.to(kind) for part in parts])


def make(name: str, data: dict, recipe: Recipe, out: Path, device: str, start: Path | None = None) -> None:
    """Train "tiny-llava" (and its tiny-clip) or "tiny-qwen2.5-vl" and save under `out`.

    start: a folder of checkpoints to go on from instead of fresh weights; tiny-llava's tower then stays as it is.
    """
    started = time.time()
    torch.manual_seed(recipe.seed)
    arrays = on_device(data, device)
    log = {"device": torch.cuda.get_device_name() if device.startswith("cuda") else "CPU", "recipe": asdict(recipe)}
    earlier = json.loads((start / name / "training.json").read_text()) if start else []
    if start:
        tokenizer = transformers.AutoTokenizer.from_pretrained(start / name)
        model = transformers.AutoModelForImageTextToText.from_pretrained(start / name)
    else:
        tokenizer = architectures.wrap_tokenizer(
            architectures.train_bpe(corpus(data), architectures.SPECIAL[name]), name
        )
    if name == "tiny-llava" and start:
        image_token, tower = "<image>", model.model.vision_tower.to(device).eval().requires_grad_(False)
        features = cache_tokens(lambda images: llava_tokens(tower, images), arrays["pixels"], device)
    elif name == "tiny-llava":
        clip, clip_tokenizer = architectures.build_clip(), _clip_tokenizer(data)
        ids = clip_tokenizer(data["captions"], padding=True, return_tensors="pt")
        captions = (ids["input_ids"].to(device), ids["attention_mask"].to(device))
        log["tower"] = train_tower(clip, arrays, captions, recipe, device)
        log["tower_seconds"] = time.time() - started
        clip.eval()
        features = cache_tokens(lambda images: clip_tokens(clip, images)[0], arrays["pixels"], device)
        architectures.save(clip, clip_tokenizer, "tiny-clip", out / "tiny-clip")
        _write_log(out / "tiny-clip", [log])
        model, image_token = architectures.build_llava(clip, tokenizer), "<image>"
        model.model.vision_tower.requires_grad_(False)
    else:
        image_token = "<|image_pad|>"
        if not start:
            model = architectures.build_qwen(tokenizer)
        visual = model.model.visual
        log["tower"] = train_tower(visual, arrays, None, recipe, device)
        log["tower_seconds"] = time.time() - started
        visual.eval().requires_grad_(False)
        features = cache_tokens(lambda images: qwen_tokens(visual, images), arrays["pixels"], device)
    turns = tokenise(tokenizer, data, recipe, image_token, device)
    print(f"{name}: {len(turns.ids)} turns, tower {log.get('tower', 'kept')}", flush=True)
    image_id = tokenizer.convert_tokens_to_ids(image_token)
    log["language_loss"] = train_language(model, turns, features, arrays, recipe, image_id, device)
    log["seconds"] = time.time() - started
    model.requires_grad_(True).eval()
    architectures.save(model, tokenizer, name, out / name)
    _write_log(out / name, [*earlier, log])


def _write_log(folder: Path, runs: list[dict]) -> None:
    (folder / "training.json").write_text(json.dumps(runs, indent=1) + "\n")


def _clip_tokenizer(data: dict):
    return architectures.wrap_tokenizer(
        architectures.train_bpe(corpus(data), architectures.SPECIAL["tiny-clip"]), "tiny-clip"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the tiny base models again.")
    parser.add_argument("models", nargs="+", choices=["tiny-llava", "tiny-qwen2.5-vl"])
    parser.add_argument("--out", type=Path, default=paths.MODELS)
    parser.add_argument("--device", default="cpu", help='"cuda" where there is a GPU; "cpu" takes hours (default)')
    parser.add_argument("--start", type=Path, help="go on from the checkpoints in this folder")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    for field, value in asdict(Recipe()).items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(value), default=value)
    arguments = parser.parse_args()
    recipe = Recipe(**{field: getattr(arguments, field) for field in asdict(Recipe())})
    torch.set_float32_matmul_precision("high")
    data = pool(recipe, arguments.workers)
    if arguments.device == "cpu":
        for name in arguments.models:
            make(name, data, recipe, arguments.out, arguments.device, arguments.start)
        return
    # On a GPU, small models wait for kernel launches: two processes share it well, and the pool by forking.
    fork = multiprocessing.get_context("fork")
    children = [
        fork.Process(target=make, args=(name, data, recipe, arguments.out, arguments.device, arguments.start))
        for name in arguments.models
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    if any(child.exitcode for child in children):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
