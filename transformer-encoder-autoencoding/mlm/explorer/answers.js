// What the page asks of the model, the most important first, and where the answers are shown.

/** Answer all that the page asks of a sentence, the most important first. */
async function answer(sentence, { hidden, off, place: chosen, matters }, job) {
  view.matters.expect();
  const asked = filler.hide(sentence.ids, hidden);
  const { states, weights } = await filler.model.encode(asked, off, job);
  const masks = asked.flatMap((token, i) => (token === data.special.mask ? [i] : []));
  const place = chosen ?? masks[0] ?? null;
  const guesses = new Map(masks.map((i) => [i, filler.guess(states.at(-1), i, sentence.ids[i])]));
  const words = asked.map((token, i) => (token === data.special.mask ? "[MASK]" : sentence.shown[i]));
  maps = AttentionMaps.ofLayers(weights, HEADS, { from: words, to: words });
  isMomentShown = false;
  showTokens(sentence, hidden, place);
  $("perplexity").replaceChildren();
  showGuesses(sentence, guesses);
  lookAt(place);
  showAttention();
  for (const [i, { best }] of guesses) view.sentence.showMeter(i, best[0]);

  const question = { ids: asked, place, states, maps, off, truth: sentence.ids[place] };
  if (place !== null && !guesses.has(place)) {
    question.ids = filler.hideFrom(asked, sentence.words, place);
    const alone = await filler.model.encode(question.ids, off, job);
    question.states = alone.states;
    question.maps = AttentionMaps.ofLayers(alone.weights, HEADS, { from: words, to: words });
    guesses.set(place, filler.guess(question.states.at(-1), place, sentence.ids[place]));
    showGuesses(sentence, guesses);
  }
  const reply = place === null ? null : await compare(sentence, question, job);
  await job.rest();
  await scoreEach(sentence, hidden, masks, off, job);
  if (reply && matters) await findWhatMatters(question, reply, job);
}

/** Compare the answer at the place asked for with that of the whole model -> { id, token, logProb } of the answer. */
async function compare(sentence, { ids, place, states, off, truth }, job) {
  const now = filler.logProbs(states.at(-1), place);
  const whole = off.size ? (await filler.model.encode(ids, ALL_ON, job)).states : states;
  const then = filler.logProbs(whole.at(-1), place);
  const known = truth !== data.special.mask && truth !== data.special.unk;
  const id = known ? truth : filler.likeliest(then)[0].id;
  const token = data.tokens[id];
  const title = ["The answer at ", make("bdi", "", sentence.shown[place])];
  const change = off.size ? now[id] - then[id] : null;
  const [before, after] = [then, now].map((one) => filler.likeliest(one));
  view.compare.show({ title, before, after, answer: { id, token }, change });
  view.changed.say(token, then[id], now[id]);
  const rows = states.map((layer, i) => ({
    name: i === 0 ? "embeddings" : `layer ${i}`,
    best: filler.likeliest(i === LAYERS ? now : filler.logProbs(layer, place)),
  }));
  view.lens.show(rows, id);
  return { id, token, logProb: now[id] };
}

/** Score each word that is shown, as if it were hidden too, and all of them together. */
async function scoreEach(sentence, hidden, masks, off, job) {
  let [sum, n] = [0, 0];
  for (let i = 0; i < sentence.ids.length; i++) {
    if (masks.includes(i)) continue;
    const logProb = await filler.score(sentence, hidden, i, off, job);
    view.sentence.showMeter(i, logProb === null ? null : Math.exp(logProb));
    if (logProb === null) continue;
    sum -= logProb;
    n++;
  }
  const total = Math.exp(Math.min(700, sum / n));
  if (!n) return;
  const written = total < 1e4 ? total.toFixed(2) : total.toLocaleString("en", { maximumSignificantDigits: 2 });
  const said = "Under each word: how likely it is, given the others. Pseudo-perplexity ";
  $("perplexity").replaceChildren(said, make("b", "figure", written));
}

/** Switch off one part after the other, and note what the answer loses. */
async function findWhatMatters({ ids, place, maps, off }, { id, token, logProb }, job) {
  const changes = new Map();
  const entropy = (name) => {
    const [layer, head] = name.split(".").slice(1).map(Number);
    return { bits: maps.entropy(layer - 1, head - 1), most: maps.mostBits() };
  };
  const show = (done) =>
    view.matters.show({ changes, answer: token, off, entropy, before: Math.exp(logProb), done });
  show(false);
  for (const name of partNames.filter((name) => !off.has(name))) {
    const { states } = await filler.model.encode(ids, new Set([...off, name]), job);
    changes.set(name, filler.logProbs(states.at(-1), place)[id] - logProb);
    if (performance.now() - job.since > SLICE / 2) show(false);
    await job.breathe();
  }
  show(true);
}
