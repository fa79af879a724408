"""A user's mistakes, and files from strangers: each ends in one line on stderr that names what is wrong and the remedy,
exit status 2, and nothing written; what is merely odd works.

Damaged model directories are refused in test_marian_directory.py; here are those for which the command matters.
"""

import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields

import pytest
import torch
from seq2seq_strangers import MODELS, Trap, key_twice, little_memory, tensors

from seq2seq import marian
from seq2seq.common.command_line import Range, flag_name
from seq2seq.common.files import atomic_write
from seq2seq.config import GenerationConfig, TrainConfig

GOOD = b"a b\tb a\nc d\td c\ne f\tf e\n"
FILES = {  # what the folder of the cases holds
    "good.tsv": GOOD,
    "empty.tsv": b"",
    "blank.tsv": b"\n  \n\t\n",
    "binary.tsv": bytes(range(256)) * 4,
    "utf16.tsv": GOOD.decode().encode("utf-16"),
    "utf16be.tsv": b"\xfe\xff" + GOOD.decode().encode("utf-16-be"),
    "latin1.tsv": b"a\tb\ncaf\xe9\tb\n",
    "nul.tsv": b"a\tb\nc\0\td\n",
    "column.tsv": b"one\ntwo\n",
    "comma.tsv": b"source,target\na,b\n",
    "header.tsv": b"source\ttarget\n",
    "wide.tsv": b"source\ttarget\tkind\na\tb\nc\td\n",
    "sideless.tsv": b"a\t\n\tb\nc\t \n",
    "pair.tsv": b"a\tb\n",
    "identical.tsv": b"a\tb\na\tb\n",
    "answers.tsv": b"a\tb\na\tc\n",
    "long.tsv": b"a b c d e\tx\nf g h i j\ty\n",
    "file": b"",
    "prompts.txt": b"Good morning\n",
    "two.txt": b"one\ntwo\n",
    "empty.txt": b"",
    "blank.txt": b"\n \n",
    "latin1.txt": b"Good morning\ncaf\xe9\n",
    "utf16.txt": "Good morning\n".encode("utf-16"),
    "nul.txt": b"Good\0morning\n",
    "binary.txt": bytes(range(256)) * 4,
    "long.txt": b"Good morning\n" + b"cook " * 40 + b"\n",
    "endless.txt": b"Good morning\n" + (b"x" * 99 + b" ") * 100_000 + b"\n",  # a line of 10 MB
    # odd, but usable
    "crlf.tsv": b"\xef\xbb\xbfsource\ttarget\r\n" + GOOD.replace(b"\n", b"\r\n"),
    "ragged.tsv": GOOD * 2 + b"only\nx\ty\tz\n\tg\n" + b"g\th\n",
    "quotes.tsv": b'"a"\t\'b\nsay "x\ty"\n"\t"\n',
    "scripts.tsv": "cafe\u0301\tשלום עולם\nمرحبا\t👩‍👩‍👧 🇫🇷\n\u202eabc\t\x1b[31mcat\x07\n".encode(),
    "emoji.tsv": "😀 😃\t😀\n😀 😄\t😄\n😃 😄\t😄\n".encode(),
    "word.tsv": b"x" * 10_000 + b"\ty\na b\tb a\nc d\td c\n",
    "odd.txt": "\ufeffGood morning\r\n\r\n  Good zebra \r\n".encode(),
    "blanks.txt": b"\n\n\n",
}
NO_DEVICE = "mps" if torch.cuda.is_available() else "cuda"

DAMAGED = {  # names of directories -> what was done to a good one
    "bomb": MODELS["bomb"][0],
    "cut": MODELS["cut in the numbers"][0],
    "doubled": key_twice,
    "overflow": tensors(lambda weights: [tensor.fill_(3e38) for tensor in weights.values()]),
}

