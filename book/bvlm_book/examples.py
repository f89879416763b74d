"""Examples of triggers and responses that a store keeps, put on the page; read from files, so without a model."""

import base64
import difflib
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from bvlm_book import page as book_page
from bvlm_book.figures import new_figure, nothing
from bvlm_book.words import CONDITION_LABELS, CONDITIONS, SUBJECT_LABELS, SUBJECTS, percent
from bvlm_utils import attacks
from bvlm_utils import store as results
from bvlm_utils.store import examples
from bvlm_utils.store.cell import Cell

AMPLIFY = 3.0
SHOWN = 2  # examples per attack on a page


@dataclass(frozen=True)
class Example:
    """A few held-out inputs without and with an attack's full trigger.

    clean, triggered: (N, H, W, 3) uint8; equal for a text attack. prompts: N pairs (without, with the trigger).
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
        book_page.show(pairs(painted, amplify=AMPLIFY), **_pairs_words(list(painted)))
    worded = [e for e in shown if e.modality != "image"]
    if worded:
        lines = [
            {"attack": e.attack, "without trigger": html.escape(before), "with trigger": marked(before, after)}
            for e in worded
            for before, after in e.prompts[:SHOWN]
        ]
        book_page.show_html_table(pd.DataFrame(lines), "Prompts without and with the trigger; what changed is marked.")
    if not shown:
        book_page.say("No trigger examples are stored for these cells.")


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
        book_page.say("None of these cells was run, so there are no responses.")
        return
    asked = results.responses(cell, store)
    asked = asked[(asked["part"] == "attack") & asked["judged"]]
    kept = examples.read(cell, store)
    example = Example(cell.attack, *kept) if kept else None
    shown = asked[asked["row_id"].isin(list(dict.fromkeys(asked["row_id"]))[:SHOWN])]
    lines = [
        _response_line(part, condition, example)
        for row_id in dict.fromkeys(shown["row_id"])
        for condition in CONDITIONS
        if len(part := shown[(shown["row_id"] == row_id) & (shown["condition"] == condition)])
    ]
    if not lines:
        book_page.say("No responses of this cell are stored.")
        return
    book_page.show_html_table(
        pd.DataFrame(lines),
        f"{cell.attack} at {percent(cell.poison_rate)} poison, seed {cell.seed}. A marked response passes the test.",
    )


def _response_line(part: pd.DataFrame, condition: str, example: Example | None) -> dict[str, str]:
    """One input under one condition: what went in, what would be right, what the models answered."""
    first = part.iloc[0]
    picture = _thumbnail(first, condition, example)
    line = {
        "condition": CONDITION_LABELS[condition],
        "input": f"{picture}<q>{html.escape(first['prompt'])}</q>",
        "right answer": html.escape(first["answer"]),
    }
    for subject in SUBJECTS:
        said = part[part["subject"] == subject]
        if len(said):
            text = html.escape(said["response"].iloc[0])
            line[SUBJECT_LABELS[subject]] = f"<mark>{text}</mark>" if said["success"].iloc[0] else text
    return line


def _thumbnail(line: pd.Series, condition: str, example: Example | None) -> str:
    """The picture as HTML where an example of the same input is kept, else nothing."""
    prompts = {text: i for i, pair in enumerate(example.prompts) for text in pair} if example else {}
    if line["prompt"] not in prompts:
        return ""
    pictures = example.triggered if condition in ("image", "both") else example.clean
    page = io.BytesIO()
    Image.fromarray(pictures[prompts[line["prompt"]]]).save(page, "PNG")
    alt = f"Held-out picture, {CONDITION_LABELS[condition]}; the right answer is: {line['answer']}"
    return (
        f'<img class="dark-light" alt="{html.escape(alt, quote=True)}" width="96" '
        f'src="data:image/png;base64,{base64.b64encode(page.getvalue()).decode()}"><br>'
    )


def pairs(pictures: Mapping[str, tuple[np.ndarray, np.ndarray]], amplify: float = 3.0) -> Figure:
    """Clean picture, triggered picture and their difference, one row per attack.

    pictures: label -> (clean, triggered), each (N, H, W, 3) uint8; the first two of N are shown.
    amplify: factor on the difference, which is drawn around mid grey.
    """
    if not pictures:
        return nothing("No trigger examples are stored for these cells.")
    count = min(2, min(len(clean) for clean, _ in pictures.values()))
    titles = ["clean", "triggered", f"difference x {amplify:g}"] * count
    width, height = 1.35 + 1.2 / len(titles), 1.35 + 0.35 / len(pictures)
    figure, axes = new_figure(len(titles), width, height, rows=len(pictures))
    axes = axes.reshape(len(pictures), len(titles))
    for row, (label, (clean, triggered)) in enumerate(pictures.items()):
        for i in range(count):
            before, after = clean[i].astype(np.float32) / 255, triggered[i].astype(np.float32) / 255
            shown = (before, after, np.clip(0.5 + amplify * (after - before), 0, 1))
            for j, picture in enumerate(shown):
                axis = axes[row, 3 * i + j]
                axis.imshow(picture, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                axis.grid(False)
                for spine in axis.spines.values():
                    spine.set_visible(False)
                if row == 0:
                    axis.set_title(titles[3 * i + j], fontsize=9)
        axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8)
    return figure
