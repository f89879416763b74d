"""Opening a checkpoint: the one place where transformers reads a model's files. Code of a folder is never run, no
pickle opened but by torch with `weights_only`; weights that are missing, left over or of another size are refused.
"""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bvlm_utils.errors import InputError
from bvlm_utils.models import files, names

# Words that nobody here can act on: PEFT imports a library for 4 bit that looks for kernels, and asks transformers for
# an attribute by its old name.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)

# No option of a call may undo these.
SAFE: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
OF_WEIGHTS = SAFE | {"weights_only": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
NOWHERE = torch.device("meta")  # for a model without the numbers of its weights: names and sizes are checked
PATIENCE = 2.0  # seconds until a hub that does not answer is taken to be out of reach
PATTERNS = [f"*{kind}" for kind in sorted(files.KINDS)]


def folder(name: str) -> Path:
    """The folder of the model `name`; a hub id is downloaded unless it was before. InputError if it is not whole or not
    there.
    """
    path = names.resolve(name)
    place = Path(path) if Path(path).is_dir() else downloaded(path) or _download(path)
    files.check(place)
    return place


def config(path: Path) -> Any:
    from transformers import AutoConfig

    found = _read("the configuration", path, lambda: AutoConfig.from_pretrained(path, **SAFE))
    files.check_layers(found.to_dict(), path)  # with what config.json leaves to the architecture
    return found


def tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    # A text that is too long is refused by `context_length`; transformers would only warn of it.
    options = SAFE | {"model_max_length": sys.maxsize}
    return _read("the tokenizer", path, lambda: AutoTokenizer.from_pretrained(path, **options))


def image_processor(path: Path) -> Any:
    from transformers import AutoImageProcessor

    return _read("the image processor", path, lambda: AutoImageProcessor.from_pretrained(path, backend="pil", **SAFE))


def weights(kind: Any, path: Path, **options: Any) -> nn.Module:
    """A model of transformers' class `kind` with each of its weights from the folder, or InputError."""
    safe = files.parts(path)[0].endswith(".safetensors")
    options |= {"use_safetensors": safe} | OF_WEIGHTS
    model, report = _read("the weights", path, lambda: kind.from_pretrained(path, **options))
    buffers = {name for name, _ in model.named_buffers()}  # older checkpoints store what is computed today
    left_over = {name for name in report["unexpected_keys"] if name not in buffers}
    wrong_size = {name for name, *_ in report["mismatched_keys"]}
    total = len(dict(model.named_parameters(remove_duplicate=False)))
    refuse_gaps(f"The model in {path}", f"the {type(model).__name__} of its config.json", {
        "are missing": (set(report["missing_keys"]) - wrong_size, total),
        "are of another size": (wrong_size, total),
        "fit nothing in it": (left_over, total + len(left_over)),
    })  # fmt: skip
    known = [(name, value) for name, value in model.named_parameters() if value.is_floating_point() and value.numel()]
    # The ends tell of every value, in a tenth of the time of looking at each: 20 s and not 5 min for 14 GB in 16 bit.
    if strange := {name for name, v in known if not v.is_meta and not torch.stack(v.aminmax()).isfinite().all()}:
        raise InputError(
            f"{len(strange)} of {total} weights of the model in {path} have values that are no number "
            f"({min(strange)!r} for one); copy its files again."
        )
    return model


def refuse_gaps(what: str, base: str, gaps: dict[str, tuple[set[str], int]]) -> None:
    """InputError if any weights of `what` do not fit `base`. gaps: how they differ -> their names, of how many."""
    problems = [f"{len(bad)} of {n} weights {how} ({min(bad)!r} for one)" for how, (bad, n) in gaps.items() if bad]
    if problems:
        raise InputError(f"{what} does not fit {base}: {', '.join(problems)}; give files that belong together.")


def device(given: str | torch.device | None) -> torch.device:
    """A device that is there, or InputError. None: the GPU of this process (`torchrun` numbers them), or the CPU."""
    if given is None:
        given = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(given)
        if isinstance(given, str) and chosen.type == "meta":
            raise ValueError("it holds no numbers")
        torch.empty(1, device=chosen)
    # What a name that is none raises differs by back end: builds without CUDA assert, others lack a module or a kernel.
    except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError, ImportError):
        here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise InputError(f"There is no device {str(given)!r} here; choose from: {', '.join(here)}.") from None
    return chosen


@contextmanager
def quiet() -> Iterator[None]:
    """Neither bars nor notes of the libraries while the block runs: what is wrong is said as an InputError."""
    from transformers.utils import logging as ours

    bars, level = ours.is_progress_bar_enabled(), ours.get_verbosity()
    ours.disable_progress_bar()
    ours.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ours.set_verbosity(level)
        if bars:
            ours.enable_progress_bar()


def _read(what: str, path: Path, load: Callable[[], Any]) -> Any:
    """What `load` gives. A library may raise anything over a bad file: all is the file's fault, but for memory."""
    try:
        with quiet():
            return load()
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(f"{what.capitalize()} of the model in {path} cannot be read: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """A library's error as the end of a sentence: its first line, of no more than a line's length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "nothing is said about it"
    return f"{type(error).__name__}, {text[:200].rstrip('.:')}."


def four_bit(dtype: torch.dtype) -> Any:
    """How weights are packed into 4 bit; InputError without the package that does it."""
    from transformers import BitsAndBytesConfig

    names.check_four_bit()
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_type="nf4")


def one_path(model: nn.Module) -> None:
    """Let 4-bit layers answer as they train: on every CPU alike, and for layers of any size.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a layer the first time it is asked outside training: into
    bfloat16 whatever the compute dtype, and only where its sizes are multiples of 32 and 64.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def downloaded(hub_id: str) -> Path | None:
    """The folder of an earlier download that is whole: what was loaded once stays what it is, without a network."""
    place = names.folder(hub_id)
    if place is None:
        return None
    have = {name.name for name in files.read(place) if name.is_file()}
    whole = {"tokenizer_config.json"} <= have and have & {"preprocessor_config.json", "processor_config.json"}
    needed = files.parts(place)
    return place if whole and needed and all((place / part).exists() for part in needed) else None


def _download(hub_id: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    neither = f"{hub_id!r} is neither a folder here nor a model that was downloaded before"
    if constants.HF_HUB_OFFLINE or not _answers(constants.ENDPOINT):
        raise InputError(f"{neither}, and {constants.ENDPOINT} cannot be reached; check the name and the network.")
    try:
        place = Path(snapshot_download(hub_id, allow_patterns=PATTERNS, ignore_patterns=["*/*"]))
        if not all((place / part).exists() for part in files.parts(place) or ["weights"]):  # none in safetensors
            snapshot_download(hub_id, allow_patterns=["pytorch_model*.bin"], ignore_patterns=["*/*"])
        return place
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(
            f"{neither}, and {constants.ENDPOINT} does not give it ({type(error).__name__}); check the name, or log in "
            "with `hf auth login` if it is behind a licence."
        ) from error


def _answers(address: str) -> bool:
    """Whether a server is there. In a thread: looking up a name without a network has no time limit of its own."""
    from huggingface_hub.utils import get_session

    heard: list[bool] = []

    def ask() -> None:
        try:
            get_session().head(address, timeout=PATIENCE)
        except Exception:  # noqa: BLE001, whatever it is, the hub has not answered
            return
        heard.append(True)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return bool(heard)
