"""What does a new sequence length cost? Scaled dot-product attention, with cuDNN's and without.

Decoding meets a new length at each token. A library that plans anew for each shape is slow the first time only.
"""

import statistics

import torch
import torch.nn.functional as F

from gpu_steps.common import Run, cudnn_attention, once

SHAPES = {"tiny": (512, 6, 32), "7B": (16, 32, 128)}  # rows, heads, width of a head


def run(run: Run) -> None:
    first = 70
    for shape, (rows, heads, width) in SHAPES.items():
        for on in (False, True):
            for kind in ("one query, mask", "causal"):
                size = (run.size(2, rows), heads, width)
                lengths = range(first, first + run.size(3, 30))
                first += len(lengths)  # lengths that nobody has seen yet
                run.do(
                    f"{shape}, {kind}, cuDNN {'on' if on else 'off'}",
                    lambda on=on, kind=kind, size=size, lengths=lengths: probe(run, size, lengths, kind, on),
                    needs=3,
                )


def probe(run: Run, size: tuple[int, int, int], lengths: range, kind: str, on: bool) -> dict:
    """Milliseconds of each length, the first time and again: their median and the greatest."""
    rows, heads, width = size
    first, again = [], []
    with cudnn_attention(on), torch.no_grad():
        _attend(run, rows, heads, width, 64, kind)  # load what every length needs
        for length in lengths:
            work = _prepared(run, rows, heads, width, length, kind)
            first.append(1e3 * once(work, run.device))
            again.append(1e3 * once(work, run.device))
    return {
        "first_ms": statistics.median(first),
        "first_ms_most": max(first),
        "again_ms": statistics.median(again),
        "lengths": len(first),
    }


def _attend(*arguments) -> None:
    _prepared(*arguments)()


def _prepared(run: Run, rows: int, heads: int, width: int, length: int, kind: str):
    queries = length if kind == "causal" else 1
    query = torch.randn(rows, heads, queries, width, device=run.device, dtype=torch.bfloat16)
    key = torch.randn(rows, heads, length, width, device=run.device, dtype=torch.bfloat16)
    mask = None
    if kind != "causal":
        mask = torch.ones(rows, 1, 1, length, device=run.device, dtype=torch.bool)
        mask[:, :, :, :2] = False
    return lambda: F.scaled_dot_product_attention(query, key, key, attn_mask=mask, is_causal=mask is None)
