"""train.py as a user runs it: what it prints, what it writes, and nothing besides."""

import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train
from seq2seq import Translator, marian
from seq2seq.common.command_line import flag_name
from seq2seq.common.errors import InputError
from seq2seq.config import INIT_EXCLUDES, TrainConfig
from seq2seq.pairs import read_pairs

FOLDER = Path(__file__).parents[2]
MODEL_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
TOKENS = {"meta.json", "tokenizer.json"} | {
    f"{side}.{part}.npy" for side in ("source", "target") for part in ("ids", "lengths", "offsets")
}
RESULTS = {"metrics.jsonl", "metrics.json", "loss_curve.png", "outputs.tsv"}
CHECKPOINTS = {"checkpoint.pt", "checkpoint.before.pt"}


def files_in(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def size_of(path):
    """Width and height of a PNG file, which must be whole."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and content.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", content[16:24])


# ------------------------------------------------------------------------------------------ what is written


def test_training_writes_what_it_promises_and_nothing_else(trained):
    inside = {f"model/{name}" for name in MODEL_FILES} | {f"tokens/{name}" for name in TOKENS}
    assert files_in(trained) == inside | RESULTS | CHECKPOINTS
    assert {path.name for path in trained.parent.iterdir()} == {
        "pairs.tsv",
        "held_out.tsv",
        "out",
        "stdout.txt",
    }


def test_metrics_have_the_promised_keys(trained):
    lines = (trained / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    keys = {"epoch", "step", "seconds", "tokens", "train_loss", "held_out_loss", "learning_rate"}
    assert all(keys <= record.keys() for record in records)
    assert [record["step"] for record in records] == [50, 100, 150, 200]
    assert records[-1]["train_loss"] < records[0]["train_loss"] / 2
    metrics = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))
    keys = "epochs steps seconds parameters train_loss held_out_loss train_exact_match held_out_exact_match "
    keys += "held_out_bleu held_out_chrf baseline_exact_match held_out_by_kind baseline_by_kind"
    assert set(keys.split()) <= metrics.keys()
    assert metrics["steps"] == 200 and metrics["train_exact_match"] == 1.0
    assert set(metrics["held_out_by_kind"]) == set(metrics["baseline_by_kind"]) == {"rewrite", "answer"}
    model, _ = marian.load(trained / "model", torch.device("cpu"))
    assert metrics["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_outputs_and_the_curve_are_written(trained, held_out):
    width, height = size_of(trained / "loss_curve.png")
    assert 300 < width < 3000 and 200 < height < 3000
    header, *rows = (trained / "outputs.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "kind\tsource\treference\toutput"
    rows = [row.split("\t") for row in rows]
    assert [row[:3] for row in rows] == [[kind, source, target] for source, target, kind in held_out]
    assert [row[3] for row in rows] == Translator.load(trained / "model")([row[1] for row in rows])
    table = (trained.parent / "stdout.txt").read_text(encoding="utf-8")
    assert "12 pairs to train on, 3 held out" in table and "Transformer" in table and "BLEU" in table


def test_an_interrupt_ends_in_one_line_and_a_usable_model(tmp_path, write_pairs, training, sizes, command):
    pairs = write_pairs(tmp_path / "pairs.tsv", training)
    flags = ["--pairs", pairs, "--output", tmp_path / "out", *sizes, "--max-minutes", 5]
    line = [sys.executable, FOLDER / "train.py", *flags]
    process = subprocess.Popen(
        list(map(str, line)),
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        seen = b""
        while not re.search(rb"step \d+: train_loss", seen):  # a record of the curve
            seen += (piece := os.read(process.stderr.fileno(), 4096))
            assert piece, seen
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1].decode()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    last = rest.replace("\r", "\n").rstrip().splitlines()[-1]
    assert last.startswith("train.py: interrupted") and "--resume" in last and "Traceback" not in rest
    marian.load(tmp_path / "out" / "model", torch.device("cpu"))
    resumed = [*flags[:-2], "--max-steps", 1, "--resume"]
    done = command("train.py", *resumed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} - CHECKPOINTS == {"model", "tokens", *RESULTS}


class At:
    """Stands for Interrupt: requested before the first step."""

    requested = True


def test_an_interrupt_before_the_first_step_ends_without_a_traceback(
    script, monkeypatch, tmp_path, write_pairs, training, sizes
):
    pairs = write_pairs(tmp_path / "pairs.tsv", training)
    monkeypatch.setattr("train.Interrupt", At)
    status, _, err = script("train", "--pairs", pairs, "--output", tmp_path / "out", *sizes)
    assert status == 130 and "interrupted" in err


def test_the_folder_runs_alone_in_another_place(tmp_path, command, trained):
    alone = tmp_path / "another place" / "copy"
    ignore = shutil.ignore_patterns("tests", "__pycache__", "samples", ".*")
    shutil.copytree(FOLDER, alone, ignore=ignore)
    before = files_in(alone)
    shutil.copytree(trained / "model", alone / "samples" / "model")
    done = command("inference.py", "Good morning", cwd=tmp_path, folder=alone)
    assert (done.returncode, done.stdout) == (0, "Input : Good morning\nOutput: Good morning, cook\n")
    shutil.rmtree(alone / "samples")
    (tmp_path / "few.tsv").write_text("a b\tb a\nc\td\ne f\tf e\n", encoding="utf-8")
    flags = [
        "--max-steps",
        "2",
        "--d-model",
        "8",
        "--n-heads",
        "1",
        "--n-layers",
        "1",
        "--d-ff",
        "8",
        "--max-length",
        "32",
    ]
    done = command("train.py", "--pairs", tmp_path / "few.tsv", *flags, cwd=tmp_path, folder=alone)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (alone / "samples" / "model").iterdir()} == MODEL_FILES
    assert {path.name for path in (alone / "samples").iterdir()} == {"model", "tokens", *RESULTS, "checkpoint.pt"}
    assert {path.name for path in tmp_path.iterdir()} == {"another place", "few.tsv"}
    written = {name for name in files_in(alone) - before if "__pycache__" not in name}
    assert {Path(name).parts[0] for name in written} == {"samples"}  # the folder of code stays clean


def test_the_bundled_pairs_are_sound(capsys):
    training, held_out = (read_pairs(FOLDER / "data" / f"{name}.tsv") for name in ("train", "held_out"))
    assert capsys.readouterr().err == ""
    assert not {pair.source for pair in training} & {pair.source for pair in held_out}
    assert {pair.kind for pair in held_out} == {"answer", "rewrite", "rephrasing"}


def test_what_a_run_writes_is_not_committed():
    """Models, token ids and checkpoints of the default runs are ignored; their figures and pictures are not."""
    if not (FOLDER.parent / ".git").exists():
        pytest.skip("needs the repository")
    paths = [f"samples/{name}" for name in ("model/config.json", "tokens/meta.json", *sorted(CHECKPOINTS))]
    kept = ["samples/metrics.json", "samples/loss_curve.png", "tests/model/test_muon.py"]
    done = subprocess.run(["git", "check-ignore", *paths, *kept], cwd=FOLDER, capture_output=True, text=True)
    assert done.stdout.splitlines() == paths


# --------------------------------------------------------------------------------------------- settings


def test_help_names_every_flag(script):
    status, out, err = script("train", "--help")
    assert (status, err) == (0, "") and "python3 train.py" in out
    flags = set(re.findall(r"^  (--[a-z-]+)", out, re.M)) - {"--device"}
    assert flags == {flag_name(name) for name in vars(TrainConfig())}


def test_flags_make_the_configuration():
    assert train.parse_args([]) == (TrainConfig(), "auto")
    flags = [
        "--pairs",
        "a.tsv",
        "b.tsv",
        "--d-model",
        "64",
        "--dropout",
        "0",
        "--resume",
        "--optimizer",
        "muon",
        "--device",
        "cpu",
    ]
    config, device = train.parse_args(flags)
    files = Path("a.tsv"), Path("b.tsv")
    expected = TrainConfig(pairs=files, d_model=64, dropout=0, resume=True, optimizer="muon")
    assert (config, device) == (expected, "cpu") and config.files == (files, None)


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"d_model": 30, "n_heads": 4}, "d_model 30 is not a multiple of n_heads 4"),
        ({"d_model": 126}, "d_model 126 is not a multiple of n_heads 4"),
        ({"dropout": 1.0}, "dropout needs a number from 0 to 0.99, not 1.0"),
        ({"max_steps": True}, "max_steps needs a whole number from 1 to 2,147,483,647, not True"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; use one of adam, muon"),
        ({"d_model": 1024, "max_length": 70_000}, "70,000 is too large for d_model 1024; use up to 65,536"),
        ({"tokenizer": "bpe", "vocab_size": 299}, "299 subwords are too few for 256 bytes"),
        *(({"init": Path("x"), name: 64}, f"init and {name} cannot be combined") for name in ("d_model", "d_ff")),
        ({"init": Path("x"), "tokenizer": "word"}, "init and tokenizer cannot be combined"),
    ],
)
def test_settings_are_checked_wherever_they_come_from(settings, reason):
    with pytest.raises(InputError, match=reason) as error:
        TrainConfig(**settings)
    assert error.value.setting in settings


def test_what_is_not_set_follows_the_device_and_the_text():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert TrainConfig().resolve(cpu, 10**9).batch_tokens == TrainConfig().resolve(cuda, 10**5).batch_tokens == 1024
    assert replace(TrainConfig(), precision="fp32").resolve(cuda, 10**9).batch_tokens == 4096
    rates = [config.resolve(cpu, 1).learning_rate for config in (TrainConfig(), TrainConfig(init=Path("marian")))]
    assert rates == [2e-3, 5e-5]  # trained weights are changed gently
    assert TrainConfig(init=Path("marian"), learning_rate=1e-3).resolve(cpu, 1).learning_rate == 1e-3
    assert TrainConfig().resolve(cpu, 1).epochs == 60 and TrainConfig(max_steps=3).resolve(cpu, 1).epochs is None
    given = TrainConfig(epochs=2, batch_tokens=7, learning_rate=1e-3, precision="bf16")
    assert given.resolve(cpu, 10**9) == given
    assert all(getattr(TrainConfig(), name) is None for name in INIT_EXCLUDES)


def test_a_resumed_run_keeps_its_limits_unless_others_are_given():
    last = {"from_step": 0, "epochs": None, "max_steps": 7, "max_minutes": None, "precision": "fp32"}
    found = [one.resolve(torch.device("cpu"), 1, last) for one in (TrainConfig(), TrainConfig(epochs=2))]
    assert [(one.epochs, one.max_steps, one.max_minutes) for one in found] == [(None, 7, None), (2, None, None)]


def test_a_model_to_start_from_limits_the_length(capsys):
    usual, longer = TrainConfig(init=Path("marian")), TrainConfig(init=Path("marian"), max_length=300)
    assert usual.within(512) is usual and usual.within(16).max_length == 16
    assert capsys.readouterr().err == ""
    assert longer.within(16).max_length == 16 and "takes at most 16 tokens" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ text


def test_a_pair_too_long_for_the_model_is_in_no_figure(script, tmp_path, write_pairs, training, sizes):
    """Neither among the held-out ones, whose loss it is no part of, nor among those recalled."""
    long = ("cook " * 20, "cook", "long")
    write_pairs(tmp_path / "pairs.tsv", [long, *training])
    write_pairs(tmp_path / "held.tsv", [*training[:2], ("the " * 20, "the", "long")])
    flags = ["--pairs", tmp_path / "pairs.tsv", "--held-out", tmp_path / "held.tsv", "--max-length", 16]
    status, out, err = script("train", *flags, "--output", tmp_path / "out", *sizes, "--max-steps", 1)
    assert status == 0 and "left out 1 training and 1 held-out pairs" in err
    assert len((tmp_path / "out" / "outputs.tsv").read_text().splitlines()) == 1 + 2
    assert f"training prompts ({len(training) - 2:,})" in out and "long" not in out.replace(str(tmp_path), "")


def test_the_vocabulary_comes_from_the_training_pairs_alone(script, tmp_path, write_pairs, held_out, sizes):
    pairs = write_pairs(tmp_path / "pairs.tsv", [("one two", "three", ""), ("four", "five", "")])
    asked = write_pairs(tmp_path / "held.tsv", held_out)
    flags = ["--pairs", pairs, "--held-out", asked, "--output", tmp_path / "out", *sizes, "--max-steps", 1]
    assert script("train", *flags)[0] == 0
    vocabulary = json.loads((tmp_path / "out" / "model" / "tokenizer.json").read_text())["model"]["vocab"]
    words = {f"▁{word}" for word in ["one", "two", "three", "four", "five"]}
    assert set(vocabulary) == {"</s>", "<unk>", *words}


def test_a_pair_that_names_a_special_token_can_be_trained_on(script, tmp_path, write_pairs, sizes):
    pairs = write_pairs(tmp_path / "pairs.tsv", [("a <pad> b", "c <pad> d", ""), ("e", "f </s> g", "")])
    status, _, err = script("train", "--pairs", pairs, "--output", tmp_path / "out", *sizes, "--max-steps", 1)
    assert status == 0, err
    (record,) = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    assert math.isfinite(record["train_loss"])


def test_pairs_that_the_model_to_start_from_has_no_positions_for_are_left_out(
    script, trained, tmp_path, write_pairs, training, held_out
):
    pairs = write_pairs(tmp_path / "pairs.tsv", [*training, ("cook " * 20, "A cook", "")])
    flags = ["--pairs", pairs, "--held-out", write_pairs(tmp_path / "held.tsv", held_out), "--max-steps", 1]
    status, _, err = script("train", *flags, "--init", trained / "model", "--output", tmp_path / "out")
    assert status == 0, err
    assert "left out 1 training and 0 held-out pairs of more than 16 tokens" in err
