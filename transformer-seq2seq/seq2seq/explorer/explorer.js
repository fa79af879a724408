// The page: its state, what the model is asked, and what is shown of the answer. Of two questions the newer wins.

const data = JSON.parse($("data").textContent);
const main = document.querySelector("main");
const live = data.model && new Live(data); // null: the page shows one reading that was computed beforehand
const first = firstState(data);
const parts = switchable(data.config);
const names = namesOf(parts);
const QUESTIONS = ["text", "method", ...Object.keys(BOUNDS), "put", "off", "matters"]; // what the model is asked
const SIDES = {
  cross: { from: "being written", to: "the prompt" },
  decoder: { from: "being written", to: "written before" },
  encoder: { from: "the prompt", to: "the prompt" },
};
const EXPERIMENTS = [ // each with the page's own prompt and the model with all parts on
  {
    name: "Without the prompt",
    ask: "The decoder does not see the prompt any more. What does it write now, and what does it still know?",
    state: () => ({ off: new Set(names.filter((name) => /^cross\.\d+$/.test(name))) }),
  },
  {
    name: "Without positions",
    ask: "No word knows where it stands. What becomes of the output? Swap two words of the prompt: does it notice?",
    state: () => ({ off: new Set(["positions"]) }),
  },
  {
    name: "Another first word",
    ask: "The output begins with the second likeliest word. Do the words after it follow the prompt, or that word?",
    state: async (job) => {
      const likeliest = await live.begin(live.tokenizer.encode(first.text).ids, job);
      return { put: [{ id: (likeliest[1] ?? likeliest[0]).id, own: true }], step: 1 };
    },
  },
  {
    name: "Watch the beams",
    ask: "Which hypotheses are overtaken, and when? Does the winner lead from the start? What would greedy have done?",
    state: () => ({ method: "beam", beam: 4 }),
    see: "beams-part",
  },
  {
    name: "Look ahead",
    ask:
      "Without the causal mask each word also sees the words after it while the output is scored (below, under “Take " +
      "it apart”). Does the model cheat? Why can a model that never looked ahead in training not use what it sees?",
    state: () => ({ off: new Set(["causal"]) }),
    see: "answers",
  },
];

const jobs = new Jobs();
let state = first;
let reading = null;
let answered = null; // the last reading of the trained model
let whole = { key: "", reading: null }; // what the model with all parts on makes of the same
let moment = null; // the step of training that is shown
let lensOf = [null, 0]; // the reading and the step that the lens shows

const views = {
  output: new Output({ onStep: (step) => change({ step }), onPut: put, onType: putTyped }),
  beams: new Beams($("beams")),
  grid: new HeadGrid($("grid"), { onShow: lookAt, onSwitch: live && toggle }),
  map: new AttentionMap($("map"), { onForm: (form) => change({ form }) }),
  switches: new Switches(
    $("switches"),
    parts.chains,
    (name) => (name ? toggle(name) : allOn()),
    true,
  ),
  answers: new Answers($("answers")),
  changed: new Changed($("changed"), allOn, true),
  matters: new WhatMatters($("matters"), {
    rows: parts.rows,
    kinds: true,
    onStart: () => change({ matters: true }),
    onPick: (name) => toggle(name, placeOf(name)),
  }),
  lens: new Lens($("lens")),
};
const link = new Link((values) => {
  change(opened(values));
  views.tryThis?.end();
});
const theme = new Theme($("theme"), () => reading && repaint());

// ---- the state

/** Change the state: what the model has to be asked for is asked, the rest only shown. */
function change(some) {
  if ("text" in some && !("put" in some)) some = { ...some, put: [], step: null };
  if (some.step === null && state.step !== null) views.map.choose(null);
  state = { ...state, ...some };
  link.write(toLink(state, first));
  if (live && QUESTIONS.some((key) => key in some)) return ask();
  show();
  if ("step" in some) chooseNewest();
}

const isToken = (id) => typeof data.tokens[id] === "string" && id !== data.special.pad;

/** Read the state from what a link holds. A page without its model shows one text, with all parts on. */
function opened(values) {
  const all = fromLink(values, first, names, isToken);
  return live ? all : { ...all, text: first.text, off: ALL_ON, put: [], matters: false };
}

/** Switch a part off, or on again; at a moment of the training all parts are shown as on. */
function toggle(name, rest = {}) {
  const off = new Set(state.off);
  if (moment !== null || !off.delete(name)) off.add(name);
  change({ off, ...rest });
}

function allOn() {
  change({ off: new Set() });
  views.tryThis.end();
}

