"""Arbitrary bytes where pairs, a configuration, weights or a tokenizer should be: they are refused,
or of use, and take little memory."""

import json
import math
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seq2seq_strangers import little_memory

from seq2seq import Translator, marian
from seq2seq.common.errors import InputError
from seq2seq.config import GenerationConfig
from seq2seq.pairs import read_pairs
from seq2seq.tokenizer import to_text

SIZES = {"d_model": 4, "n_encoder_layers": 1, "n_decoder_layers": 1, "d_ff": 4}
SEARCH = GenerationConfig(max_length=3, batch_size=2, beam=2)
SAMPLE = GenerationConfig(max_length=3, batch_size=2, sample=True)


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
    """Bytes with some of them replaced, and cut."""
    content = bytearray(content)
    for place, byte in changes:
        content[int(place * len(content))] = byte
    return bytes(content[: int(kept * len(content))])


def replaced(content, path, value):
    """A JSON value with what the numbers of path lead to, member by member, replaced by value."""
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
    marian.save(path, make_model(tokenizer.get_vocab_size(), **SIZES), tokenizer)
    return path, {file.name: file.read_bytes() for file in path.iterdir()}


def assert_refused_or_of_use(directory, name, content):
    """... with this content of one of its files. Its outputs are lines, with probabilities."""
    path, files = directory
    for other, sound in files.items():
        (path / other).write_bytes(content if other == name else sound)
    with little_memory(), suppress(InputError):
        translator = Translator.load(path, "cpu")
        for config in (SEARCH, SAMPLE):
            with suppress(InputError):
                for (output,) in translator.session(config).answer(["The cook", "zebra é 😀"]):
                    assert math.isfinite(output.log_probability)
                    assert len(output.text.splitlines()) <= 1


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


cells = st.sampled_from(["source", "target", "kind", "a", "b c", "", " ", '"', "é", "1", "\u0085", "😀"])
rows = st.lists(st.lists(cells, min_size=1, max_size=4).map("\t".join), max_size=5).map("\n".join)
names = st.none() | st.text() | st.sampled_from(["source", "target", "kind", "1", "2", "3", "0", "٣", "²"])


@short
@given(rows.map(str.encode) | st.binary(max_size=60), names, names)
def test_any_bytes_as_pairs(tmp_path_factory, content, source, target):
    path = tmp_path_factory.getbasetemp() / "fuzz.tsv"
    path.write_bytes(content)
    with suppress(InputError):
        pairs = read_pairs(path, source, target)
        assert pairs and all(pair.source and pair.target for pair in pairs)
        assert not any("\t" in pair.source + pair.target + pair.kind for pair in pairs)


@short
@given(st.text(max_size=40))
def test_any_text_has_tokens_of_the_vocabulary_and_comes_back_as_a_line(tokenizer, bpe, text):
    for one in (tokenizer, bpe):
        encoding = one.encode(text)
        assert all(0 <= token < one.get_vocab_size() for token in encoding.ids)
        assert all(0 <= start <= end <= len(text) for start, end in encoding.offsets)
        back = to_text(one, encoding.ids[:-1])
        assert len(back.splitlines()) <= 1 and "\x1b" not in back
