"""The tabs of the leaderboard, which bvlm_book/leaderboard.js draws from data inside the page. Free of torch."""

import html
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML, display

from bvlm_book import page, tables, words
from bvlm_utils import paths, store
from bvlm_utils.store import contributed
from bvlm_utils.store.table import headline, headline_metric

LINK = "../_static/results"  # the same folder, seen from a chapter
ABOUT = [
    "model", "dataset", "threat", "attack", "modality", "poison_rate", "n_poisoned", "seed", "negatives", "settings",
    "train_rows", "test_rows",
]  # fmt: skip
# What is read from a cell's numbers: all of the poisoned model.
MEASURED = ("success", "false_activation", "success_difference", "utility", "utility_difference")
NUMBERS = [name + end for name in MEASURED for end in ("", "_low", "_high", "_n")]
COLUMNS = [*ABOUT, "condition", "measure", *NUMBERS, "utility_unit", "status", "reason", "run_id"]
# Settings of a contributed entry that leave its attack and its threat as they are defined.
ALIKE = {"test_rows", "max_new_tokens", "four_bit", "dtype"}
# The columns of the last tab, without what the files alone have.
RAW = [name for name in COLUMNS if not name.endswith("_n") or name == "success_n"]
SCRIPT = Path(__file__).parents[1] / "leaderboard.js"
POINT = ["model", "dataset", "poison_rate", "n_poisoned", "passes", "settings", "threat", "attack", "modality", "test"]


def lines(table: pd.DataFrame) -> pd.DataFrame:
    """One row per cell of a tidy table, in `COLUMNS`; what was not measured is missing.

    success: the threat's headline (`measure`) under the condition that the attack is read from (`condition`).
    false_activation: the same measure on clean inputs; missing where the attack is read from them. *_difference:
    poisoned minus clean-tuned on the same rows (of success: by the strict test, whatever `measure` is).
    """
    rows = table.assign(measure=headline_metric(table), at=tables.read_from(table))
    ours = rows[rows["subject"] == "poisoned"]
    unit = ours.query("metric == 'utility' and condition == 'clean'").set_index("run_id")["unit"].rename("utility_unit")
    board = rows.drop(columns="condition").rename(columns={"at": "condition"}).drop_duplicates("run_id")
    board = board.join(_numbers(ours), on="run_id").join(unit, on="run_id")
    board = board[COLUMNS].astype({name: "float64" for name in [*NUMBERS, "n_poisoned"]})
    order = ["model", "threat", "attack", "poison_rate", "seed", "run_id"]
    return board.sort_values(order, ascending=[True, True, True, False, True, True], ignore_index=True)


def _numbers(rows: pd.DataFrame) -> pd.DataFrame:
    """A line per run: each of its numbers with interval and n. at: its attack's condition; measure: what success is."""
    triggered, clean = rows["condition"] == rows["at"], rows["condition"] == "clean"
    numbers = {
        "success": (rows["measure"], triggered), "false_activation": (rows["measure"], clean & ~triggered),
        "success_difference": ("asr_difference", triggered), "utility_difference": ("utility_difference", clean),
        "utility": ("utility", clean), "strict": ("asr", triggered), "published": ("asr_published", triggered),
    }  # fmt: skip
    parts = []
    for name, (metric, mask) in numbers.items():
        part = rows[(rows["metric"] == metric) & mask].drop_duplicates("run_id").set_index("run_id")
        names = [name, f"{name}_low", f"{name}_high", f"{name}_n"]
        parts.append(part[["value", "low", "high", "n"]].set_axis(names, axis=1))
    return pd.concat(parts, axis=1)


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """A line per `POINT` of usual experiments: success over seeds, beside the control's and false activation."""
    cells = tables.usual(table, but=("epochs",))
    published = pd.Series("asr_published", index=cells.index)
    tests = {"payload": headline_metric(cells), "published": published, "strict": tables.strict_metric(cells)}
    parts = [pd.DataFrame(columns=[*POINT, "value", "low", "high", "n_seeds", "control", "false_activation"])]
    for (passes, settings), group in cells.groupby(["epochs", "settings"]):
        for test, metric in tests.items():
            rows = tables.success_rates(group, metric=metric[group.index])
            rows = rows.assign(passes=passes, settings=settings, test=test)
            whole, poisoned = tables.headline_rows(rows), rows[rows["subject"] == "poisoned"]
            control, silent = whole[whole["subject"] == "control"], tables.false_activation(poisoned)
            points = whole[whole["subject"] == "poisoned"][[*POINT, "value", "low", "high", "n_seeds"]]
            for name, other in {"control": control, "false_activation": silent}.items():
                points = points.merge(other[[*POINT, "value"]].rename(columns={"value": name}), on=POINT, how="left")
            parts.append(points)
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def defended(after: pd.DataFrame, skill: pd.DataFrame) -> pd.DataFrame:
    """Means by model and defence, of placebos, and by attack. after, skill: a line per defended experiment."""
    key = ["model", "named", "moment"]
    columns = [*key, "after", "experiments", "skill", "after_placebo", "skill_placebo"]
    if after.empty:
        return pd.DataFrame(columns=columns)
    real, means = after[~after["placebo"].astype(bool)], {}
    for name, rows in {"after": after, "skill": skill}.items():
        pivoted = rows.astype({"placebo": bool}).pivot_table(index=key, columns="placebo", values="value")
        means |= {name: pivoted.get(False), f"{name}_placebo": pivoted.get(True)}
    frame = pd.DataFrame(means).assign(experiments=real.groupby(key)["run_id"].nunique())
    by_attack = real.pivot_table(index=key, columns="attack", values="value")
    return frame[frame["experiments"] > 0].join(by_attack).reset_index()[[*columns, *by_attack.columns]]


