"""Text files of any size, read as a stream of lines, and the part of a text that is held out of training."""

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import InputError

MAX_LINE_BYTES = 2**26
MAX_HELD_OUT = 1000  # distinct texts
CHUNK_ITEMS, CHUNK_CHARACTERS = 1000, 1_000_000  # tokenized at a time


def numbered_lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a binary stream as text with their numbers, from 1, without their line ends.

    A byte order mark is dropped. name: the stream in messages, such as a path or "standard input".
    """
    for number, raw in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES + 1), b""), start=1):
        if len(raw) > MAX_LINE_BYTES:  # for example an endless stream without a line end
            size = MAX_LINE_BYTES >> 20
            raise InputError(f"{name}, line {number}: is longer than {size} MB; break it into lines")
        if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{name}: is UTF-16; save it as UTF-8")
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name}, line {number}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
            ) from None
        if "\0" in line:
            raise InputError(f"{name}, line {number}: contains a NUL byte; name a text file")
        yield number, line


def open_text(path: Path) -> BinaryIO:
    """Open a file or a pipe."""
    if path.is_dir() or not path.exists():
        reason = "is a folder" if path.is_dir() else "a broken link" if path.is_symlink() else "no such file"
        raise InputError(f"{path}: {reason}; name a text file")
    return path.open("rb")


def check_rereadable(path: Path) -> Path:
    """Return path if it is a file that can be read again and again; refuse a pipe and what is not there."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path}: can be read only once; save its text as a file, and name that")
    open_text(path).close()
    return path


def normalize(text: str) -> str:
    """Normalize Unicode (NFC) and whitespace, so that equal texts compare equal."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def draw_held_out(texts: Iterable[str], seed: int, kind: str) -> list[str]:
    """Draw one distinct text in twenty, at least one and at most MAX_HELD_OUT, normalized texts compared.

    Those are drawn whose BLAKE2b digests, keyed with the seed, come first, so that neither the order of the
    texts nor repetitions make a difference. Of variants that normalize to the same text the first in
    alphabetical order is returned. kind names the texts in messages, such as "sentence" or "source".
    """
    key, last = seed.to_bytes(8, "little"), b"\xff" * 17
    distinct: set[bytes] = set()
    first: dict[bytes, str] = {}
    for text in texts:
        digest = hashlib.blake2b(normalize(text).encode(), key=key, digest_size=16).digest()
        if len(distinct) < 20 * MAX_HELD_OUT:  # more of them change nothing
            distinct.add(digest)
        if digest <= last:
            first[digest] = min(text, first.get(digest, text))
            if len(first) == 2 * MAX_HELD_OUT:
                first = dict(sorted(first.items())[:MAX_HELD_OUT])
                last = max(first)
    if len(distinct) < 2:
        raise InputError(f"the training text has one distinct {kind}; give at least two, so that one can be held out")
    return [first[digest] for digest in sorted(first)[: max(1, len(distinct) // 20)]]


def chunks(items: Iterable, n_characters: Callable[..., int] = len) -> Iterator[list]:
    """Yield lists of at most CHUNK_ITEMS items, each cut short once it has CHUNK_CHARACTERS characters."""
    chunk, room = [], CHUNK_CHARACTERS
    for item in items:
        chunk.append(item)
        room -= n_characters(item)
        if len(chunk) == CHUNK_ITEMS or room <= 0:
            yield chunk
            chunk, room = [], CHUNK_CHARACTERS
    if chunk:
        yield chunk
