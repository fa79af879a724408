"""A user's mistakes: each ends in one line on stderr that names it, exit status 2, and nothing written."""

import json
import os
import resource
import shutil
import subprocess
import sys

import pytest
import torch

import fill_mask
import pretrained
import visualize_attention
from corpus import MASK

SENTENCES = "the cat sat\nthe dog sat\na cat ran\n"


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory, tiny, tokenizer):
    """A sound model directory, of a random model that takes 24 tokens."""
    directory = tmp_path_factory.mktemp("sound") / "model"
    pretrained.save(directory, tiny, tokenizer)
    return directory


@pytest.fixture
def place(tmp_path, monkeypatch, model_directory):
    """The folder in which the commands run, with files of many kinds in it."""
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "good.txt": SENTENCES.encode(),
        "empty.txt": b"",
        "blank.txt": b"\n  \n\t\r\n",
        "binary.txt": bytes(range(256)) * 10,
        "utf16.txt": SENTENCES.encode("utf-16"),
        "latin1.txt": "the cat sat\nthe café\n".encode("latin-1"),
        "nul.txt": b"the cat sat\nthe \0 dog\n",
        "one.txt": b"the cat sat\n" * 5,
        "same.txt": SENTENCES.encode(),
        "masks.txt": f"{MASK}\n{MASK} [PAD]\n".encode(),
        "bad.txt": SENTENCES.encode(),
        "bad.cloze.tsv": b"sentence\tkey\tkind\nthe cat sat\tdog\tfree\n",
        "latin.txt": SENTENCES.encode(),
        "latin.cloze.tsv": b"sentence\tkey\tkind\nthe caf\xe9 sat\tsat\tfree\n",
        "long.txt": SENTENCES.encode(),
        "long.cloze.tsv": b"sentence\tkey\tkind\n" + b"the " * 200 + b"cat\tcat\tfree\n",
        "file": b"a file",
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    shutil.copytree(model_directory, tmp_path / "sound")
    for name in ("truncated", "foreign", "text"):
        shutil.copytree(model_directory, tmp_path / name)
    weights = tmp_path / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "foreign" / "config.json").write_text('{"model_type": "gpt2", "n_embd": 3}', encoding="utf-8")
    (tmp_path / "text" / "config.json").write_text("once upon a time", encoding="utf-8")
    return tmp_path


