"""What train.py and inference.py can be told: their flags are made from the fields of these two classes."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from transformer import Transformer, TransformerConfig

from . import marian
from .common.budget import limits_of
from .common.command_line import check_fields, flag, float_in, int_in
from .common.errors import InputError, warn
from .common.fast_cpu import best_precision

FOLDER = Path(__file__).parents[1]  # where the scripts, data/ and samples/ are
DEFAULT_EPOCHS = 60
EXAMPLE = "AI improves healthcare"  # the README's, watched in runs on the bundled pairs
VOCAB_SIZES = {"word": 30_000, "bpe": None}  # None: the text decides
SMALL_BATCH, LARGE_BATCH = 1024, 4096
LEARNING_RATE = 2e-3
INIT_LEARNING_RATE = 5e-5  # changes trained weights gently (Devlin et al. 2018, appendix A.3)
SIZES = {one.name: one.default for one in fields(TransformerConfig)}
SIZES["n_layers"] = SIZES["n_encoder_layers"]
# settings of the model, which --init brings along
INIT_EXCLUDES = "tokenizer", "vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "dropout"
# settings that stay the same when a run is resumed
RESUME_INVARIANTS = "seed", "batch_tokens", "optimizer", "learning_rate", "warmup_steps", "label_smoothing"


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run. None stands for the default that the help names."""

    pairs: tuple[Path, ...] | None = flag(
        None, "the training pairs: UTF-8, a pair a line (default: data/train.tsv)", type=Path, nargs="+", metavar="TSV"
    )
    held_out: Path | None = flag(None, "the pairs to evaluate on (default: one source in 20)", type=Path, metavar="TSV")
    source_column: str | None = flag(
        None, "the sources' column, its header or number (default: source, or the first)", metavar="NAME"
    )
    target_column: str | None = flag(
        None, "the targets' column, its header or number (default: target, or the second)", metavar="NAME"
    )
    init: Path | None = flag(
        None, "the MarianMT directory whose weights, sizes and tokenizer to start from", type=Path, metavar="DIR"
    )
    tokenizer: str | None = flag(None, "what a token is (default: word)", choices=tuple(VOCAB_SIZES))
    vocab_size: int | None = flag(
        None,
        "the most tokens in the vocabulary (default: 30,000 words, or a subword for 400 "
        "characters, up to 8,000; at least 300 subwords)",
        type=int_in(10, 1_000_000),
    )
    d_model: int | None = flag(None, f"the width (default: {SIZES['d_model']})", type=int_in(1, 65_536))
    n_layers: int | None = flag(
        None, f"the number of layers in each stack (default: {SIZES['n_layers']})", type=int_in(1, 1_000)
    )
    n_heads: int | None = flag(
        None, f"the number of attention heads in each layer (default: {SIZES['n_heads']})", type=int_in(1, 65_536)
    )
    d_ff: int | None = flag(
        None, f"the inner width of the feed-forward part (default: {SIZES['d_ff']})", type=int_in(1, 1_000_000)
    )
    dropout: float | None = flag(None, f"the dropout rate (default: {SIZES['dropout']})", type=float_in(0, 0.99))
    max_length: int = flag(SIZES["max_length"], "the most tokens on a side", type=int_in(2, 100_000))
    epochs: int | None = flag(
        None, f"the number of passes over the pairs (default: {DEFAULT_EPOCHS} if no limit is set)", type=int_in(1)
    )
    max_steps: int | None = flag(None, "the number of updates after which to stop", type=int_in(1))
    max_minutes: float | None = flag(
        None,
        "the number of minutes after which to stop, the last evaluation and the report not included",
        type=float_in(0.001),
    )
    batch_tokens: int | None = flag(
        None,
        f"the most tokens of a batch on a side, padding included (default: {SMALL_BATCH:,}, or on a GPU "
        f"{LARGE_BATCH:,} for pairs with more than {100 * LARGE_BATCH:,} target tokens)",
        type=int_in(2),
    )
    optimizer: str = flag(
        "adam", "the optimizer of the layers' matrices; all other weights use Adam", choices=("adam", "muon")
    )
    learning_rate: float | None = flag(
        None,
        f"the highest learning rate, before the cosine (default: {LEARNING_RATE:g}, with --init "
        f"{INIT_LEARNING_RATE:g})",
        type=float_in(1e-9, 10),
    )
    warmup_steps: int = flag(
        100, "the number of updates up to the highest learning rate, at most a quarter of the run", type=int_in(0)
    )
    label_smoothing: float = flag(0.1, "the probability that is spread over all tokens", type=float_in(0, 0.99))
    precision: str | None = flag(
        None, "the precision of matrix products (default: the fastest)", choices=("fp32", "bf16")
    )
    watch: tuple[str, ...] | None = flag(
        None,
        "a prompt whose output and attention are kept at every evaluation, for visualize_attention.py --html to "
        "replay; can be repeated (default: the README's example, if the pairs are the bundled ones)",
        action="append",
        metavar="TEXT",
    )
    seed: int = flag(0, "the seed of weights, order, dropout, and what is held out", type=int_in(0))
    resume: bool = flag(False, "continue from the checkpoint in --output, to the run's own limit or to another")
    output: Path = flag(FOLDER / "samples", "the folder to write to (default: samples/)", type=Path, metavar="DIR")

    def __post_init__(self):
        check_fields(self)
        given = [name for name in INIT_EXCLUDES if getattr(self, name) is not None]
        if self.init and given:
            raise InputError(f"init and {given[0]} cannot be combined: the directory has its own", given[0])
        d_model, n_heads = self.size("d_model"), self.size("n_heads")
        if d_model % n_heads:
            nearest = n_heads * max(1, round(d_model / n_heads))
            problem = f"d_model {d_model} is not a multiple of n_heads {n_heads}"
            raise InputError(f"{problem}; use {nearest}, or another number of heads", "d_model")
        if not self.init and self.max_length * d_model > marian.MAX_POSITIONS:
            most = marian.MAX_POSITIONS // d_model
            raise InputError(
                f"max_length {self.max_length:,} is too large for d_model {d_model}; use up to {most:,}", "max_length"
            )
        if self.tokenizer == "bpe" and self.vocab_size and self.vocab_size < 300:
            raise InputError(f"{self.vocab_size} subwords are too few for 256 bytes; give 300 or more", "vocab_size")

    def size(self, name: str) -> int | float:
        """Return a setting of a new model: the given value, or the model's own default."""
        value = getattr(self, name)
        return SIZES[name] if value is None else value

    def model_config(self, vocab_size: int, pad_id: int) -> TransformerConfig:
        """Return the configuration of a new model."""
        n_layers = self.size("n_layers")
        others = {name: self.size(name) for name in ("d_model", "n_heads", "d_ff", "dropout", "max_length")}
        return TransformerConfig(vocab_size, pad_id, n_encoder_layers=n_layers, n_decoder_layers=n_layers, **others)

    @property
    def vocabulary(self) -> tuple[str, int | None]:
        """The kind and the size of a new vocabulary; None: the text decides."""
        kind = self.tokenizer or "word"
        return kind, self.vocab_size or VOCAB_SIZES[kind]

    @property
    def files(self) -> tuple[tuple[Path, ...], Path | None]:
        """The files of training pairs, and the file of held-out pairs if there is one."""
        if self.pairs is None:
            return (FOLDER / "data" / "train.tsv",), self.held_out or FOLDER / "data" / "held_out.tsv"
        return self.pairs, self.held_out

    @property
    def watched(self) -> tuple[str, ...]:
        """The texts to watch."""
        if self.watch is None:
            return (EXAMPLE,) if self.pairs is None else ()
        return self.watch

    @property
    def checkpoint(self) -> Path:
        """The file to resume from."""
        return self.output / "checkpoint.pt"

    def within(self, most: int) -> "TrainConfig":
        """Return the settings for a model to start from that takes at most `most` tokens."""
        if self.max_length <= most:
            return self
        if self.max_length != SIZES["max_length"]:
            warn(f"{self.init}: this model takes at most {most} tokens, which is the limit of this run", "max_length")
        return replace(self, max_length=most)

    def resolve(
        self, device: torch.device, n_target_tokens: int, last_part: Mapping[str, Any] | None = None
    ) -> "TrainConfig":
        """Return the settings with those filled in that depend on other settings, the device and the text. last_part:
        the conditions of the run to resume, whose limits hold on if no others are given."""
        # on a CPU, in runs of some minutes, small batches taught more and were hardly slower
        large = device.type != "cpu" and n_target_tokens > 100 * LARGE_BATCH
        return replace(
            self,
            **limits_of(self, last_part, DEFAULT_EPOCHS),
            batch_tokens=self.batch_tokens or (LARGE_BATCH if large else SMALL_BATCH),
            learning_rate=self.learning_rate or (INIT_LEARNING_RATE if self.init else LEARNING_RATE),
            precision=self.precision or best_precision(device),
        )


