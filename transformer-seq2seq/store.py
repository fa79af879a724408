"""Token ids on disk: written once, in the order of the text, and read through memory maps, so that memory
does not grow with the corpus; and the batches of an epoch, planned a block of the corpus at a time.
"""

import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cli import InputError, flush

BLOCK = 2**17  # so many sequences are shuffled together, sorted by length and grouped into batches
# A block has so many neighbours from each of 16 places of the corpus. More places would mix better, but the
# operating system may map 2 MB of every file around each, and count that as memory used.
CHUNK = 2**13
PARTS = {"ids": None, "lengths": np.int32, "offsets": np.int64}  # files, and the types of their numbers


class Sequences:
    """Sequences of token ids, one behind the other: number i is ids[offsets[i] : offsets[i + 1]]."""

    def __init__(self, ids: np.ndarray, lengths: np.ndarray, offsets: np.ndarray):
        self.ids, self.lengths, self.offsets = map(np.asarray, (ids, lengths, offsets))
        self.maps = [part.base for part in (ids, lengths, offsets) if isinstance(part, np.memmap)]

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self, indices: np.ndarray, padding: int) -> np.ndarray:
        """The sequences with these indices, padded: int64 (B, the longest's length)."""
        lengths = self.lengths[indices]
        within = np.arange(lengths.max())
        positions = np.minimum(self.offsets[indices][:, None] + within, len(self.ids) - 1)
        return np.where(within < lengths[:, None], self.ids[positions].astype(np.int64), padding)

    def release(self) -> None:
        """Let go of the memory that holds what was read from the maps; reading on fills it again."""
        for part in self.maps if hasattr(mmap, "MADV_DONTNEED") else []:
            part.madvise(mmap.MADV_DONTNEED)


def gathered(pieces: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, ...]:
    """The ids, lengths and offsets of sequences that come in pieces, each its ids and their lengths."""
    ids, lengths = map(np.concatenate, zip(*pieces, strict=True))
    return ids, lengths, np.concatenate([[0], np.cumsum(lengths)])


def mapped(folder: Path, name: str) -> list[np.ndarray]:
    """The ids, lengths and offsets that a Writer has written, as memory maps."""
    return [np.load(folder / f"{name}.{part}.npy", mmap_mode="r") for part in PARTS]


class Column:
    """A one-dimensional .npy file that grows."""

    def __init__(self, path: Path, dtype: np.dtype | type):
        self.file, self.dtype, self.length = path.open("wb"), np.dtype(dtype), 0
        self.write_header()

    def write_header(self) -> None:
        """NumPy leaves room in it for the largest length."""
        self.file.seek(0)
        header = {"shape": (self.length,), "fortran_order": False, "descr": self.dtype.str}
        np.lib.format.write_array_header_1_0(self.file, header)

    def append(self, values: np.ndarray) -> None:
        """Write some more values, of any type that the file's can hold."""
        self.file.write(np.asarray(values, dtype=self.dtype).tobytes())
        self.length += len(values)


class Writer:
    """Writes sequences of ids below vocab_size into three .npy files, which mapped() opens."""

    def __init__(self, folder: Path, name: str, vocab_size: int):
        small = np.uint16 if vocab_size <= 2**16 else np.int32
        self.columns = [Column(folder / f"{name}.{part}.npy", kind or small) for part, kind in PARTS.items()]
        self.columns[-1].append([0])

    def append(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """The ids of some sequences, one behind the other, and how many each has."""
        ends = self.columns[0].length + np.cumsum(lengths)
        for column, values in zip(self.columns, (ids, lengths, ends), strict=True):
            column.append(values)

    def __len__(self) -> int:
        return self.columns[1].length

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, failed: type | None, *_) -> None:
        for column in self.columns:
            with column.file:
                if not failed:
                    column.write_header()


def fingerprint(path: Path) -> dict[str, Any]:
    """What a file holds, as its SHA-256, and its size in bytes and lines. A gigabyte takes seconds."""
    digest, size, lines = hashlib.sha256(), 0, 0
    with path.open("rb") as stream:
        while piece := stream.read(2**20):
            digest.update(piece)
            size += len(piece)
            lines += piece.count(b"\n")
    return {"sha256": digest.hexdigest(), "bytes": size, "lines": lines}


