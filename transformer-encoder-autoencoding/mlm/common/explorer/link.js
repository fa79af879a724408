// The state of the page in its address, behind the #, so that it can be sent; and experiments to begin with.

const LINK_PAUSE = 300; // milliseconds: browsers refuse an address that changes all the time

/** Reads and writes the state: values are strings; what is empty is left out, but for the text. */
class Link {
  /** onChange(values) when another address is opened in this page. */
  constructor(onChange) {
    this.timer = null;
    window.addEventListener("hashchange", ({ newURL }) => {
      clearTimeout(this.timer);
      onChange(this.read(new URL(newURL).hash)); // the address may have been written over in between
    });
  }

  read(hash = location.hash) {
    return Object.fromEntries(new URLSearchParams(hash.slice(1)));
  }

  write(values) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.writeNow(values), LINK_PAUSE);
  }

  writeNow(values) {
    const kept = Object.entries(values).filter(([key, value]) => value || key === "text");
    history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
  }
}

/** Buttons "Try this": each sets the page, and asks what one sees. */
class TryThis {
  /** element: an empty one; experiments: [{ name, ask, state, see }, ...], state(job) what is set, or a promise of it,
   * see the id of what shows the outcome, if that is further down; onTry(state). */
  constructor(element, experiments, onTry) {
    this.question = make("p", "question", "", { role: "status" });
    this.see = make("button", "plain", "Show the outcome", { type: "button" });
    this.see.addEventListener("click", () => $(this.seen).scrollIntoView());
    this.buttons = experiments.map(({ name, ask, state, see }) => {
      const button = make("button", "plain", name, { type: "button", "aria-pressed": "false" });
      button.addEventListener("click", () => {
        this.end();
        button.setAttribute("aria-pressed", true);
        this.question.textContent = ask;
        this.question.hidden = false;
        this.see.hidden = !see;
        this.seen = see;
        onTry(state);
      });
      return button;
    });
    element.append(makeOf("p", "choices", make("span", "", "Try this:"), ...this.buttons), this.question, this.see);
    this.end();
  }

  /** Take the question away: the reader has typed another text, or switched all parts on. */
  end() {
    for (const button of this.buttons) button.setAttribute("aria-pressed", false);
    this.question.hidden = this.see.hidden = true;
  }
}
