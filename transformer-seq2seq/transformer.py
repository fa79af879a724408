"""The encoder-decoder Transformer, built bottom up from its parts.

Vaswani et al. 2017, "Attention Is All You Need" (arXiv:1706.03762).

Legend: B batch, S source length, T target length, P target tokens in the cache, D d_model, H heads, K = D / H (the
paper's d_k), V vocabulary. The memory is what the encoder has made of the source.

Deviations from the paper, and why:
- the sines of the position encoding come first and the cosines after, rather than interleaved: the same vectors up to
  a fixed order of their columns, and the order in which MarianMT checkpoints are trained;
- the projections of attention, mere matrices in section 3.2.2, and the projection to the vocabulary have biases, as in
  MarianMT;
- the decoder starts from the padding token, whose embedding is zero: a "beginning of sentence" that needs no entry of
  its own in the vocabulary, as in MarianMT; `project` never lets it be generated;
- the activation may be swish instead of the paper's ReLU: most MarianMT checkpoints, which can be loaded, have it.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {"relu": F.relu, "swish": F.silu}  # the paper's, and that of most MarianMT checkpoints
KeysValues = tuple[Tensor, Tensor]  # (B, H, S, K) each: what can be attended to


@dataclass(frozen=True)
class TransformerConfig:
    """The settings of a model. d_model is a multiple of n_heads."""

    vocab_size: int
    pad_id: int
    eos_id: int = 0
    d_model: int = 128
    n_encoder_layers: int = 2
    n_decoder_layers: int = 2
    n_heads: int = 4
    d_ff: int = 256
    dropout: float = 0.1
    max_length: int = 128
    activation: str = "relu"


def padding_mask(ids: Tensor, pad_id: int) -> Tensor:
    """Allow attention to all source positions but padding: ids (B, S) -> bool (B, 1, 1, S), True where attention is
    allowed; it broadcasts over heads and queries."""
    return (ids != pad_id)[:, None, None, :]


def causal_mask(length: int, device: torch.device | None = None) -> Tensor:
    """Allow a target position to attend to itself and to those before it, so that the decoder cannot copy the very
    word that it has to predict (section 3.2.3).

    -> bool (1, 1, length, length), True on and below the diagonal: row t is what position t sees.
    """
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Compute scaled dot-product attention (section 3.2.1, equation 1).

        Attention(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V

    q (B, H, T, K), k and v (B, H, S, K), mask broadcastable to (B, H, T, S), True where attention is allowed
    -> the attended values (B, H, T, K) and the weights (B, H, T, S), whose rows sum to 1.
    """
    d_k = q.size(-1)
    scores = q @ k.transpose(-2, -1) / math.sqrt(d_k)  # (B, H, T, S)
    weights = scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
    return weights @ v, weights


