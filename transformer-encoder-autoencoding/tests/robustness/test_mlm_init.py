"""The commands on a BERT directory that Hugging Face transformers made, and training that goes on from it."""

import pytest
import torch
import transformers
from tokenizers import BertWordPieceTokenizer

from mlm import bert as pretrained


@pytest.fixture(scope="module")
def bert(tmp_path_factory, training):
    """A random BertForMaskedLM with an uncased WordPiece tokenizer, saved by transformers."""
    folder = tmp_path_factory.mktemp("bert")
    pieces = BertWordPieceTokenizer(lowercase=True)
    pieces.train_from_iterator(training, vocab_size=120, show_progress=False)
    (vocabulary,) = pieces.save_model(str(folder))
    tokenizer = transformers.BertTokenizerFast(vocab=vocabulary)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=20,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    transformers.BertForMaskedLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def test_fill_mask_gives_the_pipelines_words_and_probabilities(bert, script):
    sentence = "The dog chases the [MASK] cat"
    status, out, _ = script("fill_mask", "--model", bert, "--top-k", 3, sentence)
    theirs = transformers.pipeline("fill-mask", model=str(bert), top_k=3)(sentence)
    assert status == 0
    assert out.splitlines()[1:] == [f"  {one['score']:7.2%}  {one['token_str']}" for one in theirs]


def test_visualize_attention_draws_it(bert, script, tmp_path):
    status, _, err = script("visualize_attention", "--model", bert, "--output", tmp_path, "The [MASK] cat")
    assert (status, err) == (0, "")
    assert {file.name for file in tmp_path.iterdir()} == {"attention_heatmap.png", "attention_heads.png"}
    flags = "--model", bert, "--html", "--output", tmp_path / "page", "The [MASK] cat"
    assert script("visualize_attention", *flags)[::2] == (0, "")
    assert [file.name for file in (tmp_path / "page").iterdir()] == ["attention.html"]


def test_training_goes_on_from_its_weights_with_its_tokenizer(bert, script, tmp_path, training):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(training), encoding="utf-8")
    flags = "--init", bert, "--corpus", corpus, "--max-steps", 3, "--output", tmp_path / "on"
    assert script("train_mlm", *flags, "--learning-rate", 1e-9)[0] == 0
    before, pieces = pretrained.load(bert, torch.device("cpu"))
    after, tokenizer = pretrained.load(tmp_path / "on" / "model", torch.device("cpu"))
    assert tokenizer.to_str() == pieces.to_str()
    for (
        name,
        tensor,
    ) in after.state_dict().items():  # so low a learning rate leaves the weights where they were
        torch.testing.assert_close(tensor, before.state_dict()[name], atol=1e-5, rtol=0)

    assert script("train_mlm", *flags, "--learning-rate", 0.01)[0] == 0
    moved = pretrained.load(tmp_path / "on" / "model", torch.device("cpu"))[0].state_dict()
    assert all(not torch.equal(tensor, before.state_dict()[name]) for name, tensor in moved.items())
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "on" / "model")
    assert theirs("THE dog [MASK] unseen")["input_ids"] == pieces.encode("THE dog [MASK] unseen").ids
    transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "on" / "model")


def test_sizes_and_init_exclude_each_other(bert, script, tmp_path):
    status, _, err = script("train_mlm", "--init", bert, "--tokenizer", "bpe", "--output", tmp_path)
    assert status == 2 and "--init and --tokenizer exclude each other" in err
