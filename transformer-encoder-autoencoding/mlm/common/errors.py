"""A user's mistakes and oddities, each told in one line.

Any function of this project may raise InputError for bad input, so docstrings do not repeat it. The library
says what is wrong with which file or value, and how to mend it; the scripts turn that into one line on stderr
and exit status 2.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class InputError(Exception):
    """A user's mistake: one line that says what is wrong, then what to do.

    setting: the name of the configuration field to change, if there is one. The scripts add its flag.
    """

    def __init__(self, message: str, setting: str | None = None):
        super().__init__(message)
        self.setting = setting


@contextmanager
def naming(place: object) -> Iterator[None]:
    """Put the place, such as a file, in front of the message of every InputError raised in the block."""
    try:
        yield
    except InputError as error:
        error.args = (f"{place}: {error}",)
        raise


def one_line(text: str) -> str:
    """Return a message as a terminal can show it: one line of bounded length, control characters escaped."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    return text if len(text) <= 900 else f"{text[:600]} … {text[-290:]}"


def plural(n: int, name: str) -> str:
    """Write a number of things: 1 line, 1,000 lines."""
    return f"{n:,} {name}{'' if n == 1 else 's'}"


def flag_name(name: str) -> str:
    """Return the flag of a configuration field: "d_model" -> "--d-model"."""
    return f"--{name.replace('_', '-')}"


def launched_by_torchrun() -> bool:
    """Return True if torchrun has started this process as one of several."""
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def warn(message: str, setting: str | None = None) -> None:
    """Print one line on stderr about something odd that was dealt with; of several processes rank 0 does. setting: as
    of InputError."""
    if launched_by_torchrun() and os.environ["RANK"] != "0":
        return
    message = f"{message} ({flag_name(setting)})" if setting else message
    with suppress(OSError):  # a warning that nobody can read stops nothing
        print(f"{Path(sys.argv[0]).name}: warning: {one_line(message)}", file=sys.stderr)
