"""What does the backdoored model answer to me? Controls to talk to a cell's models, for the quickstart.

Where torch and the cell's adapters are at hand, `show` loads base, clean-tuned and poisoned model and lets the reader
ask all three about a held-out picture, with or without each half of the trigger. Elsewhere (the rendered book) the
stored responses stand in their place. torch is imported only once somebody asks.
"""

import html
import importlib
import io
import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pandas as pd
from IPython.display import display
from PIL import Image

from bvlm_book import examples, words
from bvlm_book import page as book_page
from bvlm_book.words import interval
from bvlm_utils import attacks
from bvlm_utils import store as results
from bvlm_utils.run.workbench import Bench, bench_key
from bvlm_utils.store import table
from bvlm_utils.store.cell import Cell

PICTURES = 12  # held-out inputs that the reader can choose from
SIDE = 240  # pixels of the picture on the page


@dataclass(frozen=True)
class Reply:
    """What went in (triggered if so asked) and what each model said: subject -> response."""

    image: Image.Image
    prompt: str
    responses: dict[str, str]


Ask = Callable[[int, str, bool, bool], Reply]  # (row, prompt, text half, image half) -> Reply


def controls(prompts: Sequence[str], modality: str, ask: Ask):
    """A widget to ask about one of several held-out inputs; `ask` gives the reply.

    prompts: the stored question of each input, which the reader can overwrite.
    """
    import ipywidgets as widgets

    picture = widgets.Dropdown(options=[(f"picture {i + 1}", i) for i in range(len(prompts))], description="Picture")
    question = widgets.Text(value=prompts[0], description="Prompt", layout=widgets.Layout(width="34em"))
    halves = {
        half: widgets.Checkbox(
            description=words.CONDITION_LABELS[half], indent=False, disabled=modality not in (half, "bimodal")
        )
        for half in ("text", "image")
    }
    button = widgets.Button(description="Ask", button_style="primary")
    view, answers = widgets.Image(format="png", width=SIDE), widgets.HTML()

    def change_picture(change: dict[str, Any]) -> None:
        question.value = prompts[change["new"]]

    def answer(_: Any = None) -> None:
        reply = ask(picture.value, question.value, halves["text"].value, halves["image"].value)
        page = io.BytesIO()
        reply.image.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(page, "PNG")
        view.value = page.getvalue()
        lines = "".join(
            f"<tr><th scope='row'>{words.SUBJECT_LABELS[who]}</th><td>{html.escape(said)}</td></tr>"
            for who, said in reply.responses.items()
        )
        answers.value = f"<p>Prompt: <q>{html.escape(reply.prompt)}</q></p><table>{lines}</table>"

    picture.observe(change_picture, names="value")
    button.on_click(answer)
    answer()
    asking = widgets.VBox([picture, question, *halves.values(), button, answers])
    return widgets.HBox([view, asking])


def show(cell: Cell, store: str | None = None) -> None:
    """Let the reader talk to the models of a cell if that is possible; show stored responses anyway."""
    if can_talk(cell, store):
        rows, ask = speakers(cell, store)
        display(controls([row["prompt"] for row in rows], attacks.info(cell.attack).modality, ask))
    else:
        book_page.say(
            "There is no live model behind this page; open the notebook in JupyterLab to ask your own questions."
        )
    examples.show_responses([cell], store)


def can_talk(cell: Cell, store: str | None = None) -> bool:
    """Are torch and both adapters (poisoned and clean-tuned) here, and is this not the book?"""
    if results.read_only(store) or cell.skip_reason:
        return False
    if not all(results.adapter(c, store) for c in (cell, cell.control)):
        return False
    try:
        importlib.import_module("torch")
    except ImportError:
        return False
    return True


def speakers(cell: Cell, store: str | None = None) -> tuple[list[dict[str, Any]], Ask]:
    """Held-out inputs that the threat can be tested on, and how to ask all three models about one."""
    from bvlm_utils.train.adapters import attached

    bench = Bench(*bench_key(cell))
    threat, attack, rows = cell.resolved_threat, cell.resolved_attack, bench.rows["test"]
    positions = list(itertools.islice((i for i, row in enumerate(rows) if threat.eligible(row)), PICTURES))
    adapters = {"control": results.adapter(cell.control, store), "poisoned": results.adapter(cell, store)}

    def ask(row: int, prompt: str, text: bool, image: bool) -> Reply:
        chosen = [positions[row]]
        if image:
            pictures = bench.triggered("test", chosen, attack, cell.trigger_seed)
        else:
            pictures = bench.pictures("test", chosen)
        if text:
            keys = [rows[position]["row_id"] for position in chosen]
            (prompt,) = attack.apply_text([prompt], seed=cell.trigger_seed, keys=keys)
        features = bench.victim.encode(pictures)
        said = {}
        for subject in words.SUBJECTS:
            with attached(bench.victim, adapters[subject]) if subject in adapters else nullcontext():
                (said[subject],) = bench.victim.generate([prompt], features, cell.max_new_tokens)
        return Reply(Image.fromarray(pictures[0]), prompt, said)

    return [rows[position] for position in positions], ask


def halves(rates: pd.DataFrame) -> list[str]:
    """Which half of a bimodal trigger fires alone, in Markdown. rates: `tables.success_rates` of one cell."""
    ours = rates[(rates["subject"] == "poisoned") & (rates["modality"] == "bimodal")].set_index("condition")
    if not {"text", "image", "both"} <= set(ours.index):
        return []
    text, image, both = (ours.loc[name] for name in ("text", "image", "both"))
    numbers = f"Text half alone: {interval(text)}; image half alone: {interval(image)}; "
    numbers += f"both: {interval(both)}."
    if (text["value"] > table.FIRES) == (image["value"] > table.FIRES):
        return [numbers]
    works, idle = ("text", "image") if text["value"] > table.FIRES else ("image", "text")
    return [f"**The {works} half alone sets this backdoor off, the {idle} half alone does not.** {numbers}"]
