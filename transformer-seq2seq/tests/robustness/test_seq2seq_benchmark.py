"""The benchmark measures what it says: the contestants do the same work, and the products are the model's."""

import sys
from dataclasses import replace

import pytest
import torch

import train
from seq2seq.common.distributed import DistributedContext
from seq2seq.config import TrainConfig
from seq2seq.contestants_generation import Task, agreement
from seq2seq.contestants_training import HuggingFace, Ours, WithoutFastCpu, matrix_products, training_contestants

CPU = torch.device("cpu")
SIZES = {"d_model": 16, "n_heads": 2, "d_ff": 24, "n_layers": 1, "batch_tokens": 2000, "dropout": 0}
FLAGS = [str(part) for name, value in SIZES.items() for part in (f"--{name.replace('_', '-')}", value)]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """The folder of the bundled pairs as token ids."""
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture
def new_trainer(tokens):
    """new_trainer() -> a small trainer on the bundled pairs."""
    config = TrainConfig(**SIZES, precision="fp32", output=tokens)
    return lambda **settings: train.build_trainer(replace(config, **settings), DistributedContext(CPU))


def test_contestants_see_every_pair_once_an_epoch(new_trainer):
    field = [Ours(new_trainer()), WithoutFastCpu(new_trainer())]
    field += [HuggingFace(new_trainer(), grouped) for grouped in (False, True)]
    for contestant in field:
        n_tokens, seen = contestant.trainer.data.train.target.lengths.sum(), 0
        while seen < n_tokens:
            seen += contestant.step()
        assert seen == n_tokens


def test_without_fast_cpu_the_same_is_learnt(new_trainer):
    ours, usual = Ours(new_trainer()), WithoutFastCpu(new_trainer())
    for contestant in (ours, usual):
        contestant.trainer.optimizers = [torch.optim.SGD(contestant.trainer.model.parameters(), lr=1e-3)]
        contestant.step()
    for a, b in zip(ours.trainer.model.parameters(), usual.trainer.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_products_are_those_of_the_model(new_trainer):
    trainer = new_trainer()
    products, config = matrix_products(trainer), trainer.model.config
    batch = trainer.data.train.batch(trainer.batches(0)[0])
    shapes, tokens = products.steps[0]
    flops = sum(2 * torch.Size(left).numel() * right[-1] for left, right in shapes)
    (B, S), T, D = batch.source.shape, batch.target.size(1), config.d_model
    encoder = 2 * B * S * (4 * D * D + 2 * D * config.d_ff) + 4 * B * S * S * D
    decoder = 2 * B * T * (4 * D * D + 2 * D * D + 2 * D * config.d_ff) + 2 * B * S * 2 * D * D
    decoder += 4 * B * T * T * D + 4 * B * T * S * D
    assert flops == encoder + decoder + 2 * tokens * D * config.vocab_size
    assert products.step() == tokens == (batch.labels >= 0).sum()


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
    assert 100 < benchmark.peak_memory_of("ours, fp32", benchmark.MEMORY_OF) < 1500


def test_generation_is_compared_on_the_same_prompts(script, load_script, trained, monkeypatch, tmp_path, training):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{source}\n\n" for source, *_ in training[:4]))
    few = [Task("one", 2, 1, 1), Task("batch", 4, 4, 1), Task("beam", 4, 4, 2)]
    monkeypatch.setattr(load_script("benchmark"), "TASKS", few)
    flags = ["--device", "cpu", "--model", trained / "model", "--input", prompts, "--rounds", 1]
    status, out, err = script("benchmark", "generation", *flags)
    assert status == 0, err
    lines = out.splitlines()
    assert [line.split()[0] for line in lines if line and "tokens/s  " in line] == ["one", "batch", "beam"]
    same = [line for line in lines if line.startswith("Hugging Face")]
    assert ["2 of 2" in same[0], "4 of 4" in same[1], "4 of 4" in same[2]] == [True] * 3
    exact = [line for line in lines if line.startswith(("ours, ctranslate2", "CTranslate2, float32"))]
    assert ["2 of 2" in exact[0], "2 of 2" in exact[1], "4 of 4" in exact[2], "4 of 4" in exact[3]] == [True] * 4


def test_agreement_counts_the_same_and_compares_their_scores():
    mine = [([1, 2], -0.5), ([3], -1.0), ([4], -2.0)]
    other = [([1, 2], -0.5), ([3], -1.25), ([5], -9.0)]
    assert agreement(mine, other) == "2 of 3, scores within 2e-01"


def test_every_contestant_of_a_device_has_a_name():
    names = [list(training_contestants(None, torch.device(kind), "bf16")) for kind in ("cpu", "cuda")]
    assert names[0][:3] == ["ours, bf16", "ours, fp32", "ours, fp32, without fast_cpu.py"]
    assert "ours, bf16, torch.compile" in names[1] and "Hugging Face, bf16, grouped" in names[1]


@pytest.mark.parametrize(
    "flags, named",
    [
        ("training --max-minutes 3", "--max-minutes"),
        ("training --output=elsewhere", "--output"),
        ("training --model model", "--model"),
        ("generation --n-layers 3", "--n-layers"),
        ("generation --model missing", "missing: "),
        (
            "training --d-model 30 --n-heads 4",
            "d_model 30 is not a multiple of n_heads 4; use 32, or another number of heads (--d-model)",
        ),
        ("", "COMMAND"),
    ],
)
def test_a_mistake_is_one_line(script, flags, named):
    status, out, err = script("benchmark", *flags.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert named in err


def test_help_names_every_flag(script):
    for command, flags in (("training", ["--pairs", "--seed", "--rounds"]), ("generation", ["--model", "--input"])):
        status, out, _ = script("benchmark", command, "--help")
        assert status == 0 and all(flag in out for flag in [*flags, "--device"])
        assert "--epochs" not in out and "--output" not in out
