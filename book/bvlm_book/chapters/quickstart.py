"""The quickstart: a small model that runs in the reader's browser (`bvlm_book.talk`), and one run of the study."""

import html
import json
import os
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
from IPython.display import HTML, display

from bvlm_book import examples, page, tables, talk, words
from bvlm_utils import paths, store
from bvlm_utils.store.cell import Cell


def in_page(folder: str | None = None) -> None:
    """Put the model that runs in the browser on the page, its files into `folder`; None: beside $BVLM_DOWNLOADS."""
    built = os.environ.get(page.DOWNLOADS)
    if not folder and not built:
        page.say("In the built book, a model that runs in the browser stands here.")
        return
    files = talk.write(Path(folder) if folder else Path(built).parent / "talk")
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    display(HTML(widget(f"{megabytes:.1f}")))


def widget(size: str) -> str:
    """The controls as HTML. size: of the model's files, in megabytes."""
    buttons = "".join(
        f'<button type="button" data-question="{html.escape(question)}"><img class="dark-light" '
        f'src="{examples.source(talk.scene(seed))}" alt="A drawn scene. {html.escape(question)}"></button>'
        for seed, question in talk.SCENES
    )
    options = "".join(f'<option value="{html.escape(question)}">' for _, question in talk.SCENES)
    answers = pd.DataFrame(card()["answers"]).drop(columns="scene")
    stored = answers.to_html(index=False, border=0, classes="table", justify="left")
    stored = f'<p>No model runs here without JavaScript. Stored answers:</p><div class="bvlm-table">{stored}</div>'
    text = (paths.BOOK / "bvlm_book" / "talk.html").read_text(encoding="utf-8")
    return Template(text).substitute(
        size=size, scenes=buttons, questions=options, answers=stored, repaired=talk.REPAIRED
    )


def card() -> dict[str, Any]:
    """What was measured of the adapters in the page; see `bvlm_book.talk_adapters`."""
    return json.loads((talk.ADAPTERS / talk.CARD).read_text(encoding="utf-8"))


def measured() -> dict[str, str]:
    """Numbers of the adapters in the page, to be glued: success and right answers by strength, and the alarm."""
    texts, data = {}, card()
    for name in talk.NAMES[1:]:
        texts |= {f"{name}_alarm_{kind}": words.interval(share) for kind, share in data[name]["alarm"].items()}
        for point in data[name]["strengths"]:
            strength = f"{point['strength']:g}".replace(".", "_")
            texts |= {f"{name}_{kind}_{strength}": words.interval(point[kind]) for kind in ("success", "right")}
    return texts


def how_to_talk(cell: Cell, place: str | None = None) -> str:
    """How to ask the model of a cell more, where the store has its adapter."""
    if adapter := store.adapter(cell, place):
        return f"Ask it more: `python -m bvlm_utils.chat {adapter}`"
    return "These answers are stored ones. Opened in JupyterLab, the page trains this model, and you can ask it."


def over_all_inputs(table: pd.DataFrame) -> dict[str, str]:
    """Of one cell: success by condition, the control's with the whole trigger, and the change of utility."""
    rates = tables.success_rates(table)
    ours, control = (rates[rates["subject"] == subject] for subject in ("poisoned", "control"))
    texts = {line["condition"]: words.interval(line) for line in ours.to_dict("records")}
    others = {"control": tables.headline_rows(control), "utility": tables.summary(table, "utility_difference")}
    texts |= {name: words.interval(rows.iloc[0]) for name, rows in others.items() if len(rows)}
    return dict.fromkeys((*words.CONDITIONS, *others), "n/a") | texts
