"""The words of a text that a vocabulary does not have: which they are, and one warning that names them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from .errors import warn

MAX_REMEMBERED, MAX_NAMED, MAX_LENGTH = 1000, 5, 40  # words, words in the warning, characters of each


def find_unknown(text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]], unk_id: int) -> dict[int, str]:
    """Return the words of a text whose tokens are unknown, by their places among its ids. offsets: where in the text
    each token begins and ends."""
    words, seen = {}, 0  # some tokenizers let a word begin at the sign before it
    for i, (start, end) in enumerate(offsets):
        word, seen = text[max(start, seen) : end].strip(), max(seen, end)
        if ids[i] == unk_id and word:
            words[i] = word
    return words


def remember(words: Iterable[str], unknown: dict[str, None]) -> None:
    """Add words, long ones cut short, to those that collect_unknown yields, unless these are many already."""
    if len(unknown) < MAX_REMEMBERED:
        unknown.update({word if len(word) < MAX_LENGTH else f"{word[: MAX_LENGTH - 1]}…": None for word in words})


@contextmanager
def collect_unknown(token: str) -> Iterator[dict[str, None]]:
    """Yield an ordered set for unknown words; when the block ends, in whatever way, warn of them in one line. token:
    what the model sees for them."""
    unknown: dict[str, None] = {}
    try:
        yield unknown
    finally:
        if unknown:
            at_least = "at least " if len(unknown) >= MAX_REMEMBERED else ""
            more = f" and {at_least}{len(unknown) - MAX_NAMED} more" if len(unknown) > MAX_NAMED else ""
            warn(f"unknown to the model, which sees {token} instead: {', '.join(islice(unknown, MAX_NAMED))}{more}")
