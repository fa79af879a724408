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

import numpy as np
import pytest
import torch
from mlm_reference import torch_layer
from torch import nn

import train_mlm
from encoder import EncoderLayer
from masking import IGNORE
from mlm.common import experiments
from mlm.common.distributed import DistributedContext
from mlm.common.experiments import Ablation, Job, table, write_results
from mlm.common.files import output_lock

FOLDER = Path(__file__).parents[2]
LAB = (FOLDER / "LAB.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"```python\n(.*?@study.ablation.*?)```", LAB, re.DOTALL)[1]
NAMES = [
    "default",
    "no-positions",
    "no-scale",
    "one-head",
    "no-residual",
    "no-layer-norm",
    "no-feed-forward",
    "always-mask",
    "all-positions",
]
EXCHANGES = ["pre-norm", "relative-positions"]  # run only if they are named


@pytest.fixture
def ablations(load_script):
    """The module ablations.py."""
    return load_script("ablations")


@pytest.fixture
def build(ablations, tmp_path, training, held_out, sizes):
    """build(name) -> a small trainer without what the ablation takes out, its model in evaluation mode. All have
    the same weights, none of which has its initial value."""

    texts = {"train": [*training, "a bird eats"], "held_out": held_out}
    for file, sentences in texts.items():
        (tmp_path / f"{file}.txt").write_text("".join(f"{line}\n" for line in sentences), encoding="utf-8")
    files = ["--corpus", tmp_path / "train.txt", "--held-out", tmp_path / "held_out.txt", "--output", tmp_path]
    config, _ = train_mlm.parse_args([*sizes, *map(str, files)])

    def make(name="default"):
        trainer = train_mlm.build_trainer(config, DistributedContext(torch.device("cpu")))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        ablations.study.ablations[name].apply(trainer)
        trainer.model.eval()
        return trainer

    return make


def first_layer(trainer):
    return trainer.model.encoder.layers[0]


@pytest.fixture
def x():
    """Hidden states of two sentences, and a mask that hides the end of the second."""
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[1, ..., 4:] = False
    return torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(2)), mask


def test_without_positions_the_words_order_is_not_seen(build):
    order = torch.tensor([0, 3, 1, 5, 2, 4])
    ids = build().data.train.batch([0])[:, :6]

    def moves(trainer):
        return not torch.allclose(trainer.model(ids[:, order]), trainer.model(ids)[:, order], atol=1e-4)

    assert moves(build())
    assert not moves(build("no-positions"))


def test_without_positions_none_is_learnt(build):
    trainer = build("no-positions")
    for indices in trainer.batches(0):
        trainer.update(indices, 0.1)
    assert not trainer.model.encoder.embeddings.position.weight.any()


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
    trainer = build("no-layer-norm")
    assert not any(isinstance(module, nn.LayerNorm) for module in trainer.model.modules())
    layer = first_layer(trainer)
    middle = x[0] + layer.attention(*x)[0]
    assert torch.equal(layer(*x)[0], middle + layer.feed_forward(middle))


def test_without_feed_forward_a_layer_is_attention_and_norms(build, x):
    layer = first_layer(build("no-feed-forward"))
    middle = layer.attention_norm(x[0] + layer.attention(*x)[0])
    assert torch.equal(layer(*x)[0], layer.feed_forward_norm(middle))


def test_pre_norm_is_pytorchs(build):
    """The stack equals torch.nn's with norm_first=True and the same weights."""
    trainer = build("pre-norm")
    model, ids = trainer.model.double(), trainer.data.train.batch([0, 1, 15])
    padding = ids == trainer.data.train.special.pad
    assert padding.any()
    norm = model.encoder.last_norm
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    expected = model.encoder.embeddings(ids)
    for layer in model.encoder.layers:
        expected = torch_layer(layer, model.config, norm_first=True)(expected, src_key_padding_mask=padding)
    found, _ = model.encoder(ids)
    torch.testing.assert_close(found[~padding], norm(expected)[~padding], rtol=0, atol=1e-10)


