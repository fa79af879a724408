"""seq2seq.dataset"""

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from itertools import chain, compress

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from .common.batching import Plan
from .common.errors import InputError
from .common.token_store import Sequences, Store, Writer, gathered, mapped
from .pairs import Pair, Pairs, chunks
from .tokenizer import IGNORE, PAD

SIDES = "source", "target"


@dataclass(frozen=True)
class Batch:
    """source (B, S), padded; target (B, T), what the decoder reads: the start token (the padding token),
    then the reference without its last token; labels (B, T), what it has to predict at each position: the
    reference, IGNORE where there is padding."""

    source: Tensor
    target: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same on that device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))


class PairCorpus:
    """Tokenized pairs, each side ending in </s>, in memory or, of any size, on disk."""

    def __init__(self, pad_id: int, source: Sequences, target: Sequences):
        self.pad_id, self.source, self.target = pad_id, source, target

    @classmethod
    def of(cls, pairs: Iterable[Pair], tokenizer: Tokenizer, max_length: int) -> "PairCorpus":
        """Tokenize pairs in memory. Raises InputError where none is short enough."""
        pieces = [sides for _, sides in encoded(pairs, tokenizer, max_length)]
        if not any(len(lengths) for (_, lengths), _ in pieces):
            raise InputError(too_long(max_length))
        sides = (Sequences(*gathered(side)) for side in zip(*pieces, strict=True))
        return cls(tokenizer.token_to_id(PAD), *sides)

    @classmethod
    def open(cls, store: Store, tokenizer: Tokenizer) -> "PairCorpus":
        """The pairs that tokenize has written."""
        sides = (Sequences(*mapped(store.folder, name)) for name in SIDES)
        return cls(tokenizer.token_to_id(PAD), *sides)

    def __len__(self) -> int:
        return len(self.source.lengths)

    def batch(self, indices: np.ndarray) -> Batch:
        """The pairs with these indices."""
        source, labels = self.source.rows(indices, self.pad_id), self.target.rows(indices, IGNORE)
        start = np.full((len(labels), 1), self.pad_id)
        read = np.concatenate([start, np.where(labels == IGNORE, self.pad_id, labels)[:, :-1]], axis=1)
        return Batch(*map(torch.from_numpy, (source, read, labels)))

    def plan(self, batch_tokens: int, seed: int | list[int]) -> Plan:
        """One epoch's batches of pairs, B * max(S, T) <= batch_tokens, as the seed has them."""
        return Plan([self.source, self.target], batch_tokens, seed)


def too_long(max_length: int) -> str:
    """What is wrong where no pair is left."""
    return f"no pair has at most {max_length} tokens on each side; raise --max-length"


def encoded(
    pairs: Iterable[Pair], tokenizer: Tokenizer, max_length: int
) -> Iterator[tuple[list[Pair], list[tuple[np.ndarray, np.ndarray]]]]:
    """Pairs as token ids, some at a time: the pairs, and for either side the ids of all, one behind the
    other, and how many each has. Pairs with a side of more than max_length tokens are left out."""
    encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    encode_targets = getattr(tokenizer, "encode_targets", encode)
    for chunk in chunks(pairs):
        texts = [pair.source for pair in chunk], [pair.target for pair in chunk]
        rows = [[e.ids for e in encode(texts[0])], [e.ids for e in encode_targets(texts[1])]]
        short = [max(map(len, both)) <= max_length for both in zip(*rows, strict=True)]
        sides = [list(compress(side, short)) for side in rows]
        yield (
            list(compress(chunk, short)),
            [
                (
                    np.fromiter(chain.from_iterable(side), np.int64),
                    np.array(list(map(len, side)), dtype=np.int64),
                )
                for side in sides
            ],
        )


def short_enough(pairs: Iterable[Pair], tokenizer: Tokenizer, max_length: int) -> list[Pair]:
    """The pairs of which neither side has more than max_length tokens."""
    return [pair for kept, _ in encoded(pairs, tokenizer, max_length) for pair in kept]


def tokenize(pairs: Pairs, tokenizer: Tokenizer, max_length: int, store: Store) -> None:
    """Fill a store: both sides of the training pairs, what is held out, and the tokenizer.

    Raises InputError where no pair is short enough.
    """
    vocab_size = 1 + max(tokenizer.get_vocab().values())  # not their number: some vocabularies have gaps
    with store.fill() as (folder, notes):
        with (
            Writer(folder, "source", vocab_size) as sources,
            Writer(folder, "target", vocab_size) as targets,
        ):
            for _, (source, target) in encoded(pairs.read("tokenizing"), tokenizer, max_length):
                sources.append(*source)
                targets.append(*target)
            if not len(sources):
                raise InputError(too_long(max_length))
        if isinstance(tokenizer, Tokenizer):  # else it came with --init, and comes again
            (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        notes |= {
            "held_out": [] if pairs.held_out_file else [astuple(pair) for pair in pairs.held_out],
            "pairs": pairs.kept,
            "left_out": pairs.left_out,
            "skipped": [file.skipped for file in pairs.files],
        }
