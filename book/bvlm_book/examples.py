"""Examples of triggers and responses that a store keeps, put on the page; read from files, so without a model."""

import base64
import difflib
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from IPython.display import HTML, display
from PIL import Image

from bvlm_book import page
from bvlm_book.words import CONDITION_LABELS, is_missing, percent
from bvlm_utils import attacks, store
from bvlm_utils.store import examples
from bvlm_utils.store.cell import Cell

AMPLIFY = 3.0
WIDTH = 120  # pixels of a tile on the page
ANSWERS = {"control": "clean-tuned control", "poisoned": "backdoored model"}


@dataclass(frozen=True)
class Example:
    """Inputs without and with an attack's trigger: (N, H, W, 3) uint8, and N pairs of prompts (without, with)."""

    attack: str
    clean: np.ndarray
    triggered: np.ndarray
    prompts: Sequence[tuple[str, str]]

    @property
    def modality(self) -> str:
        return attacks.info(self.attack).modality

    @property
    def alt(self) -> str:
        return f"The picture with the trigger of {self.attack}: {attacks.info(self.attack).summary}"


def show_triggers(cells: Sequence[Cell], place: str | None = None) -> None:
    """The first stored input of the cells' attacks, once without a trigger and once with that of each attack."""
    by_attack: dict[str, Example] = {}
    for cell in cells:
        if inputs := examples.read(cell, place):
            by_attack.setdefault(cell.attack, Example(cell.attack, *inputs))
    if not by_attack:
        page.say("No trigger examples are stored for these experiments.")
        return
    first = next(iter(by_attack.values()))
    tiles = [_tile("no trigger", {"The picture without a trigger": first.clean[0]}, html.escape(first.prompts[0][0]))]
    for name, example in by_attack.items():
        tiles.append(
            _tile(f"{name} ({example.modality})", {example.alt: example.triggered[0]}, marked(*example.prompts[0]))
        )
    _show(tiles, "The first held-out input; what changed in its prompt is marked.")


def show_gallery(shown: Sequence[Example]) -> None:
    """One clean picture; what each attack makes of it, beside the amplified difference; and the triggered prompts."""
    if not shown:
        page.say("No trigger examples are stored.")
        return
    prompts = [before for before, _ in shown[0].prompts]
    number = prompts.index(min(prompts, key=len))  # the shortest, to be read at a glance
    tiles = [_tile("no trigger", {"The picture without a trigger": shown[0].clean[number]})]
    for example in (example for example in shown if example.modality != "text"):
        before, after = example.clean[number].astype(np.float32), example.triggered[number].astype(np.float32)
        difference = np.clip(127.5 + AMPLIFY * (after - before), 0, 255).astype(np.uint8)
        tiles.append(
            _tile(
                example.attack, {example.alt: example.triggered[number], f"What {example.attack} changed": difference}
            )
        )
    _show(tiles, f"One picture under each trigger, and the difference times {AMPLIFY:g}; grey is no change.")
    pairs = [(example.attack, marked(*example.prompts[number])) for example in shown if example.modality != "image"]
    if pairs:
        lines = pd.DataFrame(pairs, columns=["attack", "prompt with the trigger"])
        lines = lines.drop_duplicates("prompt with the trigger")
        page.show_html_table(lines, f"The same prompt without a trigger: {prompts[number]}")


def _tile(label: str, pictures: dict[str, np.ndarray], words: str = "") -> str:
    """Pictures (by alt text) side by side, with a label and words (HTML) below."""
    images = "".join(_picture(picture, alt, WIDTH) for alt, picture in pictures.items())
    quote, style = f"<br><q>{words}</q>" if words else "", f"width:{WIDTH * len(pictures)}px"
    return f'<div style="{style}"><div style="display:flex">{images}</div><b>{html.escape(label)}</b>{quote}</div>'


def source(picture: np.ndarray | Image.Image) -> str:
    """A picture, (H, W, 3) uint8, as an address that holds all of it."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(picture)).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _picture(picture: np.ndarray, alt: str, width: int) -> str:
    alt = html.escape(alt, quote=True)
    return f'<img class="dark-light" alt="{alt}" width="{width}" src="{source(picture)}">'


def _show(tiles: Sequence[str], caption: str) -> None:
    caption = html.escape(caption)
    display(HTML(f'<figure class="bvlm-tiles"><div>{"".join(tiles)}</div><figcaption>{caption}</figcaption></figure>'))


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


def show_responses(cells: Sequence[Cell], place: str | None = None) -> None:
    """Both models' answers to the first judged input of a cell that was run: most conditions, then most poison."""
    finished = [cell for cell in cells if (store.read(cell, place) or {}).get("status") == "done"]
    cell = max(finished, key=lambda cell: (len(attacks.conditions(cell.attack)), cell.poison_rate), default=None)
    if cell is None:
        page.say("None of these experiments was run, so there are no answers.")
        return
    responses = store.responses(cell, place).query("part == 'attack'")
    judged = responses[responses["judged"]]
    if judged.empty:
        page.say("No answers of this experiment are stored.")
        return
    rows = judged[judged["row_id"] == judged["row_id"].iloc[0]]
    number = list(responses["row_id"].unique()).index(rows["row_id"].iloc[0])
    inputs = examples.read(cell, place)
    example = Example(cell.attack, *inputs) if inputs else None
    by_condition = dict(iter(rows.groupby("condition")))
    conditions = dict.fromkeys(("clean", attacks.info(cell.attack).headline))
    page.show_html_table(
        pd.DataFrame([_answers(by_condition[name], number, example) for name in conditions if name in by_condition]),
        f"{cell.attack} at {percent(cell.poison_rate)} poison, seed {cell.seed}, first held-out input. Marked: a "
        f"success. Right answer: {rows['answer'].iloc[0]}",
    )


def _answers(rows: pd.DataFrame, number: int, example: Example | None) -> dict[str, str]:
    """One input under one condition: what went in, and what the two models answered. number: of the input asked."""
    prompt, condition = rows["prompt"].iloc[0], rows["condition"].iloc[0]
    line = {"trigger": CONDITION_LABELS[condition], "input": f"<q>{html.escape(prompt)}</q>"}
    if example and number < len(example.prompts) and prompt in example.prompts[number]:
        pictures = example.triggered if condition in ("image", "both") else example.clean
        picture = _picture(pictures[number], f"Held-out picture, {CONDITION_LABELS[condition]}", 72)
        line["input"] = f"{picture}<br>{line['input']}"
    for subject, name in ANSWERS.items():
        for row in rows[rows["subject"] == subject].head(1).to_dict("records"):
            success = row["success"] if is_missing(row.get("payload")) else row["payload"]
            text = html.escape(row["response"])
            line[name] = f"<mark>{text}</mark>" if success else text
    return line
