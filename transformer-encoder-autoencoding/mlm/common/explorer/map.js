// The map of one head, large: as lines between words, or as a table.

/** One head's map. A word of either side may be pointed at or chosen; then its figures are shown. */
class AttentionMap {
  /** element: an empty one; onForm("lines" or "table") when the user asks for another form. */
  constructor(element, { onForm }) {
    this.chosen = null; // { side: "from" or "to", index }
    this.pointed = null; // the same; with `other`, an index of the other side, it is a cell of the table
    this.options = { from: [], to: [] };
    this.build(element, onForm);
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.choose(null));
    for (const event of ["pointerdown", "pointermove"]) {
      this.canvas.addEventListener(event, (at) => this.pointAtCell(at));
    }
    this.canvas.addEventListener("pointerleave", (at) => at.pointerType === "mouse" && this.point(null));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  /**
   * Show a head of maps. view: layer and head, from 0; form; step: how many rows are written, all if it is left out;
   * off: whether the head is switched off; titles: what the sides are called, { from, to }.
   */
  show(maps, view) {
    const isNew = !this.maps || ["from", "to"].some((side) => maps[side].join("\n") !== this.maps[side].join("\n"));
    Object.assign(this, { maps, view: { off: false, ...view } });
    if (isNew) this.buildWords();
    const { from, to } = maps;
    const longer = Math.max(from.length, to.length);
    this.title.textContent = capitalize(maps.nameOf(view.layer, view.head));
    const bits = maps.entropy(view.layer, view.head).toFixed(2);
    const off = view.off ? "; switched off: nothing of this reaches the next layer" : "";
    this.entropy.textContent = `entropy ${bits} bits, of ${maps.mostBits().toFixed(2)} at most${off}`;
    this.figure.dataset.form = view.form;
    this.figure.dataset.length = longer <= 12 ? "short" : longer <= 24 ? "middle" : "long";
    this.figure.style.setProperty("--height", view.form === "lines" ? longer : from.length);
    this.figure.style.setProperty("--columns", to.length);
    this.figure.classList.toggle("off", view.off === true);
    this.form.querySelector(`[value=${view.form}]`).checked = true;
    for (const side of ["from", "to"]) this.sideTitles[side].textContent = view.titles[side];
    this.refresh();
  }

  /** Choose a word, { side, index }, or null: none. */
  choose(word) {
    Object.assign(this, { chosen: word, pointed: null });
    const options = word ? this.options[word.side] : [];
    if (options[word?.index]) reachable(options, options[word.index]); // Tab comes to it first
    if (this.maps) this.refresh();
  }

  /** Point at a word as long as the pointer stays there. */
  point(word) {
    const same = ["side", "index", "other"].every((key) => this.pointed?.[key] === word?.[key]);
    this.pointed = word;
    if (!same) this.refresh();
  }

  refresh() {
    if (!this.chosen) handFocus(this.all, this.form.querySelector("input:checked"));
    this.all.disabled = !this.chosen;
    this.showFigures();
    this.showReading();
    this.draw();
  }

  // ---- building it

  build(element, onForm) {
    this.title = make("h2", "", "", { id: "map-title" });
    this.entropy = make("p", "muted", "", { id: "map-entropy" });
    this.all = make("button", "plain", "Show all words", { type: "button", id: "all" });
    this.all.addEventListener("click", () => this.choose(null));
    this.form = makeOf("fieldset", "", make("legend", "", "Drawn as"));
    this.form.id = "form";
    for (const form of ["lines", "table"]) {
      const input = make("input", "", "", { type: "radio", name: "form", value: form });
      const name = make("span", "", form === "lines" ? "Lines" : "Table");
      this.form.append(makeOf("label", "", input, name));
    }
    this.form.addEventListener("change", (event) => onForm(event.target.value));
    this.reading = make("p", "", "", { id: "reading", role: "status", "aria-live": "polite" });
    this.figure = make("div", "", "", { id: "figure" });
    this.canvas = make("canvas", "", "", { id: "canvas", "aria-hidden": "true" });
    this.sideTitles = {};
    for (const [side, vector] of [["from", "query Q"], ["to", "key K"]]) {
      this.sideTitles[side] = make("bdi");
      const title = makeOf("p", "side", this.sideTitles[side], " ", make("span", "", vector));
      title.id = `${side}-title`;
      const list = make("div", side, "", { id: side, role: "listbox", "aria-labelledby": title.id });
      this.figure.append(title, list);
    }
    this.figure.insertBefore(this.canvas, this.figure.lastChild);
    const head = makeOf("div", "bar", makeOf("div", "", this.title, this.entropy), this.all, this.form);
    const stage = makeOf("div", "scroll", this.figure);
    stage.id = "stage";
    element.append(head, this.reading, stage);
  }