def snapshot(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def assert_refused(status, stdout, stderr, fragments, prog):
    assert "Traceback" not in stderr, stderr
    assert (status, stderr.count("\n")) == (2, 1), (status, stderr)
    assert stderr.startswith(f"{prog}.py: ") and stderr.endswith("\n")
    for fragment in fragments:
        assert fragment in stderr, stderr
    assert stdout == ""


TRAIN = [  # flags after --output out, what the line must say
    ("--corpus missing.txt", "missing.txt: no such file"),
    ("--corpus folder", "folder: is a folder"),
    ("--corpus empty.txt", "empty.txt: holds no text"),
    ("--corpus blank.txt", "blank.txt: holds no text"),
    ("--corpus binary.txt", "binary.txt, line"),
    ("--corpus utf16.txt", "utf16.txt: is UTF-16"),
    ("--corpus latin1.txt", "latin1.txt, line 2: byte 8 is not UTF-8"),
    ("--corpus nul.txt", "nul.txt, line 2: holds a NUL"),
    ("--corpus one.txt", "one distinct sentence"),
    ("--corpus good.txt missing.txt", "missing.txt: no such file"),
    ("--corpus", "--corpus"),
    ("--corpus masks.txt", "nothing"),
    ("--corpus good.txt --held-out masks.txt", "nothing"),
    ("--corpus masks.txt --held-out good.txt", "nothing"),
    ("--corpus good.txt --held-out missing.txt", "missing.txt: no such file"),
    ("--corpus good.txt --held-out empty.txt", "empty.txt: holds no text"),
    ("--corpus good.txt --held-out good.txt", "good.txt: holds all training sentences"),
    ("--corpus good.txt --held-out same.txt", "same.txt: holds all training sentences"),
    ("--corpus bad.txt", "bad.cloze.tsv, line 2"),
    ("--corpus good.txt --held-out bad.txt", "bad.cloze.tsv, line 2"),
    ("--corpus latin.txt", "latin.cloze.tsv, line 2: byte 8"),
    ("--corpus long.txt", "a cloze sentence has 203 tokens, the model takes 128"),
    ("--corpus good.txt --d-model 30 --n-heads 4", "--d-model 30 is not a multiple of --n-heads 4"),
    ("--corpus good.txt --d-model 0", "--d-model: needs a whole number from 1"),
    ("--corpus good.txt --d-model 1e3", "--d-model: needs a whole number"),
    ("--corpus good.txt --d-model 99999999", "--d-model"),
    ("--corpus good.txt --n-layers -1", "--n-layers"),
    ("--corpus good.txt --n-heads 0", "--n-heads"),
    ("--corpus good.txt --d-ff 0", "--d-ff"),
    ("--corpus good.txt --dropout 1", "--dropout: needs a number from 0 to 0.99, not '1'"),
    ("--corpus good.txt --dropout nan", "--dropout"),
    ("--corpus good.txt --learning-rate nan", "--learning-rate"),
    ("--corpus good.txt --learning-rate inf", "--learning-rate"),
    ("--corpus good.txt --learning-rate 0", "--learning-rate"),
    ("--corpus good.txt --mask-prob 0", "--mask-prob"),
    ("--corpus good.txt --mask-prob 1", "--mask-prob"),
    ("--corpus good.txt --max-minutes -1", "--max-minutes"),
    ("--corpus good.txt --max-minutes nan", "--max-minutes"),
    ("--corpus good.txt --epochs 0", "--epochs"),
    ("--corpus good.txt --max-steps 0", "--max-steps"),
    ("--corpus good.txt --max-steps 99999999999999999999", "--max-steps"),
    ("--corpus good.txt --warmup-steps -1", "--warmup-steps"),
    ("--corpus good.txt --batch-tokens 0", "--batch-tokens"),
    ("--corpus good.txt --max-length 3", "--max-length"),
    ("--corpus good.txt --vocab-size 3", "--vocab-size"),
    ("--corpus good.txt --seed -1", "--seed"),
    ("--corpus good.txt --tokenizer letters", "--tokenizer"),
    ("--corpus good.txt --precision fp8", "--precision"),
    ("--corpus good.txt --device gpu", "--device"),
    ("--corpus good.txt --no-such-flag", "--no-such-flag"),
    ("--corpus good.txt --init folder", "folder: no model here"),
    ("--corpus good.txt --init truncated", "model.safetensors: is damaged"),
    ("--corpus good.txt --init sound --d-model 32", "--init and --d-model exclude each other"),
    ("--corpus good.txt --output file --max-steps 1", "file"),
    ("--corpus good.txt --output file/below --max-steps 1", "file"),
]


@pytest.mark.parametrize(("flags", "fragment"), TRAIN, ids=[flags for flags, _ in TRAIN])
def test_training_refuses(script, place, flags, fragment):
    before = snapshot(place)
    result = script("train_mlm", "--output", "out", "--max-steps", 1, "--device", "cpu", *flags.split())
    status, stdout, stderr = result
    assert_refused(status, stdout, stderr, [fragment], "train_mlm")
    assert snapshot(place) == before


FILL = [  # flags, standard input, what the line must say
    ("--model typo [MASK]", b"", "typo: no model here; run train_mlm.py first"),
    ("--model folder [MASK]", b"", "folder: no model here"),
    ("--model file [MASK]", b"", "file: no model here"),
    ("--model truncated [MASK]", b"", "model.safetensors: is damaged"),
    ("--model foreign [MASK]", b"", "model_type is 'gpt2'"),
    ("--model text [MASK]", b"", "config.json: is not a JSON object"),
    ("--model sound", b"", "no sentence given"),
    ("--model sound", b"\n  \n", "no sentence given"),
    ("--model sound the|cat", b"", "sentence 1: no [MASK] in 'the cat'"),
    ("--model sound the|cat --json", b"", "sentence 1: no [MASK]"),
    ("--model sound", "the c\xe2t [MASK]\n".encode("latin-1"), "standard input, line 1: byte 6 is not UTF-8"),
    ("--model sound", "the [MASK]\n".encode("utf-16"), "standard input: is UTF-16"),
    ("--model sound", b"the \0 [MASK]\n", "standard input, line 1: holds a NUL"),
    ("--model sound --top-k 0 [MASK]", b"", "--top-k: needs a whole number from 1"),
    ("--model sound --top-k -5 [MASK]", b"", "--top-k"),
    ("--model sound --top-k many [MASK]", b"", "--top-k"),
    ("--model sound --score [CLS]", b"", "sentence 1: the sentence is empty"),
    ("--model sound --tpo-k 3 [MASK]", b"", "--tpo-k"),
    ("--model", b"", "--model"),
]


@pytest.mark.parametrize(("flags", "stdin", "fragment"), FILL, ids=lambda value: str(value)[:40])
def test_filling_refuses(script, place, flags, stdin, fragment):
    """In flags, | is a space within a sentence."""
    before = snapshot(place)
    line = [flag.replace("|", " ") for flag in flags.split()]
    assert_refused(*script("fill_mask", *line, stdin=stdin), [fragment], "fill_mask")
    assert snapshot(place) == before


@pytest.mark.parametrize("sentence", ["", "   ", "\t\n"])
@pytest.mark.parametrize("mode", [["--top-k", 1], ["--score"]])
def test_an_empty_sentence_is_refused(script, place, sentence, mode):
    result = script("fill_mask", "--model", "sound", *mode, sentence)
    assert_refused(*result, ["sentence 1", "the sentence is empty"], "fill_mask")


@pytest.mark.parametrize("mode", [["--top-k", 1], ["--score"]])
def test_a_sentence_that_is_too_long_is_refused(script, place, mode):
    result = script("fill_mask", "--model", "sound", *mode, "the cat " * 11 + MASK)
    assert_refused(*result, ["sentence 1", "25 tokens", "24", "shorten"], "fill_mask")


@pytest.mark.parametrize(
    ("stdin", "line"),
    [(b"a [MASK]\nthe [MASK]\nthe cat\n[MASK]\n", 3), (b"a [MASK]\n\n\nthe cat\n", 4)],
    ids=["third", "fourth, after blank ones"],
)
def test_the_line_of_standard_input_without_mask_is_named(script, place, stdin, line):
    """What stands before it has been answered; its number is the one that an editor shows."""
    status, stdout, stderr = script("fill_mask", "--model", "sound", "--top-k", 1, "--json", stdin=stdin)
    assert all(json.loads(answer)["masks"] for answer in stdout.splitlines())
    assert len(stdout.splitlines()) == stdin[: stdin.index(b"the cat")].count(b"MASK")
    assert_refused(status, "", stderr, [f"standard input, line {line}: no [MASK] in 'the cat'"], "fill_mask")


VISUALIZE = [
    ("--model typo the|cat", "typo: no model here"),
    ("--model foreign the|cat", "model_type"),
    ("--model sound --layer 3 the|cat", "--layer 3: the model has 2; give a number from 1 to 2"),
    ("--model sound --head 3 the|cat", "--head 3: the model has 2"),
    ("--model sound --layer 0 the|cat", "--layer"),
    ("--model sound --head -1 the|cat", "--head"),
    ("--model sound the cat", "cat"),
    (f"--model sound {'the|cat|' * 12}", "26 tokens"),
    ("--model sound [CLS]", "the sentence is empty"),
    ("--model sound --output file the|cat", "file"),
]


@pytest.mark.parametrize(("flags", "fragment"), VISUALIZE, ids=[flags[:40] for flags, _ in VISUALIZE])
def test_drawing_refuses_and_draws_nothing(script, place, flags, fragment):
    """In flags, | is a space within a sentence."""
    before = snapshot(place)
    line = ["--output", "out", *(flag.replace("|", " ") for flag in flags.split())]
    assert_refused(*script("visualize_attention", *line), [fragment], "visualize_attention")
    assert snapshot(place) == before


@pytest.mark.parametrize("name", ["train_mlm", "fill_mask", "visualize_attention"])
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(script, place, monkeypatch, name, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    before = snapshot(place)
    fragments = [f"--device {device}", "try --device cpu"]
    flags = ["--corpus", "good.txt", "--output", "out"] if name == "train_mlm" else ["--model", "sound"]
    assert_refused(*script(name, "--device", device, *flags), fragments, name)
    assert snapshot(place) == before


@pytest.mark.parametrize("module", [fill_mask, visualize_attention], ids=lambda module: module.__name__)
def test_before_the_first_training_the_remedy_is_named(script, place, monkeypatch, module):
    monkeypatch.setattr(module, "HERE", place / "folder")
    result = script(module.__name__, f"the {MASK}")
    assert_refused(*result, ["no model here; run train_mlm.py first"], module.__name__)


def test_there_is_nothing_to_resume_without_a_checkpoint(script, place):
    flags = ["--corpus", "good.txt", "--output", "folder", "--device", "cpu", "--resume"]
    status, _, stderr = script("train_mlm", *flags)
    assert_refused(status, "", stderr, ["checkpoint.pt: no checkpoint here", "--resume"], "train_mlm")
    assert not list((place / "folder").iterdir())


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        ("--corpus good.txt --learning-rate 10 --max-steps 5000 --n-layers 1", "no longer finite"),
        ("--corpus good.txt --max-steps 3 --resume", "is damaged"),
        ("--corpus missing.txt --max-steps 3", "no such file"),
    ],
)
def test_a_run_that_fails_leaves_the_model_of_the_run_before(script, place, monkeypatch, flags, fragment):
    shutil.copytree("sound", "out/model")
    (place / "out" / "checkpoint.pt").write_bytes(b"damaged")
    before = snapshot(place / "out" / "model")
    if "10" in flags:  # as a rate that is far too high makes it
        corrupted = torch.nn.functional.cross_entropy
        monkeypatch.setattr(
            torch.nn.functional, "cross_entropy", lambda *a, **k: corrupted(*a, **k) * torch.nan
        )
    status, _, stderr = script("train_mlm", "--output", "out", "--device", "cpu", *flags.split())
    assert status == 2 and fragment in stderr.splitlines()[-1].split("\r")[-1]
    assert "Traceback" not in stderr
    assert snapshot(place / "out" / "model") == before


