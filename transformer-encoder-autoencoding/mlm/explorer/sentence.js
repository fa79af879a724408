// The sentence: its tokens, to hide and to show, how likely each is, and what the model takes the hidden ones for.

/** Chips of tokens with a bar under each, and lists of guesses. */
class Sentence {
  /** chips, guesses: empty elements; onHide(position) when a token is to be hidden or shown; onPlace(position) when one
   * is chosen, null in a page without its model. */
  constructor(chips, guesses, { onHide, onPlace = null }) {
    Object.assign(this, { chipsPlace: chips, guessesPlace: guesses, onHide, onPlace });
    this.chips = [];
    this.meters = [];
  }

  /**
   * Show tokens: [{ text, fixed: [CLS] or [SEP], unknown, joins: the word of the one before, masked: a [MASK] of the
   * text, hidden: as well as masked, by the user }, ...], and the position chosen, null if none is.
   */
  showTokens(tokens, place) {
    const old = [placeInGroup(this.chips), placeInGroup(this.meters)];
    [this.tokens, this.place, this.chips, this.meters] = [tokens, place, [], []];
    const boxes = tokens.map((token, position) => this.makeToken(token, position));
    this.chipsPlace.replaceChildren(...boxes);
    [this.chips, this.meters].forEach((group, i) => {
      rove(group);
      restorePlace(group, old[i]);
    });
  }

  makeToken(token, position) {
    if (token.fixed) return makeOf("span", "token fixed", make("bdi", "", token.text));
    const isHidden = token.hidden || token.masked;
    const chip = make("button", "chip", "", { type: "button", "aria-pressed": isHidden });
    chip.append(make("bdi", "", isHidden ? "[MASK]" : token.text));
    const unknown = token.unknown ? ", unknown to the model" : "";
    chip.setAttribute("aria-label", isHidden ? `${token.text}, hidden` : `hide ${token.text}${unknown}`);
    if (token.unknown) chip.title = "unknown: the model sees [UNK] for it";
    if (token.hidden) chip.title = token.text;
    chip.addEventListener("click", () => this.onHide(position));
    this.chips.push(chip);
    const box = makeOf("span", `token${token.unknown ? " unknown" : ""}${token.joins ? " joins" : ""}`, chip);
    if (this.onPlace) box.append(this.makeMeter(position));
    return box;
  }

  makeMeter(position) {
    const meter = make("button", "meter", "", { type: "button", "aria-pressed": position === this.place });
    meter.append(make("span", "weight"), make("bdi", "figure", ""));
    meter.addEventListener("click", () => this.onPlace(position === this.place ? null : position));
    meter.dataset.position = position;
    this.meters.push(meter);
    return meter;
  }

  /** Show under a token its probability, or what it is taken for: { token, probability }; null: there is none. */
  showMeter(position, value) {
    const meter = this.meters.find((one) => Number(one.dataset.position) === position);
    if (!meter) return;
    const probability = typeof value === "number" ? value : (value?.probability ?? 0);
    const text = typeof value === "number" ? percent(value) : value ? `→ ${value.token}` : "–";
    meter.firstChild.style.setProperty("--weight", probability);
    meter.lastChild.textContent = text;
    const name = this.tokens[position].text;
    const says = typeof value === "number" ? `probability ${text}` : value ? `guessed ${value.token}` : "not scored";
    meter.setAttribute("aria-label", `${name}, ${says}: look at this place`);
  }

  /** Show guesses: [{ title: children of the heading, word, best, itself }, ...], as the page's data has them. */
  showGuesses(cards) {
    this.guessesPlace.classList.toggle("many", cards.length > 1);
    const made = cards.map(({ title, word, best, itself }) => {
      const list = make("ol", "guesses");
      for (const one of best) list.append(makeGuess(one, one.right ? "right" : ""));
      if (itself !== null && !best.some(({ right }) => right)) {
        list.append(makeGuess({ token: word, probability: itself }, "right apart"));
      }
      return makeOf("div", "card", makeOf("h3", "", ...title), list);
    });
    const none = makeOf("div", "card", make("h3", "", "Nothing is hidden"), make("p", "muted", this.hint()));
    this.guessesPlace.replaceChildren(...(made.length ? made : [none]));
  }

  hint() {
    return this.onPlace
      ? "Click a word to hide it: the model guesses it from all the others, as it did in training."
      : "Click a word: the model guesses it from all the others. The attention stays that of the whole sentence.";
  }
}
