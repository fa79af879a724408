"""From files to batches: what is read, what is held out, how it is tokenized and grouped."""

import bz2
import csv
import gzip
import hashlib
import io
import lzma
import os
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from seq2seq.common import lines
from seq2seq.common.errors import InputError
from seq2seq.common.lines import chunks, draw_held_out, numbered_lines
from seq2seq.common.standard_input import watch
from seq2seq.config import TrainConfig
from seq2seq.dataset import Metadata, PairDataset, cache_key, prepare_data, warn_of_pairs
from seq2seq.loss import IGNORE
from seq2seq.pairs import Pair, PairFile, PairSource, draw_held_out_pairs, read_pairs
from seq2seq.tokenizer import EOS, PAD, UNK, to_text, train_tokenizer

few = settings(max_examples=60, deadline=None, database=None, derandomize=True)


def lines_of(content):
    return [line for _, line in numbered_lines(io.BytesIO(content), "file")]


def read(tmp_path, content, *columns):
    path = tmp_path / "pairs.tsv"
    path.write_text(content, encoding="utf-8")
    return [(pair.source, pair.target) for pair in read_pairs(path, *columns)]


# ---------------------------------------------------------------------------------------------- reading


def test_lines_lose_their_ends_and_the_byte_order_mark_alone():
    assert lines_of("\ufeff a \r\nb\n\nü\ufeff".encode()) == [" a ", "b", "", "ü\ufeff"]


@pytest.mark.parametrize(
    "content, reason",
    [
        ("a".encode("utf-16"), "file: is UTF-16"),
        (b"good\n\xfcber\n", "file, line 2: byte 1 is not UTF-8"),
        (b"a\nb\nc\0d\n", "file, line 3: contains a NUL byte"),
    ],
)
def test_a_line_that_is_no_text_is_named(content, reason):
    with pytest.raises(InputError, match=reason):
        lines_of(content)


def test_an_endless_line_is_refused_before_it_fills_the_memory():
    with Path("/dev/zero").open("rb") as stream, pytest.raises(InputError, match="is longer than 64 MB"):
        list(numbered_lines(stream, "zero"))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_text_is_read_as_if_it_were_unpacked(tmp_path, pack):
    content = "source\ttarget\n" + "".join(f"a {i}\tb {i}\n" for i in range(100))
    plain, packed = tmp_path / "plain.tsv", tmp_path / "packed.tsv"
    plain.write_text(content)
    packed.write_bytes(pack(content.encode()))
    files = PairFile(plain), PairFile(packed)
    assert list(files[0]) == list(files[1])
    sizes = [{name: file.fingerprint[name] for name in ("bytes", "lines")} for file in files]
    assert sizes[0] == sizes[1] == {"bytes": len(content), "lines": 101}
    with os.fdopen(os.open(packed, os.O_RDONLY), "rb") as stream:  # as standard input, which a script reads twice
        assert [line for _, line in numbered_lines(stream, "stdin")] == content.splitlines()
        stream.seek(0)
        assert next(numbered_lines(stream, "stdin")) == (1, "source\ttarget")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, bytes])
