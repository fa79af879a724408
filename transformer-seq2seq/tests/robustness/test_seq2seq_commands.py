"""inference.py and visualize_attention.py as a user runs them: what they print, what they write, and nothing
besides."""

import json
import random
import re
import struct
import subprocess
import sys
from functools import partial

import pytest
import torch
from tqdm import tqdm

import inference
from seq2seq import marian
from seq2seq.common.command_line import flag_name
from seq2seq.common.plots import entropy, select_map
from seq2seq.config import GenerationConfig
from seq2seq.tokenizer import UNK
from seq2seq.translator import Session

PICTURES = {"attention_heatmap.png", "decoder_self_attention.png", "attention_heads.png"}


def files_in(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def size_of(path):
    """Width and height of a PNG file, which must be whole."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and content.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", content[16:24])


@pytest.fixture
def ask(script, trained):
    """ask(*flags, stdin=...) -> what inference.py prints with the trained model."""

    def run(*flags, stdin="", terminal=False):
        model = "--model", trained / "model"
        status, out, err = script("inference", *model, *flags, stdin=stdin.encode(), terminal=terminal)
        assert status == 0, err
        return out

    return run


# -------------------------------------------------------------------------------------- inference.py


def test_prompts_are_answered(ask, training):
    sources, targets = [pair[0] for pair in training], [pair[1] for pair in training]
    expected = [f"Input : {s}\nOutput: {t}\n" for s, t in zip(sources, targets, strict=True)]
    assert ask(*sources) == "".join(expected)
    assert ask("--beam", 4, *sources) == "".join(expected)


def test_a_person_is_answered_until_an_empty_line(script, trained, training):
    """At a terminal; a prompt that cannot be answered ends nothing. Random numbers go on from prompt to prompt."""
    (source, target, _), *_ = training
    typed = f"{source}\n{'cook ' * 50}\n{source}\n\n{source}\n".encode()
    status, out, err = script("inference", "--model", trained / "model", stdin=typed, terminal=True)
    assert (status, out) == (0, f"{target}\n{target}\n")
    hint, refused = err.splitlines()
    assert "an empty line ends" in hint and "the prompt has 51 tokens" in refused
    flags = ["--model", trained / "model", "--sample", "--temperature", 100]
    first, second = script("inference", *flags, stdin=b"Good\nGood\n", terminal=True)[1].splitlines()
    assert first != second


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_line_answers_a_line(ask, training, tmp_path, batch_size):
    pairs = [*training, ("", "", ""), *training[:3]]
    random.Random(0).shuffle(pairs)
    prompts, answers = ("".join(pair[i] + "\n" for pair in pairs) for i in (0, 1))
    (tmp_path / "in.txt").write_text(prompts, encoding="utf-8")
    out = tmp_path / "new" / "out.txt"
    flags = ["--batch-size", batch_size, "--input", tmp_path / "in.txt"]
    assert ask("--batch-size", batch_size, stdin=prompts) == answers
    assert ask(*flags) == answers
    assert ask(*flags, "--output", "-") == answers
    assert ask(*flags, "--output", out) == ""
    assert out.read_text(encoding="utf-8") == answers
    assert files_in(tmp_path) == {"in.txt", "new/out.txt"}


def test_standard_input_is_answered_from_where_it_stands(trained, tmp_path, monkeypatch, capsys):
    """As after `read` in a shell, which has taken a line of the file."""
    (tmp_path / "in.txt").write_text("Rome\nGood morning\n", encoding="utf-8")
    with (tmp_path / "in.txt").open(encoding="utf-8") as file:
        file.buffer.readline()
        monkeypatch.setattr(sys, "stdin", file)
        inference.main(["--model", str(trained / "model")])
    assert capsys.readouterr().out == "Good morning, cook\n"


def test_json_has_the_promised_form(ask, training):
    prompts = [source for source, *_ in training[:3]]
    for out in (ask("--json", *prompts), ask("--json", stdin="\n".join(prompts))):
        records = [json.loads(line) for line in out.splitlines()]
        assert [record["input"] for record in records] == prompts
        for record, (_, target, _) in zip(records, training, strict=False):
            assert record.keys() == {"input", "outputs"}
            (output,) = record["outputs"]
            assert output.keys() == {"text", "log_probability", "finished"}
            assert output["text"] == target and output["log_probability"] < 0


def test_n_best_gives_distinct_outputs_best_first(ask):
    (record,) = map(json.loads, ask("--json", "--beam", 4, "--n-best", 3, "Good morning").splitlines())
    texts = [output["text"] for output in record["outputs"]]
    assert len(texts) == len(set(texts)) == 3 and texts[0] == "Good morning, cook"
    flags = "--beam", 4, "--n-best", 3
    assert ask(*flags, "Good morning").splitlines() == ["Input : Good morning", *(f"Output: {text}" for text in texts)]
    assert ask(*flags, stdin="Good morning\n", terminal=True).splitlines() == texts


def test_length_penalty_favours_longer_outputs(ask):
    def length(penalty):
        (record,) = map(json.loads, ask("--json", "--beam", 8, "--length-penalty", penalty, "Good").splitlines())
        return len(record["outputs"][0]["text"].split())

    assert length(-10) < length(10)


def test_sampling_repeats_with_its_seed(ask):
    def sample(seed, *flags):
        return ask("--sample", "--temperature", 3, "--n-best", 4, "--seed", seed, *flags, "Good morning", "Rome")

    assert sample(1) == sample(1) != sample(2)
    assert len(set(sample(1).splitlines())) > 5
    assert set(sample(1, "--top-k", 1).splitlines()) == set(ask("Good morning", "Rome").splitlines())


def test_max_length_cuts_outputs(ask):
    assert ask("--max-length", 2, "Good morning") == "Input : Good morning\nOutput: Good morning\n"


def test_references_print_bleu_and_chrf(script, trained, tmp_path, training):
    for name, column in (("in", 0), ("ref", 1)):
        (tmp_path / name).write_text("".join(pair[column] + "\n" for pair in training), encoding="utf-8")
    flags = ["--model", trained / "model", "--input", tmp_path / "in", "--references", tmp_path / "ref"]
    status, _, err = script("inference", *flags)
    assert status == 0 and "bleu 100.00" in err and "chrf 100.00" in err
    flags = [*flags[:2], *flags[4:]]
    assert script("inference", *flags, stdin=(tmp_path / "in").read_bytes())[2] == err
    flags += ["--input", tmp_path / "in"]
    (tmp_path / "other").write_text("nothing alike here whatsoever\n" * len(training), encoding="utf-8")
    several = ["--references", tmp_path / "other", "--bleu-tokenize", "char"]
    err = script("inference", *flags, *several)[2]
    assert "bleu 100.00" in err and "nrefs:2" in err and "tok:char" in err
    (tmp_path / "ref").write_text("nothing alike here whatsoever\n" * len(training), encoding="utf-8")
    assert float(re.search(r"bleu (\S+),", script("inference", *flags)[2])[1]) < 1


def test_references_without_four_tokens_have_no_bleu(script, trained, tmp_path):
    (tmp_path / "ref").write_text("Rome\n", encoding="utf-8")
    flags = ["--model", trained / "model", "--references", tmp_path / "ref"]
    status, _, err = script("inference", *flags, stdin=b"Good morning\n")
    assert status == 0 and "--bleu-tokenize char" in err and "bleu 0" not in err and "chrf" in err
    status, _, err = script("inference", "--bleu-tokenize", "char", "Good morning")
    assert status == 2 and "needs --references" in err


def test_unknown_words_are_named(script, trained):
    status, _, err = script("inference", "--model", trained / "model", "The zebra eats the bread")
    assert status == 0 and "zebra" in err and UNK in err and len(err.splitlines()) == 1
    assert "eats" not in err
    assert script("inference", "--model", trained / "model", "Good morning")[2] == ""


def test_unknown_words_of_a_file_are_named_once(script, trained, tmp_path):
    lines = [f"The {animal} eats the bread" for animal in ("zebra", "gnu", "yak", "lynx", "moose", "eel")]
    (tmp_path / "in.txt").write_text("\n".join(lines * 20), encoding="utf-8")
    flags = ["--model", trained / "model", "--batch-size", 1, "--input", tmp_path / "in.txt"]
    err = script("inference", *flags)[2]
    (line,) = [line for line in re.split("[\r\n]", err) if "unknown" in line]  # after a second, a bar as well
    assert "zebra, gnu, yak, lynx, moose and 1 more" in line


def test_a_line_that_cannot_be_answered_is_told_before_any_is(script, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(Session, "generate", lambda *args: pytest.fail("a line was answered"))
    (tmp_path / "in.txt").write_text("Good morning\n" * 3000 + "cook " * 50, encoding="utf-8")
    flags = ["--model", trained / "model", "--batch-size", 1, "--input", tmp_path / "in.txt"]
    status, out, err = script("inference", *flags)
    assert status == 2 and not out and "line 3001, has" in err


def test_blank_lines_are_counted_without_a_bar_too(script, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("inference.tqdm", partial(tqdm, disable=True))
    (tmp_path / "in.txt").write_text("Good morning\n\nGood\tcook\n\n", encoding="utf-8")
    err = script("inference", "--model", trained / "model", "--input", tmp_path / "in.txt")[2]
    assert "in.txt: 2 blank lines, left blank" in err
    assert "in.txt: 1 line with a tab, read whole as a prompt" in err  # a file of pairs, it seems


@pytest.mark.parametrize(("bad", "reason"), [(b"cook " * 50, "line 41, has 51 tokens"), (b"\xff", "line 41: byte 1")])
def test_what_stands_before_a_bad_line_of_a_pipe_is_answered(trained, folder, bad, reason):
    """Unknown words are named before the bad line."""
    lines = b"The zebra eats\n\n" * 20 + bad + b"\nGood morning\n"
    line = [sys.executable, folder / "inference.py", "--model", trained / "model", "--batch-size", 1]
    done = subprocess.run(list(map(str, line)), input=lines, capture_output=True)
    assert done.returncode == 2 and len(done.stdout.splitlines()) == 40
    first, last = done.stderr.decode().splitlines()
    assert "zebra" in first and reason in last


def test_an_output_file_is_whole_or_not_there(script, trained, tmp_path, tiny):
    (tmp_path / "in.txt").write_text("Good morning\n" * 3 + "cook " * 50 + "\n", encoding="utf-8")
    flags = ["--batch-size", 1, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt"]
    (tmp_path / "out.txt").write_text("before", encoding="utf-8")
    status, _, err = script("inference", "--model", trained / "model", *flags)
    assert status == 2 and "line 4" in err
    assert (tmp_path / "out.txt").read_text() == "before" and files_in(tmp_path) == {"in.txt", "out.txt"}


def test_a_line_answers_a_line_even_of_a_model_that_says_line_breaks(tmp_path, script, make_model, bpe):
    model = make_model(bpe.get_vocab_size())
    with torch.no_grad():
        for token in ("Ċ", "č", "a"):
            model.output_bias[bpe.token_to_id(token)] = 8
    marian.save(tmp_path / "model", model, bpe)
    flags = ["--model", tmp_path / "model", "--sample"]
    status, out, _ = script("inference", *flags, stdin=b"one\ntwo\nthree\n")
    assert status == 0 and len(re.split("\r\n|\n|\r", out.rstrip("\n"))) == 3


# ----------------------------------------------------------------------- visualize_attention.py


def test_three_pictures_are_drawn(command, trained, tmp_path):
    flags = ["--model", trained / "model", "--output", tmp_path / "pictures", "Where does a fish live?"]
    done = command("visualize_attention.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        str(tmp_path / "pictures" / name)
        for name in ("attention_heatmap.png", "decoder_self_attention.png", "attention_heads.png")
    ]
    assert files_in(tmp_path) == {f"pictures/{name}" for name in PICTURES}
    for name in PICTURES:
        width, height = size_of(tmp_path / "pictures" / name)
        assert 300 < width < 5000 and 300 < height < 5000


def test_a_layer_and_head_are_chosen(script, trained, tmp_path):
    drawn = {}
    for flags in [(), ("--layer", 1, "--head", 1), ("--head", 2)]:
        out = tmp_path / str(len(drawn))
        status, *_ = script("visualize_attention", "--model", trained / "model", "--output", out, *flags, "Rome?")
        assert status == 0
        drawn[flags] = (out / "attention_heatmap.png").read_bytes()
    assert len(set(drawn.values())) == 3


def test_maps_are_means_over_what_is_not_chosen():
    weights = torch.rand(2, 3, 4, 5).softmax(dim=-1)
    for layer, head, expected in [
        (None, None, weights.mean(dim=(0, 1))),
        (2, None, weights[1].mean(dim=0)),
        (None, 3, weights[:, 2].mean(dim=0)),
        (1, 2, weights[0, 1]),
    ]:
        torch.testing.assert_close(select_map(weights, layer, head)[0], expected)
    assert entropy(torch.full((3, 8), 1 / 8)).item() == pytest.approx(3)
    assert entropy(torch.eye(4)).item() == pytest.approx(0, abs=1e-6)


def test_an_output_that_fills_all_positions_is_drawn(script, tmp_path, make_model, tokenizer):
    model = make_model(tokenizer.get_vocab_size())
    with torch.no_grad():
        model.output_bias[0] = -100  # </s> never comes
    marian.save(tmp_path / "model", model, tokenizer)
    status, *_ = script("visualize_attention", "--model", tmp_path / "model", "--output", tmp_path, "Good morning")
    assert status == 0 and files_in(tmp_path) >= PICTURES


@pytest.mark.parametrize("prompt", ["costs $5 and $6", "$x_$ and $\\foo$", "100 % {a} ^_"])
def test_a_prompt_is_drawn_as_it_stands(script, trained, tmp_path, prompt):
    status, *_ = script("visualize_attention", "--model", trained / "model", "--output", tmp_path, prompt)
    assert status == 0 and files_in(tmp_path) == PICTURES


# ----------------------------------------------------------------------------------- all scripts


FLAGS = {
    "inference": [
        *(flag_name(name) for name in GenerationConfig.__dataclass_fields__),
        *(
            "--model",
            "--input",
            "--output",
            "--references",
            "--bleu-tokenize",
            "--json",
            "--engine",
            "--engine-precision",
        ),
    ],
    "visualize_attention": ["--model", "--output", "--layer", "--head", "--html"],
}


@pytest.mark.parametrize("name", FLAGS)
def test_help_names_every_flag(script, name):
    status, out, err = script(name, "--help")
    assert status == 0 and err == ""
    assert set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", out, re.M)) == {*FLAGS[name], "--device", "--help"}
    assert f"python3 {name}.py" in out


def test_starting_imports_only_what_is_used(trained, folder):
    """PyTorch's compiler alone takes as long to import as PyTorch itself."""
    flags = ["--model", trained / "model", "--device", "cpu", "What is the capital of France?"]
    command = [sys.executable, "-X", "importtime", folder / "inference.py", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"torch", "tokenizers"} <= imported
    assert not imported & {"torch._dynamo", "sympy", "matplotlib", "sacrebleu", "transformers"}


def test_two_at_once_write_whole_files(ask, tmp_path, training):
    """The one that ends last has the file."""
    (tmp_path / "in.txt").write_text(training[0][0] + "\n", encoding="utf-8")
    out, flags = tmp_path / "out.txt", ("--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt")
    with inference.output_to(out) as other:  # of this process
        other.write("half ")
        other.flush()
        ask(*flags)
        assert out.read_text(encoding="utf-8") == training[0][1] + "\n"
        other.write("and half\n")
    assert out.read_text(encoding="utf-8") == "half and half\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.txt"]


