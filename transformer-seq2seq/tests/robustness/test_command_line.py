"""The command line as people use it: flags in any order, home folders, pipes that wait, signals, log files."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ablations
from seq2seq.common import files
from seq2seq.common.command_line import Interrupt, Parser, add_flags, flag, from_flags, int_in, pick_device
from seq2seq.common.experiments import Study
from seq2seq.common.lines import is_rereadable

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and pipes")


def start(folder, script, *flags, stdin=None, ignored=()):
    """Start a script in a process of its own, some signals ignored."""

    def prepare():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for kind in ignored:
            signal.signal(kind, signal.SIG_IGN)

    line = [sys.executable, str(folder / script), *map(str, flags)]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, stdin=stdin, stdout=pipe, stderr=pipe, text=True, preexec_fn=prepare)


def test_flags_may_stand_between_arguments():
    parser = Parser(None)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--top-k", type=int_in(1))
    for line in ("a --top-k 3 b", "--top-k 3 a b", "a b --top-k 3"):
        assert vars(parser.parse_args(line.split())) == {"names": ["a", "b"], "top_k": 3}
    assert parser.parse_args(["a", "--", "-b"]).names == ["a", "-b"] and parser.parse_args([]).names == []


@dataclass(frozen=True)
class Files:
    pairs: tuple[Path, ...] | None = flag(None, "files", type=Path, nargs="+")


@pytest.mark.parametrize("line", ["--pairs ~/a b", "--pairs ~/a --pairs b", "--pairs=~/a --pairs=b"])
def test_a_repeated_flag_adds_and_a_tilde_is_the_home_folder(line, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    parser = Parser(None)
    add_flags(parser, Files)
    assert from_flags(Files, parser.parse_args(line.split())).pairs == (Path("/home/somebody/a"), Path("b"))


@pytest.mark.parametrize(("cuda", "kind"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_cuda_or_the_cpu(cuda, kind, monkeypatch):
    """Even where there is an Apple GPU, whose kernels are compiled anew for every shape of a batch."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == kind
    assert pick_device("mps").type == "mps"


def test_a_pipe_that_says_it_is_seekable_cannot_be_read_again(tmp_path):
    """As pipes do on Windows."""
    (tmp_path / "file").write_bytes(b"a\n")
    with (tmp_path / "file").open("rb") as file:
        assert is_rereadable(file)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe, os.fdopen(writing, "wb"):
        assert not is_rereadable(pipe)
        assert not is_rereadable(SimpleNamespace(seekable=lambda: True, fileno=pipe.fileno))


def test_on_windows_a_file_that_a_scanner_holds_is_replaced_a_moment_later(monkeypatch):
    held, slept = iter([True, True, False]), []

    def move(*paths):
        if next(held):
            raise PermissionError

    monkeypatch.setattr(files, "os", SimpleNamespace(name="nt", replace=move))
    monkeypatch.setattr(files.time, "sleep", slept.append)
    files.replace(Path("a"), Path("b"))
    assert len(slept) == 2


@pytest.mark.parametrize(("name", "said"), [("batch_tokens", "512"), ("learning_rate", "0.002")])
def test_the_help_of_ablations_names_their_own_defaults(name, said, folder, capsys):
    with pytest.raises(SystemExit):
        ablations.study.parse_args(None, ["--help"])
    shown = " ".join(capsys.readouterr().out.split(f"--{name.replace('_', '-')} ")[-1].split("--")[0].split())
    assert f"(default: {said}" in shown


def test_ablations_run_on_the_cpu_unless_told_otherwise(tmp_path):
    study = Study(1, 1, {}, "", ("", ""), ("", ""), tmp_path)
    assert study.parse_args(None, []).device == "cpu"


@posix
@pytest.mark.parametrize("flags", [[], ["--sample", "--batch-size", 1, "--json"]], ids=str)
def test_a_program_gets_its_answer_before_it_writes_the_next_line(folder, trained, flags):
    process = start(folder, "inference.py", "--model", trained / "model", *flags, stdin=subprocess.PIPE)
    with process:
        for line in ("Good morning\n", "Good\n\n", "Good morning\n"):
            process.stdin.write(line)
            process.stdin.flush()
            for _ in range(line.count("\n")):
                assert process.stdout.readline()  # hangs if the whole input is awaited
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and not out, err


@posix
@pytest.mark.parametrize(
    "script", ["train.py", "inference.py", "visualize_attention.py", "ablations.py", "benchmark.py"]
)
def test_an_interrupt_while_modules_are_imported_is_silent(folder, script):
    with start(folder, script, "--help") as process:
        time.sleep(0.6)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (-signal.SIGINT, "", "")


@posix
def test_a_closed_terminal_interrupts_and_what_is_ignored_stays_so():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        interrupt = Interrupt()
        os.kill(os.getpid(), signal.SIGTERM)
        assert not interrupt.requested
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupt.requested
        interrupt.release()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_log_file_has_a_line_for_each_evaluation(command, write_pairs, training, sizes, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.tsv", training)
    done = command("train.py", "--pairs", pairs, "--output", tmp_path / "out", *sizes, "--max-steps", 60)
    assert done.returncode == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in done.stderr.splitlines() if line.startswith("epoch ")]
    assert [f"step {step}:" in line for step, line in zip(steps, lines, strict=True)] == [True] * len(steps)
    assert "\r" not in done.stderr and "it/s" not in done.stderr
