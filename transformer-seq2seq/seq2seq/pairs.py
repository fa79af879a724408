"""Tab-separated files of pairs: their columns, what is held out of training, and the stream of what remains."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .common.errors import InputError, naming, warn
from .common.lines import (
    MAX_HELD_OUT,
    check_rereadable,
    draw_held_out,
    guess_format,
    normalize,
    numbered_lines,
    open_text,
    text_fingerprint,
)

SPLITTING = 3  # goes up when another version holds out other pairs
SAMPLE_BYTES = 30_000_000  # of pairs from which a vocabulary is learnt; of more, an evenly spread part
SAMPLE_LINES = 1000  # the first ones, which show what kinds of columns a file has
NUMBER, QUOTED = re.compile(r"[+-]?\d+([.,]\d+)*(e[+-]?\d+)?%?", re.IGNORECASE), re.compile(r'"([^"]|"")*"')


@dataclass(frozen=True)
class Pair:
    """A prompt, the text to make of it, and the kind of task ("" if the file names none)."""

    source: str
    target: str
    kind: str = ""


@dataclass(frozen=True)
class Layout:
    """The result of scanning a file: the number of columns in most lines; the columns of source, target and kind,
    from 0; True if the first line is a header; the number of lines below it, and how many of them have another
    number of columns, or an empty side; True if the file seems to be quoted; the number of the first line with another
    number of columns. Blank lines do not count."""

    width: int
    source: int
    target: int
    kind: int | None
    header: bool
    n_lines: int
    n_odd: int
    n_empty: int
    quoted: bool = False
    first_odd: int | None = None

    @property
    def n_pairs(self) -> int:
        """The number of pairs in the file."""
        return self.n_lines - self.n_odd - self.n_empty

    def pair(self, row: list[str]) -> Pair | None:
        """Return the pair in a line's columns, or None if there is none."""
        if len(row) == self.width:
            source, target = row[self.source].strip(), row[self.target].strip()
            if source and target:
                return Pair(source, target, "" if self.kind is None else row[self.kind].strip())
        return None


def is_empty(row: list[str], column: int) -> bool:
    """Return True if a line has nothing in this column, or no such column."""
    return column >= len(row) or not row[column].strip()


def find_column(wanted: str, header: Sequence[str], setting: str) -> int:
    """Return the index of a column, named by its header or by its number from 1. setting names the
    configuration field that it is for. Upper and lower case differ only if the header has both."""
    folded = [name.casefold() for name in header]
    for name, names in ((wanted, header), (wanted.casefold(), folded)):
        if names.count(name) > 1:
            raise InputError(f"has {names.count(name)} columns {name!r}; choose one by its number", setting)
        if name in names:
            return names.index(name)
    if wanted.isdecimal() and len(wanted) < 10 and 1 <= int(wanted) <= len(header):
        return int(wanted) - 1
    numbers = f"1 to {len(header)}"
    numbered = list(header) == [str(i + 1) for i in range(len(header))]
    there = numbers if numbered else f"one of {', '.join(name[:30] for name in header)}, or {numbers}"
    raise InputError(f"has no column {wanted!r}; use {there}", setting)


def is_number(field: str) -> bool:
    """Return True if a field is a number, with decimals or per cent or without."""
    return NUMBER.fullmatch(field.strip()) is not None


def is_quoted(rows: list[list[str]]) -> bool:
    """Return True if lines seem to be quoted, as spreadsheets and csv.writer do it: nearly all fields of nearly all
    lines, or only those with a quote within, which is then doubled."""
    whole = doubled = 0
    for row in rows:
        quoted = [field for field in row if QUOTED.fullmatch(field)]
        whole += len(quoted) == len(row)
        doubled += any('""' in field[1:-1] for field in quoted)
    return whole > 0.9 * len(rows) or doubled > 0.01 * len(rows)


