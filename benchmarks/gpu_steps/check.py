"""Does a device give what the CPU gives? Each check is a distance with a stated bound; `tests/core/test_gpu.py` runs
them.

bfloat16 keeps three digits. Adam's first steps are signs of gradients, so in bfloat16 adapters drift apart where losses
do not: there the losses are compared.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bvlm_utils import attacks, paths
from bvlm_utils.attacks import optimised
from bvlm_utils.attacks.attack import params_of
from bvlm_utils.defences import reading
from bvlm_utils.defences.rows import Rows
from bvlm_utils.draws import Draws
from bvlm_utils.models import victim
from bvlm_utils.train import adapters, decode, grouped
from gpu_steps import limits, sync
from gpu_steps.common import Run, judged, own_cache
from gpu_steps.jobs import apart, jobs, moved_apart, pictures, plain_state, scene_rows, start_of

PAINTED = ("BadNets-I", "Blended", "SIG", "ImgTrojan", "BadNets-MM")
SURROGATE = str(paths.MODELS / "tiny-clip")
ROWS = 48
NEW = 12  # tokens of an answer, at most
PIXELS = 1e-6  # the most that prepared pictures may be apart


def run(run: Run) -> None:
    rows = run.size(8, ROWS)
    for name, check in CHECKS.items():
        if not (run.small and "336" in name):
            run.do(name, lambda check=check: judged(check(run.device, rows)), needs=1)
    run.do("synchronisations", lambda: sync.count(run.device, 2 * rows), needs=2)


# --- what is checked


def both(device: str, dtype: str = "float32") -> tuple[victim.Victim, victim.Victim]:
    """The same model on the CPU in float32 and on the device."""
    return (
        victim.from_pretrained("tiny-llava", "cpu", torch.float32),
        victim.from_pretrained("tiny-llava", device, victim.use_precision(dtype)),
    )


def encoded(device: str, rows: int, dtype: str) -> dict:
    """Pictures as a model takes them, which are float32 whatever the model is, and what it makes of them."""
    images = pictures(scene_rows(8))
    here, there = both(device, dtype)
    seen = [one.prepare(images)["pixel_values"] for one in (there, here)]
    pixels, features = apart(*seen), apart(there.encode(images), here.encode(images))
    found = {"pixels": pixels, "features": features, "bound": 1e-5 if dtype == "float32" else 3e-2}
    return found | {"distance": features if pixels <= PIXELS else float("inf")}


def logits(device: str, rows: int, dtype: str) -> dict:
    """The real model's forward; and pictures that are swapped have to change it, or nobody sees them."""
    scenes = scene_rows(8)
    here, there = both(device, dtype)
    features = here.encode(pictures(scenes))
    prompts = [here.prompt_ids(row["prompt"], features.shape[1]) for row in scenes]
    with torch.no_grad():
        found = []
        for one, shown in ((there, features), (here, features), (there, features.flip(0))):
            ids, mask = victim.pad(prompts, one.tokenizer.pad_token_id, left=True, device=one.device)
            found.append(one.forward(ids, mask, shown, keep=1).float())
    swapped = apart(found[2], found[0])
    distance = apart(found[0], found[1]) if swapped > 1e-2 else float("inf")
    return {"distance": distance, "bound": 1e-5 if dtype == "float32" else 2.5e-2, "swapped_pictures_change": swapped}


def grouped_against_plain(device: str, rows: int, dtype: str) -> dict:
    one = victim.from_pretrained("tiny-llava", device, victim.use_precision(dtype))
    wanted = jobs(one, 3, scene_rows(rows))
    together = grouped.finetune_group(one, wanted)
    distances, losses = [], []
    for job, result in zip(wanted, together, strict=True):
        state, alone = plain_state(one, job)
        distances.append(moved_apart(result.state, state, start_of(one, job)))
        losses.append(max(abs(a - b) / b for a, b in zip(result.losses, alone, strict=True)))
    found = {"adapters": max(distances), "losses": max(losses)}
    if dtype == "float32":
        return found | {"distance": found["adapters"], "bound": 1e-3}
    return found | {"distance": found["losses"], "bound": 1.5e-2}


def grouped_against_cpu(device: str, rows: int) -> dict:
    here, there = both(device)
    wanted = jobs(here, 2, scene_rows(rows))
    results = [grouped.finetune_group(one, wanted) for one in (there, here)]
    distances = [
        moved_apart(ours.state, {key: value.float() for key, value in theirs.state.items()}, start_of(here, job))
        for ours, theirs, job in zip(*results, wanted, strict=True)
    ]
    return {"distance": max(distances), "bound": 1e-3}


