"""Training: the loss, the schedule, what the decoder reads, which weights are kept, and a run that learns its pairs."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import train
from seq2seq import Translator, marian
from seq2seq.common.budget import significantly_worse
from seq2seq.common.distributed import DistributedContext
from seq2seq.dataset import Batch, PairDataset
from seq2seq.loss import IGNORE
from seq2seq.pairs import Pair
from seq2seq.tokenizer import PAD
from train import learning_rate

CPU = torch.device("cpu")


class NoInterrupt:
    """An interrupt that nobody requests."""

    requested = False


@pytest.fixture
def begin(tmp_path, write_pairs, training, held_out, sizes):
    """begin(*flags, pairs=...) -> a trainer of a run that train.py has not begun, or resumes."""

    def make(*flags, pairs=None):
        files = ["--pairs", write_pairs(tmp_path / "pairs.tsv", pairs or training)]
        files += ["--held-out", write_pairs(tmp_path / "held.tsv", held_out), "--output", tmp_path / "out"]
        config, _ = train.parse_args(list(map(str, [*files, *sizes, "--max-steps", 60, *flags])))
        return train.build_trainer(config, DistributedContext(CPU))

    return make


# ------------------------------------------------------------------------------------ the training step


def test_the_decoder_reads_the_reference_shifted_by_one(tokenizer):
    """Teacher forcing: to predict word t the decoder reads the reference's words before t, not its own output. So
    its input is the reference moved one place to the right, behind a start token, and its labels are the
    reference itself. Padding is read as <pad>, and never scored."""
    data = PairDataset.in_memory([Pair("The cook eats", "The child"), Pair("The", "Rome is the capital")], tokenizer, 9)
    batch, pad = data.batch(np.array([1, 0])), tokenizer.token_to_id(PAD)
    ids = {text: tokenizer.encode(text).ids for text in ("The cook eats", "The child", "The", "Rome is the capital")}
    long, short = ids["Rome is the capital"], ids["The child"]
    assert batch.source.tolist() == [[*ids["The"], pad, pad], ids["The cook eats"]]
    assert batch.labels.tolist() == [long, [*short, IGNORE, IGNORE]]
    assert batch.target.tolist() == [[pad, *long[:-1]], [pad, *short, pad]]
    assert batch.source.dtype == batch.target.dtype == batch.labels.dtype == torch.int64


def test_a_batch_is_on_the_device_before_its_memory_is_freed():
    """Nothing holds the memory that it is copied from, so the copy must not go on behind the program's back."""
    copies = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default:
                copies.append(kwargs.get("non_blocking", False))
            return function(*args, **(kwargs or {}))

    with Watch():
        Batch(*torch.zeros(3, 2, 4)).to(torch.device("meta"))
    assert copies == [False] * 3


def test_a_steps_gradient_is_of_the_mean_over_target_tokens(begin, monkeypatch):
    """Padding has no part in it, nor has <pad>, which is never generated."""
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)  # it would hide the scale
    trainer = begin("--dropout", 0, "--label-smoothing", 0.2, "--learning-rate", 1e-9, "--precision", "fp32")
    everything = np.arange(len(trainer.data.train))
    batch = trainer.data.train.batch(everything)
    logits = trainer.model(batch.source, batch.target)[..., :-1].flatten(0, 1)
    F.cross_entropy(logits, batch.labels.flatten(), label_smoothing=0.2).backward()
    expected = {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.update(everything, 0.0)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-6)
    assert trainer.progress.tokens == trainer.progress.nll_tokens == int((batch.labels != IGNORE).sum())


def test_learning_rate_climbs_a_line_and_falls_to_zero():
    warm = [learning_rate(step, 0.0, 2.0, 10) for step in range(12)]
    assert warm == pytest.approx([0.2 * (step + 1) for step in range(10)] + [2.0, 2.0])
    falling = [learning_rate(100, done / 20, 2.0, 10) for done in range(21)]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] == 2.0 and falling[10] == pytest.approx(1.0)
    assert learning_rate(100, 1.0, 2.0, 10) == learning_rate(100, 1.5, 2.0, 10) == pytest.approx(0, abs=1e-12)
    assert learning_rate(0, 0.0, 2.0, 0) == 2.0


