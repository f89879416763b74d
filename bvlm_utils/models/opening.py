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
    """The folder of the model `name`; a hub id is downloaded unless it was before. InputError if not all is there."""
    location = names.resolve(name)
    path = Path(location) if Path(location).is_dir() else downloaded(location) or _download(location)
    files.check(path)
    return path


def config(path: Path) -> Any:
    configuration = _auto("the configuration", "AutoConfig", path)
    files.check_layers(configuration.to_dict(), path)  # with what config.json leaves to the architecture
    return configuration


def tokenizer(path: Path) -> Any:
    # A text that is too long is refused by `context_length`; transformers would only warn of it.
    return _auto("the tokenizer", "AutoTokenizer", path, model_max_length=sys.maxsize)


def image_processor(path: Path) -> Any:
    return _auto("the image processor", "AutoImageProcessor", path, backend="pil")


def _auto(part: str, kind: str, path: Path, **options: Any) -> Any:
    import transformers

    reader = getattr(transformers, kind)
    return _read(part, path, lambda: reader.from_pretrained(path, **options, **SAFE))


def weights(model_class: Any, path: Path, **options: Any) -> nn.Module:
    """A model of the transformers class `model_class` with each of its weights from the folder, or InputError."""
    safe = files.parts(path)[0].endswith(".safetensors")
    options |= {"use_safetensors": safe} | OF_WEIGHTS
    model, report = _read("the weights", path, lambda: model_class.from_pretrained(path, **options))
    buffers = {name for name, _ in model.named_buffers()}  # older checkpoints store what is computed today
    left_over = {name for name in report["unexpected_keys"] if name not in buffers}
    wrong_size = {name for name, *_ in report["mismatched_keys"]}
    total = len(dict(model.named_parameters(remove_duplicate=False)))
    refuse_gaps(f"The model in {path}", f"the {type(model).__name__} of its config.json", {
        "are missing": (set(report["missing_keys"]) - wrong_size, total),
        "are of another size": (wrong_size, total),
        "fit nothing in it": (left_over, total + len(left_over)),
    })  # fmt: skip
    values = [(name, value) for name, value in model.named_parameters() if value.is_floating_point() and value.numel()]
    # The ends tell of every value, in a tenth of the time of looking at each: 20 s and not 5 min for 14 GB in 16 bit.
    if not_finite := {name for name, v in values if not v.is_meta and not torch.stack(v.aminmax()).isfinite().all()}:
        raise InputError(
            f"{len(not_finite)} of {total} weights of the model in {path} have values that are no number "
            f"({min(not_finite)!r} for one); copy its files again."
        )
    return model


def refuse_gaps(owner: str, base: str, gaps: dict[str, tuple[set[str], int]]) -> None:
    """InputError if any weights of `owner` do not fit `base`. gaps: how they differ -> their names, of how many."""
    problems = [f"{len(bad)} of {n} weights {gap} ({min(bad)!r} for one)" for gap, (bad, n) in gaps.items() if bad]
    if problems:
        raise InputError(f"{owner} does not fit {base}: {', '.join(problems)}; give files that belong together.")


def device(name: str | torch.device | None) -> torch.device:
    """A device that is there, or InputError. None: the GPU of this process (`torchrun` numbers them), or the CPU."""
    if name is None:
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        torch_device = torch.device(name)
        if isinstance(name, str) and torch_device.type == "meta":
            raise ValueError("it holds no numbers")
        torch.empty(1, device=torch_device)
    # What a name that is none raises differs by back end: builds without CUDA assert, others lack a module or a kernel.
    except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError, ImportError):
        devices = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise InputError(f"There is no device {str(name)!r} here; choose from: {', '.join(devices)}.") from None
    return torch_device


@contextmanager
def quiet() -> Iterator[None]:
    """Neither bars nor notes of the libraries while the block runs: what is wrong is said as an InputError."""
    from transformers.utils import logging as library_logging

    bars, level = library_logging.is_progress_bar_enabled(), library_logging.get_verbosity()
    library_logging.disable_progress_bar()
    library_logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        library_logging.set_verbosity(level)
        if bars:
            library_logging.enable_progress_bar()


def _read(part: str, path: Path, load: Callable[[], Any]) -> Any:
    """What `load` gives. A library may raise anything over a bad file: all is the file's fault, but for memory."""
    try:
        with quiet():
            return load()
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(f"{part.capitalize()} of the model in {path} cannot be read: {first_line(error)}") from error


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


def one_path(model: nn.Module) -> nn.Module:
    """The model, whose 4-bit layers now answer as they train: on every CPU alike, and for layers of any size.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a layer the first time it is asked outside training: into
    bfloat16 whatever the compute dtype, and only where its sizes are multiples of 32 and 64.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return model


def downloaded(hub_id: str) -> Path | None:
    """The folder of an earlier download that is whole: what was loaded once stays what it is, without a network."""
    path = names.folder(hub_id)
    if path is None:
        return None
    present = {file.name for file in files.read(path) if file.is_file()}
    whole = {"tokenizer_config.json"} <= present and present & {"preprocessor_config.json", "processor_config.json"}
    weight_files = files.parts(path)
    return path if whole and weight_files and all((path / part).exists() for part in weight_files) else None


def _download(hub_id: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    reason = f"{hub_id!r} is neither a folder here nor a model that was downloaded before"
    if constants.HF_HUB_OFFLINE or not _answers(constants.ENDPOINT):
        raise InputError(f"{reason}, and {constants.ENDPOINT} cannot be reached; check the name and the network.")
    try:
        path = Path(snapshot_download(hub_id, allow_patterns=PATTERNS, ignore_patterns=["*/*"]))
        if not all((path / part).exists() for part in files.parts(path) or ["weights"]):  # none in safetensors
            snapshot_download(hub_id, allow_patterns=["pytorch_model*.bin"], ignore_patterns=["*/*"])
        return path
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(
            f"{reason}, and {constants.ENDPOINT} does not give it ({type(error).__name__}); check the name, or log in "
            "with `hf auth login` if it is behind a licence."
        ) from error


def _answers(address: str) -> bool:
    """Whether a server is there. In a thread: looking up a name without a network has no time limit of its own."""
    from huggingface_hub.utils import get_session

    replies: list[bool] = []

    def ask() -> None:
        try:
            get_session().head(address, timeout=PATIENCE)
        except Exception:  # noqa: BLE001, whatever it is, the hub has not answered
            return
        replies.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return bool(replies)
