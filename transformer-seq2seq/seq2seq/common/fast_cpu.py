"""Fast training on a CPU, kept out of the model file: the model computes the same function, and benchmark.py
shows the gain.

- Matrix products in bfloat16, where the processor has instructions for them; weights, sums, norms, softmax
  and attention stay in fp32 (the backward pass of PyTorch's CPU attention is slow in bfloat16).
- The number of their rows rounded up, so that few different shapes occur: for bfloat16 PyTorch's library
  compiles a product for every shape, which takes milliseconds, and keeps a thousand of them in memory.
- Dropout drawn from random bytes, eight from every call of the generator.
- Attention to a few dozen keys spelled out, in rows that fill the processor's vectors: PyTorch's kernel is
  made for long rows.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

ROWS = 256
MAX_SHORT_ROW, VECTOR = 64, 16  # keys


def best_precision(device: torch.device) -> str:
    """Return the fastest precision of matrix products: "bf16" if the device has instructions for it, else "fp32"."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") else "fp32"
    return "fp32"


def byte_dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Compute F.dropout at the multiple of 1/256 nearest to p; if that is zero, as PyTorch does. What is kept is
    scaled up, in bfloat16 to three digits, so that the expectation is x."""
    dropped = min(255, round(256 * p))
    if not training or not p:
        return x
    if not dropped:
        return F.dropout(x, p)
    draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    bytes_ = draws.view(torch.uint8)[: x.numel()].view(x.shape)
    return x * ((bytes_ >= dropped) * x.new_tensor(256 / (256 - dropped)))


def pad_rows_bf16(x: Tensor) -> Tensor:
    """Return the rows of x (..., D) in bfloat16, with rows of zeros up to the next multiple of ROWS: (N, D)."""
    rows = x.flatten(0, -2)
    out = rows.new_empty(len(rows) + -len(rows) % ROWS, rows.size(1), dtype=torch.bfloat16)
    out[: len(rows)] = rows
    out[len(rows) :] = 0
    return out


class PaddedLinear(torch.autograd.Function):
    """F.linear in bfloat16, in products of a multiple of ROWS rows; gradients are in the arguments' types."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Compute x (..., D), weight (D_out, D), bias (D_out,) -> (..., D_out)."""
        rows, narrow = pad_rows_bf16(x), weight.bfloat16()
        ctx.save_for_backward(rows, narrow)
        ctx.types = x.dtype, weight.dtype, bias.dtype
        out = torch.addmm(bias.bfloat16(), rows, narrow.T)
        return out[: x[..., 0].numel()].view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turn the gradient of the output (..., D_out) into those of x, weight and bias."""
        rows, weight = ctx.saved_tensors
        shape, upper = gradient.shape[:-1], pad_rows_bf16(gradient)  # (N, D_out)
        x = (upper @ weight)[: shape.numel()].view(*shape, -1)
        gradients = x, upper.T @ rows, upper.sum(dim=0)
        return tuple(part.to(kind) for part, kind in zip(gradients, ctx.types, strict=True))


def padded_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute F.linear; in bfloat16 by PaddedLinear."""
    if not torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    return PaddedLinear.apply(x, weight, weight.new_zeros(len(weight)) if bias is None else bias)


def fp32_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Compute F.scaled_dot_product_attention in fp32, whatever the precision of the arguments."""
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=attn_mask)


def short_row_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Compute fp32_attention, spelled out if there is a mask of at most MAX_SHORT_ROW keys.

    q (B, H, T, K), k and v (B, H, S, K), attn_mask bool, broadcastable to (B, H, T, S) -> (B, H, T, K). Keys
    that nobody may attend to are added: a softmax whose rows do not fill the processor's vectors takes
    several times as long.
    """
    if attn_mask is None or k.size(2) > MAX_SHORT_ROW:
        return fp32_attention(q, k, v, attn_mask)
    with torch.autocast("cpu", enabled=False):
        q, k, v = q.float(), k.float(), v.float()
        added = -k.size(2) % VECTOR
        k, v = (F.pad(x, (0, 0, 0, added)) for x in (k, v))
        never = F.pad(~attn_mask, (0, added), value=True)
        bias = torch.zeros(never.shape).masked_fill_(never, -math.inf)
        scores = (q / math.sqrt(q.size(-1))) @ k.mT
        return scores.add_(bias).softmax(dim=-1) @ v


class FastCpuOps(TorchFunctionMode):
    """Inside this context F.linear, F.dropout and F.scaled_dot_product_attention are replaced by the faster
    versions above."""

    def __init__(self, attention: Callable[..., Tensor]):
        super().__init__()
        self.faster = {
            F.linear: padded_linear,
            F.dropout: byte_dropout,
            F.scaled_dot_product_attention: attention,
        }

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return self.faster.get(function, function)(*args, **(kwargs or {}))


@contextmanager
def fast_training(
    device: torch.device, precision: str, attention: Callable[..., Tensor] = fp32_attention
) -> Iterator[None]:
    """Run a model forward in this precision, on a CPU with FastCpuOps. attention: fp32_attention or
    short_row_attention."""
    functions = FastCpuOps(attention) if device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"), functions:
        yield
