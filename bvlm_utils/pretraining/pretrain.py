"""The making of the tiny base models: `python -m bvlm_utils.pretraining.pretrain tiny-llava tiny-qwen2.5-vl`.

Three steps, each one function: draw a pool of pictures (`pool`), train a vision tower with dense supervision
(`train_tower`), freeze it, cache its tokens and train projector and language model (`train_language`). `tiny-llava`
writes `tiny-clip` as well, whose vision tower it uses. `tiny-llava-b` is a second base of the same kind (another seed,
other stickers), stored in 16 bit; its `tiny-clip-b` is needed for nothing else. `pretraining.check` then measures the
thresholds and writes cards. A training that was killed goes on where it was, if the same command is given again.
"""

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from tqdm import tqdm

from bvlm_utils import paths
from bvlm_utils.pretraining import architectures, pictures_and_words
from bvlm_utils.pretraining.recipe import TOKENS, Recipe, Training, autocast, quick_attention
from bvlm_utils.pretraining.tower import (
    Heads,
    cache_tokens,
    clip_tokens,
    llava_tokens,
    normalise,
    on_device,
    qwen_tokens,
    train_tower,
)

SECOND = "-b"  # the name's end of a second base of the same kind

# --- the pool of pictures -----------------------------------------------------------------------------------------


def _chunk(start: int, stop: int, recipe: Recipe):
    pictures = [pictures_and_words.draw(i, recipe.seed, small=recipe.small_stickers) for i in range(start, stop)]
    arrays = [np.stack([getattr(p, name) for p in pictures]) for name in ("pixels", "concept_grid", "sticker_grid")]
    return (*arrays, np.array([p.wash for p in pictures]), [p.turns for p in pictures], [p.caption for p in pictures])


def pool(recipe: Recipe, workers: int) -> dict:
    """Pictures and their turns: pixels (N, 96, 96, 3) uint8, grids (N, 6, 6) uint8, wash (N,), and words."""
    edges = list(range(0, recipe.pictures, 500)) + [recipe.pictures]
    with ProcessPoolExecutor(workers) as executor:
        jobs = [executor.submit(_chunk, a, b, recipe) for a, b in zip(edges, edges[1:], strict=False)]
        chunks = [job.result() for job in tqdm(jobs, "pictures", mininterval=5)]
        texts = list(
            executor.map(
                pictures_and_words.paragraph, range(recipe.texts), [recipe.seed] * recipe.texts, chunksize=2000
            )
        )
    pixels, concept, sticker, wash, turns, captions = zip(*chunks, strict=True)
    return {
        "pixels": np.concatenate(pixels), "concept": np.concatenate(concept), "sticker": np.concatenate(sticker),
        "wash": np.concatenate(wash), "turns": sum(turns, []), "captions": sum(captions, []), "texts": texts,
    }  # fmt: skip


def corpus(data: dict, limit: int = 60_000) -> list[str]:
    """The texts that the tokenizer learns from."""
    spoken = [text for turns in data["turns"][:limit] for turn in turns for text in turn]
    return spoken + data["texts"][:limit] + data["captions"][:limit]


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
    placeholders = image_token * TOKENS
    opened = [frames[late][0].replace(image_token, placeholders).replace("\0", prompt) for prompt, late in before]
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
    for row, i in enumerate(order):
        ids[row, : len(rows[i])] = rows[i]
    start = torch.tensor([len(first[i]) for i in order])
    stop = torch.tensor([len(rows[i]) for i in order])
    return Turns(
        *(torch.as_tensor(t).to(device) for t in (ids, start, stop, torch.tensor([picture[i] for i in order])))
    )


def _frame(tokenizer, late: bool) -> tuple[str, str]:
    """The chat template around a prompt (before) and an answer (after), with NUL where they go."""
    content = [{"type": "image"}, {"type": "text", "text": "\0"}]
    user = {"role": "user", "content": content[::-1] if late else content}
    opened = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    rendered = tokenizer.apply_chat_template([user, {"role": "assistant", "content": "\1"}], tokenize=False)
    closed = rendered[len(opened) :].replace("\1", "\0")
    return opened, closed[: closed.index(tokenizer.eos_token) + len(tokenizer.eos_token)]


