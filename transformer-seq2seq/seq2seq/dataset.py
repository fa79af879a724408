"""From pairs of texts to batches of token ids: both sides are split into tokens of one vocabulary, once, and pairs
of like length are batched.

Legend: B pairs of a batch, S and T lengths of their longest source and target, </s> included.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, compress
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from .common import checkpoint
from .common.batching import BatchSampler
from .common.coverage import MAX_TEXTS, Coverage
from .common.errors import InputError, warn
from .common.files import fingerprint
from .common.lines import MAX_HELD_OUT, check_rereadable, chunks
from .common.token_store import Sequences, SequenceWriter, TokenStore, concatenate, open_sequences
from .config import TrainConfig
from .loss import IGNORE
from .marian_tokenizer import FILES, MarianTokenizer
from .pairs import SPLITTING, Layout, Pair, PairFile, PairSource, draw_held_out_pairs, read_pairs, warn_of_skipped
from .tokenizer import EOS, PAD, TOKENIZING, UNK, load_tokenizer, train_tokenizer

SIDES = "source", "target"
Ids = tuple[np.ndarray, np.ndarray]  # ids of some sequences, one behind the other, and the length of each


@dataclass(frozen=True)
class Batch:
    """Pairs as tensors: source (B, S), padded; target (B, T), which the decoder reads; labels (B, T), which it has to
    predict at each position: the reference, IGNORE at padding."""

    source: Tensor
    target: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on that device."""
        return Batch(*(tensor.to(device) for tensor in vars(self).values()))


def shift_right(labels: np.ndarray, pad_id: int) -> np.ndarray:
    """Return the decoder's input for these labels ("teacher forcing"): the start token (the padding token), then the
    reference without its last token. labels (B, T), IGNORE at padding -> (B, T), padded."""
    start = np.full((len(labels), 1), pad_id)
    return np.concatenate([start, np.where(labels == IGNORE, pad_id, labels)[:, :-1]], axis=1)


class PairDataset:
    """Tokenized pairs, each side ending in </s>, in memory or, of any size, on disk.

    shift: the function that makes the decoder's input of the labels, shift_right but in an ablation.
    """

    def __init__(self, pad_id: int, source: Sequences, target: Sequences):
        self.pad_id, self.source, self.target = pad_id, source, target
        self.shift: Callable[[np.ndarray, int], np.ndarray] = shift_right

    @classmethod
    def in_memory(cls, pairs: Iterable[Pair], tokenizer: Tokenizer, max_length: int) -> "PairDataset":
        """Tokenize pairs in memory."""
        parts = list(tokenize(pairs, tokenizer, max_length))
        if not any(part.pairs for part in parts):
            raise all_too_long(max_length)
        source, target = (Sequences(*concatenate(getattr(part, side) for part in parts)) for side in SIDES)
        return cls(tokenizer.token_to_id(PAD), source, target)

    @classmethod
    def on_disk(cls, store: TokenStore, tokenizer: Tokenizer) -> "PairDataset":
        """Open the pairs that fill_store has written."""
        source, target = (Sequences(*open_sequences(store.folder, side)) for side in SIDES)
        return cls(tokenizer.token_to_id(PAD), source, target)

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: np.ndarray) -> Batch:
        """Return the pairs with these indices."""
        source, labels = self.source.padded(indices, self.pad_id), self.target.padded(indices, IGNORE)
        return Batch(*map(torch.from_numpy, (source, self.shift(labels, self.pad_id), labels)))

    def batches(self, batch_tokens: int, seed: int | list[int]) -> BatchSampler:
        """Return one epoch's batches, as indices of pairs: B * max(S, T) <= batch_tokens."""
        return BatchSampler([self.source, self.target], batch_tokens, seed)


@dataclass(frozen=True)
class Chunk:
    """Some pairs with the token ids of either side, and the number of pairs that were left out as too long."""

    pairs: list[Pair]
    source: Ids
    target: Ids
    n_too_long: int


