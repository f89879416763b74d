"""How many images a second do the triggers paint? `poisoning.py`'s three ways, at both sides."""

import poisoning

from bvlm_utils import paths
from gpu_steps.common import Run

SURROGATE = str(paths.MODELS / "tiny-clip")


def run(run: Run) -> None:
    count = run.size(4, 16)
    for side in run.size((96,), (336, 96)):
        clean = poisoning.pictures(count, side)
        for name in poisoning.ATTACKS:
            run.do(f"{name}, {side} px", lambda name=name, clean=clean: rates(run, name, clean), needs=2)


def rates(run: Run, name: str, clean) -> dict:
    """Images per second of each way, and how many levels of 255 they are apart."""
    batch, times = run.size((8, 1), (256, 64))
    found = poisoning.compare(name, clean, SURROGATE, run.device, 1, batch, times)
    return found | {"times_loop": found["batched"] / found["loop"], "times_files": found["batched"] / found["files"]}
