"""Tiny models, one of them trained, and the scripts as commands, for all tests of this folder."""

import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent
CHROMIUM = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
CHROMIUM += " --disable-component-update --disable-sync"
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background hears Ctrl-C, as do its scripts
sys.path.insert(0, str(FOLDER))  # seq2seq and the files to read; the three scripts that both folders have: load_script

import commands

from seq2seq.common.command_line import run_script
from seq2seq.tokenizer import train_tokenizer
from transformer import Transformer, TransformerConfig

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
        places = [FOLDER / "seq2seq" / place / "explorer" for place in (".", "common")]
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
    return train_tokenizer(texts, "word", 1000)


@pytest.fixture(scope="session")
def bpe():
    """A byte pair tokenizer of the training pairs."""
    texts = [text for source, target, _ in TRAINING for text in (source, target)]
    return train_tokenizer(texts, "bpe", 320)


@pytest.fixture(scope="session")
def make_model():
    """make_model(vocab_size, seed, **sizes) -> a random model in evaluation mode, <pad> its last token.
    Its weights are large enough for its distributions to be far from flat."""

    def make(vocab_size, seed=0, **sizes):
        config = TransformerConfig(vocab_size, vocab_size - 1, d_model=16, n_heads=2, d_ff=24)
        torch.manual_seed(seed)
        model = Transformer(replace(config, **{"max_length": 16} | sizes)).eval()
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
