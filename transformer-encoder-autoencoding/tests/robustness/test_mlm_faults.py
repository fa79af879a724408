"""Nothing is lost: a run killed at any moment and resumed ends as if it had never stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train_mlm
from mlm import bert
from mlm.common import checkpoint
from mlm.common.distributed import DistributedContext
from mlm.common.errors import InputError
from mlm.common.files import output_lock
from train_mlm import Trainer

# saves after every update, so that a kill often hits a save
EAGER = "import train_mlm; train_mlm.SAVE_SECONDS = 0; train_mlm.run_script(train_mlm.main)"
STEPS = 60
EVERY = 50  # updates from one evaluation to the next
FOLDER = Path(train_mlm.__file__).parent


@pytest.fixture
def flags(tmp_path, training, held_out, sizes):
    """flags(output) -> the command line of a short run that evaluates twice."""
    for name, lines in (("text.txt", training), ("held.txt", held_out)):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    files = ["--corpus", tmp_path / "text.txt", "--held-out", tmp_path / "held.txt"]
    common = [*files, *sizes, "--max-steps", STEPS, "--dropout", 0.2]
    return lambda output: [str(flag) for flag in (*common, "--output", output)]


def start(flags, *how):
    return subprocess.Popen(
        [sys.executable, *(how or ("-c", EAGER)), *flags],
        cwd=FOLDER,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def outcome(folder):
    """Weights, curve and figures of a finished run, without its seconds."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    curve = [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]
    figures = json.loads((folder / "metrics.json").read_text()) | {"seconds": 0}
    return load_file(folder / "model" / "model.safetensors"), curve, figures


def test_a_run_killed_again_and_again_ends_as_if_it_had_never_been(tmp_path, flags):
    kills = int(os.environ.get("KILLS", "3"))
    chance = random.Random(int(os.environ.get("KILL_SEED", "0")))
    process = start(flags(tmp_path / "whole"))
    assert process.wait() == 0, process.stderr.read()
    hit = 0
    for _ in range(20 * kills):
        resume = ["--resume"] if (tmp_path / "out" / "checkpoint.pt").exists() else []
        process = start([*flags(tmp_path / "out"), *resume])
        if hit == kills:
            assert process.wait() == 0, process.stderr.read()
            break
        saves, saved = chance.randint(1, 15), set()
        while len(saved) < saves and process.poll() is None:
            with suppress(FileNotFoundError):
                saved.add((tmp_path / "out" / "checkpoint.pt").stat().st_mtime_ns)
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))  # in the midst of a step, or of the next save
        process.send_signal(signal.SIGKILL)
        hit += process.wait() == -signal.SIGKILL
    (weights, curve, figures), expected = outcome(tmp_path / "out"), outcome(tmp_path / "whole")
    assert weights.keys() == expected[0].keys()
    assert all(torch.equal(weights[name], expected[0][name]) for name in weights)
    assert curve == expected[1] and figures == expected[2]


def test_a_finished_run_is_resumed_to_the_same_figures(tmp_path, flags, script):
    """As after a kill between the last state and the last figure."""
    assert script("train_mlm", *flags(tmp_path / "out"))[0] == 0
    expected = outcome(tmp_path / "out")
    (tmp_path / "out" / "metrics.json").unlink()
    assert script("train_mlm", *flags(tmp_path / "out"), "--resume")[0] == 0
    weights, curve, figures = outcome(tmp_path / "out")
    assert all(torch.equal(weights[name], expected[0][name]) for name in weights)
    assert (curve, figures) == expected[1:] and "parts" not in figures


