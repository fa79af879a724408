"""From bytes to batches: reading, holding out, both tokenizers, windows, plans and corruption."""

import hashlib
import io
import math
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masking import IGNORE, corrupt
from mlm.common.errors import InputError
from mlm.common.lines import draw_held_out, lines_of, numbered_lines, plain
from mlm.dataset import Corpus
from mlm.text import Text, chunks
from mlm.tokenizer import MASK, SPECIAL_TOKENS, SpecialIds, train_tokenizer

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
VARIANTS = [f"sentence{space}{i}" for i in range(40) for space in (" ", "  ")]
some_sentences = st.lists(st.sampled_from(VARIANTS), min_size=2, max_size=120)
properties = settings(deadline=None, max_examples=60, derandomize=True, database=None)
# assigned characters only: the Unicode versions of Python and of the tokenizer may differ in the others
any_text = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=60).map(
    lambda text: unicodedata.normalize("NFC", text)
)


def lines(raw):
    return [line for _, line in numbered_lines(io.BytesIO(raw), "text")]


def test_an_endless_line_is_refused_before_it_fills_the_memory():
    with Path("/dev/zero").open("rb") as stream, pytest.raises(InputError, match="is longer than 64 MB"):
        list(numbered_lines(stream, "zero"))


def plain_tokens(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).tokens


# ---- reading


def test_lines_are_stripped_and_blank_ones_skipped():
    assert lines("  a b \r\n\r\n \t\nç\n".encode()) == ["a b", "ç"]


def test_a_byte_order_mark_is_dropped():
    assert lines(b"\xef\xbb\xbfa\nb") == ["a", "b"]


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
        lines(raw)
    assert all(fragment in str(error.value) for fragment in fragments), error.value


@pytest.mark.parametrize("raw", [b"", b"\n \n\t\n", b"\xef\xbb\xbf\n"])
def test_a_file_without_text_is_refused_by_name(tmp_path, raw):
    (tmp_path / "empty.txt").write_bytes(raw)
    with pytest.raises(InputError, match=r"empty\.txt: holds no text"):
        list(lines_of(tmp_path / "empty.txt"))


# ---- holding out


def ticket(sentence, seed):
    return hashlib.blake2b(sentence.encode(), key=seed.to_bytes(8, "little"), digest_size=16).digest()


def test_what_is_drawn_is_evaluated_as_it_stands(tmp_path):
    lines = [f"le chat\u00a0: {i}\u3000noir" for i in range(40)]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    text = Text([tmp_path / "a.txt"], None, 0)
    text.hold_out()
    assert len(text.held_out) == 2 and set(text.held_out) < set(lines)


def test_a_chunk_ends_at_so_many_sentences_or_characters(monkeypatch):
    monkeypatch.setattr("reading.CHUNK", 3)
    monkeypatch.setattr("reading.CHARACTERS", 10)
    sentences = ["a", "b", "c", "d", "e" * 20, "f" * 5, "g" * 5, "h"]
    assert list(map(len, chunks(sentences))) == [3, 2, 2, 1]
    assert [s for chunk in chunks(sentences) for s in chunk] == sentences and list(chunks([])) == []


