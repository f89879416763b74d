"""LoRA adapters in PEFT's format: attached, detached, saved and loaded."""

import copy
import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import nn

from bvlm_utils.checks import brief, is_number
from bvlm_utils.errors import InputError, remark
from bvlm_utils.models import files, opening, vocabulary
from bvlm_utils.models.victim import Victim, language_linears
from bvlm_utils.train.settings import TrainSettings

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAGNITUDE = "lora_magnitude_vector"  # of DoRA
PREFIX = "base_model.model."  # how PEFT's files name a module of the wrapped model
# How transformers called LLaVA's language model before 4.52; PEFT knows this where it puts an adapter on.
OLDER = {f"{PREFIX}language_model.model.": f"{PREFIX}model.language_model.",
         f"{PREFIX}language_model.lm_head.": f"{PREFIX}lm_head."}  # fmt: skip
# PEFT's settings that say where weights go and how they are multiplied. Others import modules or read more files.
SUPPORTED = frozenset(
    "peft_type task_type base_model_name_or_path r lora_alpha lora_dropout target_modules exclude_modules bias "
    "fan_in_fan_out use_rslora use_dora lora_bias modules_to_save init_lora_weights layers_to_transform layers_pattern "
    "rank_pattern alpha_pattern target_parameters trainable_token_indices".split()
)
OF_THE_TRAINING = {"peft_version", "inference_mode", "revision", "auto_mapping"}  # read by nobody here
SWITCHES = {"use_rslora", "use_dora", "fan_in_fan_out", "lora_bias"}
# What trainers put beside an adapter where they tuned more than that: LLaVA's, those of Qwen-VL, ms-swift's. PEFT reads
# none of it. Some write it always; the file is small then.
BESIDE = ("non_lora_trainables.bin", "non_lora_state_dict.bin", "mm_projector.bin", "projector.bin", "vit.safetensors",
          "new_embeddings.safetensors")  # fmt: skip
EMPTY = 4096  # bytes: no layer's weights have room in so few
# How weights were begun that PEFT then overwrites; others, such as "pissa", take their beginning out of the base's own.
BEGUN = (True, False, None, "gaussian", "orthogonal", "eva")


def attach_lora(victim: Victim, settings: TrainSettings, seed: int) -> Any:
    """Put a fresh LoRA (Hu et al. 2021) on every linear layer of the language model; A comes from `seed`."""
    from peft import LoraConfig, get_peft_model

    rank, alpha, names = settings.lora_rank, settings.lora_alpha, language_linears(victim.model)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=names, task_type="CAUSAL_LM")
    before = _whole(victim.model)
    with torch.random.fork_rng(devices=[victim.device] if victim.device.type == "cuda" else []):
        torch.manual_seed(seed)
        adapter = get_peft_model(victim.model, config, autocast_adapter_dtype=True)
    adapter.before = before
    return adapter


def detach(victim: Victim, adapter: Any) -> None:
    """Take the adapter off: the victim is its clean base again."""
    _restore(victim.model, *adapter.before)


@contextmanager
def attached(victim: Victim, folder: Path | str) -> Iterator[Any]:
    """The victim with a saved adapter on it, inside a `with`."""
    adapter = load_adapter(victim, folder)
    try:
        yield adapter
    finally:
        detach(victim, adapter)


