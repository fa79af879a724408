// The logit lens: what each layer's output would predict, if it were the last.

/** A table of layers and their likeliest words at one place. */
class Lens {
  /** element: an empty one. */
  constructor(element) {
    this.last = null; // what is shown
    this.table = make("table", "lens", "", { "aria-label": "The likeliest words after each layer" });
    element.append(makeOf("div", "scroll", this.table));
  }

  /** Show rows, the first layer first: [{ name: "layer 1", best: [{ id, token, probability }, ...] }, ...]. answer: the
   * id of the token to mark wherever it appears. */
  show(rows, answer = null) {
    this.last = [rows, answer];
    const ranks = Array.from({ length: Math.max(0, ...rows.map(({ best }) => best.length)) }, (_, i) =>
      make("th", "", `${i + 1}`, { scope: "col", "aria-label": `likeliest, ${i + 1}` }),
    );
    const head = makeOf("tr", "", make("td"), ...ranks);
    const lines = rows.map(({ name, best }) => {
      const cells = best.map(({ id, token, probability }) => {
        const cell = makeOf("td", id === answer ? "right" : "", make("bdi", "", token, { title: token }), " ");
        cell.append(make("span", "figure", percent(probability)));
        const rgb = shade(probability);
        cell.style.setProperty("--ground", css(rgb));
        cell.style.setProperty("--ink", inkOn(rgb));
        return cell;
      });
      return makeOf("tr", "", make("th", "", name, { scope: "row" }), ...cells);
    });
    this.table.replaceChildren(makeOf("thead", "", head), makeOf("tbody", "", ...lines));
  }

  /** Show the same in the colours of another theme. */
  paint() {
    if (this.last) this.show(...this.last);
  }
}
