"""Fast training on a CPU, kept out of the model file: the model computes the same function, and benchmark.py
shows the gain.

- Matrix products in bfloat16, where the processor has instructions for them; weights, sums, norms, softmax
  and attention stay in fp32 (the backward pass of PyTorch's CPU attention is slow in bfloat16).
- The number of their rows rounded up, so that few different shapes occur: for bfloat16 PyTorch's library
  compiles a product for every shape, which takes milliseconds, and keeps a thousand of them in memory.
- Dropout drawn from random bytes, eight from every call of the generator.
- Attention to a few dozen keys spelled out, its backward pass too, in rows that fill the processor's vectors:
  PyTorch's kernel is made for long rows.
"""

import math
from collections.abc import Iterator
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
    kept = torch.ge(bytes_, dropped, out=torch.empty_like(x))  # 0 or 1; PyTorch is slow at products with bool
    return x * kept.mul_(256 / (256 - dropped))


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


class ShortRowAttention(torch.autograd.Function):
    """Attention to a few dozen keys in fp32, both ways by hand: each tensor is widened, transposed and padded in one
    copy. Keys that nobody may attend to are added, because a softmax whose rows do not fill the processor's vectors
    takes several times as long.

        S = Q K^T / sqrt(d_k),  P = softmax(S),  O = P V
        dV = P^T dO,  dP = dO V^T,  dS = P (dP - sum_s P dP),  dQ = dS K / sqrt(d_k),  dK = dS^T Q / sqrt(d_k)
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Compute q (B, H, T, K), k and v (B, H, S, K), mask bool, broadcastable to (B, H, T, S) -> (B, H, T, K)."""
        ctx.n_keys, ctx.scale, ctx.dtype = k.size(2), q.size(-1) ** -0.5, q.dtype
        added = -ctx.n_keys % VECTOR
        q, k, v = widened(q).mul_(ctx.scale), widened(k, added), widened(v, added)
        never = F.pad(~mask, (0, added), value=True)
        scores = (q @ k.mT).add_(torch.zeros(never.shape).masked_fill_(never, -math.inf))
        weights = torch.softmax(scores, dim=-1, out=scores)
        ctx.save_for_backward(q, k, v, weights)
        return narrowed(weights @ v, ctx.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Turn the gradient of the output (B, H, T, K) into those of q, k and v."""
        q, k, v, weights = ctx.saved_tensors
        gradient = widened(gradient)
        grad_v, grad_scores = weights.mT @ gradient, gradient @ v.mT
        grad_scores = torch._softmax_backward_data(grad_scores, weights, -1, torch.float32)
        grad_q, grad_k = (grad_scores @ k).mul_(ctx.scale), grad_scores.mT @ q
        return *(narrowed(x, ctx.dtype) for x in (grad_q, grad_k[:, :, : ctx.n_keys], grad_v[:, :, : ctx.n_keys])), None


def widened(x: Tensor, added: int = 0) -> Tensor:
    """Return x (B, H, S, K) in fp32 with rows of zeros added to S, contiguous."""
    wide = torch.empty(*x.shape[:2], x.size(2) + added, x.size(3))
    wide[:, :, : x.size(2)] = x
    wide[:, :, x.size(2) :] = 0
    return wide


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x (B, H, S, K) in another type, in memory as (B, S, H, K): so the linear layers want it."""
    return torch.empty(x.transpose(1, 2).shape, dtype=dtype).transpose(1, 2).copy_(x)


def fp32_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Compute F.scaled_dot_product_attention in fp32, whatever the precision of the arguments: by ShortRowAttention if
    there is a mask of at most MAX_SHORT_ROW keys."""
    with torch.autocast("cpu", enabled=False):
        if attn_mask is not None and k.size(2) <= MAX_SHORT_ROW:
            return ShortRowAttention.apply(q, k, v, attn_mask)
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=attn_mask)


class FastCpuOps(TorchFunctionMode):
    """Inside this context F.linear, F.dropout and F.scaled_dot_product_attention are replaced by the faster
    versions above."""

    def __init__(self):
        super().__init__()
        self.faster = {
            F.linear: padded_linear,
            F.dropout: byte_dropout,
            F.scaled_dot_product_attention: fp32_attention,
        }

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return self.faster.get(function, function)(*args, **(kwargs or {}))


@contextmanager
def fast_training(device: torch.device, precision: str) -> Iterator[None]:
    """Run a model forward in this precision, on a CPU with FastCpuOps."""
    functions = FastCpuOps() if device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"), functions:
        yield
