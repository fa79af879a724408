// A tokenizer.json at work: text to token ids and back, as the library tokenizers does it. pretokenizer.js has the
// parts that come before the model.

const MAX_REMEMBERED = 10_000; // words whose subwords are not computed again
const MANY = 2 ** 26; // more than any id, and any place in a word

const ENDS_IN_WORD = new RegExp(`${RUST_WORD}$`, "v");
const STARTS_IN_WORD = new RegExp(`^${RUST_WORD}`, "v");
const IS_WHITE_SPACE = /^\p{White_Space}$/v;

// ---- models: functions that turn a word into ids

/** Return a function that looks words up. */
function wordLevel({ unk_token }, vocabulary) {
  return (word) => [vocabulary.get(word) ?? vocabulary.get(unk_token)];
}

/** Return a function that takes the longest known subword, again and again (Wu et al. 2016). */
function wordPiece({ unk_token, continuing_subword_prefix, max_input_chars_per_word }, vocabulary) {
  const unknown = [vocabulary.get(unk_token)];
  let longest = 0;
  for (const token of vocabulary.keys()) longest = Math.max(longest, token.length);
  return (word) => {
    const characters = [...word];
    if (characters.length > max_input_chars_per_word) return unknown;
    const subword = (start, end) => (start ? continuing_subword_prefix : "") + characters.slice(start, end).join("");
    const ids = [];
    for (let start = 0, end; start < characters.length; start = end) {
      end = Math.min(characters.length, start + longest);
      while (end > start && !vocabulary.has(subword(start, end))) end--;
      if (end === start) return unknown;
      ids.push(vocabulary.get(subword(start, end)));
    }
    return ids;
  };
}

/** A queue of numbers: the least comes first. */
class MergeQueue {
  items = [];

  push(item) {
    const { items } = this;
    let place = items.push(item) - 1;
    for (let parent; place && items[(parent = (place - 1) >> 1)] > item; place = parent) items[place] = items[parent];
    items[place] = item;
  }

  pop() {
    const { items } = this;
    const least = items[0];
    const item = items.pop();
    let place = 0;
    for (let child = 1; child < items.length; child = 2 * place + 1) {
      if (items[child + 1] < items[child]) child++;
      if (items[child] >= item) break;
      items[place] = items[child];
      place = child;
    }
    if (items.length) items[place] = item;
    return least;
  }
}

/** Return a function that merges the two neighbours that were merged first in training, again and again (Sennrich et
 * al. 2016). */
function bytePairEncoding(model, vocabulary) {
  const prefix = model.continuing_subword_prefix ?? "";
  const merges = model.merges.map(([left, right]) => vocabulary.get(left + right.slice(prefix.length))); // ids by rank
  const pairs = model.merges.map(([left, right]) => MANY * vocabulary.get(left) + vocabulary.get(right));
  const ranks = new Map(pairs.map((pair, rank) => [pair, rank]));
  const remembered = new Map();

  /** Merge all that can be merged among ids. A merge in the queue is its rank and the place of its left neighbour. */
  function merge(ids) {
    const next = ids.map((_, place) => place + 1);
    const previous = ids.map((_, place) => place - 1);
    const queue = new MergeQueue();
    const propose = (left) => {
      const rank = ranks.get(MANY * ids[left] + ids[next[left]]);
      if (rank !== undefined) queue.push(MANY * rank + left);
    };
    for (let place = 0; place < ids.length - 1; place++) propose(place);
    while (queue.items.length) {
      const best = queue.pop();
      const left = best % MANY;
      const right = next[left];
      const rank = Math.floor(best / MANY);
      if (ids[left] === null || right >= ids.length || ranks.get(MANY * ids[left] + ids[right]) !== rank) continue;
      ids[left] = merges[rank];
      ids[right] = null;
      next[left] = next[right];
      if (next[left] < ids.length) {
        previous[next[left]] = left;
        propose(left);
      }
      if (previous[left] >= 0) propose(previous[left]);
    }
    return ids.filter((id) => id !== null);
  }

  return (word) => {
    if (model.ignore_merges && vocabulary.has(word)) return [vocabulary.get(word)];
    let ids = remembered.get(word);
    if (!ids) {
      ids = merge(firstSymbols(word, model, vocabulary));
      if (remembered.size >= MAX_REMEMBERED) remembered.clear();
      remembered.set(word, ids);
    }
    return ids;
  };
}

