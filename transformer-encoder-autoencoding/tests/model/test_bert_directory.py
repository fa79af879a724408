"""The model directory: ours opens with Hugging Face, theirs with us, to the same numbers; damage is told."""

import json
import pickle
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import BertWordPieceTokenizer
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    PreTrainedTokenizerFast,
    pipeline,
)

from mlm import bert as pretrained
from mlm.common.errors import InputError
from mlm.filling import Sentence, fill
from mlm.tokenizer import train_tokenizer

CPU = torch.device("cpu")
FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
ODD_TEXTS = [
    "the cat chases the small mouse",
    "  two   spaces and\ta tab ",
    "the [MASK] chases[MASK] a cat.",
    "[MASK]",
    "Hello,cat!? (yes)",
    "cafe\u0301 \ufb01sh \u00a0",
    "zebra 👩‍👩‍👧 שלום",
    "",
    "...",
    "it's a-b",
]
WORD_PIECES = [
    "the",
    "cat",
    "dog",
    "chase",
    "##s",
    "sees",
    "a",
    "small",
    "Paris",
    "paris",
    "caf",
    "cafe",
    "##é",
    ",",
    ".",
    "!",
    "'",
    "P",
    "p",
    "#",
    "##a",
    "##b",
]


@pytest.fixture
def directory(tmp_path, tiny, tokenizer):
    """A model directory that save wrote."""
    pretrained.save(tmp_path / "model", tiny, tokenizer)
    return tmp_path / "model"


def edit(path, **changes):
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def edit_weights(directory, change):
    """Rewrite the weights after change(tensors), which changes the dictionary in place."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def batch(tokenizer, texts=("the cat sees a [MASK]", "a dog", "the [MASK] chases the small cat today")):
    """Ids (B, S) of several lengths, padded, and Hugging Face's attention mask."""
    rows = [tokenizer.encode(text).ids for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, (ids != 0).long()


@torch.no_grad()
def assert_same_logits(ours, theirs, tokenizer):
    ids, mask = batch(tokenizer)
    assert not mask.all()
    expected = theirs.eval()(input_ids=ids, attention_mask=mask).logits
    assert expected.std() > 0.02
    torch.testing.assert_close(ours(ids)[mask == 1], expected[mask == 1], rtol=0, atol=1e-5)


# ---- ours, opened by Hugging Face


@pytest.mark.parametrize("tied", [True, False])
def test_saving_and_loading_changes_no_bit(tmp_path, make_model, tokenizer, tied):
    model = make_model(tokenizer.get_vocab_size(), tied_embeddings=tied, dropout=0.25, layer_norm_eps=1e-6)
    pretrained.save(tmp_path / "model", model, tokenizer)
    again, same_tokenizer = pretrained.load(tmp_path / "model", CPU)
    assert again.config == model.config and not again.training
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (again.head.decoder.weight is again.encoder.embeddings.token.weight) == tied
    assert same_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert [same_tokenizer.encode(text).ids for text in ODD_TEXTS] == [tokenizer.encode(text).ids for text in ODD_TEXTS]


def test_a_compiled_model_is_saved_under_the_same_names(tmp_path, directory, tiny, tokenizer):
    pretrained.save(tmp_path / "compiled", torch.compile(tiny), tokenizer)
    files = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path / "compiled", directory)]
    assert files[0] == files[1]


def test_a_directory_has_these_files_and_whoever_reads_one_reads_all(directory):
    assert {path.name for path in directory.iterdir()} == FILES
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert len(set(modes.values())) == 1, modes


@pytest.mark.parametrize("kind", ["word", "bpe"])
@pytest.mark.parametrize("tied", [True, False])
def test_hugging_face_gives_the_same_ids_and_logits(tmp_path, make_model, training, kind, tied):
    tokenizer = train_tokenizer(training, kind, 300)
    model = make_model(tokenizer.get_vocab_size(), tied_embeddings=tied)
    pretrained.save(tmp_path, model, tokenizer)
    theirs, problems = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(problems.values()), problems
    assert_same_logits(model, theirs, tokenizer)
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert their_tokenizer.mask_token_id == 4 and their_tokenizer.pad_token_id == 0
    assert their_tokenizer.model_max_length == model.config.max_length
    for text in ODD_TEXTS:
        assert their_tokenizer(text)["input_ids"] == tokenizer.encode(text).ids, text