REFUSED = [  # the command line, what the line on stderr must say
    # pairs
    ("train.py --pairs missing.tsv", "missing.tsv: no such file; name a text file"),
    ("train.py --pairs folder", "folder: is a folder; name a text file"),
    ("train.py --pairs ''", "--pairs: needs a path, not ''"),
    ("train.py --pairs good.tsv --output ''", "--output: needs a path, not ''"),
    ("train.py --pairs nowhere.txt", "nowhere.txt: a broken link; name a text file"),
    ("train.py --pairs good.tsv --output nowhere.txt", "nowhere.txt: is a broken link; name a folder"),
    ("train.py --pairs locked.txt", "locked.txt: Permission denied; change its permissions"),
    ("train.py --pairs file/below.tsv", "file/below.tsv: no such file"),
    (f"train.py --pairs {'x' * 300}", "File name too long"),
    ("train.py --pairs caf\udce9.tsv", "caf\\udce9.tsv: no such file"),
    ("train.py --pairs empty.tsv", "empty.tsv: contains no text"),
    ("train.py --pairs blank.tsv", "blank.tsv: contains no text"),
    ("train.py --pairs /dev/null", "/dev/null: can be read only once; save its text as a file"),
    ("train.py --pairs /dev/stdin < good.tsv", "/dev/stdin: can be read only once; save"),
    ("train.py --pairs binary.tsv", "binary.tsv, line 1: contains a NUL byte"),
    ("train.py --pairs utf16.tsv", "utf16.tsv: is UTF-16; save it as UTF-8"),
    ("train.py --pairs utf16be.tsv", "utf16be.tsv: is UTF-16; save it as UTF-8"),
    ("train.py --pairs latin1.tsv", "latin1.tsv, line 2: byte 4 is not UTF-8; save the file as UTF-8"),
    ("train.py --pairs nul.tsv", "nul.tsv, line 2: contains a NUL byte"),
    ("train.py --pairs column.tsv", "column.tsv: has one column; separate source and target by a tab"),
    ("train.py --pairs comma.tsv", "comma.tsv: has one column; separate source and target by a tab"),
    ("train.py --pairs header.tsv", "header.tsv: contains no pair; separate a source and a target by a tab"),
    ("train.py --pairs wide.tsv", "wide.tsv: the header has 3 columns, most lines have 2; give all of them"),
    ("train.py --pairs pair.tsv", "one distinct source; give at least two"),
    ("train.py --pairs identical.tsv", "one distinct source; give at least two"),
    ("train.py --pairs answers.tsv", "one distinct source; give at least two"),
    ("train.py --pairs good.tsv missing.tsv", "missing.tsv: no such file"),
    ("train.py --pairs good.tsv --held-out missing.tsv", "missing.tsv: no such file"),
    ("train.py --pairs good.tsv --held-out good.tsv", "all sources of the training pairs are held out"),
    ("train.py --pairs good.tsv --source-column french", "has no column 'french'; use one of a b, b a, or 1 to 2"),
    ("train.py --pairs good.tsv --target-column 3", "has no column '3'; use 1 to 2"),
    ("train.py --pairs good.tsv --target-column 0", "has no column '0'"),
    ("train.py --pairs good.tsv --source-column 2", "column 2 would be both source and target; choose two"),
    ("train.py --pairs crlf.tsv --source-column target", "column 2 would be both source and target"),
    ("train.py --pairs long.tsv --max-length 3", "at most 3 tokens on each side; allow more (--max-length)"),
    # folders
    ("train.py --pairs good.tsv --output caf\udce9", "the name is not UTF-8"),
    ("train.py --pairs good.tsv --output taken", "taken/model: is a file; name a folder"),
    ("train.py --pairs good.tsv --output file", "file: is a file; name a folder that can be written to (--output)"),
    ("train.py --pairs good.tsv --output file/below", "file/below: Not a directory; name a folder"),
    ("train.py --pairs good.tsv --resume", "checkpoint.pt: no checkpoint here to resume from; run without"),
    ("train.py --pairs good.tsv --output garbage --resume", "checkpoint.pt: is damaged"),
    ("train.py --pairs good.tsv --init missing", "missing: no model here"),
    ("ablations.py --pairs good.tsv no-positions", "no-positions: no such file; names of ablations stand before the"),
    ("train.py --pairs good.tsv --init caf\udce9", "the name is not UTF-8"),
    # flags of training; for those with numbers see below
    ("train.py --pairs", "--pairs: expected at least one argument"),
    (
        "train.py --d-model 30 --n-heads 4",
        "d_model 30 is not a multiple of n_heads 4; use 32, or another number of heads (--d-model)",
    ),
    ("train.py --epochs '1\n2'", "not '1\\n2'"),
    ("train.py --tokenizer bpe --vocab-size 299", "299 subwords are too few for 256 bytes; give 300 or more (--vocab"),
    ("train.py --tokenizer char", "--tokenizer: invalid choice: 'char'"),
    ("train.py --precision fp8", "--precision: invalid choice"),
    ("train.py --epocs 3", "unrecognized arguments: --epocs"),
    (f"train.py --pairs good.tsv --device {NO_DEVICE}", f"device {NO_DEVICE}: this machine has none"),
    ("train.py --pairs good.tsv --init good --d-model 64", "init and d_model cannot be combined"),
    # flags of generation
    ("inference.py --model good cook --references two.txt", "not with arguments"),
    ("inference.py --model good --input prompts.txt cook", "--input and prompts as arguments cannot be combined"),
    ("inference.py --model good --n-best 3 cook", "n_best 3 needs a beam of 3 or more, or sampling (--n-best)"),
    ("inference.py --model good --n-best 2 --beam 2 --input prompts.txt", "needs --json, as a line answers"),
    ("inference.py --model good --sample --beam 2 cook", "sampling and beam search cannot be combined (--sample)"),
    ("inference.py --model good --top-k 3 cook", "temperature, top_k and top_p need sampling (--sample)"),
    ("inference.py --model good --max-length 17 cook", "max_length 17: the model has 16 positions; lower it (--max-l"),
    (f"inference.py --model good --device {NO_DEVICE} cook", f"device {NO_DEVICE}: this machine has none"),
    ("inference.py --model good --device gpu cook", "--device: invalid choice: 'gpu'"),
    ("inference.py --model good -cook", "write -- before a text that begins with -"),
    ("inference.py --model good --output folder cook", "--output folder: is a folder; name a file"),
    ("inference.py --model good --output file/out.txt cook", "--output file/out.txt: file is not a folder; name a"),
    # models
    ("inference.py --model missing cook", "missing: no model here (no config.json); run train.py first, or name an"),
    ("inference.py --model file cook", "file: no model here"),
    ("inference.py --model nowhere.txt cook", "nowhere.txt: no model here"),
    ("inference.py --model locked cook", "Permission denied; change its permissions"),
    ("inference.py --model bomb cook", "tokenizer.json: its normalizer is of type 'Precompiled'"),
    ("inference.py --model overflow cook", "the model outputs NaN: its weights are damaged; download it again"),
    ("inference.py --model overflow --beam 3 cook", "the model outputs NaN"),
    ("inference.py --model overflow --sample cook", "the model outputs NaN"),
    ("visualize_attention.py --model overflow cook", "the model outputs NaN"),
    ("visualize_attention.py --model missing", "missing: no model here"),
    # prompts
    ("inference.py --model good ''", "prompt 1 is empty; give it a text"),
    ("inference.py --model good cook '  '", "prompt 2 is empty; give it a text"),
    ("inference.py --model good 'a a a a a a a a a a a a a a a a'", "prompt 1 has 17 tokens, the model takes 16"),
    (f"inference.py --model good '{'cook ' * 5000}'", "prompt 1 has 5001 tokens, the model takes 16; shorten"),
    ("inference.py --model good caf\udce9", "prompt 1 is not UTF-8 text; write it in UTF-8"),
    ("inference.py --model good --input missing.txt", "missing.txt: no such file; name a text file"),
    ("inference.py --model good --input folder", "folder: is a folder; name a text file"),
    ("inference.py --model good --input empty.txt", "empty.txt: contains no text; write one prompt per line"),
    ("inference.py --model good --input blanks.txt", "blanks.txt: contains no text"),
    ("inference.py --model good --input latin1.txt", "latin1.txt, line 2: byte 4 is not UTF-8"),
    ("inference.py --model good --input utf16.txt", "utf16.txt: is UTF-16; save it as UTF-8"),
    ("inference.py --model good --input binary.txt", "binary.txt, line 1: contains a NUL byte"),
    ("inference.py --model good --input long.txt", "long.txt, line 2, has 41 tokens, the model takes 16"),
    ("inference.py --model good --input long.txt --output new/out.txt", "line 2, has 41 tokens"),
    ("inference.py --model good --input endless.txt", "line 2, has 100001 tokens, the model takes 16; shorten"),
    ("inference.py --model good --input prompts.txt --references missing.txt", "missing.txt: no such file"),
    ("inference.py --model good --input prompts.txt --references two.txt --output o", "two.txt: has 2 lines"),
    ("inference.py --model good < empty.txt", "standard input: contains no text"),
    # pictures
    ("visualize_attention.py --model good --layer 2 cook", "layer 2: the model has 1; give a number from 1 to 1 (--la"),
    ("visualize_attention.py --model good --head 3 cook", "head 3: the model has 2; give a number from 1 to 2 (--hea"),
    ("visualize_attention.py --model good --layer 0 cook", "--layer: needs a whole number from 1"),
    ("visualize_attention.py --model good --output file cook", "file: is a file; name a folder that can be"),
    ("visualize_attention.py --model good two prompts", "unrecognized arguments: prompts"),
    ("visualize_attention.py --model good ''", "the prompt is empty; give it a text"),
    ("visualize_attention.py --model good 'a a a a a a a a a a a a a a a a'", "the prompt has 17 tokens"),
    ("visualize_attention.py --model good caf\udce9", "the prompt is not UTF-8 text"),
]

