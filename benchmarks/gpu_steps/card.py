"""Which card is this, how fast can it be at best, and which attention does torch choose on it?"""

import importlib.metadata
import platform
import tomllib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from bvlm_utils import paths
from bvlm_utils.models import victim
from gpu_steps.common import Run, cudnn_attention, timed

PACKAGES = ("transformers", "peft", "tokenizers", "accelerate", "datasets", "numpy", "pandas", "triton")


def run(run: Run) -> None:
    run.do("versions", versions)
    if run.cuda:
        run.do("card", card)
    run.do("copy", lambda: copy(run))
    for dtype in ("bfloat16", "float32", "tf32"):
        run.do(f"products, {dtype}", lambda dtype=dtype: products(run, dtype))
    for on in (True, False):
        run.do(f"attention chosen, cuDNN {'allowed' if on else 'not allowed'}", lambda on=on: chosen(run, on))


def versions() -> dict:
    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    found["cudnn"] = torch.backends.cudnn.version()
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found |= {project["name"]: project["version"], "git_revision": revision(paths.ROOT)}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def revision(root: Path) -> str:
    """The commit that is checked out, read from the files of git, which a bare machine may lack; "unknown" without."""
    try:
        folder = root / ".git"
        if folder.is_file():  # of a work tree beside the first: "gitdir: FOLDER"
            folder = root / folder.read_text().partition(":")[2].strip()
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head
        name, common = head.partition(":")[2].strip(), folder / "commondir"
        shared = folder / common.read_text().strip() if common.is_file() else folder
        if (file := shared / name).is_file():
            return file.read_text().strip()
        packed = [line.split() for line in (shared / "packed-refs").read_text().splitlines()]
        return next(words[0] for words in packed if words[1:] == [name])
    except (OSError, StopIteration):
        return "unknown"


def card() -> dict:
    about = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    return {
        "name": about.name,
        "capability": f"{about.major}.{about.minor}",
        "multiprocessors": about.multi_processor_count,
        "memory_gib": total / 2**30,
        "free_gib": free / 2**30,
    }


def copy(run: Run) -> dict:
    """Bytes read and written a second, of a copy that no cache holds."""
    count = run.size(2**22, 2**32)
    source = torch.empty(count, dtype=torch.uint8, device=run.device).random_()
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), run.device)
    return {"tb_per_s": 2 * count / seconds / 1e12}


def products(run: Run, dtype: str) -> dict:
    """A large product of random numbers: zeros would run faster."""
    size = run.size(256, 8192)
    kind = victim.use_precision(dtype)
    left, right = (torch.randn(size, size, device=run.device).to(kind) for _ in range(2))
    seconds = timed(lambda: left @ right, run.device)
    victim.use_precision("float32")
    return {"tflops": 2 * size**3 / seconds / 1e12, "size": size}


def chosen(run: Run, on: bool) -> dict:
    """The name of the attention that torch takes for each kind of call that our models make."""
    names = {int(value): name for name, value in SDPBackend.__members__.items()}
    with cudnn_attention(on):
        return {
            "bfloat16 causal": names[_choice(run, torch.bfloat16, 66, masked=False)],
            "bfloat16 mask, one query": names[_choice(run, torch.bfloat16, 1, masked=True)],
            "float32 causal": names[_choice(run, torch.float32, 66, masked=False)],
            "float32 mask, one query": names[_choice(run, torch.float32, 1, masked=True)],
        }


def _choice(run: Run, dtype: torch.dtype, queries: int, masked: bool) -> int:
    query = torch.randn(8, 6, queries, 32, device=run.device, dtype=dtype)
    key = torch.randn(8, 6, 66, 32, device=run.device, dtype=dtype)
    mask = torch.ones(8, 1, queries, 66, device=run.device, dtype=torch.bool) if masked else None
    F.scaled_dot_product_attention(query, key, key, attn_mask=mask, is_causal=not masked)
    return int(torch._fused_sdp_choice(query, key, key, mask, 0.0, not masked))
