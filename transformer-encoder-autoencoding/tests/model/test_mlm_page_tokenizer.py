"""The tokenizer that runs in the page, JavaScript in a headless Chromium, gives the ids, words and texts of the
library's, whatever stands in a text, and whatever parts a tokenizer.json has."""

import contextlib
import json
import random
import unicodedata

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordPieceTrainer

from mlm import bert_tokenizer
from mlm.common import page_data, tokenizer_json
from mlm.common.errors import InputError
from mlm.tokenizer import CLS, MASK, OLD_TOKEN, PATTERNS, SEP, SPECIAL_TOKENS, UNK, train_tokenizer

N_TEXTS = 500
# Library and browser know other versions of Unicode, parts of the library versions of their own. So the texts have any
# characters of Unicode 3.2, and of later versions those that all of them take for the same.
KNOWN: dict[int, list[str]] = {}  # by their row of 256
CHANGED = "\u166d\u1734\u1885\u1886"  # marks or not, as the version has it
for code in range(0x30000):
    if unicodedata.ucd_3_2_0.category(chr(code)) not in ("Cn", "Co", "Cs") and chr(code) not in CHANGED:
        KNOWN.setdefault(code // 256, []).append(chr(code))
LATER = "🫩🫨🛜🏳️‍🌈👩🏽‍🚀\u1c89\ua7cb\U00010d4a\U00011f04\U00031350𞤀𐓐₿ẞ\u0616\u16f1"
SCRIPTS = [
    "abcdeXYZ0129",
    ".,!?'’\"()-–…_/$^*+[]{}|\\",
    " \t\n\r\u00a0\u3000\u2028\u2029\u0085\x1c\u1680",
    "\u00ad\u200b\u200c\u200d\u2060\ufeff\u202e\u180e",
    "\x00\x07\x1b\x7f\x9f\ufffd\ufffe\ufdd0\ufdd1\ue000",
    "éñçßſİıΣςÅKΩﬁ½²³¹Ⅷ",
    "ea\u0301\u0308\u0327\u0323\u0344\u0340",
    "北京東㐀𠀀豈々〇の",
    "한국어\u1112\u1161\u11ab\u3147",
    "ภาษาไทยสวัสดี",
    "של\u05b8ום\u202bم\u064eرحبا٣",
    "हिन्दीक\u093c\u095cक्ष",
    "👩👧\u200d🏽🇫🇷☕\ufe0f🦊❤",
    LATER,
]
SIGNS = [*SPECIAL_TOKENS, "[MASK", "mask]", "##", "a-b", "don't", "'s", " - ", "  "]
WORDS = ["the", "cat's", "small", "fox,", "a", "café", "(so)", "says:", "don’t!", "naïve", "x²", "e\u0301t\u00e9"]
WORDS += ["北京", "한국어", "שלום", "हिन्दी", "می\u200cخواهم", "👩\u200d👧"]

RUN = """([content, encodeSpecial, texts]) => {
    const tokenizer = new Tokenizer(JSON.parse(content), encodeSpecial);
    return texts.map((text) => {
        const { ids, words } = tokenizer.encode(text);
        return [ids, words, tokenizer.decode(ids)];
    });
}"""

DECODE = """([content, rows]) => {
    const tokenizer = new Tokenizer(JSON.parse(content), true);
    return rows.map((ids) => tokenizer.decode(ids));
}"""


def make_text(rng):
    """Return a text of words, signs and any characters."""
    parts = []
    for _ in range(rng.choice([0, 1, 1, 2, 3, 5, 8, 13])):
        script = rng.choice([*SCRIPTS, KNOWN[rng.choice(list(KNOWN))]])
        part = rng.choice([rng.choice(WORDS), rng.choice(SIGNS), "".join(rng.choices(script, k=rng.randint(1, 5)))])
        parts += [part * rng.choice([1] * 30 + [40]), " " * rng.choice([0, 1, 1, 2])]
    return "".join(parts)


@pytest.fixture(scope="module")
def texts():
    rng = random.Random(0)
    return ["", " ", "a" * 5000, "é-" * 2000, *(make_text(rng) for _ in range(N_TEXTS))]


@pytest.fixture(scope="module")
def lines(texts):
    """What the tokenizers learn from."""
    return texts[4:400] + [" ".join(WORDS)] * 20


@pytest.fixture(scope="module")
def tokenizers(lines, tmp_path_factory):
    """Tokenizers by kind. WordPiece: as of a BERT that has a vocab.txt alone."""
    old = train_tokenizer(lines, "word", 1500)
    old.pre_tokenizer = pre_tokenizers.Split(Regex(OLD_TOKEN), behavior="removed", invert=True)
    found = {"word": train_tokenizer(lines, "word", 1500), "old": old, "bpe": train_tokenizer(lines, "bpe", 1000)}
    for kind, lower in (("cased", False), ("uncased", True)):
        learner = Tokenizer(models.WordPiece(unk_token=UNK))
        learner.normalizer = normalizers.BertNormalizer(lowercase=lower)
        learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = WordPieceTrainer(vocab_size=1500, special_tokens=SPECIAL_TOKENS, show_progress=False)
        learner.train_from_iterator(lines, trainer)
        place = tmp_path_factory.mktemp(kind)
        vocabulary = sorted(learner.get_vocab(), key=learner.token_to_id)
        (place / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
        (place / "config.json").write_text("{}")
        (place / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
        found[kind] = bert_tokenizer.read(place)
    return found


@pytest.fixture(scope="module")
def page(scripted):
    return scripted("pretokenizer.js", "tokenizer.js")


def expect_same(page, tokenizer, texts):
    """Compare ids, words and decoded texts."""
    found = page.evaluate(RUN, [tokenizer.to_str(), tokenizer.encode_special_tokens, texts])
    for text, one, encoding in zip(texts, found, tokenizer.encode_batch(texts), strict=True):
        again = tokenizer.decode(encoding.ids, skip_special_tokens=False)
        assert one == [encoding.ids, encoding.word_ids, again], ascii(text)


@pytest.mark.parametrize("kind", ["word", "old", "bpe", "cased", "uncased"])
def test_any_text_has_the_librarys_ids_and_words(page, tokenizers, texts, kind):
    tokenizer = tokenizers[kind]
    expect_same(page, tokenizer, texts)
    special = {tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    n_known = sum(i not in special for encoding in tokenizer.encode_batch(texts) for i in encoding.ids)
    assert n_known > N_TEXTS  # what is compared are tokens, not unknown words alone


def test_names_of_special_tokens_are_text_where_they_are_to_be(page, tokenizers, texts):
    tokenizer = Tokenizer.from_str(tokenizers["bpe"].to_str())
    tokenizer.encode_special_tokens = True
    expect_same(page, tokenizer, texts)


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_any_ids_have_the_librarys_text(page, tokenizers, kind):
    """Bytes that are no UTF-8, special tokens, and ids that there are not."""
    tokenizer, rng = tokenizers[kind], random.Random(0)
    rows = [[rng.randrange(tokenizer.get_vocab_size() + 3) for _ in range(rng.randint(0, 8))] for _ in range(1000)]
    found = page.evaluate(DECODE, [tokenizer.to_str(), rows])
    assert found == [tokenizer.decode(row, skip_special_tokens=False) for row in rows]


def test_half_characters_are_replaced(page, tokenizers):
    """Half of a pair of surrogates, as a text field has it while an emoji is deleted."""
    content = json.dumps(tokenizers["bpe"].to_str())
    halves = '["a\\ud83d b", "\\ude00", "\\ude00\\ud83d"]'
    found = page.evaluate(f"{halves}.map((text) => new Tokenizer(JSON.parse({content}), false).encode(text).ids)")
    assert found == [tokenizers["bpe"].encode(text).ids for text in ("a\ufffd b", "\ufffd", "\ufffd\ufffd")]


# ---- the other parts that a stranger's tokenizer.json may have

BEHAVIORS = ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]


def any_part(rng, kind):
    """Return a part of this kind as it may stand in an accepted tokenizer.json."""
    name = rng.choice(tokenizer_json.PARTS[kind].split())
    pattern = rng.choice([Regex(rng.choice(sorted(PATTERNS))), "a", "the", " ", ")", "e\u0301"])
    yes, no = rng.random() < 0.5, rng.random() < 0.5
    accents = rng.choice([None, True, False])
    makers = {
        "Strip": {"normalizer": lambda: normalizers.Strip(yes, no), "decoder": lambda: decoders.Strip("a", 1, 0)},
        "BertNormalizer": lambda: normalizers.BertNormalizer(yes, no, accents, rng.random() < 0.5),
        "Replace": {
            "normalizer": lambda: normalizers.Replace(pattern, rng.choice(["", "$"])),
            "decoder": lambda: decoders.Replace(pattern, rng.choice(["", "$"])),
        },
        "Punctuation": lambda: pre_tokenizers.Punctuation(rng.choice(BEHAVIORS)),
        "Digits": lambda: pre_tokenizers.Digits(yes),
        "ByteLevel": {
            "pre_tokenizer": lambda: pre_tokenizers.ByteLevel(yes, use_regex=no),
            "post_processor": processors.ByteLevel,
            "decoder": decoders.ByteLevel,
        },
        "Metaspace": {
            "pre_tokenizer": lambda: pre_tokenizers.Metaspace("▁", rng.choice(["always", "never", "first"]), yes),
            "decoder": lambda: decoders.Metaspace("▁", rng.choice(["always", "never", "first"])),
        },
        "Split": lambda: pre_tokenizers.Split(pattern, rng.choice(BEHAVIORS), yes),
        "WordPiece": lambda: decoders.WordPiece("##", yes),
        "TemplateProcessing": lambda: processors.TemplateProcessing(
            single=rng.choice([f"{CLS} $A {SEP}", f"{MASK} {CLS} $A", "$A"]),
            special_tokens=[(CLS, 2), (SEP, 3), (MASK, 4)],
        ),
        "BertProcessing": lambda: processors.BertProcessing((SEP, 3), (CLS, 2)),
    }
    module = {
        "normalizer": normalizers,
        "pre_tokenizer": pre_tokenizers,
        "post_processor": processors,
        "decoder": decoders,
    }
    maker = makers.get(name, getattr(module[kind], name, None))
    return (maker[kind] if isinstance(maker, dict) else maker)()


def any_model(rng, lines):
    """Return a model with part of the characters, pairs of them and words of texts."""
    yes, prefix = rng.random() < 0.5, rng.choice(["", "##"])
    characters = [c for c in sorted(set("".join(lines))) if rng.random() < 0.7]
    words = [word for line in lines for word in line.split()]
    vocabulary = dict.fromkeys([*SPECIAL_TOKENS, *characters, *(prefix + c for c in characters)])
    kind = rng.choice(["WordLevel", "WordPiece", "BPE"])
    if kind == "BPE":
        merges = []
        vocabulary |= dict.fromkeys([*pre_tokenizers.ByteLevel.alphabet(), *(f"<0x{b:02X}>" for b in range(128, 256))])
        for word in rng.sample(words, 300):
            for i in range(len(word) - 1):
                left = (prefix if i else "") + word[i]
                right = prefix + word[i + 1]
                if {left, right} <= vocabulary.keys() and left + word[i + 1] not in vocabulary:
                    vocabulary[left + word[i + 1]] = None
                    merges.append((left, right))
        vocabulary |= dict.fromkeys(words[::3])
        ids = {token: i for i, token in enumerate(vocabulary)}
        return models.BPE(
            ids,
            merges,
            fuse_unk=yes,
            byte_fallback=rng.random() < 0.5,
            ignore_merges=rng.random() < 0.5,
            **rng.choice([{}, {"unk_token": UNK}]),
            **({"continuing_subword_prefix": prefix} if prefix else {}),
        )
    vocabulary |= dict.fromkeys([*words[::2], *(prefix + word[1:] for word in words[::3])])
    ids = {token: i for i, token in enumerate(vocabulary)}
    if kind == "WordLevel":
        return models.WordLevel(ids, unk_token=UNK)
    longest = rng.choice([8, 100])
    return models.WordPiece(ids, unk_token=UNK, max_input_chars_per_word=longest, continuing_subword_prefix=prefix)


def any_tokenizer(rng, lines):
    """Return a tokenizer of any parts and added tokens."""
    tokenizer = Tokenizer(any_model(rng, lines))
    parts = {kind: [any_part(rng, kind) for _ in range(rng.randint(0, 3))] for kind in tokenizer_json.SEQUENCES}
    tokenizer.normalizer = normalizers.Sequence(parts["normalizer"])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts["pre_tokenizer"])
    tokenizer.post_processor = processors.Sequence(parts["post_processor"])
    tokenizer.decoder = decoders.Sequence([*parts["decoder"], decoders.Fuse()])
    for token in rng.sample([MASK, "the", "e\u0301", "É", " x", "▁", "()"], 4):
        flags = {name: rng.random() < 0.5 for name in ("lstrip", "rstrip", "single_word", "normalized")}
        (tokenizer.add_special_tokens if rng.random() < 0.5 else tokenizer.add_tokens)([AddedToken(token, **flags)])
    return tokenizer


@pytest.mark.parametrize("seed", range(40))
def test_any_parts_do_what_the_librarys_do(page, texts, lines, tmp_path, seed):
    rng, accepted = random.Random(seed), False
    while not accepted:
        any_tokenizer(rng, lines).save(str(tmp_path / "tokenizer.json"))
        with contextlib.suppress(InputError):
            tokenizer = tokenizer_json.read(tmp_path / "tokenizer.json", 10_000, PATTERNS)
            accepted = bool(page_data.write_tokenizer(tokenizer))
    tokenizer.encode_special_tokens = rng.random() < 0.3
    expect_same(page, tokenizer, texts[4:60])