WORKING = [  # the command line, what stdout must hold, the warnings on stderr
    ("train.py --pairs crlf.tsv", "2 pairs to train on, 1 held out", []),
    ("train.py --pairs crlf.tsv --source-column 2 --target-column 1", "2 pairs to train on", []),
    ("train.py --pairs ragged.tsv", "pairs to train on", ["skipped 2 of 10 lines", "skipped 1 of 10 lines"]),
    ("train.py --pairs quotes.tsv", "2 pairs to train on", []),
    ("train.py --pairs scripts.tsv --tokenizer bpe", "2 pairs to train on", []),
    ("train.py --pairs emoji.tsv", "2 pairs to train on", []),
    ("train.py --pairs word.tsv", "2 pairs to train on", []),
    (
        "train.py --pairs long.tsv good.tsv --held-out pair.tsv --max-length 4",
        "pairs to train on",
        ["left out"],
    ),
    ("train.py --pairs good.tsv --batch-tokens 2147483647 --seed 2147483647", "1 held out", []),
    ("inference.py --model doubled 'Good morning'", "Output: Good morning, cook", []),
    ("inference.py --model good --beam 1000 --n-best 1000 Good", "Output: ", ["outputs cut at 16 tokens"]),
    (
        "inference.py --model good --sample --top-k 2147483647 --temperature 1000 Good",
        "Output: ",
        ["1 output cut at 16 tokens"],
    ),
    ("inference.py --model good 'zebra gnu'", "Input : zebra gnu", ["sees <unk> instead: zebra, gnu"]),
    (f"inference.py --model good {'x' * 100_000}", "Output: ", ["instead: " + "x" * 39 + "…"]),
    ("inference.py --model good '</s> <pad> <unk>'", "Output: ", ["unknown to the model"]),
    ("inference.py --model good 'a\x1b[31m\x07 שלום 👩‍👩‍👧'", "Output: ", ["unknown to the model"]),
    ("inference.py --model good -- -cook", "Output: ", ["<unk> instead: -"]),
    ("inference.py --model good < odd.txt", "Good morning, cook\n\n", ["zebra", "1 blank line,"]),
    ("inference.py --model good --input /dev/stdin < prompts.txt", "Good morning, cook\n", []),
    ("inference.py --model good --output /dev/null cook", "", []),
    ("visualize_attention.py --model good '😀 日本 $x$'", "heads.png", ["unknown to", "no font has"]),
    ("visualize_attention.py --model good --output caf\udce9 cook", "attention_heads.png", []),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, trained):
    """The folder in which the commands run. Every case must leave it as it is, for the next one."""
    place = tmp_path_factory.mktemp("place")
    for name, content in FILES.items():
        (place / name).write_bytes(content)
    (place / "folder").mkdir()
    (place / "taken").mkdir()
    (place / "taken" / "model").write_text("mine")
    (place / "garbage").mkdir()
    (place / "garbage" / "checkpoint.pt").write_bytes(pickle.dumps(Trap()))
    (place / "nowhere.txt").symlink_to("gone.txt")
    shutil.copytree(trained / "model", place / "good")
    for name, damage in DAMAGED.items():
        damage(shutil.copytree(place / "good", place / name))
    shutil.copytree(place / "good", place / "locked")
    (place / "locked" / "config.json").chmod(0)
    shutil.copy(place / "good.tsv", place / "locked.txt")
    (place / "locked.txt").chmod(0)
    return place