@pytest.mark.parametrize(
    "content", [b"", b"a\nb\n", os.urandom(20_000).hex().encode()], ids=["empty", "small", "large"]
)
@pytest.mark.parametrize("open_pipe", [lambda stream: stream, lambda stream: watch(stream)[0]], ids=["bare", "watched"])
def test_compressed_text_is_read_from_a_pipe(pack, content, open_pipe):
    end, start = os.pipe()
    os.write(start, pack(content))
    os.close(start)
    with os.fdopen(end, "rb") as stream:
        lines = [line for _, line in numbered_lines(open_pipe(stream), "stdin")]
    assert lines == content.decode().splitlines()


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_damaged_compressed_text_is_refused(pack):
    packed = pack(os.urandom(10_000).hex().encode())
    for damaged in (packed[:-100], packed[:2000] + b"\0" * 50 + packed[2050:]):
        with pytest.raises(InputError, match="file: is compressed, and damaged or cut off"):
            lines_of(damaged)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x28\xb5\x2f\xfd and so on", r"is compressed \(\.zst\); unpack it"),
        (b"PK\x03\x04 and so on", r"is compressed \(\.zip.*; unpack it"),
        (b"a\rb\r", "its lines end in CR or U.2028, none in LF; save it"),
        ("a\u2028b".encode(), "its lines end in CR or U.2028"),
        (b"a\r" * 2**25 + b"a\r", "its lines end in CR or U.2028"),
    ],
)
def test_files_of_other_kinds_are_refused_with_the_remedy(content, reason):
    with pytest.raises(InputError, match=reason):
        lines_of(content)
    assert lines_of(b"a\rb\nc\r\n") == ["a\rb", "c"]  # among other line ends they are white space


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
        ("Target\tSOURCE\na\tb\n", (), [("b", "a")]),
        ("source\tSource\ttarget\na\tb\tc\n", ("Source", None), [("b", "c")]),
        ("En\tDe\na\tb\n", ("de", "EN"), [("b", "a")]),
        ("12\t21\n34\t43\n", (), [("12", "21"), ("34", "43")]),
        ("12\tzwölf\n34\tvierunddreißig\n", (), [("12", "zwölf"), ("34", "vierunddreißig")]),
        ("12\t21\treversal\n34\t43\treversal\n", (), [("12", "21"), ("34", "43")]),
        ("1\ta\t7\tb\n2\tc\t8\td\n", ("2", "4"), [("a", "b"), ("c", "d")]),
        ("1\ta\tb\n2\tc\td\n", ("1", "3"), [("1", "b"), ("2", "d")]),
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
        "other-case",
        "both-cases",
        "names-in-other-case",
        "numbers-to-numbers",
        "numbers-to-words",
        "numbers-and-a-kind",
        "ids-passed-over",
        "ids-asked-for",
    ],
)
def test_columns_are_found(tmp_path, content, columns, expected):
    assert read(tmp_path, content, *columns) == expected


def test_lines_with_other_columns_and_empty_sides_are_counted(tmp_path, capsys):
    content = "a\tb\nc\td\nonly\ne\tf\nx\ty\tz\n \tg\nh\t\ni\tj\n"
    assert read(tmp_path, content) == [("a", "b"), ("c", "d"), ("e", "f"), ("i", "j")]
    odd, empty = capsys.readouterr().err.splitlines()
    assert "pairs.tsv: skipped 2 of 8 lines: most have 2 columns, these do not; the first is line 3" in odd
    assert "pairs.tsv: skipped 2 of 8 lines: their source or target is empty" in empty


@pytest.mark.parametrize(
    ("line", "columns", "reason"),
    [
        ("{i}\tgood morning\t{i}\tbonjour", (), "column 1 is a number in .*, for example 2 for the source and 4"),
        ("0.9{i}\tgood morning\tbonjour", (), "column 1 is a number in .*, for example 2 for the source and 3"),
        ("good morning\t{i}\tbonjour", (), "column 2 is a number in .*, for example 1 for the source and 3"),
        ("{i}\tgood morning\t{i}\tbonjour", ("2", None), "column 2 would be both"),
        ("{i}\tgood morning\t{i}\tbonjour", (None, "4"), "column 1 is a number"),
        ('{{"source": "a", "target": "b {i}"}}', (), r"has one column; .* \(this looks like JSON\)"),
        ("bonjour,morning {i}", (), r"has one column; .* \(this looks like CSV\)"),
        ("bonjour, morning {i}", (), "has one column; separate source and target by a tab$"),
    ],
)
def test_columns_that_are_no_text_are_refused_with_the_remedy(tmp_path, line, columns, reason):
    content = "".join(line.format(i=i) + "\n" for i in range(20)) + "a\tb\tc\td\n"
    with pytest.raises(InputError, match=reason):
        read(tmp_path, content, *columns)


