"""train_mlm.py as a user runs it: what it writes, from another folder, with Ctrl-C, and from another model."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib

import pytest
import torch

from mlm import MaskFiller, bert
from mlm.common.command_line import Interrupt
from mlm.tokenizer import MASK

CPU = torch.device("cpu")
MODEL_FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
TOKEN_FILES = {"meta.json", "tokenizer.json", *(f"windows.{n}.npy" for n in ("ids", "lengths", "offsets"))}
RUN_FILES = {"metrics.jsonl", "metrics.json", "loss_curve.png", "checkpoint.pt", "model", "tokens"}
SCORES = {"train_loss", "held_out_loss", "held_out_token_accuracy"}
RECORD = {"epoch", "step", "seconds", "tokens", "learning_rate"} | SCORES
FIGURES = {"epochs", "steps", "seconds", "parameters"} | SCORES
OF_CLOZES = {"recall_loss", "recall_accuracy", "held_out_by_kind", "baseline_by_kind"}


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def png_size(path):
    """Width and height of a PNG whose every chunk is whole."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    at, kinds = 8, []
    while at < len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        checksum = struct.unpack(">I", content[at + 8 + length : at + 12 + length])[0]
        assert zlib.crc32(content[at + 4 : at + 8 + length]) == checksum
        kinds.append(kind)
        at += 12 + length
    assert kinds[0] == b"IHDR" and b"IDAT" in kinds and kinds[-1] == b"IEND"
    return struct.unpack(">II", content[16:24])


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_training_writes_the_promised_files_and_no_others(trained):
    assert {path.name for path in trained.iterdir()} == RUN_FILES | {"checkpoint.before.pt"}
    assert {path.name for path in (trained / "model").iterdir()} == MODEL_FILES
    assert {path.name for path in (trained / "tokens").iterdir()} == TOKEN_FILES
    width, height = png_size(trained / "loss_curve.png")
    assert 500 < width < 2000 and 300 < height < 1500


