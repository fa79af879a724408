"""fill_mask.py and MaskFiller: sentences as arguments, lines, what a person types, or Python strings; answers as text
and JSON. That the answers are right is tested in tests/model/test_filling.py."""

import json
import math
import os
import re
import subprocess
import sys

import pytest
from tokenizers import AddedToken, Tokenizer

from mlm import MaskFiller, filler
from mlm.common import unknown_words
from mlm.common.errors import InputError
from mlm.tokenizer import MASK, SPECIAL_TOKENS


@pytest.fixture(scope="module")
def loaded(trained):
    """The trained model."""
    return MaskFiller.load(trained / "model", "cpu")


@pytest.fixture
def fill(script, trained):
    """fill(*flags) runs fill_mask.py on the trained model -> exit status, stdout, stderr."""
    return lambda *flags, **options: script("fill_mask", "--model", trained / "model", *flags, **options)


# ---- the script


def test_a_text_too_long_for_the_model_is_scored_in_pieces(fill, loaded):
    """As it is cut in training: every piece is read as a sentence, and no word is left out."""
    room = loaded.model.config.max_length - 2
    words = ["the cat chases the small mouse", "our doctor drives a blue car"] * room
    words = " ".join(words).split()[: 3 * room - 1]
    size = len(words) / 3
    pieces = [" ".join(words[int(i * size) : int((i + 1) * size)]) for i in range(3)]
    apart = [token for piece in pieces for token in loaded.score(piece)["tokens"]]
    whole = loaded.score(" ".join(words))["tokens"]
    assert [token["token"] for token in whole] == words
    surprisals = [[token["surprisal"] for token in tokens] for tokens in (whole, apart)]
    assert surprisals[0] == pytest.approx(surprisals[1], abs=1e-4)
    status, out, stderr = fill("--score", "--json", stdin=f"the cat\n{' '.join(words)}\nthe dog\n".encode())
    assert (status, stderr.count("\n"), out.count("\n")) == (0, 1, 3) and stderr.startswith("3 sentences, ")


def test_json_has_the_promised_fields_and_the_answers_of_mask_filler(fill, loaded):
    """An object a line: for filled sentences the input, the sentence with the likeliest words, and the candidates."""
    sentences = [f"our {MASK} drives a {MASK} car", f"the {MASK}"]
    status, out, stderr = fill("--json", "--top-k", 3, *sentences)
    assert (status, stderr) == (0, "")
    results = [json.loads(line) for line in out.splitlines()]
    assert [result["input"] for result in results] == sentences
    assert all(set(result) == {"input", "filled", "masks"} for result in results)
    assert [result["masks"] for result in results] == loaded(sentences, top_k=3)
    first, second = (mask[0]["token"] for mask in results[0]["masks"])
    assert results[0]["filled"] == f"our {first} drives a {second} car"
    assert all(set(candidate) == {"token", "probability"} for mask in results[0]["masks"] for candidate in mask)


def test_scores_as_json_are_those_of_mask_filler(fill, loaded):
    sentences = ["the dog chases the cat", "the cat"]
    status, out, stderr = fill("--score", "--json", *sentences)
    assert status == 0 and stderr.startswith("2 sentences, 7 tokens: mean surprisal ")
    results = [json.loads(line) for line in out.splitlines()]
    assert results == loaded.score(sentences)
    assert set(results[0]) == {"input", "pseudo_perplexity", "tokens"}
    total = fill("--score", *sentences, "the zebra")[2].splitlines()[-1]  # on stderr
    surprisals = [token["surprisal"] for result in [*results, loaded.score("the zebra")] for token in result["tokens"]]
    known = [surprisal for surprisal in surprisals if surprisal is not None]
    mean = sum(known) / len(known)
    perplexity = f"pseudo-perplexity {math.exp(mean):.2f}; 1 unknown word not scored"
    assert total == f"3 sentences, {len(known)} tokens: mean surprisal {mean:.3f} nats, {perplexity}"
    assert all(set(token) == {"token", "surprisal"} for token in results[0]["tokens"])


@pytest.mark.parametrize("top_k", [1, 2, 10**9])
def test_top_k_is_the_number_of_words_shown(fill, loaded, top_k):
    status, out, _ = fill("--top-k", top_k, "the cat [MASK] the [MASK] mouse")
    assert status == 0
    shown = min(top_k, loaded.model.config.vocab_size)
    assert len(out.splitlines()) == 1 + 2 * (1 + shown)
    assert "[MASK] 1" in out and "[MASK] 2" in out


def test_a_person_reads_sentence_perplexity_and_words(fill):
    _, out, _ = fill("--score", "the cat chases the small mouse")
    lines = out.splitlines()
    assert lines[0] == "the cat chases the small mouse" and "pseudo-perplexity" in lines[1]
    assert [line.split()[-1] for line in lines[2:]] == lines[0].split()


