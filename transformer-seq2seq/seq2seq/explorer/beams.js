// The beams as they compete: a column for each step, its hypotheses below each other, the best on top, and lines from
// each to those that extend it.

const [BEAM_WIDTH, BEAM_HEIGHT, BEAM_GAP] = [112, 44, 30]; // of a hypothesis and between two steps, in CSS pixels

/** The hypotheses of beam search, drawn in an element. */
class Beams {
  constructor(element) {
    this.element = element;
  }

  /** Show the steps that generate returned, up to a step, with the path of the output that won, and all that finished;
   * at the last step of that output all, as the others may have gone on. live names tokens and writes texts. */
  show(reading, step, live) {
    if (reading === this.shown?.reading && step === this.shown.step) return;
    this.shown = { reading, step };
    const { found, steps } = reading;
    const winners = new Set(found[0].path);
    const shown = step < reading.output.length ? steps.slice(0, step) : steps;
    const columns = shown.map((all) => all.filter(({ fate }) => fate !== "dropped"));
    const place = new Map(columns.flatMap((column, x) => column.map((one, y) => [one, [x, y]])));
    const rows = Math.max(...columns.map((column) => column.length));
    const [width, height] = [columns.length * (BEAM_WIDTH + BEAM_GAP) - BEAM_GAP, rows * BEAM_HEIGHT];
    const lines = makeSvg("svg", { width, height, "aria-hidden": true });
    const cells = [];
    for (const [one, [x, y]] of place) {
      const won = winners.has(one);
      if (place.has(one.parent)) lines[won ? "append" : "prepend"](this.line(place.get(one.parent), [x, y], won));
      cells.push(this.cell(one, [x, y], won, live));
    }
    const field = make("div", "beams");
    field.style.setProperty("width", `${width}px`);
    field.style.setProperty("height", `${height}px`);
    field.append(lines, ...cells);
    const label = "The hypotheses at each step";
    const frame = make("div", "scroll", "", { tabindex: 0, role: "group", "aria-label": label });
    frame.append(field);
    const isFocused = this.element.contains(document.activeElement);
    this.element.replaceChildren(frame, this.ranking(found, live));
    if (isFocused) frame.focus({ preventScroll: true });
    frame.scrollLeft = width;
  }

  cell(one, [x, y], won, live) {
    const title = live.write(one.path.map(({ token }) => token));
    const cell = make("div", `beam ${one.fate}${won ? " won" : ""}`, "", { title });
    cell.append(make("bdi", "", live.nameOf(one.token)), make("span", "", nats(one.logProbability)));
    cell.style.setProperty("left", `${x * (BEAM_WIDTH + BEAM_GAP)}px`);
    cell.style.setProperty("top", `${y * BEAM_HEIGHT}px`);
    return cell;
  }

  line([fromX, fromY], [x, y], won) {
    const start = fromX * (BEAM_WIDTH + BEAM_GAP) + BEAM_WIDTH;
    const [end, middle] = [x * (BEAM_WIDTH + BEAM_GAP), start + BEAM_GAP / 2];
    const [from, to] = [fromY, y].map((row) => row * BEAM_HEIGHT + (BEAM_HEIGHT - 8) / 2);
    const d = `M${start} ${from}C${middle} ${from} ${middle} ${to} ${end} ${to}`;
    return makeSvg("path", { class: won ? "won" : "", d });
  }

  /** List the outputs that finished, best first. */
  ranking(found, live) {
    const list = make("ol", "ranking");
    for (const { ids, logProbability, score } of found) {
      const line = make("li");
      const figures = `log p ${nats(logProbability)}, ranked by ${nats(score, 3)}`;
      line.append(make("bdi", "", live.show(ids)), make("span", "figure", figures));
      list.append(line);
    }
    return list;
  }
}
