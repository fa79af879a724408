"""Input that somebody waits behind: a person at the prompt, or a program that writes a line and wants its answer."""

import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import BinaryIO

from .errors import InputError

PATIENCE = 0.01  # seconds that the next line may take


def typed_lines(hint: str) -> Iterator[str]:
    """Yield what a person types at the prompt, until an empty line or the end of input."""
    if sys.stdout.isatty():
        with suppress(ImportError):  # Windows has its own
            import readline  # noqa: F401  (the arrow keys now edit the line, and bring earlier ones back)
    print(hint, file=sys.stderr)
    while True:
        try:
            line = input("> " if sys.stdout.isatty() else "").strip()
        except EOFError:
            return
        if not line:
            return
        yield line


class PipeReader:
    """The lines of a pipe, as `readline` of a file gives them, and an answer to the question if more are there."""

    def __init__(self, stream: BinaryIO):
        self.stream, self.buffer, self.ended = stream, bytearray(), False

    def fill(self) -> None:
        """Read what is there; wait if nothing is."""
        piece = self.stream.read1(2**16)
        self.buffer += piece
        self.ended = not piece

    def readline(self, limit: int) -> bytes:
        """Return the next line, or `limit` bytes of it; at the end of input b""."""
        searched = 0
        while (end := self.buffer.find(b"\n", searched, limit)) < 0 and len(self.buffer) < limit and not self.ended:
            searched = len(self.buffer)
            self.fill()
        size = limit if end < 0 else end + 1
        line = bytes(self.buffer[:size])
        del self.buffer[:size]
        return line

    def seekable(self) -> bool:
        """Return False: what has been read is gone."""
        return False

    def peek(self, size: int) -> bytes:
        """Return at most `size` bytes without taking them; wait for some."""
        if not self.buffer and not self.ended:
            self.fill()
        return bytes(self.buffer[:size])

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, as the modules that unpack compressed text ask for them; wait for some."""
        piece = self.peek(size)
        del self.buffer[:size]
        return piece

    def has_line(self) -> bool:
        """Return False if a reader would have to wait for another line that is not blank."""
        while b"\n" not in self.buffer.lstrip() and not self.ended:
            if not select.select([self.stream], [], [], PATIENCE)[0]:
                return False
            self.fill()
        return True


def always() -> bool:
    """Return True: of a file that is there, no line has to be waited for."""
    return True


def watch(stream: BinaryIO) -> tuple[BinaryIO | PipeReader, Callable[[], bool]]:
    """Return a stream to read lines from, and a function that returns False if the next one has to be waited for."""
    if stream.seekable() or os.name == "nt":  # select knows no pipes on Windows
        return stream, always
    try:
        stream.fileno()
    except OSError:  # not a pipe of the operating system
        return stream, always
    reader = PipeReader(stream)
    return reader, reader.has_line


def batched(items: Iterable, size: int, has_more: Callable[[], bool]) -> Iterator[list]:
    """Yield lists of `size` items, the last one shorter, as is one whose next item has to be waited for; if an item is
    refused, those before it come first."""
    batch = []
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size or not has_more():
                yield batch
                batch = []
    except InputError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch
