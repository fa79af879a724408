"""fill_mask.py behind a pipe: whoever writes a sentence and waits gets the answer; and Ctrl-C while it starts."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and pipes")


def start(folder, script, *flags):
    """Start a script in a process of its own, with pipes to it and from it."""

    def prepare():
        signal.signal(signal.SIGINT, signal.default_int_handler)

    line, pipe = [sys.executable, str(folder / script), *map(str, flags)], subprocess.PIPE
    return subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe, text=True, preexec_fn=prepare)


@pytest.mark.parametrize("flag", ["--json", "--score"])
def test_a_sentence_is_answered_before_the_next_is_written(folder, trained, training, flag):
    first, *others = training[0].split()
    sentence = " ".join([first, *others] if flag == "--score" else ["[MASK]", *others])
    with start(folder, "fill_mask.py", "--model", trained / "model", flag) as process:
        for text in (f"{sentence}\n", f"{sentence}\n\n"):
            process.stdin.write(text)
            process.stdin.flush()
            assert sentence in process.stdout.readline()  # hangs if the whole input is awaited
            for _ in range(len(others) + 2 if flag == "--score" else 0):
                assert process.stdout.readline()
        out, err = process.communicate(timeout=60)
        assert (out, process.returncode) == ("", 0) and bool(err) == (flag == "--score")  # the total


@pytest.mark.parametrize("script", ["train_mlm.py", "fill_mask.py", "benchmark.py"])
def test_an_interrupt_while_modules_are_imported_is_silent(folder, script):
    with start(folder, script, "--help") as process:
        time.sleep(0.6)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (-signal.SIGINT, "", "")
