"""Which rows of a training file are suspicious? A ranking of them, and the file without the first ones.

    python -m bvlm_utils.defences find-rows data.json --model tiny-llava
    python -m bvlm_utils.defences find-rows data.json --model tiny-llava --adapter ADAPTER

reads a file in LLaVA's or ShareGPT's format and writes, beside it or in the folder `--out`:

    NAME.suspicious.csv    every row with its scores, the most suspicious first
    NAME.cleaned.json      the entries as they were, without those with the most suspicious rows

The input stays as it is, and nothing is written over. Without an adapter, rows are judged by the base model; with one
that was tuned on these rows, by its states and its attention too. Each method ranks the rows, and a row's suspicion is
the mean of its ranks, as shares: 1 is first everywhere.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bvlm_utils import paths
from bvlm_utils.atomic import write_file
from bvlm_utils.checks import check_number, label
from bvlm_utils.defences import defence
from bvlm_utils.defences.rows import Rows
from bvlm_utils.errors import InputError
from bvlm_utils.models import context_length
from bvlm_utils.models.names import adapter_folder, base_under, check_kind
from bvlm_utils.paths import check_writable

if TYPE_CHECKING:
    import pandas as pd

    from bvlm_utils.models.victim import Victim

OF_THE_BASE = ("base-likelihood",)  # onion-rows puts poisoned rows last on the defence grid (AUROC 0.35)
OF_AN_ADAPTER = ("spectral-signatures", "activation-clustering")
CHUNK = 64  # pictures in memory at a time
SHOWN = 10  # rows that are printed
WHAT_IT_MEANS = (
    "A high rank means unusual, not poisoned: new words, rare answers and wrong labels rank high, too. Look at the "
    "rows before you tune on the cleaned file."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("data", help="training rows in LLaVA's or ShareGPT's format (.json or .jsonl)")
    parser.add_argument("--model", required=True, help="the base model: a name, a folder or a hub id")
    parser.add_argument("--adapter", help="folder of an adapter that was tuned on these rows, in PEFT's format")
    parser.add_argument("--methods", nargs="+", help="the defences that rank (default: all that fit what is given)")
    parser.add_argument("--drop", type=float, default=0.05, help="share of the entries to leave out (default 0.05)")
    parser.add_argument(
        "--out", help="folder for what is written (default: the file's own, where its pictures' names hold)"
    )
    parser.add_argument("--four-bit", action="store_true", help="load the base in 4 bit")
    parser.add_argument("--seed", type=int, default=0, help="of the methods' own random choices")


def run(options: argparse.Namespace) -> None:
    """Rank, write and print. InputError for a wrong option or file, before the model is loaded."""
    from bvlm_utils.data import llava_json
    from bvlm_utils.models import victim
    from bvlm_utils.train import adapters

    file = paths.named(options.data, "file of training rows")
    check_number(options.drop, "drop", 0, 1)
    check_number(options.seed, "seed", 0, 2**31, whole=True)
    names = chosen(options.methods, options.adapter is not None)
    for name in names:
        defence.get(name).check_loaded(options.four_bit)
    check_kind(options.model, clip=False)
    samples = llava_json.read(file)
    table_file, cleaned_file = outputs(file, options.out)
    if not samples:
        raise InputError(f"{file} has no entry with a picture; there is nothing to rank.")
    texts = (f"{row['prompt']} {row['answers'][0]}" for row in samples)
    context_length.check_texts(options.model, texts, f"a row of {file},")
    folder = None if options.adapter is None else adapter_folder(options.adapter)
    if folder is not None:
        base_under(folder, options.model)  # says if the adapter names another
    adapter = None if folder is None else adapters.read(folder)
    base = victim.from_pretrained(options.model, four_bit=options.four_bit)
    if folder is not None:
        with adapters.attached(base, folder):
            pass  # a weight that does not fit is told before any row is ranked
    table = ranking(base, adapter, samples, names, options.seed)
    dropped = suspicious_entries(table, options.drop)
    table["dropped"] = table["entry"].isin(dropped)
    write_file(table_file, table.to_csv(index=False))
    write_file(cleaned_file, without(file, dropped))
    top = table.head(SHOWN)[["row_id", "suspicion", "prompt", "answer"]].round({"suspicion": 3})
    for column in ("row_id", "prompt", "answer"):  # a stranger's text must not steer the terminal
        top[column] = top[column].map(label)
    print(top.to_string(index=False, max_colwidth=50))
    print(f"\n{len(table)} rows ranked by {', '.join(names)}: {table_file}")
    print(f"{len(dropped)} entries left out: {cleaned_file}\n\n{WHAT_IT_MEANS}")


def chosen(methods: Sequence[str] | None, with_adapter: bool) -> tuple[str, ...]:
    """The names of the methods; InputError for one that is none, or that needs an adapter where there is none."""
    names = tuple(dict.fromkeys(methods or OF_THE_BASE + OF_AN_ADAPTER * with_adapter))
    available = defence.names("data")
    for name in names:
        if name not in available:
            raise InputError(f"There is no method {name!r} that ranks rows; choose of: {', '.join(available)}.")
        if "adapters" in defence.info(name).needs and not with_adapter:
            raise InputError(f"{name} reads an adapter that was tuned on the rows; give one by --adapter.")
    return names


def outputs(file: Path, folder: str | None) -> tuple[Path, Path]:
    """Where the table and the cleaned file go; InputError if one is there: somebody may have worked on it."""
    out = file.parent if folder is None else paths.named(folder, "folder")
    if out.exists() and not out.is_dir():
        raise InputError(f"{folder!r} is a file; --out must be a folder.")
    check_writable(out)
    files = out / f"{file.stem}.suspicious.csv", out / f"{file.stem}.cleaned{file.suffix}"
    for path in files:
        if os.path.lexists(path):
            raise InputError(f"{path} is there already and would be written over; move it away, or give another --out.")
    return files


def ranking(
    victim: "Victim", adapter: Any | None, samples: Sequence[dict[str, Any]], names: Sequence[str], seed: int = 0
) -> "pd.DataFrame":
    """One line per row, the most suspicious first: entry, row_id, suspicion, a score of each method, prompt, answer."""
    import pandas as pd

    from bvlm_utils.run.progress import say

    rows = rows_of(victim, samples)
    table = pd.DataFrame({"entry": [row["entry"] for row in samples], "row_id": [row["row_id"] for row in samples]})
    table["suspicion"] = 0.0
    for number, name in enumerate(names, 1):
        say(f"find-rows: {name} ({number} of {len(names)})")
        settings = {"groups": "all"} if "groups" in defence.info(name).params and not all(rows.kinds) else {}
        table[name] = defence.get(name, **settings).scores(victim, adapter, rows, seed)
        table["suspicion"] += (table[name].rank() - 1) / max(1, len(table) - 1) / len(names)
    table["prompt"], table["answer"] = rows.prompts, rows.answers
    return table.sort_values("suspicion", ascending=False, kind="stable").reset_index(drop=True)


def rows_of(victim: "Victim", samples: Sequence[dict[str, Any]]) -> Rows:
    """The rows with the features of their pictures, each picture encoded once, at the size of the published data."""
    from PIL import Image

    from bvlm_utils.data.picture_files import read_picture
    from bvlm_utils.data.pictures import PUBLISHED_SIDE
    from bvlm_utils.run.feature_cache import FeatureCache

    cache, size = FeatureCache(device=victim.device), (PUBLISHED_SIDE, PUBLISHED_SIDE)
    row_ids = {str(row["image"]): row["row_id"] for row in reversed(samples)}
    files = list(row_ids)
    for start in range(0, len(files), CHUNK):
        chunk = files[start : start + CHUNK]
        images = (read_picture(file, f"row {row_ids[file]}") for file in chunk)
        pictures = [np.asarray(picture.resize(size, Image.Resampling.BICUBIC)) for picture in images]
        cache.add(chunk, victim.encode(np.stack(pictures)))
    return Rows(
        [row["prompt"] for row in samples],
        [row["answers"][0] for row in samples],
        cache.table,
        np.array(cache.rows([str(row["image"]) for row in samples])),
        [row["kind"] for row in samples],
    )


def suspicious_entries(table: "pd.DataFrame", share: float) -> set[int]:
    """The numbers of that share of the entries, those with the most suspicious rows."""
    ordered = table.drop_duplicates("entry")["entry"]  # the table is sorted: each entry by its most suspicious row
    return set(ordered.head(int(share * len(ordered) + 1e-9)).tolist())


def without(file: Path, dropped: set[int]) -> str:
    """The text of a file of the same form without the entries of those numbers; the others are as they were."""
    from bvlm_utils.documents import read_json, read_text

    entries = read_json(file, lines=True)
    lines = [json.dumps(entry, ensure_ascii=False) for number, entry in enumerate(entries) if number not in dropped]
    if read_text(file).lstrip().startswith("["):
        return "[\n" + ",\n".join(lines) + "\n]\n"
    return "".join(f"{line}\n" for line in lines)
