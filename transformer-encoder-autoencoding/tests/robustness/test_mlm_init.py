"""The scripts on a BERT directory that Hugging Face's transformers saved, and training that starts from it."""

import shutil

import pytest
import torch
import transformers
from hf_bert import save_bert

from mlm import bert


@pytest.fixture(scope="module")
def directory(tmp_path_factory, training):
    """A random BertForMaskedLM that knows the training sentences' words, uncased."""
    path = tmp_path_factory.mktemp("bert") / "model"
    save_bert(path, pieces=" ".join(sorted({word for line in training for word in line.split()})))
    return path


def test_fill_mask_gives_the_pipelines_words_and_probabilities(directory, script):
    sentence = "The dog chases the [MASK] cat"
    status, out, _ = script("fill_mask", "--model", directory, "--top-k", 3, sentence)
    theirs = transformers.pipeline("fill-mask", model=str(directory), top_k=3)(sentence)
    assert status == 0
    assert out.splitlines()[1:] == [f"  {one['score']:7.2%}  {one['token_str']}" for one in theirs]


def test_visualize_attention_draws_it(directory, script, tmp_path):
    status, _, err = script("visualize_attention", "--model", directory, "--output", tmp_path, "The [MASK] cat")
    assert (status, err) == (0, "")
    assert {file.name for file in tmp_path.iterdir()} == {"attention_heatmap.png", "attention_heads.png"}
    flags = "--model", directory, "--html", "--output", tmp_path / "page", "The [MASK] cat"
    assert script("visualize_attention", *flags)[::2] == (0, "")
    assert [file.name for file in (tmp_path / "page").iterdir()] == ["attention.html"]


def test_training_goes_on_from_its_weights_with_its_tokenizer(directory, script, tmp_path, training):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join([*training, " ".join(training)]), encoding="utf-8")  # more than its 32 positions
    flags = "--init", directory, "--corpus", corpus, "--max-steps", 3, "--output", tmp_path / "on"
    assert script("train_mlm", *flags, "--learning-rate", 1e-9)[0] == 0
    before, pieces = bert.load(directory, torch.device("cpu"))
    after, tokenizer = bert.load(tmp_path / "on" / "model", torch.device("cpu"))
    assert tokenizer.to_str() == pieces.to_str()
    for name, tensor in after.state_dict().items():  # so low a learning rate leaves the weights where they were
        torch.testing.assert_close(tensor, before.state_dict()[name], atol=1e-5, rtol=0)

    assert script("train_mlm", *flags, "--learning-rate", 0.01)[0] == 0
    moved = bert.load(tmp_path / "on" / "model", torch.device("cpu"))[0].state_dict()
    assert all(not torch.equal(tensor, before.state_dict()[name]) for name, tensor in moved.items())
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "on" / "model")
    assert theirs("THE dog [MASK] unseen")["input_ids"] == pieces.encode("THE dog [MASK] unseen").ids
    transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "on" / "model")


def test_training_gives_a_head_to_a_model_without_one(script, tmp_path, training):
    """The same for the same seed. And tokens/ may be a link to another disk."""
    words = " ".join(sorted({word for line in training for word in line.split()}))
    save_bert(tmp_path / "bert", pieces=words, kind=transformers.BertModel)
    (tmp_path / "corpus.txt").write_text("\n".join(training), encoding="utf-8")
    weights = []
    for name in ("one", "two"):
        for folder in (tmp_path / name, tmp_path / f"{name}-disk"):
            folder.mkdir()
        (tmp_path / name / "tokens").symlink_to(tmp_path / f"{name}-disk")
        flags = "--corpus", tmp_path / "corpus.txt", "--max-steps", 1, "--output", tmp_path / name
        for _ in range(2):
            torch.manual_seed(len(weights))  # it does not matter what was drawn before
            status, _, err = script("train_mlm", "--init", tmp_path / "bert", *flags)
            assert status == 0, err
        assert (tmp_path / name / "tokens").is_symlink() and (tmp_path / f"{name}-disk" / "meta.json").is_file()
        weights.append(bert.load(tmp_path / name / "model", torch.device("cpu"))[0].state_dict())
    assert all(map(torch.equal, *(tensors.values() for tensors in weights)))


def test_training_goes_on_from_a_model_with_vocab_txt_alone(directory, script, tmp_path, training):
    """As many of the first years have."""
    shutil.copytree(directory, tmp_path / "bert")
    vocabulary = sorted(bert.load(directory, torch.device("cpu"))[1].get_vocab().items(), key=lambda item: item[1])
    (tmp_path / "bert" / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocabulary), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bert" / name).unlink()
    (tmp_path / "corpus.txt").write_text("\n".join(training), encoding="utf-8")
    flags = "--init", tmp_path / "bert", "--corpus", tmp_path / "corpus.txt", "--output", tmp_path / "on"
    for more in (["--max-steps", 1], ["--max-steps", 2, "--resume"]):
        status, _, err = script("train_mlm", *flags, *more)
        assert status == 0, err
    assert bert.load(tmp_path / "on" / "model", torch.device("cpu"))[1].get_vocab() == dict(vocabulary)


def test_sizes_and_init_exclude_each_other(directory, script, tmp_path):
    status, _, err = script("train_mlm", "--init", directory, "--tokenizer", "bpe", "--output", tmp_path)
    assert status == 2 and "init and tokenizer cannot be combined: the directory has its own (--tokenizer)" in err
