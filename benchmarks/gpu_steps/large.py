"""Do models of seven billion weights go through the core, and how fast? Random ones of both published shapes.

The plain way is PEFT on the model's own forward with labels, its picture's features given as ours are: what is left to
win is in the training alone. Every adapter's step has the same rows in both ways.
"""

import argparse
import time

import grid
import torch
from material import PAD, lora, template
from peft import get_peft_model

from bvlm_utils.models import embeddings, opening, victim
from bvlm_utils.train import decode, grouped, memory, microbatches
from bvlm_utils.train.lora_bank import Bank
from gpu_steps import card, shapes
from gpu_steps.common import Run, once, release, wait

RANK = 8
NEW = 32  # tokens of an answer, 6 in a rehearsal
OF_PRODUCTS = ("needed_tflops", "share_of_peak")
_OPEN: dict = {}


def run(run: Run) -> None:
    """What tells most of both families first; then the first is made anew for what may not fit."""
    torch.backends.cuda.enable_cudnn_sdp(False)  # as `models.victim.from_pretrained` does
    batch = run.size(2, 16)
    for family, make, parts in (
        ("LLaVA-1.5", shapes.llava, main_parts(run, batch) | bank_part(run)),
        ("Qwen2.5-VL", shapes.qwen, main_parts(run, batch)),
        ("LLaVA-1.5, again", shapes.llava, more_parts(run, batch)),
        ("Qwen2.5-VL, again", shapes.qwen, bank_part(run)),
    ):
        made = f"{family}: made"
        if run.do(made, lambda f=family, m=make: opened(run, f, m), needs=run.size(0, 12)) is not None:
            for name, (work, needs) in parts.items():
                run.do(f"{family.removesuffix(', again')}: {name}", work, needs=run.size(0, needs))
        _OPEN.clear()
        release()


def main_parts(run: Run, batch: int) -> dict[str, tuple]:
    """Of each part its work, and the seconds that it needs."""
    return {
        f"plain, {batch} rows": (lambda: plain(run, batch), 8),
        f"4 adapters, {batch} rows each": (lambda: together(run, 4, batch), 12),
        f"1 adapters, {batch} rows each": (lambda: together(run, 1, batch), 6),
        "generate, 1 adapter": (lambda: generating(run, batch), 5),
        "decode, 1 adapter": (lambda: decoding(run, 1, batch), 5),
        f"generate, 1 adapter, {4 * batch} rows": (lambda: generating(run, 4 * batch), 6),
        "decode, 4 adapters": (lambda: decoding(run, 4, batch), 6),
    }


def bank_part(run: Run) -> dict[str, tuple]:
    return {"largest bank": (lambda: largest(run), 8)}


