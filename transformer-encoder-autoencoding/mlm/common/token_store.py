"""Token ids on disk: written once, in the order of the text, and read through memory maps, so that memory
does not grow with the corpus.
"""

import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import fingerprint, fsync_files, replace

COLUMNS = {"ids": None, "lengths": np.int32, "offsets": np.int64}  # files, and the types of their numbers


class Sequences:
    """Sequences of token ids, one behind the other: number i is ids[offsets[i] : offsets[i + 1]]."""

    def __init__(self, ids: np.ndarray, lengths: np.ndarray, offsets: np.ndarray):
        self.ids, self.lengths, self.offsets = map(np.asarray, (ids, lengths, offsets))
        self.maps = [part.base for part in (ids, lengths, offsets) if isinstance(part, np.memmap)]

    def __len__(self) -> int:
        return len(self.lengths)

    def padded(self, indices: np.ndarray, padding: int) -> np.ndarray:
        """Return the sequences with these indices, padded: int64 (B, length of the longest)."""
        lengths = self.lengths[indices]
        within = np.arange(lengths.max())
        positions = np.minimum(self.offsets[indices][:, None] + within, len(self.ids) - 1)
        return np.where(within < lengths[:, None], self.ids[positions].astype(np.int64), padding)

    def release(self) -> None:
        """Free the memory that holds what was read from the maps; reading on fills it again."""
        for part in self.maps if hasattr(mmap, "MADV_DONTNEED") else []:
            part.madvise(mmap.MADV_DONTNEED)


def concatenate(pieces: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, ...]:
    """Join pieces, each the ids of some sequences and their lengths -> ids, lengths and offsets of all."""
    ids, lengths = map(np.concatenate, zip(*pieces, strict=True))
    return ids, lengths, np.concatenate([[0], np.cumsum(lengths)])


def open_sequences(folder: Path, name: str) -> list[np.ndarray]:
    """Open the ids, lengths and offsets that a SequenceWriter has written, as memory maps."""
    return [np.load(folder / f"{name}.{part}.npy", mmap_mode="r") for part in COLUMNS]


class GrowingColumn:
    """A one-dimensional .npy file that grows."""

    def __init__(self, path: Path, dtype: np.dtype | type):
        self.file, self.dtype, self.length = path.open("wb"), np.dtype(dtype), 0
        self.write_header()

    def write_header(self) -> None:
        """Write the file's header, which has room for the largest length."""
        self.file.seek(0)
        header = {"shape": (self.length,), "fortran_order": False, "descr": self.dtype.str}
        np.lib.format.write_array_header_1_0(self.file, header)

    def append(self, values: np.ndarray) -> None:
        """Append values of any type that fits into the file's."""
        self.file.write(np.asarray(values, dtype=self.dtype).tobytes())
        self.length += len(values)


class SequenceWriter:
    """Writes sequences of ids below vocab_size into three .npy files, which open_sequences() opens."""

    def __init__(self, folder: Path, name: str, vocab_size: int):
        small = np.uint16 if vocab_size <= 2**16 else np.int32
        self.columns = [GrowingColumn(folder / f"{name}.{part}.npy", kind or small) for part, kind in COLUMNS.items()]
        self.columns[-1].append([0])

    def append(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Append some sequences: their ids, one behind the other, and the length of each."""
        ends = self.columns[0].length + np.cumsum(lengths)
        for column, values in zip(self.columns, (ids, lengths, ends), strict=True):
            column.append(values)

    def __len__(self) -> int:
        return self.columns[1].length

    def __enter__(self) -> "SequenceWriter":
        return self

    def __exit__(self, failed: type | None, *_) -> None:
        for column in self.columns:
            with column.file:
                if not failed:
                    column.write_header()


class TokenStore:
    """A folder for what is made once from a text and used again while text and settings stay the same.

    cache_key: all that the content depends on, fit for JSON. The folder is either whole or not there: it is
    written beside its place, flushed, and moved.
    """

    def __init__(self, folder: Path, cache_key: dict[str, Any]):
        self.folder, self.cache_key = Path(os.path.realpath(folder)), cache_key  # a link stays a link
        self.digest = hashlib.sha256(json.dumps(cache_key, sort_keys=True).encode()).hexdigest()[:16]

    def read(self) -> dict[str, Any] | None:
        """Return the metadata that fill() was given, or None if there are none for this cache key or a file
        has changed. Checking a gigabyte takes seconds."""
        try:
            meta = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
            if meta["digest"] != self.digest:
                return None
            digests = meta["sha256"].items()
            whole = all(fingerprint(self.folder / name)["sha256"] == digest for name, digest in digests)
            return meta["metadata"] if whole else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    @contextmanager
    def fill(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield a folder to write into, and a dict for the metadata that read() will return.

        If the block fails, nothing is left of either, and what was in place before stays.
        """
        used = any(self.folder.iterdir()) if self.folder.is_dir() else self.folder.exists()
        if used and not (self.folder / "meta.json").is_file():
            raise InputError(
                f"{self.folder}: is where the token ids go, but something else is there; move it away, or name "
                "another folder",
                "output",
            )
        part = self.folder.with_name(f"{self.folder.name}.part")
        new = [folder for folder in part.parents if not folder.exists()]
        metadata: dict[str, Any] = {}
        try:
            shutil.rmtree(part, ignore_errors=True)  # left by a run that was killed
            part.mkdir(parents=True)
            yield part, metadata
            meta = {"digest": self.digest, "cache_key": self.cache_key, "metadata": metadata}
            meta["sha256"] = {file.name: fingerprint(file)["sha256"] for file in part.iterdir()}
            (part / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
            fsync_files(part)
            shutil.rmtree(self.folder, ignore_errors=True)
            replace(part, self.folder)
        except BaseException as error:
            if isinstance(error, OSError) and not error.filename:  # for example a full disk
                error.filename = str(self.folder)
            shutil.rmtree(part, ignore_errors=True)
            for folder in new:
                with suppress(OSError):
                    folder.rmdir()
            raise
