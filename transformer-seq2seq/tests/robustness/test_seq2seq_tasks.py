"""The public tasks are what they say: SCAN as it was published, and tasks whose answers follow from their rules. The
bundled pairs are those that their tables give."""

import shutil
import subprocess
import sys
from datetime import date

import pytest

COUNTS = {  # published; 26 is Csordás et al.'s (2021) cut-off
    "simple": (16_728, 4_182),
    "length": (16_990, 3_920),
    "length-26": (18_286, 2_624),
    "add-jump": (14_670, 7_706),
}
SHORT = {"W": "I_WALK", "L": "I_LOOK", "U": "I_RUN", "J": "I_JUMP", "<": "I_TURN_LEFT", ">": "I_TURN_RIGHT"}
KNOWN = {  # from the files that Lake and Baroni published
    "jump": "J",
    "turn left": "<",
    "turn opposite left twice": "<<<<",
    "turn around right": ">>>>",
    "jump around right": ">J>J>J>J",
    "walk opposite right thrice": ">>W>>W>>W",
    "run after run left": "<UU",
    "run twice and look left thrice": "UU<L<L<L",
    "turn opposite left and run left thrice": "<<<U<U<U",
    "jump around left and run opposite right": "<J<J<J<J>>U",
    "turn around left twice after jump twice": "JJ<<<<<<<<",
    "look around left after jump left thrice": "<J<J<J<L<L<L<L",
    "run opposite right thrice and walk": ">>U>>U>>UW",
}


@pytest.fixture(scope="module")
def made(command, tmp_path_factory):
    """made(script) -> what it wrote: {name of a file: its pairs}."""

    def make(script):
        folder = tmp_path_factory.mktemp("made") / "new"
        done = command(f"data/{script}", "--output", folder, fresh=True)
        assert (done.returncode, done.stderr) == (0, "")
        files = {}
        for path in folder.iterdir():
            header, *rows = [tuple(line.split("\t")) for line in path.read_text(encoding="utf-8").splitlines()]
            assert header == ("source", "target")
            assert f"{path.name}: {len(rows):,} pairs" in done.stdout
            files[path.name] = rows
        return files

    return make


@pytest.fixture(scope="module")
def scan(made):
    return made("make_scan.py")


@pytest.fixture(scope="module")
def tasks(made):
    return made("make_tasks.py")


def test_scan_has_the_published_counts(scan):
    found = {name: tuple(len(scan[f"{name}.{part}.tsv"]) for part in ("train", "test")) for name in COUNTS}
    assert found == COUNTS
    assert len(scan) == 2 * len(COUNTS)


def test_scan_has_the_published_pairs(scan):
    pairs = dict(scan["simple.train.tsv"] + scan["simple.test.tsv"])
    assert len(pairs) == 20_910
    for command, actions in KNOWN.items():
        assert pairs[command] == " ".join(SHORT[letter] for letter in actions)


def test_scan_is_split_as_published(scan):
    all_pairs = {*scan["simple.train.tsv"], *scan["simple.test.tsv"]}
    for name, most in (("length", 22), ("length-26", 26)):
        short, long = scan[f"{name}.train.tsv"], scan[f"{name}.test.tsv"]
        assert {*short, *long} == all_pairs
        assert max(len(actions.split()) for _, actions in short) == most < min(len(a.split()) for _, a in long)
    train, test = scan["add-jump.train.tsv"], scan["add-jump.test.tsv"]
    assert train.count(("jump", "I_JUMP")) == 1_467  # a tenth
    assert {command for command, _ in train if "jump" in command} == {"jump"}
    assert all("jump" in command for command, _ in test)
    assert {*train, *test} == all_pairs


def test_no_test_of_a_task_is_in_training(tasks):
    assert len(tasks) == 8
    for name in "reversal", "dates", "addition", "addition-reversed":
        train, test = tasks[f"{name}.train.tsv"], tasks[f"{name}.test.tsv"]
        assert (len({*train}), len({*test})) == (20_000, 1_000)
        assert not {source for source, _ in train} & {source for source, _ in test}
    train, test = ({target for _, target in tasks[f"dates.{part}.tsv"]} for part in ("train", "test"))
    assert not train & test  # not in another way of writing, either