/** Return the ids of a word's characters, of which byte pair encoding starts. */
function firstSymbols(word, { unk_token, continuing_subword_prefix, byte_fallback, fuse_unk }, vocabulary) {
  const ids = [];
  let unknown = false; // whether unknown characters wait for their id
  for (const [i, character] of [...word].entries()) {
    const symbol = (i && continuing_subword_prefix ? continuing_subword_prefix : "") + character;
    const id = vocabulary.get(symbol);
    if (id === undefined) {
      const bytes = byte_fallback ? Array.from(new TextEncoder().encode(symbol), byteToken) : [null];
      if (bytes.every((token) => vocabulary.has(token))) {
        ids.push(...bytes.map((token) => vocabulary.get(token)));
        continue;
      }
      if (unk_token === null) continue;
      if (unknown && !fuse_unk) ids.push(vocabulary.get(unk_token));
      unknown = true;
    } else {
      if (unknown) ids.push(vocabulary.get(unk_token));
      unknown = false;
      ids.push(id);
    }
  }
  if (unknown) ids.push(vocabulary.get(unk_token));
  return ids;
}

const byteToken = (byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;

const MODELS = { WordLevel: wordLevel, WordPiece: wordPiece, BPE: bytePairEncoding };

// ---- post-processors: functions that put special tokens around {ids, words}

/** Put ids of special tokens, which belong to no word, before and behind an encoding. */
const surround = (before, { ids, words, pieces }, behind) => ({
  pieces,
  ids: [...before, ...ids, ...behind],
  words: [...before.map(() => null), ...words, ...behind.map(() => null)],
});

/** Return a function that puts the tokens of a template around an encoding. */
function templateProcessing({ single, special_tokens }) {
  const at = single.findIndex((piece) => piece.Sequence);
  const idsOf = (pieces) => pieces.flatMap((piece) => special_tokens[piece.SpecialToken.id].ids);
  const before = idsOf(single.slice(0, at));
  const behind = idsOf(single.slice(at + 1));
  return (encoding) => surround(before, encoding, behind);
}

const POST_PROCESSORS = {
  TemplateProcessing: templateProcessing,
  BertProcessing: ({ cls, sep }) => (encoding) => surround([cls[1]], encoding, [sep[1]]),
  ByteLevel: () => (encoding) => encoding,
};

// ---- decoders: functions that change a list of tokens

/** Return the text of tokens whose characters are bytes; another token's bytes are those of its text. */
function decodeBytes(tokens) {
  const bytes = tokens.flatMap((token) => {
    const own = Array.from(token, (character) => BYTE_CHARACTERS.indexOf(character));
    return own.includes(-1) ? [...new TextEncoder().encode(token)] : own;
  });
  return [new TextDecoder("utf-8", { ignoreBOM: true }).decode(new Uint8Array(bytes))];
}

const WORDPIECE_CLEANUP = Object.entries({
  " .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " do not": " don't", " 's": "'s",
  " 've": "'ve", " 're": "'re",
}); // in this order

/** Return a function that puts spaces before the tokens that begin a word. */
function decodeWordPiece({ prefix, cleanup }) {
  return (tokens) =>
    tokens.map((token, i) => {
      let text = !i ? token : token.startsWith(prefix) ? token.slice(prefix.length) : ` ${token}`;
      for (const [from, to] of cleanup ? WORDPIECE_CLEANUP : []) text = text.replaceAll(from, to);
      return text;
    });
}

const DECODERS = {
  ByteLevel: () => decodeBytes,
  Fuse: () => (tokens) => [tokens.join("")],
  Replace: ({ pattern, content }) => {
    const expression = toRegExp(pattern);
    return (tokens) => tokens.map((token) => token.replace(expression, () => content));
  },
  Strip: ({ content }) => (tokens) => tokens.map((t) => (t.startsWith(content) ? t.slice(content.length) : t)),
  WordPiece: decodeWordPiece,
  Metaspace: ({ replacement, prepend_scheme }) => (tokens) =>
    tokens.map((t, i) => t.replaceAll(replacement, i || prepend_scheme === "never" ? " " : "")),
  BPEDecoder: ({ suffix }) => (tokens) =>
    tokens.map((t, i) => t.replaceAll(suffix, i < tokens.length - 1 ? " " : "")),
};

// ---- the whole

/** Show the tokens of an encoding. nameOf(id): as a token is shown by itself; unk: the id of the unknown one, which is
 * shown as [UNK: word]. */
function showTokensOf({ ids, words, pieces }, nameOf, unk) {
  return ids.map((id, i) => {
    const piece = id === unk && words[i] !== null ? pieces[words[i]] : "";
    const word = piece.replace(/[▁\p{Noncharacter_Code_Point}\p{Cc}]/gv, " ").trim();
    const name = nameOf(id);
    return word && word !== name ? name.replace(/[\]>]*$/v, (end) => `: ${word}${end}`) : name;
  });
}

