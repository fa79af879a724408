"""Training: the loss, the schedule, exact continuation, and which model is kept."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import train
from seq2seq.common import checkpoint
from seq2seq.common.checkpoint import Progress
from seq2seq.common.distributed import Team
from seq2seq.common.errors import InputError
from seq2seq.metrics import exact_match
from seq2seq.pairs import Pair
from seq2seq.tokenizer import IGNORE
from seq2seq.training import learning_rate, within_chance

CPU = torch.device("cpu")


class Never:
    """An interrupt that nobody asks for."""

    asked = False


class Within:
    """An interrupt in the midst of a run's step of this number, from 1."""

    def __init__(self, run, step):
        self.asked, update = False, run.update

        def interrupted(*args):
            self.asked = run.progress.step + 1 == step
            return update(*args)

        run.update = interrupted


@pytest.fixture
def begin(tmp_path, monkeypatch, write_pairs, training, held_out, sizes):
    """begin(*flags, pairs=...) -> a Run at its beginning, and its tokenizer."""

    def make(*flags, pairs=None):
        files = ["--pairs", write_pairs(tmp_path / "pairs.tsv", pairs or training)]
        files += ["--held-out", write_pairs(tmp_path / "held.tsv", held_out), "--output", tmp_path / "out"]
        line = ["train.py", *files, *sizes, "--max-steps", 60, *flags]
        monkeypatch.setattr("sys.argv", list(map(str, line)))
        return train.prepare(train.parse_args(), Team(CPU))

    return make


# ----------------------------------------------------------------------------- loss and schedule


def test_a_steps_gradient_is_of_the_mean_over_target_tokens(begin, monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)  # it would hide the scale
    run, _ = begin("--dropout", 0, "--label-smoothing", 0.2, "--learning-rate", 1e-9, "--precision", "fp32")
    batch = run.corpus.batch(np.arange(len(run.corpus)))
    flat = run.model(batch.source, batch.target)[..., :-1].flatten(0, 1)
    F.cross_entropy(flat, batch.labels.flatten(), label_smoothing=0.2).backward()
    expected = {name: parameter.grad.clone() for name, parameter in run.model.named_parameters()}
    run.update(np.arange(len(run.corpus)), 0.0)
    for name, parameter in run.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-6)
    tokens = int((batch.labels != IGNORE).sum())
    assert run.progress.tokens == run.progress.nll_tokens == tokens


def test_learning_rate_climbs_a_line_and_falls_to_zero():
    warm = [learning_rate(step, 0.0, 2.0, 10) for step in range(12)]
    assert warm == pytest.approx([0.2 * (step + 1) for step in range(10)] + [2.0, 2.0])
    falling = [learning_rate(100, done / 20, 2.0, 10) for done in range(21)]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] == 2.0 and falling[10] == pytest.approx(1.0)
    assert learning_rate(100, 1.0, 2.0, 10) == learning_rate(100, 1.5, 2.0, 10) == pytest.approx(0, abs=1e-12)
    assert learning_rate(0, 0.0, 2.0, 0) == 2.0


# ------------------------------------------------------------------------------------- the loop


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_model_learns_one_batch_by_heart(begin, optimizer):
    flags = ["--dropout", "0", "--label-smoothing", "0", "--learning-rate", "5e-3", "--warmup-steps", "10"]
    pairs = [(f"ask {word}", f"say {word} now", "") for word in ["one", "two", "three", "four"]]
    run, _ = begin(*flags, "--optimizer", optimizer, pairs=pairs)
    batch = run.corpus.batch(np.arange(4))
    for _ in range(80):
        run.update(np.arange(4), 0.0)
    with torch.no_grad():
        logits = run.model.eval()(batch.source, batch.target)
    assert F.cross_entropy(logits.transpose(1, 2), batch.labels, ignore_index=IGNORE) < 0.1
    assert (logits.argmax(dim=-1) == batch.labels).all()


def without_seconds(curve):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in curve]


