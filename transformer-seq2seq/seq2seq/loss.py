"""seq2seq.loss"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .common.fast_cpu import even
from .tokenizer import IGNORE

CHUNK = 512  # positions whose logits are held at once


def token_losses(
    states: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, smoothing: float, precision: str
) -> tuple[Tensor, Tensor]:
    """Cross-entropy with label smoothing (Szegedy et al. 2016, section 7), summed over N scored tokens.

        z = states weight^T + bias,  -log p(y) = log sum_v exp(z_v) - z_y
        loss = (1 - e) (-log p(y)) + e mean_v(-log p(v)) = -log p(y) + e (z_y - mean_v z_v)

    The second form needs all logits z for -log p(y) alone, and PyTorch computes that with its gradients
    chunk by chunk. states (N, D), weight (V, D), bias (V), whose last row is the padding token's and is left
    out; labels (N) -> that sum, and the sum of -log p(y) alone (nats; in bf16 to three digits).
    """
    weight, bias = weight[:-1], bias[:-1]
    rows = even(states) if precision == "bf16" else states
    nll = F.linear_cross_entropy(
        rows,
        weight.to(rows.dtype),
        F.pad(labels, (0, len(rows) - len(labels)), value=IGNORE),  # what even has added is not scored
        linear_bias=bias.to(rows.dtype),
        reduction="sum",
        options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK, chunking_method=None, acc_policy="compact"),
    ).float()
    if not smoothing:
        return nll, nll
    states = states.float()
    spread = (states * (F.embedding(labels, weight) - weight.mean(dim=0))).sum()
    return nll + smoothing * (spread + (bias[labels] - bias.mean()).sum()), nll
