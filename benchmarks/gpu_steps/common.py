"""What do the steps share? Time left, one JSON line per part as soon as it is done, and honest timing."""

import gc
import json
import statistics
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bvlm_utils import paths


class Run:
    """One step while it runs: its size, its device, its seconds and its file.

    small: the rehearsal, with sizes that a CPU does in seconds. limit: the seconds of the whole step.
    """

    def __init__(self, step: str, out: Path, small: bool, limit: float):
        self.step, self.out, self.small = step, out, small
        self.ends = time.perf_counter() + limit
        self.cuda = torch.cuda.is_available()
        self.device = "cuda:0" if self.cuda else "cpu"

    def left(self) -> float:
        return self.ends - time.perf_counter()

    def size(self, small: Any, full: Any) -> Any:
        return small if self.small else full

    def note(self, part: str, **numbers: Any) -> None:
        """Append one line to the file, and print it."""
        line = json.dumps({"step": self.step, "part": part} | {key: _short(one) for key, one in numbers.items()})
        print(line, flush=True)
        with self.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def do(self, part: str, work: Callable[[], dict[str, Any]], needs: float = 0.0) -> dict[str, Any] | None:
        """Note what `work` gives, or its last error line: the parts after it go on. None where it gave nothing.

        needs: seconds below which the part is left out.
        """
        if self.left() < needs:
            self.note(part, left_out=f"needs {needs:.0f} s, {max(0.0, self.left()):.0f} s were left")
            return None
        started, failed, numbers = time.perf_counter(), "", None
        try:
            numbers = work()
        except Exception as error:  # the record says so, and the trace is in the log
            traceback.print_exc()
            failed = first_line(error)
        seconds = time.perf_counter() - started
        release()
        self.note(part, seconds=seconds, **({"failed": failed[:300]} if failed else numbers))
        return numbers


def first_line(error: BaseException) -> str:
    """The kind of an error and its first line that says something: a compiler's first one names only its backend."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.endswith("raised:")] or lines
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def judged(found: dict[str, Any]) -> dict[str, Any]:
    """Numbers with a `distance` and a `bound`, and that they failed where the bound is passed."""
    if not found["distance"] <= found["bound"]:  # nan is no agreement
        return found | {"failed": f"{found['distance']:.3g} apart, the bound is {found['bound']:g}"}
    return found


WARNING = 4.0  # seconds before the end of a step at which what is there so far is noted


@contextmanager
def noted_in_time(run: Run, part: str, so_far: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Notes what there is when the step is about to be stopped inside the `with`."""
    ended = threading.Event()

    def watch() -> None:
        if not ended.wait(max(0.0, run.left() - WARNING)):
            run.note(part, **so_far())

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def agreement(pairs: Iterable[tuple[str, Sequence[float], Sequence[float]]]) -> dict[str, Any]:
    """How many intervals meet, and the worst difference. pairs: name, and twice value, low, high.

    A paired interval of a difference meets zero: its other side is (0, 0, 0).
    """
    met, total, worst = 0, 0, (0.0, "")
    for name, (value, low, high), (other, other_low, other_high) in pairs:
        total += 1
        met += low <= other_high and other_low <= high
        worst = max(worst, (abs(value - other), name))
    return {"numbers": total, "intervals_meet": met, "worst": worst[0], "worst_is": worst[1]}


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {str(key): _short(one) for key, one in value.items()}
    return [_short(one) for one in value] if isinstance(value, (list, tuple)) else value


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def once(work: Callable[[], Any], device: str) -> float:
    """The seconds of one run, from an idle device to an idle device."""
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def timed(work: Callable[[], Any], device: str, repeats: int = 5) -> float:
    """The median seconds of `repeats` runs, after one to warm up."""
    once(work, device)
    return statistics.median(once(work, device) for _ in range(repeats))


@contextmanager
def cudnn_attention(on: bool) -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(on)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@contextmanager
def own_cache(rows: int | None = None) -> Iterator[Path]:
    """A cache folder of its own, so that no trigger computed elsewhere is read.

    rows: draw so few scenes of each split; with None, scenes that were drawn before are used.
    """
    from bvlm_utils.data import samples

    before, counts = paths.CACHE, dict(samples.ROWS)
    with tempfile.TemporaryDirectory() as folder:
        paths.CACHE = Path(folder)
        if rows:
            samples.ROWS.update(dict.fromkeys(counts, rows))
        else:
            (before / "datasets").mkdir(parents=True, exist_ok=True)
            (paths.CACHE / "datasets").symlink_to((before / "datasets").resolve())
        try:
            yield paths.CACHE
        finally:
            paths.CACHE = before
            samples.ROWS.update(counts)