def tokenize(pairs: Iterable[Pair], tokenizer: Tokenizer, max_length: int) -> Iterator[Chunk]:
    """Turn pairs into token ids, some at a time; leave out those with more than max_length tokens on a side."""
    encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    encode_targets = getattr(tokenizer, "encode_targets", encode)
    for some in chunks(pairs, lambda pair: len(pair.source) + len(pair.target)):
        sources = [encoding.ids for encoding in encode([pair.source for pair in some])]
        targets = [encoding.ids for encoding in encode_targets([pair.target for pair in some])]
        fits = [max(map(len, sides)) <= max_length for sides in zip(sources, targets, strict=True)]
        ids = (flatten(list(compress(side, fits))) for side in (sources, targets))
        yield Chunk(list(compress(some, fits)), *ids, n_too_long=fits.count(False))


def flatten(rows: list[list[int]]) -> Ids:
    """Put rows one behind the other."""
    return np.fromiter(chain.from_iterable(rows), np.int64), np.array(list(map(len, rows)), dtype=np.int64)


def short_enough(pairs: Iterable[Pair], tokenizer: Tokenizer, max_length: int) -> list[Pair]:
    """Return the pairs with at most max_length tokens on either side."""
    return [pair for chunk in tokenize(pairs, tokenizer, max_length) for pair in chunk.pairs]


def all_too_long(max_length: int) -> InputError:
    """Return the error for pairs that are all too long."""
    return InputError(f"no pair has at most {max_length} tokens on each side; allow more", "max_length")


def cover(
    held_out: Sequence[Pair], tokenizer: Tokenizer | MarianTokenizer, max_length: int, init: bool = False
) -> tuple[Coverage, Coverage]:
    """Measure how the vocabulary covers held-out sources and targets that fit; warn where no output can be right. init:
    True if the vocabulary is that of a model to start from."""
    parts, found = list(tokenize(held_out[:MAX_TEXTS], tokenizer, max_length)), []
    for side in SIDES:
        ids, *_ = concatenate(getattr(part, side) for part in parts)
        tokens = ids[ids != tokenizer.token_to_id(EOS)]  # the end is no part of a word
        texts = (getattr(pair, side) for part in parts for pair in part.pairs)
        coverage = Coverage.of(texts, tokens, tokenizer.token_to_id(UNK))
        coverage.warn(f"held-out {side} tokens", init=init)
        found.append(coverage)
    return found[0], found[1]


@dataclass(frozen=True)
class Metadata:
    """The notes in a token store: the pairs that were drawn to be held out (none if a file has them), the layouts of
    the files of training pairs, and the number of training pairs, too long ones included."""

    held_out: list[Pair]
    layouts: list[Layout]
    n_pairs: int

    @classmethod
    def from_dict(cls, noted: dict[str, Any]) -> "Metadata":
        """Return the metadata that asdict() has turned into a dict."""
        held_out, layouts = [Pair(**pair) for pair in noted["held_out"]], [Layout(**one) for one in noted["layouts"]]
        return cls(held_out, layouts, noted["n_pairs"])


