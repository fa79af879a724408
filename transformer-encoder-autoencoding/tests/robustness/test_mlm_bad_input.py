"""A user's mistakes, and files from strangers: each ends in one line on stderr that names what is wrong and the remedy,
exit status 2, and nothing written; what is merely odd works.

Damaged model directories are refused in test_bert_refusals.py; here are those for which the command matters.
"""

import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from mlm_strangers import MODELS, QUERY, Trap, little_memory, tensors

from mlm import bert
from mlm.common.command_line import Range, flag_name
from mlm.common.files import atomic_write
from mlm.config import TrainConfig
from mlm.tokenizer import MASK

GOOD = "the cat sat\nthe dog sat\na cat ran\n"
CLOZES = b"sentence\tkey\tkind\n"
FILES = {  # in the folder of the cases
    "good.txt": GOOD.encode(),
    "same.txt": GOOD.encode(),
    "empty.txt": b"",
    "blank.txt": b"\n  \n\t\r\n",
    "utf16.txt": GOOD.encode("utf-16"),
    "utf16be.txt": b"\xfe\xff" + GOOD.encode("utf-16-be"),
    "latin1.txt": "the cat sat\nthe café\n".encode("latin-1"),
    "nul.txt": b"the cat sat\nthe \0 dog\n",
    "one.txt": b"the cat sat\n",
    "identical.txt": b"the cat sat\n" * 5,
    "strange.txt": b"zebras graze\nyaks browse\n",
    "good.cloze.tsv": CLOZES + b"the cat sat\tcat\tfree\n",
    "file": b"a file",
    # beside a good text a cloze file that is not
    **{f"{name}.txt": GOOD.encode() for name in ("absent", "ragged", "latin", "long", "foreign")},
    "absent.cloze.tsv": CLOZES + b"the cat sat\tdog\tfree\n",
    "ragged.cloze.tsv": CLOZES + b"the cat sat\tcat\tfree\nthe cat sat\tcat\n",
    "latin.cloze.tsv": CLOZES + b"the caf\xe9 sat\tsat\tfree\n",
    "long.cloze.tsv": CLOZES + b"the cat sat\tcat\tfree\n" + b"the " * 200 + b"cat\tcat\tfree\n",
    "foreign.cloze.tsv": b"Satz\tWort\tArt\nthe cat sat\tcat\tfree\n",
    # odd, but usable
    "headless.txt": GOOD.encode(),
    "headless.cloze.tsv": b"the cat sat\tcat\tfree\na cat ran\tcat\tfree\n",
    "crlf.txt": b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode(),
    "scripts.txt": "cafe\u0301 שלום!\nمرحبا بالعالم!\n👩‍👩‍👧 🇫🇷 \u202eabc!\nthe \x1b[31mcat\x07!\n".encode(),
    "emoji.txt": "😀 😃\n😀 😄\n😃 😄\n".encode(),
    "endless.txt": (b"x" * 99 + b" ") * 100_000 + b"\nthe dog sat\n",  # a line of 10 MB
    "word.txt": b"x" * 1_000_000 + b"\nthe dog sat\n",
    "mixed.txt": b"the cat sat\nzebras graze\n",
    "asked.txt": f"the {MASK}\n\n\nthe cat\n{MASK}\n".encode(),
    "broken.txt": f"the {MASK}\nthe c\xe2t {MASK}\n".encode("latin-1"),
    "masked.txt": "\ufeffthe [MASK] sat\r\n\r\n  a zebra [MASK]\r\n".encode(),
}
NO_DEVICE = "mps" if torch.cuda.is_available() else "cuda"
DAMAGED = ["pickle", "terabytes of words", "endless value", "extra tensor", "cut in the numbers", "NaN", "bomb"]
OUTPUTS_NAN = tensors(lambda weights: weights[QUERY].fill_(3e38))  # which no look at the weights can tell


def doubled(model):
    """A key twice: the last one counts, as for every reader of JSON."""
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace("{", '{"hidden_size": "x",', 1))


