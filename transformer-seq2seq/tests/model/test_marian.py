"""The model directory is the exchange format: Hugging Face and CTranslate2 open what we save, and compute the same;
we open what Hugging Face saves, and compute the same."""

import json

import ctranslate2
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, MarianConfig, MarianMTModel

from seq2seq import Translator, marian
from seq2seq.common.errors import InputError
from seq2seq.generation import generate_all
from seq2seq.tokenizer import to_text

CPU = torch.device("cpu")
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
    marian.save(tmp_path / "model", tiny, tokenizer)
    return tmp_path / "model"


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


@pytest.mark.parametrize("sizes", [{}, {"n_encoder_layers": 1, "n_decoder_layers": 3, "activation": "swish"}])
def test_loading_gives_back_every_bit(tmp_path, make_model, tokenizer, sizes):
    model = make_model(tokenizer.get_vocab_size(), **sizes)
    with torch.no_grad():
        model.output_bias[model.config.pad_id] = marian.PAD_BIAS  # which save writes, whatever it was
    marian.save(tmp_path, model, tokenizer)
    loaded, loaded_tokenizer = marian.load(tmp_path, CPU)
    assert loaded.config == model.config and not loaded.training
    assert loaded_tokenizer.to_str() == tokenizer.to_str()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    source, target = batch(model.config.vocab_size)
    assert torch.equal(loaded(source, target), model(source, target))


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
    assert json.loads((directory / "tokenizer_config.json").read_text())["clean_up_tokenization_spaces"] is False


# -------------------------------------------------------------------------------- as others see it


def test_hugging_face_opens_it_with_equal_logits(directory, tiny):
    theirs, report = AutoModelForSeq2SeqLM.from_pretrained(directory, output_loading_info=True)
    assert isinstance(theirs, MarianMTModel)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert_same_logits(tiny, theirs.eval())


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_hugging_faces_tokenizer_gives_the_same_ids(tmp_path, make_model, tokenizer, bpe, kind):
    ours = {"word": tokenizer, "bpe": bpe}[kind]
    marian.save(tmp_path, make_model(ours.get_vocab_size()), ours)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.unk_token_id, theirs.pad_token_id) == (
        0,
        1,
        ours.get_vocab_size() - 1,
    )
    loaded = marian.load(tmp_path, CPU)[1]
    for text in ODD_TEXTS:
        assert theirs(text).input_ids == ours.encode(text).ids == loaded.encode(text).ids
        assert theirs.decode(ours.encode(text).ids[:-1]) == ours.decode(
            ours.encode(text).ids[:-1], skip_special_tokens=False
        )


@pytest.mark.parametrize("beam", [1, 3])
def test_pad_is_never_generated_by_others(tmp_path, make_model, tokenizer, beam):
    """Here Transformer.project excludes it; other programs must learn it from the files: Hugging Face from
    generation_config.json or, if somebody replaces that, from the bias; CTranslate2 drops <pad> as it is the last."""
    model = make_model(tokenizer.get_vocab_size())
    pad = model.config.pad_id
    with torch.no_grad():
        model.output_bias[pad] = 100
        model.output_bias[0] = -100  # </s> never comes
    marian.save(tmp_path / "model", model, tokenizer)
    theirs, source = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model"), torch.tensor([[3, 4, 5, 0]])
    for bad_words in ([[pad]], None):
        theirs.generation_config.bad_words_ids = bad_words
        found = theirs.generate(source, num_beams=beam, max_new_tokens=8)[0]
        assert len(found) == 9 and pad not in found[1:]
    ctranslate2.converters.TransformersConverter(str(tmp_path / "model")).convert(str(tmp_path / "converted"))
    translator = ctranslate2.Translator(str(tmp_path / "converted"), inter_threads=1, intra_threads=1)
    tokens = [tokenizer.id_to_token(i) for i in source[0].tolist()]
    (found,) = translator.translate_batch([tokens], beam_size=beam, max_decoding_length=8)
    assert len(found.hypotheses[0]) == 8 and "<pad>" not in found.hypotheses[0]


