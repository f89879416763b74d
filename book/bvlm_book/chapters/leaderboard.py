"""The leaderboard: attacks and defences ranked, what others have measured, and every experiment in one line.

The chapter calls `ranked`, `defended`, `contributed_lines` and `lines` for the numbers, `show` to put them on the page
as four tabs, and `offer` for the files. The tables are drawn by bvlm_book/leaderboard.js, which is written into the
page: nothing is fetched, so that a page opened as a file sorts and filters as well. Free of torch.
"""

import html
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML, display

from bvlm_book import page as book_page
from bvlm_book import tables, words
from bvlm_book.words import count
from bvlm_utils import attacks, paths, store
from bvlm_utils.store.table import headline, headline_metric

VARIABLE = "BVLM_DOWNLOADS"  # the folder of the built book that the files go to; the book's extension sets it
LINK = "../_static/results"  # the same folder, seen from a chapter
ABOUT = [
    "model", "dataset", "threat", "attack", "modality", "poison_rate", "n_poisoned", "seed", "negatives",
    "settings",
    "train_rows", "test_rows",
]  # fmt: skip
# What is read from a cell's numbers: all of the poisoned model.
MEASURED = ("success", "false_activation", "success_difference", "utility", "utility_difference")
COLUMNS = [
    *ABOUT, "condition", "measure",
    *(name + part for name in MEASURED for part in ("", "_low", "_high", "_n")),
    "utility_unit", "status", "reason", "run_id",
]  # fmt: skip
# The columns of the last tab, without what the files alone have.
RAW = [name for name in COLUMNS if not name.endswith("_n") or name == "success_n"]
SCRIPT = Path(__file__).parents[1] / "leaderboard.js"
POINT = ["model", "dataset", "poison_rate", "n_poisoned", "passes", "settings", "threat", "attack", "modality", "test"]


def lines(table: pd.DataFrame) -> pd.DataFrame:
    """One row per cell of a tidy table (`store.collect`), in `COLUMNS`.

    success: the threat's headline (`measure`) under the condition that the attack is read from (`condition`).
    false_activation: the same measure on clean inputs; missing where the attack is read from them. *_difference:
    poisoned minus clean-tuned on the same rows (of success: by the strict test, whatever `measure` is). *_low, *_high:
    95 % interval; *_n: rows. What was not measured is missing, never 0; `reason` says why a cell was skipped.
    """
    # Plain dictionaries: frames of single cells would take most of the time.
    cells: dict[str, list[dict[str, Any]]] = {}
    for row in table.assign(headline=headline_metric(table)).to_dict("records"):
        cells.setdefault(row["run_id"], []).append(row)
    found = [_line(rows) for rows in cells.values()]
    board = pd.DataFrame(found, columns=COLUMNS)
    numbers = [name + part for name in MEASURED for part in ("", "_low", "_high", "_n")]
    board = board.astype({name: "float64" for name in [*numbers, "n_poisoned"]})
    order = ["model", "threat", "attack", "poison_rate", "seed", "run_id"]
    return board.sort_values(order, ascending=[True, True, True, False, True, True], ignore_index=True)


def _line(rows: list[dict[str, Any]]) -> dict[str, Any]:
    first = rows[0]
    condition, measure = attacks.info(first["attack"]).headline, first["headline"]
    ours = {(row["metric"], row["condition"]): row for row in rows if row["subject"] == "poisoned"}
    found = {
        "success": (measure, condition),
        "false_activation": (measure, "clean") if condition != "clean" else None,
        "success_difference": ("asr_difference", condition),
        "utility": ("utility", "clean"),
        "utility_difference": ("utility_difference", "clean"),
    }
    line = {name: first[name] for name in [*ABOUT, "status", "reason", "run_id"]}
    line |= {"condition": condition, "measure": measure, "utility_unit": ours.get(found["utility"], {}).get("unit")}
    for name, key in found.items():
        if key in ours:
            parts = {"": "value", "_low": "low", "_high": "high", "_n": "n"}
            line |= {name + part: ours[key][column] for part, column in parts.items()}
    return line


