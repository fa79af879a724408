"""Files written whole or not at all, folders held by one run at a time, and fingerprints of what a file holds."""

import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import InputError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LFS_REMEDY = "is a Git LFS pointer in place of the file; run git lfs pull in its repository"


def check_name(path: Path) -> None:
    """Refuse a folder whose name is not UTF-8: the libraries of model directories need that."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: the name is not UTF-8; rename the folder, or name another") from None


def check_writable(path: Path) -> None:
    """Refuse an output folder that cannot be written to, or cannot be made."""
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path}: is a broken link; name a folder that can be written to", "output")
    try:
        place = next(folder for folder in (path, *path.parents) if folder.exists())
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        reason = "is a file" if path.is_file() else error.strerror
        raise InputError(f"{path}: {reason}; name a folder that can be written to", "output") from None


def make_output_folder(path: Path) -> None:
    """Make an output folder and those above it."""
    check_writable(path)
    path.mkdir(parents=True, exist_ok=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a file beside path to write; it replaces path, keeping its permissions, if the block succeeds.

    If the block fails, path stays as it was. A link stays a link.
    """
    path = Path(os.path.realpath(path))
    part = path.with_name(f".{secrets.token_hex(8)}.part{path.suffix}")  # no two runs write the same one
    try:
        yield part
        if path.exists():
            shutil.copymode(path, part)
        replace(part, path)
    except OSError as error:
        if error.filename in (None, str(part)):
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            part.unlink()


def replace(source: Path, target: Path) -> None:
    """Move a file or a folder to its place. On Windows a virus scanner may hold what is new for a moment."""
    for seconds in (0.1, 0.5, 2) if os.name == "nt" else ():
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(seconds)
    return os.replace(source, target)


def refuse_lfs_pointer(path: Path) -> None:
    """Refuse the few lines that a clone without Git LFS has in place of a large file."""
    with path.open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(LFS_REMEDY)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def fsync_files(folder: Path) -> None:
    """Flush the files of a folder to the disk, before they replace older ones."""
    for file in folder.iterdir():
        with file.open("r+b") as stream:
            os.fsync(stream.fileno())


@contextmanager
def output_lock(path: Path) -> Iterator[None]:
    """Make an output folder and hold it for the block: no other run that locks it may write there.

    A folder made for this run that is still empty at the end is removed again.
    """
    check_name(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    make_output_folder(path)
    handle = os.open(path, os.O_RDONLY) if fcntl else None
    try:
        if fcntl:  # the lock ends with the process, however that ends
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{path}: another run is writing there; wait until it ends, or name another folder",
                    "output",
                ) from None
            except OSError:  # a file system without locks
                pass
        yield
    finally:
        if handle is not None:
            os.close(handle)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def fingerprint(path: Path) -> dict[str, Any]:
    """Return a file's SHA-256 and its size in bytes and in lines. A gigabyte takes seconds."""
    digest, size, lines = hashlib.sha256(), 0, 0
    with path.open("rb") as stream:
        while piece := stream.read(2**20):
            digest.update(piece)
            size += len(piece)
            lines += piece.count(b"\n")
    return {"sha256": digest.hexdigest(), "bytes": size, "lines": lines}
