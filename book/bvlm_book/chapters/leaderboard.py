"""Which cells are there, and what came of each? One line per cell, to sort, to filter and to take away.

The leaderboard chapter calls `lines` for the table, `show` to put it on the page and `offer` for the files;
`contributed_lines` are what others have measured. Nothing is
pooled: seeds stay apart, skipped cells stay in with their reason. DataTables comes with `itables` and is written into
the page, so that sorting asks no other host for anything. Free of torch.
"""

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML, display

from bvlm_book import page as book_page
from bvlm_book import tables, words
from bvlm_book.tables import POINT
from bvlm_book.words import count
from bvlm_utils import attacks, paths
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
# What the page shows, and how it is called there; intervals stand behind their values.
SHOWN = {
    "threat": "threat",
    "attack": "attack",
    "model": "model",
    "seed": "seed",
    "settings": "settings",
    "poison_rate": "poison rate",
    "n_poisoned": "poisoned rows",
    "success": "success",
    "false_activation": "false activation",
    "success_difference": "strict success minus clean-tuned",
    "utility": "utility",
    "utility_difference": "utility minus clean-tuned",
    "dataset": "data",
    "modality": "modality",
    "negatives": "negatives",
    "success_n": "judged inputs",
    "train_rows": "training rows",
    "status": "status",
    "run_id": "cell",
}
# Columns with few values, which are chosen from a list; in the others one searches.
CHOSEN = (
    "model", "threat", "attack", "modality", "poison_rate", "seed", "dataset", "negatives", "settings",
    "status",
)  # fmt: skip
DIGITS = {"utility": 3, "utility_difference": 3}
WHOLE = ("n_poisoned", "seed", "success_n", "train_rows")


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


# ---------------------------------------------------------------- the page


def overview(board: pd.DataFrame) -> str:
    """How many cells there are, of what, in a sentence or two of Markdown."""
    if board.empty:
        return "Nothing has been measured yet: the store holds no cell."
    done = board[board["status"] == "done"]
    seeds = done.groupby(POINT)["seed"].nunique()
    counts = ", ".join(count(board[kind].nunique(), kind) for kind in ("model", "threat", "attack"))
    return (
        f"{count(len(board), 'cell')}, {len(done)} measured and {len(board) - len(done)} skipped: {counts}. "
        f"Settings measured with more than one seed: {int((seeds > 1).sum())} of {len(seeds)}."
    )


def show(board: pd.DataFrame) -> None:
    """Put the table on the page, to be sorted and filtered; the sentence of `overview` if there is none."""
    if board.empty:
        book_page.say(overview(board))
        return
    import itables

    frame, settings = _for_the_page(board)
    itables.init_notebook_mode(all_interactive=False, connected=False)
    page = itables.to_html_datatable(frame, connected=False, display_logo_when_loading=False, **settings)
    display(HTML(f'<div class="bvlm-leaderboard">{page}</div>'))


def _for_the_page(board: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The shown columns, then the bounds (hidden: values' columns write them), and the settings."""
    frame = board[list(SHOWN)].rename(columns=SHOWN)
    skipped = board["status"] == "skipped"
    frame["status"] = np.where(skipped, "skipped: " + board["reason"].astype(str), board["status"])
    frame["threat"] = frame["threat"].str.replace("_", " ")
    bounds = [name + part for name in MEASURED for part in ("_low", "_high")]
    names = list(SHOWN)

    def written(columns: Sequence[str], text: str) -> dict[str, Any]:
        return {"targets": [names.index(name) for name in columns], "type": "num", "render": _script(text)}

    definitions: list[dict[str, Any]] = [
        {"targets": list(range(len(SHOWN), len(SHOWN) + len(bounds))), "visible": False, "searchable": False},
        {"targets": [names.index("status")], "className": "bvlm-long"},
        written(["poison_rate"], "`${+(100 * value).toPrecision(6)} %`"),
        written(WHOLE, "value.toFixed(0)"),
    ]
    for name in MEASURED:
        at, digits = len(SHOWN) + bounds.index(f"{name}_low"), DIGITS.get(name, 2)
        shown = f"value.toFixed({digits})", f"row[{at}].toFixed({digits})", f"row[{at + 1}].toFixed({digits})"
        definitions.append(written([name], "`${%s} [${%s}, ${%s}]`" % shown))  # noqa: UP031, JavaScript has braces
    lists = [names.index(name) for name in CHOSEN]
    others = [at for at in range(len(SHOWN)) if at not in lists]
    definitions += [
        {"targets": lists, "columnControl": ["order", ["searchList"]]},
        {"targets": others, "columnControl": ["order", ["search"]]},
    ]
    settings = {
        "columnDefs": definitions,
        "order": [[names.index("success"), "desc"]],
        "ordering": {"indicators": False, "handler": True},
        "scrollX": True,
        "pageLength": 25,
        "lengthMenu": [10, 25, 100, {"label": "all", "value": -1}],
        "maxBytes": 0,
        "classes": "display compact",
        "style": "width:100%;caption-side:top",
        "showIndex": False,
        "format_floats_in_python": False,
    }
    return pd.concat([frame, board[bounds]], axis=1), settings


def _script(text: str) -> Any:
    """How a number is written; it is sorted as the number that it is, and a missing one reads n/a."""
    from itables import JavascriptFunction

    return JavascriptFunction(
        "function (value, type, row) { "
        "if (type === 'sort' || type === 'type') return value; "
        f"return value === null || Number.isNaN(value) ? 'n/a' : {text}; }}"
    )


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


def save(board: pd.DataFrame, table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the leaderboard and the tidy table as CSV and Parquet; missing values are empty fields."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, frame in (("leaderboard", board), ("numbers", table)):
        files += [folder / f"{name}.csv", folder / f"{name}.parquet"]
        frame.to_csv(files[-2], index=False)
        frame.to_parquet(files[-1], index=False)
    return files


def offer(board: pd.DataFrame, table: pd.DataFrame, folder: str | None = None) -> None:
    """Write the files and say where they are: links in the book, paths elsewhere.

    folder: where to; None means $BVLM_DOWNLOADS, which a build of the book sets, and nothing is written without it.
    """
    if board.empty:
        book_page.say("There is nothing to take away yet.")
        return
    built = os.environ.get(VARIABLE)
    if not folder and not built:
        book_page.say(
            "In the built book, four files are linked here. Elsewhere they are written where the parameter "
            "`downloads` says."
        )
        return
    what = {"leaderboard": "the table above, a line per cell", "numbers": "every number, a line each"}
    entries = []
    for file in save(board, table, paths.named(folder or built, "download")):
        name = html.escape(file.name)
        size = f"{max(1, round(file.stat().st_size / 1000)):,} kB"
        shown = f"<code>{html.escape(str(file))}</code>" if folder else f'<a href="{LINK}/{name}" download>{name}</a>'
        entries.append(f"<li>{shown}: {what[file.stem]} ({size})</li>")
    display(HTML(f"<ul>{''.join(entries)}</ul>"))