def fill_store(
    store: TokenStore, pairs: PairSource, drawn: list[Pair], tokenizer: Tokenizer, max_length: int
) -> Metadata:
    """Write both sides of the training pairs, the tokenizer, and the metadata, which is returned."""
    vocab_size = 1 + max(tokenizer.get_vocab().values())  # not their number: some vocabularies have gaps
    n_pairs = 0
    with store.fill() as (folder, noted):
        with (
            SequenceWriter(folder, "source", vocab_size) as sources,
            SequenceWriter(folder, "target", vocab_size) as targets,
        ):
            for chunk in tokenize(pairs.read("tokenizing"), tokenizer, max_length):
                sources.append(*chunk.source)
                targets.append(*chunk.target)
                n_pairs += len(chunk.pairs) + chunk.n_too_long
            if not len(sources):
                raise all_too_long(max_length)
        if isinstance(tokenizer, Tokenizer):  # any other comes with the model to start from
            (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        metadata = Metadata(drawn, [file.layout for file in pairs.files], n_pairs)
        noted |= asdict(metadata)
    return metadata


@dataclass(frozen=True)
class Data:
    """All that a training run has of its pairs: their text, and their token ids.

    pairs: the training pairs, and those held out, as text. coverage: of the held-out sources and targets by the
    vocabulary. cache_key: all that the token ids depend on.
    """

    tokenizer: Tokenizer | MarianTokenizer
    pairs: PairSource
    train: PairDataset
    held_out: PairDataset
    coverage: tuple[Coverage, Coverage]
    cache_key: dict[str, Any]


def prepare_data(
    config: TrainConfig, tokenizer: Tokenizer | MarianTokenizer | None = None, resumed: dict[str, Any] | None = None
) -> Data:
    """Read the pairs, hold some out, learn a vocabulary and tokenize, or take all this from the output folder's
    tokens/, if that was made from the same pairs in the same way.

    tokenizer: that of the model to start from, if there is one. resumed: the checkpoint of the run to resume,
    which must have had the same data.
    """
    paths, held_out_path = config.files
    columns = config.source_column, config.target_column
    files = [PairFile(path, *columns) for path in paths]
    key = cache_key(config, files, tokenizer)
    if resumed:
        checkpoint.check_run(config.checkpoint, resumed, {"seed": config.seed, **key})
    store = TokenStore(config.output / "tokens", key)
    metadata = Metadata.from_dict(noted) if (noted := store.read()) else None

    drawn = [] if held_out_path else metadata.held_out if metadata else draw_held_out_pairs(files, config.seed)
    pairs = PairSource(files, read_pairs(held_out_path, *columns) if held_out_path else drawn)
    if tokenizer is None:
        if metadata:
            tokenizer = load_tokenizer(store.folder / "tokenizer.json")
        else:
            tokenizer = train_tokenizer(pairs.sample("learning the vocabulary"), *config.vocabulary)
    held_out = PairDataset.in_memory(pairs.held_out, tokenizer, config.max_length)
    metadata = metadata or fill_store(store, pairs, drawn, tokenizer, config.max_length)
    train = PairDataset.on_disk(store, tokenizer)
    warn_of_pairs(config, metadata, len(train), len(pairs.held_out) - len(held_out))
    return Data(
        tokenizer,
        pairs,
        train,
        held_out,
        cover(pairs.held_out, tokenizer, config.max_length, config.init is not None),
        key,
    )


def cache_key(
    config: TrainConfig, files: list[PairFile], tokenizer: Tokenizer | MarianTokenizer | None
) -> dict[str, Any]:
    """Return all that the token ids depend on."""
    held_out_path, vocabulary = config.files[1], list(config.vocabulary)
    if tokenizer is not None:
        names = FILES if isinstance(tokenizer, MarianTokenizer) else ["tokenizer.json"]
        vocabulary = [fingerprint(config.init / name)["sha256"] for name in names]
    held_out = fingerprint(check_rereadable(held_out_path))["sha256"] if held_out_path else f"seed {config.seed}"
    return {
        "files": [file.fingerprint["sha256"] for file in files],
        "columns": [config.source_column, config.target_column],
        "held_out": held_out,
        "splitting": SPLITTING,
        "tokenizing": TOKENIZING,
        "vocabulary": vocabulary,
        "max_length": config.max_length,
    }


def warn_of_pairs(config: TrainConfig, metadata: Metadata, n_train: int, n_held_out_too_long: int) -> None:
    """Say what is left out: lines without a pair, pairs that are held out, and pairs that are too long."""
    paths, held_out_path = config.files
    for path, layout in zip(paths, metadata.layouts, strict=True):
        warn_of_skipped(path, layout)
    total = sum(layout.n_pairs for layout in metadata.layouts)
    left_out, too_long = total - metadata.n_pairs, metadata.n_pairs - n_train
    if held_out_path and left_out:
        warn(f"left {left_out} pairs out of training, as their sources are in {held_out_path}")
    elif left_out > max(MAX_HELD_OUT, metadata.n_pairs / 4):
        warn(f"few sources are distinct: {left_out} of {total} pairs are held out; name a file of held-out pairs")
    if too_long or n_held_out_too_long:
        warn(
            f"left out {too_long} training and {n_held_out_too_long} held-out pairs of more than "
            f"{config.max_length} tokens on a side; a larger limit keeps them",
            "max_length",
        )
