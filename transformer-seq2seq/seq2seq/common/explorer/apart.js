// The model taken apart: switches for its parts, what the answer was and is, and what matters for it.

/** The model drawn as a chain of parts, each with a switch. */
class Switches {
  /**
   * element: an empty one; chains: [{ title, label, parts: [{ name, label }, ...], end }, ...], with title and end what
   * stands before and behind them, label what a screen reader says if not the title, name as in the set of parts that
   * are off, such as "encoder-ff.1"; onSwitch(name), null for "all on"; kinds: whether a head's name has to say which
   * stack it is of.
   */
  constructor(element, chains, onSwitch, kinds = false) {
    Object.assign(this, { parts: [], kinds });
    for (const { title, label = title, parts, end } of chains) {
      const chain = make("div", "chain", "", { role: "group", "aria-label": label });
      chain.append(make("span", "end", title));
      for (const { name, label } of parts) {
        const part = makeSwitch("part", label, () => onSwitch(name));
        part.prepend(label);
        this.parts.push({ part, name });
        chain.append(part);
      }
      if (end) chain.append(make("span", "end last", end));
      element.append(chain);
    }
    this.heads = make("p", "muted");
    this.all = make("button", "plain", "All on", { type: "button", id: "all-on" });
    this.all.addEventListener("click", () => onSwitch(null));
    element.append(makeOf("div", "below", this.heads, this.all));
  }

  /** Show which parts are off: a Set of names. */
  show(off) {
    for (const { part, name } of this.parts) part.setAttribute("aria-checked", !off.has(name));
    const heads = [...off].filter((name) => name.split(".").length === 3).map((name) => nameOfPart(name, this.kinds));
    this.heads.textContent = heads.length ? `Off as well: ${heads.join("; ")}.` : "";
    if (!off.size) handFocus(this.all, this.parts[0].part);
    this.all.disabled = off.size === 0;
  }
}

/** Say a part's name in words: "encoder.2.3" -> "layer 2, head 3". kinds: say which stack it is of, too. */
function nameOfPart(name, kinds = false) {
  const [kind, layer, head] = name.split(".");
  if (layer === undefined) return { positions: "positions", causal: "the causal mask" }[kind];
  const stack = kinds ? { cross: "cross-attention " }[kind] ?? `${kind.replace("-ff", "")} ` : "";
  const part = kind.endsWith("-ff") ? "feed-forward" : head === undefined ? "attention" : `head ${head}`;
  if (kind === "cross" && head === undefined) return `${stack}layer ${layer}`;
  return `${stack}layer ${layer}, ${part}`;
}

const NOTHING_OFF = "Switch a part off here, or a head above: the effect on the answer appears here.";

/** The answer with the whole model, and as it is with parts switched off, beside each other. */
class Compare {
  /** element: an empty one. */
  constructor(element) {
    this.title = make("h3");
    this.lists = [make("ol", "guesses"), make("ol", "guesses")];
    this.verdict = make("p", "verdict", "", { role: "status", "aria-live": "polite" });
    const column = (name, list) => makeOf("div", "", make("h4", "", name), list);
    this.now = column("as switched now", this.lists[1]);
    const both = makeOf("div", "both", column("all parts on", this.lists[0]), this.now);
    element.append(this.title, both, this.verdict);
  }

  /**
   * Show an answer. title: children of the heading; before and after: [{ id, token, probability }, ...]; answer: what
   * is compared, { id, token }; change: of its log-probability, null if nothing is off.
   */
  show({ title, before, after, answer, change }) {
    this.title.replaceChildren(...title);
    [before, after].forEach((best, i) => {
      const lines = best.map((one) => makeGuess(one, one.id === answer.id ? "right" : ""));
      this.lists[i].replaceChildren(...lines);
    });
    this.now.hidden = change === null;
    this.verdict.classList.toggle("muted", change === null);
    this.verdict.replaceChildren(...(change === null ? [NOTHING_OFF] : this.say(answer.token, change)));
  }

  say(answer, change) {
    const amount = make("b", `figure ${changeClass(change)}`, signed(change));
    const factor = Math.abs(change) < 0.05 ? "about as likely as before" : `${times(change)} as likely as before`;
    return ["log-probability of ", make("bdi", "", answer), " ", amount, `: ${factor}`];
  }
}

