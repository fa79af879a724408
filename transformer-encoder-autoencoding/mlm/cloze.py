"""Cloze tests: sentences with one word to hide. What a model fills in, and what a baseline does that needs no
Transformer."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tokenizers import Encoding, Regex, Tokenizer, pre_tokenizers

from encoder import MaskedLanguageModel

from .common.errors import InputError, naming
from .common.lines import numbered_lines
from .filling import Query, predict
from .tokenizer import CLS, SEP, WORD, SpecialIds

MAX_COUNTED = 1_000_000  # sentences from which the baseline takes its counts
HEADER = ["sentence", "key", "kind"]
WORDS = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)


def words_of(sentence: str) -> dict[tuple[int, int], str]:
    """Return the words of a sentence by where they begin and end, in characters.

    The word tokenizer's regular expression decides what a word is: Python's own rules do not count combining
    marks as parts of words.
    """
    return {span: word for word, span in WORDS.pre_tokenize_str(sentence)}


@dataclass(frozen=True)
class Cloze:
    """A sentence, the word of it to hide (which occurs in it once), the kind of the test, and the file and line
    that it comes from."""

    sentence: str
    key: str
    kind: str
    place: str = field(default="a cloze test", compare=False)

    def key_span(self) -> tuple[int, int]:
        """Return where the key word begins and ends, in characters."""
        return next(span for span, word in words_of(self.sentence).items() if word == self.key)

    def neighbours(self) -> tuple[str, str]:
        """Return the words before and after the key word."""
        words = [CLS, *words_of(self.sentence).values(), SEP]
        gap = words.index(self.key)
        return words[gap - 1], words[gap + 1]


def read_clozes(text_file: Path) -> list[Cloze]:
    """Read the cloze tests beside a text file; there are none if there is no such file. A first line that names
    the columns is not a test."""
    path = text_file.parent / f"{text_file.stem}.cloze.tsv"
    if not path.is_file():
        return []
    with path.open("rb") as stream:
        lines = [(number, line.strip()) for number, line in numbered_lines(stream, str(path)) if line.strip()]
    clozes = []
    if lines and lines[0][1].split("\t") == HEADER:
        lines = lines[1:]
    for number, line in lines:
        place, columns = f"{path}, line {number}", line.split("\t")
        if len(columns) != 3 or list(words_of(columns[0]).values()).count(columns[1]) != 1:
            hint = f" (or, as a header, {', '.join(HEADER)})" if number == 1 else ""
            raise InputError(f"{place}: needs a sentence, a word that it has once, and a kind, tab-separated{hint}")
        clozes.append(Cloze(*columns, place))
    return clozes


@dataclass(frozen=True)
class EncodedCloze:
    """A cloze test as a model gets it: all tokens of the key word are hidden at once, and key_ids are what they
    were."""

    cloze: Cloze
    query: Query
    key_ids: list[int]


def encode_clozes(clozes: Sequence[Cloze], tokenizer: Tokenizer, max_length: int) -> list[EncodedCloze]:
    """Encode cloze tests for a model that takes max_length tokens."""
    encodings = tokenizer.encode_batch([cloze.sentence for cloze in clozes])
    mask = SpecialIds.of(tokenizer).mask
    return [encode_cloze(cloze, encoding, mask, max_length) for cloze, encoding in zip(clozes, encodings, strict=True)]


def encode_cloze(cloze: Cloze, encoding: Encoding, mask: int, max_length: int) -> EncodedCloze:
    """Hide the key word in the encoding of a cloze test."""
    begin, end = cloze.key_span()
    key = [i for i, (left, right) in enumerate(encoding.offsets) if left < end and right > begin]
    with naming(cloze.place):
        if len(encoding) > max_length:
            too_long = f"the sentence has {len(encoding)} tokens, the model takes {max_length}"
            raise InputError(f"{too_long}; shorten it, or let the model take more", "max_length")
        if not key:
            raise InputError("the tokenizer drops the key word; take another one")
    ids = [mask if i in key else token for i, token in enumerate(encoding.ids)]
    return EncodedCloze(cloze, Query(ids, key), [encoding.ids[i] for i in key])


@dataclass(frozen=True)
class Answers:
    """A model's answers to cloze tests: its mean loss over the hidden tokens (nats), and the words it fills in."""

    loss: float
    guesses: list[str]


def answer(clozes: Sequence[EncodedCloze], model: MaskedLanguageModel, tokenizer: Tokenizer) -> Answers:
    """Let a model fill in the key words of one or more cloze tests."""
    device = next(model.parameters()).device
    queries = [test.query for test in clozes]
    total, guesses = 0.0, [""] * len(clozes)
    for i, log_probs in predict(queries, model.eval(), SpecialIds.of(tokenizer), device):
        key, filled = clozes[i].key_ids, log_probs.argmax(dim=-1).tolist()
        total -= log_probs[range(len(key)), key].sum().item()
        text = tokenizer.decode(filled, skip_special_tokens=False).strip()
        guesses[i] = clozes[i].cloze.key if filled == key else text  # "paris" is right for "Paris" if it is uncased
    return Answers(total / sum(len(test.key_ids) for test in clozes), guesses)


def accuracy(clozes: Sequence[Cloze], guesses: Iterable[str]) -> float:
    """Return the share of right guesses."""
    return sum(guess == cloze.key for cloze, guess in zip(clozes, guesses, strict=True)) / len(clozes)


def accuracy_by_kind(clozes: Sequence[Cloze], guesses: Iterable[str]) -> dict[str, float]:
    """Return the share of right guesses for each kind of test, in the order in which the kinds appear."""
    right: dict[str, list[bool]] = {}
    for cloze, guess in zip(clozes, guesses, strict=True):
        right.setdefault(cloze.kind, []).append(guess == cloze.key)
    return {kind: sum(those) / len(those) for kind, those in right.items()}


class NeighbourBaseline:
    """Fills a gap from counts alone: with the word most often seen between these two neighbours in training, else
    after the left one, else with the most frequent word.

    It counts only what the given tests need, in the first MAX_COUNTED sentences: its memory is bounded.
    """

    def __init__(self, sentences: Iterable[str], clozes: Sequence[Cloze]):
        self.between: dict[tuple[str, str], Counter] = {cloze.neighbours(): Counter() for cloze in clozes}
        self.after: dict[str, Counter] = {left: Counter() for left, _ in self.between}
        self.words: Counter = Counter()
        for sentence in islice(sentences, MAX_COUNTED if clozes else 0):
            words = [CLS, *words_of(sentence).values(), SEP]
            self.words.update(words[1:-1])
            for left, word, right in zip(words, words[1:], words[2:], strict=False):
                if left in self.after:
                    self.after[left][word] += 1
                    if (left, right) in self.between:
                        self.between[left, right][word] += 1

    def guess(self, cloze: Cloze) -> str:
        """Return the word for the gap of one of the given tests."""
        left, right = cloze.neighbours()
        counts = self.between[left, right] or self.after[left] or self.words
        return counts.most_common(1)[0][0] if counts else ""
