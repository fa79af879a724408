"""Cloze tests: their files, the baseline, the plateau that a run is compared with, and what the bundled sentences
promise. What a model answers to them is in tests/model/test_filling.py."""

import csv
import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, normalizers

from mlm import cloze as clozes_of
from mlm import filling, report
from mlm.cloze import Answers, Cloze, NearestSentence, accuracy, accuracy_by_kind, answer, encode_clozes, read_clozes
from mlm.common.errors import InputError
from mlm.dataset import MLMDataset
from mlm.report import unigram_loss
from mlm.tokenizer import MASK

DATA = Path(__file__).parents[2] / "data"


def cloze(sentence, key, kind="free"):
    return Cloze(sentence, key, kind)


# ---- reading


def write(folder, content):
    (folder / "text.cloze.tsv").write_text(content, encoding="utf-8")
    return folder / "text.txt"


def test_cloze_tests_are_the_lines_below_the_header(tmp_path):
    path = write(tmp_path, "sentence\tkey\tkind\nThe cat sat\tcat\tfree\n\nA well-known dog\twell-known\tx\n")
    expected = [cloze("The cat sat", "cat"), cloze("A well-known dog", "well-known", "x")]
    assert read_clozes(path) == expected == read_clozes(path.with_name(f"{path.name}.gz"))


def test_without_a_cloze_file_there_are_no_tests(tmp_path):
    assert read_clozes(tmp_path / "text.txt") == []


@pytest.mark.parametrize("line", ["The cat sat", "The cat sat\tcat", "The cat sat\tdog\tx", "party\tart\tx"])
def test_a_line_that_is_no_cloze_test_is_named(tmp_path, line):
    path = write(tmp_path, f"sentence\tkey\tkind\nThe cat sat\tcat\tfree\n{line}\n")
    with pytest.raises(InputError, match=r"text\.cloze\.tsv, line 3"):
        read_clozes(path)


@pytest.mark.parametrize("key", ["Rome", "Paris", ""])
def test_a_key_word_stands_in_its_sentence_once(tmp_path, key):
    (tmp_path / "text.cloze.tsv").write_text(f"Paris is Paris\t{key}\tkind\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 1: needs a sentence, a word that it has once, and a kind"):
        read_clozes(tmp_path / "text.txt")


def test_blank_lines_count_in_the_number_of_a_wrong_line(tmp_path):
    path = write(tmp_path, "sentence\tkey\tkind\n\nThe cat sat\tcat\tfree\n\n\nwrong\n")
    with pytest.raises(InputError, match="line 6"):
        read_clozes(path)


# ---- the hidden word


@pytest.mark.parametrize(
    ("sentence", "key", "span"),
    [
        ("party art", "art", (6, 9)),
        ("art party", "art", (0, 3)),
        ("state-of-the-art art", "art", (17, 20)),
        ("an artist's art, then", "art", (12, 15)),
        ("the naïve naïveté", "naïveté", (10, 17)),
    ],
)
def test_key_span_is_that_of_the_whole_word(sentence, key, span):
    assert cloze(sentence, key).key_span() == span
    assert sentence[slice(*span)] == key


@pytest.mark.parametrize(
    ("sentence", "key"),
    [("दिल्ली भारत की राजधानी है", "दिल्ली"), ("เป็น แมว", "เป็น"), ("the cafe\u0301 is open", "cafe\u0301")],
    ids=["Devanagari", "Thai", "combining accent"],
)
def test_combining_marks_are_parts_of_words(tmp_path, sentence, key):
    (tmp_path / "text.cloze.tsv").write_text(f"{sentence}\t{key}\tkind\n", encoding="utf-8")
    (test,) = read_clozes(tmp_path / "text.txt")
    assert sentence[slice(*test.key_span())] == key


