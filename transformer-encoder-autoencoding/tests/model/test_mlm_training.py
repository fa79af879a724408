"""Training: the schedule, the step, evaluation under fixed masks, which weights are kept, and a run that learns its
sentences by heart."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import train_mlm
from masking import IGNORE
from mlm import MaskFiller
from mlm.common.budget import significantly_worse
from mlm.common.distributed import DistributedContext
from mlm.tokenizer import MASK
from train_mlm import learning_rate

CPU = torch.device("cpu")


class NoInterrupt:
    """An interrupt that nobody requests."""

    requested = False


@pytest.fixture
def begin(tmp_path, training, held_out):
    """begin(*flags) -> a trainer of a run over the training sentences that train_mlm.py has not begun."""

    def make(*flags, sizes="--d-model 16 --n-layers 1 --n-heads 2 --d-ff 32"):
        for name, lines in (("text.txt", training), ("held.txt", held_out)):
            (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
        files = ["--corpus", tmp_path / "text.txt", "--held-out", tmp_path / "held.txt", "--output", tmp_path]
        config, _ = train_mlm.parse_args([*sizes.split(), "--batch-tokens", "48", *map(str, [*files, *flags])])
        return train_mlm.build_trainer(config, DistributedContext(CPU))

    return make


@pytest.fixture
def seen(monkeypatch):
    """seen(trainer) -> a list to which every call of the trainer's corrupt adds inputs and labels."""

    def watch(trainer):
        calls, usual = [], trainer.corrupt
        trainer.corrupt = lambda *args: calls.append(usual(*args)) or calls[-1]
        return calls

    return watch


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------------------------------- the schedule


@settings(deadline=None, max_examples=40, derandomize=True, database=None)
@given(st.integers(1, 300), st.floats(1e-9, 10))
def test_learning_rate_rises_in_equal_steps_to_its_peak(warmup, peak):
    rates = [learning_rate(step, 0.0, peak, warmup) for step in range(warmup + 5)]
    assert rates[:warmup] == pytest.approx([peak * (step + 1) / warmup for step in range(warmup)])
    assert rates[warmup:] == [peak] * 5


def test_learning_rate_falls_as_half_a_cosine_to_zero():
    rates = [learning_rate(100, done / 20, 2.0, 10) for done in range(21)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 2.0 and rates[10] == pytest.approx(1.0) and rates[20] == pytest.approx(0, abs=1e-12)
    assert learning_rate(100, 1.5, 2.0, 10) == pytest.approx(0, abs=1e-12)
    assert learning_rate(0, 0.0, 2.0, 0) == 2.0


def test_warm_up_takes_at_most_a_quarter_of_the_run():
    """Twenty sentences make sixty steps; with a hundred of warm-up they would never be learnt at the full rate. Runs of
    more than four times the warm-up, as that of the defaults and those of ablations.py, have it as it is."""
    short = [learning_rate(step, step / 60, 2.0, 100) for step in range(60)]
    assert short[15] == learning_rate(15, 15 / 60, 2.0, 0) and short[:16] == sorted(short[:16])
    for steps in (700, 1800):
        rates = [learning_rate(step, step / steps, 2.0, 100) for step in range(100)]
        assert rates == [(step + 1) / 100 * learning_rate(step, step / steps, 2.0, 0) for step in range(100)]


# --------------------------------------------------------------------------------------------- the step


def test_a_step_follows_the_gradient_of_the_hidden_tokens_alone(begin, seen):
    """One update is what AdamW makes of the cross-entropy at the hidden positions, clipped to norm 1. The other
    positions, which the model could simply copy, have no part in it."""
    trainer = begin("--learning-rate", 1e-2, "--warmup-steps", 0, "--precision", "fp32")
    indices, calls = trainer.batches(0)[0], seen(trainer)
    reference = begin("--learning-rate", 1e-2, "--warmup-steps", 0).model
    assert same_weights(weights(trainer), reference.state_dict())
    trainer.update(indices, 0.0)
    inputs, labels = calls[0]
    n_tokens = int(trainer.data.train.sequences.lengths[indices].sum())
    assert 0 < (labels != IGNORE).sum() < n_tokens / 2

    loss = F.cross_entropy(reference(inputs).flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    kept = "norm", "bias"  # BERT's decay leaves these out
    decayed = [weight for name, weight in reference.named_parameters() if not any(part in name for part in kept)]
    others = [weight for name, weight in reference.named_parameters() if any(part in name for part in kept)]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98))
    optimizer.step()
    for mine, theirs in zip(trainer.optimizer.param_groups, optimizer.param_groups, strict=True):
        assert all(mine[name] == theirs[name] for name in ("betas", "eps"))  # a first step does not show them
    for name, weight in reference.named_parameters():
        # a key's bias changes no softmax: its gradient is zero but for rounding, which Adam would blow up
        certain = (weight.grad == 0) | (weight.grad.abs() > 1e-7)
        assert certain.all() or (name.endswith("qkv.bias") and certain.sum() >= 2 / 3 * len(certain))
        torch.testing.assert_close(trainer.model.state_dict()[name][certain], weight[certain], rtol=0, atol=1e-5)
    progress = trainer.progress
    assert (progress.step, progress.tokens) == (1, n_tokens)
    assert progress.nll / progress.nll_tokens == pytest.approx(loss.item(), abs=1e-5)
    assert progress.nll_tokens == int((labels != IGNORE).sum())


