"""Cloze tests: sentences with one word to hide. What a model fills in, and what a baseline does that needs no
Transformer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tokenizers import Encoding, Regex, Tokenizer, pre_tokenizers

from encoder import MaskedLanguageModel

from .common.errors import InputError, naming
from .common.lines import COMPRESSED, normalize, numbered_lines
from .common.tfidf import Lookup
from .filling import Query, predict
from .tokenizer import WORD, SpecialIds, text_alone

MAX_COMPARED = 100_000  # sentences among which the baseline looks
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

    def rest(self) -> str:
        """Return the sentence without the key word."""
        begin, end = self.key_span()
        return f"{self.sentence[:begin]} {self.sentence[end:]}"


def read_clozes(text_file: Path) -> list[Cloze]:
    """Read the cloze tests beside a text file: my.cloze.tsv is that of my.txt and of my.txt.gz. There are none if there
    is no such file. A first line that names the columns is not a test."""
    name = text_file.name
    for suffix, _ in COMPRESSED.values():
        name = name.removesuffix(suffix)
    path = text_file.parent / f"{Path(name).stem}.cloze.tsv"
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
    with text_alone(tokenizer):
        encodings = tokenizer.encode_batch([cloze.sentence for cloze in clozes])
    mask = SpecialIds.of(tokenizer).mask
    return [encode_cloze(cloze, encoding, mask, max_length) for cloze, encoding in zip(clozes, encodings, strict=True)]


def encode_cloze(cloze: Cloze, encoding: Encoding, mask: int, max_length: int) -> EncodedCloze:
    """Hide the key word in the encoding of a cloze test."""
    begin, end = cloze.key_span()
    begin -= cloze.sentence[:begin].endswith(" ")  # a space that is a token of its own is part of the word behind it
    key = [i for i, (left, right) in enumerate(encoding.offsets) if left < end and right > begin]
    with naming(cloze.place):
        if len(encoding) > max_length:
            too_long = f"the sentence has {len(encoding)} tokens, the model takes {max_length}"
            raise InputError(f"{too_long}; shorten it, or let the model take more", "max_length")
        if not key:
            raise InputError("the tokenizer drops the key word; use another one")
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


def is_right(guess: str, cloze: Cloze) -> bool:
    """Return True if a guess is the key word, both normalized."""
    return normalize(guess) == normalize(cloze.key)


def accuracy(clozes: Sequence[Cloze], guesses: Iterable[str]) -> float:
    """Return the share of right guesses."""
    return sum(map(is_right, guesses, clozes)) / len(clozes)


def accuracy_by_kind(clozes: Sequence[Cloze], guesses: Iterable[str]) -> dict[str, float]:
    """Return the share of right guesses for each kind of test, in the order in which the kinds appear."""
    right: dict[str, list[bool]] = {}
    for cloze, guess in zip(clozes, guesses, strict=True):
        right.setdefault(cloze.kind, []).append(is_right(guess, cloze))
    return {kind: sum(those) / len(those) for kind, those in right.items()}


class NearestSentence:
    """A baseline that needs no Transformer: looks up the training sentence that is nearest to the rest of a cloze test
    by tf-idf, and fills in the rarest of its words that the rest lacks.

    It looks among the first MAX_COMPARED sentences, so that its memory is bounded.
    """

    def __init__(self, sentences: Iterable[str]):
        self.sentences = list(islice(sentences, MAX_COMPARED))
        self.lookup = Lookup(self.sentences)

    def guess(self, cloze: Cloze) -> str:
        """Return the word for the gap, or nothing if there is none."""
        rest = cloze.rest()
        found = self.lookup.nearest(rest)
        if found is None:
            return ""
        known = {normalize(word).lower() for word in words_of(rest).values()}
        words = words_of(self.sentences[found]).values()
        return max((word for word in words if normalize(word).lower() not in known), key=self.lookup.rarity, default="")
