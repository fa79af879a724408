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
import torch.nn.functional as F

import ablations
import train
from ablations import ABLATIONS, Job, experiment
from decoding import generate
from seq2seq.common.distributed import Team
from seq2seq.common.experiments import table, write_results
from seq2seq.tokenizer import IGNORE
from transformer import Attentions

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"```python\n(.*?@ablation.*?)```", README, re.DOTALL)[1]


@pytest.fixture
def folder():
    """The folder under test."""
    return Path(__file__).parent.parent


@pytest.fixture
def build(tmp_path, training, held_out, sizes, write_pairs):
    """build(name) -> a small run without what the ablation takes out, its model in evaluation mode. All have
    the same weights, none of which has its initial value."""

    pairs, asked = (
        write_pairs(tmp_path / "pairs.tsv", training),
        write_pairs(tmp_path / "asked.tsv", held_out),
    )
    files = ["--pairs", pairs, "--held-out", asked, "--output", tmp_path]

    def make(name="default"):
        args = train.parse_args([*sizes, "--device", "cpu", *map(str, files)])
        state, _ = train.prepare(args, Team(torch.device("cpu")))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in state.model.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        ABLATIONS[name].take_out(state)
        state.model.eval()
        return state

    return make


SOURCE = torch.tensor([[5, 6, 7, 8, 0]])  # ids that are words, and </s>


def target_of(state):
    """A target as the decoder reads it: the start token, and words."""
    return torch.tensor([[state.model.config.pad_id, 9, 10, 11]])


def close(a, b):
    return torch.allclose(a, b, atol=1e-4)


def test_without_the_causal_mask_a_later_word_is_seen(build):
    for name, seen in ("default", False), ("no-causal-mask", True):
        state = build(name)
        target, other = target_of(state), target_of(state)
        other[0, 3] = 12
        before, after = state.model(SOURCE, target), state.model(SOURCE, other)
        assert close(before[:, :3], after[:, :3]) != seen
        attentions = Attentions()
        memory, _ = state.model.encode(SOURCE)
        state.model.decode(target, state.model.cache(SOURCE, memory), attentions)
        assert attentions.decoder[0].triu(1).any() == seen


def test_without_cross_attention_the_source_is_not_seen(build):
    for name, seen in ("default", True), ("no-cross-attention", False):
        state = build(name)
        target = target_of(state)
        logits = state.model(SOURCE, target)
        assert torch.equal(logits, state.model(SOURCE.flip(1) + 3, target)) != seen
        assert torch.equal(logits, state.model(SOURCE[:, 1:], target)) != seen


def test_without_cross_attention_its_sublayer_is_the_norm(build):
    layer = build("no-cross-attention").model.decoder[0]
    x = torch.randn(2, 3, 32)
    source = layer.cross_attention.keys_values(torch.randn(2, 5, 32))
    target = layer.self_attention.keys_values(x)
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    attended, _ = layer.self_attention(x, target, None)
    middle = layer.cross_attention_norm(layer.self_attention_norm(x + attended))
    expected = layer.feed_forward_norm(middle + layer.feed_forward(middle))
    assert torch.equal(layer(x, target, None, source, mask)[0], expected)


def test_without_positions_the_words_order_is_not_seen(build):
    order = torch.tensor([[2, 0, 4, 1, 3]])
    for name, seen in ("default", True), ("no-positions", False):
        state = build(name)
        moved, memory = (state.model.encode(ids)[0] for ids in (SOURCE[0, order], SOURCE))
        assert close(moved, memory[:, order[0]]) != seen
        target = target_of(state)
        assert close(state.model(SOURCE[0, order], target), state.model(SOURCE, target)) != seen
        swapped = target[:, [1, 0, 2, 3]]  # the last position sees them all, whichever is first
        assert close(state.model(SOURCE, swapped)[:, 2:], state.model(SOURCE, target)[:, 2:]) != seen


