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
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from seq2seq_reference import reference_stack
from torch import nn

import train
from decoding import generate
from seq2seq.common import experiments
from seq2seq.common.distributed import DistributedContext
from seq2seq.common.errors import InputError
from seq2seq.common.experiments import Ablation, Job, table, write_results
from seq2seq.common.files import output_lock
from seq2seq.config import TrainConfig
from seq2seq.loss import IGNORE
from transformer import Attentions, Cache, DecoderLayer, causal_mask, padding_mask

FOLDER = Path(__file__).parents[2]
LAB = (FOLDER / "LAB.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"```python\n(.*?@study.ablation.*?)```", LAB, re.DOTALL)[1]
NAMES = [
    "default",
    "no-causal-mask",
    "no-cross-attention",
    "no-positions",
    "no-scale",
    "no-shift",
    "no-label-smoothing",
    "no-padding-mask",
]
EXCHANGES = ["relative-positions", "pre-norm", "no-embedding-scale"]  # run only if they are named


@pytest.fixture
def ablations(load_script):
    """The module ablations.py."""
    return load_script("ablations")


@pytest.fixture
def build(ablations, tmp_path, training, held_out, sizes, write_pairs):
    """build(name) -> a small trainer without what the ablation takes out, its model in evaluation mode. All have
    the same weights, none of which has its initial value."""

    pairs, asked = write_pairs(tmp_path / "pairs.tsv", training), write_pairs(tmp_path / "asked.tsv", held_out)
    config, _ = train.parse_args([*sizes, "--pairs", str(pairs), "--held-out", str(asked), "--output", str(tmp_path)])

    def make(name="default", **settings):
        trainer = train.build_trainer(replace(config, **settings), DistributedContext(torch.device("cpu")))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        ablations.study.ablations[name].apply(trainer)
        trainer.model.eval()
        return trainer

    return make


SOURCE = torch.tensor([[5, 6, 7, 8, 0]])  # ids that are words, and </s>


def target_of(trainer):
    """A target as the decoder reads it: the start token, and words."""
    return torch.tensor([[trainer.model.config.pad_id, 9, 10, 11]])


def close(a, b):
    return torch.allclose(a, b, atol=1e-4)


def attentions_of(model, source, memory, target):
    """The decoder's attention weights."""
    attentions = Attentions()
    model.decode(target, memory, padding_mask(source, model.config.pad_id), attentions=attentions)
    return attentions


def test_without_the_causal_mask_a_later_word_is_seen(build):
    for name, seen in ("default", False), ("no-causal-mask", True):
        trainer = build(name)
        target, other = target_of(trainer), target_of(trainer)
        other[0, 3] = 12
        before, after = trainer.model(SOURCE, target), trainer.model(SOURCE, other)
        assert close(before[:, :3], after[:, :3]) != seen
        attentions = attentions_of(trainer.model, SOURCE, trainer.model.encode(SOURCE)[0], target)
        assert attentions.decoder[0].triu(1).any() == seen


def test_without_cross_attention_the_source_is_not_seen(build):
    for name, seen in ("default", True), ("no-cross-attention", False):
        trainer = build(name)
        target = target_of(trainer)
        logits = trainer.model(SOURCE, target)
        assert torch.equal(logits, trainer.model(SOURCE.flip(1) + 3, target)) != seen
        assert torch.equal(logits, trainer.model(SOURCE[:, 1:], target)) != seen


def test_without_cross_attention_its_sublayer_is_the_norm(build):
    layer = build("no-cross-attention").model.decoder[0]
    x, memory = torch.randn(2, 3, 32), torch.randn(2, 5, 32)
    attended, _ = layer.self_attention(x, layer.self_attention.keys_values(x), None)
    middle = layer.cross_attention_norm(layer.self_attention_norm(x + attended))
    expected = layer.feed_forward_norm(middle + layer.feed_forward(middle))
    assert torch.equal(layer(x, None, memory, torch.ones(2, 1, 1, 5, dtype=torch.bool))[0], expected)


def test_without_positions_the_words_order_is_not_seen(build):
    order = torch.tensor([[2, 0, 4, 1, 3]])
    for name, seen in ("default", True), ("no-positions", False):
        trainer = build(name)
        moved, memory = (trainer.model.encode(ids)[0] for ids in (SOURCE[0, order], SOURCE))
        assert close(moved, memory[:, order[0]]) != seen
        target = target_of(trainer)
        assert close(trainer.model(SOURCE[0, order], target), trainer.model(SOURCE, target)) != seen
        swapped = target[:, [1, 0, 2, 3]]  # the last position sees them all, whichever is first
        assert close(trainer.model(SOURCE, swapped)[:, 2:], trainer.model(SOURCE, target)[:, 2:]) != seen


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
    unshifted, usual = build("no-shift").data.train, build().data.train
    batch, shifted = unshifted.batch([0, 3, 5]), usual.batch([0, 3, 5])
    padding = batch.labels == IGNORE
    assert padding.any()
    assert torch.equal(batch.source, shifted.source)
    assert torch.equal(batch.labels, shifted.labels)
    assert torch.equal(batch.target[~padding], batch.labels[~padding])
    assert (batch.target[padding] == unshifted.pad_id).all()
    assert not torch.equal(shifted.target, batch.target)


def test_without_label_smoothing_the_gradient_is_that_of_cross_entropy(build):
    trainer = build("no-label-smoothing", precision="fp32")
    assert build().config.label_smoothing > 0
    indices = trainer.batches(0)[0]
    batch = trainer.data.train.batch(indices)
    trainer.model.embeddings.dropout.p = 0.0
    for layer in [*trainer.model.encoder, *trainer.model.decoder]:
        layer.dropout.p = 0.0
    logits = trainer.model(batch.source, batch.target)[..., :-1]  # <pad> is never predicted
    loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
    gradients = torch.autograd.grad(loss, list(trainer.model.parameters()))
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    trainer.update(indices, 0.0)  # which leaves the gradients, clipped to a norm of 1
    for parameter, gradient in zip(trainer.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient / norm.clamp(min=1), atol=1e-5, rtol=1e-3)


def test_without_the_padding_mask_padding_is_seen(build):
    for name, seen in ("default", False), ("no-padding-mask", True):
        trainer = build(name)
        padded = F.pad(SOURCE, (0, 2), value=trainer.model.config.pad_id)
        target, memory = target_of(trainer), trainer.model.encode(SOURCE)[0]
        assert close(trainer.model.encode(padded)[0][:, :5], memory) != seen
        attentions = attentions_of(trainer.model, padded, F.pad(memory, (0, 0, 0, 2)), target)
        assert attentions.cross[0][..., 5:].any() == seen
        assert close(trainer.model(padded, target), trainer.model(SOURCE, target)) != seen


@pytest.mark.parametrize("name", ["no-causal-mask", "no-padding-mask"])
def test_a_layer_that_has_lost_an_argument_is_told_at_once(build, name, monkeypatch):
    """An exchange binds arguments by name: in another order they are still found, under another name refused."""

    def reordered(self, need_weights, cache, memory_mask, memory, target_mask, x):
        raise AssertionError("not called here")

    def renamed(self, x, mask_of_the_target, memory, mask_of_the_memory, cache=None, need_weights=False):
        raise AssertionError("not called here")

    monkeypatch.setattr(DecoderLayer, "forward", reordered)
    build(name)
    monkeypatch.setattr(DecoderLayer, "forward", renamed)
    with pytest.raises(TypeError, match=r"DecoderLayer.forward has no argument '(target|memory)_mask'"):
        build(name)


def test_an_argument_is_changed_wherever_it_stands(ablations):
    class Layer(torch.nn.Module):
        def forward(self, x, before=1, mask=None, *, after=2):
            return x, before, mask, after

    layer = Layer()
    ablations.change_argument(layer, "mask", torch.ones_like)
    mask, seen = torch.zeros(2), torch.ones(2)
    for found in (layer("x", 1, mask), layer("x", mask=mask), layer("x", mask=mask, before=1, after=2)):
        assert found[:2] == ("x", 1) and torch.equal(found[2], seen) and found[3] == 2
    assert layer("x") == layer("x", 1, None) == ("x", 1, None, 2)


def test_relative_attention_is_transformer_xls(build):
    """Term by term (Dai et al. 2019, section 3.3), with distances to both sides; fewer queries are the last ones."""
    layer = build("relative-positions").model.encoder[0].self_attention
    with torch.no_grad():
        layer.content_bias.normal_()
        layer.distance_bias.normal_()
    x, mask = torch.randn(2, 5, 32), torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[1, ..., 3] = False
    heads, weights = layer(x, layer.keys_values(x), mask, need_weights=True)
    q, (k, v) = layer.query(x).view(2, 5, 2, 16).transpose(1, 2), layer.keys_values(x)
    expected = torch.full((2, 2, 5, 5), -torch.inf)
    for b, h, i, j in mask.expand(2, 2, 5, 5).nonzero().tolist():
        r = layer.distance(layer.sinusoids[len(layer.sinusoids) // 2 + i - j]).view(2, 16)[h]
        content, distance = q[b, h, i] + layer.content_bias[h, 0], q[b, h, i] + layer.distance_bias[h, 0]
        expected[b, h, i, j] = (content @ k[b, h, j] + distance @ r) / 4
    expected = expected.softmax(dim=-1)
    assert close(weights, expected)
    assert close(heads, layer.output((expected @ v).transpose(1, 2).flatten(2)))
    last, _ = layer(x[:, 3:], layer.keys_values(x), mask[:, :, 3:])
    assert close(last, heads[:, 3:])


def test_relative_positions_are_the_same_further_on(build):
    """Two places further on, behind padding, a sentence is read as at the beginning, and its order still counts."""
    for name, seen in ("default", True), ("relative-positions", False):
        model = build(name).model
        later = F.pad(SOURCE, (2, 0), value=model.config.pad_id)
        assert close(model.encode(later)[0][:, 2:], model.encode(SOURCE)[0]) != seen
        order = [1, 0, 3, 2, 4]
        assert not close(model.encode(SOURCE[:, order])[0], model.encode(SOURCE)[0][:, order])


@pytest.mark.parametrize("name", ["relative-positions", "pre-norm", "no-embedding-scale"])
def test_exchanges_keep_the_decoder_causal_and_its_cache_right(build, name):
    """Word by word, in pieces, and all at once: the same hidden states, which no later word changes."""
    trainer = build(name)
    model, target = trainer.model, target_of(trainer)
    whole = model.hidden_states(SOURCE, target)
    other = target.clone()
    other[0, 3] = 12
    assert close(model.hidden_states(SOURCE, other)[:, :3], whole[:, :3])
    assert not close(model.hidden_states(SOURCE, other)[:, 3:], whole[:, 3:])
    memory, mask = model.encode(SOURCE)[0], padding_mask(SOURCE, model.config.pad_id)
    for sizes in [1, 1, 1, 1], [2, 1, 1], [1, 3]:
        cache = Cache()
        parts = [model.decode(part, memory, mask, cache) for part in target.split(sizes, dim=1)]
        assert close(torch.cat(parts, dim=1), whole)


def test_generation_under_an_exchange_is_that_of_the_whole_decoder(build):
    """Greedy and beam search, whose hypotheses change rows of the cache."""
    for name in EXCHANGES:
        model = build(name).model
        source = torch.cat([SOURCE, SOURCE.flip(1).roll(-1)])
        for beam in 1, 3:
            for row, found in enumerate(generate(model, source, 6, beam)):
                for hypothesis in found:
                    ids = hypothesis.ids + [model.config.eos_id] * hypothesis.finished
                    read = torch.tensor([[model.config.pad_id, *ids[:-1]]])
                    log_probs = model(source[row : row + 1], read).log_softmax(dim=-1)[0].detach()
                    assert close(log_probs[range(len(ids)), ids].sum(), torch.tensor(hypothesis.log_probability))


def test_pre_norm_is_pytorchs(build):
    """Both stacks equal torch.nn's with norm_first=True and the same weights."""
    trainer = build("pre-norm")
    model, target, config = trainer.model, target_of(trainer), trainer.model.config
    last_norms = [stack[-1].last_norm for stack in (model.encoder, model.decoder)]
    with torch.no_grad():
        for norm in last_norms:
            norm.weight.normal_()
            norm.bias.normal_()
    memory = model.embeddings(SOURCE)
    for theirs in reference_stack(model.encoder, config, nn.TransformerEncoderLayer, norm_first=True):
        memory = theirs(memory)
    memory = last_norms[0](memory)
    assert close(model.encode(SOURCE)[0], memory)
    x, later = model.embeddings(target), ~causal_mask(target.size(1))[0, 0]
    for theirs in reference_stack(model.decoder, config, nn.TransformerDecoderLayer, norm_first=True):
        x = theirs(x, memory, tgt_mask=later)
    assert close(model.hidden_states(SOURCE, target), last_norms[1](x))


def test_without_the_embedding_scale_words_are_smaller_by_it(build):
    usual, unscaled = (build(name).model.embeddings for name in ("default", "no-embedding-scale"))
    words = usual(SOURCE) - usual.positions[:5]
    assert close(unscaled(SOURCE) - unscaled.positions[:5], words / 32**0.5)


def test_the_weights_of_an_exchange_are_trained(ablations, tmp_path):
    for name in "relative-positions", "pre-norm":
        trainer = ablations.prepare(Job(name, 0, 1, "cpu"), tmp_path)
        before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
        trainer.update(trainer.batches(0)[0], 0.5)
        assert not any(torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters())


def test_pairs_of_ones_own_have_their_own_measures(command, ablations, tmp_path, training, held_out, write_pairs):
    """The table says how many outputs are right to the letter, and the rows say which text they are of."""
    pairs, asked = write_pairs(tmp_path / "pairs.tsv", training), write_pairs(tmp_path / "asked.tsv", held_out)
    own = ["--pairs", str(pairs), "--held-out", str(asked), "--d-model", "32", "--n-heads", "2", "--batch-tokens", "99"]
    flags = ["pre-norm", "--seeds", "1", "--epochs", "2", "--output", tmp_path / "out", *own]
    done = command("ablations.py", *flags, fresh=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "ablations.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == ["default", "pre-norm"]
    assert all(row["flags"] == own and 0 <= row["held_out"] <= 1 and row["train_loss"] > 0 for row in rows)
    assert re.search(r"\| +\| training loss +\| training pairs +\| held-out pairs +\| chrF", done.stdout)
    text = (tmp_path / "out" / "ablations.md").read_text(encoding="utf-8")
    assert text.startswith("`python3 ") and " ".join(own) in text.splitlines()[0]
    assert "- **pre-norm** puts in: LayerNorm before" in text
    assert (tmp_path / "out" / "ablations.png").exists()
    assert ablations.prepare(Job("default", 0, 2, "cpu", own), tmp_path).config.batch_tokens == 99
    again = command("ablations.py", *flags, "--resume")  # nothing is left to do
    assert (again.returncode, again.stdout.count("held-out pairs")) == (0, 1)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--pairs", "no-such.tsv"], "no-such.tsv: no such file"),
        (["--d-model", "10", "--n-heads", "3"], "not a multiple"),
    ],
)
def test_a_mistake_that_a_run_finds_is_one_line_too(command, tmp_path, flags, words):
    flags = [*flags, "--seeds", "1", "--output", tmp_path / "out"]
    done = command("ablations.py", "default", *flags, fresh=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert words in done.stderr


def test_no_ablation_leaks_into_the_default(build):
    before = build()
    batch = before.data.train.batch([0, 1])
    logits = before.model(batch.source, batch.target)
    for name in [*NAMES, *EXCHANGES]:
        other = build(name)
        other.model(batch.source, other.data.train.batch([0, 1]).target)
    for trainer in before, build():
        assert torch.equal(trainer.model(batch.source, batch.target), logits)
        assert all(map(torch.equal, vars(trainer.data.train.batch([0, 1])).values(), vars(batch).values()))
        assert trainer.config.label_smoothing == TrainConfig().label_smoothing


@pytest.mark.parametrize("name", [*NAMES, *EXCHANGES])
def test_every_ablation_trains_and_generates(name, build):
    trainer = build(name)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    for step in range(3):
        trainer.update(trainer.batches(0)[0], step / 3)
    assert torch.tensor(trainer.progress.nll).isfinite()
    after = list(trainer.model.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    assert not all(map(torch.equal, before, after))
    assert len(generate(trainer.model.eval(), SOURCE, 5)[0]) == 1


def test_a_point_of_the_curve_is_of_its_epoch_alone(ablations, build, monkeypatch):
    """Its batches, and its mean loss."""
    trainer, epochs = build(), []

    def update(indices, fraction):
        trainer.progress.nll += epochs[-1]
        trainer.progress.nll_tokens += 1

    monkeypatch.setattr(trainer, "batches", lambda epoch: epochs.append(epoch) or [[0], [1]])
    monkeypatch.setattr(trainer, "update", update)
    curve, _ = ablations.learn(trainer, 3, [], lambda: None)
    assert epochs[-3:] == [point["train_loss"] for point in curve] == [0, 1, 2]


def test_a_run_that_diverges_is_told(ablations, monkeypatch):
    explode = Ablation("", "", lambda trainer: trainer.model.output_bias.data.fill_(torch.inf))
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
    some = dict.fromkeys(ablations.study.measures, 0.5) | {"seed": 0, "stopped": None, "example": "", "curve": []}
    args = Namespace(names=[], seeds=1, epochs=1, output=tmp_path)
    ablations.study.write([{"name": name, **some} for name in ("no-scale", "no-positions")], args)
    assert [path.name for path in tmp_path.iterdir()] == ["ablations.md"]


def test_a_picture_shows_the_epochs_that_all_seeds_have(tmp_path, monkeypatch):
    """Of seeds of which one has diverged."""
    figures, lengths = [], {"default": (3, 3), "no-scale": (3, 1)}
    monkeypatch.setattr("seq2seq.common.plots.save_figure", lambda figure, *_, **__: figures.append(figure))
    results = [
        {"name": name, "curve": [{"epoch": epoch, "loss": 2.0, "share": 0.5} for epoch in range(1, length + 1)]}
        for name, of_seeds in lengths.items()
        for length in of_seeds
    ]
    experiments.draw_results(results, ("loss", "loss"), ("share", "share"), tmp_path / "picture.png")
    for axes in figures[0].axes:
        assert [line.get_xdata().tolist() for line in axes.lines] == [[1, 2, 3], [1]]


def test_a_resumed_run_keeps_what_is_finished(script, ablations, tmp_path):
    """If nothing is missing, only the table and the picture are made again."""
    some = dict.fromkeys(ablations.study.measures, 0.5) | {"stopped": None, "example": ""}
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


def test_a_resumed_run_keeps_what_it_was_not_asked_for(script, ablations, tmp_path, monkeypatch):
    def result(job):
        point = {"epoch": 1, **dict.fromkeys(("train_loss", "recall", "combinations"), 0.5)}
        return {
            **vars(job),
            **dict.fromkeys(ablations.study.measures, 0.5),
            "stopped": None,
            "example": "",
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


def test_a_text_that_has_changed_is_another(script, ablations, tmp_path, monkeypatch, training, write_pairs):
    """Its runs are done again, and those of the text before stay in the file."""
    asked = []

    def work(_, jobs, *__):
        asked.append([job.name for job in jobs])
        curve = [{"epoch": 1, **dict.fromkeys(("train_loss", "combinations"), 0.5)}]
        results = dict.fromkeys(ablations.study.own.measures, 0.5) | {"stopped": None, "curve": curve}
        return [{**vars(job), **results} for job in jobs]

    monkeypatch.setattr(experiments, "run_in_processes", work)
    pairs, both = tmp_path / "pairs.tsv", ["default", "pre-norm"]
    flags = ["pre-norm", "--pairs", pairs, "--seeds", "1", "--output", tmp_path / "out"]
    for text, more, done in ((training, [], both), (training, ["--resume"], []), (training[1:], ["--resume"], both)):
        write_pairs(pairs, text)
        assert script("ablations", *flags, *more)[0] == 0
        assert asked.pop() == done
    rows = [json.loads(line) for line in (tmp_path / "out" / "ablations.jsonl").read_text().splitlines()]
    assert sorted(row["name"] for row in rows) == sorted(both * 2)
    assert len({tuple(row["files"]) for row in rows}) == 2


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


def test_the_readme_has_the_means_of_the_table():
    def rows(path):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if re.match(r"\| (default|no-)", line)]
        cells = ([cell.split("(")[0] for cell in line.strip("|").split("|")] for line in lines)
        return [[re.sub(r"[ *]", "", cell) for cell in row[:6]] for row in cells]

    assert rows(FOLDER / "README.md") == rows(FOLDER / "samples" / "ablations.md")
    assert [name for name, *_ in rows(FOLDER / "README.md")] == NAMES


def test_the_lab_adds_an_ablation(ablations, command, tmp_path):
    """The example beside copies of the files, run for an epoch; the default beside it is what it is alone."""
    assert sum(line != "" for line in EXAMPLE.splitlines()) <= 10
    for file in FOLDER.glob("*.py"):
        shutil.copy(file, tmp_path)
    for part in ("data", "seq2seq"):
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


def test_outputs_of_nan_count_as_wrong(ablations, monkeypatch):
    """Weights can overflow in the last update, whose loss was still finite."""

    def answer_nan(*_):
        raise InputError("the model outputs NaN")

    monkeypatch.setattr(ablations, "answer_all", answer_nan)
    trainer = Namespace(model=None, data=Namespace(tokenizer=None))
    assert ablations.outputs(trainer, ["a", "b"], None) == ["", ""]


def test_after_the_last_run_an_interrupt_ends_the_script_again():
    before = signal.getsignal(signal.SIGTERM)
    assert list(experiments.run_in_processes(None, [], 1, None)) == []
    assert signal.getsignal(signal.SIGTERM) is before


JOBS = """
import os, sys, time
sys.path.insert(0, {folder!r})
from seq2seq.common.command_line import run_script
from seq2seq.common.experiments import run_in_processes

def work(job, part_done):
    if job == "breaks":
        raise ValueError("broken")
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
@pytest.mark.parametrize("kind", ["SIGTERM", "SIGKILL"])
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
