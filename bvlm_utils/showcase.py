"""What do triggers and responses look like? Examples that a store keeps, put on the page; free of torch.

Called by the notebooks: the threat chapters show the triggers of their cells and one run in full, "The
twelve attacks" shows what `exhibit` wrote. Everything is read from files, so the book shows it without a
model.
"""

import base64
import difflib
import html
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from bvlm_utils import attacks, examples, packed, plots, report
from bvlm_utils import store as results
from bvlm_utils.cells import Cell

AMPLIFY = 3.0
SHOWN = 2  # examples per attack on a page
EXHIBIT_GAP = 4  # pixels between the pictures of `exhibit`


@dataclass(frozen=True)
class Example:
    """A few held-out inputs without and with an attack's full trigger.

    clean, triggered: (N, H, W, 3) uint8; equal for a text attack. prompts: N pairs (without, with the
    trigger).
    """

    attack: str
    clean: np.ndarray
    triggered: np.ndarray
    prompts: Sequence[tuple[str, str]]

    @property
    def modality(self) -> str:
        return attacks.info(self.attack).modality


def show_triggers(cells: Sequence[Cell], store: str | None = None) -> None:
    """Put the stored examples of the cells' attacks on the page, each attack once."""
    found = {}
    for cell in cells:
        kept = examples.read(cell, store) if cell.attack not in found else None
        if kept:
            found[cell.attack] = Example(cell.attack, *kept)
    show_examples(list(found.values()))


def show_examples(shown: Sequence[Example]) -> None:
    """Put pictures and prompts of the examples on the page, clean and triggered."""
    painted = {e.attack: (e.clean, e.triggered) for e in shown if e.modality != "text"}
    if painted:
        report.show(plots.pairs(painted, amplify=AMPLIFY), **_pairs_words(list(painted)))
    worded = [e for e in shown if e.modality != "image"]
    if worded:
        lines = [
            {
                "attack": e.attack,
                "without trigger": html.escape(before),
                "with trigger": marked(before, after),
            }
            for e in worded
            for before, after in e.prompts[:SHOWN]
        ]
        report.show_html_table(pd.DataFrame(lines), "Prompts without and with the trigger; what changed is marked.")
    if not shown:
        report.say("No trigger examples are stored for these cells.")


def _pairs_words(names: list[str]) -> dict[str, str]:
    listed = ", ".join(names)
    return {
        "alt": f"Held-out pictures clean, with the trigger, and their difference, for the attacks {listed}. "
        + " ".join(f"{name}: {attacks.info(name).summary}." for name in names),
        "caption": f"Held-out pictures without and with the trigger of {listed}. The difference is amplified "
        f"{AMPLIFY:g} times; grey is no change.",
    }


def marked(before: str, after: str) -> str:
    """The triggered prompt as HTML, with what the clean one does not have in <mark>."""
    old, new = (re.findall(r"\w+|\s+|[^\w\s]", text) for text in (before, after))
    pieces = []
    for kind, _, _, start, end in difflib.SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        piece = html.escape("".join(new[start:end]))
        words = piece.strip()
        if kind != "equal" and words:
            piece = piece.replace(words, f"<mark>{words}</mark>")
        pieces.append(piece)
    return "".join(pieces)


# ---------------------------------------------------------------- responses


def richest(cells: Sequence[Cell], store: str | None = None) -> Cell | None:
    """The cell to show in full: of those that were run, most conditions first, then most poison."""
    done = [cell for cell in cells if (results.read(cell, store) or {}).get("status") == "done"]
    return max(done, key=lambda cell: (len(attacks.conditions(cell.attack)), cell.poison_rate), default=None)


def show_responses(cells: Sequence[Cell], store: str | None = None) -> None:
    """Put some stored responses of one cell on the page: every condition, all three models."""
    cell = richest(cells, store)
    if cell is None:
        report.say("None of these cells was run, so there are no responses.")
        return
    asked = results.responses(cell, store)
    asked = asked[(asked["part"] == "attack") & asked["judged"]]
    kept = examples.read(cell, store)
    example = Example(cell.attack, *kept) if kept else None
    shown = asked[asked["row_id"].isin(list(dict.fromkeys(asked["row_id"]))[:SHOWN])]
    lines = [
        _response_line(part, condition, example)
        for row_id in dict.fromkeys(shown["row_id"])
        for condition in plots.CONDITIONS
        if len(part := shown[(shown["row_id"] == row_id) & (shown["condition"] == condition)])
    ]
    if not lines:
        report.say("No responses of this cell are stored.")
        return
    report.show_html_table(
        pd.DataFrame(lines),
        f"{cell.attack} at {plots.percent(cell.poison_rate)} poison, seed {cell.seed}. "
        "A marked response passes the test.",
    )


