// The parts of the page put together.

const partNames = layerNumbers.flatMap((l) => [
  ...headNumbers.map((h) => `encoder.${l}.${h}`),
  `encoder.${l}`,
  `encoder-ff.${l}`,
]);

/** Five experiments for a class: each sets the page, and asks. */
function makeExperiments() {
  const clear = { text: data.text, hidden: new Set(), place: null, off: ALL_ON, matters: false, moment: null };
  const { ids } = filler.encode(data.text);
  const isKnown = (token) => filler.isWord(token) && token !== data.special.mask && token !== data.special.unk;
  const seen = ids.flatMap((token, i) => (isKnown(token) ? [i] : []));
  const parts = [`encoder.${LAYERS}`, `encoder-ff.${LAYERS}`];
  const mask = ids.indexOf(data.special.mask);
  const asked = mask < 0 ? seen.at(-1) : mask; // where the text has no [MASK], its last word is asked for
  const last = mask < 0 ? { place: asked } : {};
  const more = seen.find((i) => i !== asked);
  const nameOf = (i) => data.tokens[ids[i]] ?? "";
  return [
    {
      name: "Hide one more",
      ask:
        (more === undefined
          ? "Type a second word, and hide it. "
          : `Now “${nameOf(more)}” is hidden as well. Show it again, and hide other words instead, one at a time. `) +
        `Which word does the guess for “${nameOf(asked)}” need, and which can it do without?`,
      state: () => ({ ...clear, hidden: new Set([more, asked].filter((i) => seen.includes(i))), place: asked }),
    },
    {
      name: "Another order",
      ask:
        "The same words backwards. Which words does the model find less likely now" +
        (mask < 0 ? "?" : ", and does it still find the hidden one?"),
      state: () => ({ ...clear, text: data.text.trim().split(/\s+/).reverse().join(" ") }),
    },
    {
      name: "No positions",
      ask:
        "The model no longer knows the order of the words. What has the answer lost? Swap two words in the text: " +
        "what changes?",
      state: () => ({ ...clear, off: new Set(["positions"]), ...last }),
      see: "compare",
    },
    {
      name: "Which head matters?",
      ask:
        "The page has chosen a word to hide: if it can, the one that the model guesses right but is least sure of. " +
        "Below, each part has been switched off in turn. Which head does the answer need most, and is that " +
        "the one with the sharpest attention? Switch it off: which words come instead?",
      state: async (job) => ({ ...clear, matters: true, place: (await filler.findUnsure(data.text, job)) ?? asked }),
      see: "matters",
    },
    {
      name: "One layer fewer",
      ask:
        "The last layer adds nothing now. Is the answer still there? “Layer by layer”, below, shows at which layer " +
        "it is found.",
      state: () => ({ ...clear, off: new Set(parts), ...last }),
      see: "lens-section",
    },
  ];
}

/** The parts of the model in their order, for the switches. */
function makeChain() {
  const layers = layerNumbers.flatMap((l) => [
    { name: `encoder.${l}`, label: `attention ${l}` },
    { name: `encoder-ff.${l}`, label: `feed-forward ${l}` },
  ]);
  const parts = [{ name: "positions", label: "positions" }, ...layers];
  return [{ title: "words", label: "Parts of the model", parts, end: "answer" }];
}

const mattersRows = layerNumbers.map((l) => ({
  label: `layer ${l}`,
  heads: headNumbers.map((h) => `encoder.${l}.${h}`),
  parts: [`encoder.${l}`, `encoder-ff.${l}`],
}));

/** Show in the attention above the head that was picked; a layer's mean for its attention. */
function pick(name) {
  const [, layer, head] = name.split(".").map(Number);
  look({ layer, head: head ?? null });
}

/** What is only there with the model, or only without it, goes where it does not belong. */
function removeWhatIsNot() {
  for (const element of document.querySelectorAll(filler ? ".still" : ".live")) element.remove();
  const { n_layers, n_heads, d_model } = data.config;
  $("sizes").textContent =
    `Encoder of ${count(n_layers, "layer")} with ${count(n_heads, "head")} each, ${d_model} numbers per word` +
    (filler ? "; it runs in this page" : "");
  if (!filler) $("why").textContent = capitalize(data.why ?? "");
}

removeWhatIsNot();
const link = new Link((values) => {
  restore(values);
  begin({ moment: null });
  view.tryThis?.end();
});
const view = {
  sentence: new Sentence($("chips"), $("guesses"), {
    onHide: hideOrShow,
    onPlace: filler && ((place) => (state.moment ? hideOrShow(place) : update({ place }))),
  }),
  heads: new HeadGrid($("heads-part"), { onShow: showHead, onSwitch: filler && flip }),
  map: new AttentionMap($("map"), { onForm: (form) => look({ form }) }),
};
if (filler) {
  view.switches = new Switches($("switches"), makeChain(), flip);
  view.compare = new Compare($("compare"));
  view.changed = new Changed($("changed"), () => flip(null));
  view.lens = new Lens($("lens"));
  view.matters = new WhatMatters($("matters"), {
    rows: mattersRows,
    onStart: () => update({ matters: true }),
    onPick: pick,
  });
  view.tryThis = new TryThis($("try"), makeExperiments(), (experiment) => {
    view.replay?.pause();
    jobs.run(async (job) => begin(await experiment(job)));
  });
  $("text").addEventListener("input", () => {
    type($("text").value);
    fitText();
  });
  $("text").addEventListener("keydown", (event) => event.key === "Enter" && event.preventDefault());
  new ResizeObserver(fitText).observe($("text"));
}

/** Show a moment of the training: what the model made of a text then; null: the model that the page carries. */
function showMoment(moment) {
  const { text, hidden, place } = state;
  if (moment) {
    typed ??= { text, hidden, place };
    if (moment.text !== text) Object.assign(state, { text: moment.text, hidden: new Set(), place: null });
  } else {
    Object.assign(state, typed);
    typed = null;
  }
  refresh({ moment });
}

/** Show something new: what was typed before the training was replayed does not come back. */
function begin(change) {
  typed = null;
  refresh(change);
  view.replay?.end();
}

/** Show a state that was set at once, its text too. */
function refresh(change = {}) {
  if (filler) $("text").value = change.text ?? state.text;
  if (filler) fitText();
  update(change);
}

/** Make the text field as high as its text. */
function fitText() {
  const field = $("text");
  field.style.setProperty("height", "auto");
  field.style.setProperty("height", `${field.scrollHeight + 2}px`);
}

if (data.watched.length) {
  $("replay-section").hidden = false;
  $("moment").lastChild.addEventListener("click", () => view.replay.end());
  view.replay = new Replay($("replay"), data.curve, data.watched, showMoment);
}
restore(link.read());
new Theme($("theme"), () => {
  if (maps) showAttention();
  view.lens?.paint();
  view.matters?.paint();
});
refresh();
