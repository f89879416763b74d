"""A bank of stacked LoRA adapters that share one frozen base.

The model sees G * b rows, group after group. While a bank is attached, each `nn.Linear` that PEFT would wrap views its
input as (G, b, T, d) and adds adapter g's product to the rows of group g (LoRA: Hu et al. 2021, section 4.1).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from bvlm_utils.train import adapters
from bvlm_utils.train.adapters import PREFIX

# PyTorch's own compiler uses this product; a build without oneDNN does not have it.
ONE_DNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """rows (n, d) W^T + bias, without a gradient; on a CPU in float32 by oneDNN.

    PyTorch leaves such products to MKL, which is half as fast as oneDNN on AMD's processors.
    """
    if rows.device.type == "cpu" and rows.dtype == torch.float32 and ONE_DNN is not None:
        return ONE_DNN(rows, weight, bias, "none", [], "")
    return F.linear(rows, weight, bias)


class _Product(torch.autograd.Function):
    """x W^T + bias + scale_g x A_g^T B_g, and its gradients in half of autograd's time; A's and B's are added to
    `grads`, where the anchor asks for it.
    """

    @staticmethod
    def forward(ctx, x, _anchor, base, a, b, scale, grads):
        # x: (N, T, d) with N = G * b; a: (G, r, d); b: (G, r, o); scale: (G, 1, 1)
        weight, bias = base.weight, base.bias
        groups, out = len(a), weight.shape[0]
        rows = x.reshape(groups, -1, x.shape[-1])
        y = linear(rows.view(-1, x.shape[-1]), weight, bias).view(groups, -1, out)
        h = torch.bmm(rows, a.transpose(1, 2)).mul_(scale)
        y.baddbmm_(h, b)
        ctx.save_for_backward(rows, h, weight, a, b, scale)
        ctx.grads, ctx.shape = grads, x.shape
        return y.view(*x.shape[:-1], out)

    @staticmethod
    def backward(ctx, dy):
        rows, h, weight, a, b, scale = ctx.saved_tensors
        dy = dy.reshape(len(a), -1, dy.shape[-1])
        dh = torch.bmm(dy, b.transpose(1, 2)).mul_(scale)
        if ctx.needs_input_grad[1]:
            for grad, left, right in zip(ctx.grads, (dh, h), (rows, dy), strict=True):
                _add_product(grad, left.transpose(1, 2), right)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = linear(dy.view(-1, dy.shape[-1]), weight.t()).view(rows.shape)
            dx = dx.baddbmm_(dh, a).view(ctx.shape)
        return dx, None, None, None, None, None, None


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total (G, m, n) += left (G, m, k) right (G, k, n), in the precision of `total`: bfloat16 would lose the last."""
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    elif left.is_cuda:
        total.add_(torch.bmm(left, right, out_dtype=total.dtype))
    else:
        total.baddbmm_(left.to(total.dtype), right.to(total.dtype))


class _Linear(nn.Module):
    """An `nn.Linear` with one adapter per group. x: (G * b, T, d_in) -> (G * b, T, d_out)."""

    def __init__(self, base: nn.Linear, bank: "Bank", at: int):
        super().__init__()
        self.base, self.at = base, at
        self.bank = [bank]  # in a list: a bank is no submodule

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bank, at = self.bank[0], self.at
        k = bank.active
        grads = (bank.grad_a[at][:k], bank.grad_b[at][:k])
        if x.shape[0] % k:
            raise ValueError(f"{x.shape[0]} rows cannot be split over {k} adapters; give each adapter as many rows.")
        return _Product.apply(x, bank.anchor, self.base, bank.a[at][:k], bank.b[at][:k], bank.scale[:k], grads)


class _Pick(torch.autograd.Function):
    """Rows of a table at distinct positions. Autograd's own version scatters with atomic additions."""

    @staticmethod
    def forward(ctx, table, positions):  # (M, d), (K,) -> (K, d)
        ctx.save_for_backward(positions)
        ctx.rows = table.shape[0]
        return table.index_select(0, positions)

    @staticmethod
    def backward(ctx, grad):
        (positions,) = ctx.saved_tensors
        return grad.new_zeros(ctx.rows, grad.shape[-1]).index_copy_(0, positions, grad), None


