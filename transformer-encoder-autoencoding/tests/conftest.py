"""Tiny models, one of them trained, and the scripts as commands, for all tests of this folder."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent
CHROMIUM = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
CHROMIUM += " --disable-component-update --disable-sync"
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background hears Ctrl-C, as do its scripts
sys.path.insert(0, str(FOLDER))  # mlm and the files to read; the three scripts that both folders have: load_script

import commands

from encoder import EncoderConfig, MaskedLanguageModel
from mlm.common.command_line import run_script
from mlm.tokenizer import train_tokenizer

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


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Compute on one thread: tiny models gain nothing from several, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    names = "chromium", "chromium-browser", "google-chrome"
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        reason = "no Chromium here: install the package chromium, or Google Chrome, to test the page"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=CHROMIUM.split())
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def scripted(browser):
    """scripted(*names) -> an empty page in which these scripts of the explorer have run as one."""
    pages = []

    def run(*names):
        places = [FOLDER / "mlm" / place / "explorer" for place in (".", "common")]
        files = [next(file for place in places if (file := place / name).exists()) for name in names]
        pages.append(browser.new_page())
        pages[-1].add_script_tag(content="\n".join(['"use strict";', *(f.read_text(encoding="utf-8") for f in files)]))
        return pages[-1]

    yield run
    for page in pages:
        page.close()


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
    return train_tokenizer(TRAINING, "word", 1000)


@pytest.fixture(scope="session")
def bpe():
    """A byte pair tokenizer of the training sentences."""
    return train_tokenizer(TRAINING, "bpe", 300)


@pytest.fixture(scope="session")
def make_model():
    """make_model(vocab_size, seed, **sizes) -> a random model in evaluation mode. No weight has its initial
    value, so that every bias and every norm matters."""

    def make(vocab_size, seed=0, **sizes):
        sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 24, "max_length": 24} | sizes
        torch.manual_seed(seed)
        model = MaskedLanguageModel(EncoderConfig(vocab_size, **sizes)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        return model

    return make


@pytest.fixture(scope="session")
def tiny(make_model, tokenizer):
    """A random model for the word tokenizer."""
    return make_model(tokenizer.get_vocab_size())


@pytest.fixture(scope="session")
def load_script():
    """load_script(name) -> the module of a script of this folder."""
    return lambda name: commands.load_script(FOLDER / f"{name}.py")


@pytest.fixture(scope="session")
def command(load_script):
    """command(script, *flags, cwd=...) runs a script of this folder as a user does, bytes among the flags as
    they are -> its exit status, standard output and error as text. fresh=True: in an interpreter of its own, as
    with to, the path of what standard output goes to, and limits, bytes for RLIMIT_AS and RLIMIT_FSIZE."""

    def run(script, *flags, cwd=None, folder=FOLDER, stdin=b"", fresh=False, to=None, limits=()):
        stdin = stdin if isinstance(stdin, bytes) else stdin.encode()
        flags = [os.fsdecode(flag) if isinstance(flag, bytes) else str(flag) for flag in flags]
        line = [str(folder / script), *flags]
        if fresh or to or limits or folder != FOLDER:
            return commands.run_process(line, cwd, stdin, to, limits)
        return commands.run_within(run_script, load_script(Path(script).stem).main, line, cwd, stdin)

    return run


@pytest.fixture(scope="session")
def script(load_script):
    """script(name, *flags) runs a script's main within this process -> exit status, stdout, stderr.
    terminal=True: a person sits at standard input."""

    def run(name, *flags, stdin=b"", terminal=False):
        line = [f"{name}.py", *map(str, flags)]
        done = commands.run_within(run_script, load_script(name).main, line, None, stdin, terminal)
        return done.returncode, done.stdout, done.stderr

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
