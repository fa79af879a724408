"""Cross-entropy with label smoothing, computed a few hundred positions at a time, so that the logits of a batch
are never in memory at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .common.fast_cpu import pad_rows_bf16

IGNORE = -100  # the label of padding, which PyTorch's cross-entropy skips
CHUNK = 512  # positions whose logits are held at once


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
    rows = pad_rows_bf16(hidden_states) if precision == "bf16" else hidden_states
    nll = F.linear_cross_entropy(
        rows,
        weight.to(rows.dtype),
        F.pad(labels, (0, len(rows) - len(labels)), value=IGNORE),  # added rows are not scored
        linear_bias=bias.to(rows.dtype),
        reduction="sum",
        options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK, chunking_method=None, acc_policy="compact"),
    ).float()
    if not smoothing:
        return nll, nll
    hidden_states = hidden_states.float()
    spread = (hidden_states * (F.embedding(labels, weight) - weight.mean(dim=0))).sum()
    return nll + smoothing * (spread + (bias[labels] - bias.mean()).sum()), nll
