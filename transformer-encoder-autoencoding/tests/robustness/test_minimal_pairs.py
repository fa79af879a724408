"""fill_mask.py --compare: the preferred sentence is the one whose tokens' log-probabilities, each token hidden together
with those behind it in its word, have the larger sum; ties and pairs that cannot be compared never count as right."""

import json

import pytest
import torch
import torch.nn.functional as F

from mlm import MaskFiller
from mlm.common.errors import InputError
from mlm.filler import Sentence
from mlm.minimal_pairs import MinimalPair, MinimalPairs, compare, outcome, outcomes, read_pairs
from mlm.tokenizer import MASK

PAIRS = [
    ("the cat chases the small mouse", "the cat chases the small car"),
    ("the king wears a golden crown", "the king owns a golden crown"),
    ("the cat chases the small car", "the cat chases the small mouse"),
    ("our doctor drives a blue car", "our doctor drives a blue car"),
]


@pytest.fixture
def fill(script, trained):
    """fill(*flags) runs fill_mask.py on the trained model -> exit status, stdout, stderr."""
    return lambda *flags: script("fill_mask", "--model", trained / "model", *flags)


@pytest.fixture
def write(tmp_path):
    """write(text) -> the path of a file with it."""

    def make(text):
        (tmp_path / "pairs.tsv").write_text(text, encoding="utf-8")
        return tmp_path / "pairs.tsv"

    return make


def pair(good, bad, kind=""):
    return MinimalPair(Sentence(good, "a test"), Sentence(bad, "a test"), kind)


def result(*surprisals):
    """A score as score_each yields it, of tokens with these surprisals."""
    return {"input": "", "pseudo_perplexity": 1.0, "tokens": [{"token": "x", "surprisal": x} for x in surprisals]}


@torch.no_grad()
def log_probability(model, tokenizer, sentence):
    """Compute the corrected pseudo-log-likelihood of a sentence, a token at a time."""
    encoding, mask = tokenizer.encode(sentence), tokenizer.token_to_id(MASK)
    total = 0.0
    for i in range(1, len(encoding) - 1):
        ids = [
            mask if j >= i and encoding.word_ids[j] == encoding.word_ids[i] else token
            for j, token in enumerate(encoding.ids)
        ]
        total -= F.cross_entropy(model(torch.tensor([ids]))[0, i], torch.tensor(encoding.ids[i])).item()
    return total


def test_the_first_sentence_is_preferred_if_its_words_are_likelier(fill, write):
    path = write("".join(f"{good}\t{bad}\n" for good, bad in PAIRS))
    status, out, stderr = fill("--compare", path, "--json")
    assert (status, stderr) == (0, "")
    assert json.loads(out) == {"pairs": 4, "preferred": 2, "ties": 1, "unknown": 0, "accuracy": 0.5, "by_kind": {}}


def test_words_of_several_pieces_are_compared_by_the_corrected_sum(make_model, bpe):
    """Each piece is hidden together with the later ones of its word, as --score does (Kauf and Ivanova 2023)."""
    model = make_model(bpe.get_vocab_size(), max_length=60)
    texts = [("the zebras graze near the river", "the zebra graze near the river"), ("a yak reads", "a gnu reads")]
    expected = []
    for good, bad in texts + [(bad, good) for good, bad in texts]:
        assert len(bpe.encode(good)) > 2 + len(good.split())
        first, second = (log_probability(model, bpe, text) for text in (good, bad))
        assert abs(first - second) > 0.01
        expected.append("preferred" if first > second else "other")
    pairs = [pair(*both) for both in texts + [(bad, good) for good, bad in texts]]
    assert list(outcomes(pairs, MaskFiller(model, bpe))) == expected
    assert set(expected) == {"preferred", "other"}


def test_sums_of_equal_terms_tie_in_any_order(make_model, tokenizer):
    """A model that sees no order gives two orders of the same words the same probability, but for rounding."""
    model = make_model(tokenizer.get_vocab_size())
    torch.nn.init.zeros_(model.encoder.embeddings.position.weight)
    pairs = [pair("the dog chases the big cat today", "the cat chases the big dog today", "order")]
    figures = compare(MinimalPairs(pairs, "kind"), MaskFiller(model, tokenizer))
    assert figures["by_kind"]["order"] == {"pairs": 1, "preferred": 0, "ties": 1, "unknown": 0, "accuracy": 0.0}


