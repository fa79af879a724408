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

TRAINING = """\
the cat chases the small mouse
the dog chases the big cat
a bird eats the red worm
a fish eats the green plant
my mother bakes sweet bread today
my father paints the old door
our teacher reads a long story
our doctor drives a blue car
the king wears a golden crown
the queen owns a silver ring
every student writes one short letter
every farmer grows some yellow corn
two children play near the river
three soldiers march toward the castle
we drink hot tea at night
""".splitlines()
HELD_OUT = ["the dog chases the small mouse", "my mother paints the old door", "a bird eats the green plant"]
SIZES = [
    "--d-model",
    "32",
    "--n-layers",
    "2",
    "--n-heads",
    "2",
    "--d-ff",
    "64",
    "--max-length",
    "24",
    "--batch-tokens",
    "256",
]


def pytest_collectstart(collector):
    sys.modules.update(MODULES)


def pytest_runtest_setup(item):
    sys.modules.update(MODULES)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny products gain nothing from a second thread, and lose much where other programs compete for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder():
    """The folder under test."""
    return FOLDER


@pytest.fixture(scope="session")
def training():
    """The sentences that the trained model has seen."""
    return TRAINING


@pytest.fixture(scope="session")
def held_out():
    """The sentences that the trained model is evaluated on."""
    return HELD_OUT


@pytest.fixture(scope="session")
def sizes():
    """Flags of train_mlm.py that make a small model."""
    return SIZES


@pytest.fixture(scope="session")
def tokenizer():
    """A word tokenizer of the training sentences."""
    return MODULES["corpus"].train_tokenizer(TRAINING, "word", 1000)


@pytest.fixture(scope="session")
def bpe():
    """A byte pair tokenizer of the training sentences."""
    return MODULES["corpus"].train_tokenizer(TRAINING, "bpe", 300)


@pytest.fixture(scope="session")
def make_model():
    """make_model(vocab_size, seed, **sizes) -> a random model in evaluation mode. No weight has its initial
    value, so that every bias and every norm matters."""

    def make(vocab_size, seed=0, **sizes):
        module = MODULES["encoder"]
        sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 24, "max_length": 24} | sizes
        torch.manual_seed(seed)
        model = module.MaskedLanguageModel(module.EncoderConfig(vocab_size, **sizes)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
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


class Terminal(io.TextIOWrapper):
    """A standard input at which a person sits."""

    def isatty(self):
        return True


@pytest.fixture
def script(monkeypatch, capsys):
    """script(name, *flags) runs a script's main within this process -> exit status, stdout, stderr."""

    def run(name, *flags, stdin=b"", terminal=False):
        stream = Terminal if terminal else io.TextIOWrapper
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, flags)])
        monkeypatch.setattr(sys, "stdin", stream(io.BytesIO(stdin), encoding="utf-8"))
        handlers = [(kind, signal.getsignal(kind)) for kind in (signal.SIGINT, signal.SIGTERM)]
        capsys.readouterr()
        status = 0
        try:
            MODULES["cli"].run(MODULES[name].main)
        except SystemExit as stop:
            status = stop.code
        finally:
            for kind, handler in handlers:
                signal.signal(kind, handler)
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory, command):
    """The output folder of a run of train_mlm.py that has learnt the training sentences by heart. Cloze
    tests stand beside both of its text files, and what it printed is in stdout.txt beside it."""
    place = tmp_path_factory.mktemp("trained")
    for name, sentences, kind in (("corpus", TRAINING, "fact"), ("held_out", HELD_OUT, "combination")):
        rows = ["sentence\tkey\tkind", *(f"{line}\t{line.split()[1]}\t{kind}" for line in sentences)]
        (place / f"{name}.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
        (place / f"{name}.cloze.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    flags = [
        "--corpus",
        place / "corpus.txt",
        "--held-out",
        place / "held_out.txt",
        "--output",
        place / "out",
    ]
    learning = ["--max-steps", "300", "--learning-rate", "5e-3", "--warmup-steps", "20", "--device", "cpu"]
    done = command("train_mlm.py", *flags, *SIZES, *learning, cwd=place)
    assert done.returncode == 0, done.stderr
    (place / "stdout.txt").write_text(done.stdout, encoding="utf-8")
    (place / "stderr.txt").write_text(done.stderr, encoding="utf-8")
    return place / "out"
