"""BERT's encoder with its masked-language-modelling head, built bottom up from its parts.

Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding"
(arXiv:1810.04805). Its layers are the encoder layers of Vaswani et al. 2017, "Attention Is All You Need"
(arXiv:1706.03762).

Legend: B batch, S length of the padded sentences, D d_model, H heads, K = D / H (the papers' d_k), V vocabulary,
N hidden positions, whose tokens are to be predicted.

Deviations from BERT, and why:
- No segment embedding and no next-sentence head: the input is always one piece of text.
- No dropout on the attention weights: the fused attention kernels have none on a CPU. There is dropout after the
  embeddings and after each sublayer (Vaswani et al. 2017, section 5.4), by default 0 instead of BERT's 0.1, because
  the bundled text is to be learnt by heart.
- Initial weights are scaled by the number of inputs (`initialise`); BERT's standard deviation is 0.02 everywhere, and
  its normal distribution is truncated.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class EncoderConfig:
    """The settings of a model. d_model is a multiple of n_heads."""

    vocab_size: int
    d_model: int = 128
    n_layers: int = 2
    n_heads: int = 4
    d_ff: int = 256
    dropout: float = 0.0
    max_length: int = 128
    pad_id: int = 0
    layer_norm_eps: float = 1e-12
    tied_embeddings: bool = True


def padding_mask(ids: Tensor, pad_id: int) -> Tensor:
    """Allow attention to every position but padding.

    ids (B, S) -> bool (B, 1, 1, S), True where attention is allowed; it broadcasts over heads and queries.
    """
    return (ids != pad_id)[:, None, None, :]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Compute scaled dot-product attention (Vaswani et al. 2017, section 3.2.1, equation 1).

        Attention(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V

    q, k, v (B, H, S, K) and mask, broadcastable to (B, H, S, S), True where attention is allowed
    -> the attended values (B, H, S, K) and the weights (B, H, S, S), whose rows sum to 1.
    """
    d_k = q.size(-1)
    scores = q @ k.transpose(-2, -1) / math.sqrt(d_k)  # (B, H, S, S)
    weights = scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
    return weights @ v, weights


class MultiHeadSelfAttention(nn.Module):
    """Multi-head attention of a sentence to itself (Vaswani et al. 2017, section 3.2.2).

        MultiHead(X) = Concat(head_1, ..., head_H) W^O
        head_i = Attention(X W_i^Q, X W_i^K, X W_i^V)

    The 3 H projections W_i^Q, W_i^K and W_i^V are the columns of one matrix, so that they take one product. Each
    also has a bias, as in BERT's released code.
    """

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        assert d_model % n_heads == 0, "d_model must be a multiple of n_heads"
        self.n_heads = n_heads
        self.d_k = d_model // n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.output = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, mask: Tensor, need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """Map x (B, S, D), mask (B, 1, 1, S) -> (B, S, D) and, if asked for, the weights (B, H, S, S)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.n_heads, self.d_k))  # (B, S, 3, H, K)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 x (B, H, S, K)
        if need_weights:
            heads, weights = attention(q, k, v, mask)
        else:  # the same function in one fused kernel, which returns no weights
            heads, weights = F.scaled_dot_product_attention(q, k, v, attn_mask=mask), None
        return self.output(heads.transpose(1, 2).flatten(2)), weights  # (B, S, D)


class FeedForward(nn.Module):
    """Position-wise feed-forward network (Vaswani et al. 2017, section 3.3, equation 2).

        FFN(x) = GELU(x W_1 + b_1) W_2 + b_2

    BERT has GELU (Devlin et al. 2018, appendix A.2; Hendrycks and Gimpel 2016), the first Transformer ReLU.
    """

    def __init__(self, d_model: int, d_ff: int):
        super().__init__()
        self.inner = nn.Linear(d_model, d_ff)
        self.outer = nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, S, D) -> (B, S, D)."""
        return self.outer(F.gelu(self.inner(x)))


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward; the output of each is

        LayerNorm(x + Dropout(Sublayer(x)))

    The norm comes after the residual sum ("post-norm"; Vaswani et al. 2017, sections 3.1 and 5.4).
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.attention = MultiHeadSelfAttention(config.d_model, config.n_heads)
        self.attention_norm = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        self.feed_forward = FeedForward(config.d_model, config.d_ff)
        self.feed_forward_norm = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor, need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """Map x (B, S, D), mask (B, 1, 1, S) -> (B, S, D) and, if asked for, the weights (B, H, S, S)."""
        attended, weights = self.attention(x, mask, need_weights)
        x = self.attention_norm(x + self.dropout(attended))
        x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return x, weights


class Embeddings(nn.Module):
    """The sum of two learned vectors, one for the token and one for its position (Devlin et al. 2018, section 3,
    figure 2).

        x_s = Dropout(LayerNorm(E[id_s] + P[s]))

    LayerNorm and dropout are those of BERT's released code.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.d_model)
        self.position = nn.Embedding(config.max_length, config.d_model)
        self.norm = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids (B, S) -> (B, S, D)."""
        positions = torch.arange(ids.size(1), device=ids.device)
        return self.dropout(self.norm(self.token(ids) + self.position(positions)))  # (B, S, D)


class Encoder(nn.Module):
    """Embeddings and a stack of n_layers encoder layers."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.pad_id = config.pad_id
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_layers))

    def forward(self, ids: Tensor, need_weights: bool = False) -> tuple[Tensor, list[Tensor | None]]:
        """Encode ids (B, S) with S <= max_length -> hidden states (B, S, D) and, for each layer, its attention
        weights (B, H, S, S) if asked for, else None."""
        mask = padding_mask(ids, self.pad_id)
        x = self.embeddings(ids)
        weights = []
        for layer in self.layers:
            x, layer_weights = layer(x, mask, need_weights)
            weights.append(layer_weights)
        return x, weights


class MaskedLMHead(nn.Module):
    """Scores for every token of the vocabulary (Devlin et al. 2018, section 3.1).

        logits = LayerNorm(GELU(h W + b)) E^T + c

    The transform W, b before the output matrix, and the embedding E as this matrix, are those of BERT's released
    code.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.transform = nn.Linear(config.d_model, config.d_model)
        self.norm = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        self.decoder = nn.Linear(config.d_model, config.vocab_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map hidden_states (..., D) -> logits (..., V)."""
        return self.decoder(self.norm(F.gelu(self.transform(hidden_states))))


class MaskedLanguageModel(nn.Module):
    """The encoder, and the head that predicts the tokens hidden from it."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.head = MaskedLMHead(config)
        self.apply(initialise)
        if config.tied_embeddings:
            self.head.decoder.weight = self.encoder.embeddings.token.weight

    def forward(self, ids: Tensor, hidden_positions: Tensor | None = None) -> Tensor:
        """Predict the token at every position: ids (B, S) -> logits (B, S, V).

        With hidden_positions (B, S), bool and True at N positions, only at those: logits (N, V). Training needs no
        others, and in a small model the product with V columns is the most expensive one.
        """
        hidden_states, _ = self.encoder(ids)
        return self.head(hidden_states if hidden_positions is None else hidden_states[hidden_positions])


def initialise(module: nn.Module) -> None:
    """Draw normal weights; set biases to 0.

    The standard deviation is 0.02 sqrt(768 / n) for a matrix with n inputs (for embeddings, n = D), so that sums over
    the inputs are of the same size at any width. With 768 inputs, BERT's own width, it is BERT's 0.02.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02 * math.sqrt(768 / module.weight.size(1)))
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