REFUSED = [  # the command line, what the line on stderr must say
    # the text
    ("train_mlm.py --corpus missing.txt", "missing.txt: no such file; name a text file"),
    ("train_mlm.py --corpus folder", "folder: is a folder; name a text file"),
    ("train_mlm.py --corpus nowhere.txt", "nowhere.txt: a broken link; name a text file"),
    ("train_mlm.py --corpus good.txt --output nowhere.txt", "nowhere.txt: is a broken link; name a folder"),
    ("train_mlm.py --corpus locked.txt", "locked.txt: Permission denied; change its permissions"),
    ("train_mlm.py --corpus file/below.txt", "file/below.txt: no such file"),
    (f"train_mlm.py --corpus {'x' * 300}", "File name too long"),
    ("train_mlm.py --corpus caf\udce9.txt", "caf\\udce9.txt: no such file"),
    ("train_mlm.py --corpus empty.txt", "empty.txt: contains no text; name a file with a sentence a line"),
    ("train_mlm.py --corpus blank.txt", "blank.txt: contains no text"),
    ("train_mlm.py --corpus /dev/stdin < good.txt", "/dev/stdin: can be read only once; save its text as a file"),
    ("train_mlm.py --corpus utf16.txt", "utf16.txt: is UTF-16; save it as UTF-8"),
    ("train_mlm.py --corpus utf16be.txt", "utf16be.txt: is UTF-16; save it as UTF-8"),
    ("train_mlm.py --corpus latin1.txt", "latin1.txt, line 2: byte 8 is not UTF-8; save the file as UTF-8"),
    ("train_mlm.py --corpus nul.txt", "nul.txt, line 2: contains a NUL byte; name a text file"),
    ("train_mlm.py --corpus identical.txt", "the training text has one distinct sentence; give at least two"),
    ("train_mlm.py --corpus good.txt missing.txt", "missing.txt: no such file"),
    ("train_mlm.py --corpus good.txt --held-out missing.txt", "missing.txt: no such file"),
    ("train_mlm.py --corpus good.txt --held-out same.txt", "all training sentences are held out; nothing is left"),
    ("train_mlm.py --corpus good.txt --held-out strange.txt", "the tokenizer knows no word in sentences such as 'zebr"),
    ("ablations.py --corpus good.txt no-positions", "no-positions: no such file; names of ablations stand before the"),
    ("train_mlm.py --corpus strange.txt --init good", "the tokenizer knows no word in sentences such as"),
    # cloze files
    ("train_mlm.py --corpus absent.txt", "absent.cloze.tsv, line 2: needs a sentence, a word that it has once"),
    ("train_mlm.py --corpus ragged.txt", "ragged.cloze.tsv, line 3: needs a sentence"),
    ("train_mlm.py --corpus latin.txt", "latin.cloze.tsv, line 2: byte 8 is not UTF-8"),
    ("train_mlm.py --corpus foreign.txt", "foreign.cloze.tsv, line 1: needs a sentence, a word that it has once"),
    (
        "train_mlm.py --corpus long.txt",
        "long.cloze.tsv, line 3: the sentence has 203 tokens, the model takes 128; shorten it, or let the model take "
        "more (--max-length)",
    ),
    # flags of training (their ranges are below), and what they name
    ("train_mlm.py --corpus", "--corpus: expected at least one argument"),
    (
        "train_mlm.py --d-model 30 --n-heads 4",
        "d_model 30 is not a multiple of n_heads 4; use 32, or another number of heads (--d-model)",
    ),
    (f"train_mlm.py --epochs {'9' * 5000}", "--epochs: needs a whole number"),
    ("train_mlm.py --epochs '1\n2'", "not '1\\n2'"),
    ("train_mlm.py --tokenizer bpe --vocab-size 299", "299 subwords are too few for 256 bytes; give 300 or more"),
    ("train_mlm.py --tokenizer letters", "--tokenizer: invalid choice: 'letters'"),
    ("train_mlm.py --precision fp8", "--precision: invalid choice: 'fp8'"),
    ("train_mlm.py --device gpu", "--device: invalid choice: 'gpu'"),
    (f"train_mlm.py --device {NO_DEVICE}", "this machine has none that PyTorch can use; use cpu (--device)"),
    ("train_mlm.py --no-such-flag", "unrecognized arguments: --no-such-flag"),
    ("train_mlm.py 'a\nb'", "unrecognized arguments: a b"),
    (
        "train_mlm.py --init folder",
        "folder: no model here (no config.json); run train_mlm.py first, or name another directory (--init)",
    ),
    ("train_mlm.py --corpus good.txt --init caf\udce9", "the name is not UTF-8; rename the folder"),
    ("train_mlm.py --corpus good.txt --init 'cut in the numbers'", "model.safetensors: is damaged"),
    ("train_mlm.py --init good --d-model 32", "init and d_model cannot be combined: the directory has its own"),
    ("train_mlm.py --init good --dropout 0", "init and dropout cannot be combined"),  # its default
    ("train_mlm.py --corpus good.txt --resume", "checkpoint.pt: no checkpoint here to resume from; run without --res"),
    ("train_mlm.py --corpus good.txt --output garbage --resume", "checkpoint.pt: is damaged"),
    (
        "train_mlm.py --corpus good.txt --output file",
        "file: is a file; name a folder that can be written to (--output)",
    ),
    ("train_mlm.py --corpus good.txt --output file/below", "file/below: Not a directory; name a folder"),
    ("train_mlm.py --corpus good.txt --output /proc/x", "/proc/x: No such file or directory; name a folder"),
    ("train_mlm.py --corpus good.txt --output caf\udce9", "the name is not UTF-8; rename the folder"),
    ("train_mlm.py --corpus good.txt --output taken", "taken/model: is a file; name a folder"),
    # flags of the other scripts
    ("fill_mask.py --model good --top-k 0 [MASK]", "--top-k: needs a whole number from 1"),
    ("fill_mask.py --model good --score --top-k 3 cat", "--score and --top-k cannot be combined"),
    ("fill_mask.py --model good --tpo-k 3 [MASK]", "unrecognized arguments: --tpo-k"),
    ("fill_mask.py --model good -[MASK]", "write -- before a text that begins with -"),
    ("fill_mask.py --model", "--model: expected one argument"),
    ("visualize_attention.py --model good --layer 3 cat", "layer 3: the model has 2; give a number from 1 to 2 (--lay"),
    ("visualize_attention.py --model good --head 3 cat", "head 3: the model has 2; give a number from 1 to 2 (--head)"),
    ("visualize_attention.py --model good --layer 0 cat", "--layer: needs a whole number from 1"),
    ("visualize_attention.py --model good the cat", "unrecognized arguments: cat"),
    ("visualize_attention.py --model good --output file cat", "file: is a file; name a folder that can be written to"),
    # model directories
    (
        "fill_mask.py --model typo [MASK]",
        "typo: no model here (no config.json); run train_mlm.py first, or name another directory (--mo",
    ),
    ("fill_mask.py --model file [MASK]", "file: no model here"),
    ("fill_mask.py --model locked [MASK]", "Permission denied; change its permissions"),
    *((f"fill_mask.py --model '{name}' 'the {MASK} a'", MODELS[name][1]) for name in DAMAGED),
    ("fill_mask.py --model outputs-nan [MASK]", "the model outputs NaN or infinity: its weights are damaged; download"),
    ("visualize_attention.py --model NaN cat", "contains NaN or infinity"),
    ("visualize_attention.py --model outputs-nan cat", "the model's attention is NaN: its weights are damaged; downl"),
    # sentences
    ("fill_mask.py --model good ''", "sentence 1: the sentence is empty; give one with words"),
    ("fill_mask.py --model good --score '[CLS] [PAD]'", "sentence 1: has [PAD], which is a token of the model's own"),
    ("fill_mask.py --model good --score 'the [MASK]'", "sentence 1: contains [MASK], which is not a word to score"),
    ("fill_mask.py --model good 'the cat'", "sentence 1: no [MASK] in 'the cat'; write [MASK] for the word to fill in"),
    (f"fill_mask.py --model good '{'the cat ' * 4000}[MASK]'", "8003 tokens, the model takes 24; shorten it"),
    ("fill_mask.py --model good 'caf\udce9 [MASK]'", "sentence 1: the sentence is not UTF-8 text; write it in UTF-8"),
    ("fill_mask.py --model good < blank.txt", "no sentence given; pass one as an argument or on standard input"),
    ("fill_mask.py --model good < latin1.txt", "standard input, line 1: no [MASK] in 'the cat sat'"),
    ("fill_mask.py --model good < utf16.txt", "standard input: is UTF-16; save it as UTF-8"),
    ("fill_mask.py --model good < endless.txt", "standard input, line 1: the sentence has 100002 tokens"),
    ("visualize_attention.py --model good ''", "SENTENCE: the sentence is empty"),
    (
        f"visualize_attention.py --model good '{'the cat ' * 12}'",
        "SENTENCE: the sentence has 26 tokens, the model takes",
    ),
    ("visualize_attention.py --model good caf\udce9", "SENTENCE: the sentence is not UTF-8 text"),
]

