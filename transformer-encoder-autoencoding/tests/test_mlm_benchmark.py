"""The benchmark measures what it says: the contestants do the same work, and the products are the model's."""

import pytest
import race
import torch

import benchmark
from benchmark import HuggingFace, MatrixProducts, Ours, Plain
from mlm import contestants as benchmark_filling

SIZES = "--d-model 16 --n-heads 2 --d-ff 24 --n-layers 1 --tokenizer word --batch-tokens 2000"


@pytest.fixture
def args(monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmark.py", "--device", "cpu", *SIZES.split()])
    args = benchmark.parse_args()[1]
    args.precision = "fp32"
    return args


def test_contestants_see_every_window_once_an_epoch(args):
    field = [Ours(args), Plain(args), HuggingFace(args, grouped=False), HuggingFace(args, grouped=True)]
    for contestant in field:
        tokens = contestant.state.corpus.tokens
        seen = 0
        while seen < tokens:
            seen += contestant.step(done=0.5)
        assert seen == tokens


def test_without_fast_py_the_same_is_learnt(args, monkeypatch):
    ours, plain = Ours(args), Plain(args)
    hidden = ours.state.corrupt(ours.state.corpus.rows(ours.state.plan(0)[0]), torch.Generator())
    monkeypatch.setattr("training.Run.corrupt", lambda *_: hidden)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)
    for contestant in (ours, plain):
        contestant.step(done=0.0)
    for a, b in zip(ours.state.model.parameters(), plain.state.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_products_are_those_of_the_model(args, monkeypatch):
    hidden = []
    corrupt = Ours(args).state.corrupt
    monkeypatch.setattr("training.Run.corrupt", lambda _, *a: hidden.append(corrupt(*a)) or hidden[-1])
    products = MatrixProducts(args)
    shapes, tokens = products.steps[0]
    flops = sum(2 * torch.Size(left).numel() * right[-1] for left, right in shapes)
    config, (B, S), scored = products.state.model.config, hidden[0][0].shape, int((hidden[0][1] >= 0).sum())
    D = config.d_model
    layer = 2 * B * S * (4 * D * D + 2 * D * config.d_ff) + 4 * B * S * S * D
    assert flops == layer + 2 * scored * D * (D + config.vocab_size)
    assert products.step(done=0.5) == tokens == products.state.corpus.lengths[products.state.plan(0)[0]].sum()


def test_the_race_trains_both_and_draws(args, monkeypatch, tmp_path, capsys):
    flags = f"race.py --device cpu --minutes 0.03 --theirs 1e-4 1e-3 --output {tmp_path} {SIZES}"
    monkeypatch.setattr("sys.argv", flags.split())
    race.main()
    assert (tmp_path / "race.png").stat().st_size > 10_000
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "ours",
        *(f"Hugging Face at {r}" for r in ("0.0001", "0.001")),
    ]
    losses = [[float(loss) for loss in line.split("held-out loss ")[1].split()] for line in lines]
    assert [len(curve) for curve in losses] == [10, 10, 10]
    assert losses[0][-1] < losses[0][0]


def test_the_table(args, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark.py", "--device", "cpu", "--rounds", "1", *SIZES.split()])
    peaks = iter([101.0, 102.0, 103.0, 104.0, 105.0])
    monkeypatch.setattr(benchmark, "peak_of", lambda name: next(peaks))
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith(("ours", "Hugging Face"))]
    assert len(rows) >= 4 and all(len(row.rsplit(maxsplit=4)) == 5 for row in rows)
    assert rows[0].split()[-1] == "101" and rows[0].split()[-3] == "1.0"


def test_memory_is_of_a_process_of_its_own(args):
    assert 100 < benchmark.peak_of("ours, fp32") < 1500


def test_filling_is_compared_on_the_same_sentences(trained, monkeypatch, capsys, tmp_path):
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("Paris is the capital of France\n\nA fish lives in the sea\n")
    monkeypatch.setattr(benchmark_filling, "FILLED", 5)
    flags = ["--device", "cpu", "--model", str(trained / "model"), "--input", str(sentences), "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["benchmark.py", *flags])
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("Hugging Face")]
    assert len(rows) == 6 and all("5 of 5, probabilities within" in row for row in rows[:3])
    assert [line.split()[-1] for line in lines if line.startswith("ours")] == ["1.0", "1.0"]


@pytest.mark.parametrize(
    "module, flags, named",
    [
        (benchmark, "--max-minutes 3", "--max-minutes"),
        (benchmark, "--output=elsewhere", "--output"),
        (benchmark, "--model results/model --n-layers 3", "--n-layers has no use here beside --model"),
        (race, "--epochs 5", "--epochs"),
        (race, "--output elsewhere --resume", "--resume"),
    ],
)
def test_flags_of_training_that_would_mean_nothing_are_refused(module, flags, named, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run.py", *flags.split()])
    with pytest.raises(SystemExit, match=r"^2$"):
        module.main()
    assert named in capsys.readouterr().err
