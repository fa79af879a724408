"""Texts that a run watches (--watch), and the page's data: the model, and how its training went."""

import base64
import json
import os
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from seq2seq import marian
from seq2seq.common import page_data
from seq2seq.common.distributed import DistributedContext
from seq2seq.common.errors import InputError
from seq2seq.common.progress import Progress
from seq2seq.config import EXAMPLE, TrainConfig
from seq2seq.explorer import page, reading

CPU = torch.device("cpu")
TEXTS = "What is the capital of France?", "The cook eats the zebra"
WATCH = [part for text in TEXTS for part in ("--watch", text)]
DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


class NoInterrupt:
    """An interrupt that nobody requests."""

    requested = False


class After:
    """An interrupt after this number of a trainer's steps."""

    def __init__(self, trainer, steps):
        self.trainer, self.steps = trainer, steps

    @property
    def requested(self):
        return self.trainer.progress.step >= self.steps


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, write_pairs, training):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.tsv", training)


@pytest.fixture(scope="module")
def run(pairs, write_pairs, held_out, script, sizes):
    """run(folder, *flags) trains for 200 steps -> exit status, stdout and stderr."""
    files = ["--pairs", pairs, "--held-out", write_pairs(pairs.with_name("held_out.tsv"), held_out)]

    def start(folder, *flags):
        fixed = ["--max-steps", 200, "--learning-rate", 5e-3, "--device", "cpu"]
        return script("train", *files, *fixed, *sizes, "--output", folder, *flags)

    return start


@pytest.fixture(scope="module")
def watched(run, tmp_path_factory):
    """The folder of a run that has watched the two prompts, the second with an unknown word."""
    folder = tmp_path_factory.mktemp("watched")
    status, _, stderr = run(folder, *WATCH)
    assert status == 0 and "sees <unk> instead: zebra" in stderr, stderr
    return folder


def records(folder, name="watched.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def data_of(folder):
    return json.loads(DATA.search((folder / "attention.html").read_text(encoding="utf-8"))[1])


def test_training_is_the_same_bit_for_bit_whether_watched_or_not(run, watched, tmp_path):
    assert run(tmp_path)[0] == 0
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (tmp_path, watched)]
    assert weights[0] == weights[1]
    without, with_ = (
        [record | {"seconds": 0} for record in records(folder, "metrics.jsonl")] for folder in (tmp_path, watched)
    )
    assert without == with_
    assert not (tmp_path / "watched.jsonl").exists()


def test_every_text_has_a_record_at_every_evaluation(watched):
    found = [(one["epoch"], one["step"], one["text"]) for one in records(watched)]
    curve = records(watched, "metrics.jsonl")
    assert found == [(record["epoch"], record["step"], text) for record in curve for text in TEXTS]
    assert len(curve) == 4
    first, last = records(watched)[0], records(watched)[-2]
    assert first["weights"] != last["weights"] and first["next"] != last["next"]
    assert last["output"] == ["Paris", "is", "the", "capital", "of", "France", "</s>"]
    assert last["target"] == ["start", "Paris", "is", "the", "capital", "of", "France"]