/** A bar at the lower edge of the window: what is off, and what it has done to the answer. */
class Changed {
  /** element: an empty one; onAllOn() when the user wants everything on again. */
  constructor(element, onAllOn, kinds = false) {
    Object.assign(this, { element, kinds, parts: make("span"), effect: make("span") });
    element.className += " changed";
    const all = make("button", "plain", "All on", { type: "button" });
    all.addEventListener("click", onAllOn);
    element.append(makeOf("p", "", make("b", "", "Off: "), this.parts, this.effect), all);
  }

  /** Show what is off: a Set of names. */
  show(off) {
    if (!off.size) handFocus(this.element, document.querySelector("[role=switch]"));
    this.element.hidden = off.size === 0;
    const names = [...off].map((name) => nameOfPart(name, this.kinds));
    const more = names.length > 3 ? ` and ${names.length - 3} more` : "";
    this.parts.textContent = names.slice(0, 3).join("; ") + more;
    this.effect.textContent = "";
  }

  /** Say an answer's log-probability with all parts on, and as it is. */
  say(answer, before, after) {
    const figures = `: ${percent(Math.exp(before))} → ${percent(Math.exp(after))} `;
    const change = make("b", `figure ${changeClass(after - before)}`, `(${signed(after - before)})`);
    this.effect.replaceChildren(". ", make("bdi", "", answer), figures, change);
  }
}

const changeClass = (change) => (change < -0.005 ? "loss" : change > 0.005 ? "gain" : "");

/** Say a change of a log-probability as a factor. */
function times(change) {
  const power = change / Math.LN10;
  if (Math.abs(power) > 4) return `10${superscript(Math.round(power))} times`;
  const factor = Math.exp(change);
  return `${factor >= 100 ? Math.round(factor) : Number(factor.toPrecision(2))} times`;
}

/** Say how a probability changes: before, and the change of its logarithm. */
function sayChange(before, change) {
  if (Math.abs(change) < 0.005) return "it is as likely as before";
  if (before < 0.001) return `it is ${times(change)} as likely`;
  const verb = change < 0 ? "falls" : "rises";
  return `its probability ${verb} from ${percent(before)} to ${percent(before * Math.exp(change))}`;
}

const superscript = (number) => `${number}`.replace(/[-\d]/g, (sign) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(sign)]);

/** How much the answer loses without each head and each part, beside how spread the attention of each head is. */
class WhatMatters {
  /**
   * element: an empty one; rows: [{ label, heads: [names], parts: [names] }, ...], a layer each, with parts its
   * attention and its feed-forward, null for one it does not have; onStart() when the user asks for it;
   * onPick(name) when the user chooses a part; kinds: as for Switches.
   */
  constructor(element, { rows, onStart, onPick, kinds = false }) {
    Object.assign(this, { rows, onPick, kinds, cells: new Map(), bits: new Map(), last: null });
    this.button = make("button", "plain strong", "What matters?", { type: "button", id: "what-matters" });
    this.button.addEventListener("click", onStart);
    this.words = make("p", "verdict", "", { id: "strongest", role: "status", "aria-live": "polite" });
    this.both = make("div", "matters-both");
    this.both.append(this.makeGrid("change of the answer's log-probability without it", this.cells, true));
    this.both.append(this.makeGrid("entropy of its attention, in bits", this.bits, false));
    this.both.hidden = true;
    element.append(makeOf("div", "below", this.button, this.words), this.both);
  }

  makeGrid(title, cells, withParts) {
    const heads = Math.max(...this.rows.map((row) => row.heads.length));
    const names = Array.from({ length: heads }, (_, i) => `${i + 1}`);
    const columns = [...names, ...(withParts ? ["attention", "feed-forward"] : [])];
    const labelOf = (name) => ({ "aria-label": Number(name) ? `head ${name}` : name });
    const header = (name) => make("th", "", name, { scope: "col", ...labelOf(name) });
    const top = makeOf("tr", "", make("td"), ...columns.map(header));
    const lines = this.rows.map((row) => {
      const parts = [...row.heads, ...(withParts ? row.parts : [])].map((name) => this.makeCell(name, cells));
      return makeOf("tr", "", make("th", "", row.label, { scope: "row" }), ...parts);
    });
    const table = makeOf("table", "matters", make("caption", "", title), makeOf("thead", "", top));
    table.append(makeOf("tbody", "", ...lines));
    return makeOf("div", "scroll", table);
  }

