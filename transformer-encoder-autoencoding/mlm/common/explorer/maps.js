// The data of one kind of attention.

/** The attention of every head, and its means: behind the last layer and the last head stand the means over them. */
class AttentionMaps {
  /**
   * weights: Float32Array (layers, heads, from, to), one behind the other; from, to: the words of the rows and of the
   * columns; causal: no row attends to a later column; grows: the rows are written one after the other.
   */
  constructor({ weights, layers, heads, from, to, causal = false, grows = false }) {
    Object.assign(this, { layers, heads, from, to, causal, grows });
    this.size = from.length * to.length;
    this.weights = this.withMeans(weights);
    this.bits = new Map();
  }

  /** Join what the model gives: a Float32Array (heads, from, to) for each layer. */
  static ofLayers(perLayer, heads, rest) {
    const weights = new Float32Array(perLayer.length * perLayer[0].length);
    perLayer.forEach((layer, i) => weights.set(layer, i * layer.length));
    return new AttentionMaps({ weights, layers: perLayer.length, heads, ...rest });
  }

  /** Unpack whole thousandths of two bytes, the lower first, in base64. rest: as for the constructor. */
  static ofThousandths(base64, rest) {
    const bytes = fromBase64(base64);
    const pairs = new DataView(bytes.buffer);
    const weights = Float32Array.from({ length: bytes.length / 2 }, (_, i) => pairs.getUint16(2 * i, true) / 1000);
    return new AttentionMaps({ weights, ...rest });
  }

  /** Put the means behind: (layers, heads, from, to) -> (layers + 1, heads + 1, from, to). */
  withMeans(weights) {
    const { layers, heads, size } = this;
    const all = new Float32Array((layers + 1) * (heads + 1) * size);
    const start = (layer, head) => (layer * (heads + 1) + head) * size;
    for (let layer = 0; layer < layers; layer++) {
      for (let head = 0; head < heads; head++) {
        const map = weights.subarray((layer * heads + head) * size, (layer * heads + head + 1) * size);
        all.set(map, start(layer, head));
        for (const [mean, part] of [
          [start(layer, heads), 1 / heads],
          [start(layers, head), 1 / layers],
          [start(layers, heads), 1 / heads / layers],
        ]) {
          for (let i = 0; i < size; i++) all[mean + i] += part * map[i];
        }
      }
    }
    return all;
  }

  /** How much the word of a row attends to the word of a column, in a head, from 0: a number from 0 to 1. */
  weight(layer, head, row, column) {
    const map = layer * (this.heads + 1) + head;
    return Math.min(1, this.weights[map * this.size + row * this.to.length + column]);
  }

  /** The entropy of a head in bits, the mean over its rows. */
  entropy(layer, head) {
    const map = layer * (this.heads + 1) + head;
    if (!this.bits.has(map)) {
      let sum = 0;
      for (const w of this.weights.subarray(map * this.size, (map + 1) * this.size)) if (w > 0) sum -= w * Math.log2(w);
      this.bits.set(map, Math.max(0, sum / this.from.length));
    }
    return this.bits.get(map);
  }

  /** The entropy of looking at all alike, in bits, the mean over the rows. */
  mostBits() {
    const bits = this.from.map((_, row) => Math.log2(this.causal ? row + 1 : this.to.length));
    return bits.reduce((sum, one) => sum + one, 0) / bits.length;
  }

  /** Whether a row may attend to a column. */
  allowed(row, column) {
    return !this.causal || column <= row;
  }

  nameOf(layer, head) {
    const ofLayer = layer === this.layers ? "mean of all layers" : `layer ${layer + 1}`;
    return `${ofLayer}, ${head === this.heads ? "mean of all heads" : `head ${head + 1}`}`;
  }
}