@dataclass(frozen=True)
class GenerationConfig:
    """The settings of generation: flags of inference.py, keyword arguments of Translator."""

    beam: int | None = flag(
        None, "the beam width; 1 is greedy decoding (default: the model's, 1 if it has none)", type=int_in(1, 1000)
    )
    length_penalty: float | None = flag(
        None,
        "the A in log p / length^A, by which outputs are ranked (default: the model's, 1 if it has none)",
        type=float_in(-10, 10),
        metavar="A",
    )
    n_best: int = flag(1, "the most outputs for each prompt; equal texts are one", type=int_in(1, 1000))
    sample: bool = flag(False, "draw the tokens at random instead")
    temperature: float = flag(
        1.0, "the divisor of the logits: above 1 flatter, below 1 sharper", type=float_in(1e-3, 1e3)
    )
    top_k: int = flag(0, "the number of likeliest tokens to draw from; 0 is all of them", type=int_in(0))
    top_p: float = flag(1.0, "the probability of the likeliest tokens to draw from", type=float_in(1e-6, 1))
    seed: int = flag(0, "the seed of the sampling", type=int_in(0))
    max_length: int | None = flag(
        None, "the most tokens in an output, </s> included (default: the model's)", type=int_in(1, 100_000)
    )
    batch_size: int = flag(64, "the number of prompts decoded together", type=int_in(1, 100_000))

    def __post_init__(self):
        check_fields(self)
        if self.beam and self.n_best > self.beam and not self.sample:
            raise InputError(f"n_best {self.n_best} needs a beam of {self.n_best} or more, or sampling", "n_best")
        if self.sample and (self.beam or 1) > 1:
            raise InputError("sampling and beam search cannot be combined", "sample")
        if not self.sample and (self.temperature, self.top_k, self.top_p) != (1.0, 0, 1.0):
            raise InputError("temperature, top_k and top_p need sampling", "sample")

    def resolve(self, model: Transformer) -> "GenerationConfig":
        """Return the configuration with a model's defaults, those of its generation_config.json, for what is None."""
        defaults, positions = marian.generation_of(model), model.config.max_length
        beam = 1 if self.sample else defaults.get("num_beams", 1)
        return replace(
            self,
            beam=beam if self.beam is None else self.beam,
            length_penalty=float(
                defaults.get("length_penalty", 1.0) if self.length_penalty is None else self.length_penalty
            ),
            max_length=self.max_length or min(positions, defaults.get("max_length", positions + 1) - 1),
        )