class MultiHeadAttention(nn.Module):
    """Multi-head attention of one sequence to another, or to itself (section 3.2.2).

        MultiHead(Q, K, V) = Concat(head_1, ..., head_H) W^O
        head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V)

    Keys and values come from one product with one matrix. They depend on the attended sequence alone, so a decoder
    that goes word by word can keep them (Cache).
    """

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        assert d_model % n_heads == 0, "d_model must be a multiple of n_heads"
        self.n_heads = n_heads
        self.d_k = d_model // n_heads
        self.query = nn.Linear(d_model, d_model)
        self.key_value = nn.Linear(d_model, 2 * d_model)
        self.output = nn.Linear(d_model, d_model)

    def keys_values(self, x: Tensor) -> KeysValues:
        """Project what can be attended to: x (B, S, D) -> keys and values, (B, H, S, K) each."""
        kv = self.key_value(x).unflatten(-1, (2, self.n_heads, self.d_k))  # (B, S, 2, H, K)
        k, v = kv.permute(2, 0, 3, 1, 4)  # 2 x (B, H, S, K)
        return k, v

    def forward(
        self, x: Tensor, keys_values: KeysValues, mask: Tensor | None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from x (B, T, D) to keys and values (B, H, S, K) -> (B, T, D) and, if asked for, the weights
        (B, H, T, S). mask: broadcastable to (B, H, T, S), or None if all may be attended to and no weights are needed.

        x may have n rows for each row of the keys, such as the n hypotheses of one source in beam search: queries do
        not see each other, so these count as n T queries of that row.
        """
        k, v = keys_values
        q = self.query(x).view(len(k), -1, self.n_heads, self.d_k).transpose(1, 2)  # (B, H, T, K), or (B, H, n T, K)
        if need_weights:
            heads, weights = attention(q, k, v, mask)
        else:  # the same function in one fused kernel, which returns no weights
            heads, weights = F.scaled_dot_product_attention(q, k, v, attn_mask=mask), None
        return self.output(heads.transpose(1, 2).reshape(x.shape)), weights  # (B, T, D)


class FeedForward(nn.Module):
    """Position-wise feed-forward network (section 3.3, equation 2).

    FFN(x) = max(0, x W_1 + b_1) W_2 + b_2
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.inner = nn.Linear(config.d_model, config.d_ff)
        self.outer = nn.Linear(config.d_ff, config.d_model)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """Map every position by itself: x (B, T, D) -> (B, T, D)."""
        return self.outer(self.activation(self.inner(x)))


def sinusoids(length: int, d_model: int) -> Tensor:
    """Compute the position encoding (section 3.5), a row for each position -> (length, D).

    PE(pos, i)       = sin(pos / 10000^(2i / d_model))    for i < D / 2
    PE(pos, D/2 + i) = cos(pos / 10000^(2i / d_model))

    It is computed on the CPU, wherever the model is: not every device has double precision.
    """
    i = torch.arange((d_model + 1) // 2, device="cpu")
    positions = torch.arange(length, device="cpu")[:, None].double()
    angles = positions / 10000 ** (2 * i / d_model).double()  # (length, D / 2)
    return torch.cat([angles.sin(), angles.cos()[:, : d_model // 2]], dim=1).float()


class Embeddings(nn.Module):
    """The sum of what a token is and where it stands (sections 3.4, 3.5 and 5.4).

    x_t = Dropout(sqrt(d_model) E[id_t] + PE[t])
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.d_model, padding_idx=config.pad_id)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("positions", sinusoids(config.max_length, config.d_model), persistent=False)

    def forward(self, ids: Tensor, start: int = 0) -> Tensor:
        """Embed ids (B, T), the tokens at positions start, start + 1, ... -> (B, T, D)."""
        scale = math.sqrt(self.token.embedding_dim)
        return self.dropout(scale * self.token(ids) + self.positions[start : start + ids.size(1)])


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward, each within LayerNorm(x + Dropout(Sublayer(x))).

    Sections 3.1 and 5.4: normalisation comes after the residual sum ("post-norm").
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.self_attention = MultiHeadAttention(config.d_model, config.n_heads)
        self.self_attention_norm = nn.LayerNorm(config.d_model)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor, need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """Read x (B, S, D), mask (B, 1, 1, S) -> (B, S, D) and, if asked for, the weights (B, H, S, S)."""
        attended, weights = self.self_attention(x, self.self_attention.keys_values(x), mask, need_weights)
        x = self.self_attention_norm(x + self.dropout(attended))
        x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return x, weights


class DecoderLayer(nn.Module):
    """Masked self-attention, attention to the memory ("cross-attention"), then feed-forward, each within
    LayerNorm(x + Dropout(Sublayer(x))) (sections 3.1, 3.2.3 and 5.4)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.self_attention = MultiHeadAttention(config.d_model, config.n_heads)
        self.self_attention_norm = nn.LayerNorm(config.d_model)
        self.cross_attention = MultiHeadAttention(config.d_model, config.n_heads)
        self.cross_attention_norm = nn.LayerNorm(config.d_model)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        target_mask: Tensor | None,
        memory: Tensor,
        memory_mask: Tensor,
        cache: "Cache | None" = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Read x (B, T, D), target_mask (1, 1, T, T) or None, memory (B, S, D), memory_mask (B, 1, 1, S) -> (B, T, D)
        and, if asked for, the weights of self-attention (B, H, T, T) and of cross-attention (B, H, T, S). With a cache
        x attends to the P tokens in it, too: T x T is then T x (P + T)."""
        if cache is None:
            target_kv, memory_kv = self.self_attention.keys_values(x), self.cross_attention.keys_values(memory)
        else:
            target_kv, memory_kv = cache.update(self, x, memory)
        attended, self_weights = self.self_attention(x, target_kv, target_mask, need_weights)
        x = self.self_attention_norm(x + self.dropout(attended))
        attended, cross_weights = self.cross_attention(x, memory_kv, memory_mask, need_weights)
        x = self.cross_attention_norm(x + self.dropout(attended))
        x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return x, self_weights, cross_weights


class Cache:
    """What the decoder keeps from one call to the next, so that it computes no position twice: for every layer the
    keys and values of the P target tokens so far, (B, H, P, K) each, and of the memory, (B, H, S, K) each."""

    def __init__(self):
        self.length = 0  # P
        self.target: dict[DecoderLayer, KeysValues] = {}
        self.memory: dict[DecoderLayer, KeysValues] = {}

    def update(self, layer: DecoderLayer, x: Tensor, memory: Tensor) -> tuple[KeysValues, KeysValues]:
        """Add a layer's keys and values of T more tokens, x (B, T, D), and, in the first call, of the memory (B, S, D)
        -> those of all P + T tokens, and of the memory."""
        k, v = layer.self_attention.keys_values(x)
        if layer in self.target:
            past_k, past_v = self.target[layer]
            k, v = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        else:
            self.memory[layer] = layer.cross_attention.keys_values(memory)
        self.target[layer] = k, v
        return self.target[layer], self.memory[layer]

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the target, in this order: rows (any number of them), int64."""
        self.target = select_rows(self.target, rows)

    def select_memory(self, rows: Tensor) -> None:
        """Keep these rows of the memory, in this order: rows (any number of them), int64."""
        self.memory = select_rows(self.memory, rows)


def select_rows(kept: dict[DecoderLayer, KeysValues], rows: Tensor) -> dict[DecoderLayer, KeysValues]:
    """Return these rows of the keys and values of every layer."""
    return {layer: (k.index_select(0, rows), v.index_select(0, rows)) for layer, (k, v) in kept.items()}


@dataclass
class Attentions:
    """Attention weights of the decoder, one tensor a layer: to the target so far, `decoder` (B, H, T, P + T), and to
    the source, `cross` (B, H, T, S)."""

    decoder: list[Tensor | None] = field(default_factory=list)
    cross: list[Tensor | None] = field(default_factory=list)


class Transformer(nn.Module):
    """Encoder, decoder, and a projection to the vocabulary, all three on one embedding (section 3.4)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_decoder_layers))
        self.output_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.apply(initialise)

    def encode(self, source: Tensor, need_weights: bool = False) -> tuple[Tensor, list[Tensor | None]]:
        """Read source (B, S), each row ending in </s> and padded -> the memory (B, S, D) and, for each layer, the
        attention weights (B, H, S, S) if asked for, else None."""
        mask = padding_mask(source, self.config.pad_id)
        x = self.embeddings(source)
        weights = []
        for layer in self.encoder:
            x, layer_weights = layer(x, mask, need_weights)
            weights.append(layer_weights)
        return x, weights

    def decode(
        self,
        target: Tensor,
        memory: Tensor,
        memory_mask: Tensor,
        cache: Cache | None = None,
        attentions: Attentions | None = None,
    ) -> Tensor:
        """Read target (B, T), memory (B, S, D) and memory_mask (B, 1, 1, S) -> hidden states (B, T, D), from which
        `project` scores the token after each.

        The target needs no padding mask: what follows a sentence's end is never attended to by what comes before it.
        With a cache, the T tokens follow the P tokens of earlier calls. Weights are appended to `attentions`, if given.
        """
        past, new = 0 if cache is None else cache.length, target.size(1)
        mask = None  # a single token may see all that stands before it
        if new > 1 or attentions is not None:
            mask = causal_mask(past + new, target.device)[:, :, past:]  # (1, 1, T, P + T)
        x = self.embeddings(target, start=past)
        for layer in self.decoder:
            x, self_weights, cross_weights = layer(x, mask, memory, memory_mask, cache, attentions is not None)
            if attentions is not None:
                attentions.decoder.append(self_weights)
                attentions.cross.append(cross_weights)
        if cache is not None:
            cache.length = past + new
        return x

    def project(self, hidden: Tensor) -> Tensor:
        """Score the next token: hidden states (..., D) -> logits (..., V). <pad>, never generated, gets -inf."""
        logits = F.linear(hidden, self.embeddings.token.weight, self.output_bias)
        logits[..., self.config.pad_id] = -math.inf
        return logits

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Score all target positions at once, each seeing the reference's words before it ("teacher forcing").

        source (B, S) and target (B, T), the latter beginning with the start token -> logits (B, T, V).
        """
        return self.project(self.hidden_states(source, target))

    def hidden_states(self, source: Tensor, target: Tensor) -> Tensor:
        """Compute what `forward` projects (B, T, D). Training calls this instead of `forward`, because its loss never
        holds all B T V logits."""
        memory, _ = self.encode(source)
        return self.decode(target, memory, padding_mask(source, self.config.pad_id))


def initialise(module: nn.Module) -> None:
    """Draw matrices Glorot-uniform (keys and values, being one matrix, as one with 2 D outputs), and embeddings with
    the standard deviation d_model^-0.5, which the scaling in Embeddings brings to 1. The padding token's embedding and
    all biases are 0."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
        nn.init.zeros_(module.weight[module.padding_idx])
