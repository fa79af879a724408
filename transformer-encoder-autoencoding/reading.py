"""Text of any size from files, read as a stream as often as it is needed and never held as a whole: its
lines, what is held out of training, and what remains.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from cli import InputError
from store import fingerprint

LONGEST = 2**26  # bytes of a line
CHUNK, CHARACTERS = 1000, 1_000_000  # that are tokenized at a time
MOST_HELD_OUT = 1000  # sentences
SPLITTING = 2  # goes up when another version holds out, or leaves out of training, other sentences
SAMPLE = 30_000_000  # bytes of text from which a vocabulary is learnt; of more text, an evenly spread part


def numbered_lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """The lines of a binary stream as text, stripped, blank ones skipped, a byte order mark dropped, each
    with its number, from 1.

    Raises InputError at a line that is not UTF-8 text, or is too long to be held in memory, naming it.
    """
    for number, raw in enumerate(iter(lambda: stream.readline(LONGEST + 1), b""), start=1):
        if len(raw) > LONGEST:  # as of an endless stream without a line's end
            raise InputError(f"{name}, line {number}: is longer than {LONGEST >> 20} MB; break it into lines")
        if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{name}: is UTF-16; save it as UTF-8")
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name}, line {number}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
            ) from None
        if "\0" in line:
            raise InputError(f"{name}, line {number}: holds a NUL byte; a text file is needed")
        if line:
            yield number, line


def lines_of(path: Path) -> Iterator[str]:
    """All lines of a text file, as numbered_lines gives them.

    Raises InputError where there is no such file, or nothing but blank lines in it.
    """
    check(path)
    line = None
    with path.open("rb") as stream:
        for _, line in numbered_lines(stream, str(path)):
            yield line
    if line is None:
        raise InputError(f"{path}: holds no text; a file with a sentence a line is needed")


def check(path: Path) -> Path:
    """Raises InputError where there is no file that can be read again and again."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a text file")
    if not path.exists():
        raise InputError(
            f"{path}: {'a broken link' if path.is_symlink() else 'no such file'}; name a text file"
        )
    if not path.is_file():
        raise InputError(f"{path}: can be read but once; save its text as a file, and name that")
    return path


def plain(text: str) -> str:
    """A text by which those that differ in spaces alone, or in how many code points an accented letter has,
    are known to be the same."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def draw_held_out(sentences: Iterable[str], seed: int) -> list[str]:
    """One distinct sentence in twenty, at least one and at most 1,000: those whose BLAKE2b digests, as plain
    text and keyed with the seed, come first. Another order of the sentences or repetitions make no
    difference; of those that differ in spaces alone, the first in the order of the alphabet is taken.

    Raises InputError where there are fewer than two distinct sentences.
    """
    key, last = seed.to_bytes(8, "little"), b"\xff" * 17
    distinct: set[bytes] = set()
    first: dict[bytes, str] = {}
    for sentence in sentences:
        digest = hashlib.blake2b(plain(sentence).encode(), key=key, digest_size=16).digest()
        if len(distinct) < 20 * MOST_HELD_OUT:  # more of them change nothing
            distinct.add(digest)
        if digest <= last:
            first[digest] = min(sentence, first.get(digest, sentence))
            if len(first) == 2 * MOST_HELD_OUT:
                first = dict(sorted(first.items())[:MOST_HELD_OUT])
                last = max(first)
    if len(distinct) < 2:
        raise InputError("the corpus holds one distinct sentence; at least two are needed, one to hold out")
    return [first[digest] for digest in sorted(first)[: max(1, len(distinct) // 20)]]


def chunks(sentences: Iterable[str]) -> Iterator[list[str]]:
    """Lists of at most CHUNK sentences, each ending where CHARACTERS are reached."""
    chunk, room = [], CHARACTERS
    for sentence in sentences:
        chunk.append(sentence)
        room -= len(sentence)
        if len(chunk) == CHUNK or room <= 0:
            yield chunk
            chunk, room = [], CHARACTERS
    if chunk:
        yield chunk


class Text:
    """The training sentences of some files, read anew whenever they are iterated over, so that they are never
    all in memory, and those held out, which are left out of them."""

    def __init__(self, files: list[Path], held_out_file: Path | None, seed: int):
        """What is held out is what the held-out file has; without one, hold_out() draws it."""
        self.files, self.held_out_file, self.seed = files, held_out_file, seed
        prints = [fingerprint(check(path)) for path in files]
        self.bytes, self.lines = (sum(one[size] for one in prints) for size in ("bytes", "lines"))
        self.recipe = {
            "files": [one["sha256"] for one in prints],
            "held_out": fingerprint(check(held_out_file))["sha256"] if held_out_file else f"seed {seed}",
            "splitting": SPLITTING,
        }
        self.held_out = list(lines_of(held_out_file)) if held_out_file else []
        self.sentences, self.left_out = 0, 0  # how many the last pass met, and how many it left out

    def hold_out(self) -> None:
        """Draw what is held out, unless a file says it."""
        if not self.held_out_file:
            self.held_out = draw_held_out(self.read("holding out"), self.seed)

    def recall(self, notes: dict) -> None:
        """Take what is held out, and how many sentences are, from what tokenize noted down."""
        self.sentences, self.left_out = notes["sentences"], notes["left_out"]
        self.held_out = notes["held_out"] or self.held_out

    def read(self, task: str) -> Iterator[str]:
        """The training sentences, in order and with their repetitions; a bar shows how far the task has come.

        Raises InputError where none is left.
        """
        aside, self.sentences, self.left_out = set(map(plain, self.held_out)), 0, 0
        with tqdm(desc=task, total=self.lines, unit=" lines", unit_scale=True, leave=False, delay=1) as bar:
            for path in self.files:
                for sentence in lines_of(path):
                    bar.update()
                    if plain(sentence) in aside:
                        self.left_out += 1
                    else:
                        self.sentences += 1
                        yield sentence
        if not self.sentences:
            raise InputError(
                f"{self.held_out_file}: holds all training sentences; nothing is left to train on"
            )

    def __iter__(self) -> Iterator[str]:
        return self.read("reading")

    def sample(self, task: str) -> Iterator[str]:
        """All sentences, or of more than SAMPLE bytes every second, third ..., so that no more remain."""
        return islice(self.read(task), 0, None, max(1, -(-self.bytes // SAMPLE)))