# ---------------------------------------------------------------- ranked


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """A line per model, dose, passes, threat, attack and test of success (`POINT`), of experiments with usual settings.

    value, low, high: success under the attack's own condition, over n_seeds runs; control: the same test of the
    clean-tuned model; false_activation: the same test without the trigger, missing where there is no trigger.
    """
    cells = tables.usual(table, but=("epochs",))
    tests = {
        "payload": headline_metric(cells),
        "published": pd.Series("asr_published", index=cells.index),
        "strict": tables.strict_metric(cells),
    }
    parts = [pd.DataFrame(columns=[*POINT, "value", "low", "high", "n_seeds", "control", "false_activation"])]
    for (passes, settings), own in cells.groupby(["epochs", "settings"]):
        for test, metric in tests.items():
            rows = tables.success_rates(own, metric=metric[own.index])
            parts.append(_with_controls(rows.assign(passes=passes, settings=settings, test=test)))
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def _with_controls(rows: pd.DataFrame) -> pd.DataFrame:
    whole, poisoned = tables.headline_rows(rows), rows[rows["subject"] == "poisoned"]
    found = whole[whole["subject"] == "poisoned"][[*POINT, "value", "low", "high", "n_seeds"]]
    beside = {"control": whole[whole["subject"] == "control"], "false_activation": tables.false_activation(poisoned)}
    for name, other in beside.items():
        found = found.merge(other[[*POINT, "value"]].rename(columns={"value": name}), on=POINT, how="left")
    return found


def defended(after: pd.DataFrame, skill: pd.DataFrame) -> pd.DataFrame:
    """A line per model and defence (column `named`), over the experiments whose backdoor worked before.

    after, skill: a line per defended experiment with `value`: success with the trigger, and the share of a harmless
    skill that is kept. `experiments` counts them, `..._placebo` is the placebo's, and each attack has a column.
    """
    key = ["model", "named", "moment"]
    columns = [*key, "after", "experiments", "skill", "after_placebo", "skill_placebo"]
    if after.empty:
        return pd.DataFrame(columns=columns)
    own, placebo = (
        [rows[rows["placebo"].astype(bool) == is_one] for rows in (after, skill)] for is_one in (False, True)
    )
    means = {"after": own[0], "skill": own[1], "after_placebo": placebo[0], "skill_placebo": placebo[1]}
    made = pd.DataFrame({name: rows.groupby(key)["value"].mean() for name, rows in means.items()})
    made["experiments"] = own[0].groupby(key)["run_id"].nunique()
    by_attack = own[0].pivot_table(index=key, columns="attack", values="value")
    return made[made["experiments"] > 0].join(by_attack).reset_index()[[*columns, *by_attack.columns]]


# ---------------------------------------------------------------- the page


def overview(board: pd.DataFrame) -> str:
    """How many experiments there are, of what, in a sentence of Markdown."""
    if board.empty:
        return "Nothing has been measured yet: the store holds no experiment."
    done = board[board["status"] == "done"]
    counts = ", ".join(count(board[kind].nunique(), kind) for kind in ("model", "threat", "attack"))
    return f"{count(len(board), 'experiment')} of {counts}: {len(done)} measured and {len(board) - len(done)} skipped."


def show(board: pd.DataFrame, points: pd.DataFrame, after: pd.DataFrame, others: pd.DataFrame) -> None:
    """Put the tabs on the page: `lines`, `ranked`, `defended` and `contributed_lines`; a sentence if there is none."""
    book_page.say(overview(board))
    if board.empty:
        return
    parts = {"ranked": points, "defended": after, "contributed": others, "raw": board[RAW]}
    data = ",".join(f"{json.dumps(name)}:{_as_json(frame)}" for name, frame in parts.items())
    display(
        HTML(
            '<div class="bvlm-board"><noscript>The tables need JavaScript; the files below do not.</noscript>'
            f'<script type="application/json">{{{data}}}</script></div>'
            f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>"
        )
    )


def _as_json(frame: pd.DataFrame) -> str:
    """Columns and data, compact; safe inside a page."""
    return frame.to_json(orient="split", index=False, double_precision=4).replace("<", "\\u003c")


