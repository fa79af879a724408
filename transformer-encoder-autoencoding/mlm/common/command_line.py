"""The scripts' side towards the user: flags, also those made from a configuration; the choice of a device;
interrupts; and one line on stderr with exit status 2 for every mistake."""

import argparse
import errno
import gc
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from .errors import InputError, flag_name, launched_by_torchrun, one_line

REMEDIES = {  # for errors of the operating system
    errno.EACCES: "; change its permissions, or name another",
    errno.ENOSPC: "; free some space on the disk, or write elsewhere",
    errno.ENOTDIR: "; a part of that path is a file, name another",
    errno.EROFS: "; name another place",
}


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of a description, and adds a flag's default unless its help names one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.default is None or action.default is False or "default" in (action.help or "")
        return action.help if told else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on stderr and exit status 2. Flags may stand between arguments,
    and ~ in a path is the home folder."""

    def __init__(self, description: str | None, **options):
        super().__init__(description=description, formatter_class=HelpFormatter, **options)
        self.register("type", Path, parse_path)

    def parse_args(self, args: list[str] | None = None, namespace: argparse.Namespace | None = None):
        """Parse the command line."""
        args = sys.argv[1:] if args is None else args
        if self._subparsers or "--" in args:  # which take all that follows
            return super().parse_args(args, namespace)
        return self.parse_intermixed_args(args, namespace)

    def add_device(self, default: str = "auto") -> None:
        """Add --device."""
        self.add_argument(
            "--device",
            choices=["auto", "cpu", "cuda", "mps"],
            default=default,
            help="where to compute; auto takes a CUDA GPU if there is one",
        )

    def error(self, message: str):
        hint = "--help lists the flags"
        if re.match("unrecognized arguments: -", message):
            hint += "; write -- before a text that begins with -"
        elif message.startswith("unrecognized arguments: "):
            hint += "; put a text of several words in quotes"
        self.exit(2, f"{self.prog}: {one_line(message)} ({hint})\n")


def parse_path(text: str) -> Path:
    """Parse a path; ~ is the home folder."""
    if not text:
        raise argparse.ArgumentTypeError("needs a path, not ''")
    return Path(os.path.expanduser(text))  # noqa: PTH111 (raises nothing)


@dataclass(frozen=True)
class Range:
    """The type of a flag and of a configuration field: a finite number from low to high."""

    kind: type
    low: float
    high: float

    def __call__(self, text: str) -> Any:
        """Parse a flag's value."""
        try:
            value = self.kind(text)
        except ValueError:
            value = math.nan
        if not self.contains(value):
            raise argparse.ArgumentTypeError(f"{self}, not {text!r}")
        return value

    def contains(self, value: Any) -> bool:
        """Return True if value is such a number."""
        kinds = (int,) if self.kind is int else (int, float)
        return type(value) in kinds and math.isfinite(value) and self.low <= value <= self.high

    def __str__(self) -> str:
        number = "a whole number" if self.kind is int else "a number"
        low, high = (f"{bound:,}" if self.kind is int else f"{bound:g}" for bound in (self.low, self.high))
        return f"needs {number} " + (f"from {low} to {high}" if self.high < math.inf else f"of at least {low}")


def int_in(low: int, high: int = 2**31 - 1) -> Range:
    """Return the type of a flag: a whole number in [low, high]."""
    return Range(int, low, high)


def float_in(low: float, high: float = math.inf) -> Range:
    """Return the type of a flag: a finite number in [low, high]."""
    return Range(float, low, high)


def flag(default: Any, help: str, **options: Any) -> Any:
    """Declare a field of a configuration and its flag: options are argparse's (type, choices, nargs, metavar)."""
    return field(default=default, metadata={"help": help, **options})


def add_flags(
    parser: argparse.ArgumentParser, config: type, omit: Collection[str] = (), defaults: Mapping[str, str] | None = None
) -> None:
    """Add a flag for every field of a configuration that was declared with `flag`, but for those to omit. defaults:
    what the help says in place of a field's own default."""
    for one in fields(config):
        if one.metadata and one.name not in omit:
            options = {"action": "store_true"} if one.default is False else {"default": one.default}
            if one.metadata.get("nargs"):  # given twice, the flag adds
                options["action"] = "extend"
            options |= one.metadata
            if defaults and one.name in defaults:
                options["help"] = re.sub(r"\(default: .*\)", f"(default: {defaults[one.name]})", options["help"])
            parser.add_argument(flag_name(one.name), dest=one.name, **options)


