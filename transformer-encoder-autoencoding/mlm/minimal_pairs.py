"""Minimal pairs: a good sentence and a bad one that differ in one thing. How often does a model prefer the good one?"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from math import fsum
from pathlib import Path

from .common.errors import InputError
from .common.lines import numbered_lines, open_text
from .filler import MaskFiller, Sentence
from .filling import known_surprisals

HEADERS = ["good", "bad"], ["sentence_good", "sentence_bad"]  # the second is BLiMP's
TIE = 1e-4  # nats; a smaller difference is one of rounding, as the model computes in single precision
PREFERRED, TIED, UNKNOWN = "preferred", "ties", "unknown"


@dataclass(frozen=True)
class MinimalPair:
    """Two sentences, and the kind of the pair ("" if the file names none)."""

    good: Sentence
    bad: Sentence
    kind: str = ""


@dataclass(frozen=True)
class MinimalPairs:
    """The pairs of a file, and the name of the column with their kinds."""

    pairs: Sequence[MinimalPair]
    kind_name: str


def read_pairs(path: Path) -> MinimalPairs:
    """Read the two or three columns of a tab-separated file. A first line that names them is not a pair."""
    with open_text(path) as stream:
        numbered = [(n, line.lstrip(" ").rstrip()) for n, line in numbered_lines(stream, str(path)) if line.strip()]
    rows = [(f"{path}, line {number}", [cell.strip() for cell in line.split("\t")]) for number, line in numbered]
    kind_name, width = "kind", len(rows[0][1]) if rows else 0
    if rows and [name.casefold() for name in rows[0][1][:2]] in HEADERS:
        _, names = rows.pop(0)
        kind_name = names[2] if width == 3 else kind_name
    if not rows:
        raise InputError(f"{path}: contains no pair; give a good and a bad sentence a line, tab-separated")
    pairs = []
    for place, cells in rows:
        if width not in (2, 3) or len(cells) != width or not all(cells):
            columns = "the good sentence, the bad one and, in all lines or in none, the kind of the pair"
            raise InputError(f"{place}: needs {columns}, tab-separated")
        good, bad = (Sentence(text, place) for text in cells[:2])
        pairs.append(MinimalPair(good, bad, *cells[2:]))
    return MinimalPairs(pairs, kind_name)


def outcome(good: dict, bad: dict) -> str:
    """Compare the scores of two sentences, as score_each yields them, by the log-probability of their tokens, added
    up (Salazar et al. 2020). Return PREFERRED if the good one's is higher, TIED if they are equal, UNKNOWN if they
    have different numbers of tokens that the model does not know, and so of terms, else "other"."""
    sums, unknown = [], []
    for result in good, bad:
        surprisals = known_surprisals(result["tokens"])
        sums.append(-fsum(surprisals))  # in double precision
        unknown.append(len(result["tokens"]) - len(surprisals))
    if unknown[0] != unknown[1]:
        return UNKNOWN
    difference = sums[0] - sums[1]
    return TIED if abs(difference) < TIE else PREFERRED if difference > 0 else "other"


def outcomes(pairs: Sequence[MinimalPair], filler: MaskFiller) -> Iterator[str]:
    """Score the sentences of pairs, and yield the outcome of each: UNKNOWN if the model knows no word of one of them.
    All are checked first, so that a sentence that cannot be scored is named before any work is done."""
    known = [all(filler.knows(sentence) for sentence in (pair.good, pair.bad)) for pair in pairs]
    scores = filler.score_each(one for pair in compress(pairs, known) for one in (pair.good, pair.bad))
    for both in known:
        yield outcome(next(scores), next(scores)) if both else UNKNOWN


def compare(minimal_pairs: MinimalPairs, filler: MaskFiller) -> dict:
    """Count the outcomes of all pairs.

    Return {"pairs": int, "preferred": int, "ties": int, "unknown": int, "accuracy": preferred / pairs, "by_kind":
    {kind: the same for its pairs}}. Ties, and pairs that cannot be compared, count as wrong.
    """
    by_kind: dict[str, Counter] = {}
    for pair, found in zip(minimal_pairs.pairs, outcomes(minimal_pairs.pairs, filler), strict=True):
        by_kind.setdefault(pair.kind, Counter())[found] += 1
    figures = {kind: summarize(counts) for kind, counts in by_kind.items()}
    return {**summarize(sum(by_kind.values(), Counter())), "by_kind": {k: v for k, v in figures.items() if k}}


def summarize(counts: Counter) -> dict:
    """Return the figures of some pairs from the numbers of their outcomes."""
    figures = {"pairs": counts.total(), **{name: counts[name] for name in (PREFERRED, TIED, UNKNOWN)}}
    return {**figures, "accuracy": counts[PREFERRED] / counts.total()}


def table(figures: dict, kind_name: str) -> str:
    """Return what compare() found as a table for a person to read: a line for each kind, and one for all pairs."""
    rows = [(kind_name if figures["by_kind"] else "", "pairs", "first preferred", "ties", "unknown")]
    for kind, of_kind in [*figures["by_kind"].items(), ("all", figures)]:
        shares = f"{of_kind['pairs']:,}", f"{of_kind['accuracy']:.1%}", f"{of_kind[TIED]:,}", f"{of_kind[UNKNOWN]:,}"
        rows.append((kind, *shares))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for first, *cells in rows
    )