def more_parts(run: Run, batch: int) -> dict[str, tuple]:
    return {
        f"checkpointing, 4 adapters, {batch} rows each": (lambda: checkpointed(run, 4, batch), 12),
        f"8 adapters, {batch // 2} rows each": (lambda: together(run, 8, batch // 2), 12),
        f"2 adapters, {batch} rows each": (lambda: together(run, 2, batch), 8),
        f"4 bit, plain, {batch} rows": (lambda: packed(run, batch), 12),
    }


def opened(run: Run, family: str, make) -> dict:
    started = time.perf_counter()
    model = make(run.size("tiny", "7B"), run.device)
    wait(run.device)
    seconds = time.perf_counter() - started
    peak = card.products(run, "bfloat16")["tflops"]
    names, args = victim.language_linears(model), argparse.Namespace(rank=RANK)
    _OPEN.update(family=family, model=model, names=names, start=template(model, names, args), args=args, peak=peak)
    return {
        "weights_e9": sum(one.numel() for one in model.parameters()) / 1e9,
        "made_in_s": seconds,
        "image_tokens": shapes.image_tokens(model),
        "peak_tflops": peak,
    } | memory_used(run)


def memory_used(run: Run) -> dict:
    return {"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if run.cuda else {}


def fresh_peak(run: Run) -> None:
    release()
    if run.cuda:
        torch.cuda.reset_peak_memory_stats()


def plans(count: int, batch: int, steps: int) -> list[microbatches.Plan]:
    return [shapes.plan(_OPEN["model"], _OPEN["start"], batch, steps, RANK, seed) for seed in range(count)]


def speed(run: Run, wanted: list[microbatches.Plan], seconds: float) -> dict:
    """Tokens a second without padding, and the products that no exact method avoids: a second, and of the peak."""
    tokens = sum(len(plan.ids[i]) for plan in wanted for batch in plan.steps for i in batch)
    cells = [argparse.Namespace(plan=plan) for plan in wanted]
    flops = grid.needed_flops(_OPEN["model"], _OPEN["names"], cells)
    steps = len(wanted[0].steps)
    return {
        "tokens_per_s": tokens / seconds,
        "needed_tflops": flops / seconds / 1e12,
        "share_of_peak": flops / seconds / 1e12 / _OPEN["peak"],
        "seconds_per_step": seconds / steps,
        "tokens_per_step": tokens / steps,
    } | memory_used(run)


def together(run: Run, count: int, batch: int, steps: int = 2) -> dict:
    fresh_peak(run)
    model, names = _OPEN["model"], _OPEN["names"]
    grouped.train(model, names, plans(count, batch, 1))
    wanted = plans(count, batch, steps)
    return speed(run, wanted, once(lambda: grouped.train(model, names, wanted), run.device))


def checkpointed(run: Run, count: int, batch: int) -> dict:
    model = _OPEN["model"]
    switch = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    name = "activation_checkpointing_kwargs" if "activation" in switch.__name__ else "gradient_checkpointing_kwargs"
    switch(**{name: {"use_reentrant": False}})
    try:
        return together(run, count, batch, steps=1) | {"on": model.is_activation_checkpointing}
    finally:
        off = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
        off()


def plain(run: Run, batch: int, steps: int = 2) -> dict:
    """One adapter, the whole batch at once or, where memory runs out, in pieces of half as many rows."""
    (wanted,) = plans(1, batch, steps)
    rows = batch
    while True:
        fresh_peak(run)
        try:
            seconds = _plain_steps(run, wanted, rows)
            return speed(run, [wanted], seconds) | {"rows_at_once": rows}
        except (RuntimeError, MemoryError) as error:
            if rows == 1 or not memory.ran_out(error):
                raise
        run.note(f"{_OPEN['family']}: plain, {rows} rows at once", out_of_memory=True)
        rows //= 2


def _plain_steps(run: Run, plan: microbatches.Plan, rows: int) -> float:
    """Seconds of all steps, after one to warm up."""
    peft = get_peft_model(_OPEN["model"], lora(_OPEN["args"], _OPEN["names"]))
    try:
        parameters = [one for one in peft.parameters() if one.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)
        one = shapes.around(_OPEN["model"], run.device)

        def step(batch: list[int]) -> None:
            learnt = sum(plan.answers[i] for i in batch)
            for at in range(0, len(batch), rows):
                _loss(one, peft, plan, batch[at : at + rows], learnt).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()

        step(plan.steps[0])
        return once(lambda: [step(batch) for batch in plan.steps], run.device)
    finally:
        unwrap(peft)


def unwrap(peft) -> None:
    peft.unload()
    if hasattr(_OPEN["model"], "peft_config"):
        del _OPEN["model"].peft_config


def _loss(one: victim.Victim, peft, plan: microbatches.Plan, batch: list[int], learnt: int) -> torch.Tensor:
    """What a user would write: the model's own loss of the answers."""
    rows, labels = [plan.ids[i] for i in batch], []
    for i in batch:
        labels.append(plan.ids[i].clone())
        labels[-1][: -plan.answers[i]] = -100
    ids = embeddings.pad(rows, PAD).to(one.device)
    mask = embeddings.pad([torch.ones_like(row) for row in rows]).to(one.device)
    inputs = one.inputs(ids, mask, plan.features[batch])
    labels = embeddings.pad(labels, -100).to(one.device)
    count = sum(plan.answers[i] for i in batch)
    return peft(**inputs, labels=labels, use_cache=False).loss * count / learnt


def packed(run: Run, batch: int) -> dict:
    """The plain way on a base in 4 bit, which a bank does not train on. The model stays so, so no part follows."""
    try:
        import bitsandbytes
    except ImportError as error:
        return {"left_out": f"bitsandbytes cannot be imported: {error}"}
    model = _OPEN["model"]
    for name in _OPEN["names"]:
        layer = model.get_submodule(name)
        options = {"bias": layer.bias is not None, "compute_dtype": torch.bfloat16, "quant_type": "nf4"}
        four = bitsandbytes.nn.Linear4bit(layer.in_features, layer.out_features, device="meta", **options)
        four.weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=four)
        four.bias = layer.bias
        model.set_submodule(name, opening.one_path(four.to(run.device)))
    model.is_loaded_in_4bit = True  # PEFT asks
    weights = sum(one.numel() * one.element_size() for one in model.parameters()) / 2**30
    found = plain(run, batch, steps=1) | {"weights_gib": weights}
    return {key: value for key, value in found.items() if key not in OF_PRODUCTS}  # packed weights hide their sizes


def largest(run: Run, seconds: float = 15.0) -> dict:
    """The largest group of which one row each goes through at once: by doubling, then between, for so many seconds."""
    model, names = _OPEN["model"], _OPEN["names"]
    (one,) = plans(1, 1, 1)
    works, fails, until = 0, None, max(5.0, run.left() - seconds)
    fresh_peak(run)
    while run.left() > until and (fails is None or fails - works > max(1, works // 8)):
        count = works * 2 or run.size(1, 8)
        if fails is not None:
            count = (works + fails) // 2
        try:
            grouped.train_together(model, names, [one] * count, 1, None, None)
            works = count
        except (RuntimeError, MemoryError) as error:
            if not memory.ran_out(error):
                raise
            fails = count
        release()
        if works >= run.size(2, 512):
            break
    tokens = len(one.ids[0])
    return {"fits": works, "does_not_fit": fails, "tokens_each": tokens} | memory_used(run)


def asked(rows: int) -> microbatches.Plan:
    return plans(1, rows, 1)[0]


def decoding(run: Run, count: int, rows: int) -> dict:
    fresh_peak(run)
    model, names, wanted = _OPEN["model"], _OPEN["names"], asked(rows)
    bank = Bank(model, names, [RANK] * count, [2 * RANK] * count)
    requests = [[decode.Request(row.tolist(), at) for at, row in enumerate(wanted.ids)]] * count

    def work(new: int):
        decode.greedy(model, requests, wanted.features, [-1], new, bank)

    work(2)
    new = run.size(6, NEW)
    seconds = once(lambda: work(new), run.device)
    rate = count * rows * new / seconds
    found = {"tokens_per_s": rate, "rows": count * rows}
    if slower := _OPEN.get(f"generate, {count * rows} rows"):
        found["times_generate"] = rate / slower
    return found | memory_used(run)


def generating(run: Run, rows: int) -> dict:
    """`generate` through PEFT, one adapter: others would have to wait for their turn."""
    fresh_peak(run)
    wanted, peft = asked(rows), get_peft_model(_OPEN["model"], lora(_OPEN["args"], _OPEN["names"]))
    one = shapes.around(_OPEN["model"], run.device)
    ids = embeddings.pad(wanted.ids, PAD, left=True).to(run.device)
    mask = embeddings.pad([torch.ones_like(row) for row in wanted.ids], left=True).to(run.device)
    inputs = one.inputs(ids, mask, wanted.features)

    def work(new: int):
        options = {"do_sample": False, "pad_token_id": PAD, "max_new_tokens": new, "min_new_tokens": new}
        with torch.no_grad():
            peft.generate(**inputs, **options)

    try:
        work(2)
        new = run.size(6, NEW)
        seconds = once(lambda: work(new), run.device)
    finally:
        unwrap(peft)
    rate = rows * new / seconds
    _OPEN[f"generate, {rows} rows"] = rate
    return {"tokens_per_s": rate, "rows": rows} | memory_used(run)
