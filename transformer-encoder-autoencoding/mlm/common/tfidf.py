"""Look a text up by tf-idf: the usual baseline that needs no model."""

import math
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from tokenizers import Regex, pre_tokenizers

from .lines import normalize

SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"  # scripts without spaces
LETTER = rf"[\w&&[^{SPACELESS}]]"  # or digit, or combining mark, which Python's \w leaves out
WORD = rf"{LETTER}+(?:[-'’\u200c\u200d]{LETTER}+)*|[{SPACELESS}]\p{{M}}*"
WORDS = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)


def words(text: str) -> list[str]:
    """Return the words of a text in lower case; of scripts without spaces, each letter."""
    return [word for word, _ in WORDS.pre_tokenize_str(normalize(text).lower())]


def letter_pairs(text: str) -> list[str]:
    """Return the pairs of neighbouring characters of a text in lower case, its ends included."""
    padded = f" {normalize(text).lower()} "
    return [padded[i : i + 2] for i in range(len(padded) - 1)]


class TfIdf:
    """Texts as vectors, a number for each term: how often it occurs (tf) times its rarity, the idf.

        idf(t) = ln((1 + n) / (1 + n_t)) + 1   of n texts, n_t of which have the term t

    terms: a function that cuts a text into terms.
    """

    def __init__(self, texts: Sequence[str], terms: Callable[[str], list[str]]):
        self.terms, places = terms, {}
        for i, text in enumerate(texts):
            for term in terms(text):
                places.setdefault(term, array("i")).append(i)
        self.idf: dict[str, float] = {}
        self.entries: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # the texts that have a term, and their numbers
        squares = np.full(len(texts), 1e-9)
        for term in list(places):
            indices, counts = np.unique(np.array(places.pop(term)), return_counts=True)
            self.idf[term] = math.log((1 + len(texts)) / (1 + len(indices))) + 1
            numbers = (counts * self.idf[term]).astype(np.float32)
            self.entries[term] = indices, numbers
            squares[indices] += numbers**2
        self.norms = np.sqrt(squares)

    def nearest(self, query: str) -> int | None:
        """Return the index of the first text whose vector has the least angle to the query's, or None if no text
        shares a term with it."""
        products = np.zeros(len(self.norms))
        for term, count in Counter(self.terms(query)).items():
            if term in self.entries:
                indices, numbers = self.entries[term]
                products[indices] += count * self.idf[term] * numbers
        return int(np.argmax(products / self.norms)) if products.any() else None


class Lookup:
    """Finds the text that is nearest to a query by its words or, if none of these is known, by pairs of letters."""

    def __init__(self, texts: Sequence[str]):
        self.texts, self.by_words = texts, TfIdf(texts, words)

    @cached_property
    def by_letters(self) -> TfIdf:
        """The texts by their pairs of letters."""
        return TfIdf(self.texts, letter_pairs)

    def nearest(self, query: str) -> int | None:
        """Return the index of the nearest text, or None if none shares anything with the query."""
        found = self.by_words.nearest(query)
        return self.by_letters.nearest(query) if found is None else found

    def rarity(self, word: str) -> float:
        """Return the idf of a word, or of the rarest of its parts, if some text has it."""
        return max((self.by_words.idf.get(part, 0.0) for part in words(word)), default=0.0)
