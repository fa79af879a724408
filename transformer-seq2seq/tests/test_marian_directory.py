"""The model directory: written for Hugging Face and CTranslate2, read from others, refused if damaged."""

import json
import pickle

import ctranslate2
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, MarianConfig, MarianMTModel

from decoding import generate_all
from seq2seq import marian as pretrained
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
ODD_TEXTS = [
    "The cook bakes the bread",
    "  two   spaces and\ta tab ",
    "Hello,cook!? (yes)",
    "cafe\u0301 \ufb01sh \u00a0",
    "zebra 👩‍👩‍👧 שלום",
    "",
    "...",
    "cook",
    "it's a-b",
    "write </s> and <pad>, <unk>",
]


@pytest.fixture
def directory(tmp_path, tiny, tokenizer):
    """A model directory that save wrote."""
    pretrained.save(tmp_path / "model", tiny, tokenizer)
    return tmp_path / "model"


def edit(path, **changes):
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def batch(size):
    """A padded source and a target for a vocabulary of this size."""
    pad = size - 1
    source = torch.tensor([[3, 4, 5, 6, 0], [7, 8, 0, pad, pad]])
    return source, torch.tensor([[pad, 5, 6, 7], [pad, 9, 3, 2]])


@torch.no_grad()
def assert_same_logits(ours, theirs):
    source, target = batch(ours.config.vocab_size)
    expected = theirs(
        input_ids=source,
        attention_mask=(source != ours.config.pad_id).long(),
        decoder_input_ids=target,
    ).logits
    logits = ours(source, target)
    real = [i for i in range(ours.config.vocab_size) if i != ours.config.pad_id]
    torch.testing.assert_close(logits[..., real], expected[..., real], rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------ our own


def test_save_writes_these_files_alone(directory):
    assert {path.name for path in directory.iterdir()} == FILES


@pytest.mark.parametrize("sizes", [{}, {"n_encoder_layers": 1, "n_decoder_layers": 3, "activation": "swish"}])
def test_loading_gives_back_every_bit(tmp_path, make_model, tokenizer, sizes):
    model = make_model(tokenizer.get_vocab_size(), **sizes)
    pretrained.save(tmp_path, model, tokenizer)
    loaded, loaded_tokenizer = pretrained.load(tmp_path, CPU)
    assert loaded.config == model.config and not loaded.training
    assert loaded_tokenizer.to_str() == tokenizer.to_str()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    source, target = batch(model.config.vocab_size)
    assert torch.equal(loaded(source, target), model(source, target))


def test_a_compiled_model_is_saved_under_the_same_names(tmp_path, directory, tiny, tokenizer):
    pretrained.save(tmp_path / "compiled", torch.compile(tiny), tokenizer)
    files = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path / "compiled", directory)]
    assert files[0] == files[1]


def test_config_says_what_marian_needs(directory, tiny):
    config, generation = (
        json.loads((directory / name).read_text()) for name in ("config.json", "generation_config.json")
    )
    size = tiny.config.vocab_size
    assert config["model_type"] == "marian" and config["architectures"] == ["MarianMTModel"]
    for field, value in {
        "vocab_size": size,
        "decoder_vocab_size": size,
        "pad_token_id": size - 1,
        "decoder_start_token_id": size - 1,
        "eos_token_id": 0,
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "max_position_embeddings": 16,
        "activation_function": "relu",
        "scale_embedding": True,
    }.items():
        assert config[field] == value, field
    assert generation["bad_words_ids"] == [[size - 1]]


# -------------------------------------------------------------------------------- as others see it


def test_hugging_face_opens_it_with_equal_logits(directory, tiny):
    theirs, report = AutoModelForSeq2SeqLM.from_pretrained(directory, output_loading_info=True)
    assert isinstance(theirs, MarianMTModel)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert_same_logits(tiny, theirs.eval())


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_hugging_faces_tokenizer_gives_the_same_ids(tmp_path, make_model, tokenizer, bpe, kind):
    ours = {"word": tokenizer, "bpe": bpe}[kind]
    pretrained.save(tmp_path, make_model(ours.get_vocab_size()), ours)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.unk_token_id, theirs.pad_token_id) == (
        0,
        1,
        ours.get_vocab_size() - 1,
    )
    loaded = pretrained.load(tmp_path, CPU)[1]
    for text in ODD_TEXTS:
        assert theirs(text).input_ids == ours.encode(text).ids == loaded.encode(text).ids
        assert theirs.decode(ours.encode(text).ids[:-1]) == ours.decode(
            ours.encode(text).ids[:-1], skip_special_tokens=False
        )


def test_ctranslate2_converts_it_and_answers_alike(trained, tmp_path, training, held_out):
    converter = ctranslate2.converters.TransformersConverter(str(trained / "model"))
    converter.convert(str(tmp_path / "converted"))
    translator = ctranslate2.Translator(str(tmp_path / "converted"), inter_threads=1, intra_threads=1)
    model, tokenizer = pretrained.load(trained / "model", CPU)
    encodings = tokenizer.encode_batch([source for source, *_ in training + held_out])
    theirs = translator.translate_batch(
        [encoding.tokens for encoding in encodings], beam_size=1, max_decoding_length=15
    )
    ours = generate_all(model, [encoding.ids for encoding in encodings], 15)
    assert [[tokenizer.id_to_token(i) for i in found[0].ids] for found in ours] == [
        result.hypotheses[0] for result in theirs
    ]


