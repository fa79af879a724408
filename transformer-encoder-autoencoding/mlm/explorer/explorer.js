"use strict";

// The heads, and the map of the one chosen. explorer.py says what the data holds. Text is only ever set as
// textContent: whatever stands in a sentence stays text.

const data = JSON.parse(document.getElementById("data").textContent);
const weights = decode(data.weights);
const masked = data.guesses.findIndex((guess) => guess?.itself === null); // the first [MASK], else -1
const MEAN = { layer: data.layers, head: data.heads }; // behind the last layer and the last head stand the means
const view = { layer: data.layer, head: data.head, form: "lines", chosen: null, pointed: null };

const $ = (id) => document.getElementById(id);

/** A new element with a class, text and attributes. */
function make(tag, className = "", text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// ---- the data

/** Whole numbers of two bytes, the lower first, from base64. */
function decode(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const pairs = new DataView(bytes.buffer);
  return Uint16Array.from({ length: bytes.length / 2 }, (_, i) => pairs.getUint16(2 * i, true));
}

/** How much word `row` attends to word `column`, in a head: 0 to 1. */
function weight(layer, head, row, column) {
  const map = layer * (data.heads + 1) + head;
  const size = data.words.length;
  return weights[(map * size + row) * size + column] / data.scale;
}

const figure = (value) => value.toFixed(3);
const nameOf = (layer, head) =>
  (layer === MEAN.layer ? "mean of all layers" : `layer ${layer + 1}`) +
  (head === MEAN.head ? ", mean of all heads" : `, head ${head + 1}`);

// ---- colours

let palette = []; // the colour of every weight that the data can hold

/** The colour of a weight, as three numbers; the legend is painted by it too. */
const shade = (value) => palette[Math.round(value * data.scale)];

/** A weight's colour, from the ground to full over two stops. The square root lets small weights be seen. */
function mix(value, stops) {
  const strength = 2 * Math.sqrt(value);
  const [low, high] = strength < 1 ? [stops[0], stops[1]] : [stops[1], stops[2]];
  const part = strength < 1 ? strength : strength - 1;
  return low.map((channel, i) => Math.round(channel + part * (high[i] - channel)));
}

const css = (rgb) => `rgb(${rgb.join(" ")})`;

/** A colour of the style sheet, #rrggbb, as three numbers. */
function colour(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light theme" : "Dark theme";
  const stops = ["--scale-0", "--scale-1", "--scale-2"].map(colour);
  palette = Array.from({ length: data.scale + 1 }, (_, i) => mix(i / data.scale, stops));
  paintScale();
  paintHeads();
  draw();
}

function paintScale() {
  const canvas = $("scale");
  const pen = canvas.getContext("2d");
  canvas.width = 256;
  for (let x = 0; x < 256; x++) {
    pen.fillStyle = css(shade(x / 255));
    pen.fillRect(x, 0, 1, canvas.height);
  }
}

// ---- the keyboard

/** Arrow keys, Home and End within a group of which one element at a time is reached by Tab. */
function rove(items, columns = 1) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  items.forEach((item, i) =>
    item.addEventListener("keydown", (event) => {
      const goal = { Home: 0, End: items.length - 1 }[event.key] ?? i + steps[event.key];
      if (!items[goal] || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      items[goal].focus();
    }),
  );
  items.forEach((item) => item.addEventListener("focus", () => reachable(items, item)));
}

/** Makes one element of a group the one that Tab reaches. */
function reachable(items, chosen) {
  for (const item of items) item.tabIndex = item === chosen ? 0 : -1;
}

// ---- the heads

const heads = [];

function buildHeads() {
  const grid = $("heads");
  grid.style.setProperty("--columns", data.heads + 1);
  const top = row(grid);
  top.append(make("span", "", "", { role: "columnheader" }));
  for (let head = 0; head <= MEAN.head; head++) {
    const name = head === MEAN.head ? "mean" : `${head + 1}`;
    top.append(make("span", "", name, { role: "columnheader", "aria-label": name === "mean" ? name : `head ${name}` }));
  }
  for (let layer = 0; layer <= MEAN.layer; layer++) buildLayer(row(grid), layer);
  rove(heads, data.heads + 1);
  reachable(heads, headOf(view.layer, view.head));
}

function row(grid) {
  const element = make("div", "", "", { role: "row" });
  grid.append(element);
  return element;
}

function buildLayer(line, layer) {
  const name = layer === MEAN.layer ? "mean" : `layer ${layer + 1}`;
  line.append(make("span", "", name, { role: "rowheader" }));
  for (let head = 0; head <= MEAN.head; head++) {
    const bits = data.entropy[layer][head].toFixed(2);
    const cell = make("button", "head", "", { type: "button", role: "gridcell" });
    cell.setAttribute("aria-label", `${nameOf(layer, head)}, entropy ${bits} bits`);
    cell.append(make("canvas"), make("span", "", bits));
    cell.addEventListener("focus", () => show({ layer, head }));
    cell.addEventListener("click", () => show({ layer, head }));
    heads.push(cell);
    line.append(cell);
  }
}

const headOf = (layer, head) => heads[layer * (data.heads + 1) + head];

/** Each thumbnail: a dot for every pair of words. */
function paintHeads() {
  const size = data.words.length;
  heads.forEach((cell, i) => {
    const layer = Math.floor(i / (data.heads + 1));
    const canvas = cell.querySelector("canvas");
    canvas.width = canvas.height = size;
    const pen = canvas.getContext("2d");
    const picture = pen.createImageData(size, size);
    for (let dot = 0; dot < size * size; dot++) {
      const value = weight(layer, i % (data.heads + 1), Math.floor(dot / size), dot % size);
      picture.data.set(shade(value), 4 * dot);
      picture.data[4 * dot + 3] = 255;
    }
    pen.putImageData(picture, 0, 0);
  });
}

// ---- the map of one head

const sides = { from: [], to: [] };

function buildWords(side) {
  data.words.forEach((word, index) => {
    const option = make("div", "word", "", { role: "option", tabindex: -1 });
    option.append(make("bdi", "", word, { title: word }), make("span", "figure"), make("span", "weight"));
    for (const event of ["focus", "click"]) {
      option.addEventListener(event, () => show({ chosen: { side, index }, pointed: null }));
    }
    option.addEventListener("pointermove", () => point({ side, index })); // not "enter": scrolling is no pointing
    option.addEventListener("pointerleave", () => point(null));
    sides[side].push(option);
    $(side).append(option);
  });
  rove(sides[side]);
  reachable(sides[side], sides[side][0]);
}

/** Shows the word under the pointer, as long as it stays there. */
function point(word) {
  const { pointed } = view;
  const same = ["side", "index", "other"].every((key) => pointed?.[key] === word?.[key]);
  if (!same) show({ pointed: word });
}

/** The word whose attention is shown: the one pointed at, else the one chosen, else none. */
const current = () => view.pointed ?? view.chosen;
const weightOf = (row, column) => weight(view.layer, view.head, row, column);

/** What a word of one side has to do with each of the other: [weight, index], heaviest first. */
function partners({ side, index }) {
  const values = data.words.map((_, other) => [
    side === "from" ? weightOf(index, other) : weightOf(other, index),
    other,
  ]);
  return values.sort((a, b) => b[0] - a[0] || a[1] - b[1]);
}

function showFigures() {
  const word = current();
  for (const side of ["from", "to"]) {
    sides[side].forEach((option, index) => {
      const isWord = word?.side === side && word.index === index;
      option.setAttribute("aria-selected", isWord);
      if (!word || word.side === side) return setFigure(option, null);
      setFigure(option, side === "to" ? weightOf(word.index, index) : weightOf(index, word.index));
    });
  }
}

function setFigure(option, value) {
  option.querySelector(".figure").textContent = value === null ? "" : figure(value);
  option.querySelector(".weight").style.setProperty("--weight", value ?? 0);
}

function showReading() {
  const reading = $("reading");
  reading.replaceChildren();
  const word = current();
  if (!word) return reading.append("Point at a word, or choose one by Tab and the arrow keys, to see its figures.");
  const name = (index) => make("bdi", "", data.words[index]);
  reading.append(name(word.index), word.side === "from" ? " attends to " : " is attended to by ");
  if (view.pointed?.other !== undefined) {
    return reading.append(name(view.pointed.other), ` ${figure(weightOf(word.index, view.pointed.other))}`);
  }
  const best = partners(word).slice(0, 3);
  best.forEach(([value, index], i) => {
    const separator = i === best.length - 1 ? "." : ", ";
    reading.append(name(index), ` ${figure(value)}${separator}`);
  });
}

// ---- drawing it

/** The canvas fitted to its place, ready to be drawn on in CSS pixels -> its pen, width and height. */
function fitCanvas() {
  const canvas = $("canvas");
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const ratio = Math.min(window.devicePixelRatio, 8000 / Math.max(width, height, 1));
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  return [pen, width, height];
}

function draw() {
  const [pen, width, height] = fitCanvas();
  if (!width) return;
  if (view.form === "lines") drawLines(pen, width, height / data.words.length);
  else drawTable(pen, width / data.words.length, height / data.words.length);
}

/** A curve for every weight, the heaviest on top; only those of the current word, if there is one. */
function drawLines(pen, width, rowHeight) {
  const links = [];
  const word = current();
  data.words.forEach((_, row) =>
    data.words.forEach((_, column) => {
      if (word && word.index !== (word.side === "from" ? row : column)) return;
      links.push([weightOf(row, column), row, column]);
    }),
  );
  links.sort((a, b) => a[0] - b[0]);
  for (const [value, row, column] of links) {
    if (!value) continue;
    pen.strokeStyle = css(shade(value));
    pen.lineWidth = 0.8 + 6 * value;
    const [start, end] = [(row + 0.5) * rowHeight, (column + 0.5) * rowHeight];
    pen.beginPath();
    pen.moveTo(0, start);
    pen.bezierCurveTo(width / 2, start, width / 2, end, width, end);
    pen.stroke();
  }
}

/** A cell for every weight, with its figure where there is room; the current word's row or column framed. */
function drawTable(pen, cellWidth, cellHeight) {
  const gap = cellWidth > 20 ? 1 : 0.5;
  pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  data.words.forEach((_, row) =>
    data.words.forEach((_, column) => {
      const value = weightOf(row, column);
      const rgb = shade(value);
      const [x, y] = [column * cellWidth, row * cellHeight];
      pen.fillStyle = css(rgb);
      pen.fillRect(x + gap / 2, y + gap / 2, cellWidth - gap, cellHeight - gap);
      if (cellWidth < 40) return;
      pen.fillStyle = luminance(rgb) > 0.18 ? "#000000" : "#ffffff"; // the greater contrast of the two
      pen.fillText(figure(value), x + cellWidth / 2, y + cellHeight / 2);
    }),
  );
  frame(pen, cellWidth, cellHeight);
}

function frame(pen, cellWidth, cellHeight) {
  const word = current();
  if (!word) return;
  const size = data.words.length;
  pen.strokeStyle = css(colour("--mark"));
  pen.lineWidth = 2;
  if (word.side === "from") pen.strokeRect(1, word.index * cellHeight + 1, size * cellWidth - 2, cellHeight - 2);
  else pen.strokeRect(word.index * cellWidth + 1, 1, cellWidth - 2, size * cellHeight - 2);
}

/** Relative luminance, from 0 to 1 (WCAG 2.2). */
function luminance(rgb) {
  const [r, g, b] = rgb.map((c) => (c <= 10 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** In the table, the cell under the pointer. */
function pointAtCell(event) {
  if (view.form !== "table") return;
  const canvas = $("canvas");
  const place = (offset, length) =>
    Math.max(0, Math.min(data.words.length - 1, Math.floor((offset / length) * data.words.length)));
  const [row, column] = [place(event.offsetY, canvas.clientHeight), place(event.offsetX, canvas.clientWidth)];
  point({ side: "from", index: row, other: column });
}

// ---- all of it

/** Changes what is shown. */
function show(change) {
  Object.assign(view, change);
  heads.forEach((cell) => cell.setAttribute("aria-selected", cell === headOf(view.layer, view.head)));
  const name = nameOf(view.layer, view.head);
  $("map-title").textContent = name[0].toUpperCase() + name.slice(1);
  const bits = data.entropy[view.layer][view.head].toFixed(2);
  $("map-entropy").textContent = `entropy ${bits} bits, of ${Math.log2(data.words.length).toFixed(2)} at most`;
  $("figure").dataset.form = view.form;
  $("all").disabled = !view.chosen;
  showFigures();
  showReading();
  draw();
}

function start() {
  document.title = `${data.sentence} – attention`;
  $("sentence").textContent = data.sentence;
  $("sentence").classList.toggle("long", data.sentence.length > 90);
  const count = data.words.length;
  $("sizes").textContent = `Encoder of ${data.layers} layers with ${data.heads} heads each; ${count} tokens`;
  $("most-bits").textContent = Math.log2(count).toFixed(2);
  $("figure").style.setProperty("--words", count);
  $("figure").dataset.length = count <= 12 ? "short" : count <= 24 ? "middle" : "long";
  buildHeads();
  buildWords("from");
  buildWords("to");
  if (masked >= 0) view.chosen = { side: "from", index: masked };
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  $("theme").addEventListener("click", () =>
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"),
  );
  $("form").addEventListener("change", (event) => show({ form: event.target.value }));
  $("all").addEventListener("click", () => show({ chosen: null }));
  document.addEventListener("keydown", (event) => event.key === "Escape" && show({ chosen: null, pointed: null }));
  $("canvas").addEventListener("pointermove", pointAtCell);
  $("canvas").addEventListener("pointerleave", () => point(null));
  new ResizeObserver(draw).observe($("canvas"));
  show({});
}

start();
