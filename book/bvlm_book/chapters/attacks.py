"""The chapter "The twelve attacks": what `probes.exhibit` stored, as tables and a figure."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from bvlm_book.examples import Example
from bvlm_book.figures import COLOURS, new_figure, nothing
from bvlm_utils import attacks
from bvlm_utils import store as results
from bvlm_utils.store import packed

EXHIBIT_GAP = 4  # pixels between the pictures of `probes.exhibit`

STEALTH_COLUMNS = {
    "psnr": ("PSNR (dB)", "{:.1f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "linf": ("largest change", "{:.0f}"),
    "changed": ("changed pixels", "{:.1%}"),
    "added_characters": ("characters added", "{:.1f}"),
    "perplexity_clean": ("perplexity, clean", "{:,.0f}"),
    "perplexity": ("triggered", "{:,.0f}"),
}


def curves(lines: Mapping[tuple[str, str], Sequence[float]]) -> Figure:
    """Loss of optimised triggers, a panel each. lines: (name, "step" or "epoch") -> a value for each of those."""
    if not lines:
        return nothing("No loss curve is stored.")
    figure, axes = new_figure(len(lines), 3.2 if len(lines) > 1 else 5.0, 2.6)
    for axis, ((name, unit), values) in zip(axes, lines.items(), strict=True):
        axis.plot(range(1, len(values) + 1), values, color=COLOURS[0])
        axis.set_title(name)
        axis.set_xlabel(unit)
    axes[0].set_ylabel("loss")
    return figure


def split_strip(png: bytes, gap: int = 0) -> np.ndarray:
    """The square pictures that stand side by side in a PNG, `gap` pixels apart: (N, H, H, 3) uint8."""
    strip = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    side = strip.shape[0]
    count = (strip.shape[1] + gap) // (side + gap)
    return np.stack([strip[:, i * (side + gap) : i * (side + gap) + side] for i in range(count)])


@dataclass(frozen=True)
class Exhibit:
    """What `probes.exhibit` wrote into a store: examples of all attacks, loss curves of optimised ones, stealth."""

    examples: list[Example]
    loss_curves: dict[tuple[str, str], list[float]]  # by attack and "step" or "epoch"
    stealth: pd.DataFrame


def read_exhibit(store: str | None = None) -> Exhibit:
    """The exhibit of a store; an empty one where `python -m bvlm_book.probes.exhibit` was not run."""
    kept = partial(packed.content, results.folder(store), "attacks")
    if kept("exhibit.json") is None:
        return Exhibit([], {}, pd.DataFrame())
    stored = json.loads(kept("exhibit.json"))
    clean = split_strip(kept("clean.png"), EXHIBIT_GAP)
    examples = []
    for name, entry in stored.items():
        picture = kept(f"{name}.png")
        triggered = split_strip(picture, EXHIBIT_GAP) if picture else clean
        examples.append(Example(name, clean, triggered, [(a, b) for a, b in entry["prompts"]]))
    curves = {(name, entry["loss_per"]): entry["loss_curve"] for name, entry in stored.items() if entry["loss_curve"]}
    return Exhibit(examples, curves, pd.read_csv(io.BytesIO(kept("stealth.csv"))))


def attack_table() -> pd.DataFrame:
    """Every attack of the study: modality, what its trigger is, where it comes from."""
    rows = [attacks.info(name) for name in attacks.names()]
    return pd.DataFrame(
        [{"attack": row.name, "modality": row.modality, "trigger": row.summary, "source": row.source} for row in rows]
    )


def parameter_table() -> pd.DataFrame:
    """What can be set of every attack, with its default, and the threats it is defined for."""
    rows = [attacks.info(name) for name in attacks.names()]
    return pd.DataFrame([
        {
            "attack": row.name,
            "defined for": ", ".join(row.threats).replace("_", " ") if row.threats else "all threats",
            "parameters": "; ".join(f"{name}: {_default(value)}" for name, value in row.defaults.items()),
        }
        for row in rows
    ])  # fmt: skip


def _default(value: Any) -> str:
    """A default as people write it: parts of 255 where it is that, lists without brackets."""
    if isinstance(value, float) and len(str(value)) > 6:  # 40/255 is 0.1568627450980392
        return f"{round(value * 255)}/255"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "of the threat" if value == "" else str(value)


def stealth_table(stealth: pd.DataFrame) -> pd.DataFrame:
    """The stored stealth numbers as a table to read; a number without meaning for an attack is "n/a"."""
    if stealth.empty:
        return stealth
    shown = stealth[["attack"]].copy()
    for column, (title, form) in STEALTH_COLUMNS.items():
        if column in stealth and stealth[column].notna().any():
            shown[title] = ["n/a" if pd.isna(v) else form.format(v) for v in stealth[column]]
    return shown


def curves_words(curves: dict[tuple[str, str], list[float]]) -> dict[str, str]:
    """Alt text and caption of `curves`."""
    ends = "; ".join(f"{name} from {c[0]:.3g} to {c[-1]:.3g} in {len(c)} {unit}s" for (name, unit), c in curves.items())
    spans = ", ".join(f"{max(c) - min(c):.2g} for {name}" for (name, _), c in curves.items())
    return {
        "alt": f"Line chart: loss of each optimised trigger against the step or epoch; {ends or 'none stored'}.",
        "caption": f"Loss while each trigger is optimised against the surrogate: {ends or 'n/a'}."
        + (f" The axes differ: the losses span {spans}." if len(curves) > 1 else ""),
    }
