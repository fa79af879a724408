"""TrainConfig: what it refuses, and what it fills in."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from mlm.common.errors import InputError
from mlm.config import FOLDER, INIT_EXCLUDES, LARGE_BATCH, RESUME_INVARIANTS, SIZES, SMALL_BATCH, TrainConfig
from train_mlm import parse_args


def test_without_flags_it_is_the_default():
    assert parse_args([]) == (TrainConfig(), "auto")


def test_flags_set_its_fields():
    line = "--corpus a.txt b.txt --d-model 64 --learning-rate 1e-3 --tokenizer bpe --resume --device cpu"
    config = TrainConfig((Path("a.txt"), Path("b.txt")), d_model=64, learning_rate=1e-3, tokenizer="bpe", resume=True)
    assert parse_args(line.split()) == (config, "cpu")


@pytest.mark.parametrize(
    ("settings", "named", "message"),
    [
        ({"d_model": 0}, "d_model", "needs a whole number from 1 to 65,536, not 0"),
        ({"n_layers": 2.0}, "n_layers", "not 2.0"),
        ({"dropout": float("nan")}, "dropout", "not nan"),
        ({"mask_prob": None}, "mask_prob", "not None"),
        ({"tokenizer": "letters"}, "tokenizer", "use one of word, bpe"),
        ({"d_model": 30, "n_heads": 4}, "d_model", "d_model 30 is not a multiple of n_heads 4"),
        ({"n_heads": 7}, "d_model", "d_model 128 is not a multiple of n_heads 7"),
        ({"tokenizer": "bpe", "vocab_size": 299}, "vocab_size", "too few for 256 bytes"),
    ],
)
def test_what_no_run_can_have_is_refused_with_its_field(settings, named, message):
    """From Python as from flags: the scripts turn the field's name into its flag."""
    with pytest.raises(InputError, match=message) as error:
        TrainConfig(**settings)
    assert error.value.setting == named


def test_a_model_to_start_from_excludes_sizes_even_the_usual_ones():
    for name in INIT_EXCLUDES:
        usual = (SIZES | {"tokenizer": "word", "vocab_size": 30_000})[name]
        with pytest.raises(InputError, match=f"init and {name} cannot be combined"):
            TrainConfig(init=Path("model"), **{name: usual})
    assert TrainConfig(init=Path("model"), max_length=20).max_length == 20


def test_the_bundled_text_brings_what_is_held_out():
    data = FOLDER / "data"
    assert TrainConfig().files == ((data / "train.txt",), data / "held_out.txt")
    assert TrainConfig(held_out=Path("h")).files == ((data / "train.txt",), Path("h"))
    assert TrainConfig((data / "train.txt",)).files == ((data / "train.txt",), None)


def test_what_is_left_open_is_filled_in_for_the_device_and_the_text():
    cpu, gpu, many = torch.device("cpu"), torch.device("mps"), 100 * LARGE_BATCH + 1
    assert [TrainConfig().resolve(device, many).batch_tokens for device in (cpu, gpu)] == [SMALL_BATCH, LARGE_BATCH]
    assert TrainConfig().resolve(gpu, many - 1).batch_tokens == SMALL_BATCH
    assert TrainConfig(batch_tokens=9, precision="bf16").resolve(gpu, many).batch_tokens == 9
    assert TrainConfig(precision="bf16").resolve(gpu, 1).precision == "bf16"
    assert TrainConfig().resolve(gpu, 1).precision == "fp32"
    rates = [config.resolve(cpu, 1).learning_rate for config in (TrainConfig(), TrainConfig(init=Path("bert")))]
    assert rates == [3e-3, 5e-5]  # trained weights are changed gently
    assert TrainConfig(init=Path("bert"), learning_rate=1e-3).resolve(cpu, 1).learning_rate == 1e-3
    assert [TrainConfig(max_steps=steps).resolve(cpu, 1).epochs for steps in (None, 5)] == [180, None]


def test_a_resumed_run_keeps_its_limits_unless_others_are_given():
    last = {"from_step": 0, "epochs": None, "max_steps": 7, "max_minutes": None, "precision": "fp32"}
    found = [one.resolve(torch.device("cpu"), 1, last) for one in (TrainConfig(), TrainConfig(epochs=2))]
    assert [(one.epochs, one.max_steps, one.max_minutes) for one in found] == [(None, 7, None), (2, None, None)]


def test_a_model_to_start_from_limits_the_length(capsys):
    usual, longer = TrainConfig(init=Path("bert")), TrainConfig(init=Path("bert"), max_length=300)
    assert usual.within(512) is usual and usual.within(16).max_length == 16
    assert capsys.readouterr().err == ""
    assert longer.within(16).max_length == 16 and "takes at most 16 tokens" in capsys.readouterr().err


def test_settings_that_stay_are_settings():
    assert {*RESUME_INVARIANTS, *INIT_EXCLUDES} <= {one.name for one in fields(TrainConfig)}
