"""Exact continuation: what a checkpoint holds, when it is refused, and what may change when a run is resumed."""

import json
import math
from dataclasses import asdict

import pytest
import torch

import train
from seq2seq.common import checkpoint
from seq2seq.common.distributed import DistributedContext
from seq2seq.common.errors import InputError
from seq2seq.common.progress import Progress

CPU = torch.device("cpu")


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
def begin(tmp_path, write_pairs, training, held_out, sizes):
    """begin(*flags, pairs=...) -> a trainer of a run that train.py has not begun, or resumes."""

    def make(*flags, pairs=None):
        files = ["--pairs", write_pairs(tmp_path / "pairs.tsv", pairs or training)]
        files += ["--held-out", write_pairs(tmp_path / "held.tsv", held_out), "--output", tmp_path / "out"]
        limit = [] if "--resume" in flags else ["--max-steps", 60]  # which a resumed run keeps
        config, _ = train.parse_args(list(map(str, [*files, *sizes, *limit, *flags])))
        return train.build_trainer(config, DistributedContext(CPU))

    return make


def without_seconds(curve):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in curve]


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("steps, optimizer", [(1, "adam"), (23, "muon"), (50, "adam")])
def test_an_interrupted_run_continues_exactly(begin, steps, optimizer):
    whole = begin("--optimizer", optimizer)
    whole.train(NoInterrupt())
    assert whole.progress.step == 60 and [record["step"] for record in whole.progress.curve] == [50, 60]

    first = begin("--optimizer", optimizer)
    first.train(Within(first, steps))
    assert first.progress.step == steps
    second = begin("--optimizer", optimizer, "--resume")
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


def test_a_finished_run_continues_with_a_larger_budget(begin):
    first = begin()
    first.train(NoInterrupt())
    second = begin("--max-steps", 70, "--resume")
    assert second.progress.step == 60
    second.progress.seconds = 100.0
    second.train(NoInterrupt())
    assert 100 <= second.progress.seconds < 200
    assert [record["step"] for record in second.progress.curve] == [50, 60, 70]
    before, after = second.progress.parts
    assert before == first.progress.parts[0] and before["from_step"] == 0
    assert after == before | {"from_step": 60, "max_steps": 70}


def test_training_counts_epochs_and_uses_every_pair_alike(begin, monkeypatch):
    trainer = begin("--max-steps", 1000, "--epochs", 3)
    taken = []

    def update(indices, fraction):
        taken.append(indices)
        trainer.progress.step += 1
        trainer.progress.nll_tokens += 1

    monkeypatch.setattr(trainer, "update", update)
    trainer.train(NoInterrupt())
    assert trainer.progress.epoch == 3 and trainer.progress.position == 0
    assert sum(map(len, taken)) == 3 * len(trainer.data.train)


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
        (("--tokenizer", "bpe"), None, r"vocabulary \['word', 30000\], not \['bpe', None\]"),
        (("--max-length", 20), None, "max_length 16, not 20"),
    ],
)
def test_another_run_is_not_resumed(begin, flags, pairs, name):
    first = begin()
    first.train(Within(first, 1))
    with pytest.raises(InputError, match=name):
        begin(*flags, "--resume", pairs=pairs)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_checkpoint_for_which_there_is_too_little_memory_is_not_damaged(begin, monkeypatch, error):
    """Else the advice would be to begin again, over it."""

    def fail(*_, **__):
        raise error

    trainer = begin()
    trainer.train(Within(trainer, 1))
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(InputError, match=r"checkpoint\.pt: there is too little memory"):
        begin("--resume")


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.98])
def test_a_damaged_checkpoint_is_refused(begin, kept):
    trainer = begin()
    trainer.train(Within(trainer, 1))
    path = trainer.config.checkpoint
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(InputError, match=r"checkpoint\.pt: is damaged"):
        begin("--resume")


def test_a_checkpoint_is_not_unpickled(begin):
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('unpickled')",))

    trainer = begin()
    torch.save({"run_config": trainer.run_config, "bomb": Bomb()}, trainer.config.checkpoint)
    with pytest.raises(InputError, match="is damaged"):
        begin("--resume")


def test_a_checkpoint_that_cannot_be_written_leaves_the_previous_one(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    state = {"run_config": {}, "model": {}, "optimizers": [], "progress": {"parts": [{"epochs": 1}]}}
    checkpoint.save(path, {**state, "n": 1})

    def fail(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(torch, "save", fail)
        checkpoint.save(path, {**state, "n": 2})
    assert checkpoint.load(path)["n"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_loss_that_is_not_finite_ends_the_run(begin):
    trainer = begin("--max-steps", 5)
    with torch.no_grad():
        trainer.model.decoder[0].feed_forward.inner.weight.fill_(math.nan)
    with pytest.raises(InputError, match=r"no longer finite at step 0; lower the learning rate$") as error:
        trainer.train(NoInterrupt())
    assert error.value.setting == "learning_rate"
    with pytest.raises(InputError, match="no longer finite"):
        trainer.evaluate()
    assert not trainer.config.checkpoint.exists()


def test_progress_starts_at_nothing():
    assert not any(asdict(Progress()).values())
