"""data/make_agreement.py: its sentences keep to the grammar, what is held out is held out, and the n-grams beside it
are counted right."""

import importlib.util
import re
from collections import Counter
from itertools import chain
from math import log
from pathlib import Path

import pytest

from mlm.minimal_pairs import read_pairs

PATH = Path(__file__).parents[2] / "data" / "make_agreement.py"


@pytest.fixture(scope="module")
def agreement():
    """The module make_agreement.py."""
    spec = importlib.util.spec_from_file_location("make_agreement", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(agreement, tmp_path_factory):
    """The folder that it writes, and what it prints."""
    folder = tmp_path_factory.mktemp("agreement") / "new" / "folder"
    agreement.main(["--output", str(folder)])
    return folder


def parse(agreement, sentence):
    """Return the forms of a sentence's nouns and of its verb, each as (index, number); fail if it is not of the
    grammar."""
    words = sentence.split()
    nouns, verb = words[1:-2:3], words[-2]
    assert len(words) == 3 * len(nouns) + 1
    assert {*words[:-2:3]} == {"the"} and {*words[2:-2:3]} <= {*agreement.PREPOSITIONS}
    assert words[-1] in agreement.ADJECTIVES
    tables = [*[agreement.NOUNS] * len(nouns), agreement.VERBS]
    found = [
        [(i, forms.index(word)) for i, forms in enumerate(table) if word in forms]
        for table, word in zip(tables, [*nouns, verb], strict=True)
    ]
    assert all(len(forms) == 1 for forms in found)
    *nouns, verb = [forms[0] for forms in found]
    return nouns, verb


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_no_word_has_two_meanings(agreement):
    words = ["the", *chain(*agreement.NOUNS, *agreement.VERBS), *agreement.ADJECTIVES, *agreement.PREPOSITIONS]
    assert len(words) == len(set(words))


def test_verbs_agree_with_the_first_noun_whatever_stands_between(agreement, made):
    corpus = lines(made / "train.txt") + lines(made / "held_out.txt")
    assert len(corpus) == len(set(corpus)) == agreement.N_TRAIN + agreement.N_HELD_OUT
    lengths, between = Counter(), Counter()
    for sentence in corpus:
        nouns, verb = parse(agreement, sentence)
        assert len({noun for noun, _ in nouns}) == len(nouns)
        assert verb[1] == nouns[0][1]
        lengths[len(nouns)] += 1
        between.update(number == verb[1] for _, number in nouns[1:])
    assert sorted(lengths) == [1, 2, 3, 4]
    assert 0.48 < between[True] / between.total() < 0.52


def test_pairs_have_held_out_subjects_and_distractors_of_the_other_number(agreement, made):
    pairs = read_pairs(made / "pairs.tsv")
    assert pairs.kind_name == "distractors"
    counts, subjects = Counter(), set()
    for pair in pairs.pairs:
        (nouns, verb), (same, wrong) = (parse(agreement, side.text) for side in (pair.good, pair.bad))
        assert nouns == same and verb[0] == wrong[0] and verb[1] == nouns[0][1] == 1 - wrong[1]
        assert [number for _, number in nouns[1:]] == int(pair.kind) * [1 - verb[1]]
        counts[int(pair.kind)] += 1
        subjects.add(nouns[0])
    assert counts == dict.fromkeys(range(4), agreement.N_HELD_OUT_NOUNS * agreement.N_PER_FORM)
    assert len(pairs.pairs) == len({pair.good.text for pair in pairs.pairs})
    assert len({noun for noun, _ in subjects}) == len(subjects) == agreement.N_HELD_OUT_NOUNS
    assert sum(number for _, number in subjects) == len(subjects) // 2
    corpus = lines(made / "train.txt") + lines(made / "held_out.txt")
    assert not {pair.good.text for pair in pairs.pairs} & {*corpus}
    seen = Counter()
    for nouns, _ in (parse(agreement, sentence) for sentence in corpus):
        if nouns[0] in subjects:
            assert len(nouns) == 1
        seen.update({(form, place > 0) for place, form in enumerate(nouns)})
    for form in subjects:  # known as a subject, and as what stands between
        assert min(seen[form, False], seen[form, True]) > 20


def test_the_files_are_the_same_each_time(agreement, made, tmp_path, capsys):
    agreement.main(["--output", str(tmp_path)])
    for name in "train.txt", "held_out.txt", "pairs.tsv":
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()
    printed = capsys.readouterr().out
    assert re.findall(r"(\d)-grams, 0 to 3 distractors: ", printed) == ["2", "5"]
    shares = [float(share) for share in re.findall(r"(\d+\.\d)%", printed)]
    assert shares[0] > 90 and max(shares[1:4]) < 10 and max(shares[5:]) < 50  # they see what is near


def test_n_grams_back_off_to_shorter_ones(agreement):
    """By hand: after `a b` came `c` once of two times; `d` never came after it, nor after `b`."""
    grams = agreement.NGrams(["a b c", "a b e", "d"], order=3)
    whole = [2 / 3, 2 / 2, 1 / 2, 1 / 1]  # a | <s>, b | <s> a, c | a b, </s> | b c
    assert grams.score("a b c") == pytest.approx(sum(map(log, whole)))
    n_words = 3 + 3 + 3 + 1 + 3  # <s>, the words, </s>
    after = [2 / 3, 2 / 2, 0.4 * 0.4 * 1 / n_words, 0.4 * 1 / 1]  # d | a b, </s> | b d, backing off to d
    assert grams.score("a b d") == pytest.approx(sum(map(log, after)))


def test_ties_count_as_wrong(agreement, tmp_path, monkeypatch, capsys):
    """Of two pairs, each of one sentence twice, none is right."""
    for name, number in (("N_TRAIN", 500), ("N_HELD_OUT", 0)):
        monkeypatch.setattr(agreement, name, number)
    monkeypatch.setattr(agreement, "draw_pairs", lambda *args: [((text, text), 0) for text in sorted(args[-1])[:2]])
    agreement.main(["--output", str(tmp_path)])
    assert capsys.readouterr().out.count("distractors: 0.0%, 0.0%, 0.0%, 0.0% right; 2 ties\n") == 2


def test_a_folder_that_cannot_be_made_is_one_line(agreement, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(SystemExit) as stopped:
        agreement.main(["--output", str(tmp_path / "file" / "below")])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("make_agreement.py: ") and err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"
