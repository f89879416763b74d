"""Has every row of a cell room in its model, also with the trigger and the target? Free of torch."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from bvlm_utils import data
from bvlm_utils.attacks import Attack
from bvlm_utils.models import context_length
from bvlm_utils.store.cell import Cell

DRAWN = 6000  # rows of drawn scenes that are looked at: those that are kept drawn, and the rest is made like them

Row = Mapping[str, Any]


def check(cells: Sequence[Cell]) -> None:
    """InputError for the first row that is too long, or data that cannot be read."""
    seen, rows_of = set(), cache(_rows)
    for cell in cells:
        own_words = any((cell.attack_params, cell.threat_params))
        if ":" not in cell.dataset and not own_words:
            continue
        for split, count in (("train", cell.train_rows), ("test", None)):
            rows = rows_of(cell.dataset, split, count)
            data_key = (cell.model, cell.dataset, split, count, cell.max_new_tokens)
            if ":" in cell.dataset and data_key not in seen:
                _check(cell, split, rows, [row["prompt"] for row in rows], f"a row of {cell.dataset},")
            worded = (*data_key, cell.attack, cell.threat, repr((cell.attack_params, cell.threat_params)))
            if own_words and not cell.is_control and worded not in seen:
                own = [row for row in rows if cell.resolved_threat.eligible(row)]
                told = [row | {"answers": [cell.resolved_threat.poison(row["answers"][0], row)]} for row in own]
                _check(cell, split, told, triggered(cell.resolved_attack, own), f"a row with {cell.attack},")
            seen |= {data_key, worded}


def _rows(dataset: str, split: str, count: int | None) -> list[Row]:
    if ":" not in dataset and count is not None:
        count = min(count, DRAWN)
    return data.load(dataset, split, count).remove_columns("image").to_list()


def _check(cell: Cell, split: str, rows: Sequence[Row], prompts: Sequence[str], where: str) -> None:
    """Training rows have their answers, test rows get one."""
    if split == "test":
        return context_length.check_texts(cell.model, prompts, where, cell.max_new_tokens)
    texts = (f"{prompt} {row['answers'][0]}" for prompt, row in zip(prompts, rows, strict=True))
    return context_length.check_texts(cell.model, texts, where)


def triggered(attack: Attack, rows: Iterable[Row]) -> list[str]:
    """The prompts of rows with the words of a trigger."""
    rows = list(rows)
    return attack.apply_text([row["prompt"] for row in rows], seed=0, keys=[row["row_id"] for row in rows])
