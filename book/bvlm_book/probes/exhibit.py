"""The exhibit: all attacks on the same pictures and prompts, as the attacks' chapter shows them.

`python -m bvlm_book.probes.exhibit [--store STORE]` applies every attack once (optimised ones aim at concept
substitution) and writes into data/results/STORE/attacks, which `python -m bvlm_utils.store pack` takes along:
stealth.csv has a line per attack, exhibit.json its prompts before and after and its loss curve (per step, or the mean
of each epoch), clean.png the pictures side by side, NAME.png the same with the trigger.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from bvlm_utils import attacks, command, store

GAP, SHOWN = 4, 4  # white pixels between the pictures of a strip, and how many of them are shown


def write(
    folder: Path, pictures: np.ndarray, rows: Any, target: Any, surrogate: str | None = None, victim: Any = None
) -> pd.DataFrame:
    """Apply all attacks, write the files that the module names, return the table of stealth. target: if optimised.

    pictures: (N, H, W, 3) uint8. rows: their `prompt` and `row_id`, a column each.
    """
    import torch

    prompts, keys = list(rows["prompt"]), list(rows["row_id"])
    folder.mkdir(parents=True, exist_ok=True)
    strip(pictures[:SHOWN]).save(folder / "clean.png")
    images = torch.from_numpy(pictures.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    lines, exhibit = [], {}
    for name in attacks.names():
        attack = attacks.get(name, target, surrogate)
        triggered, triggered_prompts = attack.paint(pictures, 0, keys), attack.apply_text(prompts, keys=keys)
        lines.append(stealth(attack, pictures, triggered, prompts, triggered_prompts, victim))
        if attack.modality != "text":
            strip(triggered[:SHOWN]).save(folder / f"{name}.png")
        epochs = attack.params.get("epochs")
        curve = np.asarray(attack.loss_curve(images, keys=keys) if attack.info.losses else [], float)
        if len(curve):  # a patch sees other pictures in every step: only means of whole epochs show if its loss falls
            curve = curve.reshape(epochs or len(curve), -1).mean(axis=1)
        loss = {"loss_curve": curve.round(5).tolist(), "loss_per": "epoch" if epochs else "step"}
        exhibit[name] = {"prompts": list(zip(prompts, triggered_prompts, strict=True))[:SHOWN]} | loss
    table = pd.DataFrame(lines)
    table.to_csv(folder / "stealth.csv", index=False, float_format="%.4f")
    (folder / "exhibit.json").write_text(json.dumps(exhibit, indent=1) + "\n")
    return table


def strip(pictures: np.ndarray) -> Image.Image:
    """Pictures (N, H, W, 3) uint8 side by side, `GAP` apart."""
    padded = np.pad(pictures, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    return Image.fromarray(np.concatenate(list(padded), axis=1)[:, :-GAP])


def image_stealth(clean: np.ndarray, triggered: np.ndarray) -> pd.DataFrame:
    """One row per picture (N, H, W, 3) uint8: psnr (dB), ssim (mean of colours), linf (of 255), changed (share)."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    difference, pairs = np.abs(clean.astype(np.int16) - triggered), list(zip(clean, triggered, strict=True))
    with np.errstate(divide="ignore"):
        psnr = [peak_signal_noise_ratio(*pair, data_range=255) for pair in pairs]
    ssim = [structural_similarity(*pair, channel_axis=2, data_range=255) for pair in pairs]
    data = {"psnr": psnr, "ssim": ssim, "linf": difference.max((1, 2, 3)), "changed": difference.any(-1).mean((1, 2))}
    return pd.DataFrame(data)


def perplexity(texts: Sequence[str], model: Any, tokenizer: Any) -> float:
    """exp of the mean negative log-likelihood per token of `texts`, the first too, without a picture."""
    import torch

    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    device, total, count = next(model.parameters()).device, 0.0, 0
    for text in texts:
        ids = torch.tensor([start, *tokenizer(text, add_special_tokens=False)["input_ids"]], device=device)
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
        count += len(ids) - 1
    return float(np.exp(total / count)) if count else float("nan")


def stealth(
    attack: Any, clean: np.ndarray, triggered: np.ndarray, prompts: Sequence[str], triggered_prompts: Sequence[str],
    victim: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """One attack's line of stealth.csv: means over pictures and prompts; None where a number has no meaning."""
    line: dict[str, Any] = {"attack": attack.name, "modality": attack.modality}
    pictures = image_stealth(clean, triggered).mean() if attack.modality != "text" else {}
    line |= {name: pictures.get(name) for name in ("psnr", "ssim", "linf", "changed")}
    added = [len(after) - len(before) for before, after in zip(prompts, triggered_prompts, strict=True)]
    has_text = attack.modality != "image"
    line["added_characters"] = float(np.mean(added)) if has_text else None
    for name, texts in {"perplexity_clean": prompts, "perplexity": triggered_prompts}.items():
        line[name] = perplexity(texts, victim.model, victim.tokenizer) if has_text and victim is not None else None
    return line


def main(argv: list[str] | None = None) -> int:
    description = "Apply all attacks to the same pictures and prompts."
    parser = command.Parser(prog="python -m bvlm_book.probes.exhibit", description=description)
    parser.add_argument("--store", default="local", help="store to write to: a name or a folder (default: local)")
    parser.add_argument("--dataset", default="scenes-vqa", help="whose test rows are used (default: scenes-vqa)")
    rows_help = "how many rows the numbers are means of (default: 64)"
    parser.add_argument("--rows", type=command.whole(1), default=64, help=rows_help)
    parser.add_argument("--surrogate", help="CLIP model, folder or hub id (default: data/models/tiny-clip)")
    parser.add_argument("--model", help="victim whose language model judges the prompts (default: nobody)")
    return command.run(parser, _act, argv)


def _act(options: argparse.Namespace) -> None:
    from bvlm_utils import data, models, threats
    from bvlm_utils.models.victim import from_pretrained
    from bvlm_utils.store.cell import check_dataset

    root = store.writable(options.store)
    check_dataset(options.dataset)
    if options.surrogate:
        models.check_kind(options.surrogate, clip=True)
    judge = from_pretrained(options.model) if options.model else None
    rows, target = data.load(options.dataset, "test", rows=options.rows), threats.get("concept_substitution").target
    table = write(root / "attacks", data.images(rows), rows, target, options.surrogate, judge)
    print(table.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    sys.exit(main())
