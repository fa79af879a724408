"""Arbitrary bytes in place of text, a configuration, weights or a tokenizer: they are refused, or of use, and take
little memory."""

import json
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mlm_strangers import little_memory

from mlm import MaskFiller, bert
from mlm.cloze import HEADER, NearestSentence, read_clozes
from mlm.common.errors import InputError
from mlm.text import TextFile
from mlm.tokenizer import MASK

SIZES = {"d_model": 4, "n_layers": 1, "d_ff": 4, "max_length": 8}


short = settings(
    max_examples=80,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 40)
    | st.floats()
    | st.text(max_size=5)
    | st.just("9" * 5000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4)
model_files = st.sampled_from(["config.json", "model.safetensors", "tokenizer.json"])


def edited(content, changes, kept):
    """Return bytes with some of them replaced, and cut."""
    content = bytearray(content)
    for place, byte in changes:
        content[int(place * len(content))] = byte
    return bytes(content[: int(kept * len(content))])


def replaced(content, path, value):
    """Return a JSON value with the member to which the numbers of path lead, one by one, replaced by value."""
    if not path or not isinstance(content, dict | list) or not content:
        return value
    key = (list(content) if isinstance(content, dict) else range(len(content)))[path[0] % len(content)]
    copy = content.copy()
    copy[key] = replaced(content[key], path[1:], value)
    return copy


@pytest.fixture(scope="module")
def directory(tmp_path_factory, make_model, tokenizer):
    """A small model directory, and the content of its files."""
    path = tmp_path_factory.mktemp("fuzz") / "model"
    bert.save(path, make_model(tokenizer.get_vocab_size(), **SIZES), tokenizer)
    return path, {file.name: file.read_bytes() for file in path.iterdir()}


def assert_refused_or_of_use(directory, name, content):
    """... with this content of one of its files. Its answers are probabilities."""
    path, files = directory
    for other, good in files.items():
        (path / other).write_bytes(content if other == name else good)
    with little_memory(), suppress(InputError):
        filler = MaskFiller.load(path, "cpu")
        for text in (f"the {MASK}", f"zebra é 😀{MASK}a"):
            with suppress(InputError):
                assert all(0 <= word["probability"] <= 1 for mask in filler(text, top_k=3) for word in mask)
            with suppress(InputError):
                perplexity = filler.score(text.replace(MASK, "cat"))["pseudo_perplexity"]
                assert perplexity is None or perplexity >= 0  # None: the model knows no word of the second


@short
@given(st.data(), values)
def test_any_value_in_config_json(directory, data, value):
    config = json.loads(directory[1]["config.json"])
    config[data.draw(st.sampled_from([*config, "unknown"]))] = value
    assert_refused_or_of_use(directory, "config.json", json.dumps(config).encode())


@short
@given(st.lists(st.integers(0, 50), min_size=1, max_size=5), values)
def test_any_value_in_tokenizer_json(directory, path, value):
    content = replaced(json.loads(directory[1]["tokenizer.json"]), path, value)
    assert_refused_or_of_use(directory, "tokenizer.json", json.dumps(content).encode())


@short
@given(model_files, edits, st.floats(0, 1) | st.just(1))
def test_any_bytes_in_a_model_directory(directory, name, changes, kept):
    assert_refused_or_of_use(directory, name, edited(directory[1][name], changes, kept))


lines = st.lists(st.binary(max_size=12) | st.text(max_size=12).map(str.encode) | st.just("\t".join(HEADER).encode()))


@short
@given(lines.map(b"\n".join) | st.binary(max_size=60))
@example(b"\xef\xbb\xbf\xef\xbb\xbfa\r\n\xe2\x80\xa8\n")
def test_any_bytes_as_text(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.txt"
    path.write_bytes(content)
    with suppress(InputError):
        found = list(TextFile(path))
        assert found and all(line and line == line.strip() and "\n" not in line for line in found)


words = st.sampled_from(["cat", "the cat", "a-b", "", "é", "\u0301", "שלום", "😀", "x"])
rows = st.lists(st.lists(words, min_size=1, max_size=4).map("\t".join), max_size=4).map("\n".join)


@short
@given(rows.map(str.encode) | lines.map(b"\n".join))
def test_any_bytes_as_cloze_tests(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.cloze.tsv"
    path.write_bytes(content)
    with suppress(InputError):
        clozes = read_clozes(path.with_name("fuzz.txt"))
        baseline = NearestSentence(cloze.sentence for cloze in clozes[1:])
        for cloze in clozes:
            begin, end = cloze.key_span()
            assert cloze.sentence[begin:end] == cloze.key
            assert isinstance(baseline.guess(cloze), str)


@short
@given(st.text(max_size=40))
def test_any_text_has_tokens_of_the_vocabulary(tokenizer, bpe, text):
    for one in (tokenizer, bpe):
        encoding = one.encode(text)
        assert all(0 <= token < one.get_vocab_size() for token in encoding.ids)
        assert all(0 <= start <= end <= len(text) for start, end in encoding.offsets)
        one.decode(encoding.ids)
