"""Texts that a run watches (--watch), and the page's data: the model, and how its training went."""

import base64
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import train_mlm
from mlm import MaskFiller
from mlm.common import page_data
from mlm.common.distributed import DistributedContext
from mlm.common.errors import InputError
from mlm.config import EXAMPLE, TrainConfig
from mlm.explorer import page
from mlm.explorer.reading import encode_watched

CPU = torch.device("cpu")
TEXTS = "the cat [MASK] the small mouse", "my mother bakes sweet bread zebra"
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
def text(tmp_path_factory, training):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(training), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(text, script, sizes):
    """run(folder, *flags) trains for 120 steps -> exit status, stdout and stderr."""

    def train(folder, *flags):
        fixed = ["--corpus", text, "--max-steps", 120, "--learning-rate", 5e-3, "--dropout", 0.2, "--device", "cpu"]
        return script("train_mlm", *fixed, *sizes, "--output", folder, *flags)

    return train


@pytest.fixture(scope="module")
def watched(run, tmp_path_factory):
    """The folder of a run that has watched the two texts, the second with an unknown word."""
    folder = tmp_path_factory.mktemp("watched")
    status, _, stderr = run(folder, *WATCH)
    assert status == 0 and "sees [UNK] instead: zebra" in stderr, stderr
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
    assert len(curve) == 3
    first, last = records(watched)[0], records(watched)[-2]
    assert first["weights"] != last["weights"] and first["guesses"] != last["guesses"]
    assert last["guesses"][3]["best"][0]["token"] == "chases"


def test_an_interrupted_run_has_watched_what_a_whole_one_has(text, sizes, tmp_path):
    def begin(folder, *flags):
        fixed = ["--corpus", text, "--output", tmp_path / folder, *sizes, "--max-steps", 60, *WATCH]
        config, _ = train_mlm.parse_args([str(flag) for flag in [*fixed, *flags]])
        return train_mlm.build_trainer(config, DistributedContext(CPU))

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
        ("the " * 30, "the sentence has 32 tokens, the model takes 24"),
        ("", "the sentence is empty"),
        ("zebra zebra", "knows none of its words"),
        ("the [PAD] cat", "has [PAD]"),
        (b"caf\xe9".decode(errors="surrogateescape"), "is not UTF-8"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_before_training(run, tmp_path, bad, problem):
    status, _, stderr = run(tmp_path / "out", "--watch", "the cat", "--watch", bad)
    last = stderr.splitlines()[-1]
    assert status == 2 and problem in last and "the watched text" in last and "(--watch)" in last
    assert "step" not in stderr and not (tmp_path / "out" / "metrics.jsonl").exists()


def test_texts_that_take_too_much_room_are_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr("mlm.common.progress.MAX_WATCHED", 20_000)
    assert run(tmp_path / "one", "--watch", "the cat", "--max-steps", 1)[0] == 0
    status, _, stderr = run(tmp_path / "two", *WATCH, "--max-steps", 1)
    assert status == 2 and re.search(r"take \d+ kB at every evaluation, with room for 2; .* \(--watch\)$", stderr)


def test_the_readmes_example_is_watched_on_the_bundled_text_if_the_model_can_read_it(
    folder, tiny, make_model, tokenizer
):
    assert TrainConfig().watched == (EXAMPLE,) and f'"{EXAMPLE}"' in (folder / "README.md").read_text(encoding="utf-8")
    assert TrainConfig(corpus=(Path("text.txt"),)).watched == ()
    assert TrainConfig(watch=TEXTS).watched == TEXTS
    assert encode_watched(TrainConfig(), tiny, tokenizer) == {}  # it does not know the words
    short = make_model(tokenizer.get_vocab_size(), max_length=5)
    assert encode_watched(TrainConfig(), short, tokenizer) == {}  # nor has this one room for them
    with pytest.raises(InputError, match="knows none of its words"):
        encode_watched(TrainConfig(watch=("Transformers",)), tiny, tokenizer)


def test_what_an_earlier_run_watched_does_not_stay_beside_a_new_model(run, tmp_path):
    (tmp_path / "watched.jsonl").write_text("{}\n")
    assert run(tmp_path, "--max-steps", 1)[0] == 0
    assert (tmp_path / "model").is_dir() and not (tmp_path / "watched.jsonl").exists()


# ---- the page's data


def test_the_page_carries_the_weights_in_half_precision_and_the_tokenizer(script, watched, tmp_path):
    status, _, stderr = script("visualize_attention", "--html", "--model", watched / "model", "--output", tmp_path)
    assert status == 0, stderr
    data, filler = data_of(tmp_path), MaskFiller.load(watched / "model", "cpu")
    numbers = np.frombuffer(base64.b64decode(data["model"]["data"]), "<f2").astype(np.float32)
    state, at = filler.model.state_dict(), 0
    for name, shape in data["model"]["names"]:
        size = state[name].numel()
        assert torch.equal(torch.from_numpy(numbers[at : at + size].reshape(shape)), state[name].half().float()), name
        at += size
    assert at == len(numbers) == sum(parameter.numel() for parameter in filler.model.parameters())
    tied = {name for name, tensor in state.items() if tensor.data_ptr() == filler.model.head.decoder.weight.data_ptr()}
    assert {name for name, _ in data["model"]["names"]} == state.keys() - tied | {"encoder.embeddings.token.weight"}
    assert data["tokenizer"] == json.loads(filler.tokenizer.to_str()) | {"encode_special": False}
    vocabulary = filler.tokenizer.get_vocab()
    assert data["tokens"] == sorted(vocabulary, key=vocabulary.get)
    assert data["special"] == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
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
def test_a_model_too_large_for_a_page_is_shown_with_one_sentence(script, watched, tmp_path, monkeypatch, watched_text):
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
    filler = MaskFiller.load(watched / "model", "cpu")
    first, *rest = records(watched)
    changed = {
        "half": json.dumps(first)[:100],
        "words": json.dumps(first | {"words": first["words"][:-1]}),
        "other model": json.dumps(first | {"weights": first["weights"][: len(first["weights"]) // 8 * 4]}),
        "text": json.dumps(first | {"text": 1}),
        "NaN": json.dumps(first | {"step": float("nan")}),
        "surrogate": json.dumps(first | {"text": "\ud800"}),
        "bytes": "\xff",
        "large": json.dumps(first) + " " * 5_000_000,
    }[damage]
    lines = [changed, *map(json.dumps, rest)]
    (tmp_path / "watched.jsonl").write_text("\n".join(lines), encoding="latin-1" if damage == "bytes" else "utf-8")
    (tmp_path / "metrics.jsonl").write_bytes((watched / "metrics.jsonl").read_bytes())
    data = page.make_data(filler, "the cat", filler.tokenizer.encode("the cat").ids, None, None, tmp_path)
    assert data["curve"] == data["watched"] == []
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'watched.jsonl'}: is damaged or not of this model" in said
    assert page.render(data).encode()