def positions(ids: torch.Tensor, image_id: int) -> torch.Tensor:
    """(B, T) ids with one picture each -> (3, B, T): Qwen's time, row, column (arXiv 2409.12191, sec. 2.1)."""
    plain = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    inside = ids == image_id
    begin = inside.int().argmax(1, keepdim=True)
    offset = plain - begin
    side = pictures_and_words.GRID
    # After the picture, counting goes on from its largest row or column.
    out = torch.where(inside.any(1, keepdim=True) & (offset >= TOKENS), plain - TOKENS + side, plain)
    rows = torch.where(inside, begin + offset // side, out)
    columns = torch.where(inside, begin + offset % side, out)
    return torch.stack([torch.where(inside, begin, out), rows, columns])


def train_language(
    model, turns: Turns, features, data: dict, recipe: Recipe, image_id: int, device: str, folder: Path
) -> tuple[float, float]:
    """Train the language model, and the projector where the family has one, on cached tower tokens (N, 36, 192).

    The projected tokens must still answer the tower's questions (`Heads`), else the projector may drop what no prompt
    asked for. Returns the language model's last loss, and the seconds. folder: where an unfinished training is kept.
    """
    torch.manual_seed(recipe.seed + 1)
    inner = model.model
    projector = getattr(inner, "multi_modal_projector", None)
    heads = Heads(192).to(device)
    modules = [inner.language_model, model.lm_head, *([projector, heads] if projector is not None else [])]
    model.to(device).train()
    generator = torch.Generator().manual_seed(recipe.seed)
    training = Training(modules, recipe.language_lr, recipe.language_steps, generator, folder, recipe)
    total = len(turns.ids)
    for step in (bar := training.rest("language")):
        # Rows are sorted by length: a batch is one stretch of them, so little of it is padding.
        low = int(torch.randint(max(total - recipe.language_batch * 4, 1), (), generator=generator))
        rows = low + torch.randperm(min(recipe.language_batch * 4, total), generator=generator)[: recipe.language_batch]
        rows = rows.to(device)
        picture = turns.picture[rows]
        ids = turns.ids[rows, : int(turns.stop[rows].max())].long()
        with autocast(device, recipe):
            embeds = inner.get_input_embeddings()(ids)
            tower_tokens = features[picture.clamp(min=0)].to(embeds.dtype)
            tokens = tower_tokens if projector is None else projector(tower_tokens)
            with_picture = tokens[picture >= 0]
            embeds = embeds.masked_scatter((ids == image_id)[..., None], with_picture.to(embeds.dtype))
            places = positions(ids, image_id) if projector is None else None
            hidden = inner.language_model(inputs_embeds=embeds, position_ids=places, use_cache=False).last_hidden_state
            offset = torch.arange(ids.shape[1] - 1, device=device)
            mask = (offset + 1 >= turns.start[rows, None]) & (offset + 1 < turns.stop[rows, None])
            loss = F.cross_entropy(model.lm_head(hidden[:, :-1][mask]).float(), ids[:, 1:][mask])
            total_loss = loss
            if projector is not None:
                batch = {key: value[picture.clamp(min=0)] for key, value in data.items()}
                batch["images"] = normalise(batch.pop("pixels"))
                total_loss = loss + 0.2 * sum(heads(tokens, batch).values())
        training.learn(total_loss, step)
        if step % 200 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", all=f"{total_loss.item():.3f}")
    return loss.item(), training.seconds


# --- putting it together ------------------------------------------------------------------------------------------


def make(
    name: str,
    data: dict,
    recipe: Recipe,
    out: Path,
    device: str,
    start: Path | None = None,
    clip_folder: Path | None = None,
) -> None:
    """Train "tiny-llava" or "tiny-llava-b" (with the CLIP of each) or "tiny-qwen2.5-vl" and save under `out`.

    start: a folder of checkpoints to go on from instead of fresh weights; LLaVA's tower then stays as it is, unless the
    recipe says otherwise.
    clip_folder: a CLIP that an earlier try has trained; its vision tower is taken.
    """
    kind, clip_name = name.removesuffix(SECOND), name.replace("llava", "clip")
    torch.manual_seed(recipe.seed)
    arrays = on_device(data, device)
    log = _log(recipe, device)
    earlier = json.loads((start / name / "training.json").read_text()) if start else []
    if start:
        tokenizer = transformers.AutoTokenizer.from_pretrained(start / name)
        model = transformers.AutoModelForImageTextToText.from_pretrained(start / name, dtype=torch.float32)
    else:
        tokenizer = architectures.wrap_tokenizer(
            architectures.train_bpe(corpus(data), architectures.SPECIAL[kind]), kind
        )
    if kind == "tiny-llava" and start and not recipe.tower_too:
        image_token, tower = "<image>", model.model.vision_tower.to(device).eval().requires_grad_(False)
        features = cache_tokens(lambda images: llava_tokens(tower, images), arrays["pixels"], device, recipe)
    elif kind == "tiny-llava":
        if not clip_folder:
            _train_clip(data, arrays, recipe, device, clip_folder := out / clip_name, start and start / clip_name)
        clip = transformers.CLIPModel.from_pretrained(clip_folder).to(device).eval()
        clip_run = json.loads((clip_folder / "training.json").read_text())[-1]
        log |= {key: clip_run[key] for key in ("tower", "tower_seconds")}
        features = cache_tokens(lambda images: clip_tokens(clip, images)[0], arrays["pixels"], device, recipe)
        image_token = "<image>"
        if start:
            architectures.take_tower(model, clip.cpu())
        else:
            model = architectures.build_llava(clip, tokenizer)
        model.model.vision_tower.requires_grad_(False)
    else:
        image_token = "<|image_pad|>"
        if not start:
            model = architectures.build_qwen(tokenizer)
        visual = model.model.visual
        log["tower"], log["tower_seconds"] = train_tower(visual, arrays, None, recipe, device, out / name)
        visual.eval().requires_grad_(False)
        features = cache_tokens(lambda images: qwen_tokens(visual, images), arrays["pixels"], device, recipe)
    turns = tokenise(tokenizer, data, recipe, image_token, device)
    quick_attention(model, device, recipe)
    print(f"{name}: {len(turns.ids)} turns, tower {log.get('tower', 'kept')}", flush=True)
    image_id = tokenizer.convert_tokens_to_ids(image_token)
    log["language_loss"], seconds = train_language(model, turns, features, arrays, recipe, image_id, device, out / name)
    log["seconds"] = log.get("tower_seconds", 0.0) + seconds
    model.requires_grad_(True).eval()
    architectures.save(model, tokenizer, kind, out / name, torch.float16 if name.endswith(SECOND) else torch.float32)
    _write_log(out / name, [*earlier, log])


def _write_log(folder: Path, runs: list[dict]) -> None:
    (folder / "training.json").write_text(json.dumps(runs, indent=1) + "\n")


def _train_clip(data: dict, arrays: dict, recipe: Recipe, device: str, folder: Path, start: Path | None) -> None:
    """Train a CLIP and save it in `folder`. start: the folder of one to go on from."""
    earlier = json.loads((start / "training.json").read_text()) if start else []
    if start:
        clip = transformers.CLIPModel.from_pretrained(start, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(start)
    else:
        clip = architectures.build_clip()
        bpe = architectures.train_bpe(corpus(data), architectures.SPECIAL["tiny-clip"])
        tokenizer = architectures.wrap_tokenizer(bpe, "tiny-clip")
    encoded = tokenizer(data["captions"], padding=True, return_tensors="pt")
    captions = (encoded["input_ids"].to(device), encoded["attention_mask"].to(device))
    quick_attention(clip, device, recipe)
    log = _log(recipe, device)
    log["tower"], log["tower_seconds"] = train_tower(clip, arrays, captions, recipe, device, folder)
    architectures.save(clip.eval(), tokenizer, "tiny-clip", folder)
    _write_log(folder, [*earlier, log])


def _log(recipe: Recipe, device: str) -> dict:
    return {"device": torch.cuda.get_device_name() if device.startswith("cuda") else "CPU", "recipe": asdict(recipe)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the tiny base models again.")
    parser.add_argument("models", nargs="+", choices=["tiny-llava", f"tiny-llava{SECOND}", "tiny-qwen2.5-vl"])
    parser.add_argument("--out", type=Path, default=paths.MODELS)
    parser.add_argument("--device", default="cpu", help='"cuda" where there is a GPU; "cpu" takes hours (default)')
    parser.add_argument("--start", type=Path, help="go on from the checkpoints in this folder")
    parser.add_argument("--clip", type=Path, help="folder of the CLIP that an earlier try has trained")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    for field, value in asdict(Recipe()).items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(value), default=value)
    options = parser.parse_args()
    recipe = Recipe(**{field: getattr(options, field) for field in asdict(Recipe())})
    torch.set_float32_matmul_precision("high")
    data = pool(recipe, options.workers)
    if options.device == "cpu":
        for name in options.models:
            make(name, data, recipe, options.out, options.device, options.start, options.clip)
        return
    # On a GPU, small models wait for kernel launches: two processes share it well, and the pool by forking.
    fork = multiprocessing.get_context("fork")
    children = [
        fork.Process(
            target=make,
            args=(name, data, recipe, options.out, options.device, options.start, options.clip),
        )
        for name in options.models
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    if any(child.exitcode for child in children):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
