"""The section "On a GPU" of the chapter on cost: what `benchmarks/gpu.sh` measured, as tables with a sentence each."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from bvlm_book import page, words

Line = Mapping[str, Any]


WAYS = {"plain": "plain: Trainer, PEFT, generate", "grouped": "all cells at once"}


def show(found: Iterable[Mapping[str, Any]]) -> None:
    """Put every kept result of benchmarks/gpu.sh on the page, or say how to make one.

    found: `cost.benchmarks("gpu")`.
    """
    if not found:
        page.say("**Not measured yet**: `benchmarks/gpu.sh OUT` measures it on a machine with a GPU.")
    for kept in found:
        lines, machine = kept["lines"], kept["machine"]
        page.say(f"**{machine['device']}**, torch {machine['torch']}, {kept['written'][:10]}. {agreement(lines)}")
        page.show_table(groups(lines), groups_caption(lines))
        page.show_table(large(lines), large_caption(lines))
        page.show_table(rates(lines), rates_caption(lines))
        page.say(kept["note"])


def of(lines: Iterable[Line], step: str) -> dict[str, Line]:
    """The parts of one step of `benchmarks/gpu.py`, by name."""
    return {line["part"]: line for line in lines if line["step"] == step}


def agreement(lines: Iterable[Line]) -> str:
    """Does the card give what the CPU gives? Sentences."""
    checks = of(lines, "check")
    bounded = [line for line in checks.values() if "bound" in line]
    cells = of(lines, "cells")
    said = f"All {len(bounded)} comparisons with the CPU or with plain PEFT stay within their bounds. "
    for dtype in ("float32", "bfloat16"):
        line = cells.get(f"four cells, {dtype}, against the reference")
        if line:
            said += (
                f"Four cells of the reference, run again in {dtype}: {line['intervals_meet']} of {line['numbers']} "
                f"numbers agree, the largest difference is {line['worst']:g}. "
            )
    return said.strip()


def groups(lines: Iterable[Line]) -> pd.DataFrame:
    """Grouped cells against the plain way: a line per precision and number of cells."""
    found = [line for line in of(lines, "grid").values() if line["rows"] == 256]
    return pd.DataFrame(
        [
            {
                "precision": line["part"].partition(":")[0],
                "way": WAYS[line["way"]],
                "cells": line["cells"],
                "cells a minute": round(line["cells_per_minute"]),
                "times plain": words.number(line.get("times_plain", 1.0), digits=1),
                "same answers": "" if line["way"] == "plain" else words.number(line.get("same_answers")),
                "peak memory, GiB": words.number(line["peak_gib"], digits=1),
            }
            for line in found
        ]
    )


def groups_caption(lines: Iterable[Line]) -> str:
    best = max(
        (line for line in of(lines, "grid").values() if "times_plain" in line), key=lambda line: line["times_plain"]
    )
    return (
        f"One tiny cell leaves the card idle; {best['cells']} cells at once are {best['times_plain']:.0f} times as "
        "fast as the plain way. tiny-llava, 256 training rows and 64 answers a cell."
    )


def large(lines: Iterable[Line]) -> pd.DataFrame:
    """A random model of LLaVA-1.5-7B's shape: training and answering, plain and grouped."""
    return pd.DataFrame(
        [
            {
                "what": line["part"].partition(": ")[2],
                "tokens a second": round(line["tokens_per_s"]),
                "peak memory, GiB": words.number(line["peak_gib"], digits=1),
            }
            for line in of(lines, "large").values()
            if "tokens_per_s" in line
        ]
    )


def large_caption(lines: Iterable[Line]) -> str:
    parts = of(lines, "large")
    plain, grouped = parts["LLaVA-1.5: plain, 16 rows"], parts["LLaVA-1.5: 4 adapters, 16 rows each"]
    bank, gain = parts["LLaVA-1.5: largest bank"], grouped["tokens_per_s"] / plain["tokens_per_s"]
    return (
        f"At 7B size the products fill the card, and grouping makes training {gain:.1f} times as fast. "
        f"{bank['fits']} adapters fit at once with one row of {bank['tokens_each']} tokens each. Weights are random, "
        "so this says nothing about backdoors in 7B models."
    )


def rates(lines: Iterable[Line]) -> pd.DataFrame:
    """Decoding, attention and triggers: what one setting or another costs."""
    decode, attention = of(lines, "decode"), of(lines, "attention")
    poison, optimised = of(lines, "poison"), of(lines, "optimised")
    rows = [(f"answers, {part}", line["rows_per_s"], "answers a second") for part, line in decode.items()]
    rows += [
        (f"attention at a new length, {part}", line["first_ms"], "ms the first time")
        for part, line in attention.items()
        if part.startswith("7B")
    ]
    rows += [(f"{part}, batched", line["batched"], "pictures a second") for part, line in poison.items()]
    rows += [
        (f"Shadowcast, {line['side']} px", line["image_steps_per_s"], "picture steps a second")
        for part, line in optimised.items()
        if part == "Shadowcast"
    ]
    return pd.DataFrame(
        [{"what": what, "rate": f"{value:,.0f}" if value >= 10 else words.number(value), "unit": unit}
         for what, value, unit in rows]
    )  # fmt: skip


def rates_caption(lines: Iterable[Line]) -> str:
    decode = of(lines, "decode")
    off, on = (decode[f"bfloat16: 256k tokens at once{end}"]["rows_per_s"] for end in ("", ", cuDNN attention"))
    few = decode["bfloat16: 16k tokens at once"]["rows_per_s"]
    most = max(line["rows_per_s"] for line in decode.values())
    return (
        f"Many rows at once make decoding {most / few:.0f} times as fast as the batches that suit a CPU. cuDNN's "
        f"attention plans every new length anew and is {off / on:.0f} times slower here, so it is switched off."
    )
