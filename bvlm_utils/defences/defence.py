"""A defence by its name, with its settings: one call for each moment at which defences act."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bvlm_utils import paths
from bvlm_utils.attacks.declare import settings_of
from bvlm_utils.checks import brief, content_key, file_state, files_digest
from bvlm_utils.defences.declare import MOMENTS, TABLE, DefenceInfo
from bvlm_utils.defences.rows import Answered, Rows
from bvlm_utils.errors import InputError, UnknownName
from bvlm_utils.models import names as names_of_models
from bvlm_utils.registry import function

if TYPE_CHECKING:
    from bvlm_utils.models.victim import Victim
    from bvlm_utils.train.grouped import GroupResult

OURS = "bvlm_utils.defences"
COMMITTED = paths.DATA / "adapters" / "zoo"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Defence:
    """A defence with its settings; make one with `get`.

    Randomness comes from `seed` and the defence's name only. Each call that does not belong to the moment of the
    defence is an InputError, as is a missing thing that it needs.
    """

    info: DefenceInfo
    params: dict[str, Any]

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def moment(self) -> str:
        """One of `MOMENTS`."""
        return self.info.moment

    @property
    def needs(self) -> frozenset[str]:
        """What the defender must have; see `declare.NEEDS`."""
        return self.info.needs

    def scores(self, victim: "Victim", adapter: Any, rows: Rows, seed: int = 0) -> np.ndarray:
        """How suspicious each training row is: (n,) float64, higher is more suspicious."""
        scores = np.asarray(self._function("data")(victim, adapter, rows, self.params, self._draws(seed)), dtype=float)
        if scores.shape != (len(rows),):
            raise InputError(
                f"{self.name} gave scores of shape {scores.shape} for {len(rows)} rows; it gives one a row."
            )
        if np.isnan(scores).any():
            raise InputError(
                f"{self.name} gave {np.isnan(scores).sum()} of {len(rows)} rows a score that is no number."
            )
        return scores

    def at_all(self, victim: "Victim", adapter: Any, rows: Rows, seed: int = 0) -> float:
        """How much speaks for poison among the training rows at all, whichever they are; higher is more suspicious."""
        if not self.info.at_all:
            raise InputError(f"{self.name} does not say whether rows are poisoned at all.")
        draws = self._draws(seed, "at all")
        return float(function(self.info.at_all, OURS)(victim, adapter, rows, self.params, draws))

    def change(self, victim: "Victim", rows: Rows, seed: int = 0) -> Rows:
        """The rows to tune on in place of `rows`, in the same order."""
        return self._function("training")(victim, rows, self.params, self._draws(seed))

    def score(self, victim: "Victim", adapter: Any, clean: Rows | None = None, seed: int = 0) -> float:
        """How suspicious an adapter is; higher is more suspicious."""
        self._has_clean(clean)
        return float(self._function("detect")(victim, adapter, clean, self.params, self._draws(seed)))

    def repair(self, victim: "Victim", adapter: Any, clean: Rows | None = None, seed: int = 0) -> "GroupResult":
        """A repaired adapter in PEFT's format; `adapter` and the victim stay as they are."""
        self._has_clean(clean)
        return self._adapter(self._function("repair")(victim, _own(adapter), clean, self.params, self._draws(seed)))

    def repair_many(
        self, victim: "Victim", adapters: Sequence[Any], clean: Rows | None = None, seed: int = 0
    ) -> list["GroupResult"]:
        """`repair` of several adapters, at once where the defence can do that."""
        if not self.info.many:
            return [self.repair(victim, adapter, clean, seed) for adapter in adapters]
        self._has_clean(clean)
        copies = [_own(adapter) for adapter in adapters]
        repaired = function(self.info.many, OURS)(victim, copies, clean, self.params, self._draws(seed))
        return [self._adapter(adapter) for adapter in repaired]

    def answer(
        self, victim: "Victim", adapter: Any, inputs: Rows, clean: Rows | None = None, seed: int = 0
    ) -> Answered:
        """The defended answers to the inputs, how suspicious each input is, and how much was changed."""
        self._has_clean(clean)
        return self._function("inference")(victim, adapter, inputs, clean, self.params, self._draws(seed))

    def placebo(self, like: Any, *args: Any, seed: int = 0) -> Any:
        """What the placebo gives back. args: what the moment's call takes; like: what the defence itself gave back."""
        if not self.info.placebo:
            raise InputError(f"{self.name} has no placebo.")
        draws = self._draws(seed, "placebo")
        result = function(self.info.placebo, OURS)(*args, self.params, draws, like=like)
        return self._adapter(result) if self.moment == "repair" else result

    def _adapter(self, result: Any) -> "GroupResult":
        """What a repair gave back; InputError unless it is an adapter whose weights are numbers: one that says nothing
        any more would pass for one without a backdoor.
        """
        if not isinstance(getattr(result, "state", None), dict) or not hasattr(result, "config"):
            raise InputError(f"{self.name} gave back {brief(result)}; a repair gives back an adapter, a GroupResult.")
        bad = [name for name, value in result.state.items() if not value.isfinite().all()]
        if bad:
            raise InputError(
                f"{self.name} with {self.params} gave back an adapter in which {len(bad)} of {len(result.state)} "
                f"weights are no numbers any more ({min(bad)!r} for one); change its settings."
            )
        return result

    def check_loaded(self, four_bit: bool) -> None:
        """InputError where it cannot work with the base as it is to be loaded."""
        if four_bit and self.info.numbers(self.params):
            raise InputError(
                f"{self.name} works with the base's weights as numbers, and those of a base in 4 bit (four_bit) are "
                "packed; leave one of the two out."
            )

    def check_clean(self, available: int) -> None:
        """InputError where it takes more clean rows than are available."""
        counted = self.info.counted(self.params) if self.info.counted else "clean rows" in self.needs
        count = self.params.get("rows") if counted else 0
        if isinstance(count, int) and count > available:
            raise InputError(
                f"{self.name} asks for {count} clean rows, and {available} are there; give more, or lower its rows."
            )

    def check_files(self, models: Iterable[str] = ()) -> None:
        """InputError for a file or a folder that it needs and that is not named, or not there, and for an adapter that
        is of none of the `models`.
        """
        for name in self.info.files:
            value = self.params[name]
            if not value:
                raise InputError(f"{self.name} needs {self.info.params[name].wants}; set {name}.")
            if isinstance(value, str) and not paths.named(value, name).is_file():
                raise InputError(
                    f"{self.name}: {name} is {value!r}, which is no file; give {self.info.params[name].wants}."
                )
            for folder in value if isinstance(value, list) else ():
                for model in models or (None,):
                    other_adapter(folder, model)

    def digests(self) -> dict[str, str]:
        """By setting, a digest of the files that it names. Adapters of the committed zoo are left out: they stay as
        they are, and records of them were named without a digest.
        """
        by_setting = {}
        for name in self.info.files:
            value = self.params[name]
            files = [paths.named(value, name)] if isinstance(value, str) and value else []
            for folder in map(other_adapter, value if isinstance(value, list) else ()):
                if not folder.resolve().is_relative_to(COMMITTED):
                    files += [folder / file for file in ADAPTER]
            digests = [files_digest(file.parent, ((file, file_state(file)),)) for file in files if file.is_file()]
            if digests:
                by_setting[name] = content_key(digests)
        return by_setting

    def _function(self, moment: str) -> Any:
        if self.moment != moment:
            raise InputError(f"{self.name} acts at the moment {self.moment!r}, not at {moment!r}.")
        return function(self.info.function, OURS)

    def _has_clean(self, clean: Rows | None) -> None:
        if "clean rows" in self.needs and not clean:
            raise InputError(f"{self.name} needs clean rows; give some that nobody has poisoned.")

    def _draws(self, seed: int, *labels: str) -> np.random.Generator:
        words = "\x1f".join([self.name, *labels]).encode()
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *words])))


