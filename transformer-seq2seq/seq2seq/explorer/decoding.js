// From a trained model to token ids: greedy decoding, beam search and sampling, all in one loop, to be read beside
// decoding.py. A beam of n hypotheses grows by one token a step. Greedy decoding is a beam of one; sampling is a beam
// of one that draws its token instead of taking the likeliest. Here one source is decoded at a time, the first tokens
// may be given, and every hypothesis remembers what was computed on its way, because the page shows it.

/** A hypothesis, which grows by one token a step: the one that it extends, its last token, and the sum of the
 * log-probabilities of its tokens (nats). fate: "open" if it went on, "ended", or "dropped" if better ones took its
 * place. Once the decoder has read it: hidden, what decode returns for its last token, and logProbs (V) of the next. */
class Hypothesis {
  constructor(parent, token, logProbability) {
    Object.assign(this, { parent, token, logProbability, fate: "dropped", hidden: null, logProbs: null, cache: null });
  }

  /** The hypotheses on the way to this one, itself the last; the start, from which all go out, is not among them. */
  get path() {
    return this.parent ? [...this.parent.path, this] : [];
  }
}

/** Picks the candidates of beam search: the best 2 n of all n V extensions, so that n are left to go on with even if n
 * of them end; for greedy decoding (n = 1) the best one. */
function topCandidates(open, n) {
  const count = n > 1 ? 2 * n : 1;
  const all = open.flatMap((one) => topK(one.logProbs, count).map((token) => extend(one, token)));
  const possible = all.filter(({ logProbability }) => logProbability > -Infinity);
  return possible.sort((a, b) => b.logProbability - a.logProbability).slice(0, count);
}

const extend = (one, token) => new Hypothesis(one, token, one.logProbability + one.logProbs[token]);

/** A pick that draws the next token (n = 1) from the model's distribution, sharpened and cut.
 *
 * temperature divides the logits; of the resulting distribution, kept is the number of likeliest tokens that stay (0:
 * all), and mass keeps the likeliest ones whose probabilities first add up to it (top-k and top-p). The sums are still
 * those of the model's own log-probabilities. The same seed draws the same. */
function sampler({ temperature = 1, kept = 0, mass = 1, seed = 0 }) {
  return ([one], n, t) => {
    const isCut = kept > 0 || mass < 1; // else there is nothing to sort for
    const tokens = isCut ? topK(one.logProbs, kept || one.logProbs.length) : [...one.logProbs.keys()];
    const probs = softmax(Float32Array.from(tokens, (token) => one.logProbs[token] / temperature));
    let [count, nucleus] = [0, 0];
    while (count < probs.length && nucleus < mass) nucleus += probs[count++]; // stays if those before fall short
    let left = uniform(seed, t) * nucleus;
    let drawn = 0;
    while (drawn < count - 1 && left >= probs[drawn]) left -= probs[drawn++];
    return [extend(one, tokens[drawn])];
  };
}

/** The t-th random number of a seed, evenly distributed from 0 to 1 (the generator mulberry32). */
function uniform(seed, t) {
  let x = (seed + Math.imul(t, 0x6d2b79f5)) | 0;
  x = Math.imul(x ^ (x >>> 15), x | 1);
  x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
  return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
}

/** Decodes greedily (beam 1), by beam search (ranked by the log-probability over length**lengthPenalty), or with a
 * sampler as pick, from a memory and the first tokens, prefix.
 *
 * -> found, at most `beam` outputs of at most maxLength tokens, best first: {ids without start and </s>,
 * logProbability, score, finished (false if cut at the maximum length), path, its hypotheses}; and steps, for each
 * step the hypotheses that competed, best first. The search is done when there are `beam` finished hypotheses and none
 * of the unfinished, were it to end now, would rank before the last of them. Of the candidates that end, those among
 * the best n finish: a worse one must not end before a better one goes on. */
async function generate(model, memory, maxLength, options, off, job) {
  const { beam: n = 1, lengthPenalty = 1, prefix = [], pick = topCandidates } = options;
  const { pad_id: start, eos_id: eos } = model.config;
  const found = [];
  const steps = [];
  let open = [new Hypothesis(null, start, 0)];
  open[0].cache = new Cache();

  for (let t = 1; t <= maxLength && open.length; t++) {
    for (const one of open) {
      one.hidden = await model.decode([one.token], memory, off, job, one.cache);
      one.logProbs = logSoftmax(model.project(one.hidden.states.at(-1)));
    }
    const candidates = t <= prefix.length ? [extend(open[0], prefix[t - 1])] : pick(open, n, t);
    steps.push(candidates);

    const ends = (one) => one.token === eos || t === maxLength;
    for (const one of candidates.slice(0, n).filter(ends)) {
      one.fate = "ended";
      const finished = one.token === eos;
      const ids = one.path.slice(0, finished ? -1 : undefined).map(({ token }) => token);
      const { logProbability, path } = one;
      found.push({ ids, logProbability, score: logProbability / t ** lengthPenalty, finished, path });
    }
    found.sort((a, b) => b.score - a.score).splice(n);

    open = candidates.filter((one) => !ends(one)).slice(0, n);
    const toBeat = found.length === n ? found[n - 1].score : -Infinity;
    if (!open.length || toBeat >= open[0].logProbability / t ** lengthPenalty) break;
    for (const one of open) {
      one.fate = "open";
      one.cache = one.parent.cache.branch();
    }
  }
  return { found, steps };
}

/** The log-probability of each token of an output, read at once ("teacher forcing"). target: its ids, with </s> if it
 * ended. */
async function score(model, memory, target, off, job) {
  const { states } = await model.decode([model.config.pad_id, ...target.slice(0, -1)], memory, off, job);
  const width = model.config.d_model;
  return target.map((token, t) => logSoftmax(model.project(states.at(-1).subarray(t * width, (t + 1) * width)))[token]);
}
