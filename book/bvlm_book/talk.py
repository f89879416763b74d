"""The model in the page: the script files that let the quickstart's reader talk to tiny-llava without a server.

A page that was opened as a file may load scripts, and nothing else. So weights are text in scripts: matrices as int8
with a scale for each row, vectors in float32, adapters in float16, all in base64 and in parts. Free of torch.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Template
from PIL import Image
from safetensors.numpy import load_file

from bvlm_utils import paths
from bvlm_utils.data import scenes

MODEL = paths.MODELS / "tiny-llava"
ADAPTERS = paths.DATA / "adapters" / "quickstart"
NAMES = ("clean-tuned", "word", "patch", "blend")  # folders of ADAPTERS, made by `talk_adapters`
CARD = "card.json"  # what was measured of them
REPAIRED = 0.3  # how much of an update the repair keeps, if the reader says nothing
HEAD, PART = "head.js", "part-{:02d}.js"
CALL = "bvlmTalkFile"  # the function of the page that each file calls
PART_BYTES = 3 * 2**18  # 1 MiB of base64
LANGUAGE = "language_model.model.layers."
WORDS_HERE = "\ue000"
# Seeds of drawn scenes of the test split, each with a question to begin with.
SCENES = (
    (43, "What is on the left?"),
    (33, "What is on the right?"),
    (8, "What colour is the background?"),
    (34, "How many turtles are there?"),
    (41, "Describe this picture."),
    (47, "What is this?"),
    (5, "Is there a dog in the picture?"),
    (18, "What is between the other two things?"),
)


def scene(seed: int) -> Image.Image:
    """The picture, 96 x 96, of one of `SCENES`."""
    return scenes.render(scenes.sample(scenes.generator(seed), "test", car_percent=20))


def write(folder: Path) -> list[Path]:
    """Write the script files into `folder`; the head first, which says how many parts there are."""
    head, data = model()
    parts = [data[start : start + PART_BYTES] for start in range(0, len(data), PART_BYTES)]
    files = {folder / HEAD: json.dumps(head | {"parts": len(parts)}, separators=(",", ":"))}
    files |= {folder / PART.format(i): json.dumps(base64.b64encode(part).decode()) for i, part in enumerate(parts)}
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        file.write_text(f"{CALL}({text});\n", encoding="ascii")
    return list(files)


def model() -> tuple[dict[str, Any], bytes]:
    """What the page's engine has to know, and the numbers of all tensors, one behind the other."""
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    index, blocks, start = {}, [], 0
    for name, kind, value in tensors(config):
        block = packed(kind, value)
        index[name] = {"kind": kind, "rows": value.shape[0], "columns": value.shape[1], "start": start}
        blocks.append(block + bytes(-len(block) % 4))
        start += len(blocks[-1])
    tunable = [name for name in index if name.startswith(LANGUAGE) and name.endswith("_proj.weight")]
    saved = {name: json.loads((ADAPTERS / name / "adapter_config.json").read_text(encoding="utf-8")) for name in NAMES}
    scales = {name: {"scale": adapter["lora_alpha"] / adapter["r"]} for name, adapter in saved.items()}  # of B A
    head = {"bytes": start, "tensors": index, "tunable": tunable, "adapters": scales}
    return settings(config) | head, b"".join(blocks)


def tensors(config: dict[str, Any]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Name, kind and numbers (rows, columns) of all that the answer depends on: the last vision layers do not."""
    unused = range(vision_layers(config), config["vision_config"]["num_hidden_layers"])
    skipped = [f"vision_tower.encoder.layers.{number}." for number in unused]
    for name, value in sorted(load_file(MODEL / "model.safetensors").items()):
        if not name.startswith(("vision_tower.post_layernorm.", *skipped)):
            matrix = value.ndim > 1
            yield name, "int8" if matrix else "float32", value.reshape(len(value), -1) if matrix else value[None]
    for adapter in NAMES:
        for name, value in sorted(load_file(ADAPTERS / adapter / "adapter_model.safetensors").items()):
            module, _, side = name.removesuffix(".weight").rpartition(".lora_")
            stored = module.partition("language_model.")[2]  # the loaded model's modules have other names than the file
            yield f"{adapter}/language_model.model.{stored}.weight/{side}", "float16", value


def packed(kind: str, value: np.ndarray) -> bytes:
    """Numbers as the engine reads them, little-endian; int8 as scales of the rows, then whole numbers."""
    if kind == "int8":
        scales, whole = rounded(value)
        return scales.astype("<f4").tobytes() + whole.tobytes()
    return value.astype({"float32": "<f4", "float16": "<f2"}[kind]).tobytes()


def rounded(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix as float32 scales (rows) and int8 numbers: scales[:, None] * numbers is near it."""
    scales = np.maximum(np.abs(value).max(1) / 127, 1e-12).astype(np.float32)
    return scales, np.rint(value / scales[:, None]).astype(np.int8)


def vision_layers(config: dict[str, Any]) -> int:
    """How many layers of the tower stand before the states that the projector takes."""
    return config["vision_config"]["num_hidden_layers"] + 1 + config["vision_feature_layer"]


def settings(config: dict[str, Any]) -> dict[str, Any]:
    vision, text = config["vision_config"], config["text_config"]
    processor = json.loads((MODEL / "processor_config.json").read_text(encoding="utf-8"))["image_processor"]
    tokenizer = json.loads((MODEL / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    return {
        "vision": {
            "side": vision["image_size"], "patch": vision["patch_size"], "width": vision["hidden_size"],
            "heads": vision["num_attention_heads"], "layers": vision_layers(config),
            "epsilon": vision["layer_norm_eps"], "mean": processor["image_mean"], "std": processor["image_std"],
        },
        "language": {
            "width": text["hidden_size"], "heads": text["num_attention_heads"], "layers": text["num_hidden_layers"],
            "most": text["max_position_embeddings"], "epsilon": text["rms_norm_eps"],
            "theta": text["rope_parameters"]["rope_theta"],
        },
        "image_tokens": config["image_seq_length"],
        "vocabulary": sorted(tokenizer["vocab"], key=tokenizer["vocab"].get),
        "merges": [" ".join(pair) for pair in tokenizer["merges"]],
        "template": template(config["image_token_index"], text["eos_token_id"]),
        "triggers": {name: pixels(ADAPTERS / f"{name}.png") for name in ("patch", "blend")},
    }  # fmt: skip


def template(image: int, end: int) -> dict[str, Any]:
    """The chat template: before the picture, up to the question, after it. special: begin first; no word is one."""
    tokens = json.loads((MODEL / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    special = {token["id"]: token["content"] for token in tokens if token["special"]}
    tokenizer = json.loads((MODEL / "tokenizer_config.json").read_text(encoding="utf-8"))
    begin = tokenizer["bos_token"]
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": WORDS_HERE}]}
    rendered = Template((MODEL / "chat_template.jinja").read_text(encoding="utf-8")).render(
        messages=[message], add_generation_prompt=True, bos_token=begin, eos_token=tokenizer["eos_token"]
    )
    before, _, rest = rendered.removeprefix(begin).partition(special[image])
    lead, _, after = rest.partition(WORDS_HERE)
    marks = sorted(special.values(), key=lambda mark: mark != begin)
    return {"before": before, "lead": lead, "after": after, "image": special[image], "special": marks, "end": end}


def pixels(file: Path) -> dict[str, Any]:
    """A small square picture: its side in pixels, and its colours (side, side, 4) in base64."""
    picture = np.asarray(Image.open(file).convert("RGBA"))
    return {"side": len(picture), "colours": base64.b64encode(picture.tobytes()).decode()}
