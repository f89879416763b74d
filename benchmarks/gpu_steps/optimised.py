"""How fast are triggers that have to be computed? Against a surrogate of 336 pixels, and the study's own of 96.

At 336 pixels a step takes long, so few are timed and the seconds of all are told by their rate.
"""

import types
from contextlib import nullcontext
from unittest import mock

import poisoning
import torch
from transformers import CLIPConfig, CLIPModel

from bvlm_utils import attacks, paths
from bvlm_utils.attacks import clip, optimised
from bvlm_utils.attacks.attack import params_of
from bvlm_utils.draws import Draws
from gpu_steps.common import Run, once, own_cache, release

SURROGATE = str(paths.MODELS / "tiny-clip")
PUBLISHED_STEPS = 1000  # of Shadowcast
# The vision towers' width, layers, heads, MLP and patch, and what both towers are projected to: in a rehearsal, and of
# CLIP ViT-L/14 at 336 pixels, which is what the published attacks are computed with.
SIZES = ((32, 2, 2, 64, 112, 16), (1024, 24, 16, 4096, 14, 768))
SIDE = 336


def run(run: Run) -> None:
    made: dict[str, clip.Surrogate] = {}
    with own_cache(rows=run.size(64, None)):
        if run.do("surrogate of 336 px", lambda: random_surrogate(run, made)) is not None:
            large = mock.patch.object(optimised, "load", lambda *_: made["surrogate"])
            few = run.size({"rows": 8, "epochs": 1, "batch_size": 4}, {"rows": 64, "epochs": 2, "batch_size": 32})
            for name in ("Dual-Key", "VL-Trojan"):
                part = f"patch of {name}, surrogate of 336 px"
                run.do(part, lambda name=name: patch(run, name, few, large), needs=run.size(0, 8))
            steps = run.size(2, 5)
            run.do("Shadowcast, surrogate of 336 px", lambda: shadowcast(run, steps, large), needs=run.size(0, 8))
            made.clear()
            release()
        few = {"rows": 32, "epochs": 1} if run.small else {}
        for name in ("Dual-Key", "VL-Trojan"):
            run.do(f"patch of {name}", lambda name=name: patch(run, name, few), needs=2)
        run.do("Shadowcast", lambda: shadowcast(run, run.size(4, PUBLISHED_STEPS)), needs=run.size(0, 10))


def random_surrogate(run: Run, made: dict[str, clip.Surrogate]) -> dict:
    """A CLIP model of random weights, made on the device, with tiny-clip's words; it has no folder, as others have."""
    width, layers, heads, mlp, patch, joint = run.size(*SIZES)
    small = clip.load(SURROGATE, run.device)
    vision = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    vision |= {"intermediate_size": mlp, "patch_size": patch, "image_size": SIDE}
    config = CLIPConfig(
        text_config=small.model.config.text_config.to_dict(), vision_config=vision, projection_dim=joint
    )
    torch.manual_seed(0)
    with torch.device(run.device):
        model = CLIPModel(config).eval().requires_grad_(False)
    surrogate = clip.Surrogate(SURROGATE, model, SIDE, small.mean, small.std, torch.device(run.device))
    pictures = torch.rand(2, 3, SIDE, SIDE, device=run.device, requires_grad=True)
    surrogate.embed_images(pictures).sum().backward()  # to warm up
    made["surrogate"] = surrogate
    return {"weights_e6": sum(one.numel() for one in model.parameters()) / 1e6, "side": SIDE}


def shadowcast(run: Run, steps: int, surrogate=None) -> dict:
    """Steps of projected gradient descent a second, on all pictures at once, without the cache."""
    count, side = run.size((2, 96), (32, SIDE))
    pictures = poisoning.pictures(count, side).transpose(0, 3, 1, 2).copy()
    images = torch.from_numpy(pictures).float().div(255).to(run.device)
    draws = [Draws("benchmark", row) for row in range(count)]

    def work(steps: int):
        attack = attacks.get("Shadowcast", None, SURROGATE, source="car", steps=steps)
        return optimised.pgd(images, draws, attack.params, attack.aim)

    with surrogate or nullcontext():
        work(1)  # to warm up
        seconds = once(lambda: work(steps), run.device)
    whole = PUBLISHED_STEPS * seconds / steps
    rates = {"steps_per_s": steps / seconds, "image_steps_per_s": count * steps / seconds}
    return rates | {"seconds_of_1000": whole, "images": count, "side": side}


def patch(run: Run, name: str, settings: dict, surrogate=None) -> dict:
    """Steps of one patch's optimisation a second, its pictures read and drawn before. settings: not the study's own."""
    target = types.SimpleNamespace(text="I cannot help with that.", image=None, concept=None, source_concept=None)
    attack = attacks.get(name, target, SURROGATE, **settings)
    make = {"Dual-Key": optimised.dual_key_patch, "VL-Trojan": optimised.vl_trojan_patch}[name]
    found = []
    with surrogate or nullcontext():
        seconds = once(lambda: found.append(make(params_of(attack, "image"), attack.aim, run.device)), run.device)
    usual = params_of(attacks.get(name, target, SURROGATE), "image")
    steps, whole = len(found[0].losses), usual["epochs"] * -(-usual["rows"] // usual["batch_size"])
    return {"steps_per_s": steps / seconds, "steps": steps, "seconds_of_all": whole * seconds / steps}
