"""Byte pair encoding of a size that fits the text: learn its merges."""

import json
import re
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer

LONG_WORD = re.compile(r"\S{1000}")  # the time to learn subwords from one word grows with its square
# Subwords that are rare teach nothing, and those of a small text soon are whole sentences
MIN_FREQUENCY, CHARACTERS_PER_SUBWORD, MAX_SUBWORDS = 10, 400, 8_000


def train_subwords(
    tokenizer: Tokenizer, texts: Iterable[str], vocab_size: int | None, special: list[str], unk: str
) -> None:
    """Learn the merges of a byte-level tokenizer (Sennrich et al. 2016, section 3.2; Radford et al. 2019, section 2.2).

    vocab_size None: the text decides, one merge for CHARACTERS_PER_SUBWORD characters, none of a pair that is rare.
    special: tokens that come first, unk among them.
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
        min_frequency=0 if vocab_size else MIN_FREQUENCY,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(pieces(), trainer)
    if vocab_size is None:  # the first merges are those that a smaller vocabulary would have
        model = json.loads(tokenizer.to_str())["model"]
        n_merges = n_characters // CHARACTERS_PER_SUBWORD
        size = len(special) + len(alphabet) + n_merges
        vocabulary = {token: i for token, i in model["vocab"].items() if i < size}
        merges = [tuple(merge) for merge in model["merges"][:n_merges]]
        tokenizer.model = models.BPE(vocabulary, merges, unk_token=unk)
