"""Cross-entropy with label smoothing, computed a few hundred positions at a time, so that the logits of a batch
are never in memory at once."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .common.fast_cpu import pad_rows_bf16

IGNORE = -100  # the label of padding, which PyTorch's cross-entropy skips
CHUNK = 512  # positions whose logits are held at once


def summed_nll(rows: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Compute -log p(y), summed, in the type of its arguments: rows (N, D), weight (V, D), bias (V,), labels (N,)."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK, chunking_method=None, acc_policy="compact")
    return F.linear_cross_entropy(rows, weight, labels, linear_bias=bias, reduction="sum", options=options)


class SummedInFp32(torch.autograd.Function):
    """summed_nll in bfloat16, of which each chunk's sums are added in fp32: in bfloat16 itself a count above 256
    stops growing. As in PyTorch's own function, the gradients are computed on the way forward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        """Compute the sum for rows (N, D) in bfloat16, weight (V, D) and bias (V,) in fp32."""
        narrow = [x.detach().to(rows.dtype).requires_grad_() for x in (weight, bias)]
        total, sums = torch.zeros((), device=rows.device), [torch.zeros_like(x) for x in (weight, bias)]
        of_rows = []
        for part, their_labels in zip(rows.split(CHUNK), labels.split(CHUNK), strict=True):
            with torch.enable_grad():
                inputs = [part.detach().requires_grad_(), *narrow]
                nll = summed_nll(*inputs, their_labels)
            gradients = torch.autograd.grad(nll, inputs)
            total += nll.detach()
            of_rows.append(gradients[0])
            for sum_, gradient in zip(sums, gradients[1:], strict=True):
                sum_ += gradient
        ctx.save_for_backward(torch.cat(of_rows), *sums)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients of the sum."""
        return *(gradient.to(saved.dtype) * saved for saved in ctx.saved_tensors), None


def token_losses(
    hidden_states: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, smoothing: float, precision: str
) -> tuple[Tensor, Tensor]:
    """Compute cross-entropy with label smoothing (Szegedy et al. 2016, section 7), summed over N scored tokens.

        z = h weight^T + bias,  -log p(y) = log sum_v exp(z_v) - z_y
        loss = (1 - e) (-log p(y)) + e mean_v(-log p(v)) = -log p(y) + e (z_y - mean_v z_v)

    The second form needs all logits z for -log p(y) alone, and PyTorch computes that with its gradients
    chunk by chunk. hidden_states h (N, D), weight (V, D), bias (V,), whose last row is <pad>'s and is left
    out; labels y (N,) -> that sum, and the sum of -log p(y) alone (nats; in bf16 to three digits).
    """
    weight, bias = weight[:-1], bias[:-1]
    if precision == "bf16":
        rows = pad_rows_bf16(hidden_states)
        added = len(rows) - len(labels)  # which are not scored
        nll = SummedInFp32.apply(rows, weight, bias, F.pad(labels, (0, added), value=IGNORE))
    else:
        nll = summed_nll(hidden_states, weight, bias, labels)
    if not smoothing:
        return nll, nll
    hidden_states = hidden_states.float()
    spread = (hidden_states * (F.embedding(labels, weight) - weight.mean(dim=0))).sum()
    return nll + smoothing * (spread + (bias[labels] - bias.mean()).sum()), nll
