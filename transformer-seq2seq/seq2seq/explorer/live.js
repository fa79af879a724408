// The model that the page carries, with its tokenizer: from a prompt to a reading, all that the page shows of it.

const LIKELIEST = 5; // words shown at a step
const ALL_ON = new Set();

/** Make the maps of a reading's three kinds of attention. mapsOf(kind, rest) -> AttentionMaps. */
function makeMaps({ source, output, target }, mapsOf) {
  return {
    cross: mapsOf("cross", { from: output, to: source, grows: true }),
    decoder: mapsOf("decoder", { from: output, to: target, grows: true, causal: true }),
    encoder: mapsOf("encoder", { from: source, to: source }),
  };
}

/** Unpack a reading that was computed beforehand. config: of its model. */
function unpackReading(packed, { n_heads: heads, n_encoder_layers, n_decoder_layers }) {
  const layers = (kind) => (kind === "encoder" ? n_encoder_layers : n_decoder_layers);
  const unpack = (kind, rest) =>
    AttentionMaps.ofThousandths(packed.weights[kind], { layers: layers(kind), heads, ...rest });
  const probability = (t) => packed.next[t].find(({ token }) => token === packed.output[t])?.probability ?? null;
  const words = packed.output.map((text, t) => ({ text, probability: probability(t), own: false }));
  return { ...packed, words, maps: makeMaps(packed, unpack), isCut: false };
}

class Live {
  /** data: the page's. */
  constructor({ config, model, tokenizer, tokens, special }) {
    this.model = new Transformer(config, unpackModel(model));
    this.tokenizer = new Tokenizer(tokenizer, tokenizer.encode_special);
    Object.assign(this, { config, tokens, special });
  }

  /** Show a token. */
  nameOf(id) {
    return this.tokens[id] ?? "?";
  }

  /** Encode a prompt: the ids of its tokens, and the tokens as they are shown. */
  encode(text) {
    const encoding = this.tokenizer.encode(text);
    return { ids: encoding.ids, shown: showTokensOf(encoding, (id) => this.nameOf(id), this.special.unk) };
  }

  /** Write token ids, </s> left out, as a text. */
  write(ids) {
    return this.tokenizer.decode(ids.filter((id) => id !== this.special.eos));
  }

  /** Write an output to be shown, even if it is empty. */
  show(ids) {
    return this.write(ids) || "(empty)";
  }

  /** Find the tokens of a word that the reader types: those of the tokenizer or, if it knows none, the one that is
   * shown in this way. </s> is not typed, but meant. */
  idsOf(text) {
    if (text.trim() === this.nameOf(this.special.eos)) return [this.special.eos];
    const ids = this.tokenizer.encode(text).ids.filter((one) => one !== this.special.eos);
    if (ids.length && !ids.includes(this.special.unk)) return ids;
    const id = this.tokens.indexOf(text.trim());
    return id >= 0 ? [id] : ids;
  }

  /** Say why a prompt of these ids cannot be answered, "" if it can. */
  problemOf(ids) {
    const most = this.config.max_length;
    if (ids.length < 2) return "The prompt is empty; type something.";
    return ids.length > most ? `The prompt has ${ids.length} tokens; the model takes at most ${most}. Shorten it.` : "";
  }

  /** Answer a prompt, as encode returns it -> a reading. options: those of generate; own: the steps, from 0, at which
   * the reader has put a word. */
  async read({ ids, shown }, options, own, off, job) {
    const { n_heads: heads, max_length } = this.config;
    const encoded = await this.model.encode(ids, off, job);
    const memory = encoded.states.at(-1);
    const { found, steps } = await generate(this.model, memory, max_length, options, off, job);
    const { path, finished } = found[0];
    const output = path.map(({ token }) => this.nameOf(token));
    const reading = { source: shown, output, target: ["start", ...output.slice(0, -1)] };
    const attended = (kind) => path.map(({ parent }) => parent.hidden[kind]);
    const words = path.map(({ parent, token: id }, t) => {
      return { text: output[t], probability: Math.exp(parent.logProbs[id]), own: own.has(t), id };
    });
    return {
      ...reading,
      ...{ ids, memory, found, steps, words, isCut: !finished },
      next: path.map(({ parent }) => this.likeliest(parent.logProbs)),
      maps: makeMaps(reading, (kind, rest) =>
        kind === "encoder"
          ? AttentionMaps.ofLayers(encoded.weights, heads, rest)
          : AttentionMaps.ofLayers(joinRows(attended(kind), heads, rest.to.length), heads, rest),
      ),
    };
  }

  /** Name the likeliest first tokens of the answer to a prompt with these ids, all parts on. */
  async begin(ids, job) {
    const { states } = await this.model.encode(ids, ALL_ON, job);
    const { found } = await generate(this.model, states.at(-1), 1, {}, ALL_ON, job);
    return this.likeliest(found[0].path[0].parent.logProbs);
  }

  /** Name the likeliest tokens: log-probabilities (V) -> [{ token, probability, id }]. Ids without a token are none. */
  likeliest(logProbs) {
    const best = topK(logProbs, 2 * LIKELIEST).filter((id) => this.tokens[id] !== null && logProbs[id] > -Infinity);
    return best.slice(0, LIKELIEST).map((id) => ({ token: this.nameOf(id), probability: Math.exp(logProbs[id]), id }));
  }

  /** Say what each layer's output would predict at a step of a reading, from 1, were it the last one's. */
  lens({ found }, step) {
    const { states } = found[0].path[step - 1].parent.hidden;
    return states.map((state, layer) => ({
      name: layer ? `layer ${layer}` : "embeddings",
      best: this.likeliest(logSoftmax(this.model.project(state))),
    }));
  }

  /** Score a reading's output with these parts off: the log-probability of each of its tokens. memory: the encoder's
   * output, if it is known. */
  async score({ ids, found }, off, job, memory = null) {
    memory ??= (await this.model.encode(ids, off, job)).states.at(-1);
    return score(this.model, memory, found[0].path.map(({ token }) => token), off, job);
  }
}

/** Join the rows of attention that the decoder computed one at a time: for each of T steps, for each layer,
 * (heads, 1, n) of n <= width -> for each layer (heads, T, width). */
function joinRows(steps, heads, width) {
  return steps[0].map((_, layer) => {
    const weights = new Float32Array(heads * steps.length * width);
    steps.forEach((layers, t) => {
      const n = layers[layer].length / heads;
      for (let h = 0; h < heads; h++) {
        weights.set(layers[layer].subarray(h * n, (h + 1) * n), (h * steps.length + t) * width);
      }
    });
    return weights;
  });
}