class PairFile:
    """The pairs of a tab-separated file, quotes taken literally, read again whenever iterated over.

    Columns are named by a header line or by number, from 1. Without names the columns "source" and "target" (in
    upper or lower case) are taken if the first line has both; else the first two columns, and the first line is a
    pair. Lines with an unusual number of columns or with an empty side are skipped.
    """

    def __init__(self, path: Path, source_column: str | None = None, target_column: str | None = None):
        self.path, self.names = check_rereadable(path), (source_column, target_column)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """The SHA-256 of the file and its size in bytes and in lines."""
        return text_fingerprint(self.path)

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the number and the columns of each line that is not blank, the header's too."""
        with open_text(self.path) as stream:
            yield from ((i, line.split("\t")) for i, line in numbered_lines(stream, str(self.path)) if line.strip())

    @cached_property
    def layout(self) -> Layout:
        """The layout of the file, found by scanning it once."""
        rows = self.rows()
        number, first = next(rows, (0, []))
        header = [name.strip() for name in first]
        lower = [name.casefold() for name in header]
        named = any(not name.isdecimal() for name in self.names if name) or {"source", "target"} <= set(lower)
        with naming(self.path):
            if not header:
                raise InputError("contains no text; name a file of tab-separated pairs")
            if named:
                source, target = self.find_columns(header, ("source", "target"))
            else:  # numbers, which are checked when the number of columns is known
                source, target = (int(name[:9]) - 1 for name in (self.names[0] or "1", self.names[1] or "2"))
        widths, empty = Counter([len(header)] if named else []), Counter()
        sample: list[list[str]] = []
        first_of: dict[int, int] = {}  # the first line of each width
        for i, row in rows if named else chain([(number, header)], rows):
            if len(sample) < SAMPLE_LINES:
                sample.append([field[:1000] for field in row])
            widths[len(row)] += 1
            first_of.setdefault(len(row), i)
            if is_empty(row, source) or is_empty(row, target):
                empty[len(row)] += 1
        with naming(self.path):
            width = widths.most_common(1)[0][0]
            if width < 2:
                seen = guess_format(["\t".join(row) for row in ([header] if named else []) + sample[:100]])
                hint = f" (this looks like {seen})" if seen else ""
                raise InputError(f"has one column; separate source and target by a tab{hint}")
            if named and len(header) != width:
                raise InputError(
                    f"the header has {len(header)} columns, most lines have {width}; give all of them the same number"
                )
            if not named:
                source, target = self.find_columns([str(i + 1) for i in range(width)], ("1", "2"))
                self.check_numbers([row for row in sample if len(row) == width], (source, target))
            if source == target:
                raise InputError(
                    f"column {source + 1} would be both source and target; choose two different ones", "source_column"
                )
            layout = Layout(
                width,
                source,
                target,
                kind=lower.index("kind") if named and "kind" in lower else None,
                header=named,
                n_lines=widths.total() - named,
                n_odd=widths.total() - widths[width],
                n_empty=empty[width],
                quoted=is_quoted(sample),
                first_odd=min((i for columns, i in first_of.items() if columns != width), default=None),
            )
            if not layout.n_pairs:
                empty_sides = "in every line the source or the target is empty; give both"
                one_column = "separate a source and a target by a tab"
                raise InputError(f"contains no pair; {empty_sides if layout.n_empty else one_column}")
        return layout

    def check_numbers(self, rows: list[list[str]], chosen: tuple[int, int]) -> None:
        """Refuse a column that nobody has named if it holds numbers, such as ids or scores, and two others do not."""
        numbers = [sum(map(is_number, column)) > 0.9 * len(column) for column in zip(*rows, strict=True)]
        texts = [i for i, found in enumerate(numbers, start=1) if not found]
        for column, name in zip(chosen, self.names, strict=True):
            if name is None and len(texts) >= 2 and numbers[column]:
                raise InputError(
                    f"column {column + 1} is a number in almost all lines; choose columns of text, for example "
                    f"{texts[0]} for the source and {texts[1]} for the target",
                    "source_column" if column == chosen[0] else "target_column",
                )

    def find_columns(self, header: list[str], usual: tuple[str, str]) -> tuple[int, int]:
        """Return the columns of source and target among those of a header. usual: their names if none are given."""
        settings = "source_column", "target_column"
        names = (name or default for name, default in zip(self.names, usual, strict=True))
        source, target = (find_column(name, header, setting) for name, setting in zip(names, settings, strict=True))
        return source, target

    def __iter__(self) -> Iterator[Pair]:
        for _, row in islice(self.rows(), int(self.layout.header), None):
            if pair := self.layout.pair(row):
                yield pair


