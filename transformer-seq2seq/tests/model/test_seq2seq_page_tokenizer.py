"""The tokenizer that runs in the page, JavaScript in a headless Chromium, gives the ids, words and texts of the
library's, whatever stands in a text."""

import json
import random
import unicodedata

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

from seq2seq.tokenizer import EOS, OLD_MARK, PAD, UNK, train_tokenizer

N_TEXTS = 500
# Library and browser know other versions of Unicode, parts of the library versions of their own. So the texts have any
# characters of Unicode 3.2, and of later versions those that all of them take for the same.
KNOWN: dict[int, list[str]] = {}  # by their row of 256
for code in range(0x30000):
    if unicodedata.ucd_3_2_0.category(chr(code)) not in ("Cn", "Co", "Cs"):
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
SIGNS = [EOS, UNK, PAD, "</s", "▁", "⁐", "⁐▁", "a-b", "don't", "'s", " - ", "  "]
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
def tokenizers(texts):
    """Tokenizers by kind."""
    lines = texts[4:400] + [" ".join(WORDS)] * 20
    old = train_tokenizer(lines, "word", 1500)
    marks = pre_tokenizers.Split(Regex(OLD_MARK), behavior="isolated")
    old.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), marks])
    return {
        "word": train_tokenizer(lines, "word", 1500),
        "nothing closed up": train_tokenizer([word for word in WORDS if word.isalpha()], "word", 1500),
        "old": old,
        "bpe": train_tokenizer(lines, "bpe", 1000),
    }


@pytest.fixture(scope="module")
def page(scripted):
    return scripted("pretokenizer.js", "tokenizer.js")


def expect_same(page, tokenizer, texts):
    """Compare ids, words and decoded texts."""
    found = page.evaluate(RUN, [tokenizer.to_str(), tokenizer.encode_special_tokens, texts])
    for text, one, encoding in zip(texts, found, tokenizer.encode_batch(texts), strict=True):
        again = tokenizer.decode(encoding.ids, skip_special_tokens=False)
        assert one == [encoding.ids, encoding.word_ids, again], ascii(text)


@pytest.mark.parametrize("kind", ["word", "nothing closed up", "old", "bpe"])
def test_any_text_has_the_librarys_ids_and_words(page, tokenizers, texts, kind):
    tokenizer = tokenizers[kind]
    expect_same(page, tokenizer, texts)
    unk, n_known = tokenizer.token_to_id(UNK), 0
    for encoding in tokenizer.encode_batch(texts):
        n_known += sum(i != unk for i in encoding.ids[:-1])
    assert n_known > N_TEXTS  # what is compared are tokens, not unknown words alone


def test_special_tokens_count_if_the_tokenizer_takes_them_for_tokens(page, tokenizers, texts):
    tokenizer = Tokenizer.from_str(tokenizers["word"].to_str())
    assert not tokenizer.encode_special_tokens
    expect_same(page, tokenizer, texts)


@pytest.mark.parametrize("kind", ["word", "old", "bpe"])
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
    found = page.evaluate(f"{halves}.map((text) => new Tokenizer(JSON.parse({content}), true).encode(text).ids)")
    assert found == [tokenizers["bpe"].encode(text).ids for text in ("a\ufffd b", "\ufffd", "\ufffd\ufffd")]
