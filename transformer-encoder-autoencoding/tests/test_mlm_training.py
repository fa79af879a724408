"""The training run: schedule, step, evaluation, interruption and continuation, the model that is kept."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import train_mlm
from masking import IGNORE, corrupt
from mlm.common import checkpoint
from mlm.common.distributed import Team
from mlm.common.errors import InputError
from mlm.training import learning_rate

CPU = torch.device("cpu")
NEVER = SimpleNamespace(asked=False)


class Within:
    """An interrupt in the midst of a run's step of this number, from 1."""

    def __init__(self, run, step):
        self.asked, update = False, run.update

        def interrupted(*args):
            self.asked = run.progress.step + 1 == step
            return update(*args)

        run.update = interrupted


@pytest.fixture
def new_run(monkeypatch, tmp_path, training, held_out):
    """new_run(*flags) -> a Run over the training sentences that writes to tmp_path."""

    def new(*flags, sentences=training, sizes="--d-model 16 --n-layers 1 --n-heads 2 --d-ff 32"):
        for name, lines in (("text.txt", sentences), ("held.txt", held_out)):
            (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
        files = ["--corpus", tmp_path / "text.txt", "--held-out", tmp_path / "held.txt", "--output", tmp_path]
        line = [*sizes.split(), "--batch-tokens", "48", *map(str, [*files, *flags])]
        monkeypatch.setattr(sys, "argv", ["train_mlm.py", *line])
        return train_mlm.prepare(train_mlm.parse_args(), Team(CPU))[0]

    return new


def weights(run):
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def curve(run):
    return [{name: value for name, value in r.items() if name != "seconds"} for r in run.progress.curve]


# ---- the schedule


@settings(deadline=None, max_examples=40, derandomize=True, database=None)
@given(st.integers(1, 300), st.floats(1e-9, 10))
def test_learning_rate_rises_in_equal_steps_to_its_peak(warmup, peak):
    rates = [learning_rate(step, 0.0, peak, warmup) for step in range(warmup + 5)]
    assert rates[0] == pytest.approx(peak / warmup)
    assert rates[:warmup] == pytest.approx([peak * (step + 1) / warmup for step in range(warmup)])
    assert rates[warmup:] == [peak] * 5


def test_learning_rate_falls_as_half_a_cosine_to_zero():
    rates = [learning_rate(100, done / 20, 2.0, 10) for done in range(21)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 2.0 and rates[10] == pytest.approx(1.0) and rates[20] == pytest.approx(0, abs=1e-12)
    assert learning_rate(100, 1.5, 2.0, 10) == pytest.approx(0, abs=1e-12)
    assert learning_rate(0, 0.0, 2.0, 0) == 2.0


# ---- a step


def test_a_step_follows_the_gradient_of_the_hidden_tokens_alone(new_run, monkeypatch):
    """One update is what AdamW makes of the cross-entropy at the hidden positions, clipped to norm 1."""
    run = new_run("--learning-rate", 1e-2, "--warmup-steps", 0, "--precision", "fp32")
    rows = run.plan(0)[0]
    seen = []
    monkeypatch.setattr("training.corrupt", lambda *args: seen.append(corrupt(*args)) or seen[-1])
    reference = new_run("--learning-rate", 1e-2, "--warmup-steps", 0).model
    assert same_weights(weights(run), reference.state_dict())
    run.update(rows, done=0.0)
    inputs, labels = seen[0]
    assert 0 < (labels != IGNORE).sum() < run.corpus.lengths[rows].sum() / 2

    loss = F.cross_entropy(reference(inputs).flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    torch.optim.AdamW(reference.parameters(), lr=1e-2, betas=(0.9, 0.98), weight_decay=0.01).step()
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(run.model.state_dict()[name], tensor, rtol=0, atol=1e-5)
    progress = run.progress
    assert (progress.step, progress.tokens) == (1, int(run.corpus.lengths[rows].sum()))
    assert progress.nll / progress.nll_tokens == pytest.approx(loss.item(), abs=1e-5)
    assert progress.nll_tokens == int((labels != IGNORE).sum())


def test_every_step_hides_other_tokens(new_run, monkeypatch):
    run = new_run()
    rows = run.plan(0)[0]
    seen = []
    monkeypatch.setattr("training.corrupt", lambda *args: seen.append(corrupt(*args)) or seen[-1])
    for _ in range(3):
        run.update(rows, done=0.0)
    assert not torch.equal(seen[0][1], seen[1][1]) and not torch.equal(seen[1][1], seen[2][1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_learns_one_batch_by_heart(new_run, precision):
    sizes = f"--d-model 32 --n-heads 2 --d-ff 64 --precision {precision}"
    run = new_run("--learning-rate", 1e-2, "--warmup-steps", 10, sizes=sizes)
    rows = run.plan(0)[0]
    losses = []
    for _ in range(200):
        run.progress.nll = run.progress.nll_tokens = 0
        run.update(rows, done=0.0)
        losses.append(run.progress.nll / run.progress.nll_tokens)
    assert sum(losses[:5]) / 5 > 2.5
    assert sum(losses[-40:]) / 40 < 0.5, losses[-10:]
    assert all(tensor.dtype == torch.float32 for tensor in run.model.state_dict().values())


def test_bf16_is_another_precision_and_the_same_training(new_run):
    runs = [new_run("--precision", precision, "--max-steps", 8) for precision in ("fp32", "bf16")]
    for run in runs:
        run.train(NEVER)
    losses = [run.progress.curve[-1]["train_loss"] for run in runs]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.02)


# ---- evaluation


def test_evaluation_hides_the_same_tokens_every_time_and_hides_some(new_run):
    run = new_run()
    first = list(run.held_out_batches())
    run.update(run.plan(0)[0], done=0.0)
    for (inputs, labels), (again, same_labels) in zip(first, run.held_out_batches(), strict=True):
        assert torch.equal(inputs, again) and torch.equal(labels, same_labels)
        assert ((labels != IGNORE).sum(dim=1) >= 1).all()
    assert any((inputs == 4).any() for inputs, _ in first)


def test_evaluation_hides_the_same_tokens_whatever_the_seed_and_the_batches(new_run):
    def hidden(*flags):
        windows = [
            tuple(input_ids[labels != IGNORE].tolist() + labels[labels != IGNORE].tolist())
            for batch in new_run(*flags).held_out_batches()
            for input_ids, labels in zip(*batch, strict=True)
        ]
        return sorted(windows)

    windows = hidden()
    assert len(windows) > 1
    assert hidden("--batch-tokens", 16) == hidden("--batch-tokens", 4000, "--seed", 5) == windows


@torch.no_grad()
def test_evaluation_scores_the_hidden_positions_alone_without_dropout(new_run, monkeypatch):
    run = new_run("--dropout", 0.5)
    run.model.train()
    calls = []
    monkeypatch.setattr("training.corrupt", lambda *args: calls.append(corrupt(*args)) or calls[-1])
    run.progress.nll_tokens = 1
    run.evaluate()
    run.model.eval()
    scored = [(run.model(inputs)[labels != IGNORE], labels[labels != IGNORE]) for inputs, labels in calls]
    logits, labels = (torch.cat(parts) for parts in zip(*scored, strict=True))
    record = run.progress.curve[-1]
    assert record["held_out_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-5)
    assert record["held_out_accuracy"] == (logits.argmax(dim=-1) == labels).float().mean().item()


def test_evaluation_leaves_the_model_and_its_training_as_they_are(new_run):
    """Two more evaluations change no later weight."""
    plain, watched = new_run(), new_run()
    for run in (plain, watched):
        for rows in run.plan(0):
            run.update(rows, done=0.0)
            if run is watched:
                run.evaluate()
    assert same_weights(weights(plain), weights(watched))


def evaluations(run, monkeypatch, accuracies, count=10_000):
    """Let run evaluate once for each of these accuracies over so many hidden tokens -> which one was kept,
    after each."""
    kept = []
    for step, accuracy in enumerate(accuracies):
        targets = torch.ones(1, count, dtype=torch.long)
        logits = F.one_hot((torch.arange(count) < round(accuracy * count)).long(), 2).float()
        run.held_out_batches = lambda targets=targets: [(targets, targets)]
        monkeypatch.setattr(run.model, "forward", lambda inputs, hidden, logits=logits: logits)
        next(run.model.parameters()).data.fill_(step)
        run.progress.nll_tokens = 1
        run.evaluate()
        kept.append(run.progress.kept)
        assert (next(iter(run.kept.values())) == run.progress.kept).all()
    return kept


@pytest.mark.parametrize(
    ("accuracies", "kept"),
    [
        ([0.5, 0.6, 0.7], [0, 1, 2]),  # a better one replaces
        ([0.5, 0.4], [0, 0]),  # a clearly worse one does not
        ([0.5, 0.494], [0, 1]),  # one within a standard error, 0.007 here, does
        ([0.5, 0.492], [0, 0]),
        ([0.5, 0.496, 0.492], [0, 1, 1]),  # the best counts, not the last kept: no sliding down
        ([0.5, 0.4, 0.5], [0, 0, 2]),
        ([0.0, 0.0], [0, 1]),
    ],
)
def test_of_models_that_are_equally_good_the_last_is_kept(new_run, monkeypatch, accuracies, kept):
    assert evaluations(new_run(), monkeypatch, accuracies) == kept


def test_one_token_more_or_less_says_nothing(new_run, monkeypatch):
    assert evaluations(new_run(), monkeypatch, [1.0, 0.0], count=1) == [0, 1]
    assert evaluations(new_run(), monkeypatch, [0.5, 0.0], count=4) == [0, 1]
    assert evaluations(new_run(), monkeypatch, [0.5, 0.0], count=40) == [0, 0]


def test_a_loss_that_is_not_finite_ends_the_run_with_a_remedy(new_run):
    run = new_run("--max-steps", 5)
    next(run.model.parameters()).data.fill_(math.nan)
    with pytest.raises(InputError, match=r"no longer finite at step 0.*--learning-rate"):
        run.train(NEVER)


# ---- a whole run


def test_every_pass_has_the_same_number_of_other_batches(new_run):
    run = new_run()
    plans = [run.plan(epoch) for epoch in range(4)]
    assert len({len(plan) for plan in plans}) == 1 and len(plans[0]) > 1
    assert [rows.tolist() for rows in plans[0]] != [rows.tolist() for rows in plans[1]]


def test_passes_and_steps_are_both_limits(new_run):
    batches = len(new_run().plan(0))
    run = new_run("--epochs", 2, "--max-steps", 1000)
    run.train(NEVER)
    assert (run.progress.step, run.progress.epoch, run.progress.position) == (2 * batches, 2, 0)
    assert run.progress.tokens == 2 * run.corpus.tokens
    run = new_run("--epochs", 2, "--max-steps", 3)
    run.train(NEVER)
    assert run.progress.step == 3


def test_minutes_are_a_limit(new_run):
    run = new_run("--max-minutes", 0.005)
    run.train(NEVER)
    assert run.progress.seconds >= 0.3 and run.progress.curve[-1]["step"] == run.progress.step
    assert run.optimizer.param_groups[0]["lr"] < 0.3 * 3e-3


def test_the_same_seed_gives_the_same_model_and_another_seed_another(new_run):
    runs = [new_run("--max-steps", 6, "--dropout", 0.1, "--seed", seed) for seed in (3, 3, 4)]
    for run in runs:
        torch.rand(7)  # the state that it finds does not matter
        run.train(NEVER)
    assert same_weights(weights(runs[0]), weights(runs[1]))
    assert not same_weights(weights(runs[0]), weights(runs[2]))


@pytest.mark.parametrize("steps", [1, 4, 51])
def test_an_interrupted_run_goes_on_exactly(new_run, tmp_path, steps):
    """Before and after the first evaluation, within a pass and between two: same weights, curve, choice."""
    flags = ["--max-steps", 60, "--dropout", 0.2, "--warmup-steps", 10]
    whole = new_run(*flags)
    whole.train(NEVER)
    first = new_run(*flags)
    first.train(Within(first, steps))
    assert first.progress.step == steps
    second = new_run(*flags, "--resume")
    assert second.progress == first.progress
    second.train(NEVER)
    assert same_weights(weights(second), weights(whole))
    assert same_weights(second.kept, whole.kept) and second.progress.kept == whole.progress.kept
    assert curve(second) == curve(whole) and len(curve(whole)) == 2
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == second.progress.curve


def test_what_a_resumed_run_changes_is_recorded(new_run):
    first = new_run("--max-steps", 2, "--precision", "fp32")
    first.train(NEVER)
    assert [part["from_step"] for part in first.progress.parts] == [0]
    again = new_run("--max-steps", 2, "--precision", "fp32", "--resume")
    again.train(NEVER)
    assert again.progress.parts == first.progress.parts
    longer = new_run("--max-steps", 3, "--precision", "bf16", "--resume")
    longer.train(NEVER)
    before, after = longer.progress.parts
    assert before == first.progress.parts[0]
    assert after == before | {"from_step": 2, "max_steps": 3, "precision": "bf16"}


def test_a_longer_budget_may_be_given_to_a_resumed_run(new_run):
    run = new_run("--max-steps", 3)
    run.train(NEVER)
    more = new_run("--max-steps", 7, "--resume")
    more.train(NEVER)
    assert more.progress.step == 7 and [record["step"] for record in more.progress.curve] == [3, 7]


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--d-model", 32], "d_model 16, not 32"),
        (["--n-layers", 2], "n_layers 1, not 2"),
        (["--seed", 1], "seed 0, not 1"),
        (["--learning-rate", 1e-4], "learning_rate 0.003, not 0.0001"),
        (["--mask-prob", 0.3], "mask_prob"),
        (["--batch-tokens", 50], "batch_tokens"),
        (["--tokenizer", "bpe"], r"vocabulary \['word', 30000\], not \['bpe', 8000\]"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(new_run, flags, name):
    new_run("--max-steps", 2).train(NEVER)
    with pytest.raises(InputError, match=name):
        new_run(*flags, "--resume")


def test_a_checkpoint_of_another_corpus_is_refused(new_run, training):
    new_run("--max-steps", 2).train(NEVER)
    with pytest.raises(InputError, match=r"files \['[0-9a-f]{8}…'\], not"):
        new_run("--resume", sentences=[*training, training[0]])


@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "another file"])
def test_a_damaged_checkpoint_is_refused(new_run, tmp_path, damage):
    run = new_run("--max-steps", 1)
    run.train(NEVER)
    path = tmp_path / "checkpoint.pt"
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "truncated": content[:3000], "garbage": b"\x80\x02garbage."}.get(damage, b""))
    if damage == "another file":
        torch.save([torch.zeros(3)], path)
    with pytest.raises(InputError, match="is damaged") as error:
        new_run("--resume")
    assert "checkpoint.pt" in str(error.value) and "\n" not in str(error.value)


def test_without_a_checkpoint_there_is_nothing_to_resume(new_run):
    with pytest.raises(InputError, match="no checkpoint here"):
        new_run("--resume")


def test_a_checkpoint_runs_no_code(new_run, tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "trace"), "w")

    run = new_run()
    torch.save({"identity": run.identity, "model": Trap()}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="is damaged"):
        new_run("--resume")
    assert not (tmp_path / "trace").exists()


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(new_run, tmp_path, monkeypatch):
    run = new_run("--max-steps", 1)
    run.train(NEVER)
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*.*t")}

    def full(state, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        run.save()
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*.*t")} == before


# ---- the warning about the plateau


def test_no_held_out_sentence_counts_as_recalled(script, tmp_path, training, sizes):
    """Of the cloze tests beside the text, those whose sentence was held out are left out."""
    (tmp_path / "text.txt").write_text("\n".join(training), encoding="utf-8")
    (tmp_path / "held.txt").write_text(training[0], encoding="utf-8")
    tests = [
        f"{line}\t{next(word for word in line.split() if line.split().count(word) == 1)}\tfact\n" for line in training
    ]
    (tmp_path / "text.cloze.tsv").write_text("".join(tests), encoding="utf-8")
    flags = ["--corpus", tmp_path / "text.txt", "--held-out", tmp_path / "held.txt", "--max-steps", 1]
    status, out, err = script("train_mlm", *flags, *sizes, "--output", tmp_path / "out")
    assert status == 0, err
    assert f"training sentences ({len(training) - training.count(training[0])}), key word" in out


def test_a_model_on_the_plateau_is_warned_about_and_one_beyond_it_is_not(script, tmp_path, training):
    """Held-out sentences repeat the training ones' patterns; one step leaves a model that knows nothing."""
    (tmp_path / "text.txt").write_text("\n".join(f"{line} again" for line in training), encoding="utf-8")
    (tmp_path / "held.txt").write_text("\n".join(training), encoding="utf-8")
    files = ["--corpus", tmp_path / "text.txt", "--held-out", tmp_path / "held.txt", "--output", tmp_path]
    sizes = [
        "--d-model",
        "32",
        "--n-layers",
        "1",
        "--n-heads",
        "2",
        "--d-ff",
        "64",
        "--warmup-steps",
        "10",
        "--device",
        "cpu",
    ]
    status, _, stderr = script("train_mlm", *files, *sizes, "--max-steps", 1)
    assert status == 0 and "warning: the model knows little more than how frequent" in stderr
    status, _, stderr = script("train_mlm", *files, *sizes, "--max-steps", 150, "--learning-rate", 1e-2)
    assert status == 0 and "warning" not in stderr
