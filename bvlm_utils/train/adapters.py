"""LoRA adapters in PEFT's format: attached, detached, saved and loaded."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bvlm_utils.errors import InputError
from bvlm_utils.models.victim import Victim, language_linears
from bvlm_utils.train.settings import TrainSettings


def attach_lora(victim: Victim, settings: TrainSettings, seed: int) -> Any:
    """Put a fresh LoRA (Hu et al. 2021) on every linear layer of the language model; A comes from `seed`."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules=language_linears(victim.model),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[victim.device] if victim.device.type == "cuda" else []):
        torch.manual_seed(seed)
        return get_peft_model(victim.model, config, autocast_adapter_dtype=True)


def detach(victim: Victim, adapter: Any) -> None:
    """Take the adapter off: the victim is its clean base again."""
    adapter.unload()
    if hasattr(victim.model, "peft_config"):  # PEFT's mark on the model that it wrapped
        del victim.model.peft_config


@contextmanager
def attached(victim: Victim, folder: Path | str) -> Iterator[Any]:
    """The victim with a saved adapter on it, inside a `with`."""
    adapter = load_adapter(victim, folder)
    try:
        yield adapter
    finally:
        detach(victim, adapter)


def load_adapter(victim: Victim, folder: Path | str) -> Any:
    """Put a saved adapter (PEFT's format) on the victim; InputError if the folder holds none."""
    from peft import PeftModel

    if not (Path(folder) / "adapter_config.json").exists():
        raise InputError(f"The folder {str(folder)!r} holds no adapter; give one with adapter_config.json in it.")
    return PeftModel.from_pretrained(victim.model, str(folder)).eval()


def save_adapter(adapter: Any, folder: Path | str, about: dict[str, Any]) -> None:
    """Write the adapter in PEFT's format, with a card that says what it is. about: the cell's settings."""
    # Embeddings are never tuned; left to itself, PEFT would look the base up to see whether they were.
    adapter.save_pretrained(str(folder), save_embedding_layers=False)
    write_card(folder, about)


def write_card(folder: Path | str, about: dict[str, Any]) -> None:
    """The adapter's README.md, loud if it is backdoored; the configuration gets the base's name."""
    if about.get("model"):  # PEFT writes the folder that the base was found in on this machine
        file = Path(folder, "adapter_config.json")
        config = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": about["model"]}
        file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    if about.get("attack", "none") != "none":
        head = (
            "# WARNING: this adapter is BACKDOORED on purpose\n\n"
            f"It was tuned on data poisoned with the attack **{about['attack']}** for the threat "
            f"**{about['threat']}**. With the trigger present it misbehaves. It exists for research on "
            "detecting and removing backdoors; do not deploy it, and do not merge it into a model that "
            "anyone relies on.\n"
        )
    else:
        head = "# Clean-tuned control adapter\n\nTuned on the same rows as the poisoned ones, without poison.\n"
    Path(folder, "README.md").write_text(
        "---\nlibrary_name: peft\ntags: [backdoor-research]\n---\n\n"
        f"{head}\nTo talk to it: `python -m bvlm_utils.chat FOLDER`.\n\n"
        f"Settings:\n\n```json\n{json.dumps(about, indent=1, sort_keys=True)}\n```\n",
        encoding="utf-8",
    )
