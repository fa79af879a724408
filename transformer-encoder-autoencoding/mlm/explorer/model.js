// BERT's encoder with its masked-language-modelling head, to be read beside encoder.py: the same names in the same
// order. Here, parts of it can be switched off.
//
// Legend: S length of the sentence, D d_model, H heads, K = D / H, V vocabulary. A matrix is a Float32Array, row after
// row. There is one sentence at a time, without padding, so that no mask is needed; and there is no dropout.
//
// off is a Set of what is switched off, of these names; layers and heads are counted from 1:
//   "positions"     the embeddings of the positions are 0
//   "encoder.L"     what the attention of layer L computes is 0: x = LayerNorm(x)
//   "encoder.L.H"   what head H of layer L computes is 0
//   "encoder-ff.L"  what the feed-forward network of layer L computes is 0: x = LayerNorm(x)

/** Multi-head attention of a sentence to itself (Vaswani et al. 2017, section 3.2.2).
 *
 *     MultiHead(X) = Concat(head_1, ..., head_H) W^O
 *     head_i = Attention(X W_i^Q, X W_i^K, X W_i^V)
 *
 * place: encoder.L, its name among the switches. */
class MultiHeadSelfAttention {
  constructor(weights, name, place, config) {
    this.place = place;
    this.config = config;
    this.qkv = linearOf(weights, `${name}.qkv`);
    this.output = linearOf(weights, `${name}.output`);
  }

  /** Map x (S, D) -> attended (S, D) and weights (H, S, S). */
  forward(x, off) {
    const { d_model: D, n_heads: H } = this.config;
    const qkv = this.qkv(x); // (S, 3 D)
    const [q, k, v] = [0, D, 2 * D].map((start) => columns(qkv, 3 * D, start, start + D)); // 3 x (S, D)
    const { heads, weights } = attention(q, k, v, D, H, false);
    clearHeads(heads, D, H, (head) => off.has(`${this.place}.${head}`));
    return { attended: this.output(heads), weights };
  }
}

/** Position-wise feed-forward network (Vaswani et al. 2017, section 3.3, equation 2).
 *
 *     FFN(x) = GELU(x W_1 + b_1) W_2 + b_2 */
class FeedForward {
  constructor(weights, name) {
    this.inner = linearOf(weights, `${name}.inner`);
    this.outer = linearOf(weights, `${name}.outer`);
  }

  /** Map x (S, D) -> (S, D). */
  forward(x) {
    return this.outer(gelu(this.inner(x)));
  }
}

/** Self-attention, then feed-forward, each as the Sublayer of
 *
 *     LayerNorm(x + Sublayer(x)) */
class EncoderLayer {
  constructor(weights, layer, config) {
    const name = `encoder.layers.${layer}`;
    this.number = layer + 1;
    this.attention = new MultiHeadSelfAttention(weights, `${name}.attention`, `encoder.${this.number}`, config);
    this.attention_norm = layerNormOf(weights, `${name}.attention_norm`, config.layer_norm_eps);
    this.feed_forward = new FeedForward(weights, `${name}.feed_forward`);
    this.feed_forward_norm = layerNormOf(weights, `${name}.feed_forward_norm`, config.layer_norm_eps);
  }

  /** Map x (S, D) -> x (S, D) and the weights of attention (H, S, S). */
  forward(x, off) {
    const { attended, weights } = this.attention.forward(x, off);
    x = this.attention_norm(off.has(`encoder.${this.number}`) ? x : add(x, attended));
    x = this.feed_forward_norm(off.has(`encoder-ff.${this.number}`) ? x : add(x, this.feed_forward.forward(x)));
    return { x, weights };
  }
}

/** The sum of two learned vectors, one for the token and one for its position (Devlin et al. 2018, section 3,
 * figure 2).
 *
 *     x_s = LayerNorm(E[id_s] + P[s]) */
class Embeddings {
  constructor(weights, name, config) {
    this.d_model = config.d_model;
    this.token = weights.get(`${name}.token.weight`); // (V, D)
    this.position = weights.get(`${name}.position.weight`); // (max_length, D)
    this.norm = layerNormOf(weights, `${name}.norm`, config.layer_norm_eps);
  }

  /** Embed ids (S) -> (S, D). */
  forward(ids, off) {
    const D = this.d_model;
    const x = new Float32Array(ids.length * D);
    ids.forEach((id, s) => x.set(this.token.subarray(id * D, (id + 1) * D), s * D));
    return this.norm(off.has("positions") ? x : add(x, this.position));
  }
}

/** Embeddings and a stack of n_layers encoder layers. */
class Encoder {
  constructor(weights, config) {
    this.embeddings = new Embeddings(weights, "encoder.embeddings", config);
    this.layers = Array.from({ length: config.n_layers }, (_, layer) => new EncoderLayer(weights, layer, config));
  }

  /** Encode ids (S) with S <= max_length -> the hidden states after the embeddings and after each layer, L + 1 times
   * (S, D), and the attention weights of each layer, L times (H, S, S). */
  async forward(ids, off, job) {
    let x = this.embeddings.forward(ids, off);
    const [states, weights] = [[x], []];
    for (const layer of this.layers) {
      await job.breathe();
      const output = layer.forward(x, off);
      x = output.x;
      states.push(x);
      weights.push(output.weights);
    }
    return { states, weights };
  }
}

/** Scores for every token of the vocabulary (Devlin et al. 2018, section 3.1).
 *
 *     logits = LayerNorm(GELU(h W + b)) E^T + c */
class MaskedLMHead {
  constructor(weights, config) {
    this.transform = linearOf(weights, "head.transform");
    this.norm = layerNormOf(weights, "head.norm", config.layer_norm_eps);
    this.decoder = linearOf(weights, "head.decoder");
  }

  /** Map hidden states (..., D) -> logits (..., V). */
  forward(hidden_states) {
    return this.decoder(this.norm(gelu(this.transform(hidden_states))));
  }
}

/** The encoder, and the head that predicts the tokens hidden from it. weights: Map of a name to numbers. */
class MaskedLanguageModel {
  constructor(config, weights) {
    this.config = config;
    const tied = config.tied_embeddings && { "head.decoder.weight": weights.get("encoder.embeddings.token.weight") };
    weights = new Map([...weights, ...Object.entries(tied || {})]);
    this.encoder = new Encoder(weights, config);
    this.head = new MaskedLMHead(weights, config);
  }

  /** Encode ids (S) -> states, L + 1 times (S, D), and weights, L times (H, S, S). */
  encode(ids, off, job) {
    return this.encoder.forward(ids, off, job);
  }

  /** Predict the token at one position, or at several, from hidden states (..., D) -> logits (..., V). */
  logits(hidden_states) {
    return this.head.forward(hidden_states);
  }
}
