"""The state of a group that is being trained, saved now and then, so that a run that was killed goes on where it was.

One file per group: adapters, the optimiser's moments, losses, and how far it is. The numbers are those of a run that
was never stopped.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bvlm_utils.atomic import written
from bvlm_utils.checks import content_key

EVERY = 60.0  # seconds between two savings
BEGINNING = "training-"  # of the files' names
APART = "\n"  # between the names of a group
DAMAGED = (SafetensorError, OSError, KeyError, TypeError, ValueError)  # what a file raises that was cut off or changed


@dataclass
class Progress:
    """How far a group is: what is needed to go on, beside the tensors."""

    step: int  # the next one
    tokens: int  # at once, which decides how a batch is cut
    seconds: float  # so far


class Saved:
    """The file of one group of cells; tensors have a row for each. folder: where it lies; with None, or with a cell
    that has no name, nothing is saved. keys: one per cell, a digest of all that decides its training.
    """

    def __init__(self, folder: Path | None, names: Sequence[str], keys: Sequence[str]):
        self.names, self.keys = names, keys
        self.folder = folder if all(names) else None
        self.file = self.folder and self.folder / f"{BEGINNING}{content_key(list(keys))}.safetensors"
        self.last = time.monotonic()

    def load(self, tensors: Mapping[str, torch.Tensor]) -> Progress | None:
        """Fill the tensors from a saved group that has all these cells; None, and nothing is touched, if none has."""
        states = states_in(self.folder) if self.folder else {}
        for file, state in sorted(states.items(), key=lambda pair: -pair[1].progress.step):
            if not {*self.keys} <= {*state.keys}:
                continue
            rows = torch.tensor([state.keys.index(key) for key in self.keys])
            try:
                with safe_open(file, "pt") as tensor_file:
                    pairs = [(tensor, tensor_file.get_tensor(name)[rows]) for name, tensor in tensors.items()]
            except DAMAGED:
                continue
            if all((value.shape, value.dtype) == (tensor.shape, tensor.dtype) for tensor, value in pairs):
                for tensor, value in pairs:
                    tensor.copy_(value)
                return state.progress
        return None

    def save(self, tensors: Mapping[str, torch.Tensor], progress: Progress, last: bool = False) -> None:
        """Keep the state if it is time to, or the last in an earlier one's place; a full disk costs no training."""
        due = time.monotonic() - self.last >= EVERY or (last and self.file is not None and self.file.is_file())
        if self.file is None or not due:
            return
        metadata = {name: str(value) for name, value in vars(progress).items()}
        metadata |= {"names": APART.join(self.names), "keys": APART.join(self.keys)}
        values = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with written(self.file) as partial:
                save_file(values, partial, metadata=metadata)
        except (SafetensorError, OSError) as error:
            print(f"{self.file} could not be saved ({error}); a kill loses this group.", file=sys.stderr)
        self.last = time.monotonic()


@dataclass(frozen=True)
class State:
    """What a file says of itself; names and keys as in `Saved`."""

    names: list[str]
    keys: list[str]
    progress: Progress


def states_in(folder: Path) -> dict[Path, State]:
    """The files of a folder; those that were cut off are removed."""
    states = {}
    for file in sorted(folder.glob(f"{BEGINNING}*.safetensors")):
        try:
            with safe_open(file, "pt") as tensor_file:
                metadata = tensor_file.metadata()
            progress = Progress(int(metadata["step"]), int(metadata["tokens"]), float(metadata["seconds"]))
            states[file] = State(metadata["names"].split(APART), metadata["keys"].split(APART), progress)
        except DAMAGED:
            file.unlink(missing_ok=True)
    return states
