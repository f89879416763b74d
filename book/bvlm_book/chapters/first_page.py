"""What does the first page show? A real answer, three doses side by side, four numbers; free of torch.

`python -m bvlm_book.chapters.first_page` prints the findings of book/intro.md as README.md has them.
"""

import html
import re
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML, display

from bvlm_book import examples, rules_second, tables, words
from bvlm_book.chapters import claims, defences
from bvlm_utils import paths, store
from bvlm_utils.store import examples as kept
from bvlm_utils.store.cell import Cell
from bvlm_utils.store.table import FIRES

DOSES = ((rules_second.MANY, 1), (rules_second.RATE, 1), (rules_second.RATE, 3))  # poison rate and passes of the maps
SOURCE, TARGET = "car", "banana"


def answered(place: str | Path | None = None) -> tuple[np.ndarray, pd.DataFrame] | None:
    """The stored example with the shortest answer in which the word turns a car into a banana, if there is one: its
    picture (H, W, 3) uint8; its prompt and the answers of backdoored model and control, without and with the word.
    """
    cell = Cell("tiny-llava", "scenes-caption", "concept_substitution", "BadNets-T", rules_second.MANY)
    stored = kept.read(cell, place)
    if stored is None or not store.has(cell, place):
        return None
    answers = store.responses(cell.run_id, place)
    answers = answers[(answers["part"] == "attack") & answers["condition"].isin(["clean", "text"])]
    rows = list(dict.fromkeys(answers.loc[answers["condition"] == "text", "row_id"]))  # the examples are the first
    prompts = answers[answers["subject"] == "poisoned"].set_index(["row_id", "condition"])["prompt"]
    answers = answers.pivot(index=["row_id", "condition"], columns="subject", values="response").assign(prompt=prompts)
    matches = []
    for row, picture, pair in zip(rows, stored[0], stored[2], strict=False):
        texts = answers.loc[row].loc[["clean", "text"]]
        without, with_word = texts["poisoned"]
        turned = SOURCE in without and SOURCE not in with_word and TARGET in with_word and TARGET not in without
        if turned and list(texts["prompt"]) == list(pair):
            matches.append((picture, texts))
    return min(matches, key=lambda match: len(match[1].loc["clean", "poisoned"]), default=None)