# -------------------------------------------------------------------------------- what others wrote


@pytest.fixture
def foreign(tmp_path, tokenizer):
    """foreign(**changes) -> a random MarianMTModel, and the directory where transformers saved it."""

    def make(shard="5GB", **changes):
        size = tokenizer.get_vocab_size()
        fields = {
            "vocab_size": size,
            "pad_token_id": size - 1,
            "decoder_start_token_id": size - 1,
            "eos_token_id": 0,
            "forced_eos_token_id": 0,
            "d_model": 24,
            "encoder_layers": 3,
            "decoder_layers": 1,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 20,
            "decoder_ffn_dim": 20,
            "max_position_embeddings": 32,
            "activation_function": "swish",
            "scale_embedding": True,
        }
        torch.manual_seed(0)
        model = MarianMTModel(MarianConfig(**fields | changes)).eval()
        with torch.no_grad():
            model.final_logits_bias.normal_()
            for name, parameter in model.named_parameters():
                if "embed_positions" not in name:
                    parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(tmp_path / "foreign", max_shard_size=shard)
        tokenizer.save(str(tmp_path / "foreign" / "tokenizer.json"))
        return model, tmp_path / "foreign"

    return make


@pytest.mark.parametrize("activation, layers", [("swish", (3, 1)), ("relu", (1, 2))])
def test_a_model_that_transformers_saved_has_equal_logits(foreign, activation, layers):
    theirs, path = foreign(activation_function=activation, encoder_layers=layers[0], decoder_layers=layers[1])
    assert_same_logits(pretrained.load(path, CPU)[0], theirs)


def test_sharded_weights_are_read(foreign):
    theirs, path = foreign(shard="10KB")
    shards = list(path.glob("model-*.safetensors"))
    assert len(shards) > 2 and not (path / "model.safetensors").exists()
    assert_same_logits(pretrained.load(path, CPU)[0], theirs)
    shards[0].unlink()
    with pytest.raises(InputError, match=shards[0].name):
        pretrained.load(path, CPU)


def test_half_precision_weights_are_read_as_fp32(directory):
    weights = load_file(directory / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in weights.items()}, directory / "model.safetensors")
    model, _ = pretrained.load(directory, CPU)
    for name, tensor in pretrained.to_marian(model).items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------------------------- refusals


def refused(directory, *fragments):
    with pytest.raises(InputError) as caught:
        pretrained.load(directory, CPU)
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
        ("d_model", -16),
        ("d_model", 0),
        ("d_model", "16"),
        ("d_model", 16.0),
        ("d_model", True),
        ("d_model", None),
        ("d_model", 10**30),
        ("d_model", [16]),
        ("encoder_layers", 0),
        ("encoder_layers", 10**9),
        ("decoder_layers", -1),
        ("encoder_attention_heads", 0),
        ("encoder_ffn_dim", {}),
        ("vocab_size", 10**12),
        ("max_position_embeddings", 10**12),
        ("pad_token_id", -1),
        ("eos_token_id", 0.5),
        ("eos_token_id", [0]),
        ("dropout", float("nan")),
        ("dropout", 1),
        ("dropout", "0.1"),
        ("activation_function", "gelu"),
        ("activation_function", ["relu"]),
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
    refused(directory, f"config.json: {field} is")


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

    monkeypatch.setattr(pretrained, "names", build)
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
        pretrained.save(directory, make_model(tiny.config.vocab_size, seed=1), Full())

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrained, "save_file", fail)
    with pytest.raises(OSError, match="No space"):
        pretrained.save(directory, make_model(tiny.config.vocab_size, seed=1), tokenizer)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


@pytest.mark.parametrize("moves", range(5))
def test_a_save_that_is_cut_short_leaves_no_mixture_of_two_models(
    directory, tiny, tokenizer, make_model, monkeypatch, moves
):
    """As by a kill: so many files are moved in, and no more."""
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model.safetensors"}}')
    left, replace = iter(range(moves)), pretrained.os.replace

    def cut_short(*paths):
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(pretrained.os, "replace", cut_short)
    other = make_model(tiny.config.vocab_size, seed=1)  # of the same shapes
    with pytest.raises(KeyboardInterrupt):
        pretrained.save(directory, other, tokenizer)
    with pytest.raises(InputError, match="no model here"):
        pretrained.load(directory, CPU)
    monkeypatch.setattr(pretrained.os, "replace", replace)
    pretrained.save(directory, other, tokenizer)
    loaded, _ = pretrained.load(directory, CPU)
    assert all(map(torch.equal, loaded.state_dict().values(), other.state_dict().values()))
    assert {path.name for path in directory.iterdir()} == FILES


def test_a_save_replaces_the_model_before_it(directory, tiny, tokenizer, make_model):
    other = make_model(tiny.config.vocab_size, seed=1, n_encoder_layers=1)
    (directory / ".saving-and-killed").mkdir()
    pretrained.save(directory, other, tokenizer)
    loaded, _ = pretrained.load(directory, CPU)
    assert loaded.config.n_encoder_layers == 1
    assert torch.equal(loaded.embeddings.token.weight, other.embeddings.token.weight)
    assert {path.name for path in directory.iterdir()} == FILES