  buildWords() {
    this.pointed = null;
    if (this.chosen && this.chosen.index >= this.maps[this.chosen.side].length) this.chosen = null;
    for (const side of ["from", "to"]) {
      const old = placeInGroup(this.options[side]);
      this.options[side] = this.maps[side].map((word, index) => this.makeWord(word, side, index));
      $(side).replaceChildren(...this.options[side]);
      rove(this.options[side]);
      restorePlace(this.options[side], old);
    }
  }

  makeWord(word, side, index) {
    const option = make("div", "word", "", { role: "option", tabindex: -1 });
    option.append(make("bdi", "", word, { title: word }), make("span", "figure"), make("span", "weight"));
    for (const event of ["focus", "click"]) option.addEventListener(event, () => this.choose({ side, index }));
    option.addEventListener("pointermove", () => this.point({ side, index })); // not "enter": scrolling is no pointing
    option.addEventListener("pointerleave", () => this.point(null));
    return option;
  }

  // ---- the figures

  /** The word whose attention is shown: the one pointed at, else the one chosen, else none. */
  get current() {
    return this.pointed ?? this.chosen;
  }

  get step() {
    return this.maps.grows ? (this.view.step ?? this.maps.from.length) : this.maps.from.length;
  }

  weight(row, column) {
    return this.maps.weight(this.view.layer, this.view.head, row, column);
  }

  /** Whether a row has been written and may attend to a column. */
  allowed(row, column) {
    return row < this.step && this.maps.allowed(row, column);
  }

  /** Whether a column is there to be attended to: in the triangle, what the last row written has read. */
  readable(column) {
    return !this.maps.causal || column < this.step;
  }

  showFigures() {
    const word = this.current;
    for (const [side, options] of Object.entries(this.options)) {
      options.forEach((option, index) => {
        option.classList.toggle("later", side === "from" ? index >= this.step : !this.readable(index));
        option.setAttribute("aria-selected", word?.side === side && word.index === index);
        const cell = word && word.side !== side ? pair(word, index) : null;
        const value = cell && this.allowed(...cell) ? this.weight(...cell) : null;
        option.querySelector(".figure").textContent = value === null ? "" : figure(value);
        option.querySelector(".weight").style.setProperty("--weight", value ?? 0);
      });
      const way = options.find((option) => option.tabIndex === 0); // into the list, by the Tab key
      if (way?.classList.contains("later")) reachable(options, options[0]);
    }
  }

  showReading() {
    const { maps, reading, current: word } = this;
    reading.replaceChildren();
    if (!word) {
      return reading.append("Point at a word, tap it, or choose one with Tab and the arrow keys, to see its figures.");
    }
    const other = word.side === "from" ? "to" : "from";
    const name = (side, index) => make("bdi", "", maps[side][index]);
    reading.append(name(word.side, word.index), word.side === "from" ? " attends to " : " is attended to by ");
    if (word.other !== undefined) {
      return reading.append(name(other, word.other), ` ${figure(this.weight(...pair(word, word.other)))}`);
    }
    const partners = maps[other].map((_, index) => index).filter((index) => this.allowed(...pair(word, index)));
    const best = partners.map((index) => [this.weight(...pair(word, index)), index]);
    best.sort((a, b) => b[0] - a[0] || a[1] - b[1]);
    best.slice(0, 3).forEach(([value, index], i, shown) => {
      reading.append(name(other, index), ` ${figure(value)}${i === shown.length - 1 ? "." : ", "}`);
    });
  }

