// The output as it was, with the whole model, and as it is with parts switched off.

/** The two outputs beside each other, and what the first has lost. */
class Answers {
  /** element: an empty one. */
  constructor(element) {
    this.both = make("div", "both");
    const label = "The output with all parts on, scored word by word";
    this.words = make("div", "lost", "", { role: "list", "aria-label": label });
    this.verdict = make("p", "verdict", "", { role: "status", "aria-live": "polite" });
    element.append(this.both, this.words, this.verdict);
  }

  /** Say that nothing is switched off. */
  clear() {
    this.both.replaceChildren();
    this.words.replaceChildren();
    this.verdict.textContent = "Nothing is switched off yet.";
  }

  /** Show outputs: before and after, texts; words, those of the one before, each with its log-probability before and
   * after, was and is; changed: log-probability after less before. */
  show({ before, after, words }) {
    const column = (title, text) => makeOf("div", "", make("h3", "", title), make("bdi", "said-whole", text));
    this.both.replaceChildren(column("All parts on", before), column("As switched now", after));
    this.words.replaceChildren(...words.map((one) => this.makeWord(one)));
    const sum = (key) => words.reduce((total, one) => total + one[key], 0);
    const change = sum("is") - sum("was");
    const amount = make("b", `figure ${changeClass(change)}`, signed(change));
    const factor = Math.abs(change) < 0.005 ? "as likely as before" : `${times(change)} as likely`;
    const figures = ` (from ${nats(sum("was"))} to ${nats(sum("is"))}): ${factor}.`;
    this.verdict.replaceChildren("Log-probability of ", make("bdi", "", before), " ", amount, figures);
  }

  makeWord({ word, was, is }) {
    const change = is - was;
    const figures = make("span", "figure", `${percent(Math.exp(was))} → ${percent(Math.exp(is))}`);
    const element = makeOf("span", `word-lost ${changeClass(change)}`, make("bdi", "", word), " ", figures);
    element.setAttribute("role", "listitem");
    return element;
  }
}

/** Write a log-probability, or what it is ranked by, in nats. */
const nats = (value, digits = 2) => `${value < 0 ? "−" : ""}${Math.abs(value).toFixed(digits)}`;
