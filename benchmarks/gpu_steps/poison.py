"""How many images a second do the triggers paint? `poisoning.py`'s three ways, at both sides."""

import poisoning

from bvlm_utils import paths
from gpu_steps.common import Run

SURROGATE = str(paths.MODELS / "tiny-clip")
SLOW = ("MABA",)  # Grad-CAM of every picture
# These have BadNets-I's noise, or patches of their own that `attacks.image.paste` lays where BadNets-I's lies.
PASTED = ("BadNets-MM", "Dual-Key", "VL-Trojan")


def run(run: Run) -> None:
    """Every cheap trigger at the study's own side first, the slow one last."""
    count, sides = run.size(4, 16), run.size((96,), (96, 336))
    clean = {side: poisoning.pictures(count, side) for side in sides}
    quick = [name for name in poisoning.ATTACKS if name not in SLOW]
    for name, side in [(name, side) for names in (quick, SLOW) for side in sides for name in names]:
        run.do(f"{name}, {side} px", lambda name=name, side=side: rates(run, name, clean[side]), needs=2)
        if name == "BadNets-I" and side == sides[0]:
            run.do("pasted by the same code as BadNets-I", lambda: {"attacks": ", ".join(PASTED)})


def rates(run: Run, name: str, clean) -> dict:
    """Images per second of each way, and how many levels of 255 they are apart."""
    batch, times = run.size((8, 1), (256, 64))
    found = poisoning.compare(name, clean, SURROGATE, run.device, 1, batch, times)
    return found | {"times_loop": found["batched"] / found["loop"], "times_files": found["batched"] / found["files"]}
