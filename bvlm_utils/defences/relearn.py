"""Does a backdoor come back when a repaired model is tuned on?

The repaired adapter becomes part of the base, and a fresh adapter is tuned for `STEPS` steps of `BATCH` rows, of which
a few are poisoned. So it is the same tuning after every repair, whatever rank the repair left.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bvlm_utils.defences import weights
from bvlm_utils.defences.cell import BATCH, STEPS
from bvlm_utils.defences.rows import Rows
from bvlm_utils.errors import InputError
from bvlm_utils.train import grouped
from bvlm_utils.train.loop import TrainRow

if TYPE_CHECKING:
    from bvlm_utils.models.victim import Victim
    from bvlm_utils.store.cell import Cell
    from bvlm_utils.train.grouped import GroupResult


def rows(training_rows: Rows, poisoned: np.ndarray, count: int, seed: int) -> Rows:
    """The rows of one pass of `STEPS` steps: `count` of the poisoned ones, once each, and others of the training rows.

    training_rows: all; poisoned: (n,) bool, which of them are. The poisoned ones of a smaller count are the first of a
    larger one's. Where the others are too few, they come again.
    """
    poison, clean = np.flatnonzero(poisoned), np.flatnonzero(~poisoned)
    if len(poison) < count:
        raise InputError(
            f"relearn asks for {count} poisoned rows, and {len(poison)} were tuned on; ask for at most those."
        )
    draws = np.random.default_rng(np.random.SeedSequence([seed, *b"relearn"]))
    poison, clean = draws.permutation(poison)[:count], draws.permutation(clean)
    return training_rows.take([*poison, *np.resize(clean, STEPS * BATCH - count)])


def tuned_on(victim: "Victim", repaired: Any, training_rows: Rows, cell: "Cell") -> "GroupResult":
    """The repaired adapter and what a fresh one beside it learns from the rows, as one adapter.

    Rate, schedule, rank and seed are those of the cell's own training.
    """
    weights.check_numbers(victim)
    columns = zip(training_rows.prompts, training_rows.answers, training_rows.feature_rows.tolist(), strict=True)
    settings = replace(cell.train, epochs=1, batch_size=BATCH)
    job = grouped.GroupJob([TrainRow(*row) for row in columns], training_rows.features, settings, cell.seed)
    with weights.on(victim, weights.merged(victim, repaired)):
        (adapter,) = grouped.finetune_group(victim, [job])
    before, updates = weights.updates(repaired), weights.updates(adapter)
    for name, (b, a) in updates.items():
        if name in before:
            updates[name] = torch.cat([before[name][0], b], 1), torch.cat([before[name][1], a], 0)
    return weights.adapter_of(updates, adapter)
