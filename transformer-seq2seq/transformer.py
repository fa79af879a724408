"""The encoder-decoder Transformer, built bottom up from its parts.

Vaswani et al. 2017, "Attention Is All You Need" (arXiv:1706.03762).

Legend: B batch, n targets of each source (1 but in beam search), S source length, T target length,
P target tokens already in the cache, D d_model, H heads, K = D / H (the paper's d_k), V vocabulary.

Deviations from the paper, and why:
- the sines of the position encoding come first and the cosines after, rather than interleaved: the same
  vectors up to a fixed order of their columns, and the order in which MarianMT checkpoints are trained;
- the projections of attention, which section 3.2.2 has as matrices alone, and the one to the vocabulary
  have biases, as MarianMT's have;
- the decoder starts from the padding token, whose embedding is zero: a "beginning of sentence" that needs
  no entry of its own in the vocabulary, as in MarianMT; its bias keeps it from ever being generated;
- of MarianMT, whose weights can be loaded, the activation may be swish rather than the paper's ReLU.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEVER = -1e4  # the logit of <pad>, which is never generated: its probability rounds to 0 in any precision
ACTIVATIONS = {"relu": F.relu, "swish": F.silu}  # the paper's, and the one of most MarianMT checkpoints


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes of a model, under the paper's names. d_model must be a multiple of n_heads."""

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
    """Which source positions may be attended to: all but padding.

    ids (B, S) -> bool (B, 1, 1, S), True where attention is allowed; it broadcasts over heads and queries.
    """
    return (ids != pad_id)[:, None, None, :]


def causal_mask(length: int, device: torch.device | None = None) -> Tensor:
    """Which target positions may be attended to: a word sees itself and the words before it, so that the
    decoder cannot copy the very word that it has to predict (section 3.2.3).

    -> bool (1, 1, length, length), True on and below the diagonal: row t is what position t sees.
    """
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention (section 3.2.1, equation 1).

        Attention(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V

    q (B, H, T, K), k and v (B, H, S, K), mask broadcastable to (B, H, T, S), True where attention is
    allowed -> the attended values (B, H, T, K) and the weights (B, H, T, S), whose rows sum to 1.
    """
    d_k = q.size(-1)
    scores = q @ k.transpose(-2, -1) / math.sqrt(d_k)  # (B, H, T, S)
    weights = scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
    return weights @ v, weights


class MultiHeadAttention(nn.Module):
    """Multi-head attention of one sequence to another, or to itself (section 3.2.2).

        MultiHead(Q, K, V) = Concat(head_1, ..., head_H) W^O
        head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V)

    Keys and values are computed apart from the queries, by one product with one matrix: they depend on
    the attended sequence alone, so that a decoder that goes word by word computes them once and keeps them.
    """

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        assert d_model % n_heads == 0, "d_model must be a multiple of n_heads"
        self.n_heads = n_heads
        self.d_k = d_model // n_heads
        self.query = nn.Linear(d_model, d_model)
        self.key_value = nn.Linear(d_model, 2 * d_model)
        self.output = nn.Linear(d_model, d_model)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """What can be attended to: memory (B, S, D) -> keys and values, (B, H, S, K) each."""
        kv = self.key_value(memory).unflatten(-1, (2, self.n_heads, self.d_k))  # (B, S, 2, H, K)
        k, v = kv.permute(2, 0, 3, 1, 4)  # 2 x (B, H, S, K)
        return k, v

    def forward(
        self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, T, D), keys and values (B, H, S, K), mask broadcastable to (B, H, T, S), or None where all
        may be attended to and no weights are asked for -> (B, T, D) and, if asked for, the weights
        (B, H, T, S)."""
        q = self.query(x).unflatten(-1, (self.n_heads, self.d_k)).transpose(1, 2)  # (B, H, T, K)
        k, v = keys_values
        if need_weights:
            heads, weights = attention(q, k, v, mask)
        else:  # the same function in one fused kernel, which never holds the weights
            heads, weights = F.scaled_dot_product_attention(q, k, v, attn_mask=mask), None
        return self.output(heads.transpose(1, 2).flatten(2)), weights  # (B, T, D)


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
        """x (B, T, D) -> (B, T, D)."""
        return self.outer(self.activation(self.inner(x)))


