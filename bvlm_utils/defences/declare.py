"""What a defence declares: when it acts, what the defender must have, its settings, and the table of all defences.

Nothing here imports torch: a row names the function that does the work, and that function's module is imported when the
defence is first used.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bvlm_utils.attacks.declare import Param
from bvlm_utils.registry import Registry, check_whose

# When a defence acts, and what its function takes and gives back. `rows`, `clean` and `inputs` are
# `defences.rows.Rows`; `adapter` has a PEFT state dict `.state` and a peft.LoraConfig `.config`
# (`train.adapters.GroupResult`); `draws` is a numpy Generator; `settings` are the defence's
# parameters by name.
MOMENTS = {
    "data": "(victim, adapter, rows, settings, draws) -> (n,) float64, higher: more suspicious",
    "training": "(victim, rows, settings, draws) -> Rows that are tuned on in their place, as many or fewer",
    "detect": "(victim, adapter, clean, settings, draws) -> float, higher: more suspicious",
    "repair": "(victim, adapter, clean, settings, draws) -> GroupResult, an adapter in PEFT's format",
    "inference": "(victim, adapter, inputs, clean, settings, draws) -> defences.rows.Answered",
}
NEEDS = ("training rows", "clean rows", "base", "adapters", "attention")


@dataclass(frozen=True)
class DefenceInfo:
    """One row of the table.

    moment: one of `MOMENTS`. needs: what the defender must have, of `NEEDS`.
    source: the paper, with section or equation, and what differs here.
    version: raised when what the defence does changes; results of older versions are then not reused.
    function: "module:function", of this package or of any other that Python finds; see `MOMENTS`.
    placebo: "module:function" of something as strong that knows nothing (as many random rows, channels, tokens, steps,
        or an update of the same norm). It takes what `function` takes, and the defence's own result as `like`.
    many: of a repair that does several adapters at once with the same results, "module:function"; it takes a list of
        adapters and gives a list back.
    at_all: of a defence that scores training rows, "module:function" of `(victim, adapter, rows, settings, draws) ->
        float`: is there poison among the rows at all? Higher is more suspicious.
    flags_above: of a defence that scores training rows, the score above which its paper takes a row for poisoned.
    scored_by: of a training that drops rows, the setting that names whose scores they get: a defence that searches
        rows, or "truth".
    numbers: with such settings, does it work with the base's weights as numbers, which a base in 4 bit has not?
    counted: with such settings, does it take as many clean rows as its setting `rows` says? If not given, one that
        needs clean rows does.
    problem: what is wrong with settings that are each good alone, in words; None if nothing is.
    """

    name: str
    moment: str
    needs: frozenset[str]
    source: str
    summary: str
    version: int
    function: str
    placebo: str = ""
    many: str = ""
    at_all: str = ""
    flags_above: float | None = None
    scored_by: str = ""
    params: Mapping[str, Param] = field(default_factory=dict)
    numbers: Callable[[Mapping[str, Any]], bool] = lambda settings: False
    counted: Callable[[Mapping[str, Any]], bool] | None = None
    problem: Callable[[Mapping[str, Any]], str | None] = lambda settings: None

    @property
    def files(self) -> list[str]:
        """The parameters that name files or folders, without which there is nothing to do."""
        return [name for name, spec in self.params.items() if spec.file]

    @property
    def defaults(self) -> dict[str, Any]:
        """The default value of every parameter, by name."""
        return {name: spec.default for name, spec in self.params.items()}


def always(settings: Mapping[str, Any]) -> bool:
    """Whatever the settings are."""
    return True


TABLE: Registry[DefenceInfo] = Registry("defence")


def declare(**fields: Any) -> DefenceInfo:
    """Add a defence; fields as in `DefenceInfo`, `needs` as any collection.

    ValueError for a moment or a need that is not known, or a name that is taken.
    """
    row = DefenceInfo(**{**fields, "needs": frozenset(fields["needs"])})
    if row.moment not in MOMENTS:
        raise ValueError(f"Defence {row.name!r} has the moment {row.moment!r}; choose one of: {', '.join(MOMENTS)}.")
    if not row.needs <= set(NEEDS):
        raise ValueError(f"Defence {row.name!r} needs {sorted(row.needs - set(NEEDS))}; known are: {', '.join(NEEDS)}.")
    check_whose((row.function, row.placebo, row.many, row.at_all), __package__, sys._getframe(1).f_globals["__name__"])
    return TABLE.add(row.name, row)
