"""Text files of any size, read as a stream of lines, and the part of a text that is held out of training."""

import csv
import hashlib
import importlib
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InputError
from .files import LFS_POINTER, LFS_REMEDY, fingerprint

MAX_LINE_BYTES = 2**26
MAX_HELD_OUT = 1000  # distinct texts
CHUNK_ITEMS, CHUNK_CHARACTERS = 1000, 1_000_000  # tokenized at a time
COMPRESSED = {  # first bytes, the usual suffix, and the module of the standard library that unpacks it
    rb"\x1f\x8b\x08": (".gz", "gzip"),
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": (".bz2", "bz2"),
    rb"\xfd7zXZ\x00": (".xz", "lzma"),
    rb"\x28\xb5\x2f\xfd": (".zst", None),
    rb"PK\x03\x04": (".zip, or an office document", None),
}
OTHER_LINE_ENDS = re.compile(rb"\r|\xc2\x85|\xe2\x80[\xa8\xa9]")  # CR; U+0085, U+2028, U+2029 in UTF-8
JSON = re.compile(r"""\{\s*"|\[\s*[\[{"]|[\[{]$""")
XML = re.compile(r"<(\?xml|!doctype|html|mediawiki|doc)\b", re.IGNORECASE)


def is_rereadable(stream: BinaryIO) -> bool:
    """Return True if a stream can be read again. On Windows even a pipe says that it is seekable."""
    try:
        return stream.seekable() and not stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except OSError:  # not a stream of the operating system
        return stream.seekable()


def unpacked(stream: BinaryIO, name: str) -> BinaryIO:
    """Return a stream of what a binary stream holds in compressed form, or the stream itself if it is not
    compressed. name: the stream in messages."""
    if is_rereadable(stream):
        position = stream.tell()
        start = stream.read(10)
        stream.seek(position)
    else:
        start = stream.peek(10)[:10]
    for magic, (suffix, module) in COMPRESSED.items():
        if re.match(magic, start):
            try:
                return importlib.import_module(module or "").open(stream)
            except (ImportError, ValueError):  # not in the standard library, or not in this Python
                raise InputError(f"{name}: is compressed ({suffix}); unpack it, and name the text file") from None
    return stream


def raw_lines(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield the lines of a stream, compressed or not, each cut after MAX_LINE_BYTES + 1."""
    text = unpacked(stream, name)
    try:
        yield from iter(lambda: text.readline(MAX_LINE_BYTES + 1), b"")
    except Exception as error:  # each module has its own
        if text is stream or getattr(error, "errno", None):
            raise
        raise InputError(f"{name}: is compressed, and damaged or cut off; download it again") from None


def numbered_lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a binary stream as text with their numbers, from 1, without their line ends.

    What is compressed is unpacked, and a byte order mark is dropped. name: the stream in messages, such as a path or
    "standard input".
    """
    for number, raw in enumerate(raw_lines(stream, name), start=1):
        if number == 1 and not raw.endswith(b"\n") and OTHER_LINE_ENDS.search(raw.rstrip()):
            raise InputError(f"{name}: its lines end in CR or U+2028, none in LF; save it with LF line ends")
        if len(raw) > MAX_LINE_BYTES:  # for example an endless stream without a line end
            size = MAX_LINE_BYTES >> 20
            raise InputError(f"{name}, line {number}: is longer than {size} MB; break it into lines")
        if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{name}: is UTF-16; save it as UTF-8")
        if number == 1 and raw.startswith(LFS_POINTER):
            raise InputError(f"{name}: {LFS_REMEDY}")
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


def text_fingerprint(path: Path) -> dict[str, Any]:
    """Return the fingerprint of a text file as it lies, with the size of the text if the file is compressed."""
    found = fingerprint(path)
    with open_text(path) as stream:
        if unpacked(stream, str(path)) is not stream:
            sizes = [0, 0]
            for raw in raw_lines(stream, str(path)):
                sizes = [sizes[0] + len(raw), sizes[1] + 1]
            found["bytes"], found["lines"] = sizes
    return found


def guess_format(lines: Sequence[str]) -> str | None:
    """Return the format that the first lines of a file seem to be in, or None if it seems to be text.

    Lines of columns have the same number of separators, and, unlike commas in prose, no space behind them.
    """
    if lines and (JSON.match(lines[0]) or XML.match(lines[0])):
        return "JSON" if JSON.match(lines[0]) else "XML or HTML"
    for separator, name in (("\t", "tab-separated columns"), (",", "CSV"), (";", "CSV")):
        rows = list(csv.reader((line[:1000].replace("\r", " ") for line in lines), delimiter=separator))
        widths = Counter(len(row) for row in rows if not any(field.startswith(" ") for field in row[1:]))
        width, count = max(widths.items(), key=lambda item: item[1], default=(1, 0))
        if width > 1 and count > 1 and count >= 0.9 * len(rows):
            return name
    return None


def normalize(text: str) -> str:
    """Normalize Unicode (NFC) and whitespace, and drop the places where a line may break (soft hyphen, zero-width
    space), so that equal texts compare equal."""
    return " ".join(unicodedata.normalize("NFC", re.sub("[\u00ad\u200b]", "", text)).split())


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
