"""mlm.dataset"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from .common.batching import Plan
from .common.errors import InputError, warn
from .common.token_store import Sequences, Store, Writer, gathered, mapped
from .text import Text, chunks
from .tokenizer import SpecialIds


def windows(
    sentences: Iterable[str], tokenizer: Tokenizer, max_length: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Sentences as token ids, some at a time: the ids of windows, one behind the other, and their lengths.

    Each window is [CLS], at most max_length - 2 tokens, [SEP]; a longer sentence becomes several windows of
    nearly equal length. Windows in which nothing can be hidden, as all tokens are special or unknown, are
    left out; how many, comes third.
    """
    special, room = SpecialIds.of(tokenizer), max_length - 2
    for chunk in chunks(sentences):
        encodings = tokenizer.encode_batch_fast(chunk, add_special_tokens=False)
        rows = [encoding.ids for encoding in encodings]
        ids, totals = np.fromiter(chain.from_iterable(rows), np.int64), np.array(list(map(len, rows)))
        left_out = int((totals == 0).sum())
        if not len(ids):
            yield ids, ids, left_out
            continue
        parts = -(-totals // room)  # how many windows a sentence becomes, whose first ones are longer by one
        nth = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
        totals, parts = np.repeat(totals, parts), np.repeat(parts, parts)
        lengths = totals // parts + (nth < totals % parts)
        hidden = ~np.isin(ids, list(vars(special).values()))  # what may be
        keep = np.add.reduceat(hidden, np.cumsum(lengths) - lengths) > 0
        left_out += int((~keep).sum())
        ids, lengths = ids[np.repeat(keep, lengths)], lengths[keep]
        ends = np.cumsum(lengths)
        around = np.repeat([special.sep, special.cls], len(ends))  # where both go, the end goes first
        yield np.insert(ids, np.concatenate([ends, ends - lengths]), around), lengths + 2, left_out


def check_windows(kept: int, left_out: int, sentences: Iterable[str]) -> None:
    """Warn of windows that were left out. Raises InputError where none was kept."""
    if not kept:
        first = next(iter(sentences))
        raise InputError(
            f"nothing to learn from or to test in sentences such as {first[:40]!r}: the tokenizer knows no "
            "word in them; name other text, or try --tokenizer bpe"
        )
    if left_out:
        warn(f"left out {left_out} of {kept + left_out} passages, in which the tokenizer knows no word")


class Corpus(Sequences):
    """Tokenized windows of text, in memory or, of any size, on disk."""

    def __init__(self, special: SpecialIds, ids: np.ndarray, lengths: np.ndarray, offsets: np.ndarray):
        super().__init__(ids, lengths, offsets)
        self.special = special

    @classmethod
    def of(cls, sentences: Sequence[str], tokenizer: Tokenizer, max_length: int) -> "Corpus":
        """Tokenize sentences in memory. Raises InputError where the tokenizer knows no word in them."""
        pieces = list(windows(sentences, tokenizer, max_length))
        kept = sum(len(lengths) for _, lengths, _ in pieces)
        left_out = sum(left_out for *_, left_out in pieces)
        check_windows(kept, left_out, sentences)
        return cls(SpecialIds.of(tokenizer), *gathered((ids, lengths) for ids, lengths, _ in pieces))

    @classmethod
    def open(cls, store: Store, tokenizer: Tokenizer) -> "Corpus":
        """The windows that tokenize has written."""
        return cls(SpecialIds.of(tokenizer), *mapped(store.folder, "windows"))

    @property
    def tokens(self) -> int:
        """The number of tokens, [CLS] and [SEP] included."""
        return len(self.ids)

    def rows(self, indices: np.ndarray) -> Tensor:
        """The windows with these indices, padded: int64 (B, S)."""
        return torch.from_numpy(super().rows(indices, self.special.pad))

    def plan(self, batch_tokens: int, seed: int | list[int]) -> Plan:
        """One epoch's batches of windows, B * S <= batch_tokens, as the seed has them."""
        return Plan([self], batch_tokens, seed)


def tokenize(text: Text, tokenizer: Tokenizer, max_length: int, store: Store) -> None:
    """Fill a store: the windows of the training sentences, what is held out, and the tokenizer.

    Raises InputError where the tokenizer knows no word in them.
    """
    with store.fill() as (folder, notes):
        unlearnable = 0
        highest = max(tokenizer.get_vocab().values())  # not their number: some vocabularies have gaps
        with Writer(folder, "windows", highest + 1) as writer:
            for ids, lengths, left_out in windows(text.read("tokenizing"), tokenizer, max_length):
                writer.append(ids, lengths)
                unlearnable += left_out
            check_windows(len(writer), unlearnable, text)
        (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        drawn = None if text.held_out_file else text.held_out
        notes |= {"held_out": drawn, "sentences": text.sentences, "left_out": text.left_out}
