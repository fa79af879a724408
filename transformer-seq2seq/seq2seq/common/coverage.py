"""How well a vocabulary covers a text: how many tokens a word is cut into, and how many it does not know."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .errors import warn

MAX_TEXTS = 10_000  # to look at
WORD = re.compile(r"[\u3400-\u9fff]|[^\s\u3400-\u9fff]+")  # an ideograph, or what stands between spaces
FEW, MAX_UNKNOWN = 10, 0.05  # unknown tokens, and a share of all, without a warning


@dataclass(frozen=True)
class Coverage:
    """The number of words of some texts, of their tokens, and of the unknown ones among these."""

    n_words: int
    n_tokens: int
    n_unknown: int

    @classmethod
    def of(cls, texts: Iterable[str], ids: np.ndarray, unk_id: int) -> "Coverage":
        """Count in texts and in the ids of all their tokens, one text behind the other."""
        return cls(sum(len(WORD.findall(text)) for text in texts), len(ids), int(np.count_nonzero(ids == unk_id)))

    @property
    def unknown(self) -> float:
        """The share of the tokens that are unknown."""
        return self.n_unknown / max(1, self.n_tokens)

    def __str__(self) -> str:
        return f"{self.n_tokens / max(1, self.n_words):.2f} tokens a word, {self.unknown:.1%} unknown"

    def warn(self, tokens: str, effect: str = "", init: bool = False) -> None:
        """Warn if many tokens are unknown. tokens: what to call them; effect: what comes of it; init: True if the
        vocabulary is that of a model to start from."""
        if self.n_unknown > max(FEW, MAX_UNKNOWN * self.n_tokens):
            unknown = f"{self.unknown:.0%} of the {tokens} are unknown{effect}"
            if init:
                warn(f"{unknown}; the vocabulary is that of the model to start from", "init")
            else:
                warn(f"{unknown}; with subwords (bpe), none is", "tokenizer")