def test_the_curve_has_a_record_for_every_evaluation(trained):
    lines = (trained / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert all(set(record) == RECORD for record in records)
    assert all(isinstance(value, int | float) for record in records for value in record.values())
    assert [record["step"] for record in records] == [50, 100, 150, 200, 250, 300]
    for name in ("epoch", "seconds", "tokens"):
        values = [record[name] for record in records]
        assert values == sorted(values)
    assert records[-1]["train_loss"] < records[0]["train_loss"] / 3
    assert records[-1]["learning_rate"] < records[1]["learning_rate"] / 100


def test_the_figures_are_those_of_the_run_and_of_the_cloze_tests(trained, training):
    metrics = read_json(trained / "metrics.json")
    assert set(metrics) == FIGURES | OF_CLOZES
    assert metrics["steps"] == 300 and metrics["epochs"] == 300
    assert metrics["recall_accuracy"] > 0.9 and metrics["recall_loss"] < 0.7
    assert set(metrics["held_out_by_kind"]) == set(metrics["baseline_by_kind"]) == {"combination"}
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert metrics["held_out_loss"] in [record["held_out_loss"] for record in records]
    parameters = sum(p.numel() for p in bert.load(trained / "model", CPU)[0].parameters())
    assert metrics["parameters"] == parameters


def test_the_table_shows_model_and_baseline_side_by_side(trained, training):
    printed = (trained.parent / "stdout.txt").read_text(encoding="utf-8")
    metrics = read_json(trained / "metrics.json")
    assert f"{len(training)} sentences to train on, 3 held out" in printed
    line = next(line for line in printed.splitlines() if line.startswith("held-out combination"))
    shares = metrics["held_out_by_kind"]["combination"], metrics["baseline_by_kind"]["combination"]
    assert line.split()[-2:] == [f"{share:.1%}" for share in shares]
    line = next(line for line in printed.splitlines() if line.startswith("training sentences (15)"))
    assert line.split()[-2] == f"{metrics['recall_accuracy']:.1%}"
    assert "Traceback" not in (trained.parent / "stderr.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, folder, command, sizes, training):
    """The folder copied alone to another place, and a short run there with the default --output."""
    place = tmp_path_factory.mktemp("alone")
    ignore = shutil.ignore_patterns("model", "results", "tests", "__pycache__", ".*")
    copy = shutil.copytree(folder, place / "copy", ignore=ignore)
    (place / "text.txt").write_text("\n".join(training), encoding="utf-8")
    before = files_below(place)
    flags = ["--corpus", "text.txt", "--tokenizer", "bpe", "--vocab-size", 8000, "--max-steps", 3]
    done = command("train_mlm.py", *flags, *sizes, "--device", "cpu", cwd=place, folder=copy)
    assert done.returncode == 0, done.stderr
    return place, copy, files_below(place) - before, done


def test_the_folder_works_alone_elsewhere_and_writes_to_its_results(elsewhere):
    _, _, new, _ = elsewhere
    expected = {f"results/{name}" for name in RUN_FILES} | {f"results/model/{name}" for name in MODEL_FILES}
    expected |= {f"results/tokens/{name}" for name in TOKEN_FILES}
    assert new == {f"copy/{name}" for name in [*expected, "results"]}


def test_without_cloze_files_the_figures_are_those_of_the_run(elsewhere):
    _, copy, _, done = elsewhere
    assert set(read_json(copy / "results" / "metrics.json")) == FIGURES
    assert "key word" not in done.stdout


def test_the_other_commands_use_the_folders_own_model(elsewhere, command):
    place, copy, _, _ = elsewhere
    before = files_below(place)
    done = command("visualize_attention.py", cwd=place, folder=copy)
    assert done.returncode == 0, done.stderr
    assert files_below(place) - before == {f"copy/results/attention_{name}.png" for name in ("heatmap", "heads")}
    done = command("fill_mask.py", f"the cat {MASK} the mouse", cwd=place, folder=copy)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 6


def test_ctrl_c_keeps_what_was_learnt_and_resume_goes_on(tmp_path, folder, command, sizes, training):
    (tmp_path / "text.txt").write_text("\n".join(training), encoding="utf-8")
    flags = ["--corpus", "text.txt", "--output", "out", *sizes, "--device", "cpu"]
    line = [sys.executable, str(folder / "train_mlm.py"), *flags, "--max-steps", "1000000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as running:
        shown = b""
        while not re.search(rb"step \d+: train_loss", shown):  # a record of the curve
            piece = running.stderr.read1()
            assert piece, shown
            shown += piece
        running.send_signal(signal.SIGINT)
        shown += running.stderr.read()
    assert running.returncode == 130, shown
    last = shown.decode().rstrip("\n").split("\n")[-1].split("\r")[-1]
    assert last.startswith("train_mlm.py: interrupted") and "--resume" in last
    assert b"Traceback" not in shown
    assert MaskFiller.load(tmp_path / "out" / "model", "cpu")(f"the {MASK}", top_k=1)
    steps = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["progress"]["step"]
    done = command("train_mlm.py", *flags, "--max-steps", steps + 2, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "out" / "metrics.json")["steps"] == steps + 2


def test_the_first_signal_requests_to_stop_and_the_second_one_does_not_wait():
    handlers = [(kind, signal.getsignal(kind)) for kind in (signal.SIGINT, signal.SIGTERM)]
    try:
        interrupt = Interrupt()
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 10
        while not interrupt.requested and time.monotonic() < deadline:
            time.sleep(0.01)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            interrupt(signal.SIGINT, None)
        interrupt.release()
        assert [(kind, signal.getsignal(kind)) for kind, _ in handlers] == handlers
    finally:
        for kind, handler in handlers:
            signal.signal(kind, handler)


def test_init_goes_on_with_a_models_weights_and_words(script, tmp_path, trained, training):
    """One careful step from a trained model leaves it as good as it was."""
    (tmp_path / "text.txt").write_text("\n".join(training), encoding="utf-8")
    flags = ["--corpus", tmp_path / "text.txt", "--init", trained / "model", "--output", tmp_path / "out"]
    status, _, stderr = script("train_mlm", *flags, "--max-steps", 1, "--learning-rate", 1e-6)
    assert status == 0, stderr
    before, after = (bert.load(path / "model", CPU)[0] for path in (trained, tmp_path / "out"))
    assert after.config == before.config
    for one, other in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert read_json(tmp_path / "out" / "metrics.json")["held_out_token_accuracy"] > 0.5


def test_help_names_every_flag_and_an_example(script):
    status, out, stderr = script("train_mlm", "--help")
    assert status == 0 and stderr == ""
    assert "--device" in out and "python3 train_mlm.py" in out
    promised = (
        "--corpus --held-out --tokenizer --vocab-size --d-model --n-layers --n-heads --d-ff --dropout --max-length "
        "--epochs --max-steps --max-minutes --batch-tokens --learning-rate --warmup-steps --mask-prob --precision "
        "--seed --init --watch --resume --output"
    )
    assert [flag for flag in promised.split() if flag not in out] == []