def pick(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """hidden: (N, T, d), positions: (G, L) int64, distinct positions in N * T -> (G, L, d)."""
    return _Pick.apply(hidden.reshape(-1, hidden.shape[-1]), positions.flatten()).view(*positions.shape, -1)


class _AtPositions(nn.Module):
    """A position-wise module computed at the bank's positions alone (zeros elsewhere), or everywhere if it has none."""

    def __init__(self, inner: nn.Module, bank: "Bank"):
        super().__init__()
        self.inner = inner
        self.bank = [bank]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        positions = self.bank[0].positions
        if positions is None:
            return self.inner(x)
        rows = self.inner(pick(x, positions)).flatten(0, 1)  # (G * L, d)
        total = rows.new_zeros(x.shape[0] * x.shape[1], rows.shape[-1])
        return total.index_copy_(0, positions.flatten(), rows).view(*x.shape[:2], -1)


class Bank:
    """G LoRA adapters over the same linear layers of one frozen model, all zero until `load`.

    params, grads: (G, P), one row per adapter, in float32 (float64 for a float64 model), on the model's device. The
    attributes `a[i]`: (G, r, d_in) and `b[i]`: (G, r, d_out) are the i-th layer's matrices in the model's own dtype:
    views of `params` where that is the same dtype, else copies that `refresh` renews. r is the largest rank; a lower
    rank is padded with zeros, which stay zero because the gradient of each half is a product with the other half. Set
    `active` = k to work with the first k adapters only, and `positions` (G, L) to compute the last layer only there.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], ranks: Sequence[int], alphas: Sequence[float]):
        """Adapters of `ranks` and `alphas` (both G long) for the modules of `model` called `names`."""
        self.model, self.names = model, tuple(names)
        self.ranks, self.alphas = tuple(ranks), tuple(alphas)
        modules = dict(model.named_modules())
        for name in self.names:
            if not isinstance(modules.get(name), nn.Linear):
                raise ValueError(f"{name!r} is not an nn.Linear of {type(model).__name__}; name linear layers only.")
            if not modules[name].weight.is_floating_point():
                raise ValueError(
                    f"{name!r} holds packed weights ({modules[name].weight.dtype}), as a base in 4 bit does; "
                    "train on such a base one cell at a time (--plain)."
                )
        self.shapes = [tuple(reversed(modules[name].weight.shape)) for name in self.names]  # (d_in, d_out)
        weight = modules[self.names[0]].weight
        self.device = weight.device
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        # An output needs a gradient even where the input has none (first layer): this leaf asks for it.
        self.anchor = torch.zeros((), device=self.device, dtype=dtype, requires_grad=True)
        self.positions: torch.Tensor | None = None
        self.active = len(self.ranks)
        width = max(self.ranks) * sum(map(sum, self.shapes))
        self.params = torch.zeros(len(self.ranks), width, dtype=dtype, device=self.device)
        self.grads = torch.zeros_like(self.params)
        self._compute = self.params.to(weight.dtype)  # the same tensor where that is the same dtype
        self.a, self.b = self._views(self._compute)
        self.grad_a, self.grad_b = self._views(self.grads)
        self._a, self._b = self._views(self.params)
        scale = [alpha / rank for alpha, rank in zip(self.alphas, self.ranks, strict=True)]
        self.scale = torch.tensor(scale, dtype=weight.dtype, device=self.device).view(-1, 1, 1)

    def _views(self, flat: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        rank, at, a, b = max(self.ranks), 0, [], []
        for sizes in self.shapes:
            for views, size in zip((a, b), sizes, strict=True):
                views.append(flat[:, at : at + rank * size].view(-1, rank, size))
                at += rank * size
        return a, b

    def refresh(self) -> None:
        """Renew the low-precision copies after `params` changed."""
        if self._compute is not self.params:
            self._compute.copy_(self.params)

    def load(self, group: int, state: Mapping[str, torch.Tensor]) -> None:
        """Set adapter `group` from a PEFT state dict (`base_model.model.NAME.lora_A.weight` ...)."""
        rank, shapes = self.ranks[group], {}
        for name, (d_in, d_out) in zip(self.names, self.shapes, strict=True):
            shapes[f"{PREFIX}{name}.lora_A.weight"] = (rank, d_in)
            shapes[f"{PREFIX}{name}.lora_B.weight"] = (d_out, rank)
        owner, base = f"Adapter {group} of the bank", type(self.model).__name__
        adapters.check_fit(state, shapes, owner, base, set(state) - set(shapes), set(shapes) - set(state))
        for i, name in enumerate(self.names):
            self._a[i][group, :rank] = state[f"{PREFIX}{name}.lora_A.weight"].to(self.params)
            self._b[i][group, :rank] = state[f"{PREFIX}{name}.lora_B.weight"].to(self.params).T
        self.refresh()

    def state(self, group: int) -> dict[str, torch.Tensor]:
        """Adapter `group` as PEFT names and shapes it: lora_A (r, d_in), lora_B (d_out, r); copies."""
        rank, state = self.ranks[group], {}
        for name, a, b in zip(self.names, self._a, self._b, strict=True):
            state[f"{PREFIX}{name}.lora_A.weight"] = a[group, :rank].clone()
            state[f"{PREFIX}{name}.lora_B.weight"] = b[group, :rank].T.clone(memory_format=torch.contiguous_format)
        return state

    @contextmanager
    def attached(self) -> Iterator["Bank"]:
        """Wrap the layers while the block runs; the model is as it was afterwards, whatever happens."""
        wrappers = [(name, partial(_Linear, bank=self, at=at)) for at, name in enumerate(self.names)]
        wrappers += [(name, partial(_AtPositions, bank=self)) for name in self._tail()]
        originals = []
        try:
            for name, wrap in wrappers:
                originals.append((name, self.model.get_submodule(name)))
                self.model.set_submodule(name, wrap(originals[-1][1]))
            yield self
        finally:
            for name, original in reversed(originals):
                self.model.set_submodule(name, original)

    def _tail(self) -> list[str]:
        """Modules of the last layer whose output matters at its own position alone: all but its keys and values."""
        layers = getattr(self.model.get_decoder(), "layers", None)
        if not layers:
            return []
        last = layers[-1]
        attention = getattr(last, "self_attn", None)
        parts = [getattr(attention, "q_proj", None), getattr(attention, "o_proj", None), getattr(last, "mlp", None)]
        names = {id(module): name for name, module in self.model.named_modules()}
        return [names[id(part)] for part in parts if part is not None]
