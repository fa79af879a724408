"""Every ablation takes out what it says and nothing else, and the runs side by side leave nothing behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn

import ablations
import train_mlm
from ablations import ABLATIONS, Job, experiment
from masking import IGNORE
from mlm.common.distributed import Team
from mlm.common.experiments import table, write_results

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"```python\n(.*?@ablation.*?)```", README, re.DOTALL)[1]


@pytest.fixture
def build(tmp_path, training, held_out, sizes):
    """build(name) -> a small run without what the ablation takes out, its model in evaluation mode. All have
    the same weights, none of which has its initial value."""

    texts = {"train": [*training, "a bird eats"], "held_out": held_out}
    for file, sentences in texts.items():
        (tmp_path / f"{file}.txt").write_text("".join(f"{line}\n" for line in sentences), encoding="utf-8")
    files = [
        "--corpus",
        tmp_path / "train.txt",
        "--held-out",
        tmp_path / "held_out.txt",
        "--output",
        tmp_path,
    ]

    def make(name="default"):
        args = train_mlm.parse_args([*sizes, "--device", "cpu", *map(str, files), "--output", str(tmp_path)])
        state, _ = train_mlm.prepare(args, Team(torch.device("cpu")))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in state.model.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        ABLATIONS[name].take_out(state)
        state.model.eval()
        return state

    return make


def first_layer(state):
    return state.model.encoder.layers[0]


@pytest.fixture
def x():
    """Hidden states of two sentences, and a mask that hides the end of the second."""
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[1, ..., 4:] = False
    return torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(2)), mask


def test_without_positions_the_words_order_is_not_seen(build):
    order = torch.tensor([0, 3, 1, 5, 2, 4])
    ids = build().corpus.rows([0])[:, :6]

    def moves(state):
        return not torch.allclose(state.model(ids[:, order]), state.model(ids)[:, order], atol=1e-4)

    assert moves(build())
    assert not moves(build("no-positions"))


def test_without_positions_none_is_learnt(build):
    state = build("no-positions")
    for indices in state.plan(0):
        state.update(indices, 0.1)
    assert not state.model.encoder.embeddings.position.weight.any()


def test_without_the_scale_scores_are_larger_by_its_square_root(build, x):
    _, scaled = first_layer(build()).attention(*x, need_weights=True)
    attention = first_layer(build("no-scale")).attention
    fused, _ = attention(*x)
    heads, weights = attention(*x, need_weights=True)
    assert attention.d_k == 16
    torch.testing.assert_close(weights, (4 * scaled.log()).softmax(dim=-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fused, heads, atol=1e-5, rtol=1e-4)


def test_one_head_has_full_width_and_the_same_matrices(build, x):
    several, one = build(), build("one-head")
    assert [w.shape for w in one.model.parameters()] == [w.shape for w in several.model.parameters()]
    assert first_layer(several).attention(*x, need_weights=True)[1].shape == (2, 2, 7, 7)
    attention = first_layer(one).attention
    heads, weights = attention(*x, need_weights=True)
    q, k, v = attention.qkv(x[0]).split(32, dim=-1)
    scores = (q @ k.mT / 32**0.5).masked_fill(~x[1][:, 0], -torch.inf)
    assert weights.shape == (2, 1, 7, 7)
    torch.testing.assert_close(heads, attention.output(scores.softmax(dim=-1) @ v), atol=1e-5, rtol=1e-4)


def test_without_residual_connections_a_layer_is_its_sublayers(build, x):
    layer = first_layer(build("no-residual"))
    attended, _ = layer.attention(*x)
    expected = layer.feed_forward_norm(layer.feed_forward(layer.attention_norm(attended)))
    assert torch.equal(layer(*x)[0], expected)


def test_without_layer_norm_a_layer_is_the_plain_sums(build, x):
    state = build("no-layer-norm")
    assert not any(isinstance(module, nn.LayerNorm) for module in state.model.modules())
    layer = first_layer(state)
    middle = x[0] + layer.attention(*x)[0]
    assert torch.equal(layer(*x)[0], middle + layer.feed_forward(middle))


def test_without_feed_forward_a_layer_is_attention_and_norms(build, x):
    layer = first_layer(build("no-feed-forward"))
    middle = layer.attention_norm(x[0] + layer.attention(*x)[0])
    assert torch.equal(layer(*x)[0], layer.feed_forward_norm(middle))


def corruption(state, times=40):
    ids = state.corpus.rows(range(len(state.corpus))).repeat(times, 1)
    return ids, *state.corrupt(ids, torch.Generator().manual_seed(3))


def test_always_mask_leaves_no_random_and_no_unchanged_token(build):
    state = build("always-mask")
    ids, inputs, labels = corruption(state)
    _, usual, usual_labels = corruption(build())
    hidden = labels != IGNORE
    assert torch.equal(labels, usual_labels)
    assert (usual[hidden] != state.corpus.special.mask).any()
    assert (inputs[hidden] == state.corpus.special.mask).all()
    assert torch.equal(inputs[~hidden], ids[~hidden])


def test_all_positions_are_scored_but_padding(build):
    state = build("all-positions")
    ids, inputs, labels = corruption(state)
    padding = ids == state.corpus.special.pad
    assert padding.any()
    assert torch.equal(inputs, corruption(build())[1])
    assert torch.equal(labels, ids.masked_fill(padding, IGNORE))


def test_no_ablation_leaks_into_the_default(build):
    before = build()
    ids, *corrupted = corruption(before)
    logits = before.model(ids[:4])
    for name in ABLATIONS:
        build(name).model(ids[:4])
    for state in before, build():
        assert torch.equal(state.model(ids[:4]), logits)
        assert all(map(torch.equal, corruption(state)[1:], corrupted))


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_trains(name, build):
    state = build(name)
    before = [parameter.clone() for parameter in state.model.parameters()]
    for step in range(3):
        state.update(state.plan(0)[0], step / 3)
    assert state.progress.nll_tokens
    assert torch.tensor(state.progress.nll).isfinite()
    after = list(state.model.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    assert not all(map(torch.equal, before, after))


@pytest.mark.parametrize("name", sorted(ABLATIONS.keys() - {"default", "always-mask", "all-positions"}))
def test_every_ablation_of_the_model_changes_it(name, build):
    ids = build().corpus.rows([0, 1])
    assert not torch.allclose(build(name).model(ids), build().model(ids), atol=1e-3)


def test_a_run_that_diverges_is_told(monkeypatch):
    monkeypatch.setitem(
        ABLATIONS,
        "explosive",
        ablations.Ablation("", "", lambda state: state.model.head.decoder.bias.data.fill_(torch.inf)),
    )
    result = experiment(Job("explosive", 0, 3, "cpu"), lambda: None)
    assert result["stopped"] == 0
    assert len(result["curve"]) == 1
    assert "1, 1 diverged" in table([result], {"recall": ("recall", ".1%")})


def test_the_table_has_mean_and_range():
    results = [{"name": "a", "seed": seed, "stopped": None, "x": x} for seed, x in enumerate([0.1, 0.2, 0.6])]
    lines = table([*results, {"name": "b", "seed": 0, "stopped": None, "x": 1.0}], {"x": ("X", ".1%")})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.splitlines()]
    assert rows[0] == ["", "X", "seeds"]
    assert rows[2:] == [["a", "30.0% (10.0% to 60.0%)", "3"], ["b", "100.0%", "1"]]


def test_without_the_default_there_is_a_table_and_no_picture(tmp_path):
    some = dict.fromkeys(ablations.MEASURES, 0.5) | {"seed": 0, "stopped": None, "example": "", "curve": []}
    args = Namespace(names=[], seeds=1, epochs=1, output=tmp_path)
    ablations.write([{"name": name, **some} for name in ("no-scale", "no-positions")], args)
    assert [path.name for path in tmp_path.iterdir()] == ["ablations.md"]


def test_a_resumed_run_keeps_what_is_finished(script, tmp_path):
    """Where nothing is missing, only the table and the picture are made again."""
    some = dict.fromkeys(ablations.MEASURES, 0.5) | {"stopped": None, "example": ""}
    curve = [{"epoch": 1, **dict.fromkeys(("train_loss", "recall", "combinations"), 0.5)}]
    results = [
        {"name": name, "seed": 0, "epochs": epochs, "device": "cpu", **some, "curve": curve}
        for name in ("no-scale", "default")
        for epochs in (1, 2)
    ]
    write_results(results, tmp_path / "ablations.jsonl")
    flags = ["no-scale", "--seeds", "1", "--epochs", "2", "--device", "cpu", "--output", tmp_path, "--resume"]
    status, out, _ = script("ablations", *flags)
    assert (status, out.count("\n| ")) == (0, 4)
    assert (tmp_path / "ablations.md").exists()
    assert (tmp_path / "ablations.png").exists()
    for damage in "{", "1\n", '{"name": "default"}\n':
        (tmp_path / "ablations.jsonl").write_text(damage)
        status, _, err = script("ablations", *flags)
        assert (status, err.count("\n")) == (2, 1)
        assert "ablations.jsonl: is damaged; run without --resume" in err
        assert (tmp_path / "ablations.jsonl").read_text() == damage
    (tmp_path / "ablations.jsonl").unlink()
    status, _, err = script("ablations", *flags)
    assert (status, err.count("\n")) == (2, 1)
    assert "run without --resume first" in err


def test_a_resumed_run_keeps_what_it_was_not_asked_for(script, tmp_path, monkeypatch):
    def result(job):
        point = {"epoch": 1, **dict.fromkeys(("train_loss", "recall", "combinations"), 0.5)}
        return {
            **vars(job),
            **dict.fromkeys(ablations.MEASURES, 0.5),
            "stopped": None,
            "example": "",
            "curve": [point],
        }

    before = [ablations.Job(name, 0, 1, "cpu") for name in ("default", "no-scale")]
    other = ablations.Job("no-scale", 5, 9, "cpu")
    write_results([*map(result, before), result(other)], tmp_path / "ablations.jsonl")
    monkeypatch.setattr(ablations, "side_by_side", lambda _, jobs, *__: map(result, jobs))
    flags = ["--seeds", "2", "--epochs", "1", "--device", "cpu", "--output", tmp_path, "--resume"]
    assert script("ablations", "default", *flags)[0] == 0
    lines = (tmp_path / "ablations.jsonl").read_text().splitlines()
    found = sorted((line["name"], line["seed"], line["epochs"]) for line in map(json.loads, lines))
    assert found == [("default", 0, 1), ("default", 1, 1), ("no-scale", 0, 1), ("no-scale", 5, 9)]


def test_the_list_names_all_with_their_predictions(script):
    status, out, err = script("ablations", "--list")
    assert (status, err) == (0, "")
    for name, entry in ABLATIONS.items():
        assert f"{name}\n    takes out: {entry.removes}\n    predicted: {entry.prediction}\n" in out
        assert entry.prediction.endswith(".")
    assert len(ABLATIONS) == 9


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["no-such"], "'no-such'; there are default, no-positions, no-scale"),
        (["--seeds", "0"], "--seeds"),
        (["--epochs", "many"], "--epochs"),
    ],
)
def test_a_mistake_is_one_line(script, flags, words, tmp_path):
    status, out, err = script("ablations", *flags, "--output", tmp_path / "out")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert words in err
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_one_line(script, tmp_path):
    (tmp_path / "file").write_text("kept")
    status, out, err = script("ablations", "--output", tmp_path / "file")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert (tmp_path / "file").read_text() == "kept"


def test_the_readme_shows_the_table(folder):
    lines = (folder / "results" / "ablations.md").read_text(encoding="utf-8").splitlines()
    shown = [line for line in lines if line.startswith("|")]
    assert "\n".join(shown) in README
    assert [line.split()[1] for line in shown[2:]] == list(ABLATIONS)


def test_the_readme_adds_an_ablation(folder, command, tmp_path):
    """The example beside copies of the files, run for an epoch; the default beside it is what it is alone."""
    assert sum(line != "" for line in EXAMPLE.splitlines()) <= 10
    for file in folder.glob("*.py"):
        shutil.copy(file, tmp_path)
    shutil.copytree(folder / "data", tmp_path / "data")
    (tmp_path / "mine.py").write_text(EXAMPLE, encoding="utf-8")
    name = re.search(r"def (\w+)", EXAMPLE)[1].replace("_", "-")
    assert f"python3 mine.py {name} --output my-ablations\n" in README
    flags = [name, "--seeds", "1", "--epochs", "1", "--output", tmp_path / "out", "--device", "cpu"]
    done = command("mine.py", *flags, cwd=tmp_path, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out" / "ablations.jsonl").read_text(encoding="utf-8").splitlines()
    usual, mine = map(json.loads, lines)
    assert (usual["name"], mine["name"]) == ("default", name)
    assert mine["recall_loss"] != usual["recall_loss"]
    text = (tmp_path / "out" / "ablations.md").read_text(encoding="utf-8")
    assert text.startswith(f"`python3 mine.py {name} --seeds 1 --epochs 1`")
    assert f"\n| {name} " in done.stdout
    assert (tmp_path / "out" / "ablations.png").read_bytes()[:4] == b"\x89PNG"
    assert usual == experiment(Job("default", 0, 1, "cpu"), lambda: None)


JOBS = """
import os, sys, time
sys.path.insert(0, {folder!r})
from cli import run
from laboratory import side_by_side

