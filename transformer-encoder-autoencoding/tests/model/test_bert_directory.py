"""The model directory: what we save opens with Hugging Face's transformers, and a BERT that transformers saved opens
with us, to the same ids, logits and attention. So our encoder is BERT, and not only something like it."""

import json

import pytest
import torch
from hf_bert import save_bert
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    pipeline,
)

from mlm import MaskFiller, bert
from mlm.common.errors import InputError
from mlm.explorer.reading import guess_each
from mlm.tokenizer import train_tokenizer

CPU = torch.device("cpu")
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


def batch(tokenizer, texts=("the cat sees a [MASK]", "a dog", "the [MASK] chases the small cat today")):
    """Return ids (B, S) of several lengths, padded, and Hugging Face's attention mask."""
    rows = [tokenizer.encode(text).ids for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, (ids != 0).long()


@torch.no_grad()
def assert_same_logits(ours, theirs, tokenizer):
    """The logits of both agree to five digits (in single precision), and are not all about the same."""
    ids, mask = batch(tokenizer)
    assert not mask.all()
    output = theirs.eval()(input_ids=ids, attention_mask=mask)
    expected = output.prediction_logits if hasattr(output, "prediction_logits") else output.logits
    assert expected.std() > 0.02
    torch.testing.assert_close(ours(ids)[mask == 1], expected[mask == 1], rtol=0, atol=1e-5)


# ---- ours, opened by Hugging Face


@pytest.mark.parametrize("kind", ["word", "bpe"])
@pytest.mark.parametrize("tied", [True, False])
def test_hugging_face_gives_the_same_ids_and_logits(tmp_path, make_model, training, kind, tied):
    tokenizer = train_tokenizer(training, kind, 300)
    model = make_model(tokenizer.get_vocab_size(), tied_embeddings=tied)
    bert.save(tmp_path, model, tokenizer)
    theirs, problems = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(problems.values()), problems
    assert_same_logits(model, theirs, tokenizer)
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert their_tokenizer.mask_token_id == 4 and their_tokenizer.pad_token_id == 0
    assert their_tokenizer.model_max_length == model.config.max_length
    for text in ODD_TEXTS:
        assert their_tokenizer(text)["input_ids"] == tokenizer.encode(text).ids, text


@torch.no_grad()
def test_hugging_face_gives_the_same_attention_maps(tmp_path, tiny, tokenizer):
    bert.save(tmp_path, tiny, tokenizer)
    options = {"attn_implementation": "eager", "add_pooling_layer": False}
    theirs = AutoModel.from_pretrained(tmp_path, **options).eval()
    ids, mask = batch(tokenizer)
    expected = theirs(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    ours = tiny.encoder(ids, need_weights=True)[1]
    assert len(ours) == len(expected) == 2
    for layer, their_layer in zip(ours, expected, strict=True):
        torch.testing.assert_close(layer, their_layer, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sentence", ["the cat [MASK] the mouse", "[MASK] dog", "our [MASK] drives a [MASK] car"])
def test_the_fill_mask_pipeline_says_the_same(tmp_path, tiny, tokenizer, sentence):
    """The pipeline is what most people fill masks with: the same words in the same order, as likely."""
    bert.save(tmp_path, tiny, tokenizer)
    theirs = pipeline("fill-mask", model=str(tmp_path), top_k=5)(sentence)
    ours = MaskFiller.load(tmp_path, "cpu")(sentence, top_k=5)
    for candidates, expected in zip(ours, theirs if len(ours) > 1 else [theirs], strict=True):
        assert [one["token"] for one in candidates] == [one["token_str"] for one in expected]
        probabilities = [one["probability"] for one in candidates]
        assert probabilities == pytest.approx([one["score"] for one in expected], abs=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_saving_and_loading_changes_no_bit(tmp_path, make_model, tokenizer, tied):
    model = make_model(tokenizer.get_vocab_size(), tied_embeddings=tied, dropout=0.25, layer_norm_eps=1e-6)
    bert.save(tmp_path / "model", model, tokenizer)
    loaded, same_tokenizer = bert.load(tmp_path / "model", CPU)
    assert loaded.config == model.config and not loaded.training
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (loaded.head.decoder.weight is loaded.encoder.embeddings.token.weight) == tied
    assert same_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert [same_tokenizer.encode(text).ids for text in ODD_TEXTS] == [tokenizer.encode(text).ids for text in ODD_TEXTS]


# ---- theirs, opened by us


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_bert_of_hugging_faces_gives_the_same_ids_and_logits(tmp_path, lowercase):
    """Its segment embedding, which we do not have, is not zero: it has moved into our positions."""
    theirs = save_bert(tmp_path, lowercase=lowercase)
    ours, tokenizer = bert.load(tmp_path, CPU)
    assert theirs.bert.embeddings.token_type_embeddings.weight[0].abs().sum() > 0
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*ODD_TEXTS, "Paris sees the Café, paris!", "THE DOGS CHASES"]:
        assert tokenizer.encode(text).ids == their_tokenizer(text)["input_ids"]
    assert ("paris" in tokenizer.encode("Paris").tokens) == lowercase
    assert_same_logits(ours, theirs, tokenizer)


VARIANTS = {
    "untied decoder": {"tie_word_embeddings": False},
    "with pooler and next-sentence head": {"kind": BertForPreTraining},
    "in shards": {"shards": True},
    "one segment": {"type_vocab_size": 1},
    "other norm": {"layer_norm_eps": 1e-3},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_variants_of_bert_give_the_same_logits(tmp_path, variant):
    theirs = save_bert(tmp_path, **variant)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2 or "shards" not in variant
    ours, tokenizer = bert.load(tmp_path, CPU)
    assert_same_logits(ours, theirs, tokenizer)


def test_the_first_checkpoints_are_read(tmp_path):
    """Norms named gamma and beta, as in 2018, numbers in fp16, and the copies that such files contain."""
    theirs = save_bert(tmp_path).half().float()
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["bert.embeddings.position_ids"] = torch.arange(32)[None]
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
    for name in [name for name in tensors if "LayerNorm" in name]:
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[old] = tensors.pop(name)
    tensors |= {name: t.half() for name, t in tensors.items() if t.is_floating_point()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours, tokenizer = bert.load(tmp_path, CPU)
    assert_same_logits(ours, theirs, tokenizer)


def test_what_was_theirs_and_saved_by_us_opens_with_them_again(tmp_path):
    """Their segment embedding has moved into the positions, and no logit has changed."""
    theirs = save_bert(tmp_path / "theirs")
    ours, tokenizer = bert.load(tmp_path / "theirs", CPU)
    bert.save(tmp_path / "ours", ours, tokenizer)
    reopened, problems = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(problems.values()), problems
    assert_same_logits(ours, theirs, tokenizer)
    assert_same_logits(ours, reopened, tokenizer)


# ---- directories as they lie about


def rewrite(path, change):
    """The tensors of model.safetensors become change(them)."""
    weights = change(load_file(path / "model.safetensors"))
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def test_a_tokenizer_of_the_first_years_is_read(tmp_path):
    """Its model has no type, config.json no model_type; or there is vocab.txt alone."""
    theirs = save_bert(tmp_path, lowercase=True)
    _, expected = bert.load(tmp_path, CPU)
    config, old = (json.loads((tmp_path / name).read_text()) for name in ("config.json", "tokenizer.json"))
    del config["model_type"], old["model"]["type"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text(json.dumps(old))
    ours, tokenizer = bert.load(tmp_path, CPU)
    assert_same_logits(ours, theirs, tokenizer)
    for text in ODD_TEXTS:
        assert tokenizer.encode(text).ids == expected.encode(text).ids


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": False}, {"strip_accents": False}])
def test_vocab_txt_is_read_as_hugging_face_reads_it(tmp_path, settings):
    save_bert(tmp_path)
    vocabulary = sorted(bert.load(tmp_path, CPU)[1].get_vocab().items(), key=lambda item: item[1])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocabulary), encoding="utf-8")
    if settings:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "BertTokenizer"}))
    tokenizer, theirs = bert.load(tmp_path, CPU)[1], BertTokenizer.from_pretrained(tmp_path)
    for text in [*ODD_TEXTS, "Paris sees the Café, paris!", "日本 cat"]:
        assert tokenizer.encode(text).ids == theirs(text)["input_ids"], text
    pair = tokenizer.encode("the cat", "a dog")
    assert (pair.ids, pair.type_ids) == tuple(
        theirs("the cat", "a dog")[name] for name in ("input_ids", "token_type_ids")
    )
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertJapaneseTokenizer"}')
    with pytest.raises(InputError, match="tokenizer_class is 'BertJapaneseTokenizer'"):
        bert.load(tmp_path, CPU)


def test_a_field_that_is_missing_means_what_it_does_to_hugging_face():
    optional = [field for field in bert.FIELDS.values() if field.default is not None]
    assert {field.name: field.read({}) for field in optional} == {
        field.name: getattr(BertConfig(), field.name) for field in optional
    }


@pytest.mark.parametrize("kind", [BertModel, BertForSequenceClassification])
def test_a_checkpoint_without_a_head_is_refused_by_that_name_or_given_one(tmp_path, kind):
    """BertModel's names have no prefix."""
    theirs = save_bert(tmp_path, kind=kind)
    with pytest.raises(InputError, match="has no masked-language-modelling head"):
        bert.load(tmp_path, CPU)
    ours, tokenizer = bert.load(tmp_path, CPU, new_head=True)
    ids, mask = batch(tokenizer)
    hidden = getattr(theirs, "bert", theirs)(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours.encoder(ids)[0][mask == 1], hidden[mask == 1], rtol=0, atol=1e-5)
    assert ours.head.transform.weight.std() > 0 and not ours.head.decoder.bias.any()
    assert ours.head.decoder.weight is ours.encoder.embeddings.token.weight


@pytest.mark.parametrize("there", [bert.TOKENS, bert.DECODER])
def test_the_tied_weight_is_read_under_any_of_its_names(tmp_path, there):
    theirs, word = save_bert(tmp_path), bert.TOKENS
    rewrite(tmp_path, lambda weights: weights | {there: weights.pop(word)})
    ours, tokenizer = bert.load(tmp_path, CPU)
    assert_same_logits(ours, theirs, tokenizer)
    rewrite(tmp_path, lambda weights: weights | {word: weights[there] + 1, bert.DECODER: weights[there]})
    with pytest.raises(InputError, match=r"decoder\.weight differs from"):
        bert.load(tmp_path, CPU)


def test_a_whole_file_counts_more_than_an_index_of_shards(tmp_path):
    theirs = save_bert(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1-of-2.safetensors"}}')
    ours, tokenizer = bert.load(tmp_path, CPU)
    assert_same_logits(ours, theirs, tokenizer)


def test_a_loaded_model_does_not_change_with_its_file(tmp_path, tiny, tokenizer):
    bert.save(tmp_path, tiny, tokenizer)
    loaded, _ = bert.load(tmp_path, CPU)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(8000)
        file.write(b"\1" * 20000)
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_vocabulary_that_is_padded_shows_no_id_without_a_token(tmp_path):
    """In a [MASK]'s candidates, and in the explorer's guesses."""
    save_bert(tmp_path, vocab_size=64)
    rewrite(tmp_path, lambda weights: weights | {"cls.predictions.bias": torch.arange(64.0)})
    filler = MaskFiller.load(tmp_path, "cpu")
    tokens = filler.tokenizer.get_vocab()
    (candidates,) = filler("the [MASK] cat", top_k=100)
    assert len(candidates) == len(tokens) < 64
    guesses = guess_each(filler.tokenizer.encode("the cat").ids, filler.model, filler.tokenizer)
    assert all(one["token"] in tokens for guess in guesses if guess for one in guess["best"])


def test_what_our_model_does_not_use_is_saved_again(tmp_path):
    """Two segments, the pair template that goes with them, and dropout of the attention weights."""
    theirs = save_bert(tmp_path / "theirs", attention_probs_dropout_prob=0.25, classifier_dropout=0.5)
    bert.save(tmp_path / "ours", *bert.load(tmp_path / "theirs", CPU))
    reopened = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours").eval()
    assert (reopened.config.attention_probs_dropout_prob, reopened.config.classifier_dropout) == (0.25, 0.5)
    pair = AutoTokenizer.from_pretrained(tmp_path / "ours")("the cat", "a dog", return_tensors="pt")
    assert pair["token_type_ids"].sum() > 1
    torch.testing.assert_close(reopened(**pair).logits, theirs(**pair).logits, rtol=0, atol=1e-5)