def test_ctranslate2_converts_it_and_answers_alike(trained, tmp_path, training, held_out):
    converter = ctranslate2.converters.TransformersConverter(str(trained / "model"))
    converter.convert(str(tmp_path / "converted"))
    translator = ctranslate2.Translator(str(tmp_path / "converted"), inter_threads=1, intra_threads=1)
    model, tokenizer = marian.load(trained / "model", CPU)
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
    assert_same_logits(marian.load(path, CPU)[0], theirs)


def test_sharded_weights_are_read(foreign):
    theirs, path = foreign(shard="10KB")
    shards = list(path.glob("model-*.safetensors"))
    assert len(shards) > 2 and not (path / "model.safetensors").exists()
    assert_same_logits(marian.load(path, CPU)[0], theirs)
    shards[0].unlink()
    with pytest.raises(InputError, match=shards[0].name):
        marian.load(path, CPU)


def test_half_precision_weights_are_read_as_fp32(directory):
    weights = load_file(directory / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in weights.items()}, directory / "model.safetensors")
    model, _ = marian.load(directory, CPU)
    for name, tensor in marian.to_marian(model).items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-3)


def rewrite(path, change):
    """The tensors of model.safetensors become change(them)."""
    weights = change(load_file(path / "model.safetensors"))
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("there", [marian.EMBEDDING, *marian.TIED])
def test_the_tied_weight_is_read_under_any_of_its_names(foreign, there):
    theirs, path = foreign()
    rewrite(path, lambda weights: weights | {there: weights.pop(marian.EMBEDDING)})
    assert_same_logits(marian.load(path, CPU)[0], theirs)


def test_an_output_matrix_that_is_not_the_embedding_is_refused_by_name(foreign):
    _, path = foreign()
    rewrite(path, lambda weights: weights | {"lm_head.weight": weights[marian.EMBEDDING] + 1})
    with pytest.raises(InputError, match=r"lm_head\.weight differs from model\.shared\.weight"):
        marian.load(path, CPU)


def test_a_whole_file_counts_more_than_an_index_of_shards(foreign):
    theirs, path = foreign()
    (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1-of-2.safetensors"}}')
    assert_same_logits(marian.load(path, CPU)[0], theirs)


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_its_defaults_of_generation_are_ours_and_are_saved_again(foreign, tmp_path, name, capsys):
    """In older models they stand in config.json. max_length counts the start of the output, ours does not."""
    theirs, path = foreign()
    if name == "config.json":
        (path / "generation_config.json").unlink()
    content = json.loads((path / name).read_text())
    wanted = {"num_beams": 3, "length_penalty": 0.5, "max_length": 9}
    (path / name).write_text(json.dumps(content | wanted | {"no_repeat_ngram_size": 2, "bad_words_ids": None}))
    translator = Translator.load(path, "cpu")
    assert capsys.readouterr().err.count("no_repeat_ngram_size is not supported") == 1
    prompt = "The cook bakes the bread"
    assert translator(prompt) == translator(prompt, beam=3, length_penalty=0.5, max_length=8)
    assert len(translator(prompt, n_best=2)) == 2
    source = torch.tensor([translator.tokenizer.encode(prompt).ids])
    pad = translator.model.config.pad_id
    theirs.generation_config.forced_eos_token_id = None  # in the place of the last word
    found = theirs.generate(source, num_beams=3, length_penalty=0.5, max_length=9, bad_words_ids=[[pad]])[0, 1:]
    assert translator(prompt) == to_text(translator.tokenizer, [i for i in found.tolist() if i not in (0, pad)])
    marian.save(tmp_path / "on", translator.model, translator.tokenizer)
    saved = json.loads((tmp_path / "on" / "generation_config.json").read_text())
    assert wanted.items() <= saved.items()
