// The state of the page: what is asked of the model, and what of the answer is looked at. The link holds all of it.

const METHODS = ["greedy", "beam", "sample"];
const KINDS = ["cross", "decoder", "encoder"];
const BOUNDS = { // of the settings of generation: least, most, whole numbers or not
  beam: [2, 10, true],
  penalty: [-5, 5, false],
  temperature: [0.05, 10, false],
  kept: [0, 100_000, true],
  mass: [0.01, 1, false],
  seed: [0, 999_999_999, true],
};

/** Return the state at first. layer and head: from 1, null for the mean; step: null where all is written; put: the
 * tokens that the output has to begin with, [{ id, own }], own if the reader chose it. */
function firstState({ text, layer, head }) {
  return {
    ...{ text, method: "greedy", beam: 4, penalty: 1, temperature: 1, kept: 0, mass: 1, seed: 0 },
    ...{ put: [], off: new Set(), kind: "cross", layer, head, form: "lines", step: null, matters: false },
  };
}

/** Name every part of a model that can be switched off, in the order of the chains and of the rows of the page. */
function switchable({ n_encoder_layers, n_decoder_layers, n_heads }) {
  const heads = (place) => Array.from({ length: n_heads }, (_, head) => `${place}.${head + 1}`);
  const numbers = (length) => Array.from({ length }, (_, layer) => layer + 1);
  const encoder = numbers(n_encoder_layers).flatMap((l) => [
    { name: `encoder.${l}`, label: `attention ${l}` },
    { name: `encoder-ff.${l}`, label: `feed-forward ${l}` },
  ]);
  const decoder = numbers(n_decoder_layers).flatMap((l) => [
    { name: `decoder.${l}`, label: `self-attention ${l}` },
    { name: `cross.${l}`, label: `cross-attention ${l}` },
    { name: `decoder-ff.${l}`, label: `feed-forward ${l}` },
  ]);
  const row = (kind, label, feedForward) => (l) => ({
    label: `${label} ${l}`,
    heads: heads(`${kind}.${l}`),
    parts: [`${kind}.${l}`, feedForward && `${feedForward}.${l}`],
  });
  return {
    chains: [
      { title: "Both", parts: [{ name: "positions", label: "positions" }] },
      { title: "Encoder", parts: encoder },
      { title: "Decoder", parts: [{ name: "causal", label: "causal mask" }, ...decoder] },
    ],
    rows: [
      ...numbers(n_encoder_layers).map(row("encoder", "encoder", "encoder-ff")),
      ...numbers(n_decoder_layers).flatMap((l) => [
        row("decoder", "decoder", "decoder-ff")(l),
        row("cross", "cross-attention", null)(l),
      ]),
    ],
  };
}

/** Return all names of a model's parts. */
function namesOf({ chains, rows }) {
  return [...chains.flatMap(({ parts }) => parts.map(({ name }) => name)), ...rows.flatMap(({ heads }) => heads)];
}

/** Bring a number within the bounds of a setting; null if it is none. */
function within(name, text) {
  const [least, most, whole] = BOUNDS[name];
  const number = text.trim() === "" ? NaN : Number(text);
  if (Number.isNaN(number)) return null;
  const bounded = Math.min(most, Math.max(least, number));
  return whole ? Math.round(bounded) : bounded;
}

/** Write the state as the strings of a link. What every page begins with is left out; what a page is made for, its text
 * and its head, is not. */
function toLink(state, first) {
  const plain = ["text", "method", ...Object.keys(BOUNDS), "kind", "form"];
  const strings = (one) => ({
    ...Object.fromEntries(plain.map((key) => [key, `${one[key]}`])),
    ...{ layer: `${one.layer ?? "mean"}`, head: `${one.head ?? "mean"}`, step: `${one.step ?? ""}` },
    put: one.put.map(({ id, own }) => `${own ? "~" : ""}${id}`).join("."),
    off: [...one.off].join(),
    matters: one.matters ? "1" : "",
  });
  const isOfPage = (key) => ["text", "layer", "head"].includes(key);
  const [now, before] = [strings(state), strings(first)];
  return Object.fromEntries(Object.entries(now).filter(([key, value]) => isOfPage(key) || value !== before[key]));
}

/** Read the strings of a link; what makes no sense is as at first. names: of the parts; isToken(id). */
function fromLink(values, first, names, isToken) {
  const among = (key, all) => (all.includes(values[key]) ? values[key] : first[key]);
  const count = (key) => (/^[1-9]\d{0,5}$/.test(values[key]) ? Number(values[key]) : first[key]);
  const place = (key) => (values[key] === "mean" ? null : count(key));
  const settings = Object.keys(BOUNDS).map((key) => [key, within(key, values[key] ?? "") ?? first[key]]);
  const tokens = (values.put ?? "").split(".").map((one) => /^(~?)(\d{1,9})$/.exec(one));
  const put = tokens.map((found) => found && { id: Number(found[2]), own: found[1] === "~" });
  return {
    ...first,
    ...Object.fromEntries(settings),
    ...{ text: values.text ?? first.text, method: among("method", METHODS), kind: among("kind", KINDS) },
    ...{ form: among("form", ["lines", "table"]), layer: place("layer"), head: place("head"), step: count("step") },
    put: put.every((one) => one && isToken(one.id)) ? put : [],
    off: new Set((values.off ?? "").split(",").filter((name) => names.includes(name))),
    matters: values.matters === "1",
  };
}
