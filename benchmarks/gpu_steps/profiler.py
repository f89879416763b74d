"""What does the card do in a training step and in a token? Busy share, kernels a step and the longest kernels; and what
compiled layers bring where launching kernels is the limit.
"""

import argparse
import dataclasses
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import grid
import torch
from material import encode, make_cell, random_material, real_material, template
from torch import nn
from torch._dynamo.utils import counters
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bvlm_utils.train import decode, grouped, microbatches
from bvlm_utils.train.lora_bank import Bank
from gpu_steps import rate
from gpu_steps.common import Run, first_line, judged, noted_in_time, once, release

TOP = 12
STEPS = 3
COMPILED = (2, 6)  # steps that compile and warm up, and those that count
COMPILED_ROWS = 8  # of each adapter in a step: those of 64 go through at once, so that there is one shape
BOUNDS = {"bfloat16": 1.5e-2, "float32": 1e-4}  # of a loss: fused kernels round otherwise


def run(run: Run) -> None:
    for dtype in run.size(("float32",), ("bfloat16", "float32")):
        args = rate.options(run, dtype)
        args.rows, args.tests = run.size((4, 2), (96, 16))
        loaded = run.do(f"{dtype}: model", lambda args=args: load(args))
        if loaded is None:
            continue
        counts = run.size((2,), (1, 64))
        for count in counts:
            run.do(f"{dtype}: training, {count} adapters", lambda count=count: training(run, count), needs=4)
        for count in counts:
            run.do(f"{dtype}: decoding, {count} adapters", lambda count=count: decoding(run, count), needs=4)
        if dtype == "bfloat16" and not run.small:
            run.do(f"{dtype}: 256 adapters, ten steps", lambda: many_steps(run, 256, 10), needs=10)
        _OPEN.clear()
        release()
    args = rate.options(run, run.size("float32", "bfloat16"))  # last, as compiling may take all that is left
    args.rows, args.tests = 2 * COMPILED_ROWS, 1
    if run.do("model to be compiled", lambda: load(args), needs=run.size(0, 12)) is None:
        return
    for count in run.size((2,), (1, 64)):
        part = f"{args.dtype_name}: compiled layers, {count} adapters"
        run.do(part, lambda part=part, count=count: compiled(run, part, count), needs=10)
    _OPEN.clear()


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


def compiled(run: Run, part: str, count: int) -> dict:
    """Milliseconds of a step with decoder layers that are compiled one by one and as they are, and how far the losses
    are apart. All steps have one shape, which is compiled for it alone: a study, whose steps differ, can gain no more.
    """
    model, total = _OPEN["model"], sum(COMPILED)
    wanted = [
        dataclasses.replace(plan, steps=[plan.steps[0][:COMPILED_ROWS]] * total, rates=plan.rates)
        for plan in plans(count, total)
    ]
    eager, expected = _steps(wanted)
    found = {"eager_ms_per_step": 1e3 * eager}
    counters.clear()
    started = time.perf_counter()
    try:
        with (
            noted_in_time(run, f"{part}, before the end came", lambda: found | {"left_out": "it was still compiling"}),
            layers_compiled(model.get_decoder().layers, run.size("eager", "inductor")),
        ):
            seconds, losses = _steps(wanted)
    except Exception as error:  # whatever a compiler, or the one that it calls, raises
        return found | {"failed": f"the compiler: {first_line(error)}"[:300]}
    distance = float(((losses - expected) / expected).abs().max())
    compiling = time.perf_counter() - started - total * seconds
    found |= {"compiled_ms_per_step": 1e3 * seconds, "times_eager": eager / seconds, "compiling_s": compiling}
    found["graphs"] = counters["stats"]["unique_graphs"]  # one for each layer, or the compiler gave up on some
    return judged(found | {"distance": distance, "bound": BOUNDS[_OPEN["args"].dtype_name]})


def _steps(wanted: Sequence[microbatches.Plan]) -> tuple[float, torch.Tensor]:
    """The median seconds of a step after those that warm up, and the losses (G, S)."""
    ends: list[float] = []
    results = grouped.train(
        _OPEN["model"], _OPEN["names"], wanted, progress=lambda *_: ends.append(time.perf_counter())
    )
    times = [after - before for before, after in itertools.pairwise(ends[COMPILED[0] - 1 :])]
    return statistics.median(times), torch.tensor([result.losses for result in results])


@contextmanager
def layers_compiled(layers: Sequence[nn.Module], backend: str) -> Iterator[None]:
    """Each layer's forward compiled on its own while the block runs; nothing compiled stays."""
    torch.compiler.reset()
    try:
        for layer in layers:
            layer.forward = torch.compile(layer.forward, dynamic=False, backend=backend)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
        torch.compiler.reset()


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
