"""Self-attention with relative positions, which ablations.py puts in place of BERT's."""

import math

import torch
from torch import Tensor, nn

from encoder import MultiHeadSelfAttention, initialise

CLIP = 16  # the distance from which on relative positions do not differ


class RelativeAttention(MultiHeadSelfAttention):
    """Self-attention whose keys and values also say how far away they are (Shaw et al. 2018, "Self-Attention with
    Relative Position Representations", sections 3.1 and 3.2, equations 3 and 4).

        z_i = sum_j softmax_j(score_ij) (x_j W^V + a^V_ij),    score_ij = x_i W^Q (x_j W^K + a^K_ij)^T / sqrt(d_k)

    a^K_ij and a^V_ij are learned vectors for the distance j - i, which is clipped to -CLIP and CLIP. The heads of a
    layer share them.
    """

    def __init__(self, usual: MultiHeadSelfAttention):
        super().__init__(usual.output.in_features, usual.n_heads)
        self.load_state_dict(usual.state_dict())
        self.key_distance, self.value_distance = (nn.Embedding(2 * CLIP + 1, self.d_k) for _ in range(2))
        for vectors in self.key_distance, self.value_distance:
            initialise(vectors)

    def forward(self, x: Tensor, mask: Tensor, need_weights: bool = False) -> tuple[Tensor, Tensor]:
        """Compute what MultiHeadSelfAttention does, always with the weights."""
        qkv = self.qkv(x).float().unflatten(-1, (3, self.n_heads, self.d_k))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 x (B, H, S, K)
        place = torch.arange(x.size(1), device=x.device)
        distance = (place - place[:, None]).clamp(-CLIP, CLIP) + CLIP  # (S, S)
        with torch.autocast(x.device.type, enabled=False):
            by_distance = torch.einsum("bhik,ijk->bhij", q, self.key_distance(distance))
            scores = (q @ k.mT + by_distance) / math.sqrt(self.d_k)  # (B, H, S, S)
            weights = scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
            heads = weights @ v + torch.einsum("bhij,ijk->bhik", weights, self.value_distance(distance))
        return self.output(heads.transpose(1, 2).flatten(2)), weights  # (B, S, D)