def from_flags(config: type, args: argparse.Namespace) -> Any:
    """Return the configuration that the flags ask for; lists become tuples, as configurations are frozen."""
    values = {one.name: getattr(args, one.name) for one in fields(config) if hasattr(args, one.name)}
    return config(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def check_fields(config: Any) -> None:
    """Refuse a configuration with a value outside the range or the choices of its field. None means unset."""
    for one in fields(config):
        value, kind, choices = (
            getattr(config, one.name),
            one.metadata.get("type"),
            one.metadata.get("choices"),
        )
        if value is None and one.default in (None, MISSING):
            continue
        if isinstance(kind, Range) and not kind.contains(value):
            raise InputError(f"{one.name} {kind}, not {value!r}", one.name)
        if choices and value not in choices:
            raise InputError(f"{one.name} is {value!r}; use one of {', '.join(map(str, choices))}", one.name)


def pick_device(name: str):
    """Return the torch.device of this kind: "cpu", "cuda" or "mps". "auto" is "cuda" if there is one, else "cpu": the
    kernels of "mps" are slow to begin with for every new shape, and batches of text have many."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = "cuda" if there["cuda"] else "cpu"
    if name not in there:
        raise InputError(f"device {name!r}: use one of auto, {', '.join(there)}", "device")
    if not there[name]:
        raise InputError(f"device {name}: this machine has none that PyTorch can use; use cpu", "device")
    return torch.device(name)


def handle_signals(handler: Callable, *names: str) -> dict[signal.Signals, Any]:
    """Let handler handle the signals of these names, but for those that the process was started to ignore, as nohup
    does. Return the handlers from before."""
    kinds = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows has no SIGHUP
    return {kind: signal.signal(kind, handler) for kind in kinds if signal.getsignal(kind) is not signal.SIG_IGN}


class Interrupt:
    """The first Ctrl-C (or SIGTERM, or a terminal that is closed) only sets `requested`, which a loop checks after
    each step; the second raises KeyboardInterrupt."""

    def __init__(self):
        self.requested = False
        self.before = handle_signals(self, "SIGINT", "SIGTERM", "SIGHUP")

    def __call__(self, *_):
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def release(self) -> None:
        """Restore the handlers from before, when no loop checks `requested` any more."""
        for kind, handler in self.before.items():
            signal.signal(kind, handler)


def prepare_streams() -> None:
    """Make stdin, stdout and stderr UTF-8, passing undecodable bytes through; replace closed streams by
    /dev/null."""
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


def describe(error: InputError) -> str:
    """Return the message of an error with the flag of the setting to change."""
    return f"{error} ({flag_name(error.setting)})" if error.setting else str(error)


def explain(error: Exception) -> str | None:
    """Return one line about an error that a user can mend, with the remedy, or None if it is a fault of the program."""
    if isinstance(error, InputError):
        return describe(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'output'}: {error.strerror or error}{REMEDIES.get(error.errno, '')}"
    in_words = isinstance(error, RuntimeError) and re.search("out of memory|allocate memory", str(error))  # PyTorch's
    if isinstance(error, MemoryError) or in_words:
        return "not enough memory; choose smaller sizes or a smaller batch"
    return None


def run_script(main: Callable[[], None]) -> None:
    """Call main; turn a user's mistake or a failing file into one line on stderr and exit status 2."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see __init__.py beside this file
        signal.signal(signal.SIGINT, signal.default_int_handler)
    prepare_streams()
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        leave(1)
    except Exception as error:
        reason, status = explain(error), 2
        if not reason:
            raise
    except KeyboardInterrupt as interrupt:
        reason, status = str(interrupt) or "interrupted", 128 + signal.SIGINT
    else:
        return leave(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # there is nothing left to interrupt
    gc.collect()  # a progress bar that the failure has left open ends its line
    try:
        sys.stdout.flush()
    except OSError:  # the interpreter would try it again at exit, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with suppress(OSError):  # the terminal is closed
        print(f"{Path(sys.argv[0]).name}: {one_line(reason)}", file=sys.stderr)
    leave(status)


def leave(status: int) -> None:
    """End a script. One of several processes ends at once: the threads of gloo may still hold tensors, and an
    interpreter that is being taken down under them aborts."""
    if launched_by_torchrun():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(status)
    if status:
        sys.exit(status)
