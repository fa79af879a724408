"use strict";

// The heads of one kind of attention, and the map of the one chosen. explorer.py says what the data holds. Text is
// only ever set as textContent: whatever stands in a prompt stays text.

const data = JSON.parse(document.getElementById("data").textContent);
for (const kind of Object.values(data.attentions)) kind.weights = decode(kind.weights);
const steps = data.next.length;
const view = { layer: data.layer, head: data.head, form: "lines", step: steps, chosen: null, pointed: null };
let attention = data.attentions.cross; // behind its last layer and its last head stand the means

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

/** How much the word of a row attends to the word of a column, in a head: 0 to 1. */
function weight(layer, head, row, column) {
  const map = layer * (attention.heads + 1) + head;
  return attention.weights[(map * attention.from.length + row) * attention.to.length + column] / data.scale;
}

/** Whether a row has been written: the decoder's rows come one with each step. */
const written = (row) => !attention.grows || row < view.step;
/** Whether a row may attend to a column, and has been written. */
const allowed = (row, column) => written(row) && (!attention.causal || column <= row);
/** Whether a column is there to be attended to: in the triangle, what the last row written has read. */
const readable = (column) => !attention.causal || column < view.step;

const figure = (value) => value.toFixed(3);
const nameOf = (layer, head) =>
  (layer === attention.layers ? "mean of all layers" : `layer ${layer + 1}`) +
  (head === attention.heads ? ", mean of all heads" : `, head ${head + 1}`);