def test_every_step_hides_other_tokens(begin, seen):
    trainer = begin()
    calls = seen(trainer)
    for _ in range(3):
        trainer.update(trainer.batches(0)[0], 0.0)
    (_, first), (_, second), (_, third) = calls
    assert not torch.equal(first, second) and not torch.equal(second, third)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_learns_one_batch_by_heart(begin, precision):
    sizes = f"--d-model 32 --n-heads 2 --d-ff 64 --precision {precision}"
    trainer = begin("--learning-rate", 1e-2, "--warmup-steps", 10, sizes=sizes)
    losses = []
    for _ in range(200):
        trainer.progress.nll = trainer.progress.nll_tokens = 0
        trainer.update(trainer.batches(0)[0], 0.0)
        losses.append(trainer.progress.nll / trainer.progress.nll_tokens)
    assert sum(losses[:5]) / 5 > 2.5
    assert sum(losses[-40:]) / 40 < 0.5, losses[-10:]
    assert all(tensor.dtype == torch.float32 for tensor in trainer.model.state_dict().values())


# ------------------------------------------------------------------------------------------- evaluation


def test_evaluation_hides_the_same_tokens_every_time_and_hides_some(begin):
    """Otherwise a better loss could be luck: easier tokens were hidden. And with nothing hidden, the model would
    only have to copy."""
    trainer = begin()
    first = list(trainer.held_out.batches(48))
    trainer.update(trainer.batches(0)[0], 0.0)
    for (inputs, labels), (again, same_labels) in zip(first, trainer.held_out.batches(48), strict=True):
        assert torch.equal(inputs, again) and torch.equal(labels, same_labels)
        assert ((labels != IGNORE).sum(dim=1) >= 1).all()
    assert any((inputs == trainer.data.train.special.mask).any() for inputs, _ in first)


def test_evaluation_hides_the_same_tokens_whatever_the_seed_and_the_batches(begin):
    def hidden(batch_tokens, *flags):
        windows = [
            tuple(input_ids[labels != IGNORE].tolist() + labels[labels != IGNORE].tolist())
            for batch in begin(*flags).held_out.batches(batch_tokens)
            for input_ids, labels in zip(*batch, strict=True)
        ]
        return sorted(windows)

    windows = hidden(48)
    assert len(windows) > 1
    assert hidden(16) == hidden(4000, "--seed", 5) == windows


