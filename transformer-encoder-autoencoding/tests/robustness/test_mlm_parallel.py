"""Several processes train as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train_mlm
from mlm.common.distributed import DistributedContext
from mlm.common.errors import InputError

SCRIPT = Path(train_mlm.__file__)
CPU = torch.device("cpu")
ACTING = """
import os, signal, sys
sys.path.insert(0, {folder!r})
import train_mlm as script
old = script.Trainer.update
def update(self, *args):
    if self.progress.step == 3 and os.environ["RANK"] == "1":
        {act}
    return old(self, *args)
script.Trainer.update = update
script.run_script(script.main)
"""


@pytest.fixture
def flags(tmp_path, training, held_out, sizes):
    for name, lines in (("text.txt", training), ("held.txt", [*held_out, training[0], "zyx"])):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    files = ["--corpus", tmp_path / "text.txt", "--held-out", tmp_path / "held.txt"]
    return [str(flag) for flag in (*files, *sizes, "--precision", "fp32", "--batch-tokens", 40)]


def torchrun(processes, script, *flags):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    line = [sys.executable, *launch, str(script), *map(str, flags)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)


def curve(folder):
    (path,) = folder.rglob("metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_shards_are_every_member_once():
    batch = np.arange(7)
    shards = [DistributedContext(CPU, rank, 3).shard(batch) for rank in range(3)]
    assert sorted(np.concatenate(shards)) == list(batch)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert DistributedContext(CPU, 4, 5).shard(np.arange(3)).size == 0


def test_processes_hide_the_same_tokens_and_drop_different_numbers(flags, tmp_path, monkeypatch):
    seeds = []
    monkeypatch.setattr(train_mlm, "seed_all", lambda *numbers: seeds.append(numbers))
    config, _ = train_mlm.parse_args([*flags, "--output", str(tmp_path)])
    for rank in range(2):
        trainer = train_mlm.build_trainer(config, DistributedContext(CPU, rank))
        trainer.update(trainer.batches(0)[0], 0.0)
    (masks, dropout), (same_masks, other_dropout) = seeds[:2], seeds[2:]
    assert masks == same_masks and dropout != other_dropout


def test_two_processes_learn_what_one_does_and_another_number_goes_on(flags, tmp_path, script):
    one, two = tmp_path / "one", tmp_path / "two"
    name = SCRIPT.stem
    assert script(name, *flags, "--max-steps", 30, "--output", one)[0] == 0
    done = torchrun(2, SCRIPT, *flags, "--max-steps", 30, "--output", two)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("to train on") == 1 and "on 2 x cpu" in done.stdout
    assert done.stderr.count("left 1 sentences out") == done.stderr.count("left out 1 of") == 1
    for mine, theirs in zip(curve(two), curve(one), strict=True):
        for key in ("epoch", "step", "tokens"):
            assert mine[key] == theirs[key]
        for key in ("train_loss", "held_out_loss", "learning_rate"):
            assert mine[key] == pytest.approx(theirs[key], rel=2e-3)
    status, _, err = script(name, *flags, "--max-steps", 60, "--output", two, "--resume")
    assert status == 0, err
    assert [record["step"] for record in curve(two)][-1] == 60


def test_two_processes_stop_at_the_same_step_when_the_minutes_are_over(flags, tmp_path):
    done = torchrun(2, SCRIPT, *flags, "--max-minutes", 0.03, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    last = curve(tmp_path)[-1]
    assert 1.8 <= last["seconds"] < 30
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["progress"]["step"] == last["step"]


@pytest.fixture
def second_that(flags, tmp_path):
    """second_that(act, *flags) -> what becomes of a run whose second process does this in its fourth step."""

    def go(act, *more):
        acting = tmp_path / "acting.py"
        acting.write_text(ACTING.format(folder=str(SCRIPT.parent), act=act))
        return torchrun(2, acting, *flags, "--max-steps", 50, "--output", tmp_path / "out", *more)

    return go


def test_a_process_that_dies_ends_the_run_with_a_message(second_that, tmp_path):
    done = second_that("os._exit(7)")
    assert done.returncode != 0
    assert "another process of this run has ended" in done.stderr
    assert "Traceback" not in done.stderr.split("another process")[0]
    assert not (tmp_path / "out" / "model").exists()


def test_an_interrupt_of_one_process_stops_all_and_what_is_learnt_is_kept(second_that, flags, script, tmp_path):
    done = second_that("os.kill(os.getpid(), signal.SIGINT)")
    assert done.returncode != 0 and "interrupted" in done.stderr
    state = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
    assert state["progress"]["step"] == 4
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    assert script(SCRIPT.stem, *flags, "--resume", "--max-steps", 6, "--output", tmp_path / "out")[0] == 0


def test_a_loss_that_is_no_number_in_one_process_stops_all(second_that, tmp_path):
    done = second_that("next(self.model.parameters()).data.fill_(float('nan'))")
    assert done.returncode != 0
    assert done.stderr.count("the loss is no longer finite at step 3") == 2
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_a_rank_that_no_torchrun_has_set_is_none(monkeypatch):
    monkeypatch.setenv("RANK", "1")  # as some clusters do
    assert DistributedContext.join(CPU) == DistributedContext(CPU)


def test_a_process_without_a_device_of_its_own_is_refused(monkeypatch):
    for name, value in {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="more processes than GPUs; start 1"):
        DistributedContext.join(torch.device("cuda"))
    with pytest.raises(InputError, match="train on the CPU"):
        DistributedContext.join(torch.device("mps"))
