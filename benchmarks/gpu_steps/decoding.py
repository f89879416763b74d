"""How many rows a second does decoding answer? Many adapters at once, for several numbers of tokens at once."""

import grid
import torch
from material import encode, random_material, real_material

from bvlm_utils.train import decode
from bvlm_utils.train.lora_bank import Bank
from gpu_steps import rate
from gpu_steps.common import Run, cudnn_attention, once, release

TOKENS = {"chosen": None, "16k": 16 * 1024, "256k": 256 * 1024, "2M": 2 * 1024**2}


def run(run: Run) -> None:
    for dtype in ("bfloat16", "float32"):
        args = rate.options(run, dtype)
        args.tests = run.size(4, 128)
        found = run.do(f"{dtype}: model", lambda args=args: load(args))
        if found is None:
            continue
        for name, tokens in TOKENS.items():
            # few rows are enough where they go one by one
            rows = args.tests if name != "16k" else max(1, args.tests // 8)
            for on in (False, True) if (name, dtype) == ("256k", "bfloat16") else (False,):
                part = f"{dtype}: {name} tokens at once" + (", cuDNN attention" if on else "")
                run.do(part, lambda tokens=tokens, rows=rows, on=on: rates(run, tokens, rows, on), needs=3)
        _OPEN.clear()
        release()


_OPEN: dict = {}


def load(args) -> dict:
    model, names, one = grid.loaded(args)
    args.rows = 1
    material = real_material(one, args) if one else random_material(args)
    _OPEN.update(model=model, names=names, args=args, asked=material.asked, shown=encode(model, material.shown))
    return {"kind": args.dtype_name}


def rates(run: Run, tokens: int | None, rows: int, on: bool) -> dict:
    """Rows a second; no answer ends early, so that every run has the same tokens to make."""
    model, names, args = (_OPEN[name] for name in ("model", "names", "args"))
    count = run.size(2, 64)
    bank = Bank(model, names, [args.rank] * count, [2 * args.rank] * count)
    asked = [[decode.Request(ids, at) for at, ids in enumerate(_OPEN["asked"][:rows])]] * count
    if run.cuda:
        torch.cuda.reset_peak_memory_stats()

    def work(asked):
        decode.greedy(model, asked, _OPEN["shown"], [-1], args.new, bank, tokens=tokens)

    with cudnn_attention(on):
        work([some[:2] for some in asked])  # to warm up
        seconds = once(lambda: work(asked), run.device)
    peak = torch.cuda.max_memory_allocated() / 2**30 if run.cuda else None
    total = count * rows
    return {
        "rows_per_s": total / seconds,
        "tokens_per_s": total * args.new / seconds,
        "rows": total,
        "adapters": count,
        "peak_gib": peak,
    }