def sinusoids(length: int, d_model: int) -> Tensor:
    """The position encoding (section 3.5), a row for each position -> (length, D).

    PE(pos, i)       = sin(pos / 10000^(2i / d_model))    for i < D / 2
    PE(pos, D/2 + i) = cos(pos / 10000^(2i / d_model))

    They are computed on the CPU, wherever the model is: not every device has double precision.
    """
    i = torch.arange((d_model + 1) // 2, device="cpu")
    positions = torch.arange(length, device="cpu")[:, None].double()
    angles = positions / 10000 ** (2 * i / d_model).double()  # (length, D / 2)
    return torch.cat([angles.sin(), angles.cos()[:, : d_model // 2]], dim=1).float()


class Embeddings(nn.Module):
    """What a token is plus where it stands (sections 3.4, 3.5 and 5.4).

    x_t = Dropout(sqrt(d_model) E[id_t] + PE[t])
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.d_model, padding_idx=config.pad_id)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("positions", sinusoids(config.max_length, config.d_model), persistent=False)

    def forward(self, ids: Tensor, start: int = 0) -> Tensor:
        """ids (B, T) of the tokens at positions start, start + 1, ... -> (B, T, D)."""
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
        """x (B, S, D), mask (B, 1, 1, S) -> (B, S, D) and, if asked for, the weights (B, H, S, S)."""
        keys_values = self.self_attention.keys_values(x)
        attended, weights = self.self_attention(x, keys_values, mask, need_weights)
        x = self.self_attention_norm(x + self.dropout(attended))
        x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return x, weights


@dataclass
class Cache:
    """What the decoder keeps of a batch from step to step, so that no position is computed twice.

    source_mask (B, 1, 1, S); for every layer the keys and values of the source (`source`, (B, H, S, K)
    each) and of the target tokens so far (`target`, (B n, H, P, K) each); P is `length`. There may be n
    targets of each source, one behind the other, as in beam search: they share the source's entry.
    """

    source_mask: Tensor
    source: list[tuple[Tensor, Tensor]]
    target: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    length: int = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add a layer's keys and values of T new target tokens, (B n, H, T, K) each -> those of all P + T."""
        if layer == len(self.target):
            self.target.append((k, v))
        else:
            past_k, past_v = self.target[layer]
            self.target[layer] = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        return self.target[layer]

    def select(self, rows: Tensor) -> None:
        """Keep these targets, in this order: rows (any number of them), int64."""
        self.target = [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.target]

    def select_sources(self, rows: Tensor) -> None:
        """Keep these sources, in this order: rows (any number of them), int64."""
        self.source_mask = self.source_mask.index_select(0, rows)
        self.source = [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.source]


class DecoderLayer(nn.Module):
    """Masked self-attention, attention to the source ("cross-attention"), then feed-forward, each within
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
        target: tuple[Tensor, Tensor],
        target_mask: Tensor | None,
        source: tuple[Tensor, Tensor],
        source_mask: Tensor,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x (B n, T, D); target: keys and values (B n, H, P + T, K), target_mask (1, 1, T, P + T) or None;
        source: keys and values (B, H, S, K), source_mask (B, 1, 1, S)
        -> (B n, T, D) and, if asked for, the weights of self-attention (B n, H, T, P + T) and of
        cross-attention (B, H, n T, S)."""
        attended, self_weights = self.self_attention(x, target, target_mask, need_weights)
        x = self.self_attention_norm(x + self.dropout(attended))
        queries = x.view(len(source_mask), -1, x.size(-1))  # (B, n T, D): all that ask one source
        attended, cross_weights = self.cross_attention(queries, source, source_mask, need_weights)
        x = self.cross_attention_norm(x + self.dropout(attended.view(x.shape)))
        x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return x, self_weights, cross_weights


@dataclass
class Attentions:
    """Attention weights of the decoder, one tensor a layer: to the target so far, `decoder`
    (B n, H, T, P + T), and to the source, `cross` (B, H, n T, S)."""

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
        nn.init.constant_(self.output_bias[config.pad_id], NEVER)

    def encode(self, source: Tensor, need_weights: bool = False) -> tuple[Tensor, list[Tensor | None]]:
        """source (B, S), each row ending in </s> and padded -> memory (B, S, D) and, for each layer, the
        attention weights (B, H, S, S) if asked for, else None."""
        mask = padding_mask(source, self.config.pad_id)
        x = self.embeddings(source)
        weights = []
        for layer in self.encoder:
            x, layer_weights = layer(x, mask, need_weights)
            weights.append(layer_weights)
        return x, weights

    def cache(self, source: Tensor, memory: Tensor) -> Cache:
        """The start of decoding: source (B, S), memory (B, S, D) -> a cache with no target token in it."""
        mask = padding_mask(source, self.config.pad_id)
        return Cache(mask, [layer.cross_attention.keys_values(memory) for layer in self.decoder])

    def decode(self, target: Tensor, cache: Cache, attentions: Attentions | None = None) -> Tensor:
        """Read T more target tokens, at positions P to P + T - 1, and score the one after each of them.

        target (B n, T), which needs no padding mask: what follows a sentence's end is never attended to by
        what comes before it -> logits (B n, T, V). The cache gains the T tokens. Attention weights of the
        decoder are appended to `attentions`, if given.
        """
        return self.project(self.decoder_states(target, cache, attentions))

    def decoder_states(self, target: Tensor, cache: Cache, attentions: Attentions | None = None) -> Tensor:
        """What decode makes its logits of: the last layer's output (B n, T, D)."""
        past, new = cache.length, target.size(1)
        mask = None  # a single token may see all that stands before it
        if new > 1 or attentions is not None:
            mask = causal_mask(past + new, target.device)[:, :, past:]  # (1, 1, T, P + T)
        x = self.embeddings(target, start=past)
        for i, layer in enumerate(self.decoder):
            keys_values = cache.extend(i, *layer.self_attention.keys_values(x))
            x, self_weights, cross_weights = layer(
                x, keys_values, mask, cache.source[i], cache.source_mask, attentions is not None
            )
            if attentions is not None:
                attentions.decoder.append(self_weights)
                attentions.cross.append(cross_weights)
        cache.length = past + new
        return x

    def project(self, states: Tensor) -> Tensor:
        """states (..., D) -> logits (..., V)."""
        return F.linear(states, self.embeddings.token.weight, self.output_bias)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Teacher forcing: all target positions at once, each seeing the reference's words before it.

        source (B, S) and target (B, T), the latter beginning with the start token -> logits (B, T, V).
        """
        return self.project(self.states(source, target))

    def states(self, source: Tensor, target: Tensor) -> Tensor:
        """What forward makes its logits of (B, T, D). Training goes on from here: B * T * V logits are by far
        the largest tensor of a small model, and its loss can be had without ever holding them all."""
        memory, _ = self.encode(source)
        return self.decoder_states(target, self.cache(source, memory))


def initialise(module: nn.Module) -> None:
    """Glorot-uniform matrices; embeddings of deviation d_model^-0.5, which the scaling in Embeddings
    brings to 1, and zero for the padding token; biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
        nn.init.zeros_(module.weight[module.padding_idx])