def work(job, part_done):
    if job == "breaks":
        raise ValueError("broken")
    for part in range(1 if job == "short" else 10_000):
        part_done()
        time.sleep(0.02)
    return {{"job": job, "process": os.getpid()}}

def main():
    for result in side_by_side(work, {jobs!r}, 2, lambda: None):
        print(result["job"], result["process"], flush=True)

if __name__ == "__main__":
    run(main)
"""


def children(parent):
    """The ids of a process's children."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    pairs = (map(int, line.split()) for line in listed.splitlines())
    return [child for child, of in pairs if of == parent]


def there(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_processes_end_with_their_parent(folder, tmp_path, kind):
    kind = getattr(signal, kind)
    file = tmp_path / "jobs.py"
    file.write_text(JOBS.format(folder=str(folder), jobs=["short", "long", "long"]))
    line = [sys.executable, str(file)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout.readline().startswith("short ")  # what is finished is handed on at once
        team = children(parent.pid)
        assert len(team) >= 2
        if kind == signal.SIGINT:
            os.killpg(parent.pid, kind)  # as a terminal sends it: to all of them
        else:
            parent.send_signal(kind)
        parent.wait(timeout=60)
    deadline = time.monotonic() + 30
    while any(map(there, team)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_that_breaks_ends_all_with_one_line_after_its_own(folder, command, tmp_path):
    (tmp_path / "jobs.py").write_text(JOBS.format(folder=str(folder), jobs=["breaks", "long"]))
    done = command("jobs.py", cwd=tmp_path, folder=tmp_path)
    assert done.returncode == 2
    assert "ValueError: broken" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("jobs.py: a process ended before its run did")