@torch.no_grad()
def test_hugging_face_gives_the_same_attention_maps(directory, tiny, tokenizer):
    options = {"attn_implementation": "eager", "add_pooling_layer": False}
    theirs = AutoModel.from_pretrained(directory, **options).eval()
    ids, mask = batch(tokenizer)
    expected = theirs(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    ours = tiny.encoder(ids, need_weights=True)[1]
    assert len(ours) == len(expected) == 2
    for layer, their_layer in zip(ours, expected, strict=True):
        torch.testing.assert_close(layer, their_layer, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sentence", ["the cat [MASK] the mouse", "[MASK] dog", "our [MASK] drives a [MASK] car"])
def test_the_fill_mask_pipeline_says_the_same(trained, sentence):
    model, tokenizer = pretrained.load(trained / "model", CPU)
    theirs = pipeline("fill-mask", model=str(trained / "model"), top_k=5)(sentence)
    ours = fill([Sentence(sentence, "")], model, tokenizer, 5, CPU)[0]["masks"]
    for mask, their_mask in zip(ours, theirs if len(ours) > 1 else [theirs], strict=True):
        for candidate, expected in zip(mask, their_mask, strict=True):
            assert candidate["token"] == expected["token_str"]
            assert candidate["probability"] == pytest.approx(expected["score"], abs=1e-5)


# ---- theirs, opened by us


def save_theirs(directory, lowercase=True, kind=BertForMaskedLM, shards=False, **config):
    """A random model of Hugging Face's, saved by it with a word piece tokenizer -> the model."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: i for i, token in enumerate([*special, *WORD_PIECES])}
    sizes = {
        "vocab_size": len(vocabulary),
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_position_embeddings": 32,
        "initializer_range": 0.3,
    }
    torch.manual_seed(11)
    theirs = kind(BertConfig(**(sizes | config))).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(directory, **({"max_shard_size": "4KB"} if shards else {}))
    pieces = BertWordPieceTokenizer(vocabulary, lowercase=lowercase)
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, **named).save_pretrained(directory)
    return theirs


@pytest.mark.parametrize("lowercase", [True, False])
@torch.no_grad()
def test_a_bert_of_hugging_faces_gives_the_same_ids_and_logits(tmp_path, lowercase):
    theirs = save_theirs(tmp_path, lowercase)
    ours, tokenizer = pretrained.load(tmp_path, CPU)
    assert theirs.bert.embeddings.token_type_embeddings.weight[0].abs().sum() > 0
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*ODD_TEXTS, "Paris sees the Café, paris!", "THE DOGS CHASES"]:
        assert tokenizer.encode(text).ids == their_tokenizer(text)["input_ids"]
    assert ("paris" in tokenizer.encode("Paris").tokens) == lowercase
    assert_same_logits(ours, theirs, tokenizer)


def test_a_saved_model_replaces_one_in_shards(tmp_path, tiny, tokenizer):
    save_theirs(tmp_path, shards=True)
    pretrained.save(tmp_path, tiny, tokenizer)
    for name, tensor in pretrained.load(tmp_path, CPU)[0].state_dict().items():
        assert torch.equal(tensor, tiny.state_dict()[name])


@pytest.mark.parametrize("longest", [10**9, 0, "a", None, 100.5])
def test_a_tokenizer_that_would_take_hours_over_a_word_is_refused(tmp_path, longest):
    save_theirs(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    assert content["model"]["type"] == "WordPiece"
    content["model"]["max_input_chars_per_word"] = longest
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"takes words of .* characters, where at most 1,000 are"):
        pretrained.load(tmp_path, CPU)


VARIANTS = {
    "untied decoder": {"tie_word_embeddings": False},
    "with pooler and next-sentence head": {"kind": BertForPreTraining},
    "sharded": {"shards": True},
    "one segment": {"type_vocab_size": 1},
    "other norm": {"layer_norm_eps": 1e-3},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_variants_of_bert_give_the_same_logits(tmp_path, variant):
    theirs = save_theirs(tmp_path, **variant)
    if "shards" in variant:
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    ours, tokenizer = pretrained.load(tmp_path, CPU)
    ids, mask = batch(tokenizer)
    output = theirs(input_ids=ids, attention_mask=mask)
    expected = output.prediction_logits if hasattr(output, "prediction_logits") else output.logits
    torch.testing.assert_close(ours(ids)[mask == 1], expected[mask == 1], rtol=0, atol=1e-5)


def test_the_norms_of_the_first_checkpoints_and_half_precision_are_read(tmp_path):
    """gamma and beta, the names of 2018, fp16, and the copies that such files hold."""
    theirs = save_theirs(tmp_path).half().float()

    def age(tensors):
        tensors["bert.embeddings.position_ids"] = torch.arange(32)[None]
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
        for name in list(tensors):
            if "LayerNorm" in name:
                old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
                tensors[old.replace("LayerNorm.bias", "LayerNorm.beta")] = tensors.pop(name)
        tensors |= {name: t.half() for name, t in tensors.items() if t.is_floating_point()}

    edit_weights(tmp_path, age)
    assert_same_logits(pretrained.load(tmp_path, CPU)[0], theirs, pretrained.load(tmp_path, CPU)[1])


@torch.no_grad()
def test_what_was_theirs_and_saved_by_us_opens_with_them_again(tmp_path):
    """Their segment embedding has moved into the positions, and no logit has changed."""
    theirs = save_theirs(tmp_path / "theirs")
    ours, tokenizer = pretrained.load(tmp_path / "theirs", CPU)
    pretrained.save(tmp_path / "ours", ours, tokenizer)
    again, problems = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(problems.values()), problems
    assert_same_logits(ours, theirs, tokenizer)
    assert_same_logits(ours, again, tokenizer)


# ---- refusals


def refuse(directory, *fragments):
    """load refuses the directory in one line that holds all fragments."""
    with pytest.raises(InputError) as error:
        pretrained.load(directory, CPU)
    message = str(error.value)
    assert all(fragment in message for fragment in fragments), message
    assert "\n" not in message and len(message) < 1000, message


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"model_type": "gpt2"}, ["model_type", "gpt2", "bert"]),
        ({"model_type": "roberta"}, ["model_type", "roberta", "bert"]),
        ({"model_type": None}, ["model_type"]),
        ({"model_type": ["bert"]}, ["model_type"]),
        ({"position_embedding_type": "relative_key"}, ["position_embedding_type", "absolute"]),
        ({"is_decoder": True}, ["is_decoder"]),
        ({"add_cross_attention": True}, ["add_cross_attention"]),
        ({"hidden_act": "relu"}, ["hidden_act", "relu", "gelu"]),
        ({"vocab_size": -1}, ["vocab_size", "-1"]),
        ({"vocab_size": 10**30}, ["vocab_size"]),
        ({"hidden_size": 0}, ["hidden_size"]),
        ({"hidden_size": "16"}, ["hidden_size"]),
        ({"hidden_size": 16.0}, ["hidden_size"]),
        ({"hidden_size": True}, ["hidden_size"]),
        ({"hidden_size": 17}, ["hidden_size", "num_attention_heads"]),
        ({"num_attention_heads": 3}, ["num_attention_heads"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers"]),
        ({"num_hidden_layers": None}, ["num_hidden_layers"]),
        ({"num_hidden_layers": 3}, ["do not fit", "layers.2", "missing"]),
        ({"intermediate_size": -24}, ["intermediate_size"]),
        ({"intermediate_size": 25}, ["do not fit", "feed_forward"]),
        ({"max_position_embeddings": 10**12}, ["max_position_embeddings"]),
        ({"max_position_embeddings": 20}, ["do not fit", "position"]),
        ({"hidden_dropout_prob": 1.5}, ["hidden_dropout_prob"]),
        ({"hidden_dropout_prob": float("nan")}, ["hidden_dropout_prob"]),
        ({"layer_norm_eps": -1e-12}, ["layer_norm_eps"]),
        ({"layer_norm_eps": float("inf")}, ["layer_norm_eps"]),
        ({"pad_token_id": -1}, ["pad_token_id"]),
        ({"pad_token_id": 1}, ["tokenizer.json", "another model"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings"]),
        ({"tie_word_embeddings": False}, ["do not fit", "decoder"]),
    ],
    ids=str,
)
def test_a_config_that_is_not_berts_is_refused_by_field(directory, changes, fragments):
    edit(directory / "config.json", **changes)
    refuse(directory, *fragments)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null", '{"a": ' * 100_000, "9" * 10_000, "\ufeff\ufffd"])
def test_a_config_that_is_no_json_object_is_refused(directory, content):
    (directory / "config.json").write_text(content, encoding="utf-8")
    refuse(directory, "config.json")


def test_a_config_that_is_no_text_is_refused(directory):
    (directory / "config.json").write_bytes(b"\xff\xfe\x00{}")
    refuse(directory, "config.json")


def test_a_folder_without_a_model_is_refused_with_a_remedy(tmp_path):
    refuse(tmp_path, str(tmp_path), "train_mlm.py", "--model")
    refuse(tmp_path / "typo", "typo", "--model")


def test_a_missing_tokenizer_is_refused(directory):
    (directory / "tokenizer.json").unlink()
    refuse(directory, "tokenizer.json", "missing")


@pytest.mark.parametrize("content", [b"", b"{}", b"[", b"\xff\x00", b'{"model": {"type": "WordLevel"}}'])
def test_a_damaged_tokenizer_is_refused(directory, content):
    (directory / "tokenizer.json").write_bytes(content)
    refuse(directory, "tokenizer.json")


def test_the_tokenizer_of_another_model_is_refused(directory):
    train_tokenizer(["many words that are not in the vocabulary of this model " * 3], "bpe", 400).save(
        str(directory / "tokenizer.json")
    )
    refuse(directory, "tokenizer.json", "another model")


def test_a_tokenizer_without_mask_is_refused(directory):
    path = directory / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("[MASK]", "<mask>"), encoding="utf-8")
    refuse(directory, "[MASK]")


def test_missing_weights_are_refused(directory):
    (directory / "model.safetensors").unlink()
    refuse(directory, "model.safetensors", "missing")


def test_a_pickle_is_never_read(directory):
    """A pickle that would leave a trace if it were opened."""
    (directory / "model.safetensors").unlink()
    trace = directory / "trace"

    class Trap:
        def __reduce__(self):
            return open, (str(trace), "w")

    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    refuse(directory, "pickle", "safetensors")
    assert not trace.exists()


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, -1])
def test_truncated_weights_are_refused(directory, keep):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refuse(directory, "model.safetensors", "damaged")


def test_a_missing_or_damaged_shard_is_refused(tmp_path):
    save_theirs(tmp_path, shards=True)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:50])
    refuse(tmp_path, shard.name, "damaged")
    shard.unlink()
    refuse(tmp_path, shard.name, "missing")


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../../x"}}'])
def test_a_damaged_index_of_shards_is_refused(directory, index):
    (directory / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    refuse(directory, str(directory))


QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("name", "tensor", "fragments"),
    [
        (QUERY, torch.zeros(15, 16), ["query"]),
        (QUERY, torch.zeros(16, 15), ["query"]),
        (QUERY, torch.tensor(1.0), ["query"]),
        ("bert.embeddings.word_embeddings.weight", torch.zeros(5, 16), ["token.weight", "[5, 16]"]),
        ("bert.embeddings.LayerNorm.weight", torch.zeros(17), ["norm.weight", "[17]"]),
        ("bert.embeddings.LayerNorm.weight", torch.tensor(1.0), ["norm.weight", "[]"]),
        ("bert.embeddings.position_embeddings.weight", torch.zeros(24, 15), ["token_type", "does not fit"]),
        ("bert.embeddings.token_type_embeddings.weight", torch.zeros(2, 15), ["token_type"]),
        ("bert.embeddings.token_type_embeddings.weight", torch.zeros(0, 16), ["token_type"]),
        ("bert.embeddings.token_type_embeddings.weight", torch.zeros(16), ["token_type"]),
        ("bert.encoder.layer.2.output.dense.weight", torch.zeros(16, 24), ["layer.2.output.dense.weight"]),
        ("bert.encoder.layer.0.adapter.weight", torch.zeros(3), ["adapter.weight"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(directory, name, tensor, fragments):
    edit_weights(directory, lambda tensors: tensors.update({name: tensor}))
    refuse(directory, *fragments)


def test_a_missing_tensor_is_refused_by_name(directory):
    edit_weights(directory, lambda tensors: tensors.pop("cls.predictions.bias"))
    refuse(directory, "decoder.bias", "missing")


# ---- saving


@pytest.mark.parametrize("stage", ["tokenizer", "weights"])
def test_a_save_that_fails_leaves_the_previous_directory_as_it_was(directory, make_model, monkeypatch, stage):
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    class FullDisk:
        def save(self, path):
            if stage == "tokenizer":
                raise OSError(28, "No space left on device", path)

    def full(*_, **__):
        raise OSError(28, "No space left on device", "model.safetensors")

    if stage == "weights":
        monkeypatch.setattr(pretrained, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        pretrained.save(directory, make_model(50, seed=1), FullDisk())
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


@pytest.mark.parametrize("moves", range(4))
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


def test_saving_over_a_model_replaces_it(directory, make_model, bpe):
    model = make_model(bpe.get_vocab_size(), seed=5, n_layers=1)
    (directory / ".saving-and-killed").mkdir()
    pretrained.save(directory, model, bpe)
    again, tokenizer = pretrained.load(directory, CPU)
    assert {path.name for path in directory.iterdir()} == FILES
    assert again.config == model.config and tokenizer.get_vocab() == bpe.get_vocab()
