"""What makes training fast on a CPU, kept out of the model file: the model computes the same function, and
benchmark.py shows what all of it gives.

- Matrix products in bfloat16, where the processor has instructions for them; weights, sums, norms, softmax
  and attention stay in fp32 (the backward pass of PyTorch's CPU attention is slow in bfloat16).
- Their number of rows rounded up, so that there are few different ones: for bfloat16 PyTorch's library
  compiles a product for every shape, which takes milliseconds, and keeps a thousand of them in memory.
- Dropout drawn from whole random bytes, eight from every call of the generator.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

ROWS = 256


def best_precision(device: torch.device) -> str:
    """Of the matrix products: "bf16" where the device has instructions for them, else "fp32"."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") else "fp32"
    return "fp32"


def byte_dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """F.dropout at the rate nearest to p that is a multiple of 1/256. What is kept grows by as much as is
    dropped, in bfloat16 to three digits, so that the expectation is x."""
    dropped = min(255, round(256 * p))
    if not training or not dropped:
        return x
    draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    bytes_ = draws.view(torch.uint8)[: x.numel()].view(x.shape)
    return x * ((bytes_ >= dropped) * x.new_tensor(256 / (256 - dropped)))


def even(x: Tensor) -> Tensor:
    """x (..., D) -> its rows in bfloat16, and zeros up to the next multiple of ROWS (N, D)."""
    rows = x.flatten(0, -2)
    out = rows.new_empty(len(rows) + -len(rows) % ROWS, rows.size(1), dtype=torch.bfloat16)
    out[: len(rows)] = rows
    out[len(rows) :] = 0
    return out


class EvenLinear(torch.autograd.Function):
    """F.linear in bfloat16, in products of a multiple of ROWS rows; gradients are in the arguments' types."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """x (..., D), weight (D_out, D), bias (D_out,) -> (..., D_out)."""
        rows, narrow = even(x), weight.bfloat16()
        ctx.save_for_backward(rows, narrow)
        ctx.types = x.dtype, weight.dtype, bias.dtype
        out = torch.addmm(bias.bfloat16(), rows, narrow.T)
        return out[: x[..., 0].numel()].view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of what came out (..., D_out) -> those of x, weight and bias."""
        rows, weight = ctx.saved_tensors
        shape, upper = gradient.shape[:-1], even(gradient)  # (N, D_out)
        x = (upper @ weight)[: shape.numel()].view(*shape, -1)
        gradients = x, upper.T @ rows, upper.sum(dim=0)
        return tuple(part.to(kind) for part, kind in zip(gradients, ctx.types, strict=True))


def even_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.linear, where the precision is bfloat16 as EvenLinear."""
    return (EvenLinear.apply if torch.is_autocast_enabled("cpu") else F.linear)(x, weight, bias)


def fp32_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """F.scaled_dot_product_attention in fp32, whatever the precision of its arguments."""
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=attn_mask)


class CpuFunctions(TorchFunctionMode):
    """While it is entered, calls of three of PyTorch's functions, wherever they stand, go to those above."""

    faster = {  # noqa: RUF012
        F.linear: even_linear,
        F.dropout: byte_dropout,
        F.scaled_dot_product_attention: fp32_attention,
    }

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return self.faster.get(function, function)(*args, **(kwargs or {}))


@contextmanager
def fast_training(device: torch.device, precision: str) -> Iterator[None]:
    """Within it a model runs forward as training does: in that precision, on a CPU with CpuFunctions."""
    functions = CpuFunctions() if device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"), functions:
        yield