/** Return true if a letter stands right before or right behind a part of a text. */
const isInWord = (text, start, end) =>
  ENDS_IN_WORD.test(text.slice(Math.max(0, start - 2), start)) || STARTS_IN_WORD.test(text.slice(end, end + 2));

/** Make functions of a part of tokenizer.json, which may be missing, or a sequence. */
const partsOf = (part, name, kinds) => (part?.[name] ?? (part ? [part] : [])).map((one) => kinds[one.type](one));

/** A tokenizer, from what Tokenizer.to_str() of the library writes. encodeSpecial: names of special tokens that stand
 * in a text are text. */
class Tokenizer {
  constructor(json, encodeSpecial) {
    this.encodeSpecial = encodeSpecial;
    this.normalizers = partsOf(json.normalizer, "normalizers", NORMALIZERS);
    this.preTokenizers = partsOf(json.pre_tokenizer, "pretokenizers", PRE_TOKENIZERS);
    this.postProcessors = partsOf(json.post_processor, "processors", POST_PROCESSORS);
    this.decoders = partsOf(json.decoder, "decoders", DECODERS);
    const vocabulary = new Map(Object.entries(json.model.vocab));
    this.tokenize = MODELS[json.model.type](json.model, vocabulary);
    this.tokens = new Map(Array.from(vocabulary, ([token, id]) => [id, token])); // by id
    this.added = [new Map(), new Map()]; // by their text as typed, and by it normalized
    for (const token of json.added_tokens) {
      const content = token.normalized ? this.normalize({ text: token.content }).text : token.content;
      this.added[Number(token.normalized)].set(content, token);
      this.tokens.set(token.id, content);
    }
    this.patterns = this.added.map((tokens) => {
      const longestFirst = [...tokens.keys()].sort((one, other) => other.length - one.length);
      const alternatives = longestFirst.map((token) => toRegExp({ String: token }).source);
      return alternatives.length ? new RegExp(alternatives.join("|"), "gv") : null;
    });
  }

  normalize(piece) {
    for (const change of this.normalizers) change(piece);
    return piece;
  }

  /** Cut added tokens out of a piece. which: 0 for those that stand in the text as typed, 1 in the normalized one. */
  cutAdded(piece, which) {
    if (!this.patterns[which]) return [piece];
    const { text } = piece;
    const pieces = [];
    let last = 0;
    const add = (start, end, ids) =>
      pieces.push({ text: text.slice(start, end), first: piece.first && start === 0, ids });
    for (const { index, 0: match } of text.matchAll(this.patterns[which])) {
      const token = this.added[which].get(match);
      let start = index;
      let end = index + match.length;
      if (token.special && this.encodeSpecial) continue;
      if (token.single_word && isInWord(text, start, end)) continue;
      if (token.lstrip) while (start > last && IS_WHITE_SPACE.test(text[start - 1])) start--;
      if (token.rstrip) while (IS_WHITE_SPACE.test(text[end])) end++;
      if (last < start) add(last, start, null);
      add(start, end, [token.id]);
      last = end;
    }
    if (last < text.length) add(last, text.length, null);
    return pieces;
  }

  /** Encode a text: the ids of its tokens; the word that each is a part of, numbered from 0, null for a token that
   * stands around the text; and the pieces of text that these words are. */
  encode(text) {
    const cut = (pieces, how) =>
      pieces.flatMap((piece) => (piece.ids ? [piece] : how(piece).filter((one) => one.text)));
    let pieces = [{ text: text.toWellFormed(), first: true, ids: null }];
    pieces = cut(pieces, (piece) => this.cutAdded(piece, 0));
    pieces = cut(pieces, (piece) => this.cutAdded(this.normalize(piece), 1));
    for (const how of this.preTokenizers) pieces = cut(pieces, how);
    const perWord = pieces.map((piece) => piece.ids ?? this.tokenize(piece.text));
    const words = perWord.flatMap((ids, word) => ids.map(() => word));
    const encoding = { ids: perWord.flat(), words, pieces: pieces.map((piece) => piece.text) };
    return this.postProcessors.reduce((sofar, process) => process(sofar), encoding);
  }

  /** Decode ids into a text, special tokens too; an id that there is not is left out. */
  decode(ids) {
    const tokens = ids.filter((id) => this.tokens.has(id)).map((id) => this.tokens.get(id));
    if (!this.decoders.length) return tokens.join(" ");
    return this.decoders.reduce((texts, change) => change(texts), tokens).join("");
  }
}
