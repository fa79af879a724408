// The output word by word: what is written at the slider's step, the likeliest words there, and the reader's own.

const PACE = 1000; // milliseconds a word when played

/** The output and the likeliest words at one of its steps. */
class Output {
  /** onStep(step): the reader goes to a step, from 1; onPut(step, id): they put a token there; onType(step, text): they
   * type a word there. */
  constructor({ onStep, onPut, onType }) {
    Object.assign(this, { onStep, onPut, onType, words: [], candidates: [], next: [], step: 1, playing: null });
    $("step").addEventListener("input", (event) => this.go(Number(event.target.value)));
    $("play").addEventListener("click", () => (this.playing ? this.pause() : this.play()));
    $("other").addEventListener("keydown", (event) => event.key === "Enter" && this.type());
    $("other").addEventListener("input", () => this.refuse(""));
    $("put").addEventListener("click", () => this.type());
  }

  /** Show words: [{ text, probability or null, own, id }], own if the reader has put it; next: for each step
   * [{ token, probability, id }], the likeliest first; ids only where a model is there to go on. */
  show(words, next, step) {
    const old = placeInGroup(this.words);
    Object.assign(this, { taken: words, next });
    this.words = words.map((word, index) => this.makeWord(word, index));
    $("written").replaceChildren(...this.words);
    $("written").classList.toggle("many", words.length > 16);
    rove(this.words);
    $("step").max = words.length;
    this.showStep(step);
    if (old.focused) restorePlace(this.words, old);
    $("answer").textContent = words.map(({ text }) => text).join(" ");
  }

  makeWord({ text, probability, own }, index) {
    const word = make("button", own ? "said own" : "said", "", { type: "button" });
    word.append(make("bdi", "", text));
    if (probability !== null) word.append(make("span", "figure", ` ${percent(probability)}`));
    if (own) word.append(make("span", "unseen", ", chosen by you"));
    word.addEventListener("click", () => this.go(index + 1));
    return word;
  }

  /** Show a step, from 1. */
  showStep(step) {
    this.step = step;
    $("step").value = step;
    $("step-name").textContent = `word ${step} of ${this.words.length}`;
    this.words.forEach((word, index) => {
      word.classList.toggle("ahead", index >= step);
      word.classList.toggle("newest", index === step - 1);
      word.setAttribute("aria-pressed", index === step - 1);
    });
    reachable(this.words, this.words[step - 1]);
    this.showNext();
  }

  showNext() {
    const old = placeInGroup(this.candidates);
    const { text, id } = this.taken[this.step - 1];
    const best = this.next[this.step - 1];
    const isTaken = (one) => (id === undefined ? one.token === text : one.id === id);
    const lines = best.map((one) => makeGuess(one, isTaken(one) ? "taken" : ""));
    this.candidates = best[0].id === undefined ? [] : lines.map((line, i) => this.makeCandidate(line, best[i]));
    $("next").replaceChildren(...lines);
    rove(this.candidates);
    if (this.candidates.length) restorePlace(this.candidates, old);
    $("next-title").textContent = `Likeliest candidates for word ${this.step}`;
    $("put-own").hidden = !this.candidates.length;
    this.refuse("");
  }

  /** Make a button of a likely word's line: the decoder goes on from there. */
  makeCandidate(line, { token, probability, id }) {
    const button = make("button", "candidate", "", { type: "button" });
    button.setAttribute("aria-label", `use ${token}, ${percent(probability)}`);
    button.append(...line.childNodes);
    button.addEventListener("click", () => this.onPut(this.step, id));
    line.append(button);
    return button;
  }

  type() {
    const text = $("other").value;
    if (text.trim()) this.onType(this.step, text);
  }

  /** Say why a typed word cannot be put. */
  refuse(why) {
    $("refused").textContent = why;
  }

  go(step) {
    this.pause();
    this.onStep(step);
  }

  /** Play from here, or from the beginning where all is written. */
  play() {
    if (!this.words.length) return;
    if (this.step === this.words.length) this.onStep(1);
    $("play").textContent = "Pause";
    $("written").classList.add("playing");
    this.playing = setInterval(() => {
      this.onStep(Math.min(this.step + 1, this.words.length));
      if (this.step === this.words.length) this.pause();
    }, PACE);
  }

  pause() {
    clearInterval(this.playing);
    this.playing = null;
    $("play").textContent = "Play";
    $("written").classList.remove("playing");
  }
}