def test_a_continuation_with_another_budget_is_recorded(tmp_path, flags, script):
    assert script("train_mlm", *flags(tmp_path / "out"))[0] == 0
    steps = outcome(tmp_path / "out")[2]["steps"]
    more = "--resume", "--precision", "bf16", "--max-steps"
    assert script("train_mlm", *flags(tmp_path / "out"), *more, steps)[0] == 0
    assert "parts" not in outcome(tmp_path / "out")[2]  # for nothing was done with it
    assert script("train_mlm", *flags(tmp_path / "out"), *more, steps + 1)[0] == 0
    first, second = outcome(tmp_path / "out")[2]["parts"]
    assert (first["from_step"], second["from_step"]) == (0, steps)
    assert second["max_steps"] == steps + 1 and second["precision"] == "bf16"


@pytest.fixture
def interrupted(flags, tmp_path, monkeypatch, capsys):
    """A run of which the states after steps 1 and 2 are kept: its folder, and a function that begins it again."""
    monkeypatch.setattr(train_mlm, "SAVE_SECONDS", 0)

    def begin(*more):
        config, _ = train_mlm.parse_args([*flags(tmp_path / "out"), *more])
        return train_mlm.build_trainer(config, DistributedContext(torch.device("cpu")))

    trainer = begin()

    class WithinTheSecond:
        @property
        def requested(self):
            return trainer.progress.step == 1

    trainer.train(WithinTheSecond())
    capsys.readouterr()
    return tmp_path / "out", begin


def test_the_last_two_states_are_kept(interrupted):
    folder, _ = interrupted
    steps = [
        torch.load(folder / name, weights_only=True)["progress"]["step"]
        for name in ("checkpoint.before.pt", "checkpoint.pt")
    ]
    assert steps == [1, 2]


@pytest.mark.parametrize("left", [0, 100, 0.9])
def test_a_damaged_state_falls_back_to_the_previous_one_and_says_so(interrupted, capsys, left):
    folder, begin = interrupted
    path = folder / "checkpoint.pt"
    content = path.read_bytes()
    path.write_bytes(content[: int(left * len(content)) if isinstance(left, float) else left])
    trainer = begin("--resume")
    assert trainer.progress.step == 1
    (warning,) = capsys.readouterr().err.splitlines()
    assert "checkpoint.pt: is damaged" in warning and "resuming from the previous one" in warning


def test_a_flipped_bit_is_damage(interrupted, capsys):
    folder, begin = interrupted
    content = bytearray((folder / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1  # in a weight, or a moment of the optimizer's
    (folder / "checkpoint.pt").write_bytes(content)
    assert begin("--resume").progress.step == 1
    assert "checkpoint.pt: is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("part", [{"run_config": None}, {"progress": {"unheard of": 1}}, {"model": None}])
def test_a_state_of_another_make_falls_back_as_well(interrupted, capsys, part):
    folder, begin = interrupted
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save(state | part, folder / "checkpoint.pt")
    assert begin("--resume").progress.step == 1
    assert "checkpoint.pt: is damaged" in capsys.readouterr().err


def test_a_state_that_may_not_be_read_is_not_called_damaged(interrupted, monkeypatch):
    _, begin = interrupted

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint, "ZipFile", refuse)
    with pytest.raises(PermissionError):
        begin("--resume")


def test_a_kill_between_two_renames_loses_nothing(interrupted):
    folder, begin = interrupted
    os.replace(folder / "checkpoint.pt", folder / "checkpoint.before.pt")
    trainer = begin("--resume")
    assert trainer.progress.step == 2


def test_two_damaged_states_are_refused(interrupted):
    folder, begin = interrupted
    for name in ("checkpoint.pt", "checkpoint.before.pt"):
        (folder / name).write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"checkpoint\.pt: is damaged .*run without --resume"):
        begin("--resume")


def test_a_full_disk_keeps_the_states_there_are(interrupted, monkeypatch):
    folder, _ = interrupted
    before = {path.name: path.read_bytes() for path in folder.glob("checkpoint*")}

    def fail(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match=r"No space.*checkpoint\.pt"):
        checkpoint.save(folder / "checkpoint.pt", {})
    assert {path.name: path.read_bytes() for path in folder.glob("checkpoint*")} == before