/** The map of the head that a name is of; nothing for other parts. */
function placeOf(name) {
  const [kind, layer, head] = name.split(".");
  return head ? { kind, layer: Number(layer), head: Number(head) } : {};
}

/** Show a head, from 0; behind the last stand the means. */
function lookAt({ layer, head }) {
  const { layers, heads } = reading.maps[state.kind];
  change({ layer: layer === layers ? null : layer + 1, head: head === heads ? null : head + 1 });
}

/** Put a token at a step: the words before it stay, the decoder goes on behind it. */
function put(step, ...ids) {
  const { found, words } = reading;
  const before = found[0].path.slice(0, step - 1).map(({ token }, t) => ({ id: token, own: words[t].own }));
  change({ put: [...before, ...ids.map((id) => ({ id, own: true }))], step: step + ids.length - 1 });
}

/** Put a word that the reader typed. */
function putTyped(step, text) {
  const ids = live.idsOf(text);
  const isKnown = ids.length && ids.every((id) => isToken(id) && id !== data.special.unk);
  if (!isKnown) return views.output.refuse("The model does not know this word.");
  const room = data.config.max_length - step + 1;
  if (ids.length > room) return views.output.refuse(`There is room for only ${room} tokens.`);
  $("other").value = "";
  put(step, ...ids);
}

// ---- asking the model

/** Ask the model, and show its answer; what takes longer follows. */
function ask() {
  const prompt = live.encode(state.text);
  const problem = live.problemOf(prompt.ids);
  showQuestion(prompt, problem);
  views.replay?.pause();
  return jobs.run(async (job) => {
    views.matters.expect();
    if (problem) {
      answered ??= await readFirst(job); // in a page opened with a prompt that is refused
      [reading, moment] = [answered, null];
      show();
      return views.replay?.end();
    }
    const question = { options: optionsOf(state), own: new Set(state.put.flatMap(({ own }, t) => (own ? [t] : []))) };
    reading = await live.read(prompt, question.options, question.own, state.off, job);
    reading.method = state.method;
    answered = reading;
    moment = null;
    show();
    views.replay?.end();
    if (state.step !== null) chooseNewest();
    await job.rest();
    await compare(prompt, question, job);
    if (state.matters) await findWhatMatters(job);
    else views.matters.clear();
  });
}

/** What the trained model makes of the page's own prompt. */
async function readFirst(job) {
  const found = await live.read(live.encode(first.text), optionsOf(first), new Set(), ALL_ON, job);
  return Object.assign(found, { method: first.method });
}

/** The options of generate. */
function optionsOf({ method, beam, penalty, temperature, kept, mass, seed, put }) {
  const prefix = put.map(({ id }) => id);
  if (method === "beam") return { beam, lengthPenalty: penalty, prefix };
  return method === "sample" ? { prefix, pick: sampler({ temperature, kept, mass, seed }) } : { prefix };
}

/** Compare the output with that of the whole model. */
async function compare(prompt, { options, own }, job) {
  if (!state.off.size) return views.answers.clear();
  const { off, step, kind, layer, head, form, matters, ...asked } = state;
  const key = JSON.stringify(asked);
  if (whole.key !== key) whole = { key, reading: await live.read(prompt, options, own, ALL_ON, job) };
  const { found, words } = whole.reading;
  const is = await live.score(whole.reading, off, job);
  const was = found[0].path.map(({ parent, token }) => parent.logProbs[token]);
  const scored = words.map(({ text }, t) => ({ word: text, was: was[t], is: is[t] }));
  const before = live.show(found[0].ids);
  views.answers.show({ before, after: live.show(reading.found[0].ids), words: scored });
  views.changed.say(before, total(was), total(is));
}

const total = (numbers) => numbers.reduce((sum, one) => sum + one, 0);

/** Score the output without each part. */
async function findWhatMatters(job) {
  const sum = async (off, memory) => total(await live.score(reading, off, job, memory));
  const before = await sum(state.off, reading.memory);
  const answer = live.show(reading.found[0].ids);
  const known = { changes: new Map(), answer, off: state.off, entropy, before: Math.exp(before), done: false };
  for (const name of parts.rows.flatMap((row) => [...row.heads, ...row.parts])) {
    if (name === null || state.off.has(name)) continue;
    const memory = name.startsWith("encoder") ? null : reading.memory;
    known.changes.set(name, (await sum(new Set([...state.off, name]), memory)) - before);
    views.matters.show(known);
  }
  known.done = true;
  views.matters.show(known);
}

/** The entropy of a head, and the most that it can be. */
function entropy(name) {
  const { kind, layer, head } = placeOf(name);
  const maps = reading.maps[kind];
  return { bits: maps.entropy(layer - 1, head - 1), most: maps.mostBits() };
}

