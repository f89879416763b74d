"""How visible is a trigger? Numbers on pictures and on prompts, one row per attack; for `probes.exhibit`.

Pictures are compared as 8-bit files, which is what anybody inspecting a data set sees. A number that has no
meaning for an attack (the PSNR of a text attack) is missing, not zero.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd


def image_stealth(clean: np.ndarray, triggered: np.ndarray) -> pd.DataFrame:
    """One row per picture: psnr (dB; infinite where nothing changed), ssim, linf (of 255 levels), changed
    (share of pixels).

    clean, triggered: (N, H, W, 3) uint8. SSIM is the mean over colour channels (Wang et al. 2004, 7 x 7
    windows).
    """
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    rows = []
    for before, after in zip(clean, triggered, strict=True):
        difference = np.abs(before.astype(np.int16) - after)
        same = not difference.any()
        rows.append(
            {
                "psnr": np.inf if same else peak_signal_noise_ratio(before, after, data_range=255),
                "ssim": structural_similarity(before, after, channel_axis=2, data_range=255),
                "linf": int(difference.max()),
                "changed": float(difference.any(-1).mean()),
            }
        )
    return pd.DataFrame(rows, columns=["psnr", "ssim", "linf", "changed"])


def added_characters(clean: Sequence[str], triggered: Sequence[str]) -> list[int]:
    """How many characters each trigger added to its prompt."""
    return [len(after) - len(before) for before, after in zip(clean, triggered, strict=True)]


def perplexity(texts: Sequence[str], model: Any, tokenizer: Any, batch_size: int = 32) -> float:
    """exp of the mean negative log-likelihood per token of `texts` under a model's language part, without any
    picture.

    model, tokenizer: a victim's (`victim.model`, `victim.tokenizer`) or any causal model of transformers.
    Every text starts after the beginning-of-text token, so its first token counts too. Lower is more natural
    to the model.
    """
    import torch

    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    rows = [[start, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for first in range(0, len(rows), batch_size):
        some = rows[first : first + batch_size]
        longest = max(map(len, some))
        ids = torch.tensor([row + [start] * (longest - len(row)) for row in some], device=device)
        real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in some], device=device)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=real).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        total += float((losses * real[:, 1:]).sum())
        count += int(real[:, 1:].sum())
    return float(np.exp(total / count)) if count else float("nan")


def row(
    attack: Any,
    clean: np.ndarray,
    triggered: np.ndarray,
    prompts: Sequence[str],
    triggered_prompts: Sequence[str],
    victim: Any = None,
) -> dict[str, Any]:
    """One attack's line of the table: means over pictures and prompts, None where a number has no meaning.

    clean, triggered: (N, H, W, 3) uint8, before and after the attack; prompts likewise. victim: whose
    language model judges the prompts (`.model`, `.tokenizer`); without one the perplexities are missing.
    """
    line: dict[str, Any] = {"attack": attack.name, "modality": attack.modality}
    pictures = image_stealth(clean, triggered).mean() if attack.modality != "text" else {}
    line |= {name: pictures.get(name) for name in ("psnr", "ssim", "linf", "changed")}
    written = attack.modality != "image"
    line["added_characters"] = float(np.mean(added_characters(prompts, triggered_prompts))) if written else None
    judged = written and victim is not None
    line["perplexity_clean"] = perplexity(prompts, victim.model, victim.tokenizer) if judged else None
    line["perplexity"] = perplexity(triggered_prompts, victim.model, victim.tokenizer) if judged else None
    return line