WORKING = [  # the command line, what stdout or a file in out/ must hold, the lines on stderr (bars apart)
    ("train_mlm.py --corpus crlf.txt", "2 sentences to train on, 1 held out", []),
    ("train_mlm.py --corpus scripts.txt", "3 sentences to train on, 1 held out", []),
    ("train_mlm.py --corpus scripts.txt --tokenizer bpe", "3 sentences to train on", []),
    ("train_mlm.py --corpus emoji.txt", "2 sentences to train on", []),
    ("train_mlm.py --corpus headless.txt --held-out identical.txt", "training sentences (1)", ["left 1 sen"]),
    (
        "train_mlm.py --corpus word.txt --held-out mixed.txt",
        "2 sentences to train on",
        ["a line of over", "left out 1 of 2"],
    ),
    (
        "train_mlm.py --corpus good.txt --held-out one.txt",
        "2 sentences to train on",
        ["left 1 sentences out"],
    ),
    ("train_mlm.py --corpus good.txt --batch-tokens 2147483647 --seed 2147483647", "1 held out", []),
    ("fill_mask.py --model doubled 'the [MASK]'", "the ", []),
    ("fill_mask.py --model good --top-k 2147483647 'the [MASK]'", "the ", []),
    ("fill_mask.py --model good 'un[MASK]able [MASK][MASK]'", "un", ["un, able"]),
    ("fill_mask.py --model good 'zebra gnu [MASK]'", "zebra gnu ", ["sees [UNK] instead: zebra, gnu"]),
    (f"fill_mask.py --model good '{'x' * 100_000} [MASK]'", "x" * 100, ["instead: " + "x" * 39 + "…"]),
    ("fill_mask.py --model good -- '-[MASK]'", "-", ["instead: -"]),
    ("fill_mask.py --model good 'a\x1b[31m\x07 [MASK]'", "a", ["unknown to the model"]),
    ("fill_mask.py --model good 'שלום café 👩‍👩‍👧 [MASK]'", "שלום café", ["unknown to the model"]),
    ("fill_mask.py --model good --json < masked.txt", '"input": "a zebra [MASK]"', ["instead: sat, zebra"]),
    ("visualize_attention.py --model good '😀 日本 $x$ \x07'", "heads.png", ["unknown", "no font has"]),
    ("visualize_attention.py --model good --output caf\udce9 cat", "attention_heads.png", []),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny, tokenizer):
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
    bert.save(place / "good", tiny, tokenizer)
    damages = {name: MODELS[name][0] for name in DAMAGED} | {"doubled": doubled, "outputs-nan": OUTPUTS_NAN}
    for name, damage in damages.items():
        damage(shutil.copytree(place / "good", place / name))
    shutil.copytree(place / "good", place / "locked")
    (place / "locked" / "config.json").chmod(0)
    shutil.copy(place / "good.txt", place / "locked.txt")
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
            options["stdin"] = (place / file).read_bytes()
        if name != "fill_mask.py" and "--output" not in flags:
            flags = ["--output", "out", *flags]
        if name == "train_mlm.py":
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