def test_what_replaces_a_file_is_on_the_disk_before(tmp_path, tiny, tokenizer, monkeypatch):
    """Else a power cut could leave an empty file in place of a whole one."""
    calls = []
    for name in "fsync", "replace":
        old = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, old=old: calls.append(name) or old(*args))
    checkpoint.save(tmp_path / "checkpoint.pt", {})
    assert calls == ["fsync", "replace"]
    calls.clear()
    bert.save(tmp_path / "model", tiny, tokenizer)
    n_files = len(list((tmp_path / "model").iterdir()))
    assert calls == ["fsync"] * n_files + ["replace"] * n_files


def test_two_runs_do_not_write_into_one_folder(flags, tmp_path, script):
    out = tmp_path / "new" / "out"
    with output_lock(out):
        status, _, err = script("train_mlm", *flags(out))
    assert status == 2 and err.splitlines()[-1].endswith(
        f"{out}: another run is writing there; wait until it ends, or name another folder (--output)"
    )
    assert not (tmp_path / "new").exists()  # it was empty


def test_a_run_that_did_not_end_is_not_overwritten_without_a_word(interrupted, capsys):
    folder, begin = interrupted
    begin()
    (warning,) = capsys.readouterr().err.splitlines()
    assert f"{folder / 'checkpoint.pt'}: overwriting the checkpoint of an unfinished run" in warning
    assert "--resume" in warning
    begin("--resume")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")  # an interrupt leaves a model, but no figures
    begin()
    assert "overwriting the checkpoint of an unfinished run" in capsys.readouterr().err
    (folder / "metrics.json").write_text("{}")  # it ended after all
    written = (folder / "checkpoint.pt").stat().st_mtime
    for age in (-1, 5, 60):  # seconds that the figures are older; the files of a copy are of any order
        os.utime(folder / "metrics.json", (written - age, written - age))
        begin()
        warning = capsys.readouterr().err
        assert ("an unfinished run" in warning, "the run that ended" in warning) == (age == 60, age < 60)


class AfterSteps:
    """Stands for Interrupt: requests to stop once a run has made some updates."""

    def __init__(self, steps):
        self.left = steps + 1

    @property
    def requested(self):
        self.left -= 1
        return self.left < 0

    def release(self):
        pass


def test_an_interrupt_before_the_first_evaluation_leaves_the_model_of_before(flags, tmp_path, script, monkeypatch):
    out = tmp_path / "out"
    assert script("train_mlm", *flags(out))[0] == 0
    before = {path: path.read_bytes() for path in (out / "model").iterdir()}
    monkeypatch.setattr(train_mlm, "Interrupt", lambda: AfterSteps(2))
    status, _, err = script("train_mlm", *flags(out), "--seed", 1)
    assert status == 130 and "model is as it was" in err.splitlines()[-1]
    assert {path: path.read_bytes() for path in (out / "model").iterdir()} == before
    status, _, err = script("train_mlm", *flags(tmp_path / "other"), "--seed", 1)
    assert status == 130 and "the model so far is in" in err.splitlines()[-1]
    assert (tmp_path / "other" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("ended", [False, True])
def test_an_early_interrupt_spares_an_earlier_run(flags, tmp_path, script, monkeypatch, ended):
    """Who has forgotten --resume, sees the warning and presses Ctrl-C, has lost nothing."""
    out = tmp_path / "out"
    if not ended:
        monkeypatch.setattr(train_mlm, "Interrupt", lambda: AfterSteps(EVERY + 2))
    assert script("train_mlm", *flags(out))[0] == (0 if ended else 130)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(train_mlm, "Interrupt", lambda: AfterSteps(2))
    status, _, err = script("train_mlm", *flags(out), "--seed", 1)
    warning, *_, last = err.splitlines()
    assert status == 130 and ("replacing the run that ended" if ended else "of an unfinished run") in warning
    assert last.endswith(f"{out / 'model'} is as it was, and so is the checkpoint beside it")
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.parent.name != "tokens"}
    assert after == {path: content for path, content in before.items() if path in after}
    assert {path.name for path in after} >= {"checkpoint.pt", "metrics.jsonl", "config.json"}
    assert script("train_mlm", *flags(out), "--resume")[0] == (0 if ended else 130)  # after two more steps