@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
def test_a_quoted_file_gives_a_warning(tmp_path, capsys, quoting):
    rows = [("source", "target"), *((f'say "{i}"', f"{i}") for i in range(40))]
    file = io.StringIO()
    csv.writer(file, delimiter="\t", quoting=quoting).writerows(rows)
    read(tmp_path, file.getvalue())
    assert "pairs.tsv: looks quoted" in capsys.readouterr().err
    read(tmp_path, "".join("\t".join(row) + "\n" for row in rows))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("n", "warned"), [(1, False), (2, True)])
def test_more_than_one_doubled_quote_in_a_hundred_lines_gives_a_warning(tmp_path, capsys, n, warned):
    read(tmp_path, '"say ""a"" now"\tb\n' * n + "a\tb\n" * (100 - n))
    assert ("looks quoted" in capsys.readouterr().err) == warned


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
        ("", (), "contains no text"),
        (" \n\t\n", (), "contains no text"),
        ("a\nb\n", (), "has one column"),
        ('A line.\n"Yes, he said.\n' + 900 * f"{'a' * 200}\n", (), "has one column"),  # the quote is never closed
        ("source\ttarget\n", (), "contains no pair"),
        ("a\t\n\tb\n", (), "contains no pair"),
        ("source\ttarget\tsource\na\tb\tc\n", (), "has 2 columns 'source'; choose one by its number"),
        (HEADER, ("french", None), "has no column 'french'; use one of id, target, source, or 1 to 3"),
        ("a\tb\n", (None, "3"), "has no column '3'"),
        ("a\tb\n", ("0", None), "has no column '0'"),
        ("a\tb\n", ("9" * 5000, None), "has no column '9"),
        ("a\tb\n", ("2", None), "column 2 would be both source and target"),
        (HEADER, ("target", None), "column 2 would be both source and target"),
    ],
)
def test_files_without_pairs_are_refused(tmp_path, content, columns, reason):
    with pytest.raises(InputError, match=f"pairs.tsv: {reason}"):
        read(tmp_path, content, *columns)


@few
@given(st.lists(st.text("ab\t ", max_size=6), min_size=1, max_size=12), st.sampled_from([None, "1", "2", "a"]))
def test_the_pairs_counted_in_a_file_are_those_read_from_it(tmp_path_factory, content, column):
    path = tmp_path_factory.mktemp("some") / "pairs.tsv"
    path.write_text("\n".join(content), encoding="utf-8")
    try:
        file = PairFile(path, source_column=column)
        layout = file.layout
    except InputError:
        return
    pairs = list(file)
    assert len(pairs) == layout.n_pairs > 0 and all(pair.source and pair.target for pair in pairs)
    assert layout.n_lines == sum(bool(line.strip()) for line in content) - layout.header


# ------------------------------------------------------------------------------------------- held out

SOURCES = st.lists(st.sampled_from([f"source {i}" for i in range(60)]), min_size=1, max_size=120)


def ticket(source, seed):
    return hashlib.blake2b(source.encode(), key=seed.to_bytes(8, "little"), digest_size=16).digest()


@few
@given(SOURCES, st.integers(0, 2**31 - 1), st.sampled_from([1, 2, 1000]))
def test_the_first_of_all_distinct_digests_are_held_out(sources, seed, most):
    distinct = set(sources)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "MAX_HELD_OUT", most)
        if len(distinct) < 2:
            with pytest.raises(InputError, match="one distinct source"):
                draw_held_out(sources, seed, "source")
            return
        drawn = draw_held_out(iter(sources), seed, "source")
    wanted = min(most, max(1, len(distinct) // 20))
    assert drawn == sorted(distinct, key=lambda source: ticket(source, seed))[:wanted]


def test_at_most_a_thousand_sources_are_held_out_and_the_seed_says_which():
    sources = [str(i) for i in range(30_000)]
    drawn = draw_held_out(sources, 0, "source")
    assert drawn == sorted(sources, key=lambda source: ticket(source, 0))[:1000]
    assert drawn != draw_held_out(sources, 1, "source")


def write(path, pairs):
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs), encoding="utf-8")
    return path


def source_of(paths, seed=0):
    """The training pairs of some files, of which the seed decides which are held out."""
    files = [PairFile(path) for path in paths]
    return PairSource(files, draw_held_out_pairs(files, seed))