def overview(board: pd.DataFrame) -> str:
    """How many experiments there are, of what, in a sentence of Markdown."""
    if board.empty:
        return "Nothing has been measured yet: the store holds no experiment."
    measured, experiments = (board["status"] == "done").sum(), words.count(len(board), "experiment")
    counts = ", ".join(words.count(board[kind].nunique(), kind) for kind in ("model", "threat", "attack"))
    return f"{experiments} of {counts}: {measured} measured and {len(board) - measured} skipped."


def show(board: pd.DataFrame, points: pd.DataFrame, after: pd.DataFrame, others: pd.DataFrame) -> None:
    """Put the tabs on the page: `lines`, `ranked`, `defended` and `contributed_lines`; a sentence if there is none."""
    page.say(overview(board))
    if board.empty:
        return
    parts, texts = {"ranked": points, "defended": after, "contributed": others, "raw": board[RAW]}, []
    for name, frame in parts.items():
        digits = {column: 4 for column in frame.select_dtypes("float") if column != "poison_rate"}  # links select by it
        texts.append(f'"{name}":{frame.round(digits).to_json(orient="split", index=False)}')
    data = ",".join(texts).replace("<", "\\u003c")  # safe inside a page
    content = "<noscript>The tables need JavaScript; the files below do not.</noscript>"
    content += f'<script type="application/json">{{{data}}}</script>'
    script = f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>"
    display(HTML(f'<div class="bvlm-board">{content}</div>{script}'))


def contributed_lines(entries: Sequence[Mapping[str, Any]], board: pd.DataFrame) -> pd.DataFrame:
    """A line per entry (`store.contributed`), to read. An attack is read from the first of `CONDITIONS` that it has;
    ours: the mean of usual experiments of that dose, beside an entry whose attack and threat are as they are defined.
    """
    rows = pd.DataFrame([
        number | {"run_id": i, "measure": headline(entry["about"]["threat"])}
        for i, entry in enumerate(entries) for number in entry["numbers"] if number["subject"] == "poisoned"
    ])  # fmt: skip
    if rows.empty:
        return pd.DataFrame()
    rows["at"] = rows.groupby("run_id")["condition"].transform(
        lambda conditions: min(conditions, key=contributed.CONDITIONS.index)
    )
    lines = pd.DataFrame([entry["about"] for entry in entries]).astype({"n_poisoned": "float64"})  # None in all of them
    lines = lines.join(_numbers(rows))
    key = ["model", "dataset", "threat", "attack", "n_poisoned"]
    plain = board.query("settings == '' and negatives == 0 and status == 'done'")
    usual = plain[plain["train_rows"] == tables.TRAINED["train_rows"]].groupby(key)["success"].mean()
    lines = lines.join(usual.rename("ours"), on=key)
    same_settings = [ALIKE.issuperset(settings) for settings in lines["settings"]]
    lines["ours"] = lines["ours"].where(same_settings)  # another patch, another target: another experiment than ours
    return tables.readable(lines, {
        "name": "name", "by": "by", "kind": "kind", "threat": words.threat, "attack": "attack", "model": "model",
        "poisoned rows": lambda row: words.number(row["n_poisoned"], digits=0),
        **{name.replace("_", " "): lambda row, name=name: words.interval(row, name)
           for name in ("success", "strict", "published", "false_activation", "utility")},
        "ours, success": lambda row: words.number(row["ours"]), "source": "source",
    })  # fmt: skip


ABOUT_FILES = {
    "leaderboard": "a line per experiment",
    "numbers": "every number, a line each",
    "responses": "every judged answer, as the store keeps them",
    "records": "which rows of the answers are whose",
}


def offer(board: pd.DataFrame, table: pd.DataFrame, folder: str | None = None, place: str | Path | None = None) -> None:
    """Write both tables and a packed store's answers into a folder, else $BVLM_DOWNLOADS (of a build); say where."""
    built = os.environ.get(page.DOWNLOADS)
    if board.empty or not (folder or built):
        page.say("There are no files; the parameter `downloads` says where to write them.")
        return
    target, entries = paths.folder_for(folder or built), []
    target.mkdir(parents=True, exist_ok=True)
    files = [target / name for name in ("leaderboard.csv", "leaderboard.parquet", "numbers.csv.gz", "numbers.parquet")]
    for frame, (as_text, packed) in ((board, files[:2]), (table, files[2:])):  # many numbers: 21 MB of text
        frame.to_csv(as_text, index=False)
        frame.to_parquet(packed, index=False)
    answers = [store.folder(place) / f"{name}.parquet" for name in ("responses", "records")]
    files += [Path(shutil.copy(file, target)) for file in answers if file.is_file()]
    for file in files:
        name = html.escape(file.name)
        size = f"{max(1, round(file.stat().st_size / 1000)):,} kB"
        link = f"<code>{html.escape(str(file))}</code>" if folder else f'<a href="{LINK}/{name}" download>{name}</a>'
        entries.append(f"<li>{link}: {ABOUT_FILES[file.name.partition('.')[0]]} ({size})</li>")
    display(HTML(f"<ul>{''.join(entries)}</ul>"))