@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        (["train_mlm.py", "--corpus", "missing.txt", "--output", "out"], "missing.txt: no such file"),
        (["train_mlm.py", "--corpus", "good.txt", "--output", "out", "--dropout", "nan"], "--dropout"),
        (["fill_mask.py", "--model", "typo", MASK], "typo: no model here"),
        (["fill_mask.py", "--model", "sound", b"caf\xe9 [MASK]"], "UTF-8"),
        (["visualize_attention.py", "--model", "truncated", "cat", "--output", "out"], "is damaged"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_as_commands(place, folder, line, fragment):
    before = snapshot(place)
    line = [sys.executable, str(folder / line[0]), *line[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=place, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    name = os.path.basename(line[1])[:-3]  # noqa: PTH119
    assert_refused(done.returncode, done.stdout.decode(), done.stderr.decode(), [fragment], name)
    assert snapshot(place) == before


def test_a_model_that_does_not_fit_into_memory_is_refused(place, folder):
    """Its first layer alone would take 51 GB, where the process may have half of it."""
    limit = 24 * 2**30
    before = snapshot(place)
    flags = "--corpus good.txt --output out --device cpu --n-heads 1 --d-model 65536 --d-ff 1000000"
    done = subprocess.run(
        [sys.executable, str(folder / "train_mlm.py"), *flags.split()],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        cwd=place,
        capture_output=True,
    )
    result = done.returncode, done.stdout.decode(), done.stderr.decode()
    assert_refused(*result, ["memory"], "train_mlm")
    assert snapshot(place) == before
