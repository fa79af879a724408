"""A user's mistakes: each ends in one line that names it, exit status 2, and nothing written."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

GOOD = b"a b\tb a\nc d\td c\ne f\tf e\n"
FILES = {  # what the folder of a case holds
    "good.tsv": GOOD,
    "empty.tsv": b"",
    "blank.tsv": b"\n  \n\t\n",
    "binary.tsv": bytes(range(256)) * 4,
    "utf16.tsv": GOOD.decode().encode("utf-16"),
    "latin1.tsv": b"a\tb\ncaf\xe9\tb\n",
    "nul.tsv": b"a\tb\nc\0\td\n",
    "column.tsv": b"one\ntwo\n",
    "header.tsv": b"source\ttarget\n",
    "pair.tsv": b"a\tb\n",
    "same.tsv": b"a\tb\na\tc\n",
    "long.tsv": b"a b c d e\tx\nf g h i j\ty\n",
    "prompts.txt": b"Good morning\n",
    "two.txt": b"one\ntwo\n",
    "empty.txt": b"",
    "latin1.txt": b"Good morning\ncaf\xe9\n",
    "utf16.txt": "Good morning\n".encode("utf-16"),
    "nul.txt": b"Good\0morning\n",
    "long.txt": b"Good morning\n" + b"cook " * 40 + b"\n",
    "file": b"",
}
NO_DEVICE = "mps" if torch.cuda.is_available() else "cuda"

TRAIN = {  # flags: what the line must say
    "--pairs missing.tsv": "missing.tsv: no such file",
    "--pairs folder": "folder: is a folder",
    "--pairs empty.tsv": "empty.tsv: holds no text",
    "--pairs blank.tsv": "blank.tsv: holds no text",
    "--pairs binary.tsv": "binary.tsv, line",
    "--pairs utf16.tsv": "utf16.tsv: is UTF-16; save it as UTF-8",
    "--pairs latin1.tsv": "latin1.tsv, line 2: byte 4 is not UTF-8",
    "--pairs nul.tsv": "nul.tsv, line 2: holds a NUL byte",
    "--pairs column.tsv": "column.tsv: has one column",
    "--pairs header.tsv": "header.tsv: holds no pair",
    "--pairs pair.tsv": "one distinct source",
    "--pairs same.tsv": "one distinct source",
    "--pairs good.tsv missing.tsv": "missing.tsv: no such file",
    "--pairs good.tsv --held-out missing.tsv": "missing.tsv: no such file",
    "--pairs good.tsv --held-out good.tsv": "train on",
    "--pairs good.tsv --source-column french": "has no column 'french'",
    "--pairs good.tsv --target-column 3": "has no column '3'",
    "--pairs good.tsv --target-column 0": "has no column '0'",
    "--pairs long.tsv --max-length 3": "raise --max-length",
    "--pairs good.tsv --d-model 30 --n-heads 4": "--d-model 30 is not a multiple of --n-heads 4",
    "--d-model 0": "--d-model: needs a whole number from 1",
    "--d-model -8": "--d-model: needs a whole number from 1",
    "--d-model 1e3": "--d-model: needs a whole number",
    "--d-model 99999999999999999999": "--d-model: needs a whole number",
    "--n-layers 0": "--n-layers: needs a whole number",
    "--n-layers 1000000": "--n-layers: needs a whole number",
    "--vocab-size 2": "--vocab-size: needs a whole number from 300",
    "--dropout 1": "--dropout: needs a number from 0 to 0.99",
    "--dropout nan": "--dropout: needs a number",
    "--learning-rate 0": "--learning-rate: needs a number",
    "--learning-rate inf": "--learning-rate: needs a number",
    "--learning-rate nan": "--learning-rate: needs a number",
    "--label-smoothing -0.1": "--label-smoothing: needs a number",
    "--batch-tokens 0": "--batch-tokens: needs a whole number",
    "--epochs 0": "--epochs: needs a whole number",
    "--max-steps -5": "--max-steps: needs a whole number",
    "--max-minutes 0": "--max-minutes: needs a number",
    "--seed -1": "--seed: needs a whole number",
    "--tokenizer char": "--tokenizer: invalid choice: 'char'",
    "--precision fp8": "--precision: invalid choice",
    "--epocs 3": "unrecognized arguments: --epocs",
    "--pairs": "--pairs: expected at least one argument",
    f"--pairs good.tsv --device {NO_DEVICE}": f"--device {NO_DEVICE}: this machine has none",
    "--pairs good.tsv --resume --output new": "checkpoint.pt: no checkpoint here to resume from",
    "--pairs good.tsv --output file": "file",
    "--pairs good.tsv --init missing": "missing: no model here",
    "--pairs good.tsv --init trained --d-model 64": "--init and --d-model exclude each other",
}
INFERENCE = {
    "--model missing cook": "missing: no model here (no config.json); run train.py first",
    "--model folder cook": "folder: no model here",
    "--model file cook": "file: no model here",
    "--model truncated cook": "model.safetensors: is damaged",
    "--model foreign cook": "model_type is 'gpt2'; supported is 'marian'",
    "--model trained --input missing.txt": "missing.txt: no such file",
    "--model trained --input folder": "folder: is a folder",
    "--model trained --input empty.txt": "empty.txt: holds no text",
    "--model trained --input latin1.txt": "latin1.txt, line 2: byte 4 is not UTF-8",
    "--model trained --input utf16.txt": "utf16.txt: is UTF-16",
    "--model trained --input nul.txt": "nul.txt, line 1: holds a NUL byte",
    "--model trained --input long.txt": "long.txt, line 2, has 41 tokens, the model takes 16",
    "--model trained --input prompts.txt cook": "--input and prompts as arguments exclude each other",
    "--model trained --references two.txt cook": "--references needs --input",
    "--model trained --input prompts.txt --references missing.txt": "missing.txt: no such file",
    "--model trained --input prompts.txt --references two.txt --output out.txt": "has 2 lines",
    "--model trained --output folder cook": "folder: is a folder; name a file",
    "--model trained --n-best 3 cook": "--n-best 3 needs --beam 3 or more",
    "--model trained --n-best 3 --beam 2 cook": "--n-best 3 needs --beam 3 or more",
    "--model trained --n-best 2 --beam 2 --input prompts.txt": "needs --json",
    "--model trained --sample --beam 2 cook": "--sample and --beam exclude each other",
    "--model trained --top-k 3 cook": "need --sample",
    "--model trained --temperature 0.5 cook": "need --sample",
    "--model trained --sample --temperature 0 cook": "--temperature: needs a number",
    "--model trained --sample --temperature nan cook": "--temperature: needs a number",
    "--model trained --sample --top-p 0 cook": "--top-p: needs a number",
    "--model trained --sample --top-p 1.5 cook": "--top-p: needs a number",
    "--model trained --sample --top-k -1 cook": "--top-k: needs a whole number",
    "--model trained --beam 0 cook": "--beam: needs a whole number from 1 to 1000",
    "--model trained --beam 100000000000 cook": "--beam: needs a whole number",
    "--model trained --length-penalty inf cook": "--length-penalty: needs a number",
    "--model trained --max-length 0 cook": "--max-length: needs a whole number",
    "--model trained --max-length 17 cook": "--max-length 17: the model knows 16 positions",
    "--model trained --batch-size 0 cook": "--batch-size: needs a whole number",
    "--model trained ''": "prompt 1 is empty; give it a text",
    "--model trained cook '  '": "prompt 2 is empty; give it a text",
    "--model trained 'a a a a a a a a a a a a a a a a'": "prompt 1 has 17 tokens, the model takes 16",
    f"--model trained --device {NO_DEVICE} cook": f"--device {NO_DEVICE}: this machine has none",
    "--model trained --device gpu cook": "--device: invalid choice: 'gpu'",
}
PICTURES = {
    "--model missing --output new": "missing: no model here",
    "--model trained --output new --layer 2 cook": "--layer 2: the model has 1",
    "--model trained --output new --head 3 cook": "--head 3: the model has 2",
    "--model trained --output new --layer 0 cook": "--layer: needs a whole number from 1",
    "--model trained --output new ''": "the prompt is empty",
    "--model trained --output new 'a a a a a a a a a a a a a a a a'": "the prompt has 17 tokens",
    "--model trained --output file cook": "file",
    "--model trained --output new two prompts": "unrecognized arguments: prompts",
}
CASES = [
    (script, flags, reason)
    for script, cases in (("train", TRAIN), ("inference", INFERENCE), ("visualize_attention", PICTURES))
    for flags, reason in cases.items()
]


@pytest.fixture(scope="session")
def furniture(tmp_path_factory, trained):
    """A folder with the files and the models that the cases name."""
    place = tmp_path_factory.mktemp("furnished")
    for name, content in FILES.items():
        (place / name).write_bytes(content)
    (place / "folder").mkdir()
    for name in ("trained", "truncated", "foreign"):
        shutil.copytree(trained / "model", place / name)
    weights = place / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (place / "foreign" / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    return place


@pytest.fixture
def furnished(furniture, tmp_path):
    """A copy of it for each case."""
    return shutil.copytree(furniture, tmp_path / "here")


def contents(place):
    return {str(path): path.read_bytes() if path.is_file() else None for path in place.rglob("*")}


@pytest.mark.parametrize("name, flags, reason", CASES, ids=[f"{name}:{flags}" for name, flags, _ in CASES])
def test_a_mistake_ends_in_one_line(script, furnished, monkeypatch, name, flags, reason):
    monkeypatch.chdir(furnished)
    flags = shlex.split(flags)
    if name == "train" and "--output" not in flags:
        flags += ["--output", "out"]
    before = contents(furnished)
    status, out, err = script(name, *flags)
    assert status == 2
    assert err.endswith("\n") and len(err.splitlines()) == 1
    assert err.startswith(f"{name}.py: ") and reason in err
    assert out == ""
    assert contents(furnished) == before


@pytest.mark.parametrize(
    "stdin, reason",
    [
        (b"", "standard input: holds no text"),
        (b"\n \n", "standard input: holds no text"),
        (b"Good morning\n\xff\n", "standard input, line 2: byte 1 is not UTF-8"),
        (b"Good morning\nGood\0\n", "standard input, line 2: holds a NUL byte"),
    ],
)
def test_a_mistake_on_standard_input_ends_in_one_line(script, furnished, stdin, reason):
    status, out, err = script("inference", "--model", furnished / "trained", stdin=stdin)
    assert status == 2 and out.strip() == ""
    assert len(err.splitlines()) == 1 and reason in err


@pytest.mark.parametrize(
    "name, flags, reason",
    [
        ("train.py", "--pairs latin1.tsv --output new", "latin1.tsv, line 2"),
        ("train.py", "--pairs good.tsv --d-model x", "--d-model: needs a whole number"),
        ("inference.py", "--model missing cook", "missing: no model here"),
        ("inference.py", "--model truncated cook", "is damaged"),
        ("inference.py", "--model trained --input binary.tsv", "binary.tsv, line"),
        ("visualize_attention.py", "--model trained --output new --layer 9 cook", "--layer 9"),
    ],
)
def test_a_mistake_in_a_command_ends_in_one_line(command, furnished, name, flags, reason):
    before = contents(furnished)
    done = command(name, *flags.split(), cwd=furnished)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        len(done.stderr.splitlines()) == 1 and done.stderr.startswith(f"{name}: ") and reason in done.stderr
    )
    assert contents(furnished) == before


def test_a_model_too_large_for_the_memory_ends_in_one_line(script, furnished, monkeypatch, tmp_path):
    def allocate(config):
        torch.empty(2**60)

    monkeypatch.setattr("train.Transformer", allocate)
    status, _, err = script("train", "--pairs", furnished / "good.tsv", "--output", tmp_path / "out")
    assert status == 2 and len(err.splitlines()) == 1 and "memory" in err


@pytest.mark.parametrize(
    "flags", [["--pairs", "latin1.tsv"], ["--pairs", "good.tsv", "--learning-rate", "0"]]
)
def test_the_model_that_was_there_survives_a_failing_run(
    script, furnished, trained, monkeypatch, tmp_path, flags
):
    shutil.copytree(trained, tmp_path / "out")
    monkeypatch.chdir(furnished)
    before = contents(tmp_path)
    assert script("train", *flags, "--output", tmp_path / "out")[0] == 2
    assert contents(tmp_path) == before


def test_the_model_that_was_there_survives_a_run_whose_loss_is_no_number(
    script, furnished, trained, monkeypatch, tmp_path
):
    shutil.copytree(trained, tmp_path / "out")
    before = contents(tmp_path / "out" / "model"), contents(tmp_path / "out" / "samples")
    monkeypatch.setattr("train.token_losses", lambda states, *_: (states.sum() * torch.nan,) * 2)
    flags = ["--max-steps", 2, "--pairs", furnished / "good.tsv", "--output", tmp_path / "out"]
    status, _, err = script("train", *flags)
    assert status == 2 and "no longer finite" in err.splitlines()[-1]
    assert (contents(tmp_path / "out" / "model"), contents(tmp_path / "out" / "samples")) == before


def test_the_checkpoint_of_another_run_is_named(script, furnished, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    before = contents(tmp_path)
    flags = ["--pairs", furnished / "good.tsv", "--output", tmp_path / "out", "--resume"]
    status, _, err = script("train", *flags)
    assert status == 2 and "belongs to a run with" in err and len(err.splitlines()) == 1
    assert contents(tmp_path) == before


def test_a_reader_that_goes_early_ends_the_output_quietly(furnished, tmp_path):
    (tmp_path / "in.txt").write_text("Good morning\n" * 5000, encoding="utf-8")
    script = Path(__file__).parent.parent / "inference.py"
    line = [sys.executable, script, "--model", furnished / "trained", "--input", tmp_path / "in.txt"]
    process = subprocess.Popen(
        list(map(str, line)),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"Good morning, cook\n"
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 1
