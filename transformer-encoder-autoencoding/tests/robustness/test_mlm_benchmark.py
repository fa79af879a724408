"""The benchmark measures what it says: the contestants do the same work, and the products are the model's."""

import sys
from dataclasses import replace

import pytest
import torch

import train_mlm
from mlm import contestants_filling
from mlm.common.distributed import DistributedContext
from mlm.config import TrainConfig
from mlm.contestants_filling import agreement
from mlm.contestants_training import HuggingFace, Ours, WithoutFastCpu, matrix_products, training_contestants

CPU = torch.device("cpu")
SIZES = {"d_model": 16, "n_heads": 2, "d_ff": 24, "n_layers": 1, "batch_tokens": 2000}
FLAGS = [str(part) for name, value in SIZES.items() for part in (f"--{name.replace('_', '-')}", value)]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """The folder of the bundled text as token ids."""
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture
def new_trainer(tokens):
    """new_trainer() -> a small trainer on the bundled text."""
    config = TrainConfig(**SIZES, precision="fp32", output=tokens)
    return lambda **settings: train_mlm.build_trainer(replace(config, **settings), DistributedContext(CPU))


def test_contestants_see_every_window_once_an_epoch(new_trainer):
    field = [Ours(new_trainer()), WithoutFastCpu(new_trainer())]
    field += [HuggingFace(new_trainer(), grouped) for grouped in (False, True)]
    for contestant in field:
        n_tokens, seen = contestant.trainer.data.train.n_tokens, 0
        while seen < n_tokens:
            seen += contestant.step()
        assert seen == n_tokens


def test_without_fast_cpu_the_same_is_learnt(new_trainer, monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)
    ours, usual = Ours(new_trainer()), WithoutFastCpu(new_trainer())
    trainer = ours.trainer
    hidden = trainer.corrupt(trainer.data.train.batch(trainer.batches(0)[0]), torch.Generator())
    for contestant in (ours, usual):
        contestant.trainer.corrupt = lambda *_: hidden
        contestant.step()
    for a, b in zip(ours.trainer.model.parameters(), usual.trainer.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_products_are_those_of_the_model(new_trainer):
    trainer, hidden = new_trainer(), []
    corrupt = trainer.corrupt
    trainer.corrupt = lambda *args: hidden.append(corrupt(*args)) or hidden[-1]
    products, config = matrix_products(trainer), trainer.model.config
    shapes, tokens = products.steps[0]
    flops = sum(2 * torch.Size(left).numel() * right[-1] for left, right in shapes)
    inputs, labels = hidden[0]
    (B, S), scored, D = inputs.shape, int((labels >= 0).sum()), config.d_model
    layer = 2 * B * S * (4 * D * D + 2 * D * config.d_ff) + 4 * B * S * S * D
    assert flops == layer + 2 * scored * D * (D + config.vocab_size)
    assert products.step() == tokens == trainer.data.train.sequences.lengths[trainer.batches(0)[0]].sum()


def test_the_table(script, load_script, monkeypatch):
    peaks = iter([101.0, 102.0, 103.0, 104.0, 105.0])
    monkeypatch.setattr(load_script("benchmark"), "peak_memory_of", lambda *_: next(peaks))
    status, out, err = script("benchmark", "training", "--device", "cpu", "--rounds", 1, *FLAGS)
    assert status == 0, err
    rows = [line for line in out.splitlines() if line.startswith(("ours", "Hugging Face"))]
    assert len(rows) >= 4 and all(len(row.rsplit(maxsplit=4)) == 5 for row in rows)
    assert rows[0].split()[-1] == "101" and rows[0].split()[-3] == "1.0"


def test_memory_is_of_a_process_of_its_own(load_script, folder, monkeypatch):
    benchmark = load_script("benchmark")
    monkeypatch.setattr(sys, "argv", [str(folder / "benchmark.py"), "training", "--device", "cpu", *FLAGS])
    assert 100 < benchmark.peak_memory_of("ours, fp32, without fast_cpu.py", benchmark.MEMORY_OF) < 1500


def test_filling_is_compared_on_the_same_sentences(script, trained, monkeypatch, tmp_path):
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("Paris is the capital of France\n\nA fish lives in the sea\n")
    monkeypatch.setattr(contestants_filling, "N_FILLED", 5)
    flags = ["--device", "cpu", "--model", trained / "model", "--input", sentences, "--rounds", 1]
    status, out, err = script("benchmark", "filling", *flags)
    assert status == 0, err
    rows = [line for line in out.splitlines() if line.startswith("Hugging Face")]
    assert len(rows) == 6 and all("5 of 5, probabilities within" in row for row in rows[:3])
    assert [line.split()[-1] for line in out.splitlines() if line.startswith("ours")] == ["1.0", "1.0"]


def test_the_race_trains_both_and_draws(script, tmp_path):
    flags = ["--minutes", 0.03, "--their-learning-rates", 1e-4, 1e-3, "--output", tmp_path / "out", *FLAGS]
    status, out, err = script("benchmark", "race", "--device", "cpu", *flags)
    assert status == 0, err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["race.png"]
    assert (tmp_path / "out" / "race.png").stat().st_size > 10_000
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["ours", "Hugging Face at 0.0001", "Hugging Face at 0.001"]
    losses = [[float(loss) for loss in line.split("held-out loss ")[1].split()] for line in lines]
    assert [len(curve) for curve in losses] == [10, 10, 10]
    assert losses[0][-1] < losses[0][0]


def test_agreement_counts_the_same_and_compares_their_probabilities():
    mine = [("cat", 0.5), ("dog", 0.25), ("a", 0.1)]
    other = [("cat", 0.5), ("dog", 0.5), ("the", 0.9)]
    assert agreement(mine, other) == "2 of 3, probabilities within 2e-01"


def test_every_contestant_of_a_device_has_a_name():
    names = [list(training_contestants(None, torch.device(kind), "bf16")) for kind in ("cpu", "cuda")]
    assert names[0][:3] == ["ours, bf16", "ours, fp32", "ours, fp32, without fast_cpu.py"]
    assert "ours, bf16, torch.compile" in names[1] and "Hugging Face, bf16, grouped" in names[1]


@pytest.mark.parametrize(
    "flags, named",
    [
        ("training --max-minutes 3", "--max-minutes"),
        ("training --output=elsewhere", "--output"),
        ("filling --n-layers 3", "--n-layers"),
        ("filling --model missing", "missing: "),
        ("filling --input missing", "missing: "),
        ("race --epochs 5", "--epochs"),
        ("race --output elsewhere --resume", "--resume"),
        ("race --their-learning-rates 100", "--their-learning-rates"),
        (
            "training --d-model 30 --n-heads 4",
            "d_model 30 is not a multiple of n_heads 4; use 32, or another number of heads (--d-model)",
        ),
        ("", "COMMAND"),
    ],
)
def test_a_mistake_is_one_line(script, flags, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = script("benchmark", *flags.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert named in err
    assert not list(tmp_path.iterdir())


def test_help_names_every_flag(script):
    promised = {
        "training": ["--corpus", "--seed", "--rounds"],
        "filling": ["--model", "--input", "--rounds"],
        "race": ["--corpus", "--minutes", "--their-learning-rates", "--output"],
    }
    for command, flags in promised.items():
        status, out, _ = script("benchmark", command, "--help")
        assert status == 0 and all(flag in out for flag in [*flags, "--device"])
        assert "--epochs" not in out and ("--output" in out) == (command == "race")