RANGES = {one.name: one.metadata["type"] for one in fields(TrainConfig) if isinstance(one.metadata.get("type"), Range)}


@pytest.mark.parametrize("name", RANGES)
def test_a_number_outside_the_range_of_its_flag_is_refused(run, place, name):
    before, allowed = snapshot(place), RANGES[name]
    below = allowed.low - (1 if allowed.kind is int else 1e-9)
    for value in (below, 10**20 if allowed.kind is int else "1e400", "nan", "1.5.", ""):
        done = run(f"train_mlm.py {flag_name(name)}='{value}'")
        assert_refused(done, "train_mlm.py", f"{flag_name(name)}: needs a")
    if allowed.high < 1e9:
        above = allowed.high + (1 if allowed.kind is int else 0.01)
        assert_refused(run(f"train_mlm.py {flag_name(name)} {above}"), "train_mlm.py", f"not '{above}'")
    assert snapshot(place) == before


@pytest.mark.parametrize(("line", "shown", "warnings"), WORKING, ids=[line[:60] for line, *_ in WORKING])
def test_odd_but_working(run, place, line, shown, warnings):
    before = snapshot(place)
    try:
        done = run(line)
        assert done.returncode == 0 and shown in done.stdout, (done.stdout, done.stderr)
        given = [text for text in re.split("[\r\n]", done.stderr) if "arning" in text]
        given = [text for text in given if "the model knows little more" not in text]  # after a step: true
        assert len(given) == len(warnings) and all(map(str.__contains__, given, warnings)), given
        assert all(text.startswith(f"{line.split()[0]}: warning: ") for text in given)
    finally:
        for path in snapshot(place).keys() - before.keys():
            shutil.rmtree(path, ignore_errors=True)
    assert snapshot(place) == before


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("train_mlm.py --corpus missing.txt", "missing.txt: no such file"),
        ("train_mlm.py --dropout nan", "--dropout"),
        ("fill_mask.py --model good 'caf\udce9 [MASK]'", "UTF-8"),
        ("visualize_attention.py --model 'cut in the numbers' cat", "is damaged"),
    ],
)
def test_refused_in_a_fresh_interpreter(run, place, line, reason):
    before = snapshot(place)
    done = run(line, fresh=True)
    assert_refused(done, line.split()[0], reason)
    assert snapshot(place) == before


