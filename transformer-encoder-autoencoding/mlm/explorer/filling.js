// Questions to the model, as filler.py and filling.py ask them: what stands at a hidden place, and how likely is each
// word given the others.

const GUESSES = 5;

/** The model with its tokenizer. */
class Filler {
  /** data: that of the page, with a model. */
  constructor(data) {
    this.model = new MaskedLanguageModel(data.config, unpackModel(data.model));
    this.tokenizer = new Tokenizer(data.tokenizer, data.tokenizer.encode_special);
    this.special = data.special;
    this.tokens = data.tokens; // as they are shown; null: the tokenizer does not have this one
    this.limit = data.config.max_length;
  }

  /** Encode a text -> { ids, words: the word that each token is of, shown: each token as it is shown } or, if it is
   * refused, { why }. */
  encode(text) {
    const encoding = this.tokenizer.encode(text);
    const { ids, words } = encoding;
    const { pad, unk, cls, sep } = this.special;
    if (ids.every((token) => token === cls || token === sep || token === pad)) {
      return { why: "The sentence is empty; type some words." };
    }
    const typed = [pad, unk, cls, sep].map((token) => this.tokens[token]).find((name) => text.includes(name));
    if (typed) return { why: `${typed} is one of the model's special tokens; leave it out.` };
    if (ids.length > this.limit) {
      return { why: `The sentence has ${ids.length} tokens, and the model takes ${this.limit}; shorten it.` };
    }
    return { ids, words, shown: showTokensOf(encoding, (token) => this.tokens[token] ?? "?", unk) };
  }

  /** Whether a token is one of the sentence's, not [CLS] or [SEP]. */
  isWord(token) {
    return token !== this.special.cls && token !== this.special.sep;
  }

  /** Hide the tokens at some positions. */
  hide(ids, positions) {
    return ids.map((token, i) => (positions.has(i) ? this.special.mask : token));
  }

  /** Hide one token, and the later ones of its word, which give it away (Kauf and Ivanova 2023, "PLL-word-l2r"). */
  hideFrom(ids, words, position) {
    let end = position + 1;
    while (end < words.length && words[end] !== null && words[end] === words[position]) end++;
    return this.hide(ids, new Set(Array.from({ length: end - position }, (_, i) => position + i)));
  }

  /** Return the log-probabilities (V) at one position of hidden states (S, D). */
  logProbs(states, position) {
    const D = this.model.config.d_model;
    return logSoftmax(this.model.logits(states.subarray(position * D, (position + 1) * D)));
  }

  /** Return the likeliest tokens, as { id, token, probability }, of log-probabilities (V). */
  likeliest(logProbs) {
    const there = this.tokens.some((token) => token === null)
      ? logProbs.map((value, i) => (this.tokens[i] === null ? -Infinity : value))
      : logProbs;
    return topK(there, GUESSES)
      .filter((id) => this.tokens[id] !== null)
      .map((id) => ({ id, token: this.tokens[id], probability: Math.exp(logProbs[id]) }));
  }

  /** Guess what stands at a hidden position -> { best, itself }: the likeliest tokens, with `right` where it is the one
   * that is hidden, and the probability of that; truth: its id, [MASK] if nobody knows. */
  guess(states, position, truth) {
    const logProbs = this.logProbs(states, position);
    const best = this.likeliest(logProbs).map((one) => ({ ...one, right: one.id === truth }));
    return { best, itself: truth === this.special.mask ? null : Math.exp(logProbs[truth]) };
  }

  /** Score one token of a sentence by its log-probability given all others that are shown; null where there is nothing
   * to score: an unknown word or a [MASK] of the text. */
  async score({ ids, words }, hidden, position, off, job) {
    const token = ids[position];
    if (!this.isWord(token) || token === this.special.mask || token === this.special.unk) return null;
    const asked = this.hideFrom(this.hide(ids, hidden), words, position);
    const { states } = await this.model.encode(asked, off, job);
    return this.logProbs(states.at(-1), position)[token];
  }

  /** Find the place in a text at which the model, all its parts on, is least sure of its first guess, of the [MASK]s
   * and the words that it guesses right; null if there is none. */
  async findUnsure(text, job) {
    const { ids, words } = this.encode(text);
    const { mask, unk } = this.special;
    let [place, least] = [null, Infinity];
    for (const [i, token] of ids.entries()) {
      if (!this.isWord(token) || token === unk) continue;
      const { states } = await this.model.encode(token === mask ? ids : this.hideFrom(ids, words, i), ALL_ON, job);
      const [{ probability, right }] = this.guess(states.at(-1), i, token).best;
      if ((token === mask || right) && probability < least) [place, least] = [i, probability];
    }
    return place;
  }
}