// ---- showing it

const stepShown = () => Math.min(state.step ?? reading.output.length, reading.output.length);

/** Show the reading as the state asks. */
function show() {
  if (!reading) return;
  const step = stepShown();
  const { words, next } = reading;
  if (views.output.shown === reading) views.output.showStep(step);
  else views.output.show(words, next, step);
  views.output.shown = reading;
  showNotes();
  showMaps(step);
  $("beams-part").hidden = reading.method !== "beam";
  if (!$("beams-part").hidden) views.beams.show(reading, step, live);
  if (reading.found && (lensOf[0] !== reading || lensOf[1] !== step)) showLens(step);
}

function showNotes() {
  $("cut").hidden = !reading.isCut;
  $("cut").textContent = `Stopped at ${reading.output.length} tokens, the model's limit, before the output ended.`;
  $("mine").hidden = !reading.words.some(({ own }) => own);
  $("moment").hidden = moment === null;
  const name = `The model at step ${moment} of its training, asked: `;
  $("moment").firstChild.replaceChildren(name, make("bdi", "", reading.text));
  const isPast = moment !== null || main.classList.contains("stale");
  for (const part of document.querySelectorAll("section[data-live]")) part.inert = isPast;
  $("pieces").hidden = !live || moment !== null;
}

function showMaps(step) {
  const maps = reading.maps[state.kind];
  const place = (number, count) => (number === null ? count : Math.min(number, count) - 1);
  const at = { layer: place(state.layer, maps.layers), head: place(state.head, maps.heads) };
  const name = `${state.kind}.${at.layer + 1}`;
  const off = moment === null && [name, `${name}.${at.head + 1}`].some((one) => state.off.has(one));
  const view = { ...at, kind: state.kind, form: state.form, step, titles: SIDES[state.kind] };
  $("no-mask").hidden = !state.off.has("causal") || moment !== null;
  views.grid.show(maps, { ...view, off: moment === null ? state.off : ALL_ON });
  views.map.show(maps, { ...view, off });
  for (const note of document.querySelectorAll("p[data-kind]")) note.hidden = note.dataset.kind !== state.kind;
  $("kind").querySelector(`[value=${state.kind}]`).checked = true;
}

/** Choose the newest word in the map, or, where all is written, none. */
function chooseNewest() {
  if (!reading) return;
  const step = stepShown();
  const isOpen = reading.maps[state.kind].grows && step < reading.output.length;
  views.map.choose(isOpen ? { side: "from", index: step - 1 } : null);
}

function showLens(step) {
  lensOf = [reading, step];
  const { text: word, id } = reading.words[step - 1];
  views.lens.show(live.lens(reading, step), id);
  const text = "What each layer of the decoder would write for word ";
  $("lens-note").replaceChildren(text, `${step}, `, make("bdi", "", word), ", if it were the last one.");
}

/** Put a prompt into its field, unless it is what was typed there. */
function showText(text) {
  if ($("text").value !== text) $("text").value = text;
  $("text").classList.toggle("long", text.length > 90);
}

/** Say why a prompt cannot be answered; "": it can. */
function showProblem(problem) {
  $("problem").textContent = problem;
  $("text").setAttribute("aria-invalid", problem !== "");
  main.classList.toggle("stale", problem !== "");
  const parts = document.querySelectorAll(".answer, .next, .attention, #beams-part"); // for the others see showNotes
  for (const part of parts) part.inert = problem !== "";
}

/** Show what is asked: the prompt, its tokens, and the settings. */
function showQuestion({ ids, shown }, problem) {
  showText(state.text);
  showProblem(problem);
  const { unk } = data.special;
  const pieces = ids.map((id, i) => {
    const piece = make("bdi", id === unk ? "piece unknown" : "piece", shown[i]);
    if (id === unk) piece.title = "unknown to the model";
    return piece;
  });
  $("pieces").replaceChildren(...pieces);
  if (ids.includes(unk)) $("pieces").append(make("span", "", "marked: unknown to the model"));
  document.title = `${state.text} – attention`;
  document.querySelector(`[name=method][value=${state.method}]`).checked = true;
  for (const settings of document.querySelectorAll(".settings")) {
    settings.hidden = settings.dataset.method !== state.method;
  }
  for (const name of Object.keys(BOUNDS)) {
    if (document.activeElement !== $(name)) $(name).value = state[name];
  }
  views.switches.show(state.off);
  views.changed.show(state.off);
}

/** Show again what has the colours of the theme. */
function repaint() {
  views.grid.paint();
  views.map.draw();
  views.lens.paint();
  if (moment === null) views.matters.paint();
}