def test_what_is_drawn_is_left_out_of_training_wherever_it_stands(tmp_path):
    rows = [(str(i % 50), str(i)) for i in range(200)]
    source = source_of([write(tmp_path / "1.tsv", rows[:90]), write(tmp_path / "2.tsv", rows[90:])])
    held_out = {pair.source for pair in source.held_out}
    assert len(held_out) == 2 and len(source.held_out) == 8
    everything = [Pair(*row) for row in rows]
    assert source.held_out == [pair for pair in everything if pair.source in held_out]
    assert list(source) == list(source) == [pair for pair in everything if pair.source not in held_out]


def test_training_leaves_out_what_is_held_out(tmp_path):
    files = [PairFile(write(tmp_path / "1.tsv", ["ax", "by"])), PairFile(write(tmp_path / "2.tsv", ["cz", "aw"]))]
    assert list(PairSource(files, [Pair("a", "v"), Pair("q", "v")])) == [Pair("b", "y"), Pair("c", "z")]
    with pytest.raises(InputError, match="nothing is left to train on") as error:
        list(PairSource(files[:1], [Pair("a", "v"), Pair("b", "v")]))
    assert error.value.setting == "held_out"


def test_sources_that_differ_in_spaces_alone_are_held_out_together(tmp_path):
    path = tmp_path / "pairs.tsv"
    rows = [f"how{' ' * (1 + i % 3)}are you {i // 3}\tfine {i}\n" for i in range(60)]
    path.write_text("".join(rows), encoding="utf-8")
    for seed in range(5):
        source = source_of([path], seed)
        held_out, rest = ({" ".join(pair.source.split()) for pair in part} for part in (source.held_out, source))
        assert len(held_out) == 1 and len(source.held_out) == 3 and not held_out & rest


def test_few_distinct_sources_hold_out_no_half_of_a_corpus(tmp_path, capsys):
    path = write(tmp_path / "pairs.tsv", [("np"[i % 2], f"review {i}") for i in range(50_000)])
    source = source_of([path])
    n_pairs = sum(1 for _ in source)
    assert len(source.held_out) == 10_000 and n_pairs == 25_000
    metadata = Metadata(source.held_out, [file.layout for file in source.files], n_pairs)
    warn_of_pairs(TrainConfig(pairs=(path,)), metadata, n_pairs, 0)
    assert "few sources are distinct: 25000 of 50000 pairs" in capsys.readouterr().err


def test_pairs_that_are_too_long_are_not_said_to_be_held_out(tmp_path, capsys):
    pairs = write(tmp_path / "pairs.tsv", [("a", "b"), ("c", "d"), ("c " * 9, "d"), ("e", "f")])
    held_out = write(tmp_path / "held_out.tsv", [("e", "f")])
    prepare_data(TrainConfig(pairs=(pairs,), held_out=held_out, output=tmp_path / "out", max_length=5))
    first, second = capsys.readouterr().err.splitlines()
    assert f"left 1 pairs out of training, as their sources are in {held_out}" in first
    assert "left out 1 training and 0 held-out pairs of more than 5 tokens" in second


def test_a_vocabulary_is_learnt_from_an_evenly_spread_part_of_many_pairs(tmp_path, monkeypatch):
    path = write(tmp_path / "1.tsv", [(f"{i:02}", f"{i:02}") for i in range(100)])
    source = PairSource([PairFile(path)], [])
    for most, step in ((600, 1), (599, 2), (80, 8)):
        monkeypatch.setattr("seq2seq.pairs.SAMPLE_BYTES", most)
        expected = [f"{i:02}" for i in range(0, 100, step) for _ in "st"]
        assert list(source.sample("learning")) == expected


