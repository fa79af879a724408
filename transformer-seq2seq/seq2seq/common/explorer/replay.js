// Training replayed: the curve of the losses, and under it a slider through the evaluations at which a text was
// watched. The page then shows what the model made of it at that moment.

const CURVES = { train_loss: "training", held_out_loss: "held-out" };
const PLOT = { height: 150, left: 40, right: 10, top: 8, bottom: 22 }; // pixels
const PLAY_TIME = 12000; // milliseconds for all of it, between the limits for one moment
const MOMENT_TIME = { least: 150, most: 700 };

/** Make a new element of a drawing. */
function makeSvg(tag, attributes = {}, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

/** Choose round numbers from low to high, about `count` of them. */
function roundTicks(low, high, count) {
  const rough = Math.max(high - low, 1e-9) / count;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find((factor) => factor * unit >= rough);
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high * (1 + 1e-9); i++) ticks.push(i * step);
  return ticks;
}

/** Choose the numbers 1, 2 and 5 times a power of ten from low to high, or, of many, the powers alone. */
function roundLogTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    ticks.push(...[1, 2, 5].map((factor) => Number((factor * 10 ** power).toPrecision(1))));
  }
  const there = ticks.filter((tick) => tick >= low && tick <= high);
  return there.length > 6 ? there.filter((tick) => Number.isInteger(Math.log10(tick))) : there;
}

/** A slider through training. onMoment(record) is called with the chosen record of `watched`, or with null for the
 * trained model, which is the slider's end. curve: [{step, train_loss, held_out_loss}]. */