  makeCell(name, cells) {
    if (name === null) return make("td");
    const button = make("button", "figure", "", { type: "button", title: nameOfPart(name, this.kinds) });
    button.addEventListener("click", () => this.onPick(name));
    cells.set(name, button);
    return makeOf("td", "", button);
  }

  /**
   * Show what is known so far. changes: Map of a part's name -> change of the answer's log-probability without it;
   * answer: the token or text; off: what is switched off anyway; entropy(name of a head) -> { bits, most };
   * before: the answer's probability; done: whether all is known.
   */
  show(known) {
    const { changes, answer, off, entropy, before, done } = (this.last = known);
    this.both.hidden = false;
    const most = Math.max(0.5, ...[...changes.values()].map(Math.abs)); // nearly nothing is not painted as much
    for (const [name, cell] of this.cells) {
      const change = changes.get(name);
      this.paintCell(cell, name, off.has(name) ? "off" : change === undefined ? "…" : signed(change),
        change === undefined ? null : shadeChange(change / most));
    }
    for (const [name, cell] of this.bits) {
      const { bits, most: all } = entropy(name);
      this.paintCell(cell, name, bits.toFixed(2), shade(Math.max(0, Math.min(1, 1 - bits / (all || 1)))));
    }
    if (done) return this.sayStrongest(changes, answer, off, before, entropy);
    const waiting = "Switching off one part after the other …";
    if (this.words.textContent !== waiting) this.words.textContent = waiting; // a screen reader says it once
  }

  /** Show the same in the colours of another theme. */
  paint() {
    if (this.last) this.show(this.last);
  }

  paintCell(cell, name, text, rgb) {
    cell.textContent = text;
    cell.setAttribute("aria-label", `${nameOfPart(name, this.kinds)}: ${text}`);
    cell.style.setProperty("--ground", rgb ? css(rgb) : "transparent");
    cell.style.setProperty("--ink", rgb ? inkOn(rgb) : "inherit");
  }

  sayStrongest(changes, answer, off, before, entropy) {
    const heads = [...changes.keys()].filter((name) => {
      const [kind, layer, head] = name.split(".");
      return head !== undefined && !off.has(`${kind}.${layer}`);
    });
    if (!heads.length) return this.words.replaceChildren("All heads are switched off.");
    const least = (names, key) => names.reduce((best, name) => (key(name) < key(best) ? name : best));
    const strongest = least(heads, (name) => changes.get(name));
    const sharpest = least(heads, (name) => entropy(name).bits);
    const name = (part) => make("b", "", nameOfPart(part, this.kinds));
    const change = changes.get(strongest);
    const without = (part) => `without it, ${sayChange(before, changes.get(part))}`;
    const said =
      change > -0.005
        ? ["No single head matters here: without any one of them ", make("bdi", "", answer), " is no less likely."]
        : ["Of all heads, ", make("bdi", "", answer), " needs ", name(strongest), ` most: ${without(strongest)}.`];
    if (sharpest === strongest) said.push(" Its attention is also the sharpest.");
    else said.push(" The sharpest attention is that of ", name(sharpest), `: ${without(sharpest)}.`);
    const parts = [...changes.keys()].filter((part) => part.split(".").length === 2);
    const part = parts.length ? least(parts, (one) => changes.get(one)) : null;
    if (part && changes.get(part) < -0.005) {
      said.push(" Of the larger parts, ", name(part), ` matters most: ${without(part)}.`);
    }
    this.words.replaceChildren(...said);
  }

  /** Take away what is said: it belongs to the answer before. */
  expect() {
    this.last = null;
    this.words.textContent = "";
  }

  /** Forget everything: the page asks something else. */
  clear() {
    this.both.hidden = true;
    this.expect();
  }
}