def weights_of(run):
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("steps, optimizer", [(1, "adam"), (23, "muon"), (50, "adam")])
def test_an_interrupted_run_goes_on_exactly(begin, steps, optimizer):
    whole, _ = begin("--optimizer", optimizer)
    whole.train(Never())
    assert whole.progress.step == 60 and [record["step"] for record in whole.progress.curve] == [50, 60]

    first, _ = begin("--optimizer", optimizer)
    first.train(Within(first, steps))
    assert first.progress.step == steps
    second, _ = begin("--optimizer", optimizer, "--resume")
    second.train(Never())
    assert_same_weights(weights_of(second), weights_of(whole))
    assert_same_weights(second.kept, whole.kept)
    assert without_seconds(second.progress.curve) == without_seconds(whole.progress.curve)
    progress = [asdict(run.progress) | {"seconds": 0, "curve": 0} for run in (second, whole)]
    assert progress[0] == progress[1]
    lines = (whole.args.output / "samples" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == second.progress.curve


def test_a_finished_run_goes_on_with_a_larger_budget(begin):
    first, _ = begin()
    first.train(Never())
    second, _ = begin("--max-steps", 70, "--resume")
    assert second.progress.step == 60
    second.train(Never())
    assert [record["step"] for record in second.progress.curve] == [50, 60, 70]
    before, after = second.progress.parts
    assert before == first.progress.parts[0] and before["from_step"] == 0
    assert after == before | {"from_step": 60, "max_steps": 70}


@pytest.mark.parametrize("optimizer, n_matrices", [("adam", 0), ("muon", 5 + 8)])
def test_every_weight_has_one_optimizer_and_matrices_of_layers_have_muon(begin, optimizer, n_matrices):
    run, _ = begin("--optimizer", optimizer)
    weights = [weight for part in run.optimizers for weight in part.param_groups[0]["params"]]
    assert sorted(map(id, weights)) == sorted(map(id, run.model.parameters()))
    matrices = [weight for part in run.optimizers[1:] for weight in part.param_groups[0]["params"]]
    assert len(matrices) == n_matrices  # an encoder layer has five, a decoder layer eight
    assert all(weight.ndim == 2 and weight is not run.model.embeddings.token.weight for weight in matrices)
    run.update(run.plan(0)[0], 0.0)
    rates = {part.param_groups[0]["lr"] for part in run.optimizers}
    assert rates == {run.args.learning_rate / run.args.warmup_steps}


def test_a_seed_repeats_and_another_differs(begin):
    runs = [begin("--max-steps", 3, "--seed", seed)[0] for seed in (0, 0, 1)]
    for run in runs:
        run.train(Never())
    assert_same_weights(weights_of(runs[0]), weights_of(runs[1]))
    assert not torch.equal(runs[0].model.embeddings.token.weight, runs[2].model.embeddings.token.weight)


def test_training_counts_epochs_and_uses_every_pair_alike(begin, monkeypatch):
    run, _ = begin("--max-steps", 1000, "--epochs", 3)
    taken = []

    def update(indices, done, look):
        taken.append(indices)
        run.progress.step += 1
        run.progress.nll_tokens += 1
        return look()

    monkeypatch.setattr(run, "update", update)
    run.train(Never())
    assert run.progress.epoch == 3 and run.progress.position == 0
    assert sum(map(len, taken)) == 3 * len(run.corpus)


@pytest.mark.parametrize(
    "flags, pairs, name",
    [
        (("--d-model", 16), None, "d_model 32, not 16"),
        (("--n-layers", 2), None, "n_encoder_layers 1, not 2"),
        (("--seed", 5), None, "seed 0, not 5"),
        (("--learning-rate", 1e-4), None, "learning_rate"),
        (("--optimizer", "muon"), None, "optimizer adam, not muon"),
        (("--batch-tokens", 64), None, "batch_tokens"),
        ((), [("another corpus", "altogether", ""), ("and", "more", "")], r"files \['[0-9a-f]{8}…'\]"),
        (("--tokenizer", "bpe"), None, r"vocabulary \['word', 30000\], not \['bpe', 8000\]"),
        (("--max-length", 20), None, "max_length 16, not 20"),
    ],
)
def test_another_run_is_not_resumed(begin, flags, pairs, name):
    first, _ = begin()
    first.train(Within(first, 1))
    with pytest.raises(InputError, match=name):
        begin(*flags, "--resume", pairs=pairs)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.98])