def test_the_cache_key_follows_content_and_settings_and_nothing_else(tmp_path, monkeypatch):
    paths = write(tmp_path / "1.tsv", ["ax", "by"]), write(tmp_path / "2.tsv", ["cz", "aw"])

    def key(paths=paths, **settings):
        return cache_key(TrainConfig(pairs=tuple(paths), **settings), [PairFile(path) for path in paths], None)

    first = key()
    os.utime(paths[0], (1, 1))
    assert key() == key([write(tmp_path / "copy.tsv", ["ax", "by"]), paths[1]]) == first
    assert key(learning_rate=0.1, output=tmp_path) == first
    assert key(held_out=paths[0], seed=1) == key(held_out=paths[0])
    others = [key(seed=1), key(paths[::-1]), key(held_out=paths[0]), key(source_column="2", target_column="1")]
    others += [key(tokenizer="bpe"), key(vocab_size=20), key(max_length=20)]
    monkeypatch.setattr("seq2seq.dataset.SPLITTING", 99)  # a version that would hold out other pairs
    others.append(key())
    monkeypatch.undo()
    write(paths[0], ["ax", "bz"])
    assert all(other != first for other in [*others, key()])


def test_a_pipe_is_refused_by_name(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: can be read only once"):
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


VISIBLE = st.characters(exclude_categories=["Cs", "Cc", "Cn"], exclude_characters="\u00ad\u200b")
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


@pytest.mark.parametrize("mark", ['"', "'", "(", "/", "-", "...", "’", "$", "字", "。"])
def test_a_word_is_one_token_whatever_mark_is_glued_to_it(mark):
    """Also where no word of the training text had one before it."""
    for texts in (["say hello now", f"a {mark} b"], ["say hello now", f"a {mark}b{mark} c"]):
        tokenizer = train_tokenizer(texts, "word", 100)
        (word,) = tokenizer.encode("hello").ids[:-1]
        for text in (f"{mark}hello", f"hello{mark}", f"{mark}hello{mark} now", f"say {mark}hello"):
            assert word in tokenizer.encode(text).ids and UNK not in tokenizer.encode(text).tokens, text
    text = f"a {mark}hello{mark} b{mark}"
    assert to_text(tokenizer, tokenizer.encode(text).ids[:-1]) == text


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_decoding_by_other_programs_gives_the_text(kind):
    text = "the sign ▁ stands (as ▁this) ⁐ for a space"
    tokenizer = Tokenizer.from_str(train_tokenizer([text], kind, 400).to_str())
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_ideographs_are_tokens_and_invisible_characters_part_no_word():
    text = "我爱Python编程 می\u200cخواهم Donau\u00addampf"
    tokenizer = train_tokenizer([text], "word", 100)
    found = [token for token in tokenizer.encode(text).tokens if token not in "▁⁐"]
    assert found == [*"我爱", "▁Python", *"编程", "▁می\u200cخواهم", "▁Donaudampf", EOS]


def test_the_text_decides_how_many_subwords_there_are():
    """Those of a small text would soon be whole sentences, of which no other is made."""
    signs = "零一二三四五六七八九"
    pairs = [f"{i:05}".translate(str.maketrans("0123456789", signs)) + "的意思" for i in range(0, 99999, 41)]
    tokenizer = train_tokenizer(pairs, "bpe", None)
    assert max(len(tokenizer.decode([i])) for i in range(tokenizer.get_vocab_size())) <= 4
    assert 261 < tokenizer.get_vocab_size() < 320


def test_held_out_pairs_that_are_mostly_unknown_are_warned_of(tmp_path, capsys):
    """ISO dates are words, each another one: no target can be right, and nothing else would say so."""
    lines = [f"day {i} of the year\t2023-{i:03}" for i in range(400)]
    (tmp_path / "p.tsv").write_text("\n".join(lines), encoding="utf-8")
    config = TrainConfig(pairs=(tmp_path / "p.tsv",), output=tmp_path)
    source, target = prepare_data(config).coverage
    assert "100% of the held-out target tokens are unknown; with subwords" in capsys.readouterr().err
    target.warn("held-out tokens", init=True)  # where subwords cannot be chosen
    assert capsys.readouterr().err.endswith("that of the model to start from (--init)\n")
    assert (str(target), target.n_words) == ("1.00 tokens a word, 100.0% unknown", 20) and source.unknown == 1 / 5
    source, target = prepare_data(replace(config, tokenizer="bpe")).coverage
    assert "unknown" not in capsys.readouterr().err
    assert source.n_unknown == target.n_unknown == 0 and target.n_tokens > 2 * target.n_words


def test_the_bundled_text_has_the_ids_it_always_had(folder):
    """Else the weights of the default run, and all figures of them, were others."""
    pairs = [pair for name in ("train", "held_out") for pair in read_pairs(folder / "data" / f"{name}.tsv", None, None)]
    texts = [text for pair in pairs for text in (pair.source, pair.target)]
    tokenizer = train_tokenizer(texts[:2998], "word", 30_000)
    ids = np.array([token for text in texts for token in tokenizer.encode(text).ids], dtype=np.int32)
    assert hashlib.sha256(ids.tobytes()).hexdigest()[:16] == "f3c44ea8dbcc3a1e"


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


def test_a_chunk_ends_at_so_many_pairs_or_characters(monkeypatch):
    monkeypatch.setattr(lines, "CHUNK_ITEMS", 3)
    monkeypatch.setattr(lines, "CHUNK_CHARACTERS", 10)
    texts = ["x" * n for n in (1, 1, 1, 1, 20, 4, 7, 1)]
    assert list(map(len, chunks(texts))) == [3, 2, 2, 1]
    assert [text for chunk in chunks(texts) for text in chunk] == texts and list(chunks([])) == []


# -------------------------------------------------------------------------------------------- batches


def dataset_of(tokenizer, pairs, max_length=100):
    return PairDataset.in_memory([Pair(source, target) for source, target in pairs], tokenizer, max_length)


def varied(tokenizer, n, seed=0):
    rng = np.random.default_rng(seed)
    return dataset_of(tokenizer, [("cook " * rng.integers(1, 30), "the " * rng.integers(1, 30)) for _ in range(n)])


@few
@given(st.integers(1, 60), st.integers(2, 200), st.integers(0, 3))
def test_an_epoch_takes_every_pair_once_within_the_budget(tokenizer, n, batch_tokens, seed):
    data = varied(tokenizer, n, seed)
    batches = data.batches(batch_tokens, seed)
    assert sorted(np.concatenate(batches).tolist()) == list(range(n))
    for rows in batches:
        batch = data.batch(rows)
        assert len(rows) == 1 or len(rows) * max(batch.source.size(1), batch.target.size(1)) <= batch_tokens
        for row, label, i in zip(batch.source, batch.labels, rows, strict=True):
            assert int((row != data.pad_id).sum()) == data.source.lengths[i]
            assert int((label != IGNORE).sum()) == data.target.lengths[i]


def test_the_batches_follow_their_seed(tokenizer):
    data = varied(tokenizer, 200)
    epochs = [[rows.tolist() for rows in data.batches(100, [0, e])] for e in (0, 0, 1)]
    assert epochs[0] == epochs[1] != epochs[2]
    assert sorted(map(len, epochs[0])) != len(epochs[0]) * [1]


def test_batches_of_like_lengths_hold_little_padding(tokenizer):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, 1000)
    data = dataset_of(tokenizer, [("cook " * n, "the " * n) for n in lengths.tolist()])
    batches = [data.batch(rows) for rows in data.batches(500, 0)]
    cells = sum(batch.labels.numel() for batch in batches)
    assert sum(int((batch.labels == IGNORE).sum()) for batch in batches) < 0.05 * cells


def test_batches_come_in_no_order_of_length(tokenizer):
    data = varied(tokenizer, 300)
    longest = [int(data.target.lengths[rows].max()) for rows in data.batches(60, 0)]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


def test_pairs_too_long_on_either_side_are_left_out(tokenizer):
    pairs = [("the cook", "cake"), ("the cook eats", "cake"), ("cake", "the cook eats")]
    data = dataset_of(tokenizer, pairs, max_length=3)
    assert len(data) == 1
    with pytest.raises(InputError, match="at most 2 tokens"):
        dataset_of(tokenizer, pairs, max_length=2)
