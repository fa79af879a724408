"""Self-attention with relative positions, which ablations.py puts in place of the paper's."""

import math

import torch
from torch import Tensor, nn

from transformer import KeysValues, MultiHeadAttention, sinusoids


class RelativeAttention(MultiHeadAttention):
    """Self-attention in which a score depends on what stands there and on how far away it is (Dai et al. 2019,
    "Transformer-XL", section 3.3; without their recurrence, as Csordás et al. 2021 have it).

        score_ij = ((q_i + u)^T k_j + (q_i + v)^T W r_{i-j}) / sqrt(d_k)

    r_{i-j} is the sinusoid of i - j plus a constant that makes every index positive or zero. This only rotates it,
    which W can undo. u and v are learnt, a vector for each head.
    """

    def __init__(self, usual: MultiHeadAttention, max_length: int):
        d_model = usual.output.in_features
        super().__init__(d_model, usual.n_heads)
        self.load_state_dict(usual.state_dict())
        self.distance = nn.Linear(d_model, d_model, bias=False)  # W
        nn.init.xavier_uniform_(self.distance.weight)
        self.content_bias = nn.Parameter(torch.zeros(self.n_heads, 1, self.d_k))  # u
        self.distance_bias = nn.Parameter(torch.zeros(self.n_heads, 1, self.d_k))  # v
        self.register_buffer("sinusoids", sinusoids(2 * max_length - 1, d_model), persistent=False)

    def forward(
        self, x: Tensor, keys_values: KeysValues, mask: Tensor | None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Compute what MultiHeadAttention does. The last query stands where the last key does, with a cache too."""
        k, v = keys_values
        q = self.query(x).view(len(k), -1, self.n_heads, self.d_k).transpose(1, 2)  # (B, H, T, K)
        queries, keys = q.size(2), k.size(2)
        place, middle = torch.arange(keys, device=x.device), len(self.sinusoids) // 2
        r = self.distance(self.sinusoids[middle - keys + 1 : middle + keys])  # (2 S - 1, D)
        r = r.view(-1, self.n_heads, self.d_k).transpose(0, 1)  # (H, 2 S - 1, K)
        index = place[keys - queries :, None] - place + keys - 1  # (T, S), the row of i - j
        with torch.autocast(x.device.type, enabled=False):
            q, k, v, r = q.float(), k.float(), v.float(), r.float()
            by_distance = (q + self.distance_bias) @ r.mT  # (B, H, T, 2 S - 1)
            by_distance = by_distance.gather(-1, index.expand(*by_distance.shape[:2], -1, -1))  # (B, H, T, S)
            scores = ((q + self.content_bias) @ k.mT + by_distance) / math.sqrt(self.d_k)
            if mask is not None:
                scores = scores.masked_fill(~mask, -math.inf)
            weights = scores.softmax(dim=-1)
            heads = weights @ v
        return self.output(heads.transpose(1, 2).reshape(x.shape)), weights