def test_a_damaged_checkpoint_is_refused(begin, kept):
    run, _ = begin()
    run.train(Within(run, 1))
    path = run.args.output / "checkpoint.pt"
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(InputError, match=r"checkpoint\.pt: is damaged"):
        begin("--resume")


def test_references_are_compared_as_a_tokenizer_writes_them():
    pairs = [Pair("", "a  caf\u0065\u0301 ", ""), Pair("", "a Caf\u00e9", "")]
    assert exact_match(["a caf\u00e9", "a caf\u00e9"], pairs) == 0.5
    assert exact_match([], []) == 0


def test_a_pair_too_long_for_the_model_is_in_no_figure(script, tmp_path, write_pairs, training, sizes):
    """Neither among the held-out ones, whose loss it is no part of, nor among those recalled."""
    long = ("cook " * 20, "cook", "long")
    write_pairs(tmp_path / "pairs.tsv", [long, *training])
    write_pairs(tmp_path / "held.tsv", [*training[:2], ("the " * 20, "the", "long")])
    flags = ["--pairs", tmp_path / "pairs.tsv", "--held-out", tmp_path / "held.tsv", "--max-length", 16]
    status, out, err = script("train", *flags, "--output", tmp_path / "out", *sizes, "--max-steps", 1)
    assert status == 0 and "left out 1 training and 1 held-out pairs" in err
    assert len((tmp_path / "out" / "samples" / "outputs.tsv").read_text().splitlines()) == 1 + 2
    assert f"training pairs ({len(training) - 2:,})" in out and "long" not in out


