"""The limits of a run, exact continuation, what a checkpoint holds, when it is refused, and what may change when a run
is resumed."""

import json
import math
from dataclasses import asdict

import pytest
import torch

import train_mlm
from mlm import bert
from mlm.common.distributed import DistributedContext
from mlm.common.errors import InputError

CPU = torch.device("cpu")
SMALL = "--d-model 16 --n-layers 1 --n-heads 2 --d-ff 32 --batch-tokens 48 --precision fp32"


class NoInterrupt:
    """An interrupt that nobody requests."""

    requested = False


class Within:
    """An interrupt during a trainer's step of this number, from 1."""

    def __init__(self, trainer, step):
        self.requested, update = False, trainer.update

        def interrupted(*args):
            self.requested = trainer.progress.step + 1 == step
            return update(*args)

        trainer.update = interrupted


@pytest.fixture
def begin(tmp_path, training, held_out):
    """begin(*flags, sentences=...) -> a trainer of a run that train_mlm.py has not begun, or resumes."""

    def make(*flags, sentences=training):
        for name, lines in (("text.txt", sentences), ("held.txt", held_out)):
            (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
        files = ["--corpus", tmp_path / "text.txt", "--held-out", tmp_path / "held.txt", "--output", tmp_path / "out"]
        config, _ = train_mlm.parse_args([*SMALL.split(), *map(str, [*files, *flags])])
        return train_mlm.build_trainer(config, DistributedContext(CPU))

    return make


def without_seconds(curve):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in curve]


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


# ---- limits


def test_passes_and_steps_are_both_limits(begin, training):
    trainer = begin("--epochs", 2, "--max-steps", 1000, sentences=[*training, "a bird eats"])  # one is padded
    trainer.train(NoInterrupt())
    progress = trainer.progress
    assert (progress.step, progress.epoch, progress.position) == (2 * len(trainer.batches(0)), 2, 0)
    assert progress.tokens == 2 * trainer.data.train.n_tokens
    trainer = begin("--epochs", 2, "--max-steps", 3)
    trainer.train(NoInterrupt())
    assert trainer.progress.step == 3


def test_minutes_are_a_limit(begin):
    trainer = begin("--max-minutes", 0.005)
    trainer.train(NoInterrupt())
    assert trainer.progress.seconds >= 0.3 and trainer.progress.curve[-1]["step"] == trainer.progress.step
    assert trainer.optimizer.param_groups[0]["lr"] < 0.3 * 3e-3


def test_a_loss_that_is_not_finite_ends_the_run(begin):
    trainer = begin("--max-steps", 5)
    next(trainer.model.parameters()).data.fill_(math.nan)
    with pytest.raises(InputError, match=r"no longer finite at step 0; lower the learning rate$") as error:
        trainer.train(NoInterrupt())
    assert error.value.setting == "learning_rate"
    assert not trainer.config.checkpoint.exists()
    with pytest.raises(InputError, match="no longer finite"):
        trainer.score_held_out()


# ---- continuation


@pytest.mark.parametrize("steps", [1, 4, 51])
def test_an_interrupted_run_continues_exactly(begin, steps):
    """Before and after the first evaluation, within a pass and between two: same weights, curve, choice."""
    flags = ["--max-steps", 60, "--dropout", 0.2, "--warmup-steps", 10]
    whole = begin(*flags)
    whole.train(NoInterrupt())
    assert [record["step"] for record in whole.progress.curve] == [50, 60]

    whole.config.checkpoint.unlink()  # the first run's is in the same place
    first = begin(*flags)
    first.train(Within(first, steps))
    assert first.progress.step == steps
    second = begin(*flags, "--resume")
    assert second.progress == first.progress
    second.train(NoInterrupt())
    assert_same_weights(second.model.state_dict(), whole.model.state_dict())
    assert_same_weights(second.kept, whole.kept)
    assert without_seconds(second.progress.curve) == without_seconds(whole.progress.curve)
    best = [trainer.progress.best.tolist() for trainer in (second, whole)]
    progress = [asdict(trainer.progress) | {"seconds": 0, "curve": 0, "best": 0} for trainer in (second, whole)]
    assert best[0] == best[1]
    assert progress[0] == progress[1]
    lines = (whole.config.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == second.progress.curve


def test_a_finished_run_continues_with_a_larger_budget_and_says_so(begin):
    first = begin("--max-steps", 2)
    first.train(NoInterrupt())
    assert [part["from_step"] for part in first.progress.parts] == [0]
    again = begin("--max-steps", 2, "--resume")
    again.train(NoInterrupt())
    assert again.progress.parts == first.progress.parts
    longer = begin("--max-steps", 7, "--precision", "bf16", "--resume")
    longer.progress.seconds = 100.0  # as if the run before had been a long one
    longer.train(NoInterrupt())
    assert 100 <= longer.progress.curve[-1]["seconds"] < 200
    assert [record["step"] for record in longer.progress.curve] == [2, 7]
    before, after = longer.progress.parts
    assert before == first.progress.parts[0]
    assert after == before | {"from_step": 2, "max_steps": 7, "precision": "bf16"}


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--d-model", 32], "d_model 16, not 32"),
        (["--n-layers", 2], "n_layers 1, not 2"),
        (["--seed", 1], "seed 0, not 1"),
        (["--learning-rate", 1e-4], "learning_rate 0.003, not 0.0001"),
        (["--mask-prob", 0.3], "mask_prob"),
        (["--batch-tokens", 50], "batch_tokens"),
        (["--tokenizer", "bpe"], r"vocabulary \['word', 30000\], not \['bpe', None\]"),
        (["--max-length", 20], "max_length 128, not 20"),
    ],
)
def test_another_run_is_not_resumed(begin, flags, name):
    begin("--max-steps", 2).train(NoInterrupt())
    with pytest.raises(InputError, match=name):
        begin(*flags, "--resume")


