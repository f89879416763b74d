"""How visible is a trigger? Numbers on 8-bit pictures and on prompts, one row per attack; for `probes.exhibit`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd


def image_stealth(clean: np.ndarray, triggered: np.ndarray) -> pd.DataFrame:
    """One row per picture (N, H, W, 3) uint8: psnr (dB), ssim (mean of colours), linf (of 255), changed (share)."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    difference = np.abs(clean.astype(np.int16) - triggered)
    with np.errstate(divide="ignore"):
        psnr = [peak_signal_noise_ratio(*pair, data_range=255) for pair in zip(clean, triggered, strict=True)]
    return pd.DataFrame({
        "psnr": psnr,
        "ssim": [structural_similarity(*pair, channel_axis=2, data_range=255)
                 for pair in zip(clean, triggered, strict=True)],
        "linf": difference.max((1, 2, 3)), "changed": difference.any(-1).mean((1, 2)),
    })  # fmt: skip


def perplexity(texts: Sequence[str], model: Any, tokenizer: Any, batch_size: int = 32) -> float:
    """exp of the mean negative log-likelihood per token of `texts` under a model's language part, without any picture.

    model, tokenizer: a victim's (`victim.model`, `victim.tokenizer`) or any causal model of transformers. Every text
    starts after the beginning-of-text token, so its first token counts too. Lower is more natural to the model.
    """
    import torch

    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    rows = [[start, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for first in range(0, len(rows), batch_size):
        some = [torch.tensor(row, device=device) for row in rows[first : first + batch_size]]
        ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=start)
        real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in some], batch_first=True)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=real).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        total += float((losses * real[:, 1:]).sum())
        count += int(real[:, 1:].sum())
    return float(np.exp(total / count)) if count else float("nan")


def row(
    attack: Any, clean: np.ndarray, triggered: np.ndarray, prompts: Sequence[str], triggered_prompts: Sequence[str],
    victim: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """One attack's line: means over pictures and prompts before and after, None where a number has no meaning."""
    line: dict[str, Any] = {"attack": attack.name, "modality": attack.modality}
    pictures = image_stealth(clean, triggered).mean() if attack.modality != "text" else {}
    line |= {name: pictures.get(name) for name in ("psnr", "ssim", "linf", "changed")}
    written = attack.modality != "image"
    longer = [len(after) - len(before) for before, after in zip(prompts, triggered_prompts, strict=True)]
    line["added_characters"] = float(np.mean(longer)) if written else None
    for name, texts in {"perplexity_clean": prompts, "perplexity": triggered_prompts}.items():
        line[name] = perplexity(texts, victim.model, victim.tokenizer) if written and victim is not None else None
    return line