@properties
@given(some_sentences, st.integers(0, 2**31 - 1), st.sampled_from([1, 2, 1000]))
def test_the_first_of_all_distinct_digests_are_held_out(sentences, seed, most):
    distinct = set(map(plain, sentences))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reading.MOST_HELD_OUT", most)
        if len(distinct) < 2:
            with pytest.raises(InputError, match="at least two"):
                draw_held_out(sentences, seed)
            return
        aside = draw_held_out(iter(sentences), seed)
        assert draw_held_out(sentences[::-1], seed) == aside
    wanted = min(most, max(1, len(distinct) // 20))
    first = sorted(distinct, key=lambda sentence: ticket(sentence, seed))[:wanted]
    assert aside == [min(s for s in sentences if plain(s) == one) for one in first]


def test_the_last_one_held_out_does_not_depend_on_the_order_either(monkeypatch):
    monkeypatch.setattr("reading.MOST_HELD_OUT", 1)
    for seed in range(10):
        sentences = ["a b", "c d", "a  b", "c  d"]
        assert draw_held_out(sentences, seed) == draw_held_out(sentences[::-1], seed)


def test_another_seed_holds_out_others_and_at_most_a_thousand():
    sentences = [f"sentence {i}" for i in range(30_000)]
    held_out = [draw_held_out(sentences, seed) for seed in (0, 1)]
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
    return [tmp_path / "a.txt", tmp_path / "b.txt"]


def test_what_is_in_the_held_out_file_is_left_out_of_training(tmp_path, files):
    text = Text(files, tmp_path / "h.txt", seed=0)
    text.hold_out()
    assert text.held_out == ["one", "four", "five"]
    assert list(text) == list(text) == ["two", "three"]
    assert (text.sentences, text.left_out) == (2, 3)


def test_what_is_drawn_is_left_out_of_training_wherever_it_stands(files):
    text = Text(files, None, seed=3)
    text.hold_out()
    (aside,) = text.held_out
    assert list(text) == [line for line in ["one", "two", "one", "three", "four"] if line != aside]


def test_sentences_that_differ_in_spaces_alone_are_held_out_together(tmp_path):
    lines = [f"caf{'é' if i % 2 else 'e' + chr(0x301)}{' ' * (1 + i % 3)}{i // 6}" for i in range(60)]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "h.txt").write_text("café   3\n", encoding="utf-8")
    for seed in range(5):
        text = Text([tmp_path / "a.txt"], None, seed)
        text.hold_out()
        (aside,) = text.held_out
        assert len(list(text)) == 54 and plain(aside) not in map(plain, text) and aside in lines
    assert len(list(Text([tmp_path / "a.txt"], tmp_path / "h.txt", 0))) == 54


def test_a_vocabulary_is_learnt_from_an_evenly_spread_part_of_a_large_text(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("".join(f"{i:03}\n" for i in range(100)))
    text = Text([tmp_path / "a.txt"], None, 0)
    for most, step in ((400, 1), (399, 2), (50, 8)):
        monkeypatch.setattr("reading.SAMPLE", most)
        assert list(text.sample("learning")) == [f"{i:03}" for i in range(0, 100, step)]


def test_the_recipe_follows_the_content_and_nothing_else(tmp_path, files):
    def recipe(**change):
        return Text(**{"files": files, "held_out_file": None, "seed": 0} | change).recipe

    first = recipe()
    os.utime(files[0], (1, 1))
    (tmp_path / "copy.txt").write_bytes(files[0].read_bytes())
    assert recipe() == recipe(files=[tmp_path / "copy.txt", files[1]]) == first
    held_out = recipe(held_out_file=tmp_path / "h.txt")
    assert held_out == recipe(held_out_file=tmp_path / "h.txt", seed=1)
    others = [recipe(seed=1), recipe(files=files[::-1]), held_out]
    files[0].write_text("one\ntwo\nten\n")
    assert all(other != first for other in [*others, recipe()])


def test_a_pipe_is_refused_by_name(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: can be read but once"):
        Text([tmp_path / "pipe"], None, 0)


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
    assert plain_tokens(train_tokenizer([text], "word", 1000), text) == expected


def test_unseen_words_are_unknown_one_by_one(tokenizer):
    assert plain_tokens(tokenizer, "the zebra chases zebras") == ["the", "[UNK]", "chases", "[UNK]"]


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


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_hiding_a_word_changes_no_other_token(kind, training):
    """What the model sees around a [MASK] that a user types is what it saw in training."""
    tokenizer = train_tokenizer(training, kind, 400)

    def ids(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    sentence = "the cat chases a mouse"
    for word in ("the", "chases", "mouse"):
        at = ids(sentence[: sentence.index(word)].rstrip())
        rest = ids(sentence)[len(at) + len(ids(word)) :]
        assert ids(sentence.replace(word, MASK)) == [*at, SPECIAL.mask, *rest]


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


# ---- windows and plans


@pytest.fixture(scope="module")
def letters():
    """A word tokenizer of single letters, so that a text of n letters has n tokens."""
    return train_tokenizer(["a b c d e f g h i j"], "word", 100)


def text_of(length):
    return " ".join("abcdefghij"[i % 10] for i in range(length))


def windows(corpus):
    return [corpus.ids[a:b].tolist() for a, b in zip(corpus.offsets, corpus.offsets[1:], strict=False)]


@properties
@given(st.integers(1, 90), st.integers(4, 24))
def test_a_long_text_becomes_few_windows_of_like_length_and_loses_nothing(letters, length, max_length):
    parts = windows(Corpus.of([text_of(length)], letters, max_length))
    assert all(part[0] == SPECIAL.cls and part[-1] == SPECIAL.sep for part in parts)
    assert [token for part in parts for token in part[1:-1]] == letters.encode(text_of(length)).ids[1:-1]
    assert len(parts) == math.ceil(length / (max_length - 2))
    lengths = [len(part) for part in parts]
    assert max(lengths) <= max_length and max(lengths) - min(lengths) <= 1


def test_sentences_do_not_share_windows_and_empty_ones_have_none(letters):
    corpus = Corpus.of([text_of(3), " ", text_of(5)], letters, 24)
    assert [len(part) for part in windows(corpus)] == [5, 7] == corpus.lengths.tolist()
    assert len(corpus) == 2 and corpus.tokens == 12


def test_text_without_a_known_word_is_left_out_and_counted(letters, capsys):
    assert len(Corpus.of(["a x", "y z", "[MASK]", "b"], letters, 24)) == 2
    assert "left out 2 of 4 passages" in capsys.readouterr().err


def test_a_text_without_a_token_is_refused(letters):
    with pytest.raises(InputError, match="knows no word"):
        Corpus.of(["", " "], letters, 24)


def test_a_sentence_of_which_nothing_can_be_hidden_is_left_out(letters):
    """A batch of such sentences would have no loss."""
    assert len(Corpus.of(["[MASK] [PAD]", "a b", "[MASK]", "a [MASK]"], letters, 24)) == 2
    with pytest.raises(InputError, match="nothing"):
        Corpus.of(["[MASK]", "[PAD]"], letters, 24)


def test_rows_are_the_windows_padded_to_the_longest(letters):
    corpus = Corpus.of([text_of(2), text_of(6), text_of(4)], letters, 24)
    rows = corpus.rows(np.array([2, 0]))
    assert rows.dtype == torch.int64
    a, _, c = windows(corpus)
    assert rows.tolist() == [c, a + [SPECIAL.pad] * 2]
    assert corpus.rows(np.array([2])).tolist() == [c]  # the last window, at the end of the array


@properties
@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(4, 120), st.integers(0, 1000))
def test_a_plan_has_every_window_once_within_the_limit(letters, lengths, batch_tokens, seed):
    corpus = Corpus.of([text_of(length) for length in lengths], letters, 32)
    plan = corpus.plan(batch_tokens, seed)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(corpus)))
    for batch in plan:
        assert corpus.rows(batch).numel() <= batch_tokens or len(batch) == 1


def test_a_plan_depends_on_its_generator_alone(letters):
    corpus = Corpus.of([text_of(1 + i % 20) for i in range(100)], letters, 32)
    plans = [corpus.plan(100, [7, epoch]) for epoch in (0, 0, 1)]
    first, again, other = [[batch.tolist() for batch in plan] for plan in plans]
    assert first == again
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in other}
    sizes = [int(corpus.lengths[batch].max()) for batch in plans[0]]
    assert sizes != sorted(sizes)  # short and long batches take turns


