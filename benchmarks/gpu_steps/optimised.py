"""How fast are triggers that have to be computed? Shadowcast's thousand steps, and the two optimised patches."""

import types

import poisoning
import torch

from bvlm_utils import attacks, paths
from bvlm_utils.attacks import optimised
from bvlm_utils.attacks.attack import params_of
from bvlm_utils.draws import Draws
from gpu_steps.common import Run, once, own_cache

SURROGATE = str(paths.MODELS / "tiny-clip")


def run(run: Run) -> None:
    run.do("Shadowcast", lambda: shadowcast(run))
    with own_cache(rows=run.size(64, None)):
        for name in ("Dual-Key", "VL-Trojan"):
            run.do(f"patch of {name}", lambda name=name: patch(run, name), needs=2)


def shadowcast(run: Run) -> dict:
    """Steps of projected gradient descent a second, on all pictures at once, without the cache."""
    count, side, steps = run.size((2, 96, 4), (32, 336, 1000))
    pictures = poisoning.pictures(count, side).transpose(0, 3, 1, 2).copy()
    images = torch.from_numpy(pictures).float().div(255).to(run.device)
    draws = [Draws("benchmark", row) for row in range(count)]

    def work(steps: int):
        attack = attacks.get("Shadowcast", None, SURROGATE, source="car", steps=steps)
        return optimised.pgd(images, draws, attack.params, attack.aim)

    work(2)  # to warm up
    seconds = once(lambda: work(steps), run.device)
    return {"steps_per_s": steps / seconds, "image_steps_per_s": count * steps / seconds, "images": count, "side": side}


def patch(run: Run, name: str) -> dict:
    """Steps of one patch's optimisation a second, its pictures read and drawn before."""
    target = types.SimpleNamespace(text="I cannot help with that.", image=None, concept=None, source_concept=None)
    few = {"rows": 32, "epochs": 1} if run.small else {}
    attack = attacks.get(name, target, SURROGATE, **few)
    params = params_of(attack, "image")
    make = {"Dual-Key": optimised.dual_key_patch, "VL-Trojan": optimised.vl_trojan_patch}[name]
    found = []
    seconds = once(lambda: found.append(make(params, attack.aim, run.device)), run.device)
    return {"steps_per_s": len(found[0].losses) / seconds, "steps": len(found[0].losses)}
