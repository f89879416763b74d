"""Controls to talk to backdoored models, for the quickstart.

In the built book, `in_page` lets a small model run in the reader's browser (`bvlm_book.talk`).
Where torch and the cell's adapters are at hand, `show` loads base, clean-tuned and poisoned model and lets the reader
ask all three about a held-out picture, with or without each part of the trigger. Elsewhere (the rendered book) the
stored responses are shown. torch is imported only once somebody asks.
"""

import base64
import html
import importlib
import io
import itertools
import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
from IPython.display import HTML, display
from PIL import Image

from bvlm_book import examples, tables, talk, words
from bvlm_book import page as book_page
from bvlm_book.words import interval
from bvlm_utils import attacks, paths
from bvlm_utils import store as results
from bvlm_utils.run.workbench import Bench, bench_key
from bvlm_utils.store.cell import Cell

BUILT = "BVLM_DOWNLOADS"  # set while the book is built: a folder of its files, beside which the model's go
PICTURES = 12  # held-out inputs that the reader can choose from
SIDE = 240  # pixels of the picture on the page


def in_page(folder: str | None = None) -> None:
    """Put the model on the page that runs in the reader's browser, and its files beside the page.

    folder: where the files go; None means beside $BVLM_DOWNLOADS, which a build of the book sets.
    """
    built = os.environ.get(BUILT)
    if not folder and not built:
        book_page.say("In the built book, a model that runs in the browser stands here.")
        return
    files = talk.write(Path(folder) if folder else Path(built).parent / "talk")
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    display(HTML(widget(f"{megabytes:.1f}")))


def widget(size: str) -> str:
    """The controls as HTML. size: of the model's files, in megabytes."""
    shown = "".join(
        f'<button type="button" data-question="{html.escape(question)}"><img class="dark-light" src="{png(seed)}" '
        f'alt="A drawn scene. {html.escape(question)}"></button>'
        for seed, question in talk.SCENES
    )
    offered = "".join(f'<option value="{html.escape(question)}">' for _, question in talk.SCENES)
    text = (paths.BOOK / "bvlm_book" / "talk.html").read_text(encoding="utf-8")
    return Template(text).substitute(
        size=size, scenes=shown, questions=offered, answers=stored_answers(), repaired=talk.REPAIRED
    )


def png(seed: int) -> str:
    page = io.BytesIO()
    talk.scene(seed).save(page, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(page.getvalue()).decode()}"


def card() -> dict[str, Any]:
    """What was measured of the adapters in the page; see `bvlm_book.talk_adapters`."""
    return json.loads((talk.ADAPTERS / talk.CARD).read_text(encoding="utf-8"))


def stored_answers() -> str:
    """A table for readers without scripts."""
    lines = pd.DataFrame(card()["answers"]).drop(columns="scene")
    body = lines.to_html(index=False, border=0, classes="table", justify="left")
    return f'<p>No model runs here without JavaScript. Stored answers:</p><div class="bvlm-table">{body}</div>'


def measured() -> dict[str, str]:
    """Numbers of the adapters in the page, to be glued: success and right answers by strength, and the alarm."""
    found = {}
    for name, about in card().items():
        if name == "answers":
            continue
        found |= {f"{name}_alarm_{which}": interval(pd.Series(share)) for which, share in about["alarm"].items()}
        for at in about["strengths"]:
            strength = f"{at['strength']:g}".replace(".", "_")
            found[f"{name}_success_{strength}"] = interval(pd.Series(at["success"]))
            found[f"{name}_right_{strength}"] = interval(pd.Series(at["right"]))
    return found


@dataclass(frozen=True)
class Reply:
    """What went in (triggered if so asked) and what each model said: subject -> response."""

    image: Image.Image
    prompt: str
    responses: dict[str, str]


Ask = Callable[[int, str, bool, bool], Reply]  # (row, prompt, text part, image part) -> Reply


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
        book_page.say("These answers are stored ones. Opened in JupyterLab, the page asks the models that it trained.")
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
        pictures = bench.pictures("test", chosen, attack if image else None, cell.trigger_seed)
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


def over_all_inputs(table: pd.DataFrame) -> dict[str, str]:
    """Success and cost of one cell over all its inputs, to be glued. table: of `study.run_cells`.

    clean, text, image, both: of the backdoored model by condition; control: of the clean-tuned model under the whole
    trigger. utility: of the backdoored model less the clean-tuned one's.
    """
    rates = tables.success_rates(table)
    ours = {line["condition"]: interval(line) for line in rates[rates["subject"] == "poisoned"].to_dict("records")}
    whole = tables.headline_rows(rates)
    control = [interval(line) for line in whole[whole["subject"] == "control"].to_dict("records")]
    change = [interval(line) for line in tables.summary(table, "utility_difference").to_dict("records")]
    found = {name: ours.get(name, "n/a") for name in words.CONDITIONS}
    return found | {"control": (control or ["n/a"])[0], "utility": (change or ["n/a"])[0]}