class Replay {
  constructor(element, curve, watched, onMoment) {
    Object.assign(this, { curve, watched, onMoment, playing: null, log: false });
    this.texts = [...new Set(watched.map(({ text }) => text))];
    this.build(element);
    this.choose(this.texts[0]);
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  build(element) {
    element.classList.add("replay");
    this.button = make("button", "play", "Play", { type: "button" });
    this.button.addEventListener("click", () => (this.playing ? this.pause() : this.play()));
    this.plot = make("div", "plot");
    for (const event of ["pointerdown", "pointermove"]) {
      this.plot.addEventListener(event, (at) => at.buttons === 1 && this.goToPlace(at.offsetX));
    }
    this.slider = make("input", "", "", { type: "range", min: 0, step: 1, "aria-label": "Moment of the training" });
    this.slider.addEventListener("input", () => {
      this.pause();
      this.show(Number(this.slider.value));
    });
    this.said = make("output", "", "", { "aria-live": "off" }); // the slider's own value says it
    element.append(this.buildBar(), this.plot, this.slider, this.said);
  }

  /** Build the line above the curve: what is watched, what the lines are, and how losses are drawn. */
  buildBar() {
    const bar = makeOf("div", "replay-bar", this.button);
    if (this.texts.length > 1) {
      const choice = make("select");
      for (const text of this.texts) choice.append(make("option", "", text, { value: text }));
      choice.addEventListener("change", () => this.choose(choice.value));
      bar.append(makeOf("label", "", "Text ", choice));
    } else {
      bar.append(make("bdi", "watched", this.texts[0]));
    }
    for (const [name, shown] of Object.entries(CURVES)) {
      const sample = makeSvg("svg", { width: 26, height: 10, "aria-hidden": true });
      sample.append(makeSvg("line", { class: name, x1: 1, x2: 25, y1: 5, y2: 5 }));
      bar.append(makeOf("span", "key", sample, `${shown} loss`));
    }
    const box = make("input", "", "", { type: "checkbox" });
    box.checked = this.log;
    box.addEventListener("change", () => {
      this.log = box.checked;
      this.draw();
    });
    bar.append(makeOf("label", "", box, " log scale"));
    return bar;
  }

  /** Replay another text, from the moment nearest to the one shown. */
  choose(text) {
    const step = this.moment?.step ?? Infinity;
    this.moments = this.watched.filter((record) => record.text === text);
    this.slider.max = this.moments.length;
    this.show(step === Infinity ? this.moments.length : this.nearest(step));
  }

  /** Find the place of the moment nearest to a step. */
  nearest(step) {
    const away = this.moments.map((moment) => Math.abs(moment.step - step));
    return away.indexOf(Math.min(...away));
  }

  /** Show the moment at a place of the slider; behind the last one stands the trained model. */
  show(place) {
    const before = this.moment;
    this.moment = this.moments[place] ?? null;
    this.slider.value = place;
    this.say();
    this.draw();
    if (this.moment !== (before ?? null)) this.onMoment(this.moment);
  }

  /** Go back to the trained model. */
  end() {
    this.pause();
    this.show(this.moments.length);
  }

  say() {
    const { moment } = this;
    const name = moment ? `epoch ${moment.epoch}, step ${moment.step.toLocaleString("en")}` : "now: the trained model";
    const record = this.recordOf(moment);
    const losses = record && Object.entries(CURVES).map(([key, shown]) => `${shown} loss ${record[key].toFixed(2)}`);
    this.said.textContent = record ? `${name}: ${losses.join(", ")}` : name;
    this.slider.setAttribute("aria-valuetext", this.said.textContent);
  }

  /** Find the point of the curve of a moment, or the nearest one if the curve was thinned. */
  recordOf(moment) {
    if (!moment || !this.curve.length) return null;
    const away = this.curve.map(({ step }) => Math.abs(step - moment.step));
    return this.curve[away.indexOf(Math.min(...away))];
  }

  /** Play from here, or from the beginning where the end is shown. */
  play() {
    this.button.textContent = "Pause";
    const time = Math.min(MOMENT_TIME.most, Math.max(MOMENT_TIME.least, PLAY_TIME / this.moments.length));
    if (!this.moment) this.show(0);
    this.playing = setInterval(() => {
      this.show(Number(this.slider.value) + 1);
      if (!this.moment) this.pause();
    }, time);
  }

  pause() {
    clearInterval(this.playing);
    this.playing = null;
    this.button.textContent = "Play";
  }

  /** Go to what is nearest to a place in the plot, in pixels from its left. */
  goToPlace(at) {
    if (!this.curve.length) return;
    this.pause();
    const { x, end } = this.scales(this.plot.clientWidth);
    const away = [...this.moments.map(({ step }) => step), end].map((step) => Math.abs(x(step) - at));
    this.show(away.indexOf(Math.min(...away)));
  }

  // ---- the curve

  /** Make the two scales of a plot of this width: from a step and from a loss to pixels. To the right of the last
   * evaluation is room for the trained model, so that places in the plot are those of the slider. */
  scales(width) {
    const losses = this.curve.flatMap((record) => Object.keys(CURVES).map((name) => record[name]));
    const high = Math.max(...losses);
    const low = this.log ? Math.max(Math.min(...losses), high / 1e4, 1e-9) : 0;
    const span = this.log ? Math.log(Math.max(high / low, 1.01)) : Math.max(high, 1e-9);
    const part = (loss) => (this.log ? Math.log(Math.max(loss, low) / low) : loss) / span;
    const [first, last] = [this.curve[0].step, this.curve.at(-1).step];
    const end = last + Math.max(1, (last - first) / Math.max(1, this.moments.length - 1));
    return {
      low,
      high,
      first,
      last,
      end,
      x: (step) => PLOT.left + ((step - first) / (end - first)) * (width - PLOT.left - PLOT.right),
      y: (loss) => PLOT.height - PLOT.bottom - part(loss) * (PLOT.height - PLOT.top - PLOT.bottom),
    };
  }

  draw() {
    const width = this.plot.clientWidth;
    if (!width || !this.curve.length) return this.plot.replaceChildren();
    const scales = this.scales(width);
    const first = this.curve[0];
    const last = this.curve.at(-1);
    const words = Object.entries(CURVES).map(
      ([name, shown]) => `${shown} loss from ${first[name].toFixed(2)} to ${last[name].toFixed(2)}`,
    );
    const label = `Losses in ${last.step.toLocaleString("en")} steps of training: ${words.join(", ")}`;
    const drawing = makeSvg("svg", { role: "img", "aria-label": label, width, height: PLOT.height });
    this.drawAxes(drawing, width, scales);
    for (const name of Object.keys(CURVES)) {
      if (this.curve.length === 1) {
        drawing.append(makeSvg("circle", { class: name, cx: scales.x(first.step), cy: scales.y(first[name]), r: 4 }));
      }
      const points = this.curve.map((record) => [scales.x(record.step).toFixed(1), scales.y(record[name]).toFixed(1)]);
      drawing.append(makeSvg("polyline", { class: name, points: points.flat().join(" ") }));
    }
    this.drawMoment(drawing, scales);
    this.plot.replaceChildren(drawing);
  }

  drawAxes(drawing, width, { low, high, first, last, end, x, y }) {
    const [left, right, floor] = [PLOT.left, width - PLOT.right, PLOT.height - PLOT.bottom];
    const line = (name, x1, x2, y1, y2) => drawing.append(makeSvg("line", { class: name, x1, x2, y1, y2 }));
    const write = (text, x, y, anchor) => drawing.append(makeSvg("text", { x, y, "text-anchor": anchor }, text));
    for (const tick of this.log ? roundLogTicks(low, high) : roundTicks(0, high, 4)) {
      line("tick", left, right, y(tick), y(tick));
      write(`${Number(tick.toPrecision(2))}`, left - 6, y(tick) + 4, "end");
    }
    line("axis", left, right, floor, floor);
    const base = PLOT.height - 6;
    write(`step ${first.toLocaleString("en")}`, left, base, "start");
    write("now", right, base, "end");
    for (const tick of roundTicks(first, last, Math.max(2, Math.min(6, width / 110)))) {
      if (x(tick) > left + 90 && x(tick) < right - 55) write(tick.toLocaleString("en"), x(tick), base, "middle");
    }
  }

  /** Draw where in the curve the moment is; the trained model stands at its end. */
  drawMoment(drawing, { x, y, end }) {
    const record = this.recordOf(this.moment);
    const place = x(this.moment ? this.moment.step : end);
    const [top, floor] = [PLOT.top, PLOT.height - PLOT.bottom];
    drawing.append(makeSvg("line", { class: "moment", x1: place, x2: place, y1: top, y2: floor }));
    for (const name of record ? Object.keys(CURVES) : []) {
      drawing.append(makeSvg("circle", { class: name, cx: x(record.step), cy: y(record[name]), r: 4 }));
    }
  }
}