def test_a_plan_holds_little_padding(letters):
    lengths = np.random.default_rng(5).integers(3, 60, size=400).tolist()
    corpus = Corpus.of([text_of(length) for length in lengths], letters, 64)
    plan = corpus.plan(512, 0)
    assert sum(corpus.rows(batch).numel() for batch in plan) < 1.06 * corpus.tokens
    assert len(plan) < 1.25 * corpus.tokens / 512


# ---- corruption


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sentences_of(rows, length, vocab_size, special=SPECIAL, seed=9):
    """Random ids (rows, length) that are not special, between [CLS] and [SEP]."""
    ordinary = torch.tensor([i for i in range(vocab_size) if i not in vars(special).values()])
    ids = ordinary[torch.randint(len(ordinary), (rows, length), generator=generator(seed))]
    ids[:, 0], ids[:, -1] = special.cls, special.sep
    return ids


def assert_binomial(count, n, p):
    """count is within five standard deviations of what n draws of probability p give."""
    assert abs(count - n * p) < 5 * math.sqrt(n * p * (1 - p)), (count, n, p)


def test_corruption_is_80_10_10_of_the_drawn_tokens():
    ids = sentences_of(300, 202, 1000)
    inputs, labels = corrupt(ids, SPECIAL, 1000, 0.15, generator())
    drawn = labels != IGNORE
    n = int(drawn.sum())
    assert n == 300 * 30  # exactly 15 % of the 200 tokens of each row
    assert_binomial(int((inputs[drawn] == SPECIAL.mask).sum()), n, 0.8)
    assert_binomial(int((inputs[drawn] == ids[drawn]).sum()), n, 0.1 + 0.1 / 995)
    other = (inputs != ids) & (inputs != SPECIAL.mask)
    assert_binomial(int(other.sum()), n, 0.1 * 994 / 995)


