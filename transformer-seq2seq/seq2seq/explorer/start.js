// What begins the page: its controls are heard, and the first question asked.

/** Show what the model made of a text at a moment of its training; null: the trained model. */
function showMoment(watched) {
  if (!watched) return moment !== null && showTrained();
  jobs.run(async () => {}); // what is being computed is of no use now
  reading = unpackReading(watched, data.config);
  moment = watched.step;
  showText(watched.text);
  if (live) showProblem("");
  views.changed.show(ALL_ON); // all parts were on then
  show();
}

/** Show the trained model again. */
function showTrained() {
  moment = null;
  if (live) {
    reading = answered;
    return change({ text: state.text, put: state.put, step: null });
  }
  showText(data.text);
  reading = unpackReading(data.reading, data.config);
  show();
}

function listen() {
  $("text").addEventListener("input", (event) => {
    change({ text: event.target.value });
    views.tryThis.end();
  });
  $("text").addEventListener("keydown", (event) => event.key === "Enter" && event.preventDefault());
  $("methods").addEventListener("change", (event) => change({ method: event.target.value }));
  $("kind").addEventListener("change", (event) => {
    change({ kind: event.target.value });
    chooseNewest();
  });
  for (const name of Object.keys(BOUNDS)) {
    $(name).addEventListener("input", (event) => {
      const value = within(name, event.target.value);
      if (value !== null) change({ [name]: value });
    });
    $(name).addEventListener("change", (event) => (event.target.value = state[name]));
  }
  $("again").addEventListener("click", () => change({ seed: (state.seed + 1) % (BOUNDS.seed[1] + 1) }));
  $("mine").lastChild.addEventListener("click", () => change({ put: [], step: null }));
  $("moment").lastChild.addEventListener("click", () => views.replay.end());
}

/** Take away what a page without a model cannot do. */
function keepStill() {
  for (const element of document.querySelectorAll("[data-live], #method, #try, #pieces")) element.hidden = true;
  $("text").readOnly = true;
  document.querySelector("label[for=text]").textContent = "Prompt";
  $("problem").className = "note";
  $("problem").textContent = capitalize(data.why);
  document.title = `${data.text} – attention`;
}

function start() {
  const { n_encoder_layers, n_decoder_layers, n_heads } = data.config;
  $("sizes").textContent =
    `Encoder of ${count(n_encoder_layers, "layer")}, decoder of ${count(n_decoder_layers, "layer")}, ` +
    `${count(n_heads, "head")} in every layer`;
  listen();
  if (data.watched.length) {
    $("replay-part").hidden = false;
    views.replay = new Replay($("replay"), data.curve, data.watched, showMoment);
  }
  if (!live) {
    keepStill();
    state = opened(link.read());
    showTrained();
    return chooseNewest();
  }
  for (const element of document.querySelectorAll("[data-still]")) element.hidden = true;
  const fresh = { ...Object.fromEntries(QUESTIONS.map((key) => [key, first[key]])), step: null };
  views.tryThis = new TryThis($("try"), EXPERIMENTS, (set) => {
    views.replay?.pause();
    jobs.run(async (job) => change({ ...fresh, ...(await set(job)) }));
  });
  change(opened(link.read()));
}

start();
