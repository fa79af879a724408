// Every head of one kind of attention, small, with a switch.

/** A grid of layers and heads: a picture of each map, its entropy, and a switch. */
class HeadGrid {
  /**
   * element: an empty one; onShow({ layer, head }), from 0, the means behind the last, when a head is to be shown;
   * onSwitch(name), such as "encoder.2" or "encoder.2.3", when a layer or a head is switched; null: no switches.
   */
  constructor(element, { onShow, onSwitch = null }) {
    Object.assign(this, { element, onShow, onSwitch });
    this.grid = make("div", "", "", { id: "heads", role: "grid", "aria-labelledby": "heads-title" });
    this.note = make("p", "muted");
    element.append(make("h2", "", "Heads", { id: "heads-title" }), makeOf("div", "scroll", this.grid), this.note);
    element.append(this.makeScale());
    this.shape = "";
  }

  /** Show maps. view: layer and head, from 0; kind: "encoder", "decoder" or "cross"; off: a Set of names; step: how
   * many rows are written, all if it is left out. */
  show(maps, view) {
    Object.assign(this, { maps, view });
    const shape = [maps.layers, maps.heads, view.kind].join();
    if (shape !== this.shape) this.build();
    this.shape = shape;
    this.note.textContent =
      "The number under each map is its entropy in bits, averaged over the rows: 0 if every word looks at a single " +
      `word, ${maps.mostBits().toFixed(2)} if it looks at all words equally.`;
    this.cells.forEach((cell) => this.showCell(cell));
    for (const { button, name } of this.switches) button.setAttribute("aria-checked", !view.off.has(name));
    const chosen = this.cellOf(view.layer, view.head);
    if (!this.cells.some(({ head }) => head === document.activeElement)) this.reach(chosen);
    this.paint();
  }

  /** Paint again, after the theme has changed. */
  paint() {
    this.paintScale();
    if (this.maps) for (const cell of this.cells) this.paintCell(cell);
  }

  cellOf(layer, head) {
    return this.cells[layer * (this.maps.heads + 1) + head];
  }

  // ---- building it

  build() {
    const { layers, heads } = this.maps;
    this.cells = [];
    this.switches = [];
    this.grid.replaceChildren();
    this.grid.style.setProperty("--columns", heads + 1);
    const top = this.addRow();
    top.append(make("span", "", "", { role: "columnheader" }));
    for (let head = 0; head <= heads; head++) {
      const name = head === heads ? "mean" : `${head + 1}`;
      const label = head === heads ? "mean" : `head ${name}`;
      top.append(make("span", "", name, { role: "columnheader", "aria-label": label }));
    }
    for (let layer = 0; layer <= layers; layer++) this.addLayer(layer);
    const buttons = this.cells.map(({ head }) => head);
    rove(buttons, heads + 1);
  }

  addRow() {
    const row = make("div", "", "", { role: "row" });
    this.grid.append(row);
    return row;
  }

  addLayer(layer) {
    const { layers, heads } = this.maps;
    const row = this.addRow();
    const header = makeOf("span", "", make("span", "", layer === layers ? "mean" : `layer ${layer + 1}`));
    header.setAttribute("role", "rowheader");
    if (layer < layers) this.addSwitch(header, `${this.view.kind}.${layer + 1}`, `attention of layer ${layer + 1}`);
    row.append(header);
    for (let head = 0; head <= heads; head++) {
      const button = make("button", "head", "", { type: "button" });
      button.append(make("canvas"), make("span"));
      const place = makeOf("div", "cell", button);
      place.setAttribute("role", "gridcell");
      const cell = { layer, index: head, head: button, place, canvas: button.firstChild, bits: button.lastChild };
      if (layer < layers && head < heads) {
        cell.name = `${this.view.kind}.${layer + 1}.${head + 1}`;
        cell.switch = this.addSwitch(place, cell.name, this.maps.nameOf(layer, head));
      }
      this.listen(cell);
      this.cells.push(cell);
      row.append(place);
    }
  }

  addSwitch(place, name, label) {
    if (!this.onSwitch) return null;
    const button = makeSwitch("small", label, () => this.onSwitch(name));
    this.switches.push({ button, name });
    place.append(button);
    return button;
  }

  listen(cell) {
    const show = () => {
      this.reach(cell);
      this.onShow({ layer: cell.layer, head: cell.index });
    };
    cell.head.addEventListener("focus", show);
    cell.head.addEventListener("click", show);
    cell.head.addEventListener("keydown", (event) => {
      if (event.key === "x" && cell.switch && !event.ctrlKey && !event.altKey && !event.metaKey) cell.switch.click();
    });
  }

  /** Let Tab reach one head, and then its switch. */
  reach(chosen) {
    for (const cell of this.cells) {
      cell.head.tabIndex = cell === chosen ? 0 : -1;
      if (cell.switch) cell.switch.tabIndex = cell === chosen ? 0 : -1;
    }
  }

  // ---- showing it

  showCell(cell) {
    const { maps, view } = this;
    const isOff = view.off.has(cell.name) || view.off.has(`${view.kind}.${cell.layer + 1}`);
    const bits = maps.entropy(cell.layer, cell.index).toFixed(2);
    cell.bits.textContent = bits;
    const name = maps.nameOf(cell.layer, cell.index);
    cell.head.setAttribute("aria-label", `${name}, entropy ${bits} bits${isOff ? ", switched off" : ""}`);
    cell.place.setAttribute("aria-selected", cell.layer === view.layer && cell.index === view.head);
    cell.place.classList.toggle("off", isOff);
  }

  /** Paint a dot for every pair of words; what is forbidden or not yet written stays empty. */
  paintCell({ canvas, layer, index }) {
    const { maps, view } = this;
    const [height, width] = [maps.from.length, maps.to.length];
    [canvas.width, canvas.height] = [width, height];
    const pen = canvas.getContext("2d");
    const picture = pen.createImageData(width, height);
    const written = maps.grows ? (view.step ?? height) : height;
    for (let row = 0; row < written; row++) {
      for (let column = 0; column < width && maps.allowed(row, column); column++) {
        const dot = 4 * (row * width + column);
        picture.data.set(shade(maps.weight(layer, index, row, column)), dot);
        picture.data[dot + 3] = 255;
      }
    }
    pen.putImageData(picture, 0, 0);
  }

  makeScale() {
    const scale = make("div", "scale", "", { role: "img", "aria-label": "Colours of attention weights, from 0 to 1" });
    this.scale = make("canvas", "", "", { width: 256, height: 10 });
    const marks = ["0", "0.25", "0.5", "0.75", "1"].map((mark) => make("span", "", mark));
    scale.append(make("span", "", "attention weight"), this.scale, makeOf("p", "", ...marks));
    return scale;
  }

  paintScale() {
    const pen = this.scale.getContext("2d");
    for (let x = 0; x < 256; x++) {
      pen.fillStyle = css(shade(x / 255));
      pen.fillRect(x, 0, 1, this.scale.height);
    }
  }
}
