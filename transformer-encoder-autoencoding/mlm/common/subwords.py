"""Byte pair encoding of a size that fits the text: learn its merges."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer

LONG_WORD = re.compile(r"\S{1000}")  # the time to learn subwords from one word grows with its square
MAX_SUBWORDS = 8_000


@dataclass(frozen=True)
class Sizing:
    """How a text decides on its subwords: how often what is merged occurs at least, and the number of characters of
    text for each merge."""

    min_frequency: int
    characters_per_merge: int


def train_subwords(
    tokenizer: Tokenizer, texts: Iterable[str], vocab_size: int | None, sizing: Sizing, special: list[str], unk: str
) -> None:
    """Learn the merges of a byte-level tokenizer (Sennrich et al. 2016, section 3.2; Radford et al. 2019, section 2.2).

    vocab_size None: the text decides, up to MAX_SUBWORDS. special: tokens that come first, unk among them.
    """
    n_characters = 0

    def pieces() -> Iterator[str]:
        nonlocal n_characters
        for text in texts:
            n_characters += len(text)
            yield LONG_WORD.sub(r"\g<0> ", text)

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=vocab_size or MAX_SUBWORDS,
        min_frequency=0 if vocab_size else sizing.min_frequency,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(pieces(), trainer)
    if vocab_size is None:  # the first merges are those that a smaller vocabulary would have
        model = json.loads(tokenizer.to_str())["model"]
        n_merges = n_characters // sizing.characters_per_merge
        size = len(special) + len(alphabet) + n_merges
        vocabulary = {token: i for token, i in model["vocab"].items() if i < size}
        merges = [tuple(merge) for merge in model["merges"][:n_merges]]
        tokenizer.model = models.BPE(vocabulary, merges, unk_token=unk)