@pytest.mark.parametrize(
    ("line", "answered", "reason"),
    [
        ("fill_mask.py --model good --json < asked.txt", 1, "standard input, line 4: no [MASK] in 'the cat'"),
        ("fill_mask.py --model good --json < broken.txt", 1, "standard input, line 2: byte 6 is not UTF-8"),
        ("fill_mask.py --model good --json '[MASK]' 'zebra [MASK]' '' cat", 2, "sentence 3: the sentence is empty"),
    ],
)
def test_what_stands_before_a_mistake_is_answered_once(run, line, answered, reason):
    """The number of the line is the one that an editor shows; a warning is not given twice."""
    done = run(line)
    assert all(json.loads(answer)["masks"] for answer in done.stdout.splitlines())
    assert len(done.stdout.splitlines()) == answered
    *warnings, last = done.stderr.splitlines()
    assert done.returncode == 2 and reason in last
    assert len(warnings) == line.count("zebra")


def test_a_named_pipe_is_refused_as_it_can_be_read_only_once(run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    done = run(f"train_mlm.py --corpus {tmp_path / 'pipe'} --output {tmp_path / 'out'}")
    assert_refused(done, "train_mlm.py", "pipe: can be read only once; save its text as a file, and name that")


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
    bert.save(place / "too-many", make_model(tokenizer.get_vocab_size(), n_layers=49), tokenizer)
    try:
        done = run("visualize_attention.py --model too-many cat")
        assert_refused(done, "visualize_attention.py", "49 layers with 2 heads, and a picture has")
    finally:
        shutil.rmtree(place / "too-many")
    assert snapshot(place) == before


def test_a_full_standard_output_ends_in_one_line(run):
    done = run(f"fill_mask.py --model good {MASK}", to="/dev/full")
    assert_refused(done, "fill_mask.py", "output: No space left on device; free some space")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_stream_is_an_empty_one(place, folder, closed):
    line = shlex.join([sys.executable, str(folder / "fill_mask.py"), "--model", "good"])
    sentence = "" if closed == "<&-" else shlex.quote(MASK)
    done = subprocess.run(["bash", "-c", f"{line} {sentence} {closed}"], cwd=place, capture_output=True)
    expected = b"fill_mask.py: no sentence given; pass one as an argument or on standard input\n"
    assert (done.returncode, done.stderr) == ((2, expected) if closed == "<&-" else (0, b""))


@pytest.mark.parametrize("most", [1_000, 150_000], ids=lambda most: f"at {most} bytes")
def test_a_disk_that_is_full_keeps_the_model_of_the_run_before(run, tmp_path, place, most):
    """A file cannot grow beyond a limit, be it the checkpoint's or the model's."""
    shutil.copytree(place / "good", tmp_path / "out" / "model")
    before = snapshot(tmp_path)
    line = f"train_mlm.py --corpus good.txt --d-model 32 --output {tmp_path / 'out'}"
    done = run(line, limits={"RLIMIT_FSIZE": most})
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("train_mlm.py: ") and "large" in last.lower()
    assert {path: stat for path, stat in snapshot(tmp_path).items() if path in before} == before
    assert run(f"fill_mask.py --model {tmp_path / 'out' / 'model'} {MASK}").returncode == 0


def test_a_model_that_does_not_fit_into_memory_is_refused(run, place):
    """Its first layer alone would take 51 GB. The text has been tokenized by then."""
    before = snapshot(place)
    try:
        with little_memory():
            done = run("train_mlm.py --corpus good.txt --n-heads 1 --d-model 65536 --d-ff 1000000")
        assert_refused(done, "train_mlm.py", "not enough memory")
        assert {path.name for path in (place / "out").iterdir()} == {"tokens"}
    finally:
        shutil.rmtree(place / "out")
    assert snapshot(place) == before


@pytest.mark.parametrize("name", ["fill_mask", "visualize_attention"])
def test_before_the_first_training_the_remedy_is_named(script, load_script, tmp_path, monkeypatch, name):
    monkeypatch.setattr(load_script(name), "FOLDER", tmp_path)
    status, _, stderr = script(name, f"the {MASK}")
    assert (
        status == 2
        and "no model here (no config.json); run train_mlm.py first, or name another directory (--model)" in stderr
    )


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--corpus good.txt --learning-rate 10 --max-steps 5000 --n-layers 1", "no longer finite"),
        ("--corpus good.txt --max-steps 3 --resume", "is damaged"),
        ("--corpus missing.txt --max-steps 3", "no such file"),
    ],
)
def test_a_run_that_fails_leaves_the_model_of_the_run_before(script, place, tmp_path, monkeypatch, flags, reason):
    monkeypatch.chdir(place)
    shutil.copytree("good", tmp_path / "model")
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    before = snapshot(tmp_path / "model")
    if "10" in flags:  # as a rate that is far too high makes it
        computed = torch.nn.functional.cross_entropy
        monkeypatch.setattr(torch.nn.functional, "cross_entropy", lambda *a, **k: computed(*a, **k) * torch.nan)
    status, _, stderr = script("train_mlm", "--output", tmp_path, "--device", "cpu", *flags.split())
    assert status == 2 and reason in stderr.splitlines()[-1].split("\r")[-1]
    assert "Traceback" not in stderr
    assert snapshot(tmp_path / "model") == before