@pytest.fixture
def run(command, place):
    """run(line) -> what has come of a command line as a shell has it, `< FILE` included. What writes has --output out
    unless the line says otherwise, and a training is of one step."""

    def run(line, **options):
        name, *flags = shlex.split(line)
        if "<" in flags:
            *flags, _, file = flags
            options |= {"stdin": (place / file).read_bytes(), "fresh": "/dev/stdin" in flags}
        if name != "inference.py" and "--output" not in flags:
            flags = ["--output", "out", *flags]
        if name == "train.py":
            flags = ["--max-steps", "1", "--device", "cpu", *flags]
        return command(name, *flags, cwd=place, **options)

    return run


def snapshot(folder):
    """Return what there is in a folder: a file as its times and size, which every writing changes."""
    stats = {path: path.lstat() for path in folder.rglob("*")}
    return {path: path.is_dir() or (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


def assert_refused(done, script, reason):
    assert "Traceback" not in done.stderr, done.stderr
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), (done.returncode, done.stderr)
    assert done.stderr.startswith(f"{script}: ") and done.stderr.endswith("\n")
    assert reason in done.stderr
    assert len(done.stderr.encode()) < 4000 and done.stderr[:-1].isprintable()


@pytest.mark.parametrize(("line", "reason"), REFUSED, ids=[f"{line[:60]}" for line, _ in REFUSED])
def test_refused(run, place, line, reason):
    """... with little memory."""
    if "locked" in line and os.geteuid() == 0:
        pytest.skip("nothing is locked for root")
    before = snapshot(place)
    with little_memory():
        done = run(line)
    assert_refused(done, line.split()[0], reason)
    assert done.stdout == ""
    assert snapshot(place) == before


NUMBERS = [  # a script, and a flag of its with a range
    (script, one)
    for script, config in (("train.py", TrainConfig), ("inference.py --model good", GenerationConfig))
    for one in fields(config)
    if isinstance(one.metadata.get("type"), Range)
]


@pytest.mark.parametrize(("line", "one"), NUMBERS, ids=[f"{line.split()[0]} {one.name}" for line, one in NUMBERS])
def test_a_number_outside_the_range_of_its_flag_is_refused(run, place, line, one):
    before, allowed, flag, script = snapshot(place), one.metadata["type"], flag_name(one.name), line.split()[0]
    below = allowed.low - (1 if allowed.kind is int else 1e-9)
    for value in (below, 10**20 if allowed.kind is int else "1e400", "nan", "1.5.", ""):
        assert_refused(run(f"{line} {flag}='{value}'"), script, f"{flag}: needs a")
    if allowed.high < 1e9:
        above = allowed.high + (1 if allowed.kind is int else 0.01)
        assert_refused(run(f"{line} {flag} {above}"), script, f"not '{above}'")
    assert snapshot(place) == before


@pytest.mark.parametrize(("line", "shown", "warnings"), WORKING, ids=[line[:60] for line, *_ in WORKING])
def test_odd_but_working(run, place, line, shown, warnings):
    before = snapshot(place)
    try:
        done = run(line)
        assert done.returncode == 0 and shown in done.stdout, (done.stdout, done.stderr)
        given = [text for text in re.split("[\r\n]", done.stderr) if "arning" in text]
        assert len(given) == len(warnings) and all(map(str.__contains__, given, warnings)), given
        assert all(text.startswith(f"{line.split()[0]}: warning: ") for text in given)
    finally:
        for path in snapshot(place).keys() - before.keys():
            shutil.rmtree(path, ignore_errors=True)
    assert snapshot(place) == before


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("train.py --pairs latin1.tsv", "latin1.tsv, line 2"),
        ("train.py --d-model x", "--d-model: needs a whole number"),
        ("inference.py --model bomb cook", "Precompiled"),
        ("inference.py --model good caf\udce9", "UTF-8"),
        ("visualize_attention.py --model cut cook", "is damaged"),
    ],
)
def test_refused_in_a_fresh_interpreter(run, place, line, reason):
    before = snapshot(place)
    done = run(line, fresh=True)
    assert_refused(done, line.split()[0], reason)
    assert snapshot(place) == before


