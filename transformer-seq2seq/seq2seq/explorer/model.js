// The encoder-decoder Transformer (Vaswani et al. 2017), to be read beside transformer.py: the same names in the same
// order. Here, parts of it can be switched off.
//
// Legend: S source length, T target length, P target tokens in the cache, D d_model, H heads, K = D / H, V vocabulary.
// A matrix is a Float32Array, row after row. There is one source and one target at a time, without padding, so that no
// mask but the causal one is needed; and there is no dropout.
//
// off is a Set of what is switched off, of these names; layers and heads are counted from 1, and KIND is "encoder" or
// "decoder" (self-attention) or "cross":
//   "positions"                     the position encoding is 0
//   "causal"                        a target position also sees those after it, unless there is a cache
//   "KIND.L"                        what the attention of layer L computes is 0: x = LayerNorm(x)
//   "KIND.L.H"                      what head H of layer L computes is 0
//   "encoder-ff.L", "decoder-ff.L"  what the feed-forward network of layer L computes is 0: x = LayerNorm(x)

const ACTIVATIONS = { relu, swish }; // the paper's, and that of most MarianMT checkpoints
const LAYER_NORM_EPS = 1e-5; // of torch.nn.LayerNorm

/** Multi-head attention of one sequence to another, or to itself (section 3.2.2).
 *
 *     MultiHead(Q, K, V) = Concat(head_1, ..., head_H) W^O
 *     head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V)
 *
 * place: KIND.L, its name among the switches. */
class MultiHeadAttention {
  constructor(weights, name, place, config) {
    this.place = place;
    this.config = config;
    this.query = linearOf(weights, `${name}.query`);
    this.key_value = linearOf(weights, `${name}.key_value`);
    this.output = linearOf(weights, `${name}.output`);
  }

  /** Project what can be attended to: x (S, D) -> keys and values, (S, D) each. */
  keys_values(x) {
    const D = this.config.d_model;
    const kv = this.key_value(x); // (S, 2 D)
    return [columns(kv, 2 * D, 0, D), columns(kv, 2 * D, D, 2 * D)];
  }

  /** Attend from x (T, D) to keys and values (S, D) -> attended (T, D) and weights (H, T, S). */
  forward(x, [k, v], causal, off) {
    const { d_model: D, n_heads: H } = this.config;
    const { heads, weights } = attention(this.query(x), k, v, D, H, causal);
    clearHeads(heads, D, H, (head) => off.has(`${this.place}.${head}`));
    return { attended: this.output(heads), weights };
  }
}

/** Position-wise feed-forward network (section 3.3, equation 2).
 *
 *     FFN(x) = max(0, x W_1 + b_1) W_2 + b_2 */
class FeedForward {
  constructor(weights, name, config) {
    this.inner = linearOf(weights, `${name}.inner`);
    this.outer = linearOf(weights, `${name}.outer`);
    this.activation = ACTIVATIONS[config.activation];
  }

  /** Map every position by itself: x (T, D) -> (T, D). */
  forward(x) {
    return this.outer(this.activation(this.inner(x)));
  }
}

/** Compute the position encoding (section 3.5) of one position -> (D).
 *
 *     PE(pos, i)       = sin(pos / 10000^(2i / d_model))    for i < D / 2
 *     PE(pos, D/2 + i) = cos(pos / 10000^(2i / d_model)) */
function sinusoid(pos, d_model) {
  const sines = Math.ceil(d_model / 2);
  const angle = (i) => pos / 10000 ** ((2 * i) / d_model);
  const entry = (_, i) => (i < sines ? Math.sin(angle(i)) : Math.cos(angle(i - sines)));
  return Float32Array.from({ length: d_model }, entry);
}

/** The sum of what a token is and where it stands (sections 3.4, 3.5 and 5.4).
 *
 *     x_t = sqrt(d_model) E[id_t] + PE[t] */