def test_every_position_is_drawn_alike():
    ids = sentences_of(4000, 12, 50)
    drawn = corrupt(ids, SPECIAL, 50, 0.3, generator(2))[1] != IGNORE
    assert drawn[:, 0].sum() == drawn[:, -1].sum() == 0
    for count in drawn[:, 1:-1].sum(dim=0).tolist():
        assert_binomial(count, 4000, 0.3)


@properties
@given(
    st.integers(1, 6),
    st.integers(1, 14),
    st.floats(0.001, 0.999),
    st.sampled_from([SPECIAL, SpecialIds(0, 20, 21, 22, 23), SpecialIds(17, 3, 2, 38, 20)]),
    st.integers(0, 2**31),
)
def test_corruption_keeps_its_promises(rows, words, mask_prob, special, seed):
    """On any sentences, wherever the special ids lie in the vocabulary."""
    ids = sentences_of(rows, words + 2, 40, special, seed)
    for row in range(1, rows):  # padding of all lengths
        ids[row, max(2, words + 2 - row) :] = special.pad
    before = ids.clone()
    inputs, labels = corrupt(ids, special, 40, mask_prob, generator(seed))
    assert torch.equal(ids, before)
    drawn = labels != IGNORE
    assert torch.equal(labels[drawn], ids[drawn])
    assert torch.equal(inputs[~drawn], ids[~drawn])
    special_ids = torch.tensor(list(vars(special).values()))
    assert not torch.isin(ids[drawn], special_ids).any()
    changed = inputs[inputs != ids]
    assert not torch.isin(changed[changed != special.mask], special_ids).any()
    assert (inputs >= 0).all() and (inputs < 40).all()
    eligible = (~torch.isin(ids, special_ids)).sum(dim=1)
    wanted = torch.minimum((eligible * mask_prob).round().clamp(min=1), eligible)
    assert drawn.sum(dim=1).tolist() == wanted.int().tolist()
    again = corrupt(ids, special, 40, mask_prob, generator(seed))
    assert torch.equal(inputs, again[0]) and torch.equal(labels, again[1])


def test_another_seed_hides_other_tokens():
    ids = sentences_of(10, 40, 100)
    first, second = (corrupt(ids, SPECIAL, 100, 0.15, generator(seed))[1] for seed in (0, 1))
    assert not torch.equal(first, second)


def test_what_is_special_or_unknown_in_the_text_is_never_asked_for():
    ids = torch.tensor([[2, 4, 4, 7, 0, 1, 4, 3]]).repeat(50, 1)
    labels = corrupt(ids, SPECIAL, 40, 0.999, generator())[1]
    assert labels.unique().tolist() == [IGNORE, 7]


@pytest.mark.parametrize("special", [SPECIAL, SpecialIds(0, 10, 11, 12, 13), SpecialIds(17, 3, 2, 29, 8)])
def test_replacements_are_spread_over_all_ordinary_tokens(special):
    ids = sentences_of(500, 102, 30, special)
    ids[:, 1:-1] = ids[0, 1]  # one word alone, so that every other is a replacement
    inputs, _ = corrupt(ids, special, 30, 0.9, generator(3))
    counts = Counter(inputs[(inputs != ids) & (inputs != special.mask)].tolist())
    assert set(counts) == set(range(30)) - set(vars(special).values()) - {int(ids[0, 1])}
    n = sum(counts.values())
    for count in counts.values():
        assert_binomial(count, n, 1 / 24)