@torch.no_grad()
def test_evaluation_scores_the_hidden_positions_alone_without_dropout(begin, seen):
    trainer = begin("--dropout", 0.5)
    trainer.model.train()
    calls = seen(trainer)
    trainer.progress.nll_tokens = 1
    trainer.evaluate()
    trainer.model.eval()
    scored = [(trainer.model(inputs)[labels != IGNORE], labels[labels != IGNORE]) for inputs, labels in calls]
    logits, labels = (torch.cat(parts) for parts in zip(*scored, strict=True))
    (record,) = trainer.progress.curve
    assert record["held_out_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-5)
    assert record["held_out_token_accuracy"] == (logits.argmax(dim=-1) == labels).float().mean().item()


def test_evaluation_leaves_the_model_and_its_training_as_they_are(begin):
    """Two more evaluations change no later weight."""
    usual, watched = begin(), begin()
    for trainer in (usual, watched):
        for indices in trainer.batches(0):
            trainer.update(indices, 0.0)
            if trainer is watched:
                trainer.evaluate()
    assert same_weights(weights(usual), weights(watched))


@pytest.mark.parametrize(
    ("accuracies", "kept"),
    [
        ([0.5, 0.6, 0.7], [0, 1, 2]),  # a better one replaces
        ([0.5, 0.4], [0, 0]),  # a clearly worse one does not
        ([0.5, 0.4997], [0, 1]),  # three tokens of 10,000 fewer does
        ([0.5, 0.4995], [0, 0]),
        ([0.5, 0.4997, 0.4995], [0, 1, 1]),  # the best counts, not the last kept: no sliding down
        ([0.5, 0.4, 0.5], [0, 0, 2]),
        ([0.0, 0.0], [0, 1]),
    ],
)
def test_of_models_that_are_equally_good_the_last_is_kept(begin, monkeypatch, accuracies, kept):
    trainer, kept_after_each = begin(), []
    for step, accuracy in enumerate(accuracies):
        monkeypatch.setattr(
            trainer, "score_held_out", lambda accuracy=accuracy: (1.0, torch.arange(10_000) < 10_000 * accuracy)
        )
        next(trainer.model.parameters()).data.fill_(step)
        trainer.progress.nll_tokens = 1
        trainer.evaluate()
        kept_after_each.append(trainer.progress.kept)
        assert (next(iter(trainer.kept.values())) == trainer.progress.kept).all()
    assert kept_after_each == kept


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


# ------------------------------------------------------------------------------------------ a whole run


def test_a_tiny_run_learns_its_sentences_by_heart(trained, training):
    """Each sentence with its third word hidden: the model, whose weights were random 300 steps before, knows it."""
    hidden = [" ".join([*line.split()[:2], MASK, *line.split()[3:]]) for line in training]
    answers = MaskFiller.load(trained / "model", "cpu")(hidden, top_k=1)
    right = [masks[0][0]["token"] == line.split()[2] for masks, line in zip(answers, training, strict=True)]
    assert sum(right) >= 14, answers


def test_bf16_is_another_precision_and_the_same_training(begin):
    trainers = [begin("--precision", precision, "--max-steps", 8) for precision in ("fp32", "bf16")]
    for trainer in trainers:
        trainer.train(NoInterrupt())
    losses = [trainer.progress.curve[-1]["train_loss"] for trainer in trainers]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_seed_repeats_and_another_differs(begin):
    trainers = [begin("--max-steps", 6, "--dropout", 0.1, "--seed", seed) for seed in (3, 3, 4)]
    for trainer in trainers:
        torch.rand(7)  # the state of the generator that it finds does not matter
        trainer.train(NoInterrupt())
    assert same_weights(weights(trainers[0]), weights(trainers[1]))
    assert not same_weights(weights(trainers[0]), weights(trainers[2]))


def test_every_pass_has_the_same_number_of_other_batches(begin):
    trainer = begin()
    passes = [trainer.batches(epoch) for epoch in range(4)]
    assert len({len(batches) for batches in passes}) == 1 and len(passes[0]) > 1
    assert [indices.tolist() for indices in passes[0]] != [indices.tolist() for indices in passes[1]]
