"""The benchmark measures what it says: the contestants do the same work, and the products are the model's."""

import pytest
import torch

import benchmark
from benchmark import HuggingFace, MatrixProducts, Ours, Plain
from seq2seq import contestants as benchmark_generation
from seq2seq.contestants import Task

SIZES = "--d-model 16 --n-heads 2 --d-ff 24 --n-layers 1 --tokenizer word --batch-tokens 2000 --dropout 0"


@pytest.fixture
def args(monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmark.py", "--device", "cpu", *SIZES.split()])
    args = benchmark.parse_args()[1]
    args.precision = "fp32"
    return args


def test_contestants_see_every_pair_once_an_epoch(args):
    field = [Ours(args), Plain(args), HuggingFace(args, grouped=False), HuggingFace(args, grouped=True)]
    for contestant in field:
        tokens = contestant.state.corpus.target.lengths.sum()
        seen = 0
        while seen < tokens:
            seen += contestant.step(done=0.5)
        assert seen == tokens


def test_without_fast_py_the_same_is_learnt(args):
    ours, plain = Ours(args), Plain(args)
    for contestant in (ours, plain):
        contestant.state.optimizers = [torch.optim.SGD(contestant.state.model.parameters(), lr=1e-3)]
        contestant.step(done=0.0)
    for a, b in zip(ours.state.model.parameters(), plain.state.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_products_are_those_of_the_model(args):
    products, config = MatrixProducts(args), Ours(args).state.model.config
    batch = products.state.corpus.batch(products.state.plan(0)[0])
    shapes, tokens = products.steps[0]
    flops = sum(2 * torch.Size(left).numel() * right[-1] for left, right in shapes)
    (B, S), T, D = batch.source.shape, batch.target.size(1), config.d_model
    encoder = 2 * B * S * (4 * D * D + 2 * D * config.d_ff) + 4 * B * S * S * D
    decoder = 2 * B * T * (4 * D * D + 2 * D * D + 2 * D * config.d_ff) + 2 * B * S * 2 * D * D
    decoder += 4 * B * T * T * D + 4 * B * T * S * D
    assert flops == encoder + decoder + 2 * tokens * D * config.vocab_size
    assert products.step(done=0.5) == tokens == (batch.labels >= 0).sum()


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


def test_generation_is_compared_on_the_same_prompts(trained, monkeypatch, capsys, tmp_path, training):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{source}\n\n" for source, *_ in training[:4]))
    few = [Task("one", 2, 1, 1), Task("batch", 4, 4, 1), Task("beam", 4, 4, 2)]
    monkeypatch.setattr(benchmark_generation, "TASKS", few)
    flags = ["--device", "cpu", "--model", str(trained / "model"), "--input", str(prompts), "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["benchmark.py", *flags])
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line and "tokens/s  " in line] == ["one", "batch", "beam"]
    same = [line for line in lines if line.startswith("Hugging Face")]
    assert ["2 of 2" in same[0], "4 of 4" in same[1], "4 of 4" in same[2]] == [True] * 3
    exact = [line for line in lines if line.startswith("CTranslate2, float32")]
    assert "2 of 2" in exact[0] and "4 of 4" in exact[1]


def test_agreement_counts_the_same_and_compares_their_scores():
    mine = [([1, 2], -0.5), ([3], -1.0), ([4], -2.0)]
    other = [([1, 2], -0.5), ([3], -1.25), ([5], -9.0)]
    assert benchmark_generation.agreement(mine, other) == "2 of 3, scores within 2e-01"


@pytest.mark.parametrize(
    "flags, named",
    [
        ("--max-minutes 3", "--max-minutes"),
        ("--output=elsewhere", "--output"),
        ("--model model --n-layers 3", "--n-layers has no use here beside --model"),
    ],
)
def test_flags_of_training_that_would_mean_nothing_are_refused(flags, named, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark.py", *flags.split()])
    with pytest.raises(SystemExit, match=r"^2$"):
        benchmark.main()
    assert named in capsys.readouterr().err