def test_relative_attention_is_that_of_shaw_and_others(build, x, monkeypatch):
    """Term by term, with distances to both sides, some of them clipped."""
    monkeypatch.setattr("mlm.relative_attention.CLIP", 3)
    layer = first_layer(build("relative-positions")).attention
    hidden, mask = x
    heads, weights = layer(hidden, mask)
    q, k, v = (part.view(2, 7, 2, 16) for part in layer.qkv(hidden).split(32, dim=-1))  # (B, S, H, K)
    expected = torch.zeros(2, 7, 2, 16)
    for b in range(2):
        for h in range(2):
            for i in range(7):
                seen = [j for j in range(7) if mask[b, 0, 0, j]]
                places = [min(max(j - i, -3), 3) + 3 for j in seen]
                keys = [k[b, j, h] + layer.key_distance.weight[p] for j, p in zip(seen, places, strict=True)]
                values = [v[b, j, h] + layer.value_distance.weight[p] for j, p in zip(seen, places, strict=True)]
                shares = torch.stack([q[b, i, h] @ key / 16**0.5 for key in keys]).softmax(dim=0)
                torch.testing.assert_close(weights[b, h, i, seen], shares, atol=1e-5, rtol=1e-4)
                expected[b, i, h] = sum(share * value for share, value in zip(shares, values, strict=True))
    torch.testing.assert_close(heads, layer.output(expected.flatten(2)), atol=1e-5, rtol=1e-4)


