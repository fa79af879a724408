"""TrainConfig: what a run of train_mlm.py can be told. Its flags are made from the fields."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from encoder import EncoderConfig

from .common.budget import limits_of
from .common.command_line import check_fields, flag, float_in, int_in
from .common.errors import InputError, warn
from .common.fast_cpu import best_precision

FOLDER = Path(__file__).parents[1]  # where the scripts, data/ and results/ are
DEFAULT_EPOCHS = 180
EXAMPLE = "Transformers use [MASK] attention"  # the README's, watched in runs on the bundled sentences
VOCAB_SIZES = {"word": 30_000, "bpe": None}  # None: the text decides
SMALL_BATCH, LARGE_BATCH = 1024, 4096
LEARNING_RATE = 3e-3
INIT_LEARNING_RATE = 5e-5  # changes trained weights gently (Devlin et al. 2018, appendix A.3)
SIZES = {one.name: one.default for one in fields(EncoderConfig)}
# settings of the model, which --init brings along
INIT_EXCLUDES = "tokenizer", "vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "dropout"
# settings that stay the same when a run is resumed
RESUME_INVARIANTS = "seed", "batch_tokens", "learning_rate", "warmup_steps", "mask_prob"


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run. None stands for the default that the help names."""

    corpus: tuple[Path, ...] | None = flag(
        None,
        "the training text: UTF-8, a sentence a line (default: data/train.txt)",
        type=Path,
        nargs="+",
        metavar="FILE",
    )
    held_out: Path | None = flag(
        None, "the text to evaluate on (default: one sentence in 20)", type=Path, metavar="FILE"
    )
    init: Path | None = flag(
        None, "the BERT directory whose weights, sizes and tokenizer to start from", type=Path, metavar="DIR"
    )
    tokenizer: str | None = flag(None, "what a token is (default: word)", choices=tuple(VOCAB_SIZES))
    vocab_size: int | None = flag(
        None,
        "the most tokens in the vocabulary (default: 30,000 words, or the subwords that occur "
        "at least twice, up to 8,000; at least 300 subwords)",
        type=int_in(10, 1_000_000),
    )
    d_model: int | None = flag(None, f"the width (default: {SIZES['d_model']})", type=int_in(1, 65_536))
    n_layers: int | None = flag(None, f"the number of layers (default: {SIZES['n_layers']})", type=int_in(1, 1_000))
    n_heads: int | None = flag(
        None, f"the number of attention heads in each layer (default: {SIZES['n_heads']})", type=int_in(1, 65_536)
    )
    d_ff: int | None = flag(
        None, f"the inner width of the feed-forward part (default: {SIZES['d_ff']})", type=int_in(1, 1_000_000)
    )
    dropout: float | None = flag(None, f"the dropout rate (default: {SIZES['dropout']})", type=float_in(0, 0.99))
    max_length: int = flag(
        SIZES["max_length"], "the most tokens of a sequence, [CLS] and [SEP] included", type=int_in(4, 100_000)
    )
    epochs: int | None = flag(
        None, f"the number of passes over the text (default: {DEFAULT_EPOCHS} if no limit is set)", type=int_in(1)
    )
    max_steps: int | None = flag(None, "the number of updates after which to stop", type=int_in(1))
    max_minutes: float | None = flag(
        None,
        "the number of minutes after which to stop, the last evaluation and the report not included",
        type=float_in(0.001),
    )
    batch_tokens: int | None = flag(
        None,
        f"the most tokens of a batch, padding included (default: {SMALL_BATCH:,}, or on a GPU {LARGE_BATCH:,} for "
        f"a text of more than {100 * LARGE_BATCH:,} tokens)",
        type=int_in(4),
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
    mask_prob: float = flag(0.15, "the share of the tokens to predict", type=float_in(0.001, 0.999))
    precision: str | None = flag(
        None, "the precision of matrix products (default: the fastest)", choices=("fp32", "bf16")
    )
    watch: tuple[str, ...] | None = flag(
        None,
        "a sentence whose attention and guesses are kept at every evaluation, for visualize_attention.py --html to "
        "replay; can be repeated (default: the README's example, if the text is the bundled one)",
        action="append",
        metavar="TEXT",
    )
    seed: int = flag(0, "the seed of weights, order, masks, dropout, and what is held out", type=int_in(0))
    resume: bool = flag(False, "continue from the checkpoint in --output, to the run's own limit or to another")
    output: Path = flag(FOLDER / "results", "the folder to write to (default: results/)", type=Path, metavar="DIR")

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
        if self.tokenizer == "bpe" and self.vocab_size and self.vocab_size < 300:
            raise InputError(f"{self.vocab_size} subwords are too few for 256 bytes; give 300 or more", "vocab_size")

    def size(self, name: str) -> int | float:
        """Return a setting of a new model: the given value, or the model's own default."""
        value = getattr(self, name)
        return SIZES[name] if value is None else value

    def model_config(self, vocab_size: int, pad_id: int) -> EncoderConfig:
        """Return the configuration of a new model."""
        names = "d_model", "n_layers", "n_heads", "d_ff", "dropout"
        sizes = {name: self.size(name) for name in names}
        return EncoderConfig(vocab_size, max_length=self.max_length, pad_id=pad_id, **sizes)

    @property
    def vocabulary(self) -> tuple[str, int | None]:
        """The kind and the size of a new vocabulary; None: the text decides."""
        kind = self.tokenizer or "word"
        return kind, self.vocab_size or VOCAB_SIZES[kind]

    @property
    def files(self) -> tuple[tuple[Path, ...], Path | None]:
        """The files of training text, and the file of held-out text if there is one."""
        if self.corpus is None:
            return (FOLDER / "data" / "train.txt",), self.held_out or FOLDER / "data" / "held_out.txt"
        return self.corpus, self.held_out

    @property
    def watched(self) -> tuple[str, ...]:
        """The texts to watch."""
        if self.watch is None:
            return (EXAMPLE,) if self.corpus is None else ()
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

    def resolve(self, device: torch.device, n_tokens: int, last_part: Mapping[str, Any] | None = None) -> "TrainConfig":
        """Return the settings with those filled in that depend on other settings, the device and the text. last_part:
        the conditions of the run to resume, whose limits hold on if no others are given."""
        # on a CPU, in runs of some minutes, small batches taught more and were hardly slower
        large = device.type != "cpu" and n_tokens > 100 * LARGE_BATCH
        return replace(
            self,
            **limits_of(self, last_part, DEFAULT_EPOCHS),
            batch_tokens=self.batch_tokens or (LARGE_BATCH if large else SMALL_BATCH),
            learning_rate=self.learning_rate or (INIT_LEARNING_RATE if self.init else LEARNING_RATE),
            precision=self.precision or best_precision(device),
        )
