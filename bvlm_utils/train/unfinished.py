"""The state of a group that is being trained, saved now and then, so that a run that was killed goes on where it was.

One file per group: adapters, the optimiser's moments, losses, and how far it is. The numbers are those of a run that
was never stopped.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bvlm_utils.atomic import partial_name
from bvlm_utils.checks import content_key
from bvlm_utils.train.microbatches import Plan

EVERY = 60.0  # seconds between two savings
BEGINNING = "training-"  # of the files' names
APART = "\n"  # between the names of a group


@dataclass
class Progress:
    """How far a group is: what is needed to go on, beside the tensors."""

    step: int  # the next one
    tokens: int  # at once, which decides how a batch is cut
    seconds: float  # so far


class Saved:
    """The file of one group. folder: where; None, or plans without names, saves nothing."""

    def __init__(self, folder: Path | None, plans: Sequence[Plan]):
        self.names = [plan.name for plan in plans]
        wanted = folder is not None and all(self.names)
        self.file = folder / f"{BEGINNING}{_key(plans)}.safetensors" if wanted else None
        self.last = time.monotonic()

    def load(self, tensors: Mapping[str, torch.Tensor]) -> Progress | None:
        """Fill the tensors with what was saved; None, and nothing is touched, if there is nothing that fits."""
        from safetensors import SafetensorError, safe_open

        if self.file is None or not self.file.is_file():
            return None
        try:
            with safe_open(self.file, "pt") as held:
                about = held.metadata()
                found = {name: held.get_tensor(name) for name in tensors}
                progress = Progress(int(about["step"]), int(about["tokens"]), float(about["seconds"]))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            self.file.unlink(missing_ok=True)  # it was cut off: the group begins anew
            return None
        if any((found[name].shape, found[name].dtype) != (one.shape, one.dtype) for name, one in tensors.items()):
            return None
        for name, tensor in tensors.items():
            tensor.copy_(found[name])
        return progress

    def save(self, tensors: Mapping[str, torch.Tensor], progress: Progress, last: bool = False) -> None:
        """Keep the state if it is time to, or if it is the last and an earlier one is kept; a full disk costs no
        training.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        due = time.monotonic() - self.last >= EVERY or (last and self.file is not None and self.file.is_file())
        if self.file is None or not due:
            return
        about = {name: str(value) for name, value in vars(progress).items()} | {"names": APART.join(self.names)}
        partial = self.file.with_name(partial_name(self.file.name))
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial, metadata=about)
            os.replace(partial, self.file)
        except (SafetensorError, OSError) as error:
            partial.unlink(missing_ok=True)
            print(f"{self.file} could not be saved ({error}); a kill loses this group.", file=sys.stderr)
        self.last = time.monotonic()


def _key(plans: Sequence[Plan]) -> str:
    """Changes with all that decides what is trained; names stand for rows, model and data."""
    return content_key([[plan.name, plan.rank, plan.alpha, list(map(list, plan.steps)), list(plan.rates),
                         plan.weight_decay, plan.max_norm, str(plan.features.dtype)] for plan in plans])  # fmt: skip


def groups(folder: Path) -> dict[Path, list[str]]:
    """The names of the plans in each file of a folder; files that cannot be read have none."""
    from safetensors import SafetensorError, safe_open

    found = {}
    for file in sorted(folder.glob(f"{BEGINNING}*.safetensors")):
        try:
            with safe_open(file, "pt") as held:
                found[file] = held.metadata()["names"].split(APART)
        except (SafetensorError, OSError, KeyError, TypeError):
            found[file] = []
    return found