class Embeddings {
  constructor(weights, config) {
    this.d_model = config.d_model;
    this.token = weights.get("embeddings.token.weight"); // (V, D)
    this.positions = []; // (max_length, D), each computed when it is first asked for
  }

  /** Embed ids (T), the tokens at positions start, start + 1, ... -> (T, D). */
  forward(ids, off, start = 0) {
    const D = this.d_model;
    const scale = Math.sqrt(D);
    const x = new Float32Array(ids.length * D);
    ids.forEach((id, t) => {
      const tokens = this.token.subarray(id * D, (id + 1) * D).map((value) => scale * value);
      this.positions[start + t] ??= sinusoid(start + t, D);
      x.set(off.has("positions") ? tokens : add(tokens, this.positions[start + t]), t * D);
    });
    return x;
  }
}

/** Self-attention, then feed-forward, each within LayerNorm(x + Sublayer(x)) (sections 3.1 and 5.4). */
class EncoderLayer {
  constructor(weights, layer, config) {
    const name = `encoder.${layer}`;
    this.number = layer + 1;
    this.self_attention = new MultiHeadAttention(weights, `${name}.self_attention`, `encoder.${this.number}`, config);
    this.self_attention_norm = layerNormOf(weights, `${name}.self_attention_norm`, LAYER_NORM_EPS);
    this.feed_forward = new FeedForward(weights, `${name}.feed_forward`, config);
    this.feed_forward_norm = layerNormOf(weights, `${name}.feed_forward_norm`, LAYER_NORM_EPS);
  }

  /** Read x (S, D) -> x (S, D) and the weights of attention (H, S, S). */
  forward(x, off) {
    const { attended, weights } = this.self_attention.forward(x, this.self_attention.keys_values(x), false, off);
    x = this.self_attention_norm(off.has(`encoder.${this.number}`) ? x : add(x, attended));
    x = this.feed_forward_norm(off.has(`encoder-ff.${this.number}`) ? x : add(x, this.feed_forward.forward(x)));
    return { x, weights };
  }
}

/** Masked self-attention, attention to the memory ("cross-attention"), then feed-forward, each within
 * LayerNorm(x + Sublayer(x)) (sections 3.1, 3.2.3 and 5.4). */
class DecoderLayer {
  constructor(weights, layer, config) {
    const name = `decoder.${layer}`;
    this.number = layer + 1;
    this.self_attention = new MultiHeadAttention(weights, `${name}.self_attention`, `decoder.${this.number}`, config);
    this.self_attention_norm = layerNormOf(weights, `${name}.self_attention_norm`, LAYER_NORM_EPS);
    this.cross_attention = new MultiHeadAttention(weights, `${name}.cross_attention`, `cross.${this.number}`, config);
    this.cross_attention_norm = layerNormOf(weights, `${name}.cross_attention_norm`, LAYER_NORM_EPS);
    this.feed_forward = new FeedForward(weights, `${name}.feed_forward`, config);
    this.feed_forward_norm = layerNormOf(weights, `${name}.feed_forward_norm`, LAYER_NORM_EPS);
  }

  /** Read x (T, D) and memory (S, D) -> x (T, D) and the weights of self-attention, decoder (H, T, T), and of
   * cross-attention, cross (H, T, S). With a cache x attends to the P tokens in it, too: T x T is then T x (P + T). */
  forward(x, memory, causal, off, cache) {
    const [target_kv, memory_kv] = cache
      ? cache.update(this, x, memory)
      : [this.self_attention.keys_values(x), this.cross_attention.keys_values(memory)];
    const decoder = this.self_attention.forward(x, target_kv, causal, off);
    x = this.self_attention_norm(off.has(`decoder.${this.number}`) ? x : add(x, decoder.attended));
    const cross = this.cross_attention.forward(x, memory_kv, false, off);
    x = this.cross_attention_norm(off.has(`cross.${this.number}`) ? x : add(x, cross.attended));
    x = this.feed_forward_norm(off.has(`decoder-ff.${this.number}`) ? x : add(x, this.feed_forward.forward(x)));
    return { x, decoder: decoder.weights, cross: cross.weights };
  }
}