def test_the_answers_follow_the_rules(tasks):
    def rows(name):
        return tasks[f"{name}.train.tsv"] + tasks[f"{name}.test.tsv"]

    assert all(target == source[::-1] and 4 <= len(source.split()) <= 12 for source, target in rows("reversal"))
    for (source, target), turned in zip(rows("addition"), rows("addition-reversed"), strict=True):
        a, b = (int(digits.replace(" ", "")) for digits in source.split("+"))
        assert 100 <= a <= 999 and 100 <= b <= 999
        assert a + b == int(target.replace(" ", ""))
        assert turned == (source, target[::-1])
    dates = dict(rows("dates"))
    ordinals = {source.split()[1] for source in dates if source.startswith("the ")}
    assert len(ordinals) == 31 and {"1st", "2nd", "3rd", "11th", "12th", "13th", "21st", "22nd", "23rd"} <= ordinals
    assert dates["27 November 1932"] == "1932 - 11 - 27"
    for source, target in dates.items():
        day = date.fromisoformat(target.replace(" ", ""))
        assert str(day.year) in source and str(day.day) in source and f"{day:%b}" in source


@pytest.mark.parametrize("script", ["make_scan.py", "make_tasks.py"])
def test_a_folder_that_cannot_be_made_is_one_line(command, tmp_path, script):
    (tmp_path / "file").write_text("kept")
    done = command(f"data/{script}", "--output", tmp_path / "file", fresh=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"{script}: --output {tmp_path / 'file'}: cannot be made")


# ---- the bundled pairs


@pytest.fixture
def make_data(folder, tmp_path):
    """make_data(file, line) runs make_data.py on a copy of the tables, with one more line in a file.

    -> exit status, stdout, stderr, and the files before and after.
    """
    shutil.copytree(folder / "data", tmp_path / "data")

    def contents():
        return {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir() if path.is_file()}

    def run(file=None, line=None):
        if file:
            with (tmp_path / "data" / file).open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        before = contents()
        done = subprocess.run(
            [sys.executable, "-B", tmp_path / "data" / "make_data.py"], capture_output=True, encoding="utf-8"
        )
        return done.returncode, done.stdout, done.stderr, before, contents()

    return run


def test_the_bundled_pairs_are_those_that_the_tables_give(make_data):
    status, out, err, before, after = make_data()
    assert (status, err) == (0, "") and "train.tsv: 1499 pairs" in out
    assert before == after


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        ("facts.tsv", "capital\tOz\tEmerald City", "one word"),
        ("facts.tsv", 'capital\tthe "old" Oz\tEmerald', "no double quotes"),
        ("frames.tsv", "capital\tWhere is {subject}?", "needs these columns"),
        ("rewrite_nouns.tsv", "subject\tdean\t", "needs these columns"),
        ("rewrite_nouns.tsv", "subjet\tdean\tdeans", "the role 'subjet' must be subject or object"),
        ("rewrite_verbs.tsv", "draws\tdraw\t\tmap", "needs these columns"),
        ("rewrite_verbs.tsv", "draws\tdraw\tdrawn\t", "needs these columns"),
        ("rewrite_verbs.tsv", "draws\tdraw\tdrawn\tunicorn", "the object 'unicorn' is not in"),
        ("free.tsv", "AI improves healthcare\tAI makes medicine better\t", "is there already"),
        ("free.tsv", f"AI counts\tAI counts {'and counts ' * 6}on\t", "a target of 4 to 14 words"),
    ],
)
def test_a_line_that_breaks_a_rule_is_named_and_nothing_written(make_data, file, line, reason):
    status, out, err, before, after = make_data(file, line)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("make_data.py: ") and reason in err
    assert before == after