@pytest.mark.parametrize(
    ("good", "bad", "expected"),
    [
        ((1.0, 2.0), (1.0, 2.5), "preferred"),
        ((1.0, 2.5), (1.0, 2.0), "other"),
        ((0.1, 0.2, 0.3), (0.3, 0.2, 0.1), "ties"),
        ((1.0, 2.0), (1.0, 2.00001), "ties"),  # no more than rounding
        ((1e4, 1.0), (1e4, 1.001), "preferred"),  # in single precision, these sums are equal
        ((1.0, None), (2.0, None), "preferred"),
        ((1.0, None), (1.0, 2.0), "unknown"),  # a term less is no merit
        ((1.0, 2.0), (1.0, None), "unknown"),
    ],
)
def test_outcomes_of_surprisals(good, bad, expected):
    assert outcome(result(*good), result(*bad)) == expected


def test_pairs_that_cannot_be_compared_count_as_wrong(fill, write):
    """Only one sentence has an unknown word, or one has no other."""
    pairs = PAIRS[0], ("the cat chases the small mouse", "the cat chases the small gnu"), ("a gnu eats", "a zebra eats")
    lines = "".join(f"{good}\t{bad}\n" for good, bad in (("zebra", "the cat"), *pairs, ("gnu", "zebra")))
    status, out, stderr = fill("--compare", write(lines), "--json")
    figures = json.loads(out)
    assert (status, figures["pairs"], figures["unknown"], figures["ties"], figures["preferred"]) == (0, 5, 3, 1, 1)
    assert stderr.endswith("instead: gnu, zebra\n")


def test_a_third_column_parts_the_figures_and_its_header_names_it(fill, write):
    kinds = ["b", "a", "b", "a"]
    lines = ["Good\tBAD\tplace", *("\t".join([*both, kind]) for both, kind in zip(PAIRS, kinds, strict=True))]
    path = write("\ufeff" + "\r\n\r\n".join(lines))
    status, out, stderr = fill("--compare", path)
    assert (status, stderr) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["place", "pairs", "first", "preferred", "ties", "unknown"],
        ["b", "2", "50.0%", "0", "0"],
        ["a", "2", "50.0%", "1", "0"],
        ["all", "4", "50.0%", "1", "0"],
    ]
    assert read_pairs(write("a\tb\tkind of c\n")).kind_name == "kind"
    blimp = read_pairs(write("sentence_good\tsentence_bad\tUID\na\tb\tc\n"))
    assert (blimp.kind_name, len(blimp.pairs)) == ("UID", 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "pairs.tsv: contains no pair"),
        ("good\tbad\n", "pairs.tsv: contains no pair"),
        ("the cat\n", "line 1: needs the good sentence, the bad one"),
        ("the cat\ta cat\n\nthe cat\t\n", "line 3: needs the good sentence"),
        ("the cat\ta cat\tx\nthe cat\ta cat\n", "line 2: needs the good sentence"),
        ("good\tbad\nthe cat\ta cat\tx\n", "line 2: needs the good sentence"),
        ("1\tthe cat\ta cat\tx\n", "line 1: needs the good sentence"),
        (f"the cat\tthe {MASK}\n", "line 1: contains [MASK], which is not a word to score"),
        ("the cat\ta cat\n\ta cat\tx\n", "line 2: needs the good sentence"),
    ],
)
def test_a_bad_line_is_named_in_one_line_before_any_is_scored(fill, write, monkeypatch, text, reason):
    monkeypatch.setattr(MaskFiller, "score_each", lambda *_: pytest.fail("a line was scored"))
    status, out, stderr = fill("--compare", write(text))
    assert (status, out) == (2, "")
    assert reason in stderr.splitlines()[-1]
    assert len([line for line in stderr.splitlines() if "warning" not in line]) == 1


def test_compare_takes_no_other_sentences(fill, write):
    for flags in (["the cat"], ["--score"], ["--top-k", "3"]):
        status, out, stderr = fill("--compare", write("a cat\tthe cat\n"), *flags)
        assert (status, out, stderr.count("\n")) == (2, "", 1)
        assert "--compare takes its sentences from FILE" in stderr
    with pytest.raises(InputError, match=r"missing\.tsv: no such file"):
        read_pairs(write("").parent / "missing.tsv")
