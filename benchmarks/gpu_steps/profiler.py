"""What does the card do in a training step and in a token? Busy share, kernels a step and the longest kernels."""

import argparse
import dataclasses

import grid
from material import encode, make_cell, random_material, real_material, template
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bvlm_utils.train import decode, grouped, microbatches
from bvlm_utils.train.lora_bank import Bank
from gpu_steps import rate
from gpu_steps.common import Run, once, release

TOP = 12
STEPS = 3


def run(run: Run) -> None:
    for dtype in run.size(("float32",), ("bfloat16", "float32")):
        args = rate.options(run, dtype)
        args.rows, args.tests = run.size((4, 2), (96, 16))
        loaded = run.do(f"{dtype}: model", lambda args=args: load(args))
        if loaded is None:
            continue
        for count in run.size((2,), (1, 64)):
            run.do(f"{dtype}: training, {count} adapters", lambda count=count: training(run, count), needs=4)
            run.do(f"{dtype}: decoding, {count} adapters", lambda count=count: decoding(run, count), needs=4)
        if dtype == "bfloat16" and not run.small:
            run.do(f"{dtype}: 256 adapters, ten steps", lambda: many_steps(run, 256, 10), needs=10)
        _OPEN.clear()
        release()


_OPEN: dict = {}


def load(args: argparse.Namespace) -> dict:
    model, names, one = grid.loaded(args)
    material = real_material(one, args) if one else random_material(args)
    features = encode(model, material.pictures)
    _OPEN.update(model=model, names=names, args=args, material=material, features=features)
    _OPEN["whole"] = template(model, names, args)
    return {"kind": args.dtype_name}


def plans(count: int, steps: int) -> list[microbatches.Plan]:
    """The first `steps` batches of `count` cells, over and over where a cell has fewer."""
    made = []
    for seed in range(count):
        plan = make_cell(_OPEN["whole"], _OPEN["material"], seed, _OPEN["args"]).plan
        batches = [plan.steps[at % len(plan.steps)] for at in range(steps)]
        made.append(dataclasses.replace(plan, features=_OPEN["features"], steps=batches, rates=[1e-3] * steps))
    return made


def training(run: Run, count: int) -> dict:
    wanted = {steps: plans(count, steps) for steps in (1, 1 + STEPS)}
    rows = count * sum(map(len, wanted[1 + STEPS][0].steps[1:]))
    found = watched(run, lambda steps: grouped.train(_OPEN["model"], _OPEN["names"], wanted[steps]), STEPS)
    return found | {"rows_per_s": 1e3 * rows / STEPS / found["ms_per_step"]}


def decoding(run: Run, count: int) -> dict:
    """Tokens after the first one, for a few prompts of each adapter."""
    model, names, args, material = (_OPEN[name] for name in ("model", "names", "args", "material"))
    bank = Bank(model, names, [args.rank] * count, [2 * args.rank] * count)
    shown = encode(model, material.shown)
    asked = [[decode.Request(ids, at) for at, ids in enumerate(material.asked)]] * count
    return watched(run, lambda new: decode.greedy(model, asked, shown, [-1], new, bank), 8)


def many_steps(run: Run, count: int, steps: int) -> dict:
    wanted = plans(count, steps)
    short = [dataclasses.replace(plan, steps=plan.steps[:1], rates=plan.rates[:1]) for plan in wanted]
    grouped.train(_OPEN["model"], _OPEN["names"], short)
    seconds = once(lambda: grouped.train(_OPEN["model"], _OPEN["names"], wanted), run.device)
    tokens = sum(len(plan.ids[i]) for plan in wanted for batch in plan.steps for i in batch)
    return {"tokens_per_s": tokens / seconds, "seconds_per_step": seconds / steps}


def watched(run: Run, work, steps: int) -> dict:
    """What `steps` more steps cost than one: seconds without the profiler, then what the profiler saw."""
    work(1 + steps)  # to warm up
    seconds = once(lambda: work(1 + steps), run.device) - once(lambda: work(1), run.device)
    longer, shorter = _seen(run, lambda: work(1 + steps)), _seen(run, lambda: work(1))
    took = {key: us - shorter.get(key, (0, 0))[0] for key, (us, _) in longer.items()}
    calls = {key: count - shorter.get(key, (0, 0))[1] for key, (_, count) in longer.items()}
    longest = sorted(took, key=took.get, reverse=True)[:TOP]
    return {
        "ms_per_step": 1e3 * seconds / steps,
        "busy": sum(took.values()) / 1e6 / seconds,
        "kernels_per_step": sum(calls.values()) / steps,
        "longest": {_name(key): [round(took[key] / 1e3 / steps, 3), calls[key] / steps] for key in longest},
    }


def _seen(run: Run, work) -> dict[str, tuple[float, int]]:
    """kernel (on a CPU, operator) -> its microseconds and how often it ran."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if run.cuda else [])]
    with profile(activities=activities) as seen:
        once(work, run.device)
    kind = DeviceType.CUDA if run.cuda else DeviceType.CPU
    events = [one for one in seen.key_averages() if one.device_type == kind]
    return {one.key: (_microseconds(one, run.cuda), one.count) for one in events}


def _microseconds(event, cuda: bool) -> float:
    return event.self_device_time_total if cuda else event.self_cpu_time_total


def _name(kernel: str) -> str:
    """A kernel's name without its template's arguments, short enough for a table."""
    plain = kernel.replace("void ", "").replace("at::native::", "")
    return plain if len(plain) <= 70 else plain[:67] + "..."