def test_a_checkpoint_is_not_unpickled(tmp_path, begin):
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('unpickled')",))

    run, _ = begin()
    torch.save({"identity": run.identity, "bomb": Bomb()}, tmp_path / "out" / "checkpoint.pt")
    with pytest.raises(InputError, match="is damaged"):
        begin("--resume")


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    state = {"identity": {}, "model": {}, "optimizers": [], "progress": {}}
    checkpoint.save(path, {**state, "n": 1})

    def fail(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(torch, "save", fail)
        checkpoint.save(path, {**state, "n": 2})
    assert checkpoint.load(path)["n"] == 1
    assert list(tmp_path.iterdir()) == [path]


class Answers(torch.nn.Module):
    """Stands for a model that predicts a given share of the held-out tokens, and remembers which it was."""

    def __init__(self, run, share, mark):
        super().__init__()
        self.mark = torch.nn.Parameter(torch.tensor(float(mark)))
        (rows,) = run.held_out.plan(run.args.batch_tokens, 0)
        labels = run.held_out.batch(rows).labels
        scored = (labels != IGNORE).nonzero()
        right = len(scored) * share
        self.logits = torch.zeros(*labels.shape, run.model.config.vocab_size)
        for i, (b, t) in enumerate(scored.tolist()):
            self.logits[b, t, int(labels[b, t]) if i < right else 1] = 1.0  # <unk> is no reference's token

    def states(self, source, target):
        return self.logits

    def project(self, states):
        return states


@pytest.mark.parametrize(
    "shares, kept",
    [
        ([0.5, 0.9], 1),
        ([0.9, 0.9], 1),
        ([0.9, 0.2], 0),
        ([0.9, 0.85], 1),  # within one standard error of so few tokens
        ([0.2, 0.9, 0.3], 1),
        ([0.9, 0.85, 0.7, 0.65, 0.6], 1),  # small steps down do not add up: the best is what counts
    ],
)
def test_of_equally_good_models_the_last_is_kept(begin, shares, kept):
    run, _ = begin()
    models = [Answers(run, share, mark) for mark, share in enumerate(shares)]
    for run.model in models:
        run.progress.nll, run.progress.nll_tokens = 1.0, 1
        run.evaluate()
    curve = [record["held_out_token_accuracy"] for record in run.progress.curve]
    assert curve == pytest.approx(shares, abs=0.05) and len(set(curve)) == len(set(shares))
    assert run.progress.kept == kept
    assert float(run.kept["mark"]) == kept
    assert run.progress.best_accuracy == max(curve)


def test_within_chance_is_within_a_standard_error_and_a_token():
    assert within_chance(0.494, 0.5, 10_000) and not within_chance(0.492, 0.5, 10_000)
    assert within_chance(0.6, 0.5, 10_000)
    assert within_chance(0, 1, 1) and within_chance(0, 0.5, 4) and not within_chance(0, 0.5, 40)


def test_evaluation_is_the_mean_over_held_out_tokens(begin):
    run, _ = begin("--max-steps", 1)
    run.train(Never())
    batch = run.held_out.batch(np.arange(len(run.held_out)))
    with torch.no_grad():
        logits = run.model.eval()(batch.source, batch.target)
    flat = logits[..., :-1].flatten(0, 1)
    (record,) = run.progress.curve
    assert record["held_out_loss"] == pytest.approx(
        float(F.cross_entropy(flat, batch.labels.flatten(), ignore_index=IGNORE)), rel=1e-4
    )
    right = int((flat.argmax(dim=-1) == batch.labels.flatten()).sum())
    assert record["held_out_token_accuracy"] == right / int((batch.labels != IGNORE).sum())


def test_padding_is_no_competitor_in_evaluation(begin):
    """As in a model whose padding token has no bias that forbids it."""
    run, _ = begin()
    run.progress.nll_tokens = 1
    run.evaluate()
    run.model.output_bias.data[-1] = 50
    run.progress.nll_tokens = 1
    run.evaluate()
    assert run.progress.curve[0] == run.progress.curve[1]


def test_a_loss_that_is_no_number_ends_the_run(begin):
    run, _ = begin("--max-steps", 5)
    with torch.no_grad():
        run.model.decoder[0].feed_forward.inner.weight.fill_(math.nan)
    with pytest.raises(InputError, match="no longer finite at step 0; try a lower --learning-rate"):
        run.train(Never())
    assert not (run.args.output / "checkpoint.pt").exists()


def test_bf16_trains(begin):
    run, _ = begin("--precision", "bf16", "--max-steps", 15, "--warmup-steps", 1)
    before = weights_of(run)
    run.train(Never())
    assert math.isfinite(run.progress.curve[-1]["train_loss"])
    assert run.progress.curve[-1]["held_out_loss"] < math.log(run.model.config.vocab_size)
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())
    assert not torch.equal(run.model.embeddings.token.weight, before["embeddings.token.weight"])


def test_the_curves_of_both_precisions_agree(begin):
    curves = []
    for precision in ("fp32", "bf16"):
        run, _ = begin("--precision", precision, "--max-steps", 30, "--warmup-steps", 5)
        run.train(Never())
        curves.append([record["train_loss"] for record in run.progress.curve])
    assert curves[0] != curves[1] == pytest.approx(curves[0], rel=0.03)


def test_the_vocabulary_comes_from_the_training_pairs_alone(begin):
    run, tokenizer = begin(pairs=[("one two", "three", ""), ("four", "five", "")])
    words = set(tokenizer.get_vocab())
    assert words == {
        "</s>",
        "<unk>",
        "<pad>",
        *(f"▁{word}" for word in ["one", "two", "three", "four", "five"]),
    }
    assert run.model.config.vocab_size == len(words)


def test_a_pair_that_names_a_special_token_can_be_trained_on(begin):
    run, _ = begin("--max-steps", 1, pairs=[("a <pad> b", "c <pad> d", ""), ("e", "f </s> g", "")])
    run.train(Never())
    assert math.isfinite(run.progress.curve[-1]["train_loss"])


def test_progress_starts_at_nothing():
    assert not any(asdict(Progress()).values())
