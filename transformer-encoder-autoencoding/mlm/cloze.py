"""mlm.cloze"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Encoding, Regex, Tokenizer, pre_tokenizers

from encoder import MaskedLanguageModel
from masking import IGNORE

from .common.errors import InputError
from .common.files import write_text
from .common.lines import numbered_lines
from .dataset import Corpus
from .tokenizer import CLS, SEP, WORD, SpecialIds

MOST_COUNTED = 1_000_000  # sentences that the baseline takes its counts from


HEADER = ["sentence", "key", "kind"]


WORDS = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)


def words_of(sentence: str) -> dict[tuple[int, int], str]:
    """Where each word begins and ends, in characters, and the word. What counts as one is decided by the
    word tokenizer's regular expression: Python's own rules do not count combining marks as parts of words.
    """
    return {span: word for word, span in WORDS.pre_tokenize_str(sentence)}


@dataclass(frozen=True)
class Cloze:
    """A sentence, the word of it that gets hidden (which occurs in it once), the kind of the test, and where
    it stands."""

    sentence: str
    key: str
    kind: str
    place: str = field(default="a cloze test", compare=False)

    def key_span(self) -> tuple[int, int]:
        """Where the key word begins and ends, in characters."""
        return next(span for span, word in words_of(self.sentence).items() if word == self.key)


def read_clozes(text_file: Path) -> list[Cloze]:
    """The cloze tests beside a text file, none if there is no such file. A first line that names the columns
    is no test.

    Raises InputError at a line that is not a cloze test.
    """
    path = text_file.parent / f"{text_file.stem}.cloze.tsv"
    if not path.is_file():
        return []
    with path.open("rb") as stream:
        lines = list(numbered_lines(stream, str(path)))
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


def key_tokens(cloze: Cloze, encoding: Encoding) -> list[int]:
    """Which tokens of its sentence the key word is made of."""
    begin, end = cloze.key_span()
    return [i for i, (left, right) in enumerate(encoding.offsets) if left < end and right > begin]


def check(clozes: Sequence[Cloze], tokenizer: Tokenizer, max_length: int) -> None:
    """Raises InputError where a sentence is too long for a model that takes max_length tokens, or its key
    word has none."""
    for cloze in clozes:
        encoding = tokenizer.encode(cloze.sentence)
        if len(encoding) > max_length:
            raise InputError(
                f"{cloze.place}: the sentence has {len(encoding)} tokens, the model takes {max_length}; "
                "shorten it, or raise --max-length"
            )
        if not key_tokens(cloze, encoding):
            raise InputError(f"{cloze.place}: the tokenizer drops the key word; take another one")


@dataclass(frozen=True)
class Answers:
    """What a model says to cloze tests: the mean loss over the hidden tokens (nats), and its guesses."""

    loss: float
    guesses: list[str]


@torch.no_grad()
def ask(model: MaskedLanguageModel, tokenizer: Tokenizer, clozes: list[Cloze], batch_size: int = 256) -> Answers:
    """Hide the key word of every sentence, all its tokens at once, and let the model fill it.

    Raises InputError where a sentence is too long for the model, or a key word has no token.
    """
    check(clozes, tokenizer, model.config.max_length)
    special = SpecialIds.of(tokenizer)
    device = next(model.parameters()).device
    model.eval()
    total, count, guesses = 0.0, 0, []
    for start in range(0, len(clozes), batch_size):
        chunk = clozes[start : start + batch_size]
        encodings = tokenizer.encode_batch([cloze.sentence for cloze in chunk])
        width = max(len(encoding) for encoding in encodings)
        ids = torch.full((len(chunk), width), special.pad)
        labels = torch.full_like(ids, IGNORE)
        for row, (cloze, encoding) in enumerate(zip(chunk, encodings, strict=True)):
            ids[row, : len(encoding)] = torch.tensor(encoding.ids)
            key = key_tokens(cloze, encoding)
            labels[row, key] = ids[row, key]
        scored = labels != IGNORE
        logits = model(ids.masked_fill(scored, special.mask).to(device), scored.to(device)).cpu()  # (N, V)
        total += F.cross_entropy(logits, labels[scored], reduction="sum").item()
        count += int(scored.sum())
        filled = logits.argmax(dim=-1).split(scored.sum(dim=1).tolist())
        for cloze, tokens, key in zip(chunk, filled, (row[row != IGNORE] for row in labels), strict=True):
            right = torch.equal(tokens, key)  # of an uncased tokenizer, "paris" is right for "Paris"
            text = tokenizer.decode(tokens.tolist(), skip_special_tokens=False).strip()
            guesses.append(cloze.key if right else text)
    return Answers(total / count, guesses)


class NeighbourBaseline:
    """Fill a gap from counts alone: the word most often seen between these two neighbours in training,
    else after the left one, else the most frequent word.

    It counts what the given tests ask for, in the first MOST_COUNTED sentences: its memory has bounds.
    """

    def __init__(self, sentences: Iterable[str], clozes: Sequence[Cloze]):
        self.between: dict[tuple[str, str], Counter] = {neighbours(cloze): Counter() for cloze in clozes}
        self.after: dict[str, Counter] = {left: Counter() for left, _ in self.between}
        self.words: Counter = Counter()
        for sentence in islice(sentences, MOST_COUNTED if clozes else 0):
            words = [CLS, *words_of(sentence).values(), SEP]
            self.words.update(words[1:-1])
            for left, word, right in zip(words, words[1:], words[2:], strict=False):
                if left in self.after:
                    self.after[left][word] += 1
                    if (left, right) in self.between:
                        self.between[left, right][word] += 1

    def guess(self, cloze: Cloze) -> str:
        """The word for the gap."""
        left, right = neighbours(cloze)
        counts = self.between[left, right] or self.after[left] or self.words
        return counts.most_common(1)[0][0] if counts else ""


def neighbours(cloze: Cloze) -> tuple[str, str]:
    """The words before and after the gap."""
    words = [CLS, *words_of(cloze.sentence).values(), SEP]
    gap = words.index(cloze.key)
    return words[gap - 1], words[gap + 1]


def accuracy(clozes: list[Cloze], guesses: list[str]) -> dict[str, float]:
    """The share of right guesses, for each kind."""
    kinds: dict[str, list[bool]] = {}
    for cloze, guess in zip(clozes, guesses, strict=True):
        kinds.setdefault(cloze.kind, []).append(guess == cloze.key)
    return {kind: sum(right) / len(right) for kind, right in kinds.items()}


def report(
    model: MaskedLanguageModel,
    tokenizer: Tokenizer,
    sentences: Iterable[str],
    recall_tests: list[Cloze],
    held_out_tests: list[Cloze],
    figures: dict,
    folder: Path,
) -> None:
    """Put the cloze tests, where there are any, to the model and to the baseline, and compare.

    Writes folder/metrics.json (the given figures and those measured here), and prints a table and examples.
    """
    metrics, lines = dict(figures), [f"\n{'':44}{'Transformer':>12}{'neighbours':>12}"]
    lines.append(f"{'held-out text, hidden tokens, accuracy':44}{figures['held_out_accuracy']:12.1%}")
    lines.append(f"{'held-out text, hidden tokens, loss':44}{figures['held_out_loss']:12.3f}")
    baseline = NeighbourBaseline(sentences, recall_tests + held_out_tests)
    if recall_tests:
        answers = ask(model, tokenizer, recall_tests)
        recall = sum(guess == cloze.key for guess, cloze in zip(answers.guesses, recall_tests, strict=True))
        known = sum(baseline.guess(cloze) == cloze.key for cloze in recall_tests)
        metrics |= {"recall_loss": answers.loss, "recall_accuracy": recall / len(recall_tests)}
        label = f"training sentences ({len(recall_tests):,}), key word"
        lines.append(f"{label:44}{recall / len(recall_tests):12.1%}{known / len(recall_tests):12.1%}")
        lines.append(f"{'training sentences, loss of the key words':44}{answers.loss:12.4f}")
    if held_out_tests:
        guesses = ask(model, tokenizer, held_out_tests).guesses
        by_kind = accuracy(held_out_tests, guesses)
        baseline_by_kind = accuracy(held_out_tests, [baseline.guess(cloze) for cloze in held_out_tests])
        metrics |= {"held_out_by_kind": by_kind, "baseline_by_kind": baseline_by_kind}
        for kind, share in by_kind.items():
            label = f"held-out {kind} ({sum(cloze.kind == kind for cloze in held_out_tests):,}), key word"
            lines.append(f"{label:44}{share:12.1%}{baseline_by_kind[kind]:12.1%}")
        lines.append("\nheld-out sentences, the key word hidden:")
        for i in range(0, len(held_out_tests), -(-len(held_out_tests) // 10)):
            cloze = held_out_tests[i]
            begin, end = cloze.key_span()
            verdict = "" if guesses[i] == cloze.key else f"  (was: {cloze.key})"
            lines.append(f"  {cloze.sentence[:begin]}[{guesses[i]}]{cloze.sentence[end:]}{verdict}")
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    print("\n".join(lines))  # last: whoever reads them may have left


def unigram_loss(corpus: Corpus, held_out: Corpus, vocab_size: int) -> float:
    """The loss (nats a token) of predicting what may be hidden of the held-out text from its frequency in
    training alone: the plateau on which masked language models can get stuck. Counts start at one."""
    counts = np.ones(vocab_size)
    for start in range(0, len(corpus.ids), 2**20):
        counts += np.bincount(corpus.ids[start : start + 2**20], minlength=vocab_size)
        corpus.release()
    special = list(vars(corpus.special).values())  # which are never hidden
    counts[special] = 0
    ids = held_out.ids[~np.isin(held_out.ids, special)]
    return float(-np.log(counts[ids] / counts.sum()).mean())
