// The page: one state, what follows from it, and what of it is shown. page.py says what the data holds.

const data = JSON.parse($("data").textContent);
const filler = data.model ? new Filler(data) : null;
const { n_layers: LAYERS, n_heads: HEADS } = data.config;
const TITLES = { from: "attending", to: "attended to" };
const ALL_ON = new Set();
const layerNumbers = Array.from({ length: LAYERS }, (_, i) => i + 1);
const headNumbers = Array.from({ length: HEADS }, (_, i) => i + 1);

/** All that is chosen, and all that the link holds. */
const state = {
  text: data.text,
  hidden: new Set(), // positions of tokens that the user has hidden
  place: null, // the position looked at; null: the first hidden one
  off: ALL_ON, // the parts that are switched off
  layer: data.layer, // from 1; null: the mean
  head: data.head,
  form: "lines",
  matters: false, // whether the user has asked for what matters
  moment: null, // a reading of the training replayed
};

const FIRST = { ...state };
const jobs = new Jobs();
let sentence = null; // the last that was not refused
let isMomentShown = false; // whether what is shown is of a moment of the training
let maps = null;
let typed = null; // what the reader had asked before the training was replayed: { text, hidden, place }

// ---- from the text to its answers

/** Change the state, and compute and show what follows. */
function update(change) {
  Object.assign(state, change);
  save();
  showOff();
  const reading = state.moment ?? data.reading;
  document.body.classList.toggle("replaying", state.moment !== null);
  $("moment").hidden = state.moment === null;
  $("moment").firstChild.textContent = `The model at step ${state.moment?.step.toLocaleString("en")} of its training. `;
  if (filler && reading) showNote({});
  if (reading) return jobs.run(async () => showReading(reading));
  const encoded = filler.encode(state.text);
  showNote(encoded);
  if (encoded.why) return jobs.run(async (job) => isMomentShown && answerAgain(job));
  sentence = encoded;
  return jobs.run((job) => answer(encoded, state, job));
}

/** Answer the last sentence that was not refused, where a moment of the training is shown in its place. */
function answerAgain(job) {
  sentence ??= filler.encode(data.text);
  return answer(sentence, { ...state, hidden: new Set(), place: null }, job);
}

// ---- showing it

function showTokens({ ids, shown, words }, hidden, place) {
  const tokens = ids.map((token, i) => ({
    text: shown[i],
    fixed: !filler.isWord(token),
    unknown: token === data.special.unk,
    masked: token === data.special.mask,
    hidden: hidden.has(i),
    joins: words[i] !== null && words[i] === words[i - 1],
  }));
  view.sentence.showTokens(tokens, place);
}

/** Show guesses: Map of a position -> { best, itself }. */
function showGuesses({ ids, shown }, guesses) {
  const cards = [...guesses].sort((a, b) => a[0] - b[0]).map(([i, guess]) => {
    const isAsked = ids[i] === data.special.mask || state.hidden.has(i);
    return { title: titleOf(shown[i], isAsked, guess.itself), word: shown[i], ...guess };
  });
  view.sentence.showGuesses(cards);
}

/** Title the guesses for a word; itself: its probability, null for a [MASK] of the text. */
function titleOf(word, isHidden, itself) {
  const name = make("bdi", "", word);
  if (!isHidden) return ["If ", name, " were hidden, the model would guess"];
  return ["For ", name, `${itself === null ? "" : ", hidden,"} the model guesses`];
}

/** Let the parts that look at one place look at it, or say that none is chosen. */
function lookAt(place) {
  if (place !== view.place) view.map.choose(place === null ? null : { side: "from", index: place });
  view.place = place;
  for (const id of ["compare", "matters", "lens"]) $(id).hidden = place === null;
  const note = place === null ? "Hide a word, or click the bar under one, to see the model's answer here." : LENS_NOTE;
  $("lens-note").textContent = note;
  if (!state.matters) view.matters.clear();
}

const LENS_NOTE = "What the model would answer if it ended after each layer: the five likeliest words.";

/** Show what was computed beforehand: each word hidden alone, and the attention of the whole sentence. A moment of the
 * training shows its [MASK]s first, and the word that the user has hidden behind them. */
function showReading({ text, words, guesses, weights }) {
  isMomentShown = state.moment !== null;
  const masks = guesses.flatMap((guess, i) => (guess?.itself === null ? [i] : []));
  const chosen = [...state.hidden].filter((i) => guesses[i] && !masks.includes(i)).slice(0, 1);
  const shown = state.moment ? [...masks, ...chosen] : chosen.length ? chosen : masks;
  const isHidden = (i) => i === shown[0] || masks.includes(i);
  const tokens = words.map((word, i) => ({
    text: word,
    fixed: !guesses[i],
    masked: masks.includes(i),
    hidden: isHidden(i),
  }));
  if (!filler) $("sentence").textContent = text;
  $("perplexity")?.replaceChildren(); // it is of the trained model, and of the text as typed
  view.sentence.showTokens(tokens, null);
  guesses.forEach((guess, i) => guess?.itself != null && view.sentence.showMeter(i, guess.itself));
  view.sentence.showGuesses(shown.map((i) => {
    return { title: titleOf(words[i], isHidden(i), guesses[i].itself), word: words[i], ...guesses[i] };
  }));
  maps = AttentionMaps.ofThousandths(weights, { layers: LAYERS, heads: HEADS, from: words, to: words });
  const place = shown[0] ?? null;
  const isNew = place !== null && place !== view.place && (state.moment || view.place === undefined);
  if (isNew) view.map.choose({ side: "from", index: place });
  view.place = place;
  showAttention();
}

