"""Cross-entropy with label smoothing, computed a few hundred positions at a time, so that the logits of a batch
are never in memory at once."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .common.fast_cpu import pad_rows_bf16

IGNORE = -100  # the label of padding, as in PyTorch's cross-entropy: such positions are left out of what is scored
CHUNK = 512  # positions whose logits are held at once


class SummedLoss(torch.autograd.Function):
    """The sums that token_losses returns. Their gradients are computed on the way forward, where the logits are at
    hand; each chunk's are added in fp32, because in bfloat16 a count above 256 stops growing."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Compute in the type of rows (M, D), of which the first N have a label."""
        narrow, narrow_bias = weight.to(rows.dtype), bias.to(rows.dtype)
        mean_weight, mean_bias = narrow.mean(dim=0), bias.mean()
        grad_rows, grad_weight, grad_bias = torch.empty_like(rows), torch.zeros_like(weight), torch.zeros_like(bias)
        buffer = rows.new_empty(min(CHUNK, len(rows)), len(weight))
        nll = spread = torch.zeros((), device=rows.device)  # sums of -log p(y) and of z_y - mean_v z_v
        for h, grad_h, y in zip(rows.split(CHUNK), grad_rows.split(CHUNK), labels.split(CHUNK), strict=True):
            z = torch.addmm(narrow_bias, h, narrow.T, out=buffer[: len(h)])  # (CHUNK, V)
            place = torch.arange(len(y), device=y.device), y
            z_y = z[place]
            p = torch.softmax(z, dim=-1, out=z)
            p_y = p[place].float()
            nll = nll - p_y.clamp_min(torch.finfo(torch.float32).tiny).log().sum()
            spread = spread + (z_y - h[: len(y)] @ mean_weight - mean_bias).sum()
            p[place] = (p_y - (1 - smoothing)).to(p.dtype)  # 1 - e itself is rounded in bfloat16
            p[len(y) :] = 0
            torch.mm(p, narrow, out=grad_h)
            grad_weight += p.T @ h
            grad_bias += p.sum(dim=0)
        uniform = smoothing / len(weight)  # its share of the gradient is smaller than bfloat16 resolves beside p
        grad_rows[: len(labels)] -= smoothing * mean_weight
        grad_weight -= uniform * rows[: len(labels)].sum(dim=0, dtype=torch.float32)
        grad_bias -= uniform * len(labels)
        ctx.save_for_backward(grad_rows, grad_weight, grad_bias)
        ctx.mark_non_differentiable(nll)
        return nll + smoothing * spread, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients of the loss."""
        return *(gradient * saved for saved in ctx.saved_tensors), None, None


def token_losses(
    hidden_states: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, smoothing: float, precision: str
) -> tuple[Tensor, Tensor]:
    """Compute cross-entropy with label smoothing (Szegedy et al. 2016, section 7), summed over N scored tokens.

        z = h weight^T + bias,  p = softmax(z)
        loss = (1 - e) (-log p(y)) + e mean_v(-log p(v)) = -log p(y) + e (z_y - mean_v z_v)
        d loss / d z_v = p(v) - (1 - e) [v = y] - e / V

    hidden_states h (N, D), weight (V, D), bias (V,), whose last row is <pad>'s and is left out; labels y (N,) -> that
    sum, and the sum of -log p(y) alone, which has no gradient. Both are in nats; a token's -log p(y) is at most 87
    (that of the smallest normal number of fp32), and in bf16 it is off by up to 0.002. In fp32 the loss is

        F.cross_entropy(F.linear(h, weight[:-1], bias[:-1]), labels, label_smoothing=e, reduction="sum")
    """
    rows = pad_rows_bf16(hidden_states) if precision == "bf16" else hidden_states
    return SummedLoss.apply(rows, weight[:-1], bias[:-1], labels, smoothing)