/** What the decoder keeps from one call to the next, so that it computes no position twice: for every layer the keys
 * and values of the P target tokens so far, (P, D) each, and of the memory, (S, D) each. All calls of a cache have the
 * same memory and the same switches. */
class Cache {
  length = 0; // P
  target = new Map();
  memory = new Map();

  /** Add a layer's keys and values of T more tokens, x (T, D), and, in the first call, of the memory (S, D) -> those
   * of all P + T tokens, and of the memory. */
  update(layer, x, memory) {
    const past = this.target.get(layer);
    const kv = layer.self_attention.keys_values(x);
    this.target.set(layer, past ? kv.map((rows, i) => concatenate(past[i], rows)) : kv);
    if (!past) this.memory.set(layer, layer.cross_attention.keys_values(memory));
    return [this.target.get(layer), this.memory.get(layer)];
  }

  /** Make a second cache that goes on from here by itself. It shares what is in this one, which nobody overwrites. */
  branch() {
    const { length, target, memory } = this;
    return Object.assign(new Cache(), { length, target: new Map(target), memory: new Map(memory) });
  }
}

/** Put the rows of y behind those of x. */
function concatenate(x, y) {
  const all = new Float32Array(x.length + y.length);
  all.set(x);
  all.set(y, x.length);
  return all;
}

/** Encoder, decoder, and a projection to the vocabulary, all three on one embedding (section 3.4). weights: Map of a
 * name to numbers. */
class Transformer {
  constructor(config, weights) {
    this.config = config;
    this.embeddings = new Embeddings(weights, config);
    const stack = (length, Layer) => Array.from({ length }, (_, layer) => new Layer(weights, layer, config));
    this.encoder = stack(config.n_encoder_layers, EncoderLayer);
    this.decoder = stack(config.n_decoder_layers, DecoderLayer);
    this.output_bias = weights.get("output_bias");
  }

  /** Read source (S), which ends in </s> -> states, what the embeddings and each layer make of it, L + 1 times (S, D),
   * the last of which is the memory, and weights, L times (H, S, S). */
  async encode(source, off, job) {
    let x = this.embeddings.forward(source, off);
    const [states, weights] = [[x], []];
    for (const layer of this.encoder) {
      await job.breathe();
      const output = layer.forward(x, off);
      x = output.x;
      states.push(x);
      weights.push(output.weights);
    }
    return { states, weights };
  }

  /** Read target (T), which begins with <pad>, and memory (S, D) -> states, L + 1 times (T, D), from the last of which
   * `project` scores the token after each, and the weights of self-attention, decoder, L times (H, T, T), and of
   * cross-attention, cross, L times (H, T, S).
   *
   * With a cache, the T tokens follow the P tokens of earlier calls. */
  async decode(target, memory, off, job, cache = null) {
    const causal = cache !== null || !off.has("causal"); // what is still to be generated cannot be seen
    let x = this.embeddings.forward(target, off, cache ? cache.length : 0);
    const [states, decoder, cross] = [[x], [], []];
    for (const layer of this.decoder) {
      await job.breathe();
      const output = layer.forward(x, memory, causal, off, cache);
      x = output.x;
      states.push(x);
      decoder.push(output.decoder);
      cross.push(output.cross);
    }
    if (cache) cache.length += target.length;
    return { states, decoder, cross };
  }

  /** Score the next token: hidden states (..., D) -> logits (..., V). <pad>, never generated, gets -Infinity. */
  project(hidden) {
    const { vocab_size, pad_id } = this.config;
    const logits = linear(hidden, this.embeddings.token, this.output_bias);
    for (let i = pad_id; i < logits.length; i += vocab_size) logits[i] = -Infinity;
    return logits;
  }
}
