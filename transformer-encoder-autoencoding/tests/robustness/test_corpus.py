"""From bytes to batches: reading, holding out, both tokenizers, windows and batches."""

import gzip
import hashlib
import io
import math
import os
import re
import unicodedata
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm.cloze import words_of
from mlm.common import lines
from mlm.common.coverage import Coverage
from mlm.common.errors import InputError
from mlm.common.lines import chunks, draw_held_out, normalize, numbered_lines
from mlm.config import TrainConfig
from mlm.dataset import MLMDataset, cache_key, prepare_data
from mlm.text import TextFile, TextSource, draw_held_out_sentences
from mlm.tokenizer import MASK, SPECIAL_TOKENS, SpecialIds, train_tokenizer
from train_mlm import parse_args

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
VARIANTS = [f"sentence{space}{i}" for i in range(40) for space in (" ", "  ")]
some_sentences = st.lists(st.sampled_from(VARIANTS), min_size=2, max_size=120)
properties = settings(deadline=None, max_examples=60, derandomize=True, database=None)
# assigned characters only: the Unicode versions of Python and of the tokenizer may differ in the others
any_text = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=60).map(
    lambda text: unicodedata.normalize("NFC", text)
)


def tokens_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).tokens


# ---- reading


def read(raw):
    return [line for _, line in numbered_lines(io.BytesIO(raw), "text")]


def test_an_endless_line_is_refused_before_it_fills_the_memory():
    with Path("/dev/zero").open("rb") as stream, pytest.raises(InputError, match="is longer than 64 MB"):
        list(numbered_lines(stream, "zero"))


def test_lines_are_stripped_and_blank_ones_skipped(tmp_path):
    (tmp_path / "text.txt").write_bytes("  a b \r\n\r\n \t\nç\n".encode())
    assert list(TextFile(tmp_path / "text.txt")) == ["a b", "ç"]


def test_a_byte_order_mark_is_dropped():
    assert read(b"\xef\xbb\xbfa\nb") == ["a", "b"]


@pytest.mark.parametrize(
    ("raw", "fragments"),
    [
        ("a\nb".encode("utf-16"), ["text", "UTF-16"]),
        ("a\nb".encode("utf-16-be").join([b"\xfe\xff", b""]), ["text", "UTF-16"]),
        (b"good\ncaf\xe9 au lait\n", ["text, line 2", "byte 4", "UTF-8"]),
        (b"good\n\ngo\0od\n", ["text, line 3", "NUL"]),
    ],
)
def test_what_is_not_utf8_text_is_refused_by_line(raw, fragments):
    with pytest.raises(InputError) as error:
        read(raw)
    assert all(fragment in str(error.value) for fragment in fragments), error.value


@pytest.mark.parametrize("raw", [b"", b"\n \n\t\n", b"\xef\xbb\xbf\n"])
def test_a_file_without_text_is_refused_by_name(tmp_path, raw):
    (tmp_path / "empty.txt").write_bytes(raw)
    with pytest.raises(InputError, match=r"empty\.txt: contains no text"):
        list(TextFile(tmp_path / "empty.txt"))


JSON = '{"text": "The cat sat on the mat."}\n{"text": "The dog ran, too."}\n'
CSV = 'id,text\n1,"The cat, on the mat"\n2,The dog ran\n'


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        (JSON, "looks like JSON"),
        (f"[\n{JSON}]", "looks like JSON"),
        (CSV, "looks like CSV"),
        (CSV.replace(",", ";"), "looks like CSV"),
        (CSV.replace(",", "\t"), "looks like tab-separated columns"),
        ("<mediawiki>\n<page>\n", "looks like XML or HTML"),
        ("word " * 30_000, "has a line of over 100,000 characters"),
        ("If it rains, we stay.\nIf not, we go.\n", ""),
        ("[1] The first note.\n{sic} The second.\n<unk> is a word; so\n", ""),
        ("\n\n\tOne tab.\nNone.\n", ""),
        ("One line.\nA CR\rinside another.\n", ""),
    ],
)
def test_what_is_no_text_is_named_by_its_format(tmp_path, capsys, content, warning):
    (tmp_path / "corpus.txt").write_text(content, newline="")
    TextFile(tmp_path / "corpus.txt")
    err = capsys.readouterr().err
    assert err.count("\n") == bool(warning) and warning in err, err