def _response_line(part: pd.DataFrame, condition: str, example: Example | None) -> dict[str, str]:
    """One input under one condition: what went in, what would be right, what the models answered."""
    first = part.iloc[0]
    picture = _thumbnail(first, condition, example)
    line = {
        "condition": plots.CONDITION_LABELS[condition],
        "input": f"{picture}<q>{html.escape(first['prompt'])}</q>",
        "right answer": html.escape(first["answer"]),
    }
    for subject in plots.SUBJECTS:
        said = part[part["subject"] == subject]
        if len(said):
            text = html.escape(said["response"].iloc[0])
            line[plots.SUBJECT_LABELS[subject]] = f"<mark>{text}</mark>" if said["success"].iloc[0] else text
    return line


def _thumbnail(line: pd.Series, condition: str, example: Example | None) -> str:
    """The picture as HTML where an example of the same input is kept, else nothing."""
    prompts = {text: i for i, pair in enumerate(example.prompts) for text in pair} if example else {}
    if line["prompt"] not in prompts:
        return ""
    pictures = example.triggered if condition in ("image", "both") else example.clean
    page = io.BytesIO()
    Image.fromarray(pictures[prompts[line["prompt"]]]).save(page, "PNG")
    alt = f"Held-out picture, {plots.CONDITION_LABELS[condition]}; the right answer is: {line['answer']}"
    return (
        f'<img class="dark-light" alt="{html.escape(alt, quote=True)}" width="96" '
        f'src="data:image/png;base64,{base64.b64encode(page.getvalue()).decode()}"><br>'
    )


def split_strip(png: bytes, gap: int = 0) -> np.ndarray:
    """The square pictures that stand side by side in a PNG, `gap` pixels apart: (N, H, H, 3) uint8."""
    strip = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    side = strip.shape[0]
    count = (strip.shape[1] + gap) // (side + gap)
    return np.stack([strip[:, i * (side + gap) : i * (side + gap) + side] for i in range(count)])


# ---------------------------------------------------------------- "The twelve attacks"


@dataclass(frozen=True)
class Exhibit:
    """What `exhibit` wrote into a store: examples of all attacks, loss curves of optimised ones, stealth."""

    examples: list[Example]
    loss_curves: dict[tuple[str, str], list[float]]  # by attack and "step" or "epoch"
    stealth: pd.DataFrame


def read_exhibit(store: str | None = None) -> Exhibit:
    """The exhibit of a store; an empty one where `python -m bvlm_utils.exhibit` was not run."""
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
    return pd.DataFrame(
        [
            {
                "attack": row.name,
                "defined for": ", ".join(row.threats).replace("_", " ") if row.threats else "all threats",
                "parameters": "; ".join(f"{name}: {_default(value)}" for name, value in row.defaults.items()),
            }
            for row in rows
        ]
    )


def _default(value: Any) -> str:
    """A default as people write it: parts of 255 where it is that, lists without brackets."""
    if isinstance(value, float) and len(str(value)) > 6:  # 40/255 is 0.1568627450980392
        return f"{round(value * 255)}/255"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "of the threat" if value == "" else str(value)


STEALTH_COLUMNS = {
    "psnr": ("PSNR (dB)", "{:.1f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "linf": ("largest change", "{:.0f}"),
    "changed": ("changed pixels", "{:.1%}"),
    "added_characters": ("characters added", "{:.1f}"),
    "perplexity_clean": ("perplexity, clean", "{:,.0f}"),
    "perplexity": ("triggered", "{:,.0f}"),
}


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
    """Alt text and caption for `plots.curves`."""
    ends = "; ".join(f"{name} from {c[0]:.3g} to {c[-1]:.3g} in {len(c)} {unit}s" for (name, unit), c in curves.items())
    return {
        "alt": f"Line chart: loss of each optimised trigger against the step or epoch; {ends or 'none stored'}.",
        "caption": f"Loss while each trigger is optimised against the surrogate: {ends or 'n/a'}."
        + (f" The axes differ: the losses span {_spans(curves)}." if len(curves) > 1 else ""),
    }


def _spans(curves: dict[tuple[str, str], list[float]]) -> str:
    return ", ".join(f"{max(c) - min(c):.2g} for {name}" for (name, _), c in curves.items())