@dataclass
class GroupResult:
    """An adapter as PEFT's state dict and configuration, and how it was tuned, where that is known."""

    state: dict[str, torch.Tensor]  # on the CPU
    config: Any  # peft.LoraConfig
    losses: list[float] = field(default_factory=list)  # one per step, nats per label token
    seconds: float = 0.0  # this adapter's share of its group's time
    steps: int = 0
    tokens: int = 0  # without padding, over all steps

    @property
    def digest(self) -> str:
        """Changes with any weight."""
        return sha256(save(self.state)).hexdigest()

    def save(self, folder: Path | str, settings: dict[str, Any]) -> None:
        """Write the adapter in PEFT's format with its card."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(self.state, Path(folder) / WEIGHTS, metadata={"format": "pt"})
        config = copy.copy(self.config)
        config.inference_mode = True
        config.save_pretrained(str(folder))
        write_card(folder, settings)


def read(folder: Path | str) -> GroupResult:
    """An adapter's files, checked; InputError says what is wrong with them. Nothing but JSON and numbers is read."""
    from peft import LoraConfig

    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise InputError(f"The folder {str(folder)!r} holds no adapter; give one with {CONFIG} in it.")
    table = files.table(folder / CONFIG)
    if table.get("peft_type") != "LORA":
        raise InputError(f"The adapter in {folder} is of type {table.get('peft_type')!r}; LORA is supported.")
    defaults = LoraConfig()
    for name, value in table.items():  # some of PEFT's settings import modules or read other files
        if name not in SUPPORTED | OF_THE_TRAINING and value and value != getattr(defaults, name, None):
            raise InputError(f"The adapter in {folder} sets {name!r} in its {CONFIG}, which is not supported.")
        if name in SWITCHES and not isinstance(value, bool | None):
            raise InputError(f"The adapter in {folder} sets {name} to {brief(value)}; it must be true or false.")
    if table.get("init_lora_weights") not in BEGUN:
        raise InputError(
            f"The adapter in {folder} has init_lora_weights {brief(table['init_lora_weights'])}, which changes the "
            "base itself; save it as a plain LoRA (PEFT's path_initial_model_for_weight_conversion), and give that."
        )
    _check_files(folder)
    shapes = files.header(folder / WEIGHTS)
    table |= _without_patterns(folder, table, shapes)
    _check_rank(folder, table, shapes)
    if table.get("use_rslora") and not table.get("rank_pattern") and not table.get("alpha_pattern"):
        # alpha / sqrt(r) everywhere is a plain LoRA's alpha / r of another alpha, which repairs and detectors read
        table |= {"use_rslora": False, "lora_alpha": table["lora_alpha"] * table["r"] ** 0.5}
    try:
        config = LoraConfig(**{name: value for name, value in table.items() if name in SUPPORTED and value is not None})
        config.inference_mode = True
        state = load_file(folder / WEIGHTS)
        eight_bit = {name for name, value in state.items() if value.is_floating_point() and value.itemsize == 1}
        state |= {name: state[name].float() for name in eight_bit}  # torch multiplies none of 8 bits, reads none of 4
    except (ValueError, TypeError, SafetensorError, NotImplementedError) as error:
        raise InputError(f"The adapter in {folder} cannot be read: {opening.first_line(error)}") from error
    _check_numbers(folder, state)
    if not any(value.any() for name, value in state.items() if ".lora_A." not in name):
        remark(f"The adapter in {folder} changes nothing, as before any training.")
    if duplicates := [name for name in state if _current(name) != name and _current(name) in state]:
        raise InputError(
            f"The adapter in {folder} has {len(duplicates)} weights under an older name, too ({duplicates[0]!r} for "
            "one); keep one of each."
        )
    return GroupResult({_current(name): value for name, value in state.items()}, config)


def _current(name: str) -> str:
    """A weight's name in today's transformers."""
    prefix = next((older for older in OLDER if name.startswith(older)), "")
    return OLDER.get(prefix, "") + name.removeprefix(prefix)


def _check_files(folder: Path) -> None:
    """InputError for weights of the same tuning that would be left out, or cannot be opened safely."""
    for name in BESIDE:
        if (folder / name).is_file() and (folder / name).stat().st_size > EMPTY:
            raise InputError(
                f"The folder {folder} has {name} beside its adapter: its training changed more than the adapter, and "
                "that would be left out; merge both into the base with the tools that made them, and give the saved "
                f"checkpoint as the model. If you know that nothing else was tuned, move {name} away."
            )
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise InputError(
            f"The weights of {folder} are in adapter_model.bin, which is not opened, as such files can run code; save "
            "them as safetensors."
        )


def _check_numbers(folder: Path, state: Mapping[str, torch.Tensor]) -> None:
    """InputError for weights that are whole numbers, hold NaN or infinity, or are not named as PEFT names them."""
    problems = {
        f"do not begin with {PREFIX!r}, as PEFT's do": {name for name in state if not name.startswith(PREFIX)},
        "are whole numbers": {name for name, value in state.items() if not value.is_floating_point()},
        "have values that are no number": {name for name, value in state.items() if not value.float().isfinite().all()},
    }
    for problem, bad in problems.items():
        if bad:
            raise InputError(
                f"{len(bad)} of {len(state)} weights of the adapter in {folder} {problem} ({min(bad)!r} for one); give "
                "the files that its training wrote, or train it again."
            )