def test_a_named_pipe_is_refused_as_it_can_be_read_only_once(run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    done = run(f"train.py --pairs {tmp_path / 'pipe'} --output {tmp_path / 'out'}")
    assert_refused(done, "train.py", "pipe: can be read only once; save its text as a file, and name that")


def test_what_cannot_be_written_whole_leaves_what_was_there(tmp_path):
    path = tmp_path / "picture.png"
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        path.write_bytes(b"before")
        with pytest.raises(type(error)) as caught, atomic_write(path) as part:
            part.write_bytes(b"ha")
            raise error
        assert getattr(caught.value, "filename", str(path)) == str(path)
        assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("picture.png", b"before")]
    path.chmod(0o600)
    with atomic_write(path) as part:
        part.write_bytes(b"after")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"after", 0o600)


def test_a_model_of_too_many_heads_for_a_picture_is_refused(run, place, make_model, tokenizer):
    before = snapshot(place)
    model = make_model(tokenizer.get_vocab_size(), n_decoder_layers=49)
    marian.save(place / "too-many", model, tokenizer)
    try:
        done = run("visualize_attention.py --model too-many cook")
        assert_refused(done, "visualize_attention.py", "49 layers with 2 heads, and a picture has")
    finally:
        shutil.rmtree(place / "too-many")
    assert snapshot(place) == before


