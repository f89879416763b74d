"""Does work survive what happens to it? A group that does not fit, a training that is stopped, a study that was."""

import dataclasses
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import torch

from bvlm_utils import store, study
from bvlm_utils.models import victim
from bvlm_utils.train import grouped, unfinished
from gpu_steps import jobs
from gpu_steps.common import own_cache, release

GROUP = 8


def halving(device: str, rows: int) -> dict:
    """Adapters of a group that was given less memory than it wants, against those of one that had it.

    On a CPU nothing is limited, and the two are the same. On a card an allocation has to be refused.
    """
    one = victim.from_pretrained("tiny-llava", device, torch.float32)
    cuda = device.startswith("cuda")
    wanted = jobs.jobs(one, GROUP if cuda else 2, jobs.scene_rows(rows))
    base, before = _held(cuda), _failures(cuda)
    free = grouped.finetune_group(one, wanted)
    peak = torch.cuda.max_memory_reserved() if cuda else 0
    release()
    limited, share = None, 1.0
    try:
        for share in (0.5, 0.3, 0.15) if cuda else (1.0,):
            _limit(cuda, base + share * (peak - base))
            limited = grouped.finetune_group(one, wanted)
            if _failures(cuda) > before:
                break
            release()
    finally:
        _limit(cuda, None)
    distances = [
        jobs.moved_apart(ours.state, theirs.state, jobs.start_of(one, job))
        for ours, theirs, job in zip(limited, free, wanted, strict=True)
    ]
    refused = _failures(cuda) - before
    distance = max(distances) if refused or not cuda else float("inf")  # else nothing was halved
    return {"distance": distance, "bound": 1e-2, "share_of_peak": share, "refused_allocations": refused}


def _held(cuda: bool) -> int:
    """The bytes that are reserved now; the peak starts anew."""
    release()
    if not cuda:
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_reserved()


def _failures(cuda: bool) -> int:
    return torch.cuda.memory_stats().get("num_ooms", 0) if cuda else 0


def _limit(cuda: bool, size: float | None) -> None:
    if cuda:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(1.0 if size is None else min(1.0, size / total))


class _Stopped(Exception):
    pass


def half_trained(device: str, rows: int) -> dict:
    """Adapters of a group that was stopped half-way and went on from what it had saved, against those never stopped."""
    one = victim.from_pretrained("tiny-llava", device, torch.float32)
    wanted = [dataclasses.replace(job, name=f"{job.seed}") for job in jobs.jobs(one, 2, jobs.scene_rows(max(rows, 32)))]
    whole, seen = grouped.finetune_group(one, wanted), []

    def stop(step: int, steps: int, loss: float) -> None:
        if 2 * step >= steps:
            raise _Stopped

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(unfinished, "EVERY", 0.0):
        try:
            grouped.finetune_group(one, wanted, stop, Path(folder))
        except _Stopped:
            pass
        again = grouped.finetune_group(one, wanted, lambda step, *_: seen.append(step), Path(folder))
    distances = [
        jobs.moved_apart(ours.state, theirs.state, jobs.start_of(one, job))
        for ours, theirs, job in zip(again, whole, wanted, strict=True)
    ]
    distance = max(distances) if seen[0] > 1 else float("inf")  # else it began anew
    return {"distance": distance, "bound": 1e-3, "first_step": seen[0], "steps": len(whole[0].losses)}


def resume(device: str, rows: int) -> dict:
    """The share of answers that a cell gives otherwise when it is run again beside a finished one.

    The device is the study's own choice, as for every reader.
    """
    with own_cache(rows=64), tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        cells = study.cells("targeted_refusal", attacks=["BadNets-T", "Blended"], train_rows=max(rows, 32), test_rows=8)
        study.run_cells(cells, place)
        first, second = ((place / cell.run_id) for cell in cells)
        written = (first / "record.json").stat().st_mtime_ns
        before = store.responses(cells[1], place)["response"].tolist()
        shutil.rmtree(second)
        study.run_cells(cells, place)
        again = store.responses(cells[1], place)["response"].tolist()
        touched = (first / "record.json").stat().st_mtime_ns != written
    wrong = sum(a != b for a, b in zip(before, again, strict=True)) / len(before)
    return {"distance": 1.0 if touched else wrong, "bound": 0.1, "answers": len(before)}
