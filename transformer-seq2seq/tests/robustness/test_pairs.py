"""From files to batches: what is read, what is held out, how it is tokenized and grouped."""

import hashlib
import io
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2seq.common.errors import InputError
from seq2seq.common.lines import decode_lines, draw_held_out
from seq2seq.dataset import PairCorpus
from seq2seq.pairs import Pair, PairFile, Pairs, chunks, read_pairs
from seq2seq.tokenizer import EOS, IGNORE, PAD, UNK, to_text, train_tokenizer

few = settings(max_examples=60, deadline=None, database=None, derandomize=True)


def lines(content):
    return list(decode_lines(io.BytesIO(content), "file"))


def read(tmp_path, content, *columns):
    path = tmp_path / "pairs.tsv"
    path.write_text(content, encoding="utf-8")
    return [(pair.source, pair.target) for pair in read_pairs(path, *columns)]


# ---------------------------------------------------------------------------------------------- reading


def test_lines_lose_their_ends_and_the_byte_order_mark_alone():
    assert lines("\ufeff a \r\nb\n\nü\ufeff".encode()) == [" a ", "b", "", "ü\ufeff"]


@pytest.mark.parametrize(
    "content, reason",
    [
        ("a".encode("utf-16"), "file: is UTF-16"),
        (b"good\n\xfcber\n", "file, line 2: byte 1 is not UTF-8"),
        (b"a\nb\nc\0d\n", "file, line 3: holds a NUL byte"),
    ],
)
def test_a_line_that_is_no_text_is_named(content, reason):
    with pytest.raises(InputError, match=reason):
        lines(content)


def test_an_endless_line_is_refused_before_it_fills_the_memory():
    with Path("/dev/zero").open("rb") as stream, pytest.raises(InputError, match="is longer than 64 MB"):
        list(decode_lines(stream, "zero"))


HEADER = "id\ttarget\tsource\n1\tb\ta\n2\td\tc\n"


@pytest.mark.parametrize(
    "content, columns, expected",
    [
        ("a\tb\nc\td\n", (), [("a", "b"), ("c", "d")]),
        (HEADER, (), [("a", "b"), ("c", "d")]),
        (HEADER, ("target", "source"), [("b", "a"), ("d", "c")]),
        (HEADER, ("id", None), [("1", "b"), ("2", "d")]),
        (HEADER, ("source", "1"), [("a", "1"), ("c", "2")]),
        ("a\tb\tc\nd\te\tf\n", ("3", "1"), [("c", "a"), ("f", "d")]),
        (HEADER, ("2", "1"), [("b", "1"), ("d", "2")]),
        ("source\ttarget\tsource\na\tb\tc\n", ("3", None), [("c", "b")]),
        ("\ufeffsource\ttarget\r\na\tb\r\n", (), [("a", "b")]),
        ("\na\tb\n\n", (), [("a", "b")]),
        ("source\ttarget\n  a b \t c\n", (), [("a b", "c")]),
        ('"a"\t\'b\nsay "x\ty"\n', (), [('"a"', "'b"), ('say "x', 'y"')]),
    ],
    ids=[
        "bare",
        "header",
        "names",
        "one-name",
        "name-number",
        "numbers",
        "numbers-below-a-header",
        "one-of-two",
        "bom-crlf",
        "blank",
        "strip",
        "quotes",
    ],
)
def test_columns_are_found(tmp_path, content, columns, expected):
    assert read(tmp_path, content, *columns) == expected


def test_lines_with_other_columns_and_empty_sides_are_counted(tmp_path, capsys):
    content = "a\tb\nc\td\nonly\ne\tf\nx\ty\tz\n \tg\nh\t\ni\tj\n"
    assert read(tmp_path, content) == [("a", "b"), ("c", "d"), ("e", "f"), ("i", "j")]
    odd, empty = capsys.readouterr().err.splitlines()
    assert "skipped 2 of 8 lines, which have not 2 columns" in odd
    assert "skipped 2 of 8 lines, which have an empty side" in empty


