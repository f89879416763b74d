"""One point of the defence grid: a cell of the attack grid, a defence with its settings, and a seed. Free of torch."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

from bvlm_utils import attacks, data
from bvlm_utils.checks import LARGEST_SEED, brief, check_number, check_text, content_key, once
from bvlm_utils.defences import defence as defences
from bvlm_utils.defences.defence import Defence
from bvlm_utils.errors import InputError
from bvlm_utils.store.cell import Cell

CLEAN_ROWS = 500  # at hand beyond those that were tuned on; each defence says how many of them it takes
STEPS, BATCH = 20, 32  # for which a repaired model is tuned on, see `relearn`
VERSION = 1  # raise when what is asked of a defended model, or how it is scored, changes


@dataclass(frozen=True)
class Defended:
    """A cell under a defence. InputError names a value that is wrong.

    cell: a poisoned cell; its record and its adapter come first. defence: a name of the table. params: what differs
    from its defaults. seed: of the defence's own random choices. placebo: the defence's placebo in its place. relearn:
    how many poisoned rows are among those that the repaired model is then tuned on with (`defences.relearn`); 0: it is
    not tuned on.
    """

    cell: Cell
    defence: str
    params: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    placebo: bool = False
    relearn: int = 0

    def __post_init__(self) -> None:
        check_number(self.seed, "seed", 0, LARGEST_SEED, whole=True)
        check_number(self.relearn, "relearn", 0, STEPS * BATCH, whole=True)
        if self.cell.is_control:
            raise InputError(f"{self.cell.run_id} is a control; it is defended beside the cells that it belongs to.")
        if self.placebo and not self.resolved.info.placebo:
            raise InputError(f"{self.defence} has no placebo; leave it out.")
        if self.resolved.moment != "repair" and self.relearn:
            raise InputError(f"{self.defence} is no repair, so nothing can be relearnt after it; leave relearn out.")
        self.resolved.check_loaded(self.cell.four_bit)
        if self.relearn and self.cell.four_bit:
            raise InputError("relearn tunes on beside the base's weights as numbers; leave it or four_bit out.")
        self.resolved.check_clean(CLEAN_ROWS)

    @cached_property
    def resolved(self) -> Defence:
        return defences.get(self.defence, **self.params)

    @property
    def skip_reason(self) -> str | None:
        """Why there is nothing to defend; None where there is."""
        if self.cell.skip_reason:
            return self.cell.skip_reason
        if attacks.info(self.cell.attack).keeps_labels:
            return f"{self.cell.attack} has no trigger at test time, so there is none to be silenced."
        return None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides the result, ready for JSON."""
        info = self.resolved.info
        settings = {"defence": self.defence, "defence_version": info.version, "params": dict(self.resolved.params)}
        settings |= {"relearn": self.relearn} if self.relearn else {}  # older names stay
        settings |= {"files": digests} if (digests := self.resolved.digests()) else {}
        return {"version": VERSION, "run_id": self.cell.run_id, "seed": self.seed, "placebo": self.placebo} | settings

    @cached_property
    def name(self) -> str:
        """The name of its record: the cell's, the defence's and 8 hex digits of `identity`."""
        slug = re.sub(r"[^a-z0-9.]+", "-", self.defence.lower()).strip("-.")
        suffix = "-placebo" * self.placebo + f"-relearn-{self.relearn}" * bool(self.relearn)
        return f"{self.cell.run_id}+{slug}{suffix}-s{self.seed}-{content_key(self.identity)[:8]}"


def clean_rows(dataset: str, train_rows: int) -> tuple[str, int]:
    """The split of the clean rows, and their number: beyond those that were tuned on, or, where the data end before,
    training rows as they were before poison.
    """
    count = data.beyond(dataset, train_rows)
    return ("further", CLEAN_ROWS) if count is None or count >= CLEAN_ROWS else ("train", min(CLEAN_ROWS, train_rows))


def defended(
    cells: Sequence[Cell],
    names: Sequence[str] | None = None,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    seeds: Sequence[int] = (0,),
    placebos: bool = True,
    relearn: Sequence[int] = (0,),
) -> list[Defended]:
    """All points of the given cells, defences and seeds, each with its placebo where it has one.

    names: all defences if not given, but for those that need files which `params` does not name. params: defence ->
    settings that differ from its defaults. relearn: as in `Defended`. InputError names the first value that is wrong,
    or a file that is not there.
    """
    if names is None:
        settings = params if isinstance(params, Mapping) else {}
        names = [name for name in defences.names() if not defences.info(name).files or name in settings]
    for key, values in (("defences", names), ("defence_seeds", seeds), ("relearn", relearn)):
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise InputError(f"{key} is {brief(values)}; it must be a list with one value or more.")
        once(values, key)
    for name in names:
        check_text(name, "a name in defences")
    if not isinstance(placebos, bool):
        raise InputError(f"placebos is {brief(placebos)}; it must be true or false.")
    if not isinstance(params, Mapping | None):
        raise InputError(f"defence_params is {brief(params)}; it must be a table of defences and their settings.")
    unknown = [name for name in params or {} if name not in names]
    if unknown:
        raise InputError(f"There are settings for {unknown[0]!r}, which is none of the defences: {', '.join(names)}.")
    for name, table in (params or {}).items():
        if not isinstance(table, Mapping):
            raise InputError(f"The settings of {name!r} are {brief(table)}; a table of names and values is needed.")
    points, clean_counts = [], [clean_rows(*pair)[1] for pair in {(cell.dataset, cell.train_rows) for cell in cells}]
    for name in names:
        info = defences.info(name)
        defence = defences.get(name, **dict((params or {}).get(name, {})))
        defence.check_files({cell.model for cell in cells})
        defence.check_clean(min(clean_counts, default=CLEAN_ROWS))
        for cell in cells:
            for seed, count in product(seeds, relearn):
                for placebo in (False, True) if placebos and info.placebo else (False,):
                    points.append(Defended(cell, name, dict((params or {}).get(name, {})), seed, placebo, count))
    return points