def test_compressed_text_is_read_as_if_it_were_unpacked(tmp_path):
    (tmp_path / "text.txt.gz").write_bytes(gzip.compress(b"a b\nc\n"))
    text = TextFile(tmp_path / "text.txt.gz")
    assert list(text) == ["a b", "c"]
    assert (text.fingerprint["bytes"], text.fingerprint["lines"]) == (6, 2)


# ---- holding out


def ticket(sentence, seed):
    return hashlib.blake2b(sentence.encode(), key=seed.to_bytes(8, "little"), digest_size=16).digest()


def test_what_is_drawn_is_evaluated_as_it_stands(tmp_path):
    sentences = [f"le chat\u00a0: {i}\u3000noir" for i in range(40)]
    (tmp_path / "a.txt").write_text("\n".join(sentences), encoding="utf-8")
    held_out = draw_held_out_sentences([TextFile(tmp_path / "a.txt")], 0)
    assert len(held_out) == 2 and set(held_out) < set(sentences)


def test_a_chunk_ends_at_a_number_of_sentences_or_characters(monkeypatch):
    monkeypatch.setattr(lines, "CHUNK_ITEMS", 3)
    monkeypatch.setattr(lines, "CHUNK_CHARACTERS", 10)
    sentences = ["a", "b", "c", "d", "e" * 20, "f" * 5, "g" * 5, "h"]
    assert list(map(len, chunks(sentences))) == [3, 2, 2, 1]
    assert [s for chunk in chunks(sentences) for s in chunk] == sentences and list(chunks([])) == []