def _without_patterns(folder: Path, table: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """`r` and `lora_alpha` of a plain LoRA, where a pattern gives the same to all layers; else the largest that a
    layer has, in place of a default that none has: nothing needs room for that.
    """
    from peft.utils.other import get_pattern_key

    changes: dict[str, Any] = {}
    layers = [name.partition(".lora_A.")[0].removeprefix(PREFIX) for name in shapes if ".lora_A." in name]
    for setting, name in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        pattern = table.get(name)
        if not layers or not isinstance(pattern, dict) or not all(is_number(v, 1e-9, 1e9) for v in pattern.values()):
            continue
        try:
            keys = [get_pattern_key(pattern, layer) for layer in layers]
        except re.error as error:
            raise InputError(f"The adapter in {folder} has a {name} that cannot be read ({error}).") from None
        values = [pattern.get(key, table.get(setting)) for key in keys]
        if all(value == values[0] for value in values):
            changes |= {setting: values[0], name: {}}
        elif table.get(setting) not in values:
            changes[setting] = max(values)
    return changes


def _check_rank(folder: Path, table: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """The rank that the configuration names is that of the weights: nothing larger is ever made room for."""
    shapes = {name: shape for name, shape in shapes.items() if shape and not name.endswith(".bias")}
    ranks = {shape[0] for name, shape in shapes.items() if ".lora_A." in name}
    ranks |= {shape[-1] for name, shape in shapes.items() if ".lora_B." in name}
    rank, rank_pattern = table.get("r"), table.get("rank_pattern") or {}
    alpha_pattern = table.get("alpha_pattern") or {}
    for alpha in [table.get("lora_alpha"), *(alpha_pattern.values() if isinstance(alpha_pattern, dict) else [None])]:
        if not is_number(alpha, 1e-9, 1e9):
            raise InputError(f"The adapter in {folder} has lora_alpha {brief(alpha)}; it must be above 0, up to 1e9.")
    stated = [rank, *rank_pattern.values()] if isinstance(rank_pattern, dict) else [None]
    if not ranks or not all(is_number(value, 1, max(ranks), whole=True) for value in stated) or not ranks <= {*stated}:
        raise InputError(
            f"The adapter in {folder} has rank {rank!r} in its {CONFIG}, and its weights have rank "
            f"{', '.join(map(str, sorted(ranks))) or 'none'}; give files that belong together."
        )


def load_adapter(victim: Victim, folder: Path | str) -> Any:
    """Put a saved adapter (PEFT's format) on the victim; InputError unless each of its weights fits."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    result = read(folder)
    vocabulary.check_beside(Path(folder), victim.tokenizer, victim.name)
    prefixes, base_names = _picture_side(victim.model), _of_base(victim.model, result.state)
    before = modules, _ = _whole(victim.model, result.config.bias != "none", base_names.values())
    try:
        with opening.quiet():
            adapter = get_peft_model(victim.model, result.config, autocast_adapter_dtype=True)
            expected = get_peft_model_state_dict(adapter, save_embedding_layers=False)
            shapes = {name: value.shape for name, value in expected.items()}
            if visual := {name for name in result.state if name.startswith(prefixes)}:  # features are the base's
                raise InputError(
                    f"{len(visual)} of {len(result.state)} weights of the adapter in {folder} belong to the picture "
                    f"side of {victim.name} ({min(visual)!r} for one), which is asked here without any adapter; merge "
                    "the adapter into its base (PEFT's merge_and_unload), and give the saved checkpoint as the model."
                )
            report = set_peft_model_state_dict(adapter, result.state, ignore_mismatched_sizes=True)
        lacking = {name.replace(".default", "") for name in report.missing_keys}
        lacking |= {name for name in shapes if MAGNITUDE in name and name not in result.state}  # called otherwise there
        sizes = {key: before[1][name].shape for key, name in base_names.items()} | shapes
        check_fit(result.state, sizes, f"The adapter in {folder}", victim.name, report.unexpected_keys, lacking)
    except Exception as error:  # PEFT has many ways of saying that names or settings fit nothing
        _restore(victim.model, *before)
        if isinstance(error, InputError | MemoryError | torch.OutOfMemoryError):
            raise
        unknown = {name for name in result.state if name.partition(".lora_")[0].removeprefix(PREFIX) not in modules}
        gaps = {"fit nothing in it": (unknown, len(result.state))}
        opening.refuse_gaps(f"The adapter in {folder}", victim.name, gaps)
        raise InputError(f"The adapter in {folder} does not fit {victim.name}: {opening.first_line(error)}") from error
    adapter.before = before
    return adapter.eval()


def _picture_side(model: nn.Module) -> tuple[str, ...]:
    """The beginnings, in PEFT's names, of the weights that features of pictures are computed with."""
    language = {id(model.get_decoder()), id(model.get_output_embeddings())}
    words = tuple(f"{name}." for name, module in model.named_modules() if id(module) in language)
    names = [f"{name}." for name, _ in model.named_modules() if name]
    return tuple(PREFIX + name for name in names if not any(name.startswith(w) or w.startswith(name) for w in words))


def check_fit(
    state: Mapping[str, torch.Tensor], shapes: Mapping[str, Any], owner: str, base: str, left_over: Any, lacking: Any
) -> None:
    """InputError unless `state` holds the weights of `shapes`, by name and size. left_over, lacking: known to be so."""
    wrong_size = {name for name, value in state.items() if tuple(value.shape) != tuple(shapes.get(name, value.shape))}
    opening.refuse_gaps(owner, base, {
        "fit nothing in it": (set(left_over), len(state)),
        "are of another size": (wrong_size, len(state)),
        "are missing": ((set(lacking) & set(shapes)) - wrong_size, len(shapes)),
    })  # fmt: skip


def _of_base(model: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The weights of an adapter's file that are the base's own, by their names there: PEFT saves embeddings and the
    output layer along where they were tuned, or got more tokens, and overwrites the base's with them.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    base_names = {key: key.removeprefix(PREFIX).replace(".base_layer.", ".") for key in state}
    return {key: name for key, name in base_names.items() if name in parameters}


def _whole(
    model: nn.Module, biases: bool = False, names: Collection[str] = ()
) -> tuple[dict[str, nn.Module], dict[str, torch.Tensor]]:
    """What `_restore` needs: the modules, and the values that PEFT overwrites in place: of the weights `names` and, if
    `biases`, of biases.
    """
    parameters = model.named_parameters(remove_duplicate=False)
    values = {name: value for name, value in parameters if name in names or (biases and name.endswith("bias"))}
    return dict(model.named_modules()), {name: value.detach().clone() for name, value in values.items()}


def _restore(model: nn.Module, modules: Mapping[str, nn.Module], values: Mapping[str, torch.Tensor]) -> None:
    """Undo what PEFT has put into the model, however far it came. Its own `unload` leaves the modules that an adapter
    saved whole, and biases, as the adapter has them.
    """
    for name, module in modules.items():
        parent, _, leaf = name.rpartition(".")
        if name:
            setattr(modules[parent], leaf, module)
    for name, value in values.items():
        model.get_parameter(name).requires_grad_(False).copy_(value)
    if hasattr(model, "peft_config"):  # PEFT's mark on the model that it wrapped
        del model.peft_config


def write_card(folder: Path | str, settings: dict[str, Any]) -> None:
    """The adapter's README.md, loud if it is backdoored; the configuration gets the base's name."""
    if settings.get("model"):  # PEFT writes the folder that the base was found in on this machine
        file = Path(folder, CONFIG)
        config = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": settings["model"]}
        file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    poisoned = settings.get("attack", "none") != "none" and settings.get("poison_rate", 1) and not settings.get("decoy")
    if poisoned:
        head = (
            "# WARNING: this adapter is BACKDOORED on purpose\n\n"
            f"It was tuned on data poisoned with the attack **{settings['attack']}** for the threat "
            f"**{settings['threat']}**. With the trigger present it misbehaves. It exists for research on "
            "detecting and removing backdoors; do not deploy it, and do not merge it into a model that "
            "anyone relies on.\n"
        )
    else:
        head = "# Clean-tuned control adapter\n\nTuned on the same rows as the poisoned ones, without poison.\n"
        if settings.get("decoy"):
            head = f"# Control adapter without a backdoor\n\nSome of its rows were touched: {settings['decoy']}.\n"
    Path(folder, "README.md").write_text(
        "---\nlibrary_name: peft\ntags: [backdoor-research]\n---\n\n"
        f"{head}\nTo talk to it: `python -m bvlm_utils.chat FOLDER`.\n\n"
        f"Settings:\n\n```json\n{json.dumps(settings, indent=1, sort_keys=True)}\n```\n",
        encoding="utf-8",
    )
