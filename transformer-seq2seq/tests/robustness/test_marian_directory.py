"""The model directory, written whole or not at all, and refused by name if damaged."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from seq2seq import marian
from seq2seq.common import model_directory
from seq2seq.common.errors import InputError
from seq2seq.tokenizer import train_tokenizer

CPU = torch.device("cpu")
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def directory(tmp_path, tiny, tokenizer):
    """A model directory that save wrote."""
    marian.save(tmp_path / "model", tiny, tokenizer)
    return tmp_path / "model"


def edit(path, **changes):
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def test_save_writes_these_files_alone(directory):
    assert {path.name for path in directory.iterdir()} == FILES


def refused(directory, *fragments):
    with pytest.raises(InputError) as caught:
        marian.load(directory, CPU)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    refused(tmp_path, "no model here", "train.py")
    refused(tmp_path / "mistyped", "mistyped: no model here")


@pytest.mark.parametrize("model_type", ["gpt2", "t5", None, ["marian"], 3])
def test_another_kind_of_model_is_refused(directory, model_type):
    edit(directory / "config.json", model_type=model_type)
    refused(directory, "config.json: model_type is", repr(model_type), "supported is 'marian'")


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "content",
    ["", "nonsense", "[]", "3", "null", '{"a": ', DEEP, '{"a": ' + DEEP + "}", b"\xff\xfe\x00", b"{\xff}"],
    ids=["empty", "word", "list", "number", "null", "cut", "deep", "deep-value", "utf-16", "latin-1"],
)
def test_a_config_that_is_no_json_object_is_refused(directory, content):
    (directory / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(directory, "config.json: is not a JSON object")


@pytest.mark.parametrize(
    "field, value",
    [
        *(("d_model", value) for value in (-16, 0, "16", 16.0, True, None, 10**30, [16])),
        ("encoder_layers", 1_001),  # the bound, as the weights of a thousand layers could be there
        ("decoder_layers", -1),
        ("encoder_attention_heads", 0),
        ("encoder_ffn_dim", {}),
        ("vocab_size", 10**12),
        ("max_position_embeddings", 10**12),
        ("pad_token_id", -1),
        ("eos_token_id", 0.5),
        *(("dropout", value) for value in (float("nan"), 1, "0.1")),
        *(("activation_function", value) for value in ("gelu", ["relu"])),
        ("decoder_attention_heads", 4),
        ("decoder_start_token_id", 5),
        ("decoder_vocab_size", 7),
        ("scale_embedding", False),
        ("tie_word_embeddings", False),
        ("share_encoder_decoder_embeddings", False),
        ("normalize_before", True),
        ("static_position_embeddings", "no"),
    ],
)
def test_a_hostile_config_value_is_refused_by_name(directory, field, value):
    edit(directory / "config.json", **{field: value})
    refused(directory, f"config.json: {field} ", repr(value))


def test_sizes_that_contradict_each_other_are_refused(directory, tiny):
    size = tiny.config.vocab_size
    edit(directory / "config.json", encoder_attention_heads=3, decoder_attention_heads=3)
    refused(directory, "d_model is not a multiple of encoder_attention_heads")
    edit(directory / "config.json", encoder_attention_heads=2, decoder_attention_heads=2, eos_token_id=size)
    refused(directory, "pad_token_id or eos_token_id is not below vocab_size")
    edit(directory / "config.json", eos_token_id=0, d_model=20_000, max_position_embeddings=100_000)
    refused(directory, "max_position_embeddings is too large for d_model")


@pytest.mark.parametrize(
    "changes",
    [
        {"d_model": 1_000_000},
        {"encoder_ffn_dim": 25, "decoder_ffn_dim": 25},
        {"encoder_layers": 3},
        {"decoder_layers": 1},
    ],
)
def test_sizes_that_the_weights_have_not_are_refused(directory, changes):
    edit(directory / "config.json", **changes)
    refused(directory, "weights")


def test_an_absurd_number_of_layers_is_refused_without_building_them(directory, monkeypatch):
    def build(config):
        assert config.n_encoder_layers <= 10_000, "about to build them"
        return {}

    monkeypatch.setattr(marian, "names", build)
    edit(directory / "config.json", encoder_layers=900_000)
    refused(directory, "encoder_layers")


@pytest.mark.parametrize("name", sorted(FILES - {"generation_config.json", "tokenizer_config.json"}))
def test_a_missing_file_is_named(directory, name):
    (directory / name).unlink()
    refused(directory, name)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def test_a_pickle_is_never_read(directory):
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(directory, "model.safetensors: is missing", "pytorch_model.bin is a pickle, which is never read")
    (directory / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    refused(directory, "model.safetensors: is damaged")


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.99])
def test_truncated_weights_are_refused(directory, kept):
    content = (directory / "model.safetensors").read_bytes()
    kept = kept if isinstance(kept, int) else int(len(content) * kept)
    (directory / "model.safetensors").write_bytes(content[:kept])
    refused(directory, "model.safetensors: is damaged")


KEYS, VALUES = (f"model.encoder.layers.1.self_attn.{part}_proj.weight" for part in "kv")


@pytest.mark.parametrize(
    "name, shape",
    [
        ("model.shared.weight", (5, 16)),
        ("model.decoder.layers.0.fc1.bias", (25,)),
        ("model.encoder.layers.1.fc2.weight", (24, 16)),
        (KEYS, (17, 16)),
        (KEYS, (16, 17)),
        (KEYS, ()),
        (KEYS, (16, 16, 1)),
        ("final_logits_bias", (1, 3)),
    ],
    ids=str,
)
def test_weights_of_another_shape_are_refused(directory, name, shape):
    weights = load_file(directory / "model.safetensors")
    save_file(weights | {name: torch.zeros(shape)}, directory / "model.safetensors")
    refused(directory, "weights")


def test_keys_and_values_of_other_shapes_that_add_up_are_refused(directory):
    weights = load_file(directory / "model.safetensors")
    save_file(weights | {KEYS: torch.zeros(20, 16), VALUES: torch.zeros(12, 16)}, directory / "model.safetensors")
    refused(directory, "weights")


def test_missing_and_unknown_weights_are_refused_by_name(directory):
    weights = load_file(directory / "model.safetensors")
    missing = {name: tensor for name, tensor in weights.items() if name != VALUES}
    save_file(missing, directory / "model.safetensors")
    refused(directory, "encoder.1.self_attention.key_value.weight is missing")
    save_file(weights | {"model.adapter.weight": torch.zeros(2)}, directory / "model.safetensors")
    refused(directory, "model.adapter.weight")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": {"type": "Magic"}}', DEEP], ids=range(5))
def test_a_tokenizer_that_is_none_is_refused(directory, content):
    (directory / "tokenizer.json").write_text(content, encoding="utf-8")
    refused(directory, "tokenizer.json: i", "; ")


@pytest.mark.parametrize("texts", [["one two"], [f"word{i}" for i in range(300)]], ids=["smaller", "larger"])
def test_the_tokenizer_of_another_model_is_refused(directory, texts):
    train_tokenizer(texts, "word", 1000).save(str(directory / "tokenizer.json"))
    refused(directory, "tokenizer", "belongs to another model")


@pytest.mark.parametrize(
    "index", ["", "{}", '{"weight_map": []}', '{"weight_map": {"a": "../x"}}', '{"weight_map": {"a": 3}}']
)
def test_a_hostile_index_of_shards_is_refused(directory, index):
    (directory / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    refused(directory, str(directory))


def test_a_save_that_fails_leaves_the_model_before_it(directory, tiny, tokenizer, make_model, monkeypatch):
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    class Full:
        def save(self, path):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        marian.save(directory, make_model(tiny.config.vocab_size, seed=1), Full())

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_directory, "save_file", fail)
    with pytest.raises(OSError, match="No space"):
        marian.save(directory, make_model(tiny.config.vocab_size, seed=1), tokenizer)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


@pytest.mark.parametrize("moves", range(5))
def test_a_save_that_is_cut_short_leaves_no_mixture_of_two_models(
    directory, tiny, tokenizer, make_model, monkeypatch, moves
):
    """As by a kill: so many files are moved in, and no more."""
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model.safetensors"}}')
    left, replace = iter(range(moves)), model_directory.os.replace

    def cut_short(*paths):
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(model_directory.os, "replace", cut_short)
    other = make_model(tiny.config.vocab_size, seed=1)  # of the same shapes
    with pytest.raises(KeyboardInterrupt):
        marian.save(directory, other, tokenizer)
    with pytest.raises(InputError, match="no model here"):
        marian.load(directory, CPU)
    monkeypatch.setattr(model_directory.os, "replace", replace)
    marian.save(directory, other, tokenizer)
    loaded, _ = marian.load(directory, CPU)
    assert all(map(torch.equal, marian.to_marian(loaded).values(), marian.to_marian(other).values()))
    assert {path.name for path in directory.iterdir()} == FILES


def test_a_save_replaces_the_model_before_it(directory, tiny, tokenizer, make_model):
    other = make_model(tiny.config.vocab_size, seed=1, n_encoder_layers=1)
    (directory / ".saving-and-killed").mkdir()
    marian.save(directory, other, tokenizer)
    loaded, _ = marian.load(directory, CPU)
    assert loaded.config.n_encoder_layers == 1
    assert torch.equal(loaded.embeddings.token.weight, other.embeddings.token.weight)
    assert {path.name for path in directory.iterdir()} == FILES