def test_what_is_as_good_as_impossible_has_a_perplexity_too(fill, monkeypatch):
    """The largest that can be written: e to the 800 is none that a computer's numbers hold."""
    monkeypatch.setattr(filler, "score", lambda found, *_: [[{"token": "the", "surprisal": 800.0}] for _ in found])
    status, out, stderr = fill("--score", "the cat", "the dog")
    largest = f"pseudo-perplexity {math.exp(700):.2f}\n"
    assert (status, out.count(largest), stderr.count(largest)) == (0, 2, 1)


def test_standard_input_is_read_line_by_line(fill, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stdin = "\ufeffthe cat [MASK] the small mouse\r\n\nour [MASK] drives a blue car\n".encode()
    status, out, stderr = fill("--top-k", 1, stdin=stdin)
    assert (status, stderr) == (0, "")
    filled = [line for line in out.splitlines() if not line.startswith(" ")]
    assert filled == ["the cat chases the small mouse", "our doctor drives a blue car"]
    assert not list(tmp_path.iterdir())


def test_more_lines_than_are_held_at_a_time(fill):
    lines = [f"the cat {MASK} the small mouse", f"our {MASK} drives a blue car"] * 600
    status, out, stderr = fill("--json", stdin="\n".join(lines).encode())
    assert (status, stderr) == (0, "")
    assert [json.loads(line)["input"] for line in out.splitlines()] == lines


def test_unknown_words_of_the_whole_input_are_named_in_one_warning(fill, monkeypatch):
    """However many times a word occurs, and however many sentences are answered at a time."""
    monkeypatch.setattr(filler, "FILL_CHUNK", 2)
    words = ["gnu", "zebra", "gnu", *(f"yak{i}" for i in range(60))]
    status, out, stderr = fill("--json", stdin="\n".join(f"the {word} {MASK}" for word in words).encode())
    assert status == 0 and len(out.splitlines()) == len(words)
    sees = "unknown to the model, which sees [UNK] instead: gnu, zebra, yak0, yak1, yak2 and 57 more"
    assert stderr.splitlines() == [f"fill_mask.py: warning: {sees}"]


def test_only_so_many_unknown_words_are_remembered(fill, monkeypatch):
    """The memory that they take does not grow with the input, nor with the length of a word."""
    monkeypatch.setattr(unknown_words, "MAX_REMEMBERED", 3)
    _, _, stderr = fill(stdin="\n".join(f"{'x' * 100 + str(i)} yak{i} {MASK}" for i in range(9)).encode())
    assert stderr.count("\n") == 1 and stderr.endswith(f"instead: {'x' * 39}…, yak0, yak1\n")
    assert len(stderr) < 200


def test_an_unknown_word_is_shown_as_it_was_given(fill):
    status, out, stderr = fill("the zebra [MASK] the zebra gnu")
    assert status == 0 and "instead: zebra, gnu" in stderr
    assert out.startswith("the zebra ") and out.splitlines()[0].endswith(" the zebra gnu")


def test_at_a_prompt_a_mistake_is_shown_and_the_next_line_is_read(fill, monkeypatch):
    typed = iter(["the cat", "the zebra [MASK]", "the cat [MASK] the small mouse", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    status, out, stderr = fill("--top-k", 1, terminal=True)
    assert status == 0
    hint, mistake, unknown = stderr.splitlines()
    assert "an empty line ends" in hint and "no [MASK] in 'the cat'" in mistake and unknown.endswith("zebra")
    assert out.splitlines()[2] == "the cat chases the small mouse"
    assert MASK in hint and MASK not in fill("--score", terminal=True, stdin=b"")[2]


@pytest.mark.parametrize("token", sorted({*SPECIAL_TOKENS} - {MASK}))
def test_special_tokens_in_a_sentence_are_refused_by_name(loaded, token):
    """[CLS] and [SEP] are added, and what one typed would change is no text."""
    for answer, text in ((loaded, f"{token} the {MASK}"), (loaded.score, f"{token} the cat")):
        with pytest.raises(
            InputError, match=re.escape(f"sentence 1: has {token}, which is a token of the model's own")
        ):
            answer(text)


def test_a_sentence_of_unknown_words_has_no_score(fill, loaded):
    """The others have theirs, and the total is of them alone."""
    scored, unknown = loaded.score(["the cat", "zebra gnu"])
    assert scored["pseudo_perplexity"] > 1 and unknown["pseudo_perplexity"] is None
    assert [token["surprisal"] for token in unknown["tokens"]] == [None, None]
    _, out, _ = fill("--score", "the zebra")
    assert out.splitlines()[-1].split() == ["—", "[UNK]"]
    status, out, stderr = fill("--score", "zebra gnu", "the cat")
    assert status == 0 and out.splitlines()[:3] == ["zebra gnu", "  pseudo-perplexity —", "        —  [UNK]"]
    total = f"2 sentences, 2 tokens: .* pseudo-perplexity {scored['pseudo_perplexity']:.2f}; 2 unknown words not scored"
    assert re.search(total, stderr)
    status, _, stderr = fill("--score", "zebra gnu", "gnu")
    assert status == 2 and "nothing to score" in stderr.splitlines()[-1] and "nan" not in stderr


def test_help_names_every_flag_and_an_example(script):
    status, out, stderr = script("fill_mask", "--help")
    assert (status, stderr) == (0, "")
    assert "python3 fill_mask.py" in out
    assert [flag for flag in ("--model", "--top-k", "--score", "--json", "--device") if flag not in out] == []


def test_a_reader_that_goes_away_is_no_error(trained, folder, tmp_path):
    """As in `fill_mask.py ... | head -1`."""
    line = [sys.executable, str(folder / "fill_mask.py"), "--model", str(trained / "model"), "--top-k", "70"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*line, *["the [MASK] [MASK] [MASK]"] * 60],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    with process:
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_starting_imports_only_what_is_used(trained, folder):
    """PyTorch's compiler alone takes as long to import as PyTorch itself."""
    flags = ["--model", trained / "model", "--device", "cpu", "Paris is the [MASK] of France"]
    command = [sys.executable, "-X", "importtime", folder / "fill_mask.py", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"torch", "tokenizers"} <= imported
    assert not imported & {"torch._dynamo", "sympy", "matplotlib", "transformers"}


# ---- from Python


def test_one_sentence_gives_its_masks_and_a_list_gives_a_list(loaded):
    one, two = f"the {MASK}", f"a {MASK} eats the {MASK}"
    assert [len(mask) for mask in loaded(one)] == [5]
    assert [len(mask) for mask in loaded(two, top_k=2)] == [2, 2]
    assert [[len(mask) for mask in masks] for masks in loaded([one, two])] == [[5], [5, 5]]
    assert loaded([one]) == loaded(text for text in [one]) == [loaded(one)]
    assert loaded([]) == []
    assert loaded.score(["the cat"]) == [loaded.score("the cat")]


def test_a_model_directory_is_named_by_a_path_or_a_string(trained, loaded):
    assert MaskFiller.load(str(trained / "model"), device="cpu")(f"the {MASK}") == loaded(f"the {MASK}")
    with pytest.raises(
        InputError, match=r"typo: no model here .*; run train_mlm\.py first, or name another directory$"
    ):
        MaskFiller.load("typo")


@pytest.mark.parametrize(
    ("sentences", "top_k", "reason"),
    [
        ("", 5, "^sentence 1: the sentence is empty; give one with words$"),
        ([f"the {MASK}", "the cat"], 5, "^sentence 2: no .* in 'the cat'; write .* for the word to fill in"),
        (f"the {MASK}", 0, "^top_k needs a whole number from 1 to .*, not 0$"),
        (f"the {MASK}", 2.0, "^top_k needs a whole number .*, not 2.0$"),
        (f"the{MASK}s {MASK}" + " cat" * 30, 5, "^sentence 1: the sentence has .* tokens, the model takes 24"),
    ],
)
def test_bad_input_raises_input_error(loaded, sentences, top_k, reason):
    with pytest.raises(InputError, match=reason):
        loaded(sentences, top_k)


def test_a_sentence_may_be_as_long_as_the_model_takes_and_no_longer(loaded):
    limit = loaded.model.config.max_length
    longest = f"the {MASK}" + " cat" * (limit - 4)  # [CLS] and [SEP] count too
    assert len(loaded(longest)) == 1
    with pytest.raises(InputError, match=f"the sentence has {limit + 1} tokens, the model takes {limit}"):
        loaded(f"{longest} cat")


def test_masks_that_the_tokenizer_does_not_see_are_no_gaps(loaded, tokenizer):
    """A tokenizer may need spaces around a [MASK]; what is filled in must belong to the gap that is shown."""
    strict = Tokenizer.from_str(tokenizer.to_str())
    strict.add_special_tokens([AddedToken(MASK, special=True, single_word=True)])
    with pytest.raises(InputError, match=r"^sentence 1: has 2 \[MASK\], but the tokenizer sees 1; put spaces around"):
        MaskFiller(loaded.model, strict)(f"the {MASK} un{MASK}")


def test_a_sentence_with_a_mask_has_no_score(loaded):
    with pytest.raises(InputError, match=r"^sentence 2: contains \[MASK\], which is not a word to score; fill it"):
        loaded.score(["the cat", f"the {MASK}"])
