"""What the tests of this folder share: tiny models, one of them trained, and the scripts as commands."""

import contextlib
import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent
sys.path.insert(0, str(FOLDER))
for file in FOLDER.glob("*.py"):  # another folder's tests may have imported modules of the same names
    sys.modules.pop(file.stem, None)
MODULES = {file.stem: importlib.import_module(file.stem) for file in FOLDER.glob("*.py")}

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # more do not help models this small
PATIENCE = 300  # seconds that a command may take

TRAINING = [  # source, target, kind
    ("What is the capital of France?", "Paris is the capital of France", "answer"),
    ("What is the capital of Italy?", "Rome is the capital of Italy", "answer"),
    ("What is the capital of Spain?", "Madrid is the capital of Spain", "answer"),
    ("Where does a fish live?", "A fish lives in the sea", "answer"),
    ("Where does a fox live?", "A fox lives in a den", "answer"),
    ("The cook bakes the bread", "The bread is baked by the cook", "rewrite"),
    ("The cook eats the cake", "The cake is eaten by the cook", "rewrite"),
    ("The child eats the bread", "The bread is eaten by the child", "rewrite"),
    ("The child bakes the cake", "The cake is baked by the child", "rewrite"),
    ("The fox eats the fish", "The fish is eaten by the fox", "rewrite"),
    ("Hello, cook!", "Hello, child!", "greeting"),
    ("Good morning", "Good morning, cook", "greeting"),
]
HELD_OUT = [
    ("The child eats the cake", "The cake is eaten by the child", "rewrite"),
    ("The cook bakes the cake", "The cake is baked by the cook", "rewrite"),
    ("What is a capital?", "A capital is Rome", "answer"),
]
SIZES = [
    "--d-model",
    "32",
    "--n-layers",
    "1",
    "--n-heads",
    "2",
    "--d-ff",
    "64",
    "--max-length",
    "16",
    "--batch-tokens",
    "128",
]


def pytest_collectstart(collector):
    sys.modules.update(MODULES)


def pytest_runtest_setup(item):
    sys.modules.update(MODULES)


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models gain nothing from several threads, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folder():
    """The folder under test."""
    return FOLDER


@pytest.fixture(scope="session")
def training():
    """The pairs that the trained model has seen: (source, target, kind)."""
    return TRAINING


@pytest.fixture(scope="session")
def held_out():
    """The pairs that the trained model is evaluated on."""
    return HELD_OUT


@pytest.fixture(scope="session")
def sizes():
    """Flags of train.py that make a small model."""
    return SIZES


@pytest.fixture(scope="session")
def write_pairs():
    """write_pairs(path, pairs) -> the path of a tab-separated file with a header."""

    def write(path, pairs):
        rows = [("source", "target", "kind"), *pairs]
        path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def tokenizer():
    """A word tokenizer of the training pairs."""
    texts = [text for source, target, _ in TRAINING for text in (source, target)]
    return MODULES["pairs"].train_tokenizer(texts, "word", 1000)


@pytest.fixture(scope="session")
def bpe():
    """A byte pair tokenizer of the training pairs."""
    texts = [text for source, target, _ in TRAINING for text in (source, target)]
    return MODULES["pairs"].train_tokenizer(texts, "bpe", 320)