def test_relative_attention_without_distances_is_the_usual_one(build, x):
    relative, usual = (first_layer(build(name)).attention for name in ("relative-positions", "default"))
    assert not torch.allclose(relative(*x)[0], usual(*x)[0], atol=1e-3)
    for vectors in relative.key_distance, relative.value_distance:
        nn.init.zeros_(vectors.weight)
    for found, expected in zip(relative(*x), usual(*x, need_weights=True), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_relative_positions_see_the_words_order_and_no_place(build):
    """Further on in a row, behind padding, a sentence is read as at its beginning."""
    ids, order = build().data.train.batch([0])[:, :6], torch.tensor([0, 3, 1, 5, 2, 4])
    for name, same in ("default", False), ("relative-positions", True):
        trainer = build(name)
        later = torch.cat([torch.full((1, 3), trainer.data.train.special.pad), ids], dim=1)
        assert torch.allclose(trainer.model(later)[:, 3:], trainer.model(ids), atol=1e-4) == same
        assert not torch.allclose(trainer.model(ids[:, order]), trainer.model(ids)[:, order], atol=1e-2)


def test_the_weights_of_an_exchange_are_trained(ablations, tmp_path):
    for name in EXCHANGES:
        trainer = ablations.prepare(Job(name, 0, 1, "cpu"), tmp_path)
        before = {name: weight.clone() for name, weight in trainer.model.named_parameters() if weight.requires_grad}
        trainer.update(trainer.batches(0)[0], 0.5)
        after = dict(trainer.model.named_parameters())
        assert [name for name, weight in before.items() if torch.equal(weight, after[name])] == []


def corruption(trainer, times=40):
    ids = trainer.data.train.batch(np.arange(len(trainer.data.train))).repeat(times, 1)
    return ids, *trainer.corrupt(ids, torch.Generator().manual_seed(3))


def test_always_mask_leaves_no_random_and_no_unchanged_token(build):
    trainer = build("always-mask")
    ids, inputs, labels = corruption(trainer)
    _, usual, usual_labels = corruption(build())
    hidden = labels != IGNORE
    assert torch.equal(labels, usual_labels)
    assert (usual[hidden] != trainer.data.train.special.mask).any()
    assert (inputs[hidden] == trainer.data.train.special.mask).all()
    assert torch.equal(inputs[~hidden], ids[~hidden])


def test_all_positions_are_scored_but_padding(build):
    trainer = build("all-positions")
    ids, inputs, labels = corruption(trainer)
    padding = ids == trainer.data.train.special.pad
    assert padding.any()
    assert torch.equal(inputs, corruption(build())[1])
    assert torch.equal(labels, ids.masked_fill(padding, IGNORE))


def test_an_ablation_of_what_is_no_longer_there_fails(ablations, build, monkeypatch):
    """What an ablation exchanges must be there, under its name: else it would take out nothing, without a word."""
    trainer = build()
    for name, owner, part in (
        ("one-head", trainer.model.encoder.layers[0].attention, "n_heads"),
        ("always-mask", trainer, "corrupt"),
    ):
        delattr(owner, part)
        with pytest.raises(AttributeError, match=part):
            ablations.study.ablations[name].apply(trainer)
    trainer = build()
    with monkeypatch.context() as patch:
        patch.setattr(EncoderLayer, "forward", lambda self, x, padding, mask, need_weights=False: (x, None))
        with pytest.raises(TypeError, match=r"EncoderLayer\.forward takes .*'padding'"):
            ablations.study.ablations["no-residual"].apply(trainer)


def test_no_ablation_leaks_into_the_default(build):
    before = build()
    ids, *corrupted = corruption(before)
    logits = before.model(ids[:4])
    for name in [*NAMES, *EXCHANGES]:
        build(name).model(ids[:4])
    for trainer in before, build():
        assert torch.equal(trainer.model(ids[:4]), logits)
        assert all(map(torch.equal, corruption(trainer)[1:], corrupted))


@pytest.mark.parametrize("name", [*NAMES, *EXCHANGES])
def test_every_ablation_trains(name, build):
    trainer = build(name)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    for step in range(3):
        trainer.update(trainer.batches(0)[0], step / 3)
    assert trainer.progress.nll_tokens
    assert torch.tensor(trainer.progress.nll).isfinite()
    after = list(trainer.model.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    assert not all(map(torch.equal, before, after))


@pytest.mark.parametrize(
    "name", [*(name for name in NAMES[1:] if name not in ("always-mask", "all-positions")), *EXCHANGES]
)
def test_every_ablation_of_the_model_changes_it(name, build):
    ids = build().data.train.batch([0, 1])
    assert not torch.allclose(build(name).model(ids), build().model(ids), atol=1e-3)


def test_a_point_of_the_curve_is_of_the_batches_since_the_last_one(ablations, build, monkeypatch):
    """Every pass has batches of its own. The number of the pass stands for the loss of each of its tokens."""
    trainer, asked = build(), []
    progress, batches = trainer.progress, trainer.batches

    def update(*_):
        progress.nll, progress.nll_tokens = progress.nll + asked[-1], progress.nll_tokens + 1

    monkeypatch.setattr(trainer, "batches", lambda epoch: asked.append(epoch) or batches(epoch))
    monkeypatch.setattr(trainer, "update", update)
    curve, stopped = ablations.learn(trainer, 3, lambda _: {}, lambda: None)
    assert asked[-3:] == [0, 1, 2] and stopped is None
    assert curve == [{"epoch": epoch + 1, "train_loss": epoch} for epoch in asked[-3:]]


def test_a_run_that_diverges_is_told(ablations, monkeypatch):
    explode = Ablation("", "", lambda trainer: trainer.model.head.decoder.bias.data.fill_(torch.inf))
    monkeypatch.setitem(ablations.study.ablations, "explosive", explode)
    result = ablations.experiment(Job("explosive", 0, 3, "cpu"), lambda: None)
    assert result["stopped"] == 0
    assert len(result["curve"]) == 1
    assert "1, 1 diverged" in table([result], {"recall": ("recall", ".1%")})


def test_the_table_has_mean_and_range():
    results = [{"name": "a", "seed": seed, "stopped": None, "x": x} for seed, x in enumerate([0.1, 0.2, 0.6])]
    lines = table([*results, {"name": "b", "seed": 0, "stopped": None, "x": 1.0}], {"x": ("X", ".1%")})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.splitlines()]
    assert rows[0] == ["", "X", "seeds"]
    assert rows[2:] == [["a", "30.0% (10.0% to 60.0%)", "3"], ["b", "100.0%", "1"]]


def test_without_the_default_there_is_a_table_and_no_picture(ablations, tmp_path):
    some = dict.fromkeys(ablations.study.measures, 0.5) | {"seed": 0, "stopped": None, "curve": []}
    args = Namespace(names=[], seeds=1, epochs=1, output=tmp_path)
    ablations.study.write([{"name": name, **some} for name in ("no-scale", "no-positions")], args)
    assert [path.name for path in tmp_path.iterdir()] == ["ablations.md"]


def test_a_resumed_run_keeps_what_is_finished(script, ablations, tmp_path):
    """If nothing is missing, only the table and the picture are made again."""
    some = dict.fromkeys(ablations.study.measures, 0.5) | {"stopped": None}
    curve = [{"epoch": 1, **dict.fromkeys(("train_loss", "recall"), 0.5)}]
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


def test_a_resumed_run_keeps_what_it_was_not_asked_for(script, ablations, tmp_path, monkeypatch):
    def result(job):
        point = {"epoch": 1, **dict.fromkeys(("train_loss", "recall"), 0.5)}
        return {
            **vars(job),
            **dict.fromkeys(ablations.study.measures, 0.5),
            "stopped": None,
            "curve": [point],
        }

    before = [Job(name, 0, 1, "cpu") for name in ("default", "no-scale")]
    other = Job("no-scale", 5, 9, "cpu")
    write_results([*map(result, before), result(other)], tmp_path / "ablations.jsonl")
    monkeypatch.setattr(experiments, "run_in_processes", lambda _, jobs, *__: map(result, jobs))
    flags = ["--seeds", "2", "--epochs", "1", "--device", "cpu", "--output", tmp_path, "--resume"]
    assert script("ablations", "default", *flags)[0] == 0
    lines = (tmp_path / "ablations.jsonl").read_text().splitlines()
    found = sorted((line["name"], line["seed"], line["epochs"]) for line in map(json.loads, lines))
    assert found == [("default", 0, 1), ("default", 1, 1), ("no-scale", 0, 1), ("no-scale", 5, 9)]
    text = (tmp_path / "ablations.md").read_text(encoding="utf-8")  # shows all that is measured alike
    assert text.startswith("`python3 ablations.py no-scale --seeds 2 --epochs 1`") and "\n| no-scale " in text
    with output_lock(tmp_path):
        status, _, err = script("ablations", "default", *flags)
    assert status == 2 and "another run is writing there" in err
    (tmp_path / "new").mkdir()
    there = [tmp_path / "new" if flag == tmp_path else flag for flag in flags]
    monkeypatch.setattr(experiments, "run_in_processes", lambda *_: [])
    assert "0 of 2 runs are finished; resume with --resume" in script("ablations", "default", *there[:-1])[2]
    monkeypatch.setattr(experiments, "run_in_processes", lambda _, jobs, *__: map(result, jobs))
    assert script("ablations", "default", *there)[0] == 0  # as it was told
    assert (tmp_path / "new" / "ablations.md").read_text().startswith("`python3 ablations.py default --seeds 2")
    status, _, err = script("ablations", "default", *flags[:-1])
    assert status == 0 and "ablations.jsonl: the first run that ends replaces what is there (--resume keeps it)" in err
    assert len((tmp_path / "ablations.jsonl").read_text().splitlines()) == 2


def test_the_list_names_all_with_their_predictions(script, ablations):
    status, out, err = script("ablations", "--list")
    assert (status, err) == (0, "")
    for name, entry in ablations.study.ablations.items():
        verb = "puts in" if name in EXCHANGES else "takes out"
        assert f"{name}\n    {verb}: {entry.removes}\n    predicted: {entry.prediction}\n" in out
        assert entry.prediction.endswith(".")
    assert list(ablations.study.ablations) == [*NAMES, *EXCHANGES]


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


@pytest.fixture
def own(tmp_path, training, held_out):
    """Flags that name a text of one's own and a small model."""
    for name, sentences in (("mine", training), ("other", held_out)):
        (tmp_path / f"{name}.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    files = ["--corpus", str(tmp_path / "mine.txt"), "--held-out", str(tmp_path / "other.txt")]
    return [*files, "--d-model", "32", "--n-heads", "2", "--batch-tokens", "99", "--learning-rate", "0.001"]


def test_a_text_of_ones_own_has_its_own_measures(command, ablations, own, tmp_path):
    """The table says what is right in the held-out text, and the rows say which text they are of."""
    flags = ["pre-norm", "--seeds", "1", "--epochs", "2", "--device", "cpu", "--output", tmp_path / "out", *own]
    done = command("ablations.py", *flags, fresh=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "ablations.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == ["default", "pre-norm"]
    assert all(row["flags"] == own and 0 <= row["held_out"] <= 1 and row["held_out_loss"] > 0 for row in rows)
    assert re.search(r"\| +\| training loss +\| held-out loss +\| held-out tokens +\| seeds", done.stdout)
    text = (tmp_path / "out" / "ablations.md").read_text(encoding="utf-8")
    assert " ".join(own) in text.splitlines()[0]
    assert "- **pre-norm** puts in: LayerNorm before" in text
    assert (tmp_path / "out" / "ablations.png").exists()
    result = ablations.experiment(Job("default", 0, 2, "cpu", own, rows[0]["files"]), lambda: None)
    assert result == rows[0]
    trainer = ablations.prepare(Job("default", 0, 2, "cpu", own), tmp_path / "tokens")
    assert (trainer.config.batch_tokens, trainer.config.learning_rate) == (99, 0.001)
    loss, _ = trainer.score_held_out()
    assert loss != result["held_out_loss"]


def test_held_out_text_is_hidden_in_the_same_way_in_every_run(ablations, own, tmp_path):
    jobs = [Job(name, 1, 1, "cpu", own) for name in ("default", "always-mask", "all-positions")]
    usual, *others = [ablations.prepare(job, tmp_path / job.name).held_out for job in jobs]
    for masks in others:
        assert np.array_equal(masks.inputs.ids, usual.inputs.ids)
        assert np.array_equal(masks.labels.ids, usual.labels.ids)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--corpus", "no-such.txt"], "no-such.txt: no such file"),
        (["--d-model", "10", "--n-heads", "3"], "not a multiple"),
    ],
)
def test_a_mistake_that_a_run_finds_is_one_line_too(command, tmp_path, flags, words):
    flags = ["default", *flags, "--seeds", "1", "--output", tmp_path / "out"]
    done = command("ablations.py", *flags, fresh=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert words in done.stderr


def test_the_notebook_shows_the_table_and_the_readme_its_means():
    table = (FOLDER / "results" / "ablations.md").read_text(encoding="utf-8")
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert "\n".join(lines) in (FOLDER / "results" / "README.md").read_text(encoding="utf-8")
    rows = [[cell.split("(")[0].strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [name for name, *_ in rows] == NAMES
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"\n\| (?:nothing|`.*?`.*?) \| (.*) \|", readme)
    means = [[row[1], *row[3:6]] for row in rows]  # without the recall loss, and the number of seeds
    assert [re.sub(r"[ \\*]", "", line).split("|") for line in shown] == means


def test_the_lab_adds_an_ablation(ablations, command, tmp_path):
    """The example beside copies of the files, run for an epoch; the default beside it is what it is alone."""
    assert sum(line != "" for line in EXAMPLE.splitlines()) <= 10
    for file in FOLDER.glob("*.py"):
        shutil.copy(file, tmp_path)
    for part in ("data", "mlm"):
        shutil.copytree(FOLDER / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mine.py").write_text(EXAMPLE, encoding="utf-8")
    name = re.search(r"def (\w+)", EXAMPLE)[1].replace("_", "-")
    assert f"python3 mine.py {name} --output my-ablations\n" in LAB
    flags = [name, "--seeds", "1", "--epochs", "1", "--output", tmp_path / "out", "--device", "cpu"]
    done = command("mine.py", *flags, cwd=tmp_path, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out" / "ablations.jsonl").read_text(encoding="utf-8").splitlines()
    usual, mine = map(json.loads, lines)
    assert (usual["name"], mine["name"]) == ("default", name)
    assert mine["train_loss"] != usual["train_loss"]
    text = (tmp_path / "out" / "ablations.md").read_text(encoding="utf-8")
    assert text.startswith(f"`python3 mine.py {name} --seeds 1 --epochs 1`")
    assert re.findall(r"- \*\*(.*?)\*\*", text) == ["default", name]
    assert f"\n| {name} " in done.stdout
    assert (tmp_path / "out" / "ablations.png").read_bytes()[:4] == b"\x89PNG"
    assert usual == ablations.experiment(Job("default", 0, 1, "cpu"), lambda: None)


def test_after_the_last_run_an_interrupt_ends_the_script_again():
    before = signal.getsignal(signal.SIGTERM)
    assert list(experiments.run_in_processes(None, [], 1, None)) == []
    assert signal.getsignal(signal.SIGTERM) is before


JOBS = """
import os, sys, time
sys.path.insert(0, {folder!r})
from mlm.common.command_line import run_script
from mlm.common.experiments import run_in_processes

def work(job, part_done):
    if job == "breaks":
        raise ValueError("broken")
    if job == "large":
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    if job == "killed":
        os.kill(os.getpid(), 9)
    for part in range(1 if job == "short" else 10_000):
        part_done()
        time.sleep(0.02)
    return {{"job": job, "process": os.getpid()}}

def main():
    for result in run_in_processes(work, {jobs!r}, 2, lambda: None):
        print(result["job"], result["process"], flush=True)

if __name__ == "__main__":
    run_script(main)
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
@pytest.mark.parametrize("kind", ["SIGINT", "SIGKILL"])
def test_processes_end_with_their_parent(folder, tmp_path, kind):
    kind = getattr(signal, kind)
    file = tmp_path / "jobs.py"
    file.write_text(JOBS.format(folder=str(folder), jobs=["short", "long", "long"]))
    line = [sys.executable, str(file)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout.readline().startswith("short ")  # what is finished is handed on at once
        processes = children(parent.pid)
        assert len(processes) >= 2
        if kind == signal.SIGINT:
            os.killpg(parent.pid, kind)  # as a terminal sends it: to all of them
        else:
            parent.send_signal(kind)
        parent.wait(timeout=60)
    deadline = time.monotonic() + 30
    while any(map(there, processes)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_that_breaks_ends_all_with_one_line_after_its_own(folder, command, tmp_path):
    (tmp_path / "jobs.py").write_text(JOBS.format(folder=str(folder), jobs=["breaks", "long"]))
    done = command("jobs.py", cwd=tmp_path, folder=tmp_path)
    assert done.returncode == 2
    assert "ValueError: broken" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("jobs.py: a process ended before its run did")


@pytest.mark.parametrize(
    ("job", "reason"),
    [("large", "not enough memory; choose smaller sizes"), ("killed", "there was too little memory; continue with")],
)
def test_memory_that_does_not_suffice_is_one_line(folder, command, tmp_path, job, reason):
    (tmp_path / "jobs.py").write_text(JOBS.format(folder=str(folder), jobs=[job]))
    done = command("jobs.py", cwd=tmp_path, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert reason in done.stderr
