// What the model files take from PyTorch, over Float32Array: a matrix lies in memory row after row.

// ---- numbers from text

/** Decode base64 -> Uint8Array. */
function fromBase64(text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

/** Read numbers in half precision (IEEE 754 binary16), the lower byte first: bytes (2 n) -> Float32Array (n).
 *
 * A sign, e (5 bits) and f (10 bits) are (1024 + f) 2^(e - 25), or f 2^-24 if e is 0. */
function fromHalves(bytes) {
  const values = Float32Array.from({ length: 2 ** 16 }, (_, half) => {
    const [sign, e, f] = [half >> 15 ? -1 : 1, (half >> 10) & 31, half & 1023];
    return sign * (e ? (1024 + f) * 2 ** (e - 25) : f * 2 ** -24);
  });
  const numbers = new Float32Array(bytes.length / 2);
  for (let i = 0; i < numbers.length; i++) numbers[i] = values[bytes[2 * i] | (bytes[2 * i + 1] << 8)];
  return numbers;
}

/** Unpack what pack_model of web_page.py has packed -> Map of a tensor's name to its numbers. */
function unpackModel({ names, data }) {
  const numbers = fromHalves(fromBase64(data));
  let start = 0;
  return new Map(
    names.map(([name, shape]) => {
      const size = shape.reduce((product, length) => product * length, 1);
      return [name, numbers.subarray(start, (start += size))];
    }),
  );
}

// ---- layers

/** Compute x W^T + b, as torch.nn.functional.linear: x (..., I), weight (O, I), bias (O) -> (..., O).
 *
 * Several sums grow at a time, so that a number that is read serves them all: of four rows of x by two of the weight,
 * or of one row by four if there are few. At the end of the rows some are computed twice. Numbers are widened
 * beforehand: JavaScript calculates in double precision. */
function linear(x, weight, bias) {
  const O = bias.length;
  const I = weight.length / O;
  const R = x.length / I;
  const y = new Float32Array(R * O);
  const wide = new Float64Array(x);
  if (R < 4) {
    for (let r = 0; r < R; r++) for (let o = 0; o < O; o += 4) oneByFour(wide, r, weight, o, bias, y);
    return y;
  }
  const pair = new Float64Array(2 * I);
  for (let o = 0; o < O; o += 2) {
    pair.set(weight.subarray(o * I, (o + 2) * I));
    for (let r = 0; r < R; r += 4) fourByTwo(wide, Math.min(r, R - 4), pair, o, bias, y);
  }
  return y;
}

/** Fill row r and columns o to o + 3 of y (R, O), from x (R, I) and weight (O, I). */
function oneByFour(x, r, weight, o, bias, y) {
  const O = bias.length;
  const I = weight.length / O;
  const o1 = Math.min(o + 1, O - 1);
  const o2 = Math.min(o + 2, O - 1);
  const o3 = Math.min(o + 3, O - 1);
  const start = r * I;
  const [j, j1, j2, j3] = [o * I, o1 * I, o2 * I, o3 * I];
  let [sum, sum1, sum2, sum3] = [0, 0, 0, 0];
  for (let i = 0; i < I; i++) {
    const value = x[start + i];
    sum += value * weight[j + i];
    sum1 += value * weight[j1 + i];
    sum2 += value * weight[j2 + i];
    sum3 += value * weight[j3 + i];
  }
  y[r * O + o] = sum + bias[o];
  y[r * O + o1] = sum1 + bias[o1];
  y[r * O + o2] = sum2 + bias[o2];
  y[r * O + o3] = sum3 + bias[o3];
}

/** Fill rows r to r + 3 and columns o and o + 1 of y (R, O), from x (R, I) and the weight's rows o and o + 1, pair
 * (2, I). */
function fourByTwo(x, r, pair, o, bias, y) {
  const O = bias.length;
  const I = pair.length / 2;
  const [a, b, c, d] = [r * I, (r + 1) * I, (r + 2) * I, (r + 3) * I];
  let [au, bu, cu, du, av, bv, cv, dv] = [0, 0, 0, 0, 0, 0, 0, 0];
  for (let i = 0; i < I; i++) {
    const u = pair[i];
    const v = pair[I + i];
    let value = x[a + i];
    au += value * u;
    av += value * v;
    value = x[b + i];
    bu += value * u;
    bv += value * v;
    value = x[c + i];
    cu += value * u;
    cv += value * v;
    value = x[d + i];
    du += value * u;
    dv += value * v;
  }
  const at = r * O + o;
  y[at] = au + bias[o];
  y[at + O] = bu + bias[o];
  y[at + 2 * O] = cu + bias[o];
  y[at + 3 * O] = du + bias[o];
  if (o + 1 === O) return; // an odd number of columns
  y[at + 1] = av + bias[o + 1];
  y[at + O + 1] = bv + bias[o + 1];
  y[at + 2 * O + 1] = cv + bias[o + 1];
  y[at + 3 * O + 1] = dv + bias[o + 1];
}

/** Multiply n numbers of x from i on by those of y from j on, and sum up. */
function dot(x, i, y, j, n) {
  let [a, b, c, d] = [0, 0, 0, 0];
  let k = 0;
  for (; k + 3 < n; k += 4) {
    a += x[i + k] * y[j + k];
    b += x[i + k + 1] * y[j + k + 1];
    c += x[i + k + 2] * y[j + k + 2];
    d += x[i + k + 3] * y[j + k + 3];
  }
  for (; k < n; k++) a += x[i + k] * y[j + k];
  return a + b + c + d;
}

/** Make a torch.nn.Linear of its weights, `name`.weight and `name`.bias: a function of x (..., I) -> (..., O). */
function linearOf(weights, name) {
  const [weight, bias] = [weights.get(`${name}.weight`), weights.get(`${name}.bias`)];
  return (x) => linear(x, weight, bias);
}

/** Make a torch.nn.LayerNorm of its weights: a function of x (..., D) -> (..., D). */
function layerNormOf(weights, name, eps) {
  const [weight, bias] = [weights.get(`${name}.weight`), weights.get(`${name}.bias`)];
  return (x) => layerNorm(x, weight, bias, eps);
}

/** Normalize every row: x (..., D), weight and bias (D) -> (..., D).
 *
 * LayerNorm(x) = (x - mean) / sqrt(variance + eps) * weight + bias */
function layerNorm(x, weight, bias, eps) {
  const D = weight.length;
  const y = new Float32Array(x.length);
  for (let start = 0; start < x.length; start += D) {
    let [mean, variance] = [0, 0];
    for (let i = 0; i < D; i++) mean += x[start + i] / D;
    for (let i = 0; i < D; i++) variance += (x[start + i] - mean) ** 2 / D;
    const scale = 1 / Math.sqrt(variance + eps);
    for (let i = 0; i < D; i++) y[start + i] = (x[start + i] - mean) * scale * weight[i] + bias[i];
  }
  return y;
}

/** Add two arrays of one shape. */
const add = (x, y) => x.map((value, i) => value + y[i]);

const relu = (x) => x.map((value) => Math.max(0, value));

/** swish(x) = x / (1 + exp(-x)) */
const swish = (x) => x.map((value) => value / (1 + Math.exp(-value)));

/** GELU(x) = x / 2 (1 + erf(x / sqrt(2))) */
const gelu = (x) => x.map((value) => (value / 2) * (1 + erf(value * Math.SQRT1_2)));

/** Approximate the error function to 3e-8, by a quotient of polynomials in x^2 fitted to it from -4 to 4. */
function erf(x) {
  const y = Math.min(4, Math.max(-4, x));
  const s = y * y;
  const above = ((((1.98113924e-6 * s + 2.86682539e-4) * s + 3.95280326e-3) * s + 0.0533115541) * s + 0.195091425) * s;
  const below = ((((3.74746534e-5 * s + 1.2035916e-3) * s + 0.0153434524) * s + 0.115995003) * s + 0.506226925) * s;
  return (y * (above + 1.12837903)) / (below + 1);
}

// ---- attention

/** Compute scaled dot-product attention (Vaswani et al. 2017, section 3.2.1, equation 1) in every head.
 *
 *     Attention(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V
 *
 * q (T, D), k and v (S, D), where the D = H K columns are those of head 1, then those of head 2, ... -> heads, the
 * attended values side by side (T, D), and weights (H, T, S), whose rows sum to 1. causal: the T positions are the last
 * of the S, and each sees itself and those before it; else all. */
function attention(q, k, v, D, H, causal) {
  const [T, S, K] = [q.length / D, k.length / D, D / H];
  const heads = new Float32Array(T * D);
  const weights = new Float32Array(H * T * S);
  for (let h = 0; h < H; h++) {
    for (let t = 0; t < T; t++) {
      const row = weights.subarray((h * T + t) * S, (h * T + t + 1) * S);
      const seen = causal ? S - T + t + 1 : S;
      for (let s = 0; s < seen; s++) row[s] = dot(q, t * D + h * K, k, s * D + h * K, K) / Math.sqrt(K);
      row.set(softmax(row.subarray(0, seen)));
      const head = heads.subarray(t * D + h * K, t * D + (h + 1) * K);
      for (let s = 0; s < seen; s++) {
        for (let i = 0; i < K; i++) head[i] += row[s] * v[s * D + h * K + i];
      }
    }
  }
  return { heads, weights };
}

/** Set the heads that are off to 0: heads (T, D), whose columns are those of head 1, then those of head 2, ...; isOff:
 * a function of a head's number, from 1. */
function clearHeads(heads, D, H, isOff) {
  const K = D / H;
  for (let h = 0; h < H; h++) {
    if (isOff(h + 1)) for (let start = h * K; start < heads.length; start += D) heads.fill(0, start, start + K);
  }
}

/** Take columns start to end - 1 of every row of x (..., width) -> (..., end - start). */
function columns(x, width, start, end) {
  const y = new Float32Array((x.length / width) * (end - start));
  for (let r = 0; r * width < x.length; r++) {
    y.set(x.subarray(r * width + start, r * width + end), r * (end - start));
  }
  return y;
}

// ---- from logits to tokens

/** Turn logits into probabilities: exp(x) / sum of exp(x). A logit of -Infinity gets 0. */
function softmax(x) {
  const y = new Float32Array(x.length);
  const largest = maximum(x);
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += y[i] = Math.exp(x[i] - largest);
  for (let i = 0; i < x.length; i++) y[i] /= sum;
  return y;
}

/** Turn logits into log-probabilities, in nats: x - log(sum of exp(x)). */
function logSoftmax(x) {
  const largest = maximum(x);
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += Math.exp(x[i] - largest);
  const total = largest + Math.log(sum);
  return x.map((value) => value - total);
}

/** Find the largest of an array's numbers. */
function maximum(x) {
  let largest = -Infinity;
  for (let i = 0; i < x.length; i++) if (x[i] > largest) largest = x[i];
  return largest;
}

/** Find the indices of the k largest numbers, the largest first; of equal ones the first. */
function topK(x, k) {
  const least = x.slice().sort()[Math.max(0, x.length - k)]; // a typed array sorts fast
  const indices = [];
  for (let i = 0; i < x.length; i++) if (x[i] >= least) indices.push(i);
  return indices.sort((i, j) => x[j] - x[i] || i - j).slice(0, k);
}