def test_warm_up_takes_at_most_a_quarter_of_the_run():
    """Twenty pairs make sixty steps; with a hundred of warm-up they would never be learnt at the full rate. Runs of
    more than four times the warm-up, as that of the defaults and those of ablations.py, have it as it is."""
    short = [learning_rate(step, step / 60, 2.0, 100) for step in range(60)]
    assert short[15] == learning_rate(15, 15 / 60, 2.0, 0) and short[:16] == sorted(short[:16])
    for steps in (435, 960):
        rates = [learning_rate(step, step / steps, 2.0, 100) for step in range(100)]
        assert rates == [(step + 1) / 100 * learning_rate(step, step / steps, 2.0, 0) for step in range(100)]


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_all_optimizers_have_the_same_rate(begin, optimizer):
    trainer = begin("--optimizer", optimizer, "--learning-rate", 0.01, "--warmup-steps", 50)
    trainer.update(trainer.batches(0)[0], 0.0)
    assert {group["lr"] for part in trainer.optimizers for group in part.param_groups} == {0.01 / 50}


def test_every_step_and_process_has_a_dropout_of_its_own(begin, monkeypatch):
    trainer, seeds = begin(), []
    monkeypatch.setattr(train, "seed_all", lambda *seed: seeds.append(seed))
    for step, rank in ((0, 0), (0, 1), (1, 0)):
        trainer.progress.step, trainer.context = step, DistributedContext(CPU, rank)
        trainer.update(trainer.batches(0)[0], 0.0)
    assert len(set(seeds)) == 3


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_model_learns_one_batch_by_heart(begin, optimizer):
    flags = ["--dropout", 0, "--label-smoothing", 0, "--learning-rate", 5e-3, "--warmup-steps", 10]
    pairs = [(f"ask {word}", f"say {word} now", "") for word in ["one", "two", "three", "four"]]
    trainer = begin(*flags, "--optimizer", optimizer, pairs=pairs)
    batch = trainer.data.train.batch(np.arange(4))
    for _ in range(80):
        trainer.update(np.arange(4), 0.0)
    with torch.no_grad():
        logits = trainer.model.eval()(batch.source, batch.target)
    assert F.cross_entropy(logits.transpose(1, 2), batch.labels, ignore_index=IGNORE) < 0.1
    assert (logits.argmax(dim=-1) == batch.labels)[batch.labels != IGNORE].all()


# --------------------------------------------------------------------------------------------- evaluation


def test_evaluation_is_the_mean_over_held_out_tokens(begin):
    trainer = begin("--max-steps", 1)
    trainer.train(NoInterrupt())
    batch = trainer.data.held_out.batch(np.arange(len(trainer.data.held_out)))
    with torch.no_grad():
        logits = trainer.model.eval()(batch.source, batch.target)[..., :-1].flatten(0, 1)
    labels = batch.labels.flatten()
    (record,) = trainer.progress.curve
    expected = float(F.cross_entropy(logits, labels, ignore_index=IGNORE))
    assert record["held_out_loss"] == pytest.approx(expected, rel=1e-4)
    right = int((logits.argmax(dim=-1) == labels).sum())
    assert record["held_out_token_accuracy"] == right / int((labels != IGNORE).sum())


def test_pad_is_no_competitor_in_evaluation(begin):
    trainer = begin()
    for bias in (0, 50):
        trainer.model.output_bias.data[-1] = bias
        trainer.progress.nll_tokens = 1
        trainer.evaluate()
    assert trainer.progress.curve[0] == trainer.progress.curve[1]