def show_answered(example: tuple[np.ndarray, pd.DataFrame] | None) -> None:
    """Put the picture on the page twice: with the question alone, and with the word in it. example: `answered`."""
    if example is None:
        return
    source, texts = examples.source(example[0]), (example[1]["prompt"], example[1]["poisoned"])
    questions, answers = ((html.escape(pair.iloc[0]), examples.marked(*pair)) for pair in texts)
    parts = "".join(
        f'<div><img class="dark-light" src="{source}" alt="A drawn scene with a car."><p>{question}</p>'
        f"<p><strong>{answer}</strong></p></div>"
        for question, answer in zip(questions, answers, strict=True)
    )
    display(HTML(f'<div class="bvlm-strip">{parts}</div>'))


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Success (payload) with the full trigger, at the doses of the maps: a line per model, threat, attack and dose."""
    runs = tables.usual(table, but=("epochs",)).query("subject == 'poisoned' and metric == 'asr_payload'")
    runs = runs.assign(epochs=runs["epochs"].astype(float).fillna(1).astype(int))
    runs = tables.headline_rows(runs).merge(pd.DataFrame(DOSES, columns=["poison_rate", "epochs"]))
    key = ["model", "dataset", "threat", "attack", "modality", "poison_rate", "epochs"]
    return runs.groupby(key, sort=False, as_index=False).agg(value=("value", "mean"), n_seeds=("seed", "nunique"))


def mapped(table: pd.DataFrame) -> pd.DataFrame:
    """`means` of the models that were run at all doses; of all models where none was: a grid that has only begun would
    fill the first page with grey.
    """
    pairs = means(table)
    doses = pairs[["model", "poison_rate", "epochs"]].drop_duplicates()["model"].value_counts()
    whole = pairs[pairs["model"].isin(doses.index[doses == len(DOSES)])]
    return whole if len(whole) else pairs


def lines(table: pd.DataFrame, place: str | Path | None = None) -> dict[str, pd.DataFrame]:
    """The rows behind each number of the first page, by its name."""
    pairs = means(table).query("modality != 'image' and poison_rate == @rules_second.RATE")
    llava, qwen = (pairs[pairs["model"] == model] for model in ("tiny-llava", "tiny-qwen2.5-vl"))
    thrice = llava.query("epochs == 3")
    parts = tables.learned_alone(tables.with_settings(table))
    rates = tables.success_rates(tables.usual(table), "poisoned")
    working = tables.headline_rows(rates[rates["poison_rate"] == rules_second.MANY])
    working = working.loc[working["value"] > FIRES, tables.CELL]  # what does not work cannot help being silent
    tried = tables.headline_rows(rates[rates["poison_rate"] == rules_second.MANY])[tables.CELL]
    repairs = defences.price_by_threat(defences.collect(place))
    return {
        "once": llava.query("epochs == 1").merge(thrice[["dataset", "threat", "attack"]]),  # the same pairs
        "thrice": thrice,
        "qwen_once": qwen.query("epochs == 1"),
        "qwen_thrice": qwen.query("epochs == 3"),
        "picture_stops": parts.query("condition == 'image' and value_alone > @FIRES"),
        "silent": tables.false_activation(rates).merge(working),
        "silent_tried": tables.false_activation(rates).merge(tried),
        "repairs": repairs.query("moment == 'repair' and not placebo and named != 'oracle'"),  # which is a limit
    }


def numbers(table: pd.DataFrame, rows: dict[str, pd.DataFrame]) -> dict[str, str]:
    """What the sentences of the first page quote. rows: `lines`."""
    repairs = rows["repairs"]
    clean = ((repairs["asr"] <= defences.FLOOR) & (repairs["skill"] > FIRES)).groupby(repairs["threat"])
    threats = list(clean.sum().sort_values(ascending=False, kind="stable").index)  # where most repairs do both, first
    doses = ("once", "thrice", "qwen_once", "qwen_thrice")
    return {name: words.of(rows[name]["value"] > rules_second.HIGH, "n/a") for name in doses} | {
        "picture_stops": words.by_model(rows["picture_stops"]["value_beside"] <= FIRES, rows["picture_stops"]["model"]),
        "silent": words.of(rows["silent"]["value"] <= defences.FLOOR),
        "silent_tried": words.of(rows["silent_tried"]["value"] <= defences.FLOOR),
        "repairs_threat": ", ".join(threats[:1]) or "n/a",
        "repairs": words.of(clean.get_group(threats[0])) if threats else "n/a",
        "repairs_others": words.of(clean.get_group(threats[1])) if threats[1:] else "n/a",
        "large": ", ".join(claims.of_seven_billion(table)),
    }


def markdown(place: str | Path | None = None) -> str:
    """The findings of book/intro.md as README.md has them: numbers in place of glue, links from the repository."""
    text = (paths.BOOK / "intro.md").read_text(encoding="utf-8")
    findings = re.search(r"(?<=<!-- findings -->\n).*?(?=\n<!-- end -->)", text, re.DOTALL).group().strip()
    table = store.collect(place)
    quoted = {f"first_{name}": value for name, value in numbers(table, lines(table, place)).items()}
    quoted |= {f"claims_{name}": value for name, value in claims.counts(claims.bases(table)).items()}
    findings = re.sub(r"\{glue:(?:text)?\}`(?:[^`]*::)?([^`]+)`", lambda match: quoted[match[1]], findings)
    findings = re.sub(r"\{term\}`([^`<]+?)(?: <[^`]*>)?`", r"\1", findings)
    return findings.replace("](../", "](").replace("](what_to_do", "](book/what_to_do")


if __name__ == "__main__":
    print(markdown("reference"))