  // ---- drawing it

  /** Fit the canvas to its place, ready to be drawn on in CSS pixels -> its pen, width and height. */
  fitCanvas() {
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    const ratio = Math.min(window.devicePixelRatio, 8000 / Math.max(width, height, 1));
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    return [pen, width, height];
  }

  draw() {
    if (!this.maps) return;
    const [pen, width, height] = this.fitCanvas();
    const [rows, columns] = [this.maps.from.length, this.maps.to.length];
    if (!width) return;
    if (this.view.form === "lines") this.drawLines(pen, width, height / Math.max(rows, columns));
    else this.drawTable(pen, width / columns, height / rows);
  }

  /** Call a function with every row and column of the map. */
  forEachCell(visit) {
    this.maps.from.forEach((_, row) => this.maps.to.forEach((_, column) => visit(row, column)));
  }

  /** Draw a curve for every weight, the heaviest on top; only those of the current word, if there is one. */
  drawLines(pen, width, rowHeight) {
    const links = [];
    const word = this.current;
    this.forEachCell((row, column) => {
      const isAsked = !word || word.index === (word.side === "from" ? row : column);
      if (isAsked && this.allowed(row, column)) links.push([this.weight(row, column), row, column]);
    });
    links.sort((a, b) => a[0] - b[0]);
    for (const [value, row, column] of links) {
      if (value < 0.0005) continue; // shown as 0.000
      pen.strokeStyle = css(shade(value));
      pen.lineWidth = 0.8 + 6 * value;
      const [start, end] = [(row + 0.5) * rowHeight, (column + 0.5) * rowHeight];
      pen.beginPath();
      pen.moveTo(0, start);
      pen.bezierCurveTo(width / 2, start, width / 2, end, width, end);
      pen.stroke();
    }
  }

  /** Draw a cell for every weight, with its figure where there is room; what is forbidden is hatched, and the current
   * word's row or column framed. */
  drawTable(pen, cellWidth, cellHeight) {
    const gap = cellWidth > 20 ? 1 : 0.5;
    const forbidden = hatch(pen);
    pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    this.forEachCell((row, column) => {
      if (row >= this.step || !this.readable(column)) return;
      const [x, y] = [column * cellWidth, row * cellHeight];
      const value = this.allowed(row, column) ? this.weight(row, column) : null;
      pen.fillStyle = value === null ? forbidden : css(shade(value));
      pen.fillRect(x + gap / 2, y + gap / 2, cellWidth - gap, cellHeight - gap);
      if (value === null || cellWidth < 40) return;
      pen.fillStyle = inkOn(shade(value));
      pen.fillText(figure(value), x + cellWidth / 2, y + cellHeight / 2);
    });
    this.frame(pen, cellWidth, cellHeight);
  }

  frame(pen, width, height) {
    const { current: word, maps } = this;
    if (!word) return;
    const columns = maps.causal ? this.step : maps.to.length;
    pen.strokeStyle = css(colour("--mark"));
    pen.lineWidth = 2;
    if (word.side === "from") pen.strokeRect(1, word.index * height + 1, columns * width - 2, height - 2);
    else pen.strokeRect(word.index * width + 1, 1, width - 2, this.step * height - 2);
  }

  /** Point, in the table, at the cell under the pointer. */
  pointAtCell(event) {
    if (this.view.form !== "table") return;
    const place = (offset, length, count) => Math.max(0, Math.min(count - 1, Math.floor((offset / length) * count)));
    const index = place(event.offsetY, this.canvas.clientHeight, this.maps.from.length);
    const other = place(event.offsetX, this.canvas.clientWidth, this.maps.to.length);
    this.point(this.allowed(index, other) ? { side: "from", index, other } : null);
  }
}

/** A word and another of the other side, as row and column. */
const pair = ({ side, index }, other) => (side === "from" ? [index, other] : [other, index]);

/** Make a pattern of thin oblique lines. */
function hatch(pen) {
  const tile = make("canvas", "", "", { width: 6, height: 6 });
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
