"""What all commands of this folder share: one-line errors, checked flag values, the choice of a device."""

import argparse
import errno
import gc
import math
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None


class InputError(Exception):
    """A user's mistake. Its message is one line that names what is wrong and the remedy."""


REMEDIES = {  # for what the system refuses
    errno.EACCES: "; change its permissions, or name another",
    errno.ENOSPC: "; make room on the disk, or write elsewhere",
    errno.ENOTDIR: "; a part of that path is a file, name another",
    errno.EROFS: "; nothing can be written there, name another place",
}


def one_line(text: str) -> str:
    """A message as a terminal can show it: on one line that is not endless, control characters spelt out.
    Names that come from files may hold anything."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    return text if len(text) <= 900 else f"{text[:600]} … {text[-290:]}"


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps a description's lines as they are, and names a flag's default where its help does not."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.default is None or action.default is False or "default" in (action.help or "")
        return action.help if told else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on stderr and exit status 2."""

    def __init__(self, description: str | None):
        super().__init__(description=description, formatter_class=HelpFormatter)
        self.add_argument(
            "--device",
            choices=["auto", "cpu", "cuda", "mps"],
            default="auto",
            help="where to compute; auto takes the fastest that is there",
        )

    def error(self, message: str):
        hint = "--help lists the flags"
        if re.match("unrecognized arguments: -", message):
            hint += "; write -- before a text that begins with -"
        self.exit(2, f"{self.prog}: {one_line(message)} ({hint})\n")


def whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """A flag's type: a whole number in [low, high]."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"needs a whole number from {low} to {high}, not {text!r}")
        return value

    return parse


def real(low: float, high: float = math.inf) -> Callable[[str], float]:
    """A flag's type: a finite number in [low, high]."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)):
            limits = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
            raise argparse.ArgumentTypeError(f"needs a number {limits}, not {text!r}")
        return value

    return parse


def pick_device(name: str):
    """The torch.device that --device names.

    Raises InputError where that kind is not there.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in there if there[kind])
    if not there[name]:
        raise InputError(f"--device {name}: this machine has none that PyTorch can use; try --device cpu")
    return torch.device(name)


def check_name(path: Path) -> None:
    """Raises InputError where a folder's name is not UTF-8, which the libraries of model directories need."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: the name is not UTF-8; rename the folder, or name another") from None


def check_output(path: Path) -> None:
    """Try whether the folder that --output names, or the one it would be made in, can be written to.

    Raises InputError where it cannot.
    """
    try:
        place = next(folder for folder in (path, *path.parents) if folder.exists())
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        reason = "is a file" if path.is_file() else error.strerror
        raise InputError(f"--output {path}: {reason}; name a folder that can be written to") from None


def output_folder(path: Path) -> None:
    """Make the folder that --output names, and those above it. Raises InputError where that cannot be."""
    check_output(path)
    path.mkdir(parents=True, exist_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside path, which takes its place, with its permissions, when the body has ended well;
    where it has not, what was there stays. A link stays one."""
    path = Path(os.path.realpath(path))
    part = path.with_name(f".{secrets.token_hex(8)}.part{path.suffix}")  # no two runs write the same
    try:
        yield part
        if path.exists():
            shutil.copymode(path, part)
        os.replace(part, path)
    except OSError as error:
        if error.filename in (None, str(part)):
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            part.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a file as UTF-8, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def flush(folder: Path) -> None:
    """Let the files of a folder be on the disk, before they take the place of older ones."""
    for file in folder.iterdir():
        with file.open("r+b") as stream:
            os.fsync(stream.fileno())


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Within it the folder that --output names is there, and no other run that claims it may write to it. If
    it was made for this and is still empty, it goes again.

    Raises InputError where it cannot be written to, or another run has it.
    """
    check_name(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    output_folder(path)
    check_output(path / "model")  # now, not when all is learnt
    handle = os.open(path, os.O_RDONLY) if fcntl else None
    try:
        if fcntl:  # the lock goes with the process, however that ends
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"--output {path}: another run is writing there; wait for its end, or name another folder"
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


class Interrupt:
    """Turns the first Ctrl-C, or the first request to terminate, into a wish to stop that a loop can ask
    for between two steps; the second Ctrl-C stops at once."""

    def __init__(self):
        self.asked = False
        self.before = {kind: signal.signal(kind, self) for kind in (signal.SIGINT, signal.SIGTERM)}

    def __call__(self, *_):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def release(self) -> None:
        """Let both stop at once again, where there is no loop any more that asks."""
        for kind, handler in self.before.items():
            signal.signal(kind, handler)


def under_torchrun() -> bool:
    """Whether torchrun has started this process, as one of several."""
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def warn(message: str) -> None:
    """One line on stderr about something odd that was dealt with; of several processes the first says it."""
    if under_torchrun() and os.environ["RANK"] != "0":
        return
    with suppress(OSError):  # what nobody can read stops nothing
        print(f"{Path(sys.argv[0]).name}: warning: {one_line(message)}", file=sys.stderr)


def open_streams() -> None:
    """Let the standard streams be UTF-8 and hold what is not, as in names of files; one that was closed
    (`<&-`) reads and writes nothing."""
    for name, mode, errors in (
        ("stdin", "r", "surrogateescape"),
        ("stdout", "w", "surrogateescape"),
        ("stderr", "w", "backslashreplace"),
    ):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors=errors)


def run(main: Callable[[], None]) -> None:
    """Call main; a user's mistake or a failing file ends in one line on stderr and exit status 2."""
    open_streams()
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        reason, status = str(error), 2
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        reason = f"{error.filename or 'output'}: {error.strerror or error}{REMEDIES.get(error.errno, '')}"
        status = 2
    except (MemoryError, RuntimeError) as error:  # PyTorch says it in words
        if isinstance(error, RuntimeError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        reason, status = "not enough memory; choose smaller sizes or a smaller batch", 2
    except KeyboardInterrupt as interrupt:
        reason, status = str(interrupt) or "interrupted", 128 + signal.SIGINT
    else:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # there is nothing left to interrupt
    gc.collect()  # a progress bar that the failure has left open ends its line
    try:
        sys.stdout.flush()
    except OSError:  # the interpreter would try it again at its end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(f"{Path(sys.argv[0]).name}: {one_line(reason)}", file=sys.stderr)
    sys.exit(status)