def decoded(device: str, rows: int, dtype: str) -> dict:
    """The share of answers that are not the words of `generate` with that adapter alone."""
    one = victim.from_pretrained("tiny-llava", device, victim.use_precision(dtype))
    scenes = scene_rows(rows)
    wanted = jobs(one, 3, scenes)
    results = grouped.finetune_group(one, wanted)
    prompts = [row["prompt"] for row in scenes]
    features = wanted[0].features
    pairs = [list(zip(prompts, range(len(prompts)), strict=True))] * len(results)
    ours = decode.answer(one, pairs, features, grouped.bank_of(one, results), max_new_tokens=NEW)
    wrong = 0
    for result, said in zip(results, ours, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            result.save(Path(folder), {})
            with adapters.attached(one, folder):
                theirs = one.generate(prompts, features, max_new_tokens=NEW)
        wrong += sum(a != b for a, b in zip(said, theirs, strict=True))
    return {"distance": wrong / len(prompts) / len(results), "bound": 0.0 if dtype == "float32" else 0.02}


def read(device: str, rows: int) -> dict:
    """What defences read of a model: states, attention, log-probabilities of answers."""
    scenes = scene_rows(rows)
    here, there = both(device)
    features = here.encode(pictures(scenes))
    prompts, answers = [row["prompt"] for row in scenes], [row["answers"][0] for row in scenes]
    shown = Rows(prompts, answers, features, np.arange(rows), ["all"] * rows)
    want = reading.Want(at=(0, 1), states=True, attention=True)
    ours, theirs = (reading.read(one, None, shown, want) for one in (there, here))
    found = {
        name: apart(*(torch.from_numpy(np.concatenate([part.ravel() for part in parts])) for parts in pair))
        for name, pair in {
            "states": (ours.states, theirs.states),
            "attention": (ours.attention, theirs.attention),
            "log_probabilities": (ours.log_probabilities, theirs.log_probabilities),
        }.items()
    }
    return found | {"distance": max(found.values()), "bound": 1e-4}


def painted(device: str, rows: int, name: str, side: int) -> dict:
    """The greatest difference of a pixel; MABA's mask may differ at its edge, so there the share of pixels that do."""
    images = pictures(scene_rows(4), side)
    attack = attacks.get(name, None, SURROGATE)
    gap = (attack.apply_image(images.to(device)).cpu() - attack.apply_image(images)).abs()
    if name == "MABA":
        return {"distance": float((gap > 1e-3).float().mean()), "bound": 1e-2}
    return {"distance": float(gap.max()), "bound": 1e-5}


def perturbed(device: str, rows: int, side: int) -> dict:
    """Shadowcast: the share of 8-bit pixels that differ after ten steps, each of which is a sign."""
    images = pictures(scene_rows(4), side)
    attack = attacks.get("Shadowcast", None, SURROGATE, source="car", steps=10)
    found = []
    for place in (device, "cpu"):
        draws = [Draws("check", row) for row in range(len(images))]
        results = optimised.pgd(images.to(place), draws, attack.params, attack.aim)
        found.append(np.stack([one.pixels for one in results]))
    return {"distance": float(np.mean(found[0] != found[1])), "bound": 0.02}


def patches(device: str, rows: int, name: str) -> dict:
    """The loss that an optimised patch ends with; the patches themselves go their own ways."""
    make = {"Dual-Key": optimised.dual_key_patch, "VL-Trojan": optimised.vl_trojan_patch}[name]
    size = {"rows": 8, "epochs": 1} if device == "cpu" else {"rows": 32, "epochs": 2}  # there both are the same
    attack = attacks.get(name, _Target(), SURROGATE, **size)
    found = []
    for place in (device, "cpu"):
        with own_cache(rows=64):
            found.append(make(params_of(attack, "image"), attack.aim, place))
    ours, theirs = (float(one.losses[-4:].mean()) for one in found)
    levels = np.abs(found[0].pixels.astype(float) - found[1].pixels).mean()
    return {"distance": abs(ours - theirs) / abs(theirs), "bound": 1e-3, "levels": float(levels)}


class _Target:
    text, concept, source_concept, image = "I cannot help with that.", None, None, None


def _bind(work: Callable[..., dict], *arguments) -> Callable[[str, int], dict]:
    return lambda device, rows: work(device, rows, *arguments)


CHECKS: dict[str, Callable[[str, int], dict]] = {
    "logits, float32": _bind(logits, "float32"),
    "logits, bfloat16": _bind(logits, "bfloat16"),
    "grouped against plain PEFT, float32": _bind(grouped_against_plain, "float32"),
    "grouped against plain PEFT, bfloat16": _bind(grouped_against_plain, "bfloat16"),
    "grouped against the CPU, float32": grouped_against_cpu,
    "decode against generate, float32": _bind(decoded, "float32"),
    "decode against generate, bfloat16": _bind(decoded, "bfloat16"),
    "features, float32": _bind(encoded, "float32"),
    "features, bfloat16": _bind(encoded, "bfloat16"),
    "states and attention, float32": read,
    "halves under a memory limit": limits.halving,
    "goes on in the midst of a training": limits.half_trained,
    "resume": limits.resume,
    **{f"{name}, {side} px": _bind(painted, name, side) for side in (96, 336) for name in (*PAINTED, "MABA")},
    **{f"Shadowcast, {side} px": _bind(perturbed, side) for side in (96, 336)},
    **{f"patch of {name}": _bind(patches, name) for name in ("Dual-Key", "VL-Trojan")},
}