def test_clean_files_give_no_warning(tmp_path, capsys):
    read(tmp_path, HEADER)
    assert capsys.readouterr().err == ""


def test_the_kind_is_read_where_there_is_one(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("kind\tsource\ttarget\nanswer\ta\tb\nrewrite \tc\td\n", encoding="utf-8")
    assert read_pairs(path) == [Pair("a", "b", "answer"), Pair("c", "d", "rewrite")]
    path.write_text("a\tb\tanswer\n", encoding="utf-8")
    assert read_pairs(path) == [Pair("a", "b", "")]


@pytest.mark.parametrize(
    "content",
    ["source\ttarget\tkind\na\tb\nc\td\n", "x\ty\tsource\ttarget\na\tb\nc\td\n"],
    ids=["kind", "sides"],
)
def test_a_header_wider_than_the_lines_ends_without_a_traceback(tmp_path, content):
    try:
        assert read(tmp_path, content) == [("a", "b"), ("c", "d")]
    except InputError as error:
        assert "pairs.tsv" in str(error)


@pytest.mark.parametrize(
    "content, columns, reason",
    [
        ("", (), "holds no text"),
        (" \n\t\n", (), "holds no text"),
        ("a\nb\n", (), "has one column"),
        ("source\ttarget\n", (), "holds no pair"),
        ("a\t\n\tb\n", (), "holds no pair"),
        ("source\ttarget\tsource\na\tb\tc\n", (), "has 2 columns 'source'; choose one by its number"),
        (HEADER, ("french", None), "has no column 'french'; it has id, target, source"),
        ("a\tb\n", (None, "3"), "has no column '3'"),
        ("a\tb\n", ("0", None), "has no column '0'"),
        ("a\tb\n", ("9" * 5000, None), "has no column '9"),
        ("a\tb\n", ("2", None), "column 2 would be source and target"),
        (HEADER, ("target", None), "column 2 would be source and target"),
    ],
)
def test_files_without_pairs_are_refused(tmp_path, content, columns, reason):
    with pytest.raises(InputError, match=reason):
        read(tmp_path, content, *columns)


# ------------------------------------------------------------------------------------------- held out

SOURCES = st.lists(st.sampled_from([f"source {i}" for i in range(60)]), min_size=1, max_size=120)


def ticket(source, seed):
    return hashlib.blake2b(source.encode(), key=seed.to_bytes(8, "little"), digest_size=16).digest()


@few
@given(SOURCES, st.integers(0, 2**31 - 1), st.sampled_from([1, 2, 1000]))
def test_the_first_of_all_distinct_digests_are_held_out(sources, seed, most):
    distinct = set(sources)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reading.MOST_HELD_OUT", most)
        if len(distinct) < 2:
            with pytest.raises(InputError, match="one distinct source"):
                draw_held_out(sources, seed)
            return
        aside = draw_held_out(iter(sources), seed)
    wanted = min(most, max(1, len(distinct) // 20))
    assert aside == set(sorted(distinct, key=lambda source: ticket(source, seed))[:wanted])


def test_at_most_a_thousand_sources_are_held_out_and_the_seed_says_which():
    sources = [str(i) for i in range(30_000)]
    assert draw_held_out(sources, 0) == set(sorted(sources, key=lambda source: ticket(source, 0))[:1000])
    assert draw_held_out(sources, 0) != draw_held_out(sources, 1)


def write(path, pairs):
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs), encoding="utf-8")
    return path


def test_what_is_drawn_is_left_out_of_training_wherever_it_stands(tmp_path):
    rows = [(str(i % 50), str(i)) for i in range(200)]
    files = [write(tmp_path / "1.tsv", rows[:90]), write(tmp_path / "2.tsv", rows[90:])]
    pairs = Pairs(files, None, (None, None), 0)
    pairs.hold_out()
    aside = {pair.source for pair in pairs.held_out}
    assert len(aside) == 2 and len(pairs.held_out) == 8
    everything = [Pair(*row) for row in rows]
    assert pairs.held_out == [pair for pair in everything if pair.source in aside]
    assert list(pairs) == list(pairs) == [pair for pair in everything if pair.source not in aside]
    assert (pairs.kept, pairs.left_out) == (192, 8)


def test_training_leaves_out_what_the_held_out_file_asks(tmp_path, capsys):
    one, two = write(tmp_path / "1.tsv", ["ax", "by"]), write(tmp_path / "2.tsv", ["cz", "aw"])
    pairs = Pairs([one, two], write(tmp_path / "held_out.tsv", ["av", "qv"]), (None, None), 0)
    pairs.hold_out()
    assert list(pairs) == [Pair("b", "y"), Pair("c", "z")]
    assert pairs.held_out == [Pair("a", "v"), Pair("q", "v")]
    pairs.warn()
    assert "left 2 pairs out of training" in capsys.readouterr().err
    with pytest.raises(InputError, match="nothing is left to train on"):
        list(Pairs([one], one, (None, None), 0))


def test_a_vocabulary_is_learnt_from_an_evenly_spread_part_of_many_pairs(tmp_path, monkeypatch):
    pairs = Pairs([write(tmp_path / "1.tsv", [(f"{i:02}", f"{i:02}") for i in range(100)])], None, (None, None), 0)
    for most, step in ((600, 1), (599, 2), (80, 8)):
        monkeypatch.setattr("reading.SAMPLE", most)
        expected = [f"{i:02}" for i in range(0, 100, step) for _ in "st"]
        assert list(pairs.sample("learning")) == expected


def test_the_recipe_follows_content_and_columns_and_nothing_else(tmp_path):
    files = [write(tmp_path / "1.tsv", ["ax", "by"]), write(tmp_path / "2.tsv", ["cz", "aw"])]

    def recipe(files=files, held_out=None, columns=(None, None), seed=0):
        return Pairs(files, held_out, columns, seed).recipe

    first = recipe()
    os.utime(files[0], (1, 1))
    assert recipe() == recipe([write(tmp_path / "copy.tsv", ["ax", "by"]), files[1]]) == first
    assert recipe(held_out=files[0], seed=1) == recipe(held_out=files[0])
    others = [recipe(seed=1), recipe(files[::-1]), recipe(held_out=files[0]), recipe(columns=("2", "1"))]
    write(files[0], ["ax", "bz"])
    assert all(other != first for other in [*others, recipe()])


def test_a_pipe_is_refused_by_name(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: can be read but once"):
        PairFile(tmp_path / "pipe")


# ------------------------------------------------------------------------------------------ tokenizing


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_special_tokens_have_marians_ids(kind):
    tokenizer = train_tokenizer(["a b c a"], kind, 300)
    last = tokenizer.get_vocab_size() - 1
    assert [tokenizer.token_to_id(token) for token in (EOS, UNK, PAD)] == [0, 1, last]
    assert sorted(tokenizer.get_vocab().values()) == list(range(last + 1))
    assert tokenizer.encode("a b").ids[-1] == 0 and 0 not in tokenizer.encode("a b").ids[:-1]


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_the_vocabulary_has_at_most_the_asked_size(kind):
    texts = [f"word{i} other{i}" for i in range(400)]
    assert train_tokenizer(texts, kind, 320).get_vocab_size() == 320


def tidy(text):
    """NFC, single spaces, none at the ends: what a tokenizer keeps of a text."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


VISIBLE = st.characters(exclude_categories=["Cs", "Cc", "Cn"], exclude_characters="▁")
AWKWARD = [
    "e\u0301",
    "👩‍👩‍👧",
    "🇫🇷",
    "שלום",
    "مرحبا",
    "ﬁ",
    "ä",
    "\u0323",
    "don't",
    "it’s",
    "3.14",
    "a-b",
    "$5",
    "?!",
]
TEXTS = st.lists(st.one_of(st.text(VISIBLE, max_size=8), st.sampled_from(AWKWARD)), min_size=1, max_size=6).map(
    lambda words: tidy(" ".join(words))
)


def test_bpe_learns_from_an_endless_word_in_pieces():
    tokenizer = train_tokenizer(["a" * 5000, "b"], "bpe", 300)
    assert 500 < max(map(len, tokenizer.get_vocab())) <= 1001


@few
@given(TEXTS)
def test_bpe_gives_back_any_text(bpe, text):
    encoding = bpe.encode(text)
    assert to_text(bpe, encoding.ids[:-1]) == text
    assert bpe.token_to_id(UNK) not in encoding.ids


@few
@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_word_tokenizer_gives_back_texts_of_its_vocabulary(texts):
    tokenizer = train_tokenizer(texts, "word", 1000)
    for text in texts:
        encoding = tokenizer.encode(text)
        assert tokenizer.token_to_id(UNK) not in encoding.ids
        assert to_text(tokenizer, encoding.ids[:-1]) == text


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_equivalent_spellings_have_the_same_ids(kind):
    tokenizer = train_tokenizer(["caf\u00e9 noir"], kind, 300)
    assert tokenizer.encode(" cafe\u0301 \t noir\n").ids == tokenizer.encode("caf\u00e9 noir").ids


def test_words_and_marks_are_tokens(tokenizer):
    assert tokenizer.encode("Hello, cook!").tokens == ["▁Hello", ",", "▁cook", "!", EOS]


def test_unknown_words_are_shown_as_unknown(tokenizer):
    encoding = tokenizer.encode("The zebra eats the cake")
    assert encoding.ids.count(tokenizer.token_to_id(UNK)) == 1
    assert len(encoding) == 6
    assert UNK in to_text(tokenizer, encoding.ids[:-1])


def test_an_unknown_word_is_shown_as_a_word_of_its_own(tokenizer):
    assert to_text(tokenizer, tokenizer.encode("The zebra eats").ids[:-1]) == f"The {UNK} eats"
    assert to_text(tokenizer, tokenizer.encode("Zebra").ids[:-1]) == UNK
    assert to_text(tokenizer, tokenizer.encode("The zebra yaks").ids[:-1]) == f"The {UNK} {UNK}"


@pytest.mark.parametrize("special", [EOS, UNK, PAD])
@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_the_name_of_a_special_token_in_a_text_is_text(kind, special):
    tokenizer = train_tokenizer([f"write {special} here"], kind, 400)
    encoding = tokenizer.encode(f"write {special} here")
    assert not {tokenizer.token_to_id(token) for token in (EOS, UNK, PAD)} & set(encoding.ids[:-1])
    assert to_text(tokenizer, encoding.ids[:-1]) == f"write {special} here"


def test_an_output_is_one_line_whatever_tokens_it_has(bpe):
    ids = [bpe.token_to_id(token) for token in ("a", "Ċ", "b", "ĉ", "c", "č", "d")]
    assert to_text(bpe, ids) == "a b c d"


def test_sources_that_differ_in_spaces_alone_are_held_out_together(tmp_path):
    path = tmp_path / "pairs.tsv"
    lines = [f"how{' ' * (1 + i % 3)}are you {i // 3}\tfine {i}\n" for i in range(60)]
    path.write_text("".join(lines), encoding="utf-8")
    for seed in range(5):
        pairs = Pairs([path], None, (None, None), seed)
        pairs.hold_out()
        aside, rest = ({" ".join(pair.source.split()) for pair in part} for part in (pairs.held_out, pairs))
        assert len(aside) == 1 and len(pairs.held_out) == 3 and not aside & rest


def test_a_chunk_ends_at_so_many_pairs_or_characters(monkeypatch):
    monkeypatch.setattr("reading.CHUNK", 3)
    monkeypatch.setattr("reading.CHARACTERS", 10)
    lengths = [1, 1, 1, 1, 20, 4, 7, 1]
    pairs = [Pair("s" * (n // 2), "t" * (n - n // 2)) for n in lengths]
    assert list(map(len, chunks(pairs))) == [3, 2, 2, 1]
    assert [pair for chunk in chunks(pairs) for pair in chunk] == pairs and list(chunks([])) == []


def test_few_distinct_sources_hold_out_no_half_of_a_corpus(tmp_path, capsys):
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{'np'[i % 2]}\treview {i}\n" for i in range(50_000)), encoding="utf-8")
    pairs = Pairs([path], None, (None, None), 0)
    pairs.hold_out()
    assert len(pairs.held_out) == 10_000 and sum(1 for _ in pairs) == 25_000
    pairs.warn()
    assert "few sources are distinct: 25000 of 50000 pairs" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- batches


def corpus_of(tokenizer, pairs, max_length=100):
    return PairCorpus.of([Pair(source, target) for source, target in pairs], tokenizer, max_length)


def varied(tokenizer, n, seed=0):
    rng = np.random.default_rng(seed)
    return corpus_of(tokenizer, [("cook " * rng.integers(1, 30), "the " * rng.integers(1, 30)) for _ in range(n)])


def test_a_batch_holds_shifted_targets_and_labels(tokenizer):
    corpus = corpus_of(tokenizer, [("The cook eats", "The child"), ("The", "Rome is the capital")])
    batch, pad = corpus.batch(np.array([1, 0])), tokenizer.token_to_id(PAD)
    ids = {text: tokenizer.encode(text).ids for text in ("The cook eats", "The child", "The", "Rome is the capital")}
    long, short = ids["Rome is the capital"], ids["The child"]
    assert batch.source.tolist() == [[*ids["The"], pad, pad], ids["The cook eats"]]
    assert batch.labels.tolist() == [long, [*short, IGNORE, IGNORE]]
    assert batch.target.tolist() == [[pad, *long[:-1]], [pad, *short, pad]]
    assert batch.source.dtype == batch.target.dtype == batch.labels.dtype == torch.int64


@few
@given(st.integers(1, 60), st.integers(2, 200), st.integers(0, 3))
def test_a_plan_takes_every_pair_once_within_the_budget(tokenizer, n, batch_tokens, seed):
    corpus = varied(tokenizer, n, seed)
    plan = corpus.plan(batch_tokens, seed)
    assert sorted(np.concatenate(plan).tolist()) == list(range(n))
    for rows in plan:
        batch = corpus.batch(rows)
        assert len(rows) == 1 or len(rows) * max(batch.source.size(1), batch.target.size(1)) <= batch_tokens
        for row, label, i in zip(batch.source, batch.labels, rows, strict=True):
            assert int((row != corpus.pad_id).sum()) == corpus.source.lengths[i]
            assert int((label != IGNORE).sum()) == corpus.target.lengths[i]


def test_a_plan_follows_its_seed(tokenizer):
    corpus = varied(tokenizer, 200)
    plans = [[rows.tolist() for rows in corpus.plan(100, [0, e])] for e in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]
    assert sorted(map(len, plans[0])) != len(plans[0]) * [1]


def test_batches_of_like_lengths_hold_little_padding(tokenizer):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, 1000)
    corpus = corpus_of(tokenizer, [("cook " * n, "the " * n) for n in lengths.tolist()])
    batches = [corpus.batch(rows) for rows in corpus.plan(500, 0)]
    cells = sum(batch.labels.numel() for batch in batches)
    assert sum(int((batch.labels == IGNORE).sum()) for batch in batches) < 0.05 * cells


def test_batches_come_in_no_order_of_length(tokenizer):
    corpus = varied(tokenizer, 300)
    longest = [int(corpus.target.lengths[rows].max()) for rows in corpus.plan(60, 0)]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


def test_pairs_too_long_on_either_side_are_left_out(tokenizer):
    pairs = [("the cook", "cake"), ("the cook eats", "cake"), ("cake", "the cook eats")]
    corpus = corpus_of(tokenizer, pairs, max_length=3)
    assert len(corpus) == 1
    with pytest.raises(InputError, match="at most 2 tokens"):
        corpus_of(tokenizer, pairs, max_length=2)