def test_a_full_standard_output_ends_in_one_line(run):
    done = run("inference.py --model good cook", to="/dev/full")
    assert_refused(done, "inference.py", "output: No space left on device; free some space")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_stream_is_an_empty_one(place, folder, closed):
    line = shlex.join([sys.executable, str(folder / "inference.py"), "--model", "good"])
    prompt = "" if closed == "<&-" else "cook"
    done = subprocess.run(["bash", "-c", f"{line} {prompt} {closed}"], cwd=place, capture_output=True)
    expected = b"inference.py: standard input: contains no text; write one prompt per line\n"
    assert (done.returncode, done.stderr) == ((2, expected) if closed == "<&-" else (0, b""))


@pytest.mark.parametrize("most", [30_000, 150_000], ids=lambda most: f"at {most} bytes")
def test_a_disk_that_is_full_keeps_the_model_of_the_run_before(run, tmp_path, place, most):
    """A file cannot grow beyond a limit, be it the checkpoint's or the model's."""
    shutil.copytree(place / "good", tmp_path / "out" / "model")
    before = snapshot(tmp_path)
    line = f"train.py --pairs good.tsv --d-model 32 --output {tmp_path / 'out'}"
    done = run(line, limits={"RLIMIT_FSIZE": most})
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("train.py: ") and "large" in last.lower()
    assert {path: stat for path, stat in snapshot(tmp_path).items() if path in before} == before
    assert run(f"inference.py --model {tmp_path / 'out' / 'model'} cook").returncode == 0


