// What every part of the page uses: elements, the keyboard, colours, and jobs of which the newest wins. Text is only
// ever set as textContent: whatever stands in a sentence stays text.

const $ = (id) => document.getElementById(id);

/** Make a new element with a class, text and attributes. */
function make(tag, className = "", text = "", attributes = {}) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** Make an element with children: strings and elements. */
function makeOf(tag, className, ...children) {
  const element = make(tag, className);
  element.append(...children);
  return element;
}

const figure = (value) => value.toFixed(3);
const capitalize = (text) => text.replace(/^./, (letter) => letter.toUpperCase());
const count = (n, name) => `${n} ${name}${n === 1 ? "" : "s"}`;
const percent = (probability) => (probability < 0.0005 ? "< 0.1 %" : `${(100 * probability).toFixed(1)} %`);

/** Move the keyboard's focus to another element, if it is in one that is about to be hidden. */
function handFocus(from, to) {
  if (from.contains(document.activeElement)) to?.focus({ preventScroll: true });
}

/** Write a change with its sign, as −1.23. */
const signed = (value) => (Math.abs(value) < 0.005 ? "0.00" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`);

/** Make a line of a list of likely words: the word, its probability and a bar. */
function makeGuess({ token, probability }, className = "") {
  const line = make("li", className);
  line.append(make("bdi", "", token, { title: token }), make("span", "figure", percent(probability)));
  line.append(make("span", "weight"));
  line.lastChild.style.setProperty("--weight", probability);
  return line;
}

// ---- the keyboard

/** Let arrow keys, Home and End move within a group of which one element at a time is reached by Tab. Elements of the
 * class "later", at the end, are not there yet. */
function rove(items, columns = 1) {
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  items.forEach((item, i) => {
    item.addEventListener("keydown", (event) => {
      const last = items.findLastIndex((one) => !one.classList.contains("later"));
      const goal = { Home: 0, End: last }[event.key] ?? i + moves[event.key];
      if (!items[goal] || goal > last || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      items[goal].focus();
    });
    item.addEventListener("focus", () => reachable(items, item));
  });
}

/** Make one element of a group the one that Tab reaches. */
function reachable(items, chosen) {
  for (const item of items) item.tabIndex = item === chosen ? 0 : -1;
}

/** Say which element of a group is reached by Tab or has the focus, so that it can be so again when they are new. */
function placeInGroup(items) {
  const focused = items.indexOf(document.activeElement);
  const index = focused < 0 ? items.findIndex((item) => item.tabIndex === 0) : focused;
  return { index: Math.max(0, index), focused: focused >= 0 };
}

/** Give a new group the place that placeInGroup said of the old one. */
function restorePlace(items, { index, focused }) {
  const item = items[Math.min(index, items.length - 1)];
  reachable(items, item);
  if (focused && item) item.focus();
}

/** Make a switch that is on or off: a part of the model that takes part or does not. */
function makeSwitch(className, label, onSwitch) {
  const element = make("button", `switch ${className}`, "", { type: "button", role: "switch", "aria-label": label });
  element.append(make("span", "knob", "", { "aria-hidden": "true" }));
  element.addEventListener("click", onSwitch);
  return element;
}

// ---- colours

const SHADES = 1000; // colours between a weight of 0 and one of 1
const palettes = { weight: [], loss: [], gain: [] };

/** The colour of a weight from 0 to 1, as three numbers; the legend is painted by it too. */
const shade = (value) => palettes.weight[Math.round(value * SHADES)];

/** The colour of a change from -1, the greatest loss, to 1, the greatest gain: orange and purple, which those who are
 * colour-blind tell apart too. */
const shadeChange = (value) => palettes[value < 0 ? "loss" : "gain"][Math.round(Math.min(1, Math.abs(value)) * SHADES)];

/** Mix a colour from the ground to full over two stops. The square root lets small values be seen. */
function mix(value, stops) {
  const strength = 2 * Math.sqrt(value);
  const [low, high] = strength < 1 ? [stops[0], stops[1]] : [stops[1], stops[2]];
  const part = strength < 1 ? strength : strength - 1;
  return low.map((channel, i) => Math.round(channel + part * (high[i] - channel)));
}

const css = (rgb) => `rgb(${rgb.join(" ")})`;

/** Read a colour of the style sheet, #rrggbb, as three numbers. */
function colour(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

/** Compute the relative luminance, from 0 to 1 (WCAG 2.2). */
function luminance(rgb) {
  const [r, g, b] = rgb.map((c) => (c <= 10 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** Choose black or white, whichever has the greater contrast to a ground. */
const inkOn = (rgb) => (luminance(rgb) > 0.18 ? "#000000" : "#ffffff");

/** The light and the dark theme: the system's, until the button is pressed. onChange draws what is drawn again. */
class Theme {
  constructor(button, onChange) {
    const dark = window.matchMedia("(prefers-color-scheme: dark)");
    this.button = button;
    this.onChange = onChange;
    this.set(dark.matches);
    const follow = () => this.set(dark.matches);
    dark.addEventListener("change", follow);
    button.addEventListener("click", () => {
      dark.removeEventListener("change", follow);
      this.set(document.documentElement.dataset.theme !== "dark");
    });
    this.printLight();
  }

  /** Print in the light theme. */
  printLight() {
    let wasDark = false;
    window.addEventListener("beforeprint", () => {
      wasDark = document.documentElement.dataset.theme === "dark";
      if (wasDark) this.set(false);
    });
    window.addEventListener("afterprint", () => wasDark && this.set(true));
  }

  set(dark) {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    this.button.textContent = dark ? "Light theme" : "Dark theme";
    for (const name of Object.keys(palettes)) {
      const stops = [0, 1, 2].map((i) => colour(`--${name}-${i}`));
      palettes[name] = Array.from({ length: SHADES + 1 }, (_, i) => mix(i / SHADES, stops));
    }
    this.onChange();
  }
}

// ---- jobs

const SLICE = 8; // milliseconds that a job computes before the page may breathe
const PATIENCE = 200; // milliseconds after which the page shows that a job is still running

/** Thrown in a job when a newer one has begun. */
class Superseded extends Error {}

/** Jobs of which the newest wins: a new one ends the one before, at the latest when that lets the page breathe. */
class Jobs {
  newest = null; // while it runs

  /** Run `await work(job)` -> true, or false if a newer run has superseded it. */
  async run(work) {
    const job = new Job(this);
    this.newest = job;
    const showBusy = (busy) => {
      if (this.newest === job) document.body.setAttribute("aria-busy", busy);
    };
    const timer = setTimeout(showBusy, PATIENCE, true);
    try {
      await work(job);
      return true;
    } catch (error) {
      if (error instanceof Superseded) return false;
      throw error;
    } finally {
      clearTimeout(timer);
      showBusy(false);
      if (this.newest === job) this.newest = null;
    }
  }
}

class Job {
  constructor(jobs) {
    this.jobs = jobs;
    this.since = performance.now();
  }

  /** Let the page answer to its user if this job has computed for a while. */
  async breathe() {
    if (performance.now() - this.since >= SLICE) await this.after(nextTask());
    else this.check();
  }

  /** Let the page show what is new. */
  async rest() {
    await this.after(new Promise((done) => {
      requestAnimationFrame(() => nextTask().then(done));
      setTimeout(done, 50); // a page in the background draws nothing
    }));
  }

  async after(pause) {
    await pause;
    this.since = performance.now();
    this.check();
  }

  check() {
    if (this.jobs.newest !== this) throw new Superseded();
  }
}

const channel = new MessageChannel();
const waiting = [];
channel.port1.onmessage = () => waiting.shift()();

/** Wait until the browser has done what has been waiting; setTimeout would wait 4 milliseconds. */
function nextTask() {
  return new Promise((done) => {
    waiting.push(done);
    channel.port2.postMessage(null);
  });
}
