"""seq2seq.pairs"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from .common.errors import InputError, warn
from .common.files import fingerprint
from .common.lines import MOST_HELD_OUT, check, decode_lines, draw_held_out, open_text, plain

CHUNK, CHARACTERS = 1000, 1_000_000  # that are tokenized at a time


SAMPLE = 30_000_000  # bytes of pairs from which a vocabulary is learnt; of more, an evenly spread part


@dataclass(frozen=True)
class Pair:
    """A prompt, the text that should come of it, and the kind of the task ("" where a file names none)."""

    source: str
    target: str
    kind: str = ""


def find_column(wanted: str, header: list[str], path: Path) -> int:
    """The index of a column named by its header or its number (from 1).

    Raises InputError where there is none such, or several.
    """
    if header.count(wanted) > 1:
        raise InputError(
            f"{path}: has {header.count(wanted)} columns {wanted!r}; choose one by its number with "
            "--source-column or --target-column"
        )
    if wanted in header:
        return header.index(wanted)
    if wanted.isdecimal() and len(wanted) < 10 and 1 <= int(wanted) <= len(header):
        return int(wanted) - 1
    raise InputError(
        f"{path}: has no column {wanted!r}; it has {', '.join(header)} or 1 to {len(header)}, to be named by "
        "--source-column and --target-column"
    )


@dataclass(frozen=True)
class Layout:
    """Where in the lines of a file the pairs are: how many columns most have, which ones count, from 0,
    whether the first line is a header; and how many lines there are below it, blank ones left out."""

    width: int
    source: int
    target: int
    kind: int | None
    header: bool
    lines: int
    odd: int  # lines with another number of columns


class PairFile:
    """The pairs of a tab-separated file, quotes taken as they stand, read anew whenever iterated over.

    Columns are named by a header line or by number, from 1. Without names the columns "source" and
    "target" are taken if the first line has them, else the first two, and the first line is a pair, unless it
    is "source" and "target".
    Lines with another number of columns than most, and lines with an empty side, are skipped and counted.
    """

    def __init__(self, path: Path, source_column: str | None = None, target_column: str | None = None):
        """Raises InputError where there is no such file."""
        self.path, self.names = check(path), (source_column, target_column)
        # in the last pass: odd lines, those with an empty side, all, and how many columns most have
        self.skipped = [0, 0, 0, 0]

    def rows(self) -> Iterator[str]:
        """The lines that are not blank, the header among them."""
        with open_text(self.path) as stream:
            yield from (line for line in decode_lines(stream, str(self.path)) if line.strip())

    @cached_property
    def layout(self) -> Layout:
        """Found in a pass over the file. Raises InputError where it has no text or no such column."""
        path, names, first, widths = self.path, self.names, "", Counter()
        for line in self.rows():
            first = first or line
            widths[line.count("\t") + 1] += 1
        if not first:
            raise InputError(f"{path}: holds no text; a file of tab-separated pairs is needed")
        width = widths.most_common(1)[0][0]
        if width < 2:
            raise InputError(f"{path}: has one column; source and target, separated by a tab, are needed")
        wanted = [names[0] or "source", names[1] or "target"]
        header = [name.strip() for name in first.split("\t")]
        lines, odd = widths.total(), widths.total() - widths[width]
        named = any(not name.isdecimal() for name in names if name) or {"source", "target"} <= set(header)
        if named:
            source, target = (find_column(name, header, path) for name in wanted)
            if len(header) != width:
                raise InputError(
                    f"{path}: the header has {len(header)} columns, most lines have {width}; give all as many"
                )
        else:
            header = [str(i + 1) for i in range(width)]
            source, target = (find_column(name or str(i + 1), header, path) for i, name in enumerate(names))
        if source == target:
            raise InputError(
                f"{path}: column {source + 1} would be source and target; give --source-column and "
                "--target-column, two different ones"
            )
        kind = header.index("kind") if "kind" in header else None
        return Layout(width, source, target, kind, named, lines - named, odd)

    def __iter__(self) -> Iterator[Pair]:
        """Raises InputError where the file has no such column, or no pair at all."""
        layout, empty = self.layout, 0
        for line in islice(self.rows(), int(layout.header), None):
            row = line.split("\t")
            if len(row) != layout.width:
                continue
            source, target = row[layout.source].strip(), row[layout.target].strip()
            if source and target:
                yield Pair(source, target, row[layout.kind].strip() if layout.kind is not None else "")
            else:
                empty += 1
        self.skipped = [layout.odd, empty, layout.lines, layout.width]
        if layout.odd + empty == layout.lines:
            raise InputError(f"{self.path}: holds no pair; a source and a target, separated by a tab, are needed")

    def warn(self) -> None:
        """Say how many lines were skipped."""
        odd, empty, lines, width = self.skipped
        if odd:
            warn(f"{self.path}: skipped {odd} of {lines} lines, which have not {width} columns as most have")
        if empty:
            warn(f"{self.path}: skipped {empty} of {lines} lines, which have an empty side")


def read_pairs(path: Path, source_column: str | None = None, target_column: str | None = None) -> list[Pair]:
    """All pairs of a PairFile; what is skipped is counted in a warning."""
    file = PairFile(path, source_column, target_column)
    pairs = list(file)
    file.warn()
    return pairs


def chunks(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """Lists of at most CHUNK pairs, each ending where CHARACTERS are reached."""
    chunk, room = [], CHARACTERS
    for pair in pairs:
        chunk.append(pair)
        room -= len(pair.source) + len(pair.target)
        if len(chunk) == CHUNK or room <= 0:
            yield chunk
            chunk, room = [], CHARACTERS
    if chunk:
        yield chunk


class Pairs:
    """The training pairs of some files, read anew whenever they are iterated over, so that they are never all
    in memory, and those held out. The two share no source: a pair whose source is held out is left out."""

    def __init__(
        self,
        files: list[Path],
        held_out_file: Path | None,
        columns: tuple[str | None, str | None],
        seed: int,
    ):
        """What is held out is what the held-out file has; without one, hold_out() draws it."""
        self.held_out_file, self.seed = held_out_file, seed
        self.files = [PairFile(path, *columns) for path in files]
        prints = [fingerprint(path) for path in files]
        self.bytes, self.lines = (sum(one[size] for one in prints) for size in ("bytes", "lines"))
        self.recipe = {
            "files": [one["sha256"] for one in prints],
            "columns": list(columns),
            "held_out": fingerprint(check(held_out_file))["sha256"] if held_out_file else f"seed {seed}",
        }
        self.held_out = read_pairs(held_out_file, *columns) if held_out_file else []
        self.kept, self.left_out = 0, 0  # how many pairs the last pass gave, and how many it left out

    def hold_out(self) -> None:
        """Draw what is held out, unless a file says it."""
        if not self.held_out_file:
            aside = draw_held_out((plain(pair.source) for pair in self.all("holding out")), self.seed)
            found = (pair for pair in self.all("holding out") if plain(pair.source) in aside)
            self.held_out = list(islice(found, 10 * MOST_HELD_OUT))

    def recall(self, notes: dict) -> None:
        """Take what is held out, and what has been counted, from what tokenize noted down."""
        self.kept, self.left_out = notes["pairs"], notes["left_out"]
        self.held_out = [Pair(*pair) for pair in notes["held_out"]] or self.held_out
        for file, skipped in zip(self.files, notes["skipped"], strict=True):
            file.skipped = skipped

    def all(self, task: str) -> Iterator[Pair]:
        """The pairs of all files; a bar shows how far the task has come."""
        with tqdm(desc=task, total=self.lines, unit=" lines", unit_scale=True, leave=False, delay=1) as bar:
            for file in self.files:
                for pair in file:
                    bar.update()
                    yield pair

    def read(self, task: str) -> Iterator[Pair]:
        """The training pairs, in order and with their repetitions. Raises InputError where none is left."""
        aside, self.kept, self.left_out = {plain(pair.source) for pair in self.held_out}, 0, 0
        for pair in self.all(task):
            if plain(pair.source) in aside:
                self.left_out += 1
            else:
                self.kept += 1
                yield pair
        if not self.kept:
            raise InputError(
                f"{self.held_out_file}: holds all sources of the training pairs; nothing is left to train on"
            )

    def __iter__(self) -> Iterator[Pair]:
        return self.read("reading")

    def sample(self, task: str) -> Iterator[str]:
        """Both sides of all pairs, or of more than SAMPLE bytes of every second, third ..., so that no more
        remain."""
        for pair in islice(self.read(task), 0, None, max(1, -(-self.bytes // SAMPLE))):
            yield pair.source
            yield pair.target

    def warn(self) -> None:
        """Say what was left out."""
        for file in self.files:
            file.warn()
        if self.held_out_file and self.left_out:
            file = self.held_out_file
            warn(f"left {self.left_out} pairs out of training: their sources are in {file}")
        elif self.left_out > max(MOST_HELD_OUT, self.kept / 4):
            of = self.left_out + self.kept
            warn(f"few sources are distinct: {self.left_out} of {of} pairs are held out; give a --held-out")
