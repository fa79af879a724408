"""MarianMT directories as Helsinki-NLP publishes them, made here with a small SentencePiece model: ids,
logits and generated tokens equal Hugging Face's, and training goes on from them."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import sentencepiece
import torch
import transformers

from decoding import generate
from seq2seq import Translator, marian
from seq2seq.common.errors import InputError
from seq2seq.dataset import PairDataset
from seq2seq.marian_tokenizer import MarianTokenizer
from seq2seq.pairs import Pair

TEXTS = [
    "The capital of France is Paris",
    "  two  spaces, and a tail ",
    "Zürich — “quoted” über 日本 🙂",
    ">>deu<< The cook bakes the bread",
    "unknown: ЖЯ",
    "x" * 40,
    "",
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory, training):
    """A random MarianMTModel, saved by transformers, with the files of its tokenizer."""
    folder = tmp_path_factory.mktemp("opus")
    pieces = []
    for column, side in enumerate(("source", "target")):
        lines = (folder / f"{side}.txt").write_text("\n".join(pair[column] for pair in training), encoding="utf-8")
        assert lines
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / f"{side}.txt"),
            model_prefix=str(folder / side),
            vocab_size=70,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{side}.spm"))
        pieces += [model.id_to_piece(i) for i in range(3, model.get_piece_size())]
    tokens = dict.fromkeys(["</s>", "<unk>", ">>deu<<", *pieces, "<pad>"])
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    config = transformers.MarianConfig(
        vocab_size=len(tokens),
        pad_token_id=len(tokens) - 1,
        decoder_start_token_id=len(tokens) - 1,
        eos_token_id=0,
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=48,
        scale_embedding=True,
        activation_function="swish",
        init_std=0.4,
        forced_eos_token_id=None,
    )
    torch.manual_seed(0)
    model = transformers.MarianMTModel(config)
    model.final_logits_bias = torch.randn(1, len(tokens))
    model.generation_config.bad_words_ids = [[len(tokens) - 1]]
    model.save_pretrained(folder)
    theirs = transformers.MarianTokenizer(*(str(folder / name) for name in ("source.spm", "target.spm", "vocab.json")))
    theirs.save_pretrained(folder)
    return folder


def test_source_and_target_ids_and_decoded_text_equal_hugging_faces(directory):
    ours, theirs = MarianTokenizer(directory), transformers.MarianTokenizer.from_pretrained(directory)
    assert [encoding.ids for encoding in ours.encode_batch(TEXTS)] == theirs(TEXTS)["input_ids"]
    targets = theirs(text_target=TEXTS)["input_ids"]
    assert [encoding.ids for encoding in ours.encode_targets(TEXTS)] == targets
    assert targets != theirs(TEXTS)["input_ids"]
    for ids in targets:
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)


def test_offsets_point_at_unknown_words(directory):
    tokenizer = MarianTokenizer(directory)
    encoding = tokenizer.encode("The Ж cook")
    unknown = [span for span, i in zip(encoding.offsets, encoding.ids, strict=True) if i == tokenizer.ids["<unk>"]]
    assert ["The Ж cook"[start:end] for start, end in unknown] == ["Ж"]
    tokenizer.models = [SimpleNamespace(encode=lambda text, out_type: ["▁cat", "▁at"])]  # the second is in the first
    assert tokenizer.encode("cat at").offsets == [(0, 3), (4, 6), (6, 6)]


def test_logits_and_generated_tokens_equal_hugging_faces(directory):
    model = marian.load(directory, torch.device("cpu"))[0]
    theirs = transformers.MarianMTModel.from_pretrained(directory).eval()
    batch = transformers.MarianTokenizer.from_pretrained(directory)(TEXTS[:5], padding=True, return_tensors="pt")
    target = torch.randint(0, model.config.vocab_size - 1, (5, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(**batch, decoder_input_ids=target).logits
        ours = model(batch["input_ids"], target)
        torch.testing.assert_close(ours[..., :-1], expected[..., :-1], atol=1e-5, rtol=1e-5)  # all but <pad>
        for beam in (1, 4):
            found = theirs.generate(**batch, num_beams=beam, max_length=21)
            ours = generate(model, batch["input_ids"], 20, beam)
            for row, hypotheses in zip(found.tolist(), ours, strict=True):
                ids = [i for i in row if i != model.config.pad_id]
                assert (ids[: ids.index(0)] if 0 in ids else ids) == hypotheses[0].ids


def test_text_between_the_marks_of_a_language_code_is_text(directory):
    tokenizer = MarianTokenizer(directory)
    assert tokenizer.encode(">>deu<< The cook").ids[0] == tokenizer.ids[">>deu<<"]
    quoted = tokenizer.decode(tokenizer.encode(">> The cook << bakes").ids, skip_special_tokens=True)
    assert "The cook" in quoted and "bakes" in quoted


def test_targets_are_tokenized_by_the_target_model(directory):
    tokenizer = MarianTokenizer(directory)
    dataset = PairDataset.in_memory([Pair("The cook", "The child eats")], tokenizer, 48)
    assert dataset.source.ids.tolist() == tokenizer.encode("The cook").ids
    assert dataset.target.ids.tolist() == tokenizer.encode_targets(["The child eats"])[0].ids


def test_the_commands_take_it_and_training_goes_on_from_it(directory, script, tmp_path, training, write_pairs):
    status, out, _ = script("inference", "--model", directory, "--max-length", 5, "The cook")
    assert status == 0 and out == f"Input : The cook\nOutput: {Translator.load(directory)('The cook', max_length=5)}\n"
    status, _, err = script("visualize_attention", "--model", directory, "--output", tmp_path / "maps", "The cook")
    assert (status, err, len(list((tmp_path / "maps").iterdir()))) == (0, "", 3)
    flags = "--html", "--model", directory, "--output", tmp_path / "page", "The cook"
    status, _, err = script("visualize_attention", *flags)
    assert status == 0 and "the page cannot carry a SentencePiece tokenizer, so it shows this text only" in err
    assert [file.name for file in (tmp_path / "page").iterdir()] == ["attention.html"]

    pairs = write_pairs(tmp_path / "pairs.tsv", training)
    flags = (
        "--init",
        directory,
        "--pairs",
        pairs,
        "--max-steps",
        3,
        "--learning-rate",
        1e-9,
        "--output",
        tmp_path / "on",
    )
    assert script("train", *flags)[0] == 0
    before = marian.load(directory, torch.device("cpu"))[0].state_dict()
    after, tokenizer = marian.load(tmp_path / "on" / "model", torch.device("cpu"))
    assert isinstance(tokenizer, MarianTokenizer)
    before["output_bias"][-1] = marian.PAD_BIAS  # which save writes
    for name, tensor in after.state_dict().items():  # so low a learning rate leaves the weights where they were
        torch.testing.assert_close(tensor, before[name], atol=1e-5, rtol=0)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "on" / "model")
    assert theirs("The cook bakes")["input_ids"] == tokenizer.encode("The cook bakes").ids


def test_a_saved_model_leaves_no_tokenizer_of_the_other_kind(directory, tiny, tokenizer, tmp_path):
    marian.save(tmp_path, tiny, tokenizer)
    marian.save(tmp_path, *marian.load(directory, torch.device("cpu")))
    assert not (tmp_path / "tokenizer.json").exists()
    marian.save(tmp_path, tiny, tokenizer)
    assert not list(tmp_path.glob("*.spm")) and not (tmp_path / "vocab.json").exists()


def replace_in(path, old, new):
    path.write_bytes(path.read_bytes().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d: (d / "target.spm").unlink(), "target.spm: is missing"),
        (lambda d: (d / "source.spm").write_bytes(b"no model"), "damaged"),
        (lambda d: replace_in(d / "source.spm", b"\xe2\x96\x81", b"\xe2 \x81"), "damaged"),  # not UTF-8
        (lambda d: (d / "vocab.json").write_text("[1]"), "vocab.json: is not an object"),
        (lambda d: (d / "vocab.json").write_text('{"</s>": -1}'), "vocab.json: is not an object"),
        (lambda d: (d / "vocab.json").write_text('{"</s>": 0, "<unk>": 1}'), "has no <pad>"),
        (lambda d: (d / "vocab.json").write_text('{"</s>": 0, "<unk>": 1, "<pad>": 2}'), "another model"),
        (lambda d: (d / "source.spm").unlink(), "tokenizer.json: is missing, and so is source.spm"),
    ],
)
def test_a_damaged_directory_is_refused_by_name(directory, tmp_path, damage, reason):
    shutil.copytree(directory, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(InputError, match=reason):
        marian.load(tmp_path / "copy", torch.device("cpu"))


def test_without_the_package_one_line_says_what_to_install(directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(InputError, match="pip install sentencepiece"):
        MarianTokenizer(directory)