class Store:
    """A folder for what is made once from a text and kept while that, and how it is made, stays the same.

    recipe: all that it depends on, fit for JSON. The folder is either whole or not there: it is written
    beside its place, flushed, and moved.
    """

    def __init__(self, folder: Path, recipe: dict[str, Any]):
        self.folder, self.recipe = folder, recipe
        self.digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]

    def read(self) -> dict[str, Any] | None:
        """The notes that fill was given; None where there are none of this recipe, or a file has another
        content than it had. A gigabyte takes seconds."""
        try:
            meta = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
            if meta["digest"] != self.digest:
                return None
            digests = meta["sha256"].items()
            whole = all(fingerprint(self.folder / name)["sha256"] == digest for name, digest in digests)
            return meta["notes"] if whole else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    @contextmanager
    def fill(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """A folder to write into, and a dict to note in what read() should give. Where the body fails,
        nothing is left of either, and what was in place before stays.

        Raises InputError where a folder of that name is there which no Store has written.
        """
        if self.folder.exists() and not (self.folder / "meta.json").is_file():
            raise InputError(
                f"{self.folder}: is needed for the text as token ids, but something else is there; move it "
                "away, or name another --output"
            )
        part = self.folder.with_name(f"{self.folder.name}.part")
        new = [folder for folder in part.parents if not folder.exists()]
        notes: dict[str, Any] = {}
        try:
            shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
            part.mkdir(parents=True)
            yield part, notes
            meta = {"digest": self.digest, "recipe": self.recipe, "notes": notes}
            meta["sha256"] = {file.name: fingerprint(file)["sha256"] for file in part.iterdir()}
            (part / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
            flush(part)
            shutil.rmtree(self.folder, ignore_errors=True)
            os.replace(part, self.folder)
        except BaseException as error:
            if isinstance(error, OSError) and not error.filename:  # as where the disk is full
                error.filename = str(self.folder)
            shutil.rmtree(part, ignore_errors=True)
            for folder in new:
                with suppress(OSError):
                    folder.rmdir()
            raise


def cut(lengths: np.ndarray, batch_tokens: int) -> list[int]:
    """Where to cut a list of sequences into batches: as many into each as fit, their number times the longest
    being at most batch_tokens, and at least one. Returns the bounds, 0 and len(lengths) included."""
    bounds = [0]
    while (start := bounds[-1]) < len(lengths):
        most = batch_tokens // int(lengths[start]) + 1
        widths = np.maximum.accumulate(lengths[start : start + most])
        fitting = np.searchsorted(widths * np.arange(1, len(widths) + 1), batch_tokens, side="right")
        bounds.append(start + max(1, int(fitting)))
    return bounds


class Plan(Sequence):
    """One epoch's batches, as arrays of indices: a function of the seed alone, at any position.

    Sequences of like length go together, so that B times the longest is at most batch_tokens with little
    padding; a longer one is a batch alone. Which of the same length meet, and the order of the batches, is
    drawn from the seed.

    A corpus of more than BLOCK sequences is planned in blocks, whose order is drawn too. Of n blocks, number
    j has chunks j, j + n, j + 2n ... of the text, in every epoch: each has something of the whole corpus, and
    every epoch has as many batches.
    """

    def __init__(self, sides: Sequence[Sequences], batch_tokens: int, seed: int | list[int]):
        """sides: what has a length for every index, the one that is sorted by first at the end."""
        self.sides, self.batch_tokens = sides, batch_tokens
        self.n_blocks = n = -(-len(sides[0]) // BLOCK)
        self.order = np.random.default_rng(seed).permutation(n)
        root = np.random.SeedSequence(seed)
        self.seeds = root.spawn(n) if n > 1 else [root]
        self.ends = np.cumsum([self.count(number) for number in self.order])
        self.planned, self.batches = -1, []  # the place in the order of the block whose batches these are

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, position: int) -> np.ndarray:
        if not 0 <= position < len(self):
            raise IndexError(position)
        place = int(np.searchsorted(self.ends, position, side="right"))
        if place != self.planned:
            self.planned, self.batches = place, self.plan(self.order[place])
        return self.batches[position - int(self.ends[place])]  # negative: counted from the block's end

    def block(self, number: int) -> np.ndarray:
        """The indices of a block, in the order of the corpus. What was read of other blocks leaves memory."""
        for side in self.sides:
            side.release()
        n = len(self.sides[0])
        chunks = np.arange(number, -(-n // CHUNK), self.n_blocks)
        indices = (chunks[:, None] * CHUNK + np.arange(CHUNK)).ravel()
        return indices[indices < n]

    def sorted(self, indices: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """The same indices by length, and where to cut them into batches."""
        order = indices[np.lexsort([side.lengths[indices] for side in self.sides])]
        longest = np.maximum.reduce([side.lengths[order] for side in self.sides])
        return order, cut(longest, self.batch_tokens)

    def count(self, number: int) -> int:
        """How many batches a block has, however it is shuffled."""
        return len(self.sorted(self.block(number))[1]) - 1

    def plan(self, number: int) -> list[np.ndarray]:
        """The batches of a block."""
        rng, indices = np.random.default_rng(self.seeds[number]), self.block(number)
        order, bounds = self.sorted(indices[rng.permutation(len(indices))])
        batches = [order[start:end] for start, end in pairwise(bounds)]
        return [batches[i] for i in rng.permutation(len(batches))]
