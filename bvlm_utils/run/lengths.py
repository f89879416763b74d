"""Has every row of a cell room in its model, also with the trigger and the target? Asked before anything runs.

Free of torch. What the model itself counts is checked once more where ids are made (`Victim.prompt_ids`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bvlm_utils import data
from bvlm_utils.attacks import Attack
from bvlm_utils.models import context_length
from bvlm_utils.store.cell import Cell

DRAWN = 6000  # rows of drawn scenes that are looked at: those that are kept drawn, and the rest is made like them

Row = Mapping[str, Any]


def check(cells: Sequence[Cell]) -> None:
    """InputError for the first row that is too long, or data that cannot be read."""
    rows: dict[tuple, list[Row]] = {}
    seen = set()
    for cell in cells:
        if ":" not in cell.dataset and not any(_settings(cell)):
            continue
        for split, count in (("train", cell.train_rows), ("test", None)):
            key = (cell.dataset, split, count)
            if key not in rows:
                rows[key] = _rows(*key)
            if ":" in cell.dataset and (cell.model, key, cell.max_new_tokens) not in seen:
                seen.add((cell.model, key, cell.max_new_tokens))
                _check(cell, split, rows[key], [row["prompt"] for row in rows[key]], f"a row of {cell.dataset},")
            worded = (cell.model, key, cell.max_new_tokens, cell.attack, cell.threat, repr(_settings(cell)))
            if any(_settings(cell)) and not cell.is_control and worded not in seen:
                seen.add(worded)
                own = [row for row in rows[key] if cell.resolved_threat.eligible(row)]
                told = [row | {"answers": [cell.resolved_threat.poison(row["answers"][0], row)]} for row in own]
                _check(cell, split, told, triggered(cell.resolved_attack, own), f"a row with {cell.attack},")


def _settings(cell: Cell) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return cell.attack_params, cell.threat_params


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