def test_without_the_scale_scores_are_larger_by_its_square_root(build):
    usual, unscaled = build().model, build("no-scale").model
    x, memory = torch.randn(2, 4, 32), torch.randn(2, 5, 32)
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    mask[1, ..., 3:] = False

    def attentions(model):
        return [
            model.encoder[0].self_attention,
            model.decoder[0].self_attention,
            model.decoder[0].cross_attention,
        ]

    for scaled, other in zip(attentions(usual), attentions(unscaled), strict=True):
        keys_values = scaled.keys_values(memory)
        _, weights = scaled(x, keys_values, mask, need_weights=True)
        heads, larger = other(x, keys_values, mask, need_weights=True)
        assert other.d_k == 16
        torch.testing.assert_close(larger, (4 * weights.log()).softmax(dim=-1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(other(x, keys_values, mask)[0], heads, atol=1e-5, rtol=1e-4)


def test_without_the_shift_the_decoder_reads_what_it_predicts(build):
    state = build("no-shift")
    batch, usual = (run.corpus.batch([0, 3, 5]) for run in (state, build()))
    padding = batch.labels == IGNORE
    assert padding.any()
    assert torch.equal(batch.source, usual.source)
    assert torch.equal(batch.labels, usual.labels)
    assert torch.equal(batch.target[~padding], batch.labels[~padding])
    assert (batch.target[padding] == state.corpus.pad_id).all()
    assert not torch.equal(usual.target, batch.target)


def test_without_label_smoothing_the_gradient_is_that_of_cross_entropy(build):
    state = build("no-label-smoothing")
    assert build().args.label_smoothing > 0
    batch = state.corpus.batch(state.plan(0)[0])
    state.model.embeddings.dropout.p = 0.0
    for layer in [*state.model.encoder, *state.model.decoder]:
        layer.dropout.p = 0.0
    logits = state.model(batch.source, batch.target)[..., :-1]  # <pad> is never predicted
    loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
    gradients = torch.autograd.grad(loss, list(state.model.parameters()))
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    state.args.precision = "fp32"
    state.update(state.plan(0)[0], 0.0)  # which leaves the gradients, clipped to a norm of 1
    for parameter, gradient in zip(state.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient / norm.clamp(min=1), atol=1e-5, rtol=1e-3)


def test_without_the_padding_mask_padding_is_seen(build):
    for name, seen in ("default", False), ("no-padding-mask", True):
        state = build(name)
        padded = F.pad(SOURCE, (0, 2), value=state.model.config.pad_id)
        target = target_of(state)
        assert close(state.model.encode(padded)[0][:, :5], state.model.encode(SOURCE)[0]) != seen
        memory, _ = state.model.encode(SOURCE)
        attentions = Attentions()
        cache = state.model.cache(padded, F.pad(memory, (0, 0, 0, 2)))
        state.model.decode(target, cache, attentions)
        assert attentions.cross[0][..., 5:].any() == seen
        assert close(state.model(padded, target), state.model(SOURCE, target)) != seen


def test_no_ablation_leaks_into_the_default(build):
    before = build()
    batch = before.corpus.batch([0, 1])
    logits = before.model(batch.source, batch.target)
    for name in ABLATIONS:
        other = build(name)
        other.model(batch.source, other.corpus.batch([0, 1]).target)
    for state in before, build():
        assert torch.equal(state.model(batch.source, batch.target), logits)
        assert all(map(torch.equal, vars(state.corpus.batch([0, 1])).values(), vars(batch).values()))
        assert state.args.label_smoothing == train.parse_args([]).label_smoothing


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_trains_and_generates(name, build):
    state = build(name)
    before = [parameter.clone() for parameter in state.model.parameters()]
    for step in range(3):
        state.update(state.plan(0)[0], step / 3)
    assert torch.tensor(state.progress.nll).isfinite()
    after = list(state.model.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    assert not all(map(torch.equal, before, after))
    assert len(generate(state.model.eval(), SOURCE, 5)[0]) == 1


def test_a_run_that_diverges_is_told(monkeypatch):
    monkeypatch.setitem(
        ABLATIONS,
        "explosive",
        ablations.Ablation("", "", lambda state: state.model.output_bias.data.fill_(torch.inf)),
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
    assert len(ABLATIONS) == 8


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["no-such"], "'no-such'; there are default, no-causal-mask, no-cross-attention"),
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
    lines = (folder / "samples" / "ablations.md").read_text(encoding="utf-8").splitlines()
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
    assert mine["train_loss"] != usual["train_loss"]
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