def test_an_interrupted_run_has_watched_what_a_whole_one_has(pairs, sizes, tmp_path):
    def begin(folder, *flags):
        fixed = ["--pairs", pairs, "--output", tmp_path / folder, *sizes, "--max-steps", 60, *WATCH]
        config, _ = train.parse_args([str(flag) for flag in [*fixed, *flags]])
        return train.build_trainer(config, DistributedContext(CPU))

    begin("whole").train(NoInterrupt())
    first = begin("parts")
    first.train(After(first, 52))
    assert len(records(tmp_path / "parts")) == 2
    begin("parts", "--resume").train(NoInterrupt())
    whole, parts = ((tmp_path / folder / "watched.jsonl").read_bytes() for folder in ("whole", "parts"))
    assert whole == parts


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("the " * 30, "has 31 tokens, the model takes 16"),
        (" ", "is empty"),
        (b"caf\xe9".decode(errors="surrogateescape"), "is not UTF-8"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_before_training(run, tmp_path, bad, problem):
    status, _, stderr = run(tmp_path / "out", "--watch", "Hello", "--watch", bad)
    last = stderr.splitlines()[-1]
    assert status == 2 and problem in last and "the watched text" in last and "(--watch)" in last
    assert "step" not in stderr and not (tmp_path / "out" / "metrics.jsonl").exists()


def test_texts_that_take_too_much_room_are_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr("seq2seq.common.progress.MAX_WATCHED", 80_000)
    assert run(tmp_path / "one", "--watch", "Hello", "--max-steps", 1)[0] == 0
    status, _, stderr = run(tmp_path / "two", *WATCH, "--max-steps", 1)
    assert status == 2 and re.search(r"take \d+ kB at every evaluation, with room for 8; .* \(--watch\)$", stderr)


def test_the_readmes_example_is_watched_on_the_bundled_pairs_if_the_model_can_read_it(
    folder, tiny, make_model, tokenizer
):
    assert TrainConfig().watched == (EXAMPLE,) and f'"{EXAMPLE}"' in (folder / "README.md").read_text(encoding="utf-8")
    assert TrainConfig(pairs=(Path("pairs.tsv"),)).watched == ()
    assert TrainConfig(watch=TEXTS).watched == TEXTS
    assert reading.encode_watched(TrainConfig(), tiny, tokenizer) == {}  # it does not know the words
    short = make_model(tokenizer.get_vocab_size(), max_length=3)
    assert reading.encode_watched(TrainConfig(), short, tokenizer) == {}  # nor has this one room for them
    with pytest.raises(InputError, match="is empty"):
        reading.encode_watched(TrainConfig(watch=("",)), tiny, tokenizer)


def test_an_output_without_end_is_cut(make_model, tokenizer):
    """A model that is not trained may go on to its last position."""
    model = make_model(tokenizer.get_vocab_size(), max_length=100)
    model.output_bias.data[model.config.eos_id] = -100
    found = reading.read_watched("Hello", tokenizer.encode("Hello").ids, model, tokenizer)
    assert len(found["output"]) == reading.MAX_WATCHED_OUTPUT and "</s>" not in found["output"]


def test_of_too_many_evaluations_an_evenly_spread_part_is_kept(monkeypatch):
    """The records stay within their room, and what is kept does not depend on where a run was interrupted."""
    monkeypatch.setattr("seq2seq.common.progress.MAX_WATCHED", 2000)
    progress = Progress()
    for i in range(1000):
        progress.curve.append({"epoch": i, "step": 50 * (i + 1)})
        progress.add_readings([{"text": text} for text in "ab"])
        assert len("".join(json.dumps(one) + "\n" for one in progress.watched)) <= 2000
        assert [one["text"] for one in progress.watched[-2:]] == ["a", "b"]
        assert progress.watched[-1]["step"] == 50 * (i + 1)
    kept = [one["epoch"] for one in progress.watched[::2]]
    assert len(kept) >= 10 and kept[0] == 0
    gaps = [after - before for before, after in pairwise(kept)]
    assert max(gaps) <= 64


def test_what_an_earlier_run_watched_does_not_stay_beside_a_new_model(run, tmp_path):
    (tmp_path / "watched.jsonl").write_text("{}\n")
    assert run(tmp_path, "--max-steps", 1)[0] == 0
    assert (tmp_path / "model").is_dir() and not (tmp_path / "watched.jsonl").exists()


# ---- the page's data


def test_the_page_carries_the_weights_in_half_precision_and_the_tokenizer(script, watched, tmp_path):
    status, _, stderr = script("visualize_attention", "--html", "--model", watched / "model", "--output", tmp_path)
    assert status == 0, stderr
    data, (model, tokenizer) = data_of(tmp_path), marian.load(watched / "model", CPU)
    numbers = np.frombuffer(base64.b64decode(data["model"]["data"]), "<f2").astype(np.float32)
    state, at = model.state_dict(), 0
    for name, shape in data["model"]["names"]:
        size = state[name].numel()
        assert torch.equal(torch.from_numpy(numbers[at : at + size].reshape(shape)), state[name].half().float()), name
        at += size
    assert at == len(numbers) == sum(parameter.numel() for parameter in model.parameters())
    assert {name for name, _ in data["model"]["names"]} == state.keys()
    assert data["tokenizer"] == json.loads(tokenizer.to_str()) | {"encode_special": True}
    vocabulary = tokenizer.get_vocab()
    assert len(data["tokens"]) == len(vocabulary) and data["tokens"][vocabulary["▁Paris"]] == "Paris"
    assert data["special"] == {"pad": len(vocabulary) - 1, "unk": 1, "eos": 0}
    assert data["reading"] is data["why"] is None


def test_the_page_replays_what_was_watched(script, watched, tmp_path, monkeypatch):
    monkeypatch.chdir(watched / "model")
    assert script("visualize_attention", "--html", "--model", ".", "--output", tmp_path)[0] == 0
    data, names = data_of(tmp_path), ("step", "train_loss", "held_out_loss")
    assert data["watched"] == records(watched)
    assert data["curve"] == [{name: record[name] for name in names} for record in records(watched, "metrics.jsonl")]
    made = (watched / "model" / "config.json").stat()
    for seconds, replayed in ((1, True), (100, False)):  # in a copy of a run; in a run that ended without a model
        os.utime(watched / "checkpoint.pt", (made.st_atime, made.st_mtime + seconds))
        script("visualize_attention", "--html", "--model", ".", "--output", tmp_path)
        assert bool(data_of(tmp_path)["watched"]) == replayed
    os.utime(watched / "checkpoint.pt", (made.st_atime, made.st_mtime))


@pytest.mark.parametrize("watched_text", TEXTS)
def test_a_model_too_large_for_a_page_is_shown_with_one_prompt(script, watched, tmp_path, monkeypatch, watched_text):
    """The page's reading is also what was stored at the last evaluation, whose weights were kept."""
    monkeypatch.setattr(page_data, "MAX_PAGE_BYTES", 20_000)
    flags = "--html", "--model", watched / "model", "--output", tmp_path
    status, _, stderr = script("visualize_attention", *flags, watched_text)
    lines = [line for line in stderr.splitlines() if "unknown" not in line]
    assert status == 0 and len(lines) == 1
    assert re.search(
        r"warning: the model takes 0\.\d MB, and a page has room for 0, so it shows this text only$", lines[0]
    )
    data = data_of(tmp_path)
    assert data["model"] is data["tokenizer"] is None and data["why"] == f"{lines[0].split('warning: ')[1]}."
    last = [record for record in records(watched) if record["text"] == watched_text][-1]
    assert {key: last[key] for key in last if key not in ("epoch", "step")} == data["reading"]


@pytest.mark.parametrize("damage", ["half", "words", "other model", "text", "NaN", "surrogate", "bytes", "large"])
def test_a_damaged_record_of_training_is_left_out_with_a_warning(watched, damage, capsys, tmp_path):
    model, tokenizer = marian.load(watched / "model", CPU)
    first, *rest = records(watched)
    cross = first["weights"]["cross"]
    changed = {
        "half": json.dumps(first)[:100],
        "words": json.dumps(first | {"source": first["source"][:-1]}),
        "other model": json.dumps(first | {"weights": first["weights"] | {"cross": cross[: len(cross) // 8 * 4]}}),
        "text": json.dumps(first | {"text": 1}),
        "NaN": json.dumps(first | {"step": float("nan")}),
        "surrogate": json.dumps(first | {"text": "\ud800"}),
        "bytes": "\xff",
        "large": json.dumps(first) + " " * 5_000_000,
    }[damage]
    lines = [changed, *map(json.dumps, rest)]
    (tmp_path / "watched.jsonl").write_text("\n".join(lines), encoding="latin-1" if damage == "bytes" else "utf-8")
    (tmp_path / "metrics.jsonl").write_bytes((watched / "metrics.jsonl").read_bytes())
    data = page.make_data(model, tokenizer, "Hello", tokenizer.encode("Hello").ids, None, None, tmp_path)
    assert data["curve"] == data["watched"] == []
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'watched.jsonl'}: is damaged or not of this model" in said
    assert page.render(data).encode()
