"""Where does the host wait for the card? Counted over one training step and eight tokens of a decode."""

import collections
import traceback
import warnings

import torch

from bvlm_utils.models import victim
from bvlm_utils.train import decode, grouped
from gpu_steps import jobs

TOKENS = 8


def count(device: str, rows: int) -> dict:
    """Synchronisations of a step and of a token, and which lines of ours or of a library ask for them."""
    one = victim.from_pretrained("tiny-llava", device, torch.float32)
    scenes = jobs.scene_rows(rows)
    short, long = (jobs.jobs(one, 4, some) for some in (scenes[: jobs.SETTINGS.batch_size], scenes))
    results = grouped.finetune_group(one, long)  # to warm up
    bank = grouped.bank_of(one, results)
    pairs = [[(row["prompt"], at) for at, row in enumerate(scenes)]] * len(results)

    def ask(tokens: int):
        decode.answer(one, pairs, long[0].features, bank, max_new_tokens=tokens)

    ask(TOKENS)
    few, many = (
        _watched(device, grouped.finetune_group, one, short),
        _watched(device, grouped.finetune_group, one, long),
    )
    begun, ended = _watched(device, ask, 1), _watched(device, ask, 1 + TOKENS)
    steps = len(scenes) // jobs.SETTINGS.batch_size - 1
    return {
        "adapters": len(results),
        "per_step": (many.total() - few.total()) / steps,
        "per_token": (ended.total() - begun.total()) / TOKENS,
        "lines_of_steps": dict((many - few).most_common(12)),
        "lines_of_tokens": dict((ended - begun).most_common(12)),
    }


def _watched(device: str, work, *arguments) -> collections.Counter:
    """How often each line made the host wait while `work` ran."""
    found: collections.Counter = collections.Counter()

    def seen(message, *_) -> None:
        if "synchroniz" in str(message).lower():
            found[_line(traceback.extract_stack())] += 1

    cuda = device.startswith("cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = seen
        if cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            work(*arguments)
        finally:
            if cuda:
                torch.cuda.set_sync_debug_mode("default")
    return found


def _line(stack: traceback.StackSummary) -> str:
    """The innermost line of the package, and what it called where that is elsewhere."""
    frames = [
        frame for frame in stack if "sync.py" not in frame.filename and not frame.filename.endswith("warnings.py")
    ]
    ours = [frame for frame in frames if "bvlm_utils" in frame.filename]
    names = [_short(frame) for frame in (ours[-1:] + frames[-1:])]
    return " > ".join(dict.fromkeys(names))


def _short(frame: traceback.FrameSummary) -> str:
    return f"{'/'.join(frame.filename.rsplit('/', 2)[-2:])}:{frame.lineno} {(frame.line or '')[:60]}"
