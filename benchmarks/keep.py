"""Where do a benchmark's numbers go? One JSON file: what was measured, on what, amid how much other work.

Called by `grid.py` and `poisoning.py` for their option --out. The files in `results/` are what the book's
chapter on cost shows, by way of `bvlm_book.chapters.cost`.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

PLAIN = (str, int, float, bool, list, type(None))  # of the options, what JSON knows


class Kept:
    """Takes the state of the machine when it is made, and writes the file at the end.

    benchmark: the script's name. device, threads: what the work runs on.
    """

    def __init__(self, benchmark: str, device: str, threads: int):
        self.about = {
            "benchmark": benchmark,
            "machine": {
                "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
                "processor": _processor(),
                "cores": os.cpu_count(),
                "threads": threads,
                "torch": torch.__version__,
            },
            # The mean number of processes that wanted a core in the minute before: 0 on a quiet machine.
            "load_before": _load(),
        }

    def write(self, file: Path, arguments: argparse.Namespace, lines: list[dict[str, Any]]) -> None:
        """Write `lines`, a dictionary of plain values per measurement, with the options behind them."""
        given = {key: value for key, value in vars(arguments).items() if isinstance(value, PLAIN)}
        whole = self.about | {
            "load_after": _load(),
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "arguments": {key: value for key, value in given.items() if key not in ("out", "surrogate")},
            "lines": [{key: _short(value) for key, value in line.items()} for line in lines],
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _processor() -> str:
    """The processor's name where Linux tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