@properties
@given(some_sentences, st.integers(0, 2**31 - 1), st.sampled_from([1, 2, 1000]))
def test_the_first_of_all_distinct_digests_are_held_out(sentences, seed, most):
    """With `most` at 1 also: the last one held out does not depend on the order either."""
    distinct = set(map(normalize, sentences))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "MAX_HELD_OUT", most)
        if len(distinct) < 2:
            with pytest.raises(InputError, match="at least two"):
                draw_held_out(sentences, seed, "sentence")
            return
        drawn = draw_held_out(iter(sentences), seed, "sentence")
        assert draw_held_out(sentences[::-1], seed, "sentence") == drawn
    wanted = min(most, max(1, len(distinct) // 20))
    first = sorted(distinct, key=lambda sentence: ticket(sentence, seed))[:wanted]
    assert drawn == [min(s for s in sentences if normalize(s) == one) for one in first]


def test_another_seed_holds_out_others_and_at_most_a_thousand():
    sentences = [f"sentence {i}" for i in range(30_000)]
    held_out = [draw_held_out(sentences, seed, "sentence") for seed in (0, 1)]
    assert len(held_out[0]) == len(held_out[1]) == 1000
    assert set(held_out[0]) != set(held_out[1])
    assert set(held_out[0]) == set(sorted(sentences, key=lambda sentence: ticket(sentence, 0))[:1000])


@pytest.fixture
def files(tmp_path):
    for name, text in (
        ("a.txt", "one\ntwo\none\n"),
        ("b.txt", "\nthree\nfour"),
        ("h.txt", "one\nfour\nfive\n"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return [TextFile(tmp_path / "a.txt"), TextFile(tmp_path / "b.txt")]


def test_what_is_held_out_is_left_out_of_training_wherever_it_stands(tmp_path, files):
    source = TextSource(files, list(TextFile(tmp_path / "h.txt")))
    assert list(source) == list(source) == ["two", "three"]
    (drawn,) = draw_held_out_sentences(files, seed=3)
    everything = ["one", "two", "one", "three", "four"]
    assert list(TextSource(files, [drawn])) == [line for line in everything if line != drawn]
    with pytest.raises(InputError, match="nothing is left to train on"):
        list(TextSource(files, everything))


def test_a_pass_that_is_cut_short_changes_nothing(files):
    """Nothing is counted on the source itself, where somebody else could read it."""
    source = TextSource(files, ["two"])
    next(iter(source))
    assert list(source) == ["one", "one", "three", "four"]


def test_sentences_that_differ_in_spaces_alone_are_held_out_together(tmp_path):
    sentences = [f"caf{'é' if i % 2 else 'e' + chr(0x301)}{' ' * (1 + i % 3)}{i // 6}" for i in range(60)]
    (tmp_path / "a.txt").write_text("\n".join(sentences), encoding="utf-8")
    files = [TextFile(tmp_path / "a.txt")]
    for seed in range(5):
        (drawn,) = draw_held_out_sentences(files, seed)
        source = TextSource(files, [drawn])
        assert len(list(source)) == 54 and normalize(drawn) not in map(normalize, source) and drawn in sentences
    assert len(list(TextSource(files, ["café   3"]))) == 54


def test_a_vocabulary_is_learnt_from_an_evenly_spread_part_of_a_large_text(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("".join(f"{i:03}\n" for i in range(100)))
    source = TextSource([TextFile(tmp_path / "a.txt")], [])
    for most, step in ((400, 1), (399, 2), (50, 8)):
        monkeypatch.setattr("mlm.text.SAMPLE_BYTES", most)
        assert list(source.sample("learning")) == [f"{i:03}" for i in range(0, 100, step)]


def test_the_cache_key_follows_the_content_and_nothing_else(tmp_path, files):
    def key(*flags, files=(tmp_path / "a.txt", tmp_path / "b.txt")):
        config, _ = parse_args(["--corpus", *map(str, files), *map(str, flags)])
        return cache_key(config, [TextFile(path) for path in files], None)

    first = key()
    os.utime(tmp_path / "a.txt", (1, 1))
    (tmp_path / "copy.txt").write_bytes((tmp_path / "a.txt").read_bytes())
    assert key() == key(files=(tmp_path / "copy.txt", tmp_path / "b.txt")) == key("--learning-rate", 0.1) == first
    held_out = key("--held-out", tmp_path / "h.txt")
    assert held_out == key("--held-out", tmp_path / "h.txt", "--seed", 1)
    others = [key("--seed", 1), key(files=(tmp_path / "b.txt", tmp_path / "a.txt")), held_out, key("--max-length", 9)]
    others += [key("--tokenizer", "bpe"), key("--vocab-size", 500)]
    (tmp_path / "a.txt").write_text("one\ntwo\nten\n")
    assert all(other != first for other in [*others, key()])


def test_a_pipe_is_refused_by_name(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: can be read only once"):
        TextFile(tmp_path / "pipe")


def test_the_vocabulary_comes_from_the_training_sentences_alone(tokenizer, training, held_out):
    words = set(" ".join(training).split())
    assert set(tokenizer.get_vocab()) == words | set(SPECIAL_TOKENS)


# ---- tokenizers


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_special_tokens_come_first_and_enclose_a_sentence(kind, training):
    tokenizer = train_tokenizer(training, kind, 400)
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert SpecialIds.of(tokenizer) == SPECIAL
    ids = tokenizer.encode("the cat").ids
    assert ids[0] == SPECIAL.cls and ids[-1] == SPECIAL.sep and len(ids) > 2


def test_a_tokenizer_without_a_special_token_is_refused(tokenizer):
    lacking = type(tokenizer).from_str(tokenizer.to_str().replace("[SEP]", "</s>"))
    with pytest.raises(InputError, match=re.escape("[SEP]")):
        SpecialIds.of(lacking)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("well-known facts", ["well-known", "facts"]),
        ("it's Anna’s", ["it's", "Anna’s"]),
        ("- a -b c-", ["-", "a", "-", "b", "c", "-"]),
        ("Stop, now! (yes)", ["Stop", ",", "now", "!", "(", "yes", ")"]),
        ("3.5 % of 20", ["3", ".", "5", "%", "of", "20"]),
        ("naïve cafe\u0301", ["naïve", "café"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("שלום עולם", ["שלום", "עולם"]),
    ],
)
def test_word_tokenizer_takes_words_whole_and_punctuation_apart(text, expected):
    assert tokens_of(train_tokenizer([text], "word", 1000), text) == expected


def test_unseen_words_are_unknown_one_by_one(tokenizer):
    assert tokens_of(tokenizer, "the zebra chases zebras") == ["the", "[UNK]", "chases", "[UNK]"]


def test_a_small_vocabulary_keeps_the_frequent_words():
    tokenizer = train_tokenizer(["a a a b b c", "a b"], "word", 7)
    assert set(tokenizer.get_vocab()) == {*SPECIAL_TOKENS, "a", "b"}


@pytest.mark.parametrize("kind", ["word", "bpe"])
@pytest.mark.parametrize("text", ["{} cat", "the {} cat", "the {}.", "({})", "the{}cat", "{}{}", "the {}"])
def test_mask_is_one_token_wherever_it_stands(kind, text, training):
    tokenizer = train_tokenizer([*training, "( . )"], kind, 400)
    ids = tokenizer.encode(text.replace("{}", MASK)).ids
    assert ids.count(SPECIAL.mask) == text.count("{}")
    assert SPECIAL.unk not in ids


WORDS = st.sampled_from(["the", "cat", "don't", "well-known", "हिन्दी", "e\u0301t\u00e9", "3rd", "می\u200cخواهم", "字"])
GLUE = st.sampled_from(["", " ", "  ", " (", ") ", ", ", " '", "' ", "...", " — ", '"', " $", "\t", "。", "\u0964 "])


@pytest.mark.parametrize("kind", ["word", "bpe"])
@properties
@given(parts=st.lists(st.tuples(GLUE, WORDS), min_size=1, max_size=5), end=GLUE, data=st.data())
def test_hiding_a_word_changes_no_other_token(tokenizer, bpe, kind, parts, end, data):
    """What the model sees around a [MASK] that a user types is what it saw in training, whatever is glued to it."""
    tokenizer = {"word": tokenizer, "bpe": bpe}[kind]
    text = unicodedata.normalize("NFC", "".join(glue + word for glue, word in parts) + end)
    begin, stop = data.draw(st.sampled_from(list(words_of(text))))
    whole = tokenizer.encode(text)
    word = whole.char_to_word(begin)
    kept = [token for token, its_word in zip(whole.ids, whole.word_ids, strict=True) if its_word != word]
    hidden = tokenizer.encode(text[:begin] + MASK + text[stop:]).ids
    place = hidden.index(SPECIAL.mask)
    assert [*hidden[:place], *hidden[place + 1 :]] == kept


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("我爱 Python编程。", ["我", "爱", "Python", "编", "程", "。"]),
        ("می\u200cخواهم क्\u200dष", ["می\u200cخواهم", "क्\u200dष"]),
        ("Donau\u00addampf zero\u200bwidth", ["Donaudampf", "zerowidth"]),
    ],
)
def test_ideographs_are_words_and_invisible_characters_part_none(text, expected):
    """As in BERT."""
    assert tokens_of(train_tokenizer([text], "word", 1000), text) == expected


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_names_of_special_tokens_in_a_corpus_are_text(kind):
    """MS MARCO has "Peripheral Artery Disease [PAD]": that is no padding."""
    tokenizer = train_tokenizer(["Peripheral artery disease [PAD] narrows", "BERT puts [CLS] first"], kind, 400)
    found = MLMDataset.in_memory(["disease [PAD] narrows", "BERT puts [CLS] [MASK] first"], tokenizer, 32)
    inner = [row[1 : row.index(SPECIAL.sep)] for row in found.batch(np.arange(2)).tolist()]
    assert not {*SPECIAL.all} - {SPECIAL.unk} & {token for row in inner for token in row}
    assert tokenizer.encode(f"disease {MASK}").ids.count(SPECIAL.mask) == 1


def test_held_out_text_that_is_mostly_unknown_is_warned_of(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("".join(f"note 2023-05-{i:04} of day{i}\n" for i in range(400)), encoding="utf-8")
    config = TrainConfig(corpus=(tmp_path / "a.txt",), output=tmp_path)
    coverage = prepare_data(config).coverage
    assert "50% of the held-out tokens are unknown" in capsys.readouterr().err
    assert str(coverage) == "1.00 tokens a word, 50.0% unknown" and coverage.n_words == 4 * 20
    coverage = prepare_data(replace(config, tokenizer="bpe")).coverage
    assert "unknown" not in capsys.readouterr().err
    assert coverage.n_unknown == 0 and coverage.n_tokens > coverage.n_words


@pytest.mark.parametrize("counts", [(3, 20), (20, 1000)])
def test_a_few_unknown_tokens_or_a_small_share_are_not_warned_of(capsys, counts):
    n_unknown, n_tokens = counts
    Coverage(n_tokens, n_tokens, n_unknown).warn("held-out tokens")
    assert capsys.readouterr().err == ""


def test_a_word_that_occurs_twice_is_one_subword():
    """A word in several pieces is hardly ever hidden whole, and so not learnt."""
    tokenizer = train_tokenizer(["cats often purr", "dogs often bark"], "bpe", None)
    pieces = {word: len(tokenizer.encode(word, add_special_tokens=False).ids) for word in ("often", "purr", "bark")}
    assert pieces == {"often": 1, "purr": 5, "bark": 5}


def test_the_bundled_text_has_the_ids_it_always_had(folder):
    """Else the weights of the default run, and all figures of them, were others."""
    texts = [line for name in ("train", "held_out") for line in TextFile(folder / "data" / f"{name}.txt")]
    tokenizer = train_tokenizer(texts[:1012], "word", 30_000)
    ids = np.array([token for text in texts for token in tokenizer.encode(text).ids], dtype=np.int32)
    assert hashlib.sha256(ids.tobytes()).hexdigest()[:16] == "1cd8bbeb6a167c7a"


@properties
@given(any_text)
def test_bpe_knows_every_text_and_gives_it_back(bpe, text):
    """No character is unknown, and none but white space is lost."""
    ids = bpe.encode(text, add_special_tokens=False).ids
    assert SPECIAL.unk not in ids
    assert "".join(bpe.decode(ids, skip_special_tokens=False).split()) == "".join(text.split())


def test_bpe_learns_from_an_endless_word_in_pieces():
    tokenizer = train_tokenizer(["a" * 5000, "b"], "bpe", 300)
    assert 500 < max(map(len, tokenizer.get_vocab())) <= 1001


@pytest.mark.parametrize(
    "text", ["👩‍👩‍👧 zebra", "e\u0323\u0302 q\u0307\u0323", "שָׁלוֹם עולם", "مرحبا ١٢٣", "한국어 漢字", "\u200b"]
)
def test_bpe_gives_back_emoji_marks_and_right_to_left_text(bpe, text):
    ids = bpe.encode(text, add_special_tokens=False).ids
    assert SPECIAL.unk not in ids
    assert bpe.decode(ids).strip() == unicodedata.normalize("NFC", text)


# ---- windows and batches


@pytest.fixture(scope="module")
def letters():
    """A word tokenizer of single letters, so that a text of n letters has n tokens."""
    return train_tokenizer(["a b c d e f g h i j"], "word", 100)


def text_of(length):
    return " ".join("abcdefghij"[i % 10] for i in range(length))


def windows(dataset):
    ids, offsets = dataset.sequences.ids, dataset.sequences.offsets
    return [ids[a:b].tolist() for a, b in pairwise(offsets)]


@properties
@given(st.integers(1, 90), st.integers(4, 24))
def test_a_long_text_becomes_few_windows_of_like_length_and_loses_nothing(letters, length, max_length):
    parts = windows(MLMDataset.in_memory([text_of(length)], letters, max_length))
    assert all(part[0] == SPECIAL.cls and part[-1] == SPECIAL.sep for part in parts)
    assert [token for part in parts for token in part[1:-1]] == letters.encode(text_of(length)).ids[1:-1]
    assert len(parts) == math.ceil(length / (max_length - 2))
    lengths = [len(part) for part in parts]
    assert max(lengths) <= max_length and max(lengths) - min(lengths) <= 1


def test_sentences_do_not_share_windows_and_empty_ones_have_none(letters):
    dataset = MLMDataset.in_memory([text_of(3), " ", text_of(5)], letters, 24)
    assert [len(part) for part in windows(dataset)] == [5, 7] == dataset.sequences.lengths.tolist()
    assert len(dataset) == 2 and dataset.n_tokens == 12


def test_text_without_a_known_word_is_left_out_and_counted(letters, capsys):
    assert len(MLMDataset.in_memory(["a x", "y z", "[MASK]", "b"], letters, 24)) == 2
    assert "left out 2 of 4 passages" in capsys.readouterr().err


def test_a_text_without_a_token_is_refused(letters):
    with pytest.raises(InputError, match="knows no word"):
        MLMDataset.in_memory(["", " "], letters, 24)


def test_a_sentence_of_which_nothing_can_be_hidden_is_left_out(letters):
    """A batch of such sentences would have no loss."""
    assert len(MLMDataset.in_memory(["[MASK] [PAD]", "a b", "[MASK]", "a [MASK]"], letters, 24)) == 2
    with pytest.raises(InputError, match="nothing"):
        MLMDataset.in_memory(["[MASK]", "[PAD]"], letters, 24)


def test_a_batch_is_the_windows_padded_to_the_longest(letters):
    dataset = MLMDataset.in_memory([text_of(2), text_of(6), text_of(4)], letters, 24)
    rows = dataset.batch(np.array([2, 0]))
    assert rows.dtype == torch.int64
    a, _, c = windows(dataset)
    assert rows.tolist() == [c, a + [SPECIAL.pad] * 2]
    assert dataset.batch(np.array([2])).tolist() == [c]  # the last window, at the end of the array


@properties
@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(4, 120), st.integers(0, 1000))
def test_an_epoch_has_every_window_once_within_the_limit(letters, lengths, batch_tokens, seed):
    dataset = MLMDataset.in_memory([text_of(length) for length in lengths], letters, 32)
    batches = dataset.batches(batch_tokens, seed)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(dataset)))
    for batch in batches:
        assert dataset.batch(batch).numel() <= batch_tokens or len(batch) == 1


def test_an_epoch_depends_on_its_seed_alone(letters):
    dataset = MLMDataset.in_memory([text_of(1 + i % 20) for i in range(100)], letters, 32)
    epochs = [list(dataset.batches(100, [7, epoch])) for epoch in (0, 0, 1)]
    first, again, other = [[batch.tolist() for batch in batches] for batches in epochs]
    assert first == again
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in other}
    sizes = [int(dataset.sequences.lengths[batch].max()) for batch in epochs[0]]
    assert sizes != sorted(sizes)  # short and long batches take turns


def test_batches_contain_little_padding(letters):
    lengths = np.random.default_rng(5).integers(3, 60, size=400).tolist()
    dataset = MLMDataset.in_memory([text_of(length) for length in lengths], letters, 64)
    batches = dataset.batches(512, 0)
    assert sum(dataset.batch(batch).numel() for batch in batches) < 1.06 * dataset.n_tokens
    assert len(batches) < 1.25 * dataset.n_tokens / 512