/** The entropy of looking at all alike, in bits, the mean over the rows. */
function mostBits() {
  const bits = attention.from.map((_, row) => Math.log2(attention.causal ? row + 1 : attention.to.length));
  return (bits.reduce((sum, one) => sum + one) / bits.length).toFixed(2);
}

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
  show({});
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
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  items.forEach((item, i) =>
    item.addEventListener("keydown", (event) => {
      const last = items.findLastIndex((one) => !one.classList.contains("later"));
      const goal = { Home: 0, End: last }[event.key] ?? i + moves[event.key];
      if (!items[goal] || goal > last || event.ctrlKey || event.altKey || event.metaKey) return;
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

let heads = [];

function buildHeads() {
  const grid = $("heads");
  heads = [];
  grid.replaceChildren();
  grid.style.setProperty("--columns", attention.heads + 1);
  const top = row(grid);
  top.append(make("span", "", "", { role: "columnheader" }));
  for (let head = 0; head <= attention.heads; head++) {
    const name = head === attention.heads ? "mean" : `${head + 1}`;
    top.append(make("span", "", name, { role: "columnheader", "aria-label": name === "mean" ? name : `head ${name}` }));
  }
  for (let layer = 0; layer <= attention.layers; layer++) buildLayer(row(grid), layer);
  rove(heads, attention.heads + 1);
  reachable(heads, headOf(view.layer, view.head));
}

function row(grid) {
  const element = make("div", "", "", { role: "row" });
  grid.append(element);
  return element;
}

function buildLayer(line, layer) {
  const name = layer === attention.layers ? "mean" : `layer ${layer + 1}`;
  line.append(make("span", "", name, { role: "rowheader" }));
  for (let head = 0; head <= attention.heads; head++) {
    const bits = attention.entropy[layer][head].toFixed(2);
    const cell = make("button", "head", "", { type: "button", role: "gridcell" });
    cell.setAttribute("aria-label", `${nameOf(layer, head)}, entropy ${bits} bits`);
    cell.append(make("canvas"), make("span", "", bits));
    cell.addEventListener("focus", () => show({ layer, head }));
    cell.addEventListener("click", () => show({ layer, head }));
    heads.push(cell);
    line.append(cell);
  }
}

const headOf = (layer, head) => heads[layer * (attention.heads + 1) + head];

/** Each thumbnail: a dot for every pair of words; what is forbidden or not yet written stays empty. */
function paintHeads() {
  const [height, width] = [attention.from.length, attention.to.length];
  heads.forEach((cell, i) => {
    const layer = Math.floor(i / (attention.heads + 1));
    const canvas = cell.querySelector("canvas");
    [canvas.width, canvas.height] = [width, height];
    const pen = canvas.getContext("2d");
    const picture = pen.createImageData(width, height);
    for (let dot = 0; dot < width * height; dot++) {
      const [row, column] = [Math.floor(dot / width), dot % width];
      if (!allowed(row, column)) continue;
      const value = weight(layer, i % (attention.heads + 1), row, column);
      picture.data.set(shade(value), 4 * dot);
      picture.data[4 * dot + 3] = 255;
    }
    pen.putImageData(picture, 0, 0);
  });
}

// ---- the map of one head

const sides = { from: [], to: [] };

function buildWords(side) {
  sides[side] = attention[side].map((word, index) => {
    const option = make("div", "word", "", { role: "option", tabindex: -1 });
    option.append(make("bdi", "", word, { title: word }), make("span", "figure"), make("span", "weight"));
    for (const event of ["focus", "click"]) {
      option.addEventListener(event, () => show({ chosen: { side, index }, pointed: null }));
    }
    option.addEventListener("pointermove", () => point({ side, index })); // not "enter": scrolling is no pointing
    option.addEventListener("pointerleave", () => point(null));
    return option;
  });
  $(side).replaceChildren(...sides[side]);
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
/** A word and another of the other side, as row and column. */
const pair = ({ side, index }, other) => (side === "from" ? [index, other] : [other, index]);

/** What a word has to do with each of the other side: [weight, index], heaviest first. */
function partners(word) {
  return attention[word.side === "from" ? "to" : "from"]
    .map((_, other) => [pair(word, other), other])
    .filter(([cell]) => allowed(...cell))
    .map(([cell, other]) => [weightOf(...cell), other])
    .sort((a, b) => b[0] - a[0] || a[1] - b[1]);
}

function showFigures() {
  const word = current();
  for (const side of ["from", "to"]) {
    sides[side].forEach((option, index) => {
      option.classList.toggle("later", side === "from" ? !written(index) : !readable(index));
      option.setAttribute("aria-selected", word?.side === side && word.index === index);
      const cell = word && word.side !== side ? pair(word, index) : null;
      setFigure(option, cell && allowed(...cell) ? weightOf(...cell) : null);
    });
    const way = sides[side].find((option) => option.tabIndex === 0); // into the list, by the Tab key
    if (way?.classList.contains("later")) reachable(sides[side], sides[side][0]);
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
  const name = (side, index) => make("bdi", "", attention[side][index]);
  const [side, other] = word.side === "from" ? ["to", "from"] : ["from", "to"];
  reading.append(name(other, word.index), word.side === "from" ? " attends to " : " is attended to by ");
  const pointed = view.pointed?.other;
  if (pointed !== undefined) return reading.append(name(side, pointed), ` ${figure(weightOf(word.index, pointed))}`);
  const best = partners(word).slice(0, 3);
  best.forEach(([value, index], i) => {
    const separator = i === best.length - 1 ? "." : ", ";
    reading.append(name(side, index), ` ${figure(value)}${separator}`);
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
  const rows = attention.from.length;
  const columns = attention.to.length;
  if (view.form === "lines") drawLines(pen, width, height / Math.max(rows, columns));
  else drawTable(pen, width / columns, height / rows);
}

/** Calls a function with every row and column of the map. */
function forEachCell(visit) {
  attention.from.forEach((_, row) => attention.to.forEach((_, column) => visit(row, column)));
}

/** A curve for every weight, the heaviest on top; only those of the current word, if there is one. */
function drawLines(pen, width, rowHeight) {
  const links = [];
  const word = current();
  forEachCell((row, column) => {
    const asked = !word || word.index === (word.side === "from" ? row : column);
    if (asked && allowed(row, column)) links.push([weightOf(row, column), row, column]);
  });
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

/** A cell for every weight, with its figure where there is room; what is forbidden is hatched, and the current
 * word's row or column framed. */
function drawTable(pen, cellWidth, cellHeight) {
  const gap = cellWidth > 20 ? 1 : 0.5;
  const forbidden = hatch(pen);
  pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  forEachCell((row, column) => {
    if (!written(row) || !readable(column)) return;
    const [x, y] = [column * cellWidth, row * cellHeight];
    const value = allowed(row, column) ? weightOf(row, column) : null;
    pen.fillStyle = value === null ? forbidden : css(shade(value));
    pen.fillRect(x + gap / 2, y + gap / 2, cellWidth - gap, cellHeight - gap);
    if (value === null || cellWidth < 40) return;
    pen.fillStyle = luminance(shade(value)) > 0.18 ? "#000000" : "#ffffff"; // the greater contrast of the two
    pen.fillText(figure(value), x + cellWidth / 2, y + cellHeight / 2);
  });
  frame(pen, cellWidth, cellHeight);
}

/** Thin oblique lines. */
function hatch(pen) {
  const tile = make("canvas");
  tile.width = tile.height = 6;
  const stroke = tile.getContext("2d");
  stroke.strokeStyle = css(colour("--line"));
  stroke.lineWidth = 1.2;
  for (const shift of [-6, 0, 6]) {
    stroke.moveTo(shift, 6);
    stroke.lineTo(shift + 6, 0);
  }
  stroke.stroke();
  return pen.createPattern(tile, "repeat");
}

function frame(pen, cellWidth, cellHeight) {
  const word = current();
  if (!word) return;
  const [rows, columns] = attention.grows
    ? [view.step, attention.causal ? view.step : attention.to.length]
    : [attention.from.length, attention.to.length];
  pen.strokeStyle = css(colour("--mark"));
  pen.lineWidth = 2;
  if (word.side === "from") pen.strokeRect(1, word.index * cellHeight + 1, columns * cellWidth - 2, cellHeight - 2);
  else pen.strokeRect(word.index * cellWidth + 1, 1, cellWidth - 2, rows * cellHeight - 2);
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
  const place = (offset, length, count) =>
    Math.max(0, Math.min(count - 1, Math.floor((offset / length) * count)));
  const index = place(event.offsetY, canvas.clientHeight, attention.from.length);
  const other = place(event.offsetX, canvas.clientWidth, attention.to.length);
  point(allowed(index, other) ? { side: "from", index, other } : null);
}

// ---- all of it

/** Changes what is shown. */
function show(change) {
  Object.assign(view, change);
  heads.forEach((cell) => cell.setAttribute("aria-selected", cell === headOf(view.layer, view.head)));
  const name = nameOf(view.layer, view.head);
  $("map-title").textContent = name[0].toUpperCase() + name.slice(1);
  const bits = attention.entropy[view.layer][view.head].toFixed(2);
  $("map-entropy").textContent = `entropy ${bits} bits, of ${mostBits()} at most`;
  $("figure").dataset.form = view.form;
  $("figure").style.setProperty("--height", view.form === "lines" ? longer() : attention.from.length);
  $("all").disabled = !view.chosen;
  showFigures();
  showReading();
  draw();
}

const longer = () => Math.max(attention.from.length, attention.to.length);

/** Changes to another of the three attentions. A mean stays a mean. */
function setKind(input) {
  const before = attention;
  attention = data.attentions[input.value];
  const layer = view.layer === before.layers ? attention.layers : Math.min(view.layer, attention.layers - 1);
  for (const note of document.querySelectorAll("p[data-kind]")) note.hidden = note.dataset.kind !== input.value;
  $("from-title").firstChild.textContent = input.dataset.from;
  $("to-title").firstChild.textContent = input.dataset.to;
  $("most-bits").textContent = mostBits();
  $("figure").style.setProperty("--columns", attention.to.length);
  $("figure").dataset.length = longer() <= 12 ? "short" : longer() <= 24 ? "middle" : "long";
  Object.assign(view, { layer, pointed: null, chosen: null });
  buildHeads();
  buildWords("from");
  buildWords("to");
  setStep(view.step);
}

function start() {
  document.title = `${data.prompt} – attention`;
  $("prompt").textContent = data.prompt;
  $("prompt").classList.toggle("long", data.prompt.length > 90);
  const { encoder, cross } = data.attentions;
  $("sizes").textContent =
    `Encoder of ${encoder.layers} and decoder of ${cross.layers} layers with ${cross.heads} heads each; ` +
    `${cross.to.length} tokens in, ${cross.from.length} out`;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches ? "dark" : "light");
  setKind($("kind").querySelector("input:checked"));
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  $("theme").addEventListener("click", () =>
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"),
  );
  $("kind").addEventListener("change", (event) => setKind(event.target));
  $("form").addEventListener("change", (event) => show({ form: event.target.value }));
  $("all").addEventListener("click", () => show({ chosen: null }));
  document.addEventListener("keydown", (event) => event.key === "Escape" && show({ chosen: null, pointed: null }));
  $("canvas").addEventListener("pointermove", pointAtCell);
  $("canvas").addEventListener("pointerleave", () => point(null));
  new ResizeObserver(draw).observe($("canvas"));
}
