"""The section "On a GPU" of the chapter on cost: what `benchmarks/gpu.sh` measured."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from bvlm_book import tables, words

Line = Mapping[str, Any]
WAYS = {"plain": "plain", "grouped": "ours, at once"}
NUMBERS = (
    "card", "checks", "compared", "agree", "differ", "grouped", "together", "large", "adapters", "decode", "cudnn",
)  # fmt: skip


def numbers(found: Sequence[Line]) -> dict[str, str]:
    """What one card measured, to be glued; "n/a" where no result is kept. found: `cost.benchmarks("gpu")`.

    checks: against the CPU or plain PEFT, within bounds. compared, agree, differ: numbers of the reference, run again
    in bfloat16. grouped, together: how many times as fast as plain, with how many experiments; large: the same of a
    model of 7B shape. adapters: how many fit. decode: gain of many rows at once. cudnn: loss by its attention.
    """
    if not found:
        return dict.fromkeys(NUMBERS, "n/a")
    lines = found[-1]["lines"]
    again = of(lines, "cells")["four cells, bfloat16, against the reference"]
    timed = [line for line in of(lines, "grid").values() if "times_plain" in line]
    best = max(timed, key=lambda line: line["times_plain"])
    parts, decode = of(lines, "large"), of(lines, "decode")
    plain, grouped = (parts[f"LLaVA-1.5: {name}"] for name in ("plain, 16 rows", "4 adapters, 16 rows each"))
    off, on = (decode[f"bfloat16: 256k tokens at once{end}"]["rows_per_s"] for end in ("", ", cuDNN attention"))
    fastest = max(line["rows_per_s"] for line in decode.values())
    return {
        "card": found[-1]["machine"]["device"],
        "checks": str(sum("bound" in line for line in of(lines, "check").values())),
        "compared": str(again["numbers"]), "agree": str(again["intervals_meet"]), "differ": f"{again['worst']:g}",
        "grouped": f"{best['times_plain']:.0f}", "together": str(best["cells"]),
        "large": f"{grouped['tokens_per_s'] / plain['tokens_per_s']:.1f}",
        "adapters": str(parts["LLaVA-1.5: largest bank"]["fits"]),
        "decode": f"{fastest / decode['bfloat16: 16k tokens at once']['rows_per_s']:.0f}", "cudnn": f"{off / on:.0f}",
    }  # fmt: skip


def of(lines: Iterable[Line], step: str) -> dict[str, Line]:
    """The parts of one step of `benchmarks/gpu.py`, by name."""
    return {line["part"]: line for line in lines if line["step"] == step}


def groups(found: Sequence[Mapping[str, Any]], precision: str = "bfloat16") -> pd.DataFrame:
    """Grouped experiments against the plain way in one precision: a line per number of experiments."""
    lines = [line for kept in found[-1:] for line in of(kept["lines"], "grid").values() if line["rows"] == 256]
    lines = [{"times_plain": 1.0} | line for line in lines if line["part"].startswith(precision)]
    return tables.readable(pd.DataFrame(lines), {
        "experiments": "cells", "way": lambda line: WAYS[line["way"]],
        "a minute": lambda line: round(line["cells_per_minute"]),
        "times plain": lambda line: words.number(line["times_plain"], digits=1),
        "memory, GiB": lambda line: words.number(line["peak_gib"], digits=1),
    })  # fmt: skip