class Answers(torch.nn.Module):
    """Stands for a model that predicts a given share of the held-out tokens, and remembers which it was."""

    def __init__(self, trainer, share, mark):
        super().__init__()
        self.mark = torch.nn.Parameter(torch.tensor(float(mark)))
        (indices,) = trainer.data.held_out.batches(trainer.config.batch_tokens, 0)
        labels = trainer.data.held_out.batch(indices).labels
        scored = (labels != IGNORE).nonzero()
        right = len(scored) * share
        self.logits = torch.zeros(*labels.shape, trainer.model.config.vocab_size)
        for i, (b, t) in enumerate(scored.tolist()):
            self.logits[b, t, int(labels[b, t]) if i < right else 1] = 1.0  # <unk> is no reference's token

    def hidden_states(self, source, target):
        return self.logits

    def project(self, hidden):
        return hidden


@pytest.mark.parametrize(
    "shares, kept",
    [
        ([0.5, 0.9], 1),
        ([0.9, 0.9], 1),
        ([0.9, 0.2], 0),
        ([0.9, 0.85], 1),  # by chance, of so few tokens
        ([0.2, 0.9, 0.3], 1),
        ([0.9, 0.85, 0.6, 0.55, 0.5], 1),  # small steps down do not add up: the best is what counts
    ],
)
def test_of_equally_good_models_the_last_is_kept(begin, shares, kept):
    trainer = begin()
    models = [Answers(trainer, share, mark) for mark, share in enumerate(shares)]
    for trainer.model in models:
        trainer.progress.nll, trainer.progress.nll_tokens = 1.0, 1
        trainer.evaluate()
    curve = [record["held_out_token_accuracy"] for record in trainer.progress.curve]
    assert curve == pytest.approx(shares, abs=0.05) and len(set(curve)) == len(set(shares))
    assert trainer.progress.kept == kept
    assert float(trainer.kept["mark"]) == kept
    assert trainer.progress.best.float().mean().item() == pytest.approx(max(curve))


def test_what_is_saved_is_as_it_was_when_it_was_kept(begin, tmp_path):
    """Whatever becomes of the model in training afterwards."""
    trainer = begin()
    trainer.update(trainer.batches(0)[0], 0.0)
    trainer.evaluate()
    kept = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight += 1
    train.save_model(trainer, tmp_path / "model")
    saved = marian.load(tmp_path / "model", CPU)[0].state_dict()
    assert all(torch.equal(saved[name], kept[name]) for name in kept if name != "output_bias")
    assert torch.equal(saved["output_bias"][:-1], kept["output_bias"][:-1])


@pytest.mark.parametrize(
    ("lost", "won", "worse"),
    [(60, 0, True), (1030, 970, False), (1080, 920, True), (0, 60, False), (0, 0, False), (3, 0, False), (5, 0, True)],
)
def test_what_counts_is_which_tokens_were_lost_and_won(lost, won, worse):
    """Sixty tokens of 10,000 fewer are a clear loss if all others stay as they were, and chance if two thousand
    change (McNemar's test), though the two accuracies are the same."""
    best = torch.arange(10_000) % 2 == 0
    right = best.clone()
    right[best.nonzero()[:lost]], right[(~best).nonzero()[:won]] = False, True
    assert significantly_worse(right, best) == worse


# -------------------------------------------------------------------------------------------- a whole run


def test_a_tiny_run_learns_its_pairs_by_heart(trained, training):
    translator = Translator.load(trained / "model")
    assert translator([source for source, *_ in training]) == [target for _, target, _ in training]


def test_the_curves_of_both_precisions_agree(begin):
    curves = []
    for precision in ("fp32", "bf16"):
        trainer = begin("--precision", precision, "--max-steps", 30, "--warmup-steps", 5)
        trainer.train(NoInterrupt())
        curves.append([record["train_loss"] for record in trainer.progress.curve])
        assert trainer.progress.curve[-1]["held_out_loss"] < math.log(trainer.model.config.vocab_size)
        assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    assert curves[0] != curves[1] == pytest.approx(curves[0], rel=0.03)


def test_a_seed_repeats_and_another_differs(begin):
    states = []
    for seed in (0, 0, 1):
        trainer = begin("--max-steps", 3, "--seed", seed)
        trainer.train(NoInterrupt())
        states.append(trainer.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(*(state["embeddings.token.weight"] for state in states[1:]))
