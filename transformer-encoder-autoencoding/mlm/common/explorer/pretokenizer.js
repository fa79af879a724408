// What a text goes through before the model of a tokenizer.json: normalizers change it, pre-tokenizers cut it into
// words. Each part of the file becomes a function; the parts are those that tokenizer_json.py accepts, and they do
// what the library tokenizers does.
//
// A piece of the text on its way: { text, first, ids }. first: it begins where the text as typed begins; ids: of an
// added token, such as [MASK], which nothing changes any more; else null.

// What Oniguruma means by these. A hyphen stands for itself in all patterns, and always between brackets.
const ONIGURUMA = {
  "\\w": "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]",
  "\\s": "\\p{White_Space}",
  "\\S": "\\P{White_Space}",
  "\\p{Han}": "\\p{Script=Han}",
  "-": "\\-",
};
const LONE_WORD = "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}²³¹¼½¾]"; // \w that stands between no brackets
const RUST_WORD = "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]"; // \w of Rust's regular expressions
const WORD_OR_MARKS = new RegExp(`${RUST_WORD}+|[^${RUST_WORD}\\p{White_Space}]+`, "gv");
const GPT2_WORD = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const WHITE_SPACE = /\p{White_Space}/gv;
const PUNCTUATION = /[\p{P}!-\/:-@\[-`\{-~]/gv;
const CONTROL = /[[\p{Cc}\p{Cf}\p{Co}\ufffd]--[\t\n\r]]/gv;
const BERT_IDEOGRAPH = new RegExp(
  "[\\u4e00-\\u9fff\\u3400-\\u4dbf\\uf900-\\ufaff" +
    "\\u{20000}-\\u{2a6df}\\u{2a700}-\\u{2b81f}\\u{2b920}-\\u{2ceaf}\\u{2f800}-\\u{2fa1f}]",
  "gv",
);

/** Translate a pattern of tokenizer.json, {Regex: one of Oniguruma's} or {String: literal text}, into JavaScript's. */
function toRegExp({ Regex, String: literal }) {
  if (literal !== undefined) return new RegExp(literal.replace(/[\\^$.*+?()\[\]\{\}\|]/g, "\\$&"), "gv");
  let depth = 0;
  const translate = (part) => {
    depth += (part === "[") - (part === "]");
    return part === "\\w" && !depth ? LONE_WORD : (ONIGURUMA[part] ?? part);
  };
  return new RegExp(Regex.replace(/\\[wsS]|\\p\{Han\}|[\[\]\-]/gv, translate), "gv");
}

// ---- normalizers: functions that change a piece

/** Replace what matches in a piece. The beginning that is taken away is not where the typed text began. */
function substitute(piece, pattern, content) {
  const [match] = piece.text.matchAll(pattern);
  if (match?.index === 0 && [...match[0]].length > (content ? 1 : 0)) piece.first = false;
  piece.text = piece.text.replace(pattern, () => content);
}

const compose = (form) => () => (piece) => {
  piece.text = piece.text.normalize(form);
};

/** Make a piece lower case, each character for itself: a capital sigma at the end of a word is as any other. */
const lowercase = (piece) => {
  piece.text = Array.from(piece.text, (character) => character.toLowerCase()).join("");
};

/** Normalize as BERT does. */
function bertNormalizer({ clean_text, handle_chinese_chars, strip_accents, lowercase: lower }) {
  return (piece) => {
    if (clean_text) {
      substitute(piece, CONTROL, "");
      substitute(piece, WHITE_SPACE, " ");
    }
    if (handle_chinese_chars) piece.text = piece.text.replace(BERT_IDEOGRAPH, " $& ");
    if (strip_accents ?? lower) {
      piece.text = piece.text.normalize("NFD");
      substitute(piece, /\p{Mn}/gv, "");
    }
    if (lower) lowercase(piece);
  };
}

const NORMALIZERS = {
  NFC: compose("NFC"),
  NFD: compose("NFD"),
  NFKC: compose("NFKC"),
  NFKD: compose("NFKD"),
  Lowercase: () => lowercase,
  Strip: ({ strip_left, strip_right }) => (piece) => {
    if (strip_left) substitute(piece, /^\p{White_Space}+/gv, "");
    if (strip_right) substitute(piece, /(?<!\p{White_Space})\p{White_Space}+$/gv, "");
  },
  StripAccents: () => (piece) => substitute(piece, /\p{M}/gv, ""),
  BertNormalizer: bertNormalizer,
  Replace: ({ pattern, content }) => {
    const expression = toRegExp(pattern);
    return (piece) => substitute(piece, expression, content);
  },
};

// ---- pre-tokenizers: functions that cut a piece into several

/** Cut a text where a pattern matches: {start, end, match} of the matches and of what stands between them. */
function spans(text, pattern) {
  const found = [];
  let last = 0;
  for (const { index: start, 0: match } of text.matchAll(pattern)) {
    const end = start + match.length;
    if (start > last) found.push({ start: last, end: start, match: false });
    found.push({ start, end, match: true });
    last = end;
  }
  if (last < text.length) found.push({ start: last, end: text.length, match: false });
  return found;
}

/** Join each span with the one before it where that is wanted of a match, or not, behind a match, or not. */
function joinSpans(found, wanted) {
  const joined = [];
  let previous = false;
  for (const { start, end, match } of found) {
    const last = joined.at(-1);
    if (last && wanted(match, previous)) {
      last.start = Math.min(last.start, start);
      last.end = Math.max(last.end, end);
    } else joined.push({ start, end });
    previous = match;
  }
  return joined;
}

const BEHAVIORS = {
  Isolated: (found) => found,
  Removed: (found) => found.filter((span) => !span.match),
  Contiguous: (found) => joinSpans(found, (match, previous) => match === previous),
  MergedWithPrevious: (found) => joinSpans(found, (match, previous) => match && !previous),
  MergedWithNext: (found) => joinSpans(found.reverse(), (match, previous) => match && !previous).reverse(),
};

/** Return a function that cuts a piece where a pattern matches, or, inverted, where it does not. */
function splitter(pattern, behavior, invert = false) {
  return (piece) => {
    const found = spans(piece.text, pattern);
    for (const span of found) span.match = span.match !== invert;
    return BEHAVIORS[behavior](found).map(({ start, end }) => ({
      text: piece.text.slice(start, end),
      first: piece.first && start === 0,
      ids: null,
    }));
  };
}

/** Return a function that makes a sign of every space, one before the text, and cuts before each. */
function metaspace({ replacement, prepend_scheme, split }) {
  const cut = splitter(toRegExp({ String: replacement }), "MergedWithNext");
  return (piece) => {
    const wanted = prepend_scheme === "always" || (prepend_scheme === "first" && piece.first);
    piece.text = piece.text.replaceAll(" ", () => replacement);
    if (wanted && !piece.text.startsWith(replacement)) piece.text = replacement + piece.text;
    return split ? cut(piece) : [piece];
  };
}

// The character that stands for each byte in the vocabulary of byte pair encoding (GPT-2): a visible one for itself,
// the others from 256 on.
let hiddenBytes = 0;
const BYTE_CHARACTERS = Array.from({ length: 256 }, (_, byte) =>
  String.fromCharCode(/[!-~\xa1-\xac\xae-\xff]/.test(String.fromCharCode(byte)) ? byte : 256 + hiddenBytes++),
);

/** Return a function that cuts a piece into words as GPT-2 does, if wanted, and writes each as its bytes. */
function byteLevel({ add_prefix_space, use_regex }) {
  const cut = use_regex ? splitter(toRegExp({ Regex: GPT2_WORD }), "Isolated") : (piece) => [piece];
  const encoder = new TextEncoder();
  return (piece) => {
    if (add_prefix_space && !piece.text.startsWith(" ")) piece.text = ` ${piece.text}`;
    const pieces = cut(piece);
    for (const one of pieces) one.text = Array.from(encoder.encode(one.text), (byte) => BYTE_CHARACTERS[byte]).join("");
    return pieces;
  };
}

/** Cut a piece at white space, then around every punctuation mark. */
const bertPreTokenizer = (piece) => splitter(WHITE_SPACE, "Removed")(piece).flatMap(splitter(PUNCTUATION, "Isolated"));

const PRE_TOKENIZERS = {
  BertPreTokenizer: () => bertPreTokenizer,
  Whitespace: () => splitter(WORD_OR_MARKS, "Removed", true),
  WhitespaceSplit: () => splitter(WHITE_SPACE, "Removed"),
  Punctuation: ({ behavior }) => splitter(PUNCTUATION, behavior),
  Digits: ({ individual_digits }) => splitter(/\p{N}/gv, individual_digits ? "Isolated" : "Contiguous"),
  ByteLevel: byteLevel,
  Metaspace: metaspace,
  Split: ({ pattern, behavior, invert }) => splitter(toRegExp(pattern), behavior, invert),
};