@pytest.mark.parametrize("uncased", [False, True])
def test_guesses_are_those_of_the_right_sentences(tokenizer, tiny, training, monkeypatch, uncased):
    """A model that knows every key word gets all of them right, whatever the order in which it is asked, even if it
    knows none of its capitals."""
    if uncased:
        tokenizer, training = Tokenizer.from_str(tokenizer.to_str()), [sentence.title() for sentence in training]
        tokenizer.normalizer = normalizers.Sequence([tokenizer.normalizer, normalizers.Lowercase()])
    tests = [cloze(sentence, sentence.split()[-1 - i % 3]) for i, sentence in enumerate(training)]
    encoded = encode_clozes(tests, tokenizer, 24)
    keys = {tuple(test.query.ids): test.key_ids for test in encoded}

    def oracle(ids, hidden):
        tokens = [keys[tuple(token for token in row if token != tiny.config.pad_id)] for row in ids.tolist()]
        return F.one_hot(torch.tensor(tokens)[:, 0], 100) * 50.0

    monkeypatch.setattr(filling, "BATCH_TOKENS", 30)
    monkeypatch.setattr(tiny, "forward", oracle)
    answers = answer(encoded, tiny, tokenizer)
    assert answers.guesses == [test.key for test in tests]
    assert answers.loss < 1e-6


def test_a_cloze_sentence_that_is_too_long_is_refused(tokenizer):
    with pytest.raises(InputError, match="32 tokens, the model takes 24"):
        encode_clozes([cloze("cat " + "the " * 29, "cat")], tokenizer, 24)


def test_a_key_word_that_the_tokenizer_drops_is_refused(tokenizer):
    bare = Tokenizer.from_str(tokenizer.to_str())
    bare.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    with pytest.raises(InputError, match="the tokenizer drops the key word"):
        encode_clozes([cloze("the cat sat", "cat"), cloze("the \u0301 sat", "\u0301")], bare, 24)


# ---- the baseline


def test_baseline_fills_in_the_rarest_new_word_of_the_nearest_sentence():
    sentences = [
        "Paris is the capital of France",
        "The cat sat on the mat",
        "A foal is a young horse",
        "The dog is young",
    ]
    baseline = NearestSentence(sentences)
    assert [baseline.guess(cloze(sentence, sentence.split()[-1])) for sentence in sentences[1:3]] == ["mat", "horse"]
    assert baseline.guess(cloze("France has its capital in Paris", "Paris")) == "Paris"
    assert baseline.guess(cloze("the word for a young horse is foal", "foal")) == "foal"


@pytest.mark.parametrize(
    ("sentences", "asked", "key", "expected"),
    [
        (["दिन अच्छा है", "दीन दुखी है"], "दुखी दीन", "दीन", "दीन"),
        (["我喜欢猫", "他在学校学习"], "学校在这里", "里", "他"),
        (["The cafe\u0301 opens", "The shop closes"], "it opens café", "café", "cafe\u0301"),
        (["abc"], "xyz key", "key", ""),
        (["the same words"], "same the key words", "key", ""),
        ([], "the key", "key", ""),
    ],
)
def test_baseline_answers_in_any_script_or_not_at_all(sentences, asked, key, expected):
    assert NearestSentence(sentences).guess(cloze(asked, key)) == expected


def test_guesses_are_compared_normalized():
    assert accuracy([cloze("the café", "café")], ["cafe\u0301"]) == 1


def test_baseline_looks_among_no_more_sentences_than_it_says(monkeypatch):
    monkeypatch.setattr(clozes_of, "MAX_COMPARED", 1)
    assert NearestSentence(iter(["a x", "b y"])).guess(cloze("b z", "z")) == ""


def test_accuracy_is_the_share_of_right_answers_of_each_kind():
    clozes = [cloze("a b", "a", kind) for kind in "xxxyx"]
    assert accuracy_by_kind(clozes, ["a", "b", "a", "b", "a"]) == {"x": 0.75, "y": 0.0}
    assert accuracy(clozes, ["a", "b", "a", "b", "a"]) == 0.6