@pytest.fixture(scope="session")
def make_model():
    """make_model(vocab_size, seed, **sizes) -> a random model in evaluation mode, <pad> its last token.
    Its weights are large enough for its distributions to be far from flat."""

    def make(vocab_size, seed=0, **sizes):
        module = MODULES["transformer"]
        config = module.TransformerConfig(vocab_size, vocab_size - 1, d_model=16, n_heads=2, d_ff=24)
        torch.manual_seed(seed)
        model = module.Transformer(replace(config, max_length=16, **sizes)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name or name.endswith(".bias"):
                    parameter += 0.2 * torch.randn_like(parameter)
            model.output_bias[:-1] += torch.randn(vocab_size - 1)
        return model

    return make


@pytest.fixture(scope="session")
def tiny(make_model, tokenizer):
    """A random model for the word tokenizer."""
    return make_model(tokenizer.get_vocab_size())


class Zygote:
    """The process of zygote.py, which runs commands."""

    def __init__(self):
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("zygote.py")), str(theirs.fileno())],
                env=ONE_THREAD,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def run(self, line, cwd, stdin, stdout, limits):
        """Run a command whose standard input is a pipe -> its exit status (of a signal: minus its number),
        and standard error."""
        request = {"line": line, "cwd": str(cwd), "environment": dict(ONE_THREAD), "limits": limits}
        reading, writing = os.pipe()
        with tempfile.TemporaryFile() as stderr:
            streams = [reading, stdout.fileno(), stderr.fileno()]
            socket.send_fds(self.socket, [json.dumps(request).encode()], streams)
            os.close(reading)
            child = int(self.socket.recv(100))
            feeder = threading.Thread(target=feed, args=(writing, stdin))
            feeder.start()
            self.socket.settimeout(PATIENCE)
            try:
                status = int(self.socket.recv(100))
            except TimeoutError:
                os.kill(child, signal.SIGKILL)
                self.socket.recv(100)
                raise
            finally:
                feeder.join()
            stderr.seek(0)
            return status, stderr.read()

    def stop(self):
        self.socket.close()
        self.process.wait()


def feed(pipe, content):
    """Write to a pipe, whose reader need not read to the end."""
    with contextlib.suppress(BrokenPipeError), os.fdopen(pipe, "wb") as stream:
        stream.write(content)


@pytest.fixture(scope="session")
def zygote():
    """What runs commands, where processes can be forked safely; else None."""
    if sys.platform != "linux":
        yield None
        return
    zygote = Zygote()
    yield zygote
    zygote.stop()


@pytest.fixture(scope="session")
def command(zygote):
    """command(script, *flags, cwd=...) runs a script of this folder as a user does, bytes among the flags as
    they are -> its exit status, standard output and error as text. fresh=True: in an interpreter of its own;
    to: the path of what standard output goes to; limits: bytes for RLIMIT_AS (memory) and RLIMIT_FSIZE."""

    def run(script, *flags, cwd, folder=FOLDER, stdin=b"", fresh=False, to=None, limits=()):
        stdin = stdin if isinstance(stdin, bytes) else stdin.encode()
        flags = [os.fsdecode(flag) if isinstance(flag, bytes) else str(flag) for flag in flags]
        line = [str(folder / script), *flags]
        with Path(to).open("wb") if to else tempfile.TemporaryFile() as stdout:
            if zygote and not fresh:
                status, stderr = zygote.run(line, cwd, stdin, stdout, dict(limits))
            else:
                done = subprocess.run(
                    [sys.executable, *line],
                    cwd=cwd,
                    env=ONE_THREAD,
                    input=stdin,
                    stdout=stdout,
                    stderr=subprocess.PIPE,
                    timeout=PATIENCE,
                )
                status, stderr = done.returncode, done.stderr
            if not to:
                stdout.seek(0)
            written = b"" if to else stdout.read()
        return subprocess.CompletedProcess(
            line, status, *(text.decode(errors="surrogateescape") for text in (written, stderr))
        )

    return run


@pytest.fixture
def script(monkeypatch, capsys):
    """script(name, *flags) runs a script's main within this process -> exit status, stdout, stderr."""

    def run(name, *flags, stdin=b""):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, flags)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        status = 0
        try:
            MODULES["cli"].run(MODULES[name].main)
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory, command, write_pairs):
    """The output folder of a run of train.py that has learnt the training pairs by heart."""
    place = tmp_path_factory.mktemp("trained")
    pairs = write_pairs(place / "pairs.tsv", TRAINING)
    held_out = write_pairs(place / "held_out.tsv", HELD_OUT)
    flags = ["--pairs", pairs, "--held-out", held_out, "--output", place / "out", *SIZES]
    learning = ["--dropout", "0", "--max-steps", "200", "--learning-rate", "5e-3", "--warmup-steps", "20"]
    done = command("train.py", *flags, *learning, cwd=place)
    assert done.returncode == 0, done.stderr
    (place / "stdout.txt").write_text(done.stdout, encoding="utf-8")
    return place / "out"