def test_an_interrupt_of_the_report_leaves_no_figures_of_another_model(flags, tmp_path, script, monkeypatch):
    out = tmp_path / "out"
    assert script("train_mlm", *flags(out))[0] == 0

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mlm.report.compare", interrupted)
    status, _, err = script("train_mlm", *flags(out), "--seed", 1)
    assert status == 130 and err.endswith(f"interrupted; the model is in {out / 'model'}; --resume writes the report\n")
    assert not (out / "metrics.json").exists()


def test_an_interrupt_evaluates_what_was_learnt_since_the_last_time(flags, tmp_path, script, monkeypatch):
    seen, evaluate = [], Trainer.evaluate
    monkeypatch.setattr(train_mlm, "Interrupt", lambda: AfterSteps(EVERY + 5))
    monkeypatch.setattr(Trainer, "evaluate", lambda trainer: (seen.append(trainer.progress.step), evaluate(trainer)))
    folder = tmp_path / "out"
    folder.mkdir(parents=True)
    for stale in ("metrics.json", "loss_curve.png"):  # as of a run before
        (folder / stale).touch()
    status, _, err = script("train_mlm", *flags(tmp_path / "out"))
    assert status == 130, err
    assert len(seen) == 2 and seen[1] > seen[0]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == seen
    assert [file.name for file in folder.iterdir() if file.suffix in (".json", ".png")] == []


def test_a_reader_who_has_left_loses_no_file(flags, tmp_path, script, monkeypatch):
    def print(*_, **__):
        raise InputError("nobody reads this")

    monkeypatch.setattr("mlm.report.print", print, raising=False)
    script("train_mlm", *flags(tmp_path / "out"))
    folder = tmp_path / "out"
    assert (folder / "metrics.json").stat().st_size and (folder / "loss_curve.png").stat().st_size


def test_a_progress_bar_that_nobody_reads_any_more_loses_no_step(flags, tmp_path, script):
    """As with `2>&1 | head -c 1`."""
    longer = "--max-steps", str(3 * EVERY)  # so that it is noticed before the end
    process = start([*flags(tmp_path / "out"), *longer], train_mlm.__file__)
    process.stderr.read(1)
    process.stderr.close()
    assert process.wait() == 1
    state = checkpoint.load(tmp_path / "out" / "checkpoint.pt")
    assert 0 < state["progress"]["step"] < 3 * EVERY  # at an evaluation, which alone writes where there is no bar
    assert script("train_mlm", *flags(tmp_path / "out"), *longer, "--resume")[0] == 0
    assert script("train_mlm", *flags(tmp_path / "whole"), *longer)[0] == 0
    (weights, *figures), (expected, *whole) = outcome(tmp_path / "out"), outcome(tmp_path / "whole")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert figures == whole


def test_a_run_that_diverges_late_still_gives_a_model(flags, tmp_path, script, monkeypatch):
    update, when = Trainer.update, [EVERY + 3]

    def diverging(trainer, *args):
        if trainer.progress.step in when:
            trainer.check_finite(float("nan"))
        return update(trainer, *args)

    monkeypatch.setattr(Trainer, "update", diverging)
    status, _, err = script("train_mlm", *flags(tmp_path / "out"))
    assert status == 2 and "--resume --max-steps 1" in err.splitlines()[-1]
    status, _, err = script("train_mlm", *flags(tmp_path / "out"), "--resume", "--max-steps", 1)
    assert status == 0, err
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    when.append(0)
    status, _, err = script("train_mlm", *flags(tmp_path / "out"), "--seed", 1)
    assert status == 2 and "--resume" not in err.splitlines()[-1]  # what is there is of another run
