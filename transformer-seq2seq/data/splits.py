"""What the scripts that make public tasks share: their flag --output, and the files of a split."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

Pair = tuple[str, str]  # source, target


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the flag --output."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: stop(f"{message} (--help lists the flags)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to write to")
    return parser


def output_folder(args: argparse.Namespace) -> Path:
    """Make the folder that --output names; if that fails, one line on stderr says why."""
    folder = args.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        stop(f"--output {folder}: cannot be made: {error.strerror}")
    return folder


def stop(message: str) -> NoReturn:
    """Say what is wrong in one line, and end with status 2."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(2)


def write_split(folder: Path, name: str, train: Sequence[Pair], test: Sequence[Pair]) -> None:
    """Write NAME.train.tsv and NAME.test.tsv."""
    for part, pairs in (("train", train), ("test", test)):
        write_pairs(folder / f"{name}.{part}.tsv", pairs)


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write pairs with a header, and say how many there are."""
    lines = ["source\ttarget", *map("\t".join, pairs)]
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    except OSError as error:
        stop(f"{path}: cannot be written: {error.strerror}")
    print(f"{path.name}: {len(pairs):,} pairs")