def test_the_table_tells_model_and_baseline_apart(tmp_path, monkeypatch, capsys, tokenizer, tiny):
    """The model knows all training sentences and no other, the baseline half of them and all others."""
    recall, held_out = (
        encode_clozes([cloze(text, text.split()[1], kind) for text in texts], tokenizer, 24)
        for kind, texts in (("fact", ["the cat chases", "a dog eats"]), ("new", ["the king reads"]))
    )
    guesses = {"fact": ["cat", "dog"], "new": ["queen"]}
    monkeypatch.setattr(report, "answer", lambda tests, *_: Answers(0.5, guesses[tests[0].cloze.kind]))
    text = ["the cat chases", "the king reads"]
    data = SimpleNamespace(recall_tests=recall, held_out_tests=held_out, text=text, tokenizer=tokenizer)
    figures = {"held_out_token_accuracy": 0.25, "held_out_loss": 2.0}
    report.compare(tiny, data, figures, tmp_path / "metrics.json")
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == figures | {
        "recall_loss": 0.5,
        "recall_accuracy": 1.0,
        "held_out_by_kind": {"new": 0.0},
        "baseline_by_kind": {"new": 1.0},
    }
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1] == ["Transformer", "nearest", "sentence"]
    assert [row[-2:] for row in rows if row[-3:-2] == ["word"]] == [["100.0%", "50.0%"], ["0.0%", "100.0%"]]
    assert rows[-1] == ["the", "[queen]", "reads", "(was:", "king)"]