# ---------------------------------------------------------------- what others have measured

TRIGGERED = ("both", "text", "image", "clean")  # an attack is read from the first of these that it has


def contributed_lines(entries: Sequence[Mapping[str, Any]], board: pd.DataFrame) -> pd.DataFrame:
    """A line per entry (`store.contributed`), to read; ours beside it: the mean over our seeds of the same model, data,
    threat and attack with as many poisoned rows and usual settings.
    """
    return tables.readable(pd.DataFrame([_contributed(entry, board) for entry in entries]), {
        "name": "name", "by": "by", "kind": "kind", "threat": words.threat, "attack": "attack", "model": "model",
        "poisoned rows": lambda r: words.number(r["n_poisoned"], digits=0),
        "success": lambda r: words.interval(r, "success"),
        "strict": lambda r: words.interval(r, "strict"), "published": lambda r: words.interval(r, "published"),
        "false activation": lambda r: words.interval(r, "false_activation"),
        "utility": lambda r: words.interval(r, "utility"), "ours, success": lambda r: words.number(r["ours"]),
        "source": "source",
    })  # fmt: skip


def _contributed(entry: Mapping[str, Any], board: pd.DataFrame) -> dict[str, Any]:
    about = entry["about"]
    own = {(row["metric"], row["condition"]): row for row in entry["numbers"] if row["subject"] == "poisoned"}
    condition = next(name for name in TRIGGERED if any(name == at for _, at in own))
    metric = headline(about["threat"])
    wanted = {
        "success": (metric, condition),
        "strict": ("asr", condition),
        "published": ("asr_published", condition),
        "false_activation": (metric, "clean") if condition != "clean" else None,
        "utility": ("utility", "clean"),
    }
    line = dict(about)
    for name, key in wanted.items():
        row = own.get(key, {})
        line |= {name + part: row.get(column) for part, column in (("", "value"), ("_low", "low"), ("_high", "high"))}
    same = (board["settings"] == "") & (board["status"] == "done")
    for name in ("model", "dataset", "threat", "attack", "n_poisoned"):
        same &= board[name] == about[name]
    return line | {"ours": board.loc[same, "success"].mean()}


# ---------------------------------------------------------------- files

ABOUT_FILES = {
    "leaderboard": "a line per experiment",
    "numbers": "every number, a line each",
    "responses": "every judged answer, as the store keeps them",
    "records": "which rows of the answers are whose",
}


def save(board: pd.DataFrame, table: pd.DataFrame, folder: Path, place: str | Path | None = None) -> list[Path]:
    """Write leaderboard and tidy table as CSV and Parquet, and the answers of a packed store; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, frame, packed in (("leaderboard", board, ""), ("numbers", table, ".gz")):  # many numbers: 21 MB of text
        files += [folder / f"{name}.csv{packed}", folder / f"{name}.parquet"]
        frame.to_csv(files[-2], index=False)
        frame.to_parquet(files[-1], index=False)
    answers = [store.folder(place) / f"{name}.parquet" for name in ("responses", "records")]
    return [*files, *(Path(shutil.copy(file, folder)) for file in answers if file.is_file())]


def offer(board: pd.DataFrame, table: pd.DataFrame, folder: str | None = None, place: str | Path | None = None) -> None:
    """Write the files and say where they are: links in the book, paths elsewhere.

    folder: where to; None means $BVLM_DOWNLOADS, which a build of the book sets, and nothing is written without it.
    """
    built = os.environ.get(VARIABLE)
    if board.empty or not (folder or built):
        book_page.say("There are no files; the parameter `downloads` says where to write them.")
        return
    entries = []
    for file in save(board, table, paths.named(folder or built, "download"), place):
        name = html.escape(file.name)
        size = f"{max(1, round(file.stat().st_size / 1000)):,} kB"
        shown = f"<code>{html.escape(str(file))}</code>" if folder else f'<a href="{LINK}/{name}" download>{name}</a>'
        entries.append(f"<li>{shown}: {ABOUT_FILES[file.name.partition('.')[0]]} ({size})</li>")
    display(HTML(f"<ul>{''.join(entries)}</ul>"))
