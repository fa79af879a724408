"""Text files with a sentence a line: what is held out of training, and the stream of what remains."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .common.errors import InputError, warn
from .common.lines import (
    check_rereadable,
    draw_held_out,
    guess_format,
    normalize,
    numbered_lines,
    open_text,
    text_fingerprint,
)

SPLITTING = 3  # goes up when another version holds out, or leaves out of training, other sentences
SAMPLE_BYTES = 30_000_000  # of text from which a vocabulary is learnt; of more, an evenly spread part
FIRST_LINES, LONG_LINE = 100, 100_000  # lines that show a file's format; characters


def warn_of_format(path: Path) -> None:
    """Say if a file seems to be no text with a sentence a line: everything in it is learnt as text."""
    with open_text(path) as stream:
        lines = (line.strip() for _, line in numbered_lines(stream, str(path)))
        first = [line[: LONG_LINE + 1] for line in islice(filter(None, lines), FIRST_LINES)]
    if seen := guess_format(first):
        warn(f"{path}: looks like {seen}, which is learnt as text; extract the sentences, one a line")
    elif max(map(len, first), default=0) > LONG_LINE:
        warn(f"{path}: has a line of over {LONG_LINE:,} characters; break it into sentences, one a line")


class TextFile:
    """The sentences of a text file, a line each and stripped, read again whenever iterated over. Blank lines are
    skipped."""

    def __init__(self, path: Path):
        self.path = check_rereadable(path)
        warn_of_format(self.path)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """The SHA-256 of the file and its size in bytes and in lines."""
        return text_fingerprint(self.path)

    def __iter__(self) -> Iterator[str]:
        sentence = ""
        with open_text(self.path) as stream:
            for _, line in numbered_lines(stream, str(self.path)):
                if line := line.strip():
                    yield (sentence := line)
        if not sentence:
            raise InputError(f"{self.path}: contains no text; name a file with a sentence a line")


def read_all(files: Sequence[TextFile], task: str) -> Iterator[str]:
    """Yield the sentences of all files; a bar shows the progress of the task."""
    n_lines = sum(file.fingerprint["lines"] for file in files)
    with tqdm(desc=task, total=n_lines, unit=" lines", unit_scale=True, leave=False, delay=1, disable=None) as bar:
        for file in files:
            for sentence in file:
                bar.update()
                yield sentence


def draw_held_out_sentences(files: Sequence[TextFile], seed: int) -> list[str]:
    """Return one distinct sentence in twenty, as draw_held_out() draws them."""
    return draw_held_out(read_all(files, "holding out"), seed, "sentence")


@dataclass(frozen=True)
class TextSource:
    """The training sentences of some files, in order and with their repetitions, read again whenever iterated over,
    so that they are never all in memory. A sentence that is held out is left out."""

    files: Sequence[TextFile]
    held_out: Sequence[str]

    def read(self, task: str) -> Iterator[str]:
        """Yield the training sentences; a bar shows the progress of the task."""
        kept = False
        for sentence in read_all(self.files, task):
            if not self.is_held_out(sentence):
                kept = True
                yield sentence
        if not kept:
            problem = "all training sentences are held out; nothing is left to train on"
            raise InputError(f"{problem}; name another file, or none", "held_out")

    def __iter__(self) -> Iterator[str]:
        return self.read("reading")

    def is_held_out(self, sentence: str) -> bool:
        """Return True if a sentence is held out, perhaps with other spaces or written with other code points."""
        return normalize(sentence) in self.normalized

    @cached_property
    def normalized(self) -> set[str]:
        """The held-out sentences, for comparison."""
        return set(map(normalize, self.held_out))

    def sample(self, task: str) -> Iterator[str]:
        """Yield all sentences; if there are more than SAMPLE_BYTES, every second, third ... sentence."""
        n_bytes = sum(file.fingerprint["bytes"] for file in self.files)
        return islice(self.read(task), 0, None, max(1, -(-n_bytes // SAMPLE_BYTES)))