def test_a_run_on_another_text_is_not_resumed(begin, training):
    begin("--max-steps", 2).train(NoInterrupt())
    with pytest.raises(InputError, match=r"files \['[0-9a-f]{8}…'\], not"):
        begin("--resume", sentences=[*training, training[0]])


# ---- checkpoints


@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "another file"])
def test_a_damaged_checkpoint_is_refused(begin, damage):
    trainer = begin("--max-steps", 1)
    trainer.train(NoInterrupt())
    path = trainer.config.checkpoint
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "truncated": content[:3000], "garbage": b"\x80\x02garbage."}.get(damage, b""))
    if damage == "another file":
        torch.save([torch.zeros(3)], path)
    with pytest.raises(InputError, match=r"checkpoint\.pt: is damaged") as error:
        begin("--resume")
    assert "\n" not in str(error.value)


def test_without_a_checkpoint_there_is_nothing_to_resume(begin):
    with pytest.raises(InputError, match="no checkpoint here"):
        begin("--resume")


def test_a_checkpoint_runs_no_code(begin, tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "trace"), "w")

    trainer = begin()
    torch.save({"run_config": trainer.run_config, "model": Trap()}, trainer.config.checkpoint)
    with pytest.raises(InputError, match="is damaged"):
        begin("--resume")
    assert not (tmp_path / "trace").exists()


# ---- the model and the report


def test_the_model_has_the_weights_that_were_kept_not_the_last_ones(begin):
    trainer = begin("--max-steps", 2)
    trainer.train(NoInterrupt())
    trainer.kept = {name: weight + 1 for name, weight in trainer.kept.items()}
    train_mlm.save_model(trainer, trainer.config.output / "model")
    assert_same_weights(bert.load(trainer.config.output / "model", CPU)[0].state_dict(), trainer.kept)


def test_no_held_out_sentence_counts_as_recalled(script, tmp_path, training, sizes):
    """Of the cloze tests beside the text, those whose sentence was held out are left out."""
    (tmp_path / "text.txt").write_text("\n".join(training), encoding="utf-8")
    (tmp_path / "held.txt").write_text(training[0].replace(" ", "  "), encoding="utf-8")
    tests = [f"{line}\t{next(w for w in line.split() if line.split().count(w) == 1)}\tfact\n" for line in training]
    (tmp_path / "text.cloze.tsv").write_text("".join(tests), encoding="utf-8")
    flags = ["--corpus", tmp_path / "text.txt", "--held-out", tmp_path / "held.txt", "--max-steps", 1]
    status, out, err = script("train_mlm", *flags, *sizes, "--output", tmp_path / "out")
    assert status == 0, err
    assert f"training sentences ({len(training) - training.count(training[0])}), key word" in out


def test_a_model_on_the_plateau_is_warned_about_and_one_beyond_it_is_not(script, tmp_path, training):
    """Held-out sentences repeat the training ones' patterns; one step leaves a model that knows nothing."""
    (tmp_path / "text.txt").write_text("\n".join(f"{line} again" for line in training), encoding="utf-8")
    (tmp_path / "held.txt").write_text("\n".join(training), encoding="utf-8")
    files = ["--corpus", tmp_path / "text.txt", "--held-out", tmp_path / "held.txt"]
    files += SMALL.replace("--batch-tokens 48", "--warmup-steps 10").replace("model 16", "model 32").split()
    status, _, stderr = script("train_mlm", *files, "--output", tmp_path / "a", "--max-steps", 1)
    assert status == 0 and "warning: the model knows little more than how frequent" in stderr
    flags = "--output", tmp_path / "b", "--max-steps", 150, "--learning-rate", 1e-2
    status, _, stderr = script("train_mlm", *files, *flags)
    assert status == 0 and "warning" not in stderr