def warn_of_skipped(path: Path, layout: Layout) -> None:
    """Say how many lines of a file are skipped, and if it looks quoted."""
    lines = f"of {layout.n_lines} lines"
    if layout.n_odd:
        where = f"; the first is line {layout.first_odd}" if layout.first_odd else ""  # older tokens/ do not say
        warn(f"{path}: skipped {layout.n_odd} {lines}: most have {layout.width} columns, these do not{where}")
    if layout.quoted:
        warn(
            f"{path}: looks quoted, as spreadsheets and csv.writer do it, but quotes are learnt as text; save it "
            "without quotes (csv.QUOTE_NONE)"
        )
    if layout.n_empty:
        warn(f"{path}: skipped {layout.n_empty} {lines}: their source or target is empty")


def read_pairs(path: Path, source_column: str | None = None, target_column: str | None = None) -> list[Pair]:
    """Return all pairs of a PairFile; warn of what is skipped."""
    file = PairFile(path, source_column, target_column)
    pairs = list(file)
    warn_of_skipped(path, file.layout)
    return pairs


def read_all(files: Sequence[PairFile], task: str) -> Iterator[Pair]:
    """Yield the pairs of all files; a bar shows the progress of the task."""
    n_lines = sum(file.fingerprint["lines"] for file in files)
    with tqdm(desc=task, total=n_lines, unit=" lines", unit_scale=True, leave=False, delay=1, disable=None) as bar:
        for file in files:
            for pair in file:
                bar.update()
                yield pair


def draw_held_out_pairs(files: Sequence[PairFile], seed: int) -> list[Pair]:
    """Return the pairs of one source in twenty, at most 10 * MAX_HELD_OUT pairs."""
    sources = draw_held_out((pair.source for pair in read_all(files, "holding out")), seed, "source")
    drawn = set(map(normalize, sources))
    found = (pair for pair in read_all(files, "holding out") if normalize(pair.source) in drawn)
    return list(islice(found, 10 * MAX_HELD_OUT))


@dataclass(frozen=True)
class PairSource:
    """The training pairs of some files, in order and with their repetitions, read again whenever iterated over, so
    that they are never all in memory. A pair whose source is held out is left out."""

    files: Sequence[PairFile]
    held_out: Sequence[Pair]

    def read(self, task: str) -> Iterator[Pair]:
        """Yield the training pairs; a bar shows the progress of the task."""
        held_out, kept = {normalize(pair.source) for pair in self.held_out}, False
        for pair in read_all(self.files, task):
            if normalize(pair.source) not in held_out:
                kept = True
                yield pair
        if not kept:
            problem = "all sources of the training pairs are held out; nothing is left to train on"
            raise InputError(f"{problem}; name another file, or none", "held_out")

    def __iter__(self) -> Iterator[Pair]:
        return self.read("reading")

    def sample(self, task: str) -> Iterator[str]:
        """Yield both sides of all pairs; if there are more than SAMPLE_BYTES, of every second, third ... pair."""
        n_bytes = sum(file.fingerprint["bytes"] for file in self.files)
        for pair in islice(self.read(task), 0, None, max(1, -(-n_bytes // SAMPLE_BYTES))):
            yield pair.source
            yield pair.target