def _own(adapter: Any) -> Any:
    """A copy that a repair may change: whoever compares before and after needs the adapter as it was."""
    adapter_copy = copy.copy(adapter)
    adapter_copy.state = {name: value.clone() for name, value in adapter.state.items()}
    return adapter_copy


def names(moment: str | None = None) -> list[str]:
    """The names of all defences, or of those that act at a moment; KeyError for an unknown moment."""
    if moment is not None and moment not in MOMENTS:
        raise UnknownName(f"There is no moment {moment!r}; choose one of: {', '.join(MOMENTS)}.")
    return [name for name in TABLE.names() if moment in (None, TABLE.get(name).moment)]


def info(name: str) -> DefenceInfo:
    """The declared row of a defence; KeyError lists the names."""
    return TABLE.get(name)


def get(name: str, /, **params: Any) -> Defence:
    """The defence called `name`; params: settings that differ from `info(name).defaults`.

    An unknown name is a KeyError that lists the names; an unknown setting or a bad value is an InputError.
    """
    row = TABLE.get(name)
    settings = settings_of(f"Defence {name!r}", row.params, params)
    if problem := row.problem(settings):
        raise InputError(f"Defence {name!r}: {problem}.")
    return Defence(row, settings)


def other_adapter(name: str, model: str | None = None) -> Path:
    """An adapter's folder as it is named from here, or from the repository's top, as grids name those of the zoo.
    InputError if it says that it was tuned on another model than `model`.
    """
    exists = paths.named(name, "adapter").exists()
    folder = names_of_models.adapter_folder(name if exists else str(paths.ROOT / name))
    if model is not None:
        names_of_models.check_base(folder, model)
    return folder