@pytest.mark.parametrize("flag", ["--input", "--references"])
def test_what_is_read_is_not_written_over(script, trained, tmp_path, training, flag):
    for name in ("in.txt", "ref.txt"):
        (tmp_path / name).write_text(training[0][0] + "\n", encoding="utf-8")
    output = tmp_path / ("in.txt" if flag == "--input" else "ref.txt")
    flags = ("--input", tmp_path / "in.txt", "--references", tmp_path / "ref.txt", "--output", output)
    status, _, err = script("inference", "--model", trained / "model", *flags)
    assert status == 2 and f"is what {flag} names; name another file" in err and err.count("\n") == 1
    assert output.read_text(encoding="utf-8") == training[0][0] + "\n"


def test_an_output_that_is_standard_output_is_added_to(trained, folder, tmp_path, training):
    log = tmp_path / "log.txt"
    log.write_text("precious\n")
    line = [sys.executable, folder / "inference.py", "--model", trained / "model", "--device", "cpu"]
    with log.open("a") as stream:
        subprocess.run([*line, "--output", "/dev/stdout", training[0][0]], stdout=stream, check=True)
    assert log.read_text(encoding="utf-8").startswith("precious\nInput : ")


def test_an_output_that_is_a_link_stays_one(ask, tmp_path, training):
    """What it leads to is replaced."""
    prompt, answer, _ = training[0]
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "out.txt").write_text("before")
    (tmp_path / "link.txt").symlink_to(tmp_path / "there" / "out.txt")
    (tmp_path / "in.txt").write_text(prompt + "\n", encoding="utf-8")
    ask("--input", tmp_path / "in.txt", "--output", tmp_path / "link.txt")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "there" / "out.txt").read_text(encoding="utf-8") == answer + "\n"