@pytest.mark.parametrize(("n_tests", "n_shown"), [(1, 1), (10, 10), (11, 6), (40, 10)])
def test_at_most_ten_examples_are_shown_evenly_spread(tokenizer, n_tests, n_shown):
    tests = encode_clozes([cloze(f"the cat {i}", "cat") for i in range(n_tests)], tokenizer, 24)
    shown = report.show_examples(tests, Answers(0.0, ["cat"] * n_tests))
    numbers = [int(line.split()[-1]) for line in shown]
    assert numbers == list(range(0, n_tests, -(-n_tests // 10))) and len(shown) == n_shown


def test_unigram_loss_is_that_of_the_frequencies_in_training(tokenizer):
    """Over the tokens that may be hidden, every one of the vocabulary counted once more than seen."""
    training = MLMDataset.in_memory(["the cat", "the dog chases the cat zebu zebu"], tokenizer, 24)  # unknown: zebu
    held_out = MLMDataset.in_memory(["the mouse chases", "cat zebu"], tokenizer, 24)
    size = tokenizer.get_vocab_size()
    total = 7 + size - 5  # the special tokens are never predicted
    shares = [4 / total, 1 / total, 2 / total, 3 / total]  # the, mouse, chases, cat
    expected = -sum(math.log(share) for share in shares) / 4
    assert unigram_loss(training, held_out, size) == pytest.approx(expected)
    uniform = MLMDataset.in_memory(
        [" ".join(np.random.default_rng(0).permutation(["cat", "dog", "the", "a"]))], tokenizer, 24
    )
    assert unigram_loss(uniform, uniform, size) == pytest.approx(math.log((size - 5 + 4) / 2))


# ---- the bundled sentences


def table(name):
    with (DATA / name).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def text(name):
    return (DATA / name).read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def combinations():
    """(fact, frame) -> the sentence made of them, for all of the tables."""
    return {
        (fact["relation"], fact["subject"], frame["frame"]): frame["frame"].format(**fact)
        for fact in table("facts.tsv")
        for frame in table("frames.tsv")
        if fact["relation"] == frame["relation"]
    }


def hidden(test):
    begin, end = test.key_span()
    return test.sentence[:begin] + MASK + test.sentence[end:]


@pytest.mark.parametrize("name", ["train", "held_out"])
def test_cloze_file_has_the_text_files_sentences_in_their_order(name):
    tests = read_clozes(DATA / f"{name}.txt")
    assert [test.sentence for test in tests] == text(f"{name}.txt")
    assert all(hidden(test).count(MASK) == 1 for test in tests)


def test_no_sentence_is_there_twice_or_on_both_sides():
    sentences = text("train.txt") + text("held_out.txt")
    assert len(sentences) == len(set(sentences))


def test_every_training_sentence_with_its_key_hidden_has_one_answer():
    answers = {}
    for test in read_clozes(DATA / "train.txt"):
        assert answers.setdefault(hidden(test), test.key) == test.key, hidden(test)


def test_there_are_ten_relations_with_a_dozen_facts_and_six_frames_each():
    facts = Counter(row["relation"] for row in table("facts.tsv"))
    frames = Counter(row["relation"] for row in table("frames.tsv"))
    assert len(facts) >= 10 and set(facts) == set(frames)
    assert min(facts.values()) >= 12 and min(frames.values()) >= 6


def test_of_every_fact_one_combination_is_held_out_and_all_others_are_learnt(combinations):
    train, held_out = set(text("train.txt")), set(text("held_out.txt"))
    out = Counter(key[:2] for key, sentence in combinations.items() if sentence in held_out)
    assert set(out) == {key[:2] for key in combinations} and set(out.values()) == {1}
    assert all((sentence in train) != (sentence in held_out) for sentence in combinations.values())
    assert sum(test.kind == "combination" for test in read_clozes(DATA / "held_out.txt")) == len(out)


def test_every_held_out_frame_is_learnt_with_other_facts(combinations):
    train, held_out = set(text("train.txt")), set(text("held_out.txt"))
    learnt = Counter(frame for (_, _, frame), sentence in combinations.items() if sentence in train)
    assert all(learnt[key[2]] >= 6 for key, sentence in combinations.items() if sentence in held_out)


def test_every_word_of_a_combination_and_every_key_is_in_training():
    known = {word for sentence in text("train.txt") for word in sentence.split()}
    for test in read_clozes(DATA / "held_out.txt"):
        assert test.key in known
        assert test.kind != "combination" or known.issuperset(test.sentence.split())


def test_there_are_free_sentences_and_rephrasings_of_them():
    free = [row["sentence"] for row in table("free.tsv")]
    rephrasings = [row["rephrasing"] for row in table("free.tsv") if row["rephrasing"]]
    assert len(free) >= 120 and len(rephrasings) >= 40
    assert set(free) <= set(text("train.txt")) and set(rephrasings) <= set(text("held_out.txt"))
    assert "Transformers use self attention" in free


def test_the_script_makes_the_files_that_are_there_byte_for_byte(tmp_path):
    names = ["train.txt", "held_out.txt", "train.cloze.tsv", "held_out.cloze.tsv"]
    shutil.copytree(DATA, tmp_path / "data")
    for name in names:
        (tmp_path / "data" / name).unlink()
    subprocess.run([sys.executable, tmp_path / "data" / "make_data.py"], check=True, capture_output=True)
    for name in names:
        assert (tmp_path / "data" / name).read_bytes() == (DATA / name).read_bytes(), name


@pytest.mark.parametrize(
    ("file", "line", "fragment"),
    [
        ("facts.tsv", "capital\tFrance\tLyon", "facts.tsv line"),
        ("facts.tsv", "capital\tOz\tEmerald City", "one word"),
        ("frames.tsv", "capital\tHere is {subject}", "frames.tsv line"),
        ("frames.tsv", "moons\t{value} circles {subject}", "12 and 6"),
        ("free.tsv", "A cat sees a cat\tcat\t", "stands once"),
        ("free.tsv", "A cat sees a dog.\tcat\t", "no full stop"),
        ("free.tsv", "a cat sees a dog\tcat\t", "a capital"),
        ("free.tsv", "Transformers use self attention\tself\t", "there already"),
        ("free.tsv", "Transformers use cross attention\tcross\t", "another key"),
    ],
)
def test_the_script_refuses_a_line_that_breaks_a_rule_and_writes_nothing(tmp_path, file, line, fragment):
    shutil.copytree(DATA, tmp_path / "data")
    with (tmp_path / "data" / file).open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    before = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir() if path.is_file()}
    line = [sys.executable, "-B", tmp_path / "data" / "make_data.py"]
    done = subprocess.run(line, capture_output=True, text=True, encoding="utf-8")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert fragment in done.stderr
    after = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir() if path.is_file()}
    assert before == after