def test_a_model_that_does_not_fit_into_memory_is_refused(run, place):
    """Its first layer alone would take 17 GB. The pairs have been tokenized by then."""
    before = snapshot(place)
    try:
        with little_memory():
            done = run("train.py --pairs good.tsv --n-heads 1 --d-model 65536 --d-ff 1000000")
        assert_refused(done, "train.py", "not enough memory")
        assert {path.name for path in (place / "out").iterdir()} == {"tokens"}
    finally:
        shutil.rmtree(place / "out", ignore_errors=True)
    assert snapshot(place) == before


@pytest.mark.parametrize("name", ["inference", "visualize_attention"])
def test_before_the_first_training_the_remedy_is_named(script, load_script, tmp_path, monkeypatch, name):
    monkeypatch.setattr(load_script(name), "FOLDER", tmp_path)
    status, _, stderr = script(name, "cook")
    assert status == 2 and "run train.py first, or name another directory (--model)" in stderr


@pytest.mark.parametrize("flags", [["--pairs", "latin1.tsv"], ["--pairs", "good.tsv", "--learning-rate", "0"]])
def test_the_model_that_was_there_survives_a_failing_run(script, place, trained, monkeypatch, tmp_path, flags):
    shutil.copytree(trained, tmp_path / "out")
    monkeypatch.chdir(place)
    before = snapshot(tmp_path)
    assert script("train", *flags, "--output", tmp_path / "out")[0] == 2
    assert snapshot(tmp_path) == before


def test_the_model_that_was_there_survives_a_run_whose_loss_is_no_number(script, place, trained, monkeypatch, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    before = snapshot(tmp_path / "out" / "model")
    monkeypatch.setattr("train.token_losses", lambda hidden, *_: (hidden.sum() * torch.nan,) * 2)
    flags = ["--max-steps", 2, "--pairs", place / "good.tsv", "--output", tmp_path / "out"]
    status, _, err = script("train", *flags)
    assert status == 2 and "no longer finite" in err.splitlines()[-1]
    assert snapshot(tmp_path / "out" / "model") == before


def test_the_checkpoint_of_another_run_is_named(script, place, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    before = snapshot(tmp_path)
    flags = ["--pairs", place / "good.tsv", "--output", tmp_path / "out", "--resume"]
    status, _, err = script("train", *flags)
    assert status == 2 and "belongs to a run with" in err and len(err.splitlines()) == 1
    assert snapshot(tmp_path) == before


def test_a_reader_that_goes_early_ends_the_output_quietly(place, folder, tmp_path):
    (tmp_path / "in.txt").write_text("Good morning\n" * 5000, encoding="utf-8")
    line = [
        sys.executable,
        folder / "inference.py",
        "--model",
        place / "good",
        "--input",
        tmp_path / "in.txt",
    ]
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


def test_a_request_to_terminate_leaves_nothing_half_written(place, folder, tmp_path):
    (tmp_path / "in.txt").write_text("Good morning\n" * 100_000, encoding="utf-8")
    flags = ["--model", place / "good", "--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt"]
    with subprocess.Popen(
        [sys.executable, folder / "inference.py", *map(str, flags)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in tmp_path.glob(".*.part*")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_a_terminal_that_is_closed_leaves_nothing_half_written(script, place, tmp_path, monkeypatch):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
    monkeypatch.setattr("inference.show", lambda *_: signal.getsignal(signal.SIGHUP)(signal.SIGHUP, None))
    status, _, _ = script("inference", "--model", place / "good", "--output", tmp_path / "new" / "out.txt", "cook")
    assert status == 128 + signal.SIGHUP
    assert not list(tmp_path.iterdir())
