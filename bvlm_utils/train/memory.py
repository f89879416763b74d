"""Estimates of the memory that grouped training takes, and what to do when memory runs out."""

import gc
import os
from collections.abc import Sequence

import psutil
import torch
from torch import nn

from bvlm_utils.train.settings import SHARERS

USABLE = 0.8  # of the free memory: estimates are estimates, and allocators leave gaps
CPU_TOKENS, GPU_TOKENS = 3072, 65536  # on a CPU larger pieces fall out of its caches (benchmarks/README.md)
CPU_DECODED, GPU_DECODED = 16384, 2**21  # prompts and answers of all adapters
# What the driver and torch say when a GPU has no memory left, beside torch's own exception.
SIGNS = ("can't allocate memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def tokens_at_once(model: nn.Module, names: Sequence[str], rank: int, groups: int) -> int:
    """How many tokens to train on at once beside `groups` adapters: what fits, and on a CPU what its caches hold."""
    device = next(model.parameters()).device
    free = free_bytes(device) * USABLE - groups * adapter_bytes(model, names, rank)
    return max(1, min(CPU_TOKENS if device.type == "cpu" else GPU_TOKENS, int(free / token_bytes(model))))


def decoded_at_once(model: nn.Module) -> int:
    """How many tokens, prompts and answers of all rows, to decode at once: those whose keys and values fit."""
    device = next(model.parameters()).device
    if device.type == "cpu":
        return CPU_DECODED
    config, element_size = model.config.get_text_config(), next(model.parameters()).element_size()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    width *= getattr(config, "num_key_value_heads", None) or heads
    # Moving the cache to fewer rows holds a second copy of one layer's; the prompt passes through one layer at a time.
    values = (2 * config.num_hidden_layers + 2) * width + 8 * config.hidden_size + 3 * config.intermediate_size
    return max(1, min(GPU_DECODED, int(free_bytes(device) * USABLE / (values * element_size))))


def largest_group(model: nn.Module, names: Sequence[str], rank: int, length: int) -> int:
    """How many adapters of `rank`, with one row of `length` tokens each, fit beside the model; at least 1."""
    device = next(model.parameters()).device
    each = adapter_bytes(model, names, rank) + token_bytes(model) * length
    return max(1, int(free_bytes(device) * USABLE / each))


def adapter_bytes(model: nn.Module, names: Sequence[str], rank: int) -> int:
    """One adapter's share of a bank: weights, gradients, two moments, one scratch copy, one low-precision copy."""
    modules = dict(model.named_modules())
    return sum(rank * sum(modules[name].weight.shape) for name in names) * 6 * 4


def token_bytes(model: nn.Module) -> int:
    """What one token's states, kept for the backward pass, take at most; counted from the layers' sizes."""
    config = model.config.get_text_config()
    element_size = next(model.parameters()).element_size()
    narrow, wide = config.hidden_size, config.intermediate_size
    # Kept are what both norms read (in float32) and give, queries, keys, values and what attention gives (twice, as its
    # heads are put side by side); and of the MLP gate, its SiLU, the other branch and their product.
    layer, layers = narrow * (7 * element_size + 8) + wide * 4 * element_size, config.num_hidden_layers
    passing = (2 * narrow + 3 * wide) * element_size  # gradients on their way through one layer
    # Half of the tokens may be learnt: their logits, log-probabilities and gradients are in float32.
    passing += config.vocab_size * (12 + element_size) // 2
    return passing + (layers * narrow * element_size + layer if model.is_activation_checkpointing else layers * layer)


def free_bytes(device: torch.device) -> int:
    """What is free now, at most this process's share of the whole: other workers fill theirs a moment later."""
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        memory = psutil.virtual_memory()
        free, whole = memory.available, memory.total
    return min(free, whole // int(os.environ.get(SHARERS, "1")))


def ran_out(error: BaseException) -> bool:
    """Whether memory ran out; torch on a CPU, cuBLAS and cuDNN say so with a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(sign in str(error) for sign in SIGNS)


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