function showAttention() {
  const [layer, head] = [(state.layer ?? LAYERS + 1) - 1, (state.head ?? HEADS + 1) - 1];
  const names = [`encoder.${state.layer}`, `encoder.${state.layer}.${state.head}`];
  const gone = state.moment ? ALL_ON : state.off; // at a moment of the training all parts were on
  view.heads.show(maps, { layer, head, kind: "encoder", off: gone });
  const off = names.some((name) => gone.has(name));
  view.map.show(maps, { layer, head, form: state.form, off, titles: TITLES });
}

/** Show a head: layer and head from 0, the means behind the last. */
function showHead({ layer, head }) {
  look({ layer: layer < LAYERS ? layer + 1 : null, head: head < HEADS ? head + 1 : null });
}

function showNote({ why, ids }) {
  const unknown = ids?.includes(data.special.unk) ? "[UNK: …] is a word that the model does not know." : "";
  $("note").textContent = why ?? unknown;
  $("note").classList.toggle("refused", Boolean(why));
  $("text").setAttribute("aria-invalid", Boolean(why));
  document.querySelector("main").classList.toggle("stale", Boolean(why));
  for (const part of document.querySelectorAll("#answer, .attention")) part.inert = Boolean(why);
  for (const part of document.querySelectorAll(".past")) part.inert = Boolean(why) || state.moment !== null;
  document.title = `${state.text} – attention`;
}

function showOff() {
  if (!filler) return;
  view.switches.show(state.off);
  view.changed.show(state.moment ? ALL_ON : state.off); // at a moment of the training all parts were on
}

// ---- what the user does

/** Change what is looked at, without computing anything. */
function look(change) {
  Object.assign(state, change);
  save();
  if (maps) showAttention();
}

/** Type: what was hidden stays so, wherever its token is now. */
function type(text) {
  const before = (state.moment ? filler.encode(state.text).ids : sentence?.ids) ?? [];
  const { ids: after = before } = filler.encode(text);
  const moved = (position) => follow(before, after, position);
  const hidden = new Set([...state.hidden].map(moved).filter((position) => position !== null));
  typed = null;
  update({ text, hidden, place: state.place === null ? null : moved(state.place), moment: null });
  view.replay?.end();
  view.tryThis.end();
}

/** Find where a token is after an edit in the midst of a sentence, null if it is gone. */
function follow(before, after, position) {
  const shorter = Math.min(before.length, after.length);
  let [start, end] = [0, 0];
  while (start < shorter && before[start] === after[start]) start++;
  while (end < shorter - start && before.at(-1 - end) === after.at(-1 - end)) end++;
  if (position < start) return position;
  return position >= before.length - end ? position + after.length - before.length : null;
}

function hideOrShow(position) {
  const single = state.moment ?? data.reading; // there each word is hidden alone
  const hidden = new Set(single ? [] : state.hidden);
  if (!single && sentence.ids[position] === data.special.mask) return update({ place: position });
  if (state.moment?.guesses[position].itself === null) return; // a moment shows its [MASK]s already
  if (state.hidden.has(position)) hidden.delete(position);
  else hidden.add(position);
  update({ hidden, place: single || hidden.size === 0 ? null : hidden.has(position) ? position : null });
}

function flip(name) {
  const off = new Set(name === null ? [] : state.off);
  // at a moment of the training all parts are shown as on
  if (name !== null && (state.moment || !off.delete(name))) off.add(name);
  if (name === null) view.tryThis.end();
  update({ off, moment: null });
  view.replay?.end();
}

// ---- the link

function save() {
  link.write({
    text: state.text,
    hide: [...state.hidden].join(","),
    at: state.place ?? "",
    off: [...state.off].join(","),
    layer: state.layer ?? "",
    head: state.head ?? "",
    form: state.form === "lines" ? "" : state.form,
    matters: state.matters ? "1" : "",
  });
}

/** Read the state from what the link holds; what is wrong in it is left out. */
function restore(values) {
  if (!Object.keys(values).length) return Object.assign(state, FIRST);
  const list = (value) => (value ? value.split(",") : []);
  const number = (value, most) => (Number(value) >= 1 && Number(value) <= most ? Math.trunc(Number(value)) : null);
  state.text = (filler && values.text) ?? data.text;
  const ids = filler ? (filler.encode(state.text).ids ?? []) : data.reading.words.map(() => -1);
  const isWord = (i) => ids[i] !== undefined && (!filler || filler.isWord(ids[i]));
  state.hidden = new Set(list(values.hide).map(Number).filter(isWord));
  state.place = values.at && isWord(Number(values.at)) ? Number(values.at) : null;
  const isPart = (name) => name === "positions" || partNames.includes(name);
  state.off = new Set(filler ? list(values.off).filter(isPart) : []);
  state.layer = number(values.layer, LAYERS);
  state.head = number(values.head, HEADS);
  state.form = values.form === "table" ? "table" : "lines";
  state.matters = values.matters === "1";
}
