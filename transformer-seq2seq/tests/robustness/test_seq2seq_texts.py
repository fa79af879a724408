"""The READMEs, the lab and the notebook: links lead somewhere, and commands have only flags that exist."""

import re
import shlex
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2]
TEXTS = sorted([*FOLDER.glob("*.md"), *FOLDER.glob("*/README.md")])
TOP = FOLDER.parent / "README.md"
if (FOLDER.parent / ".ci").is_dir():  # not copied elsewhere: the README of both experiments is there
    TEXTS.append(TOP)
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# the first word after "python3 " is a script; a command ends at a pipe, "&&" or the line's end
COMMAND = re.compile(r"python3 ([\w./-]+\.py)((?:[^|&\n`#]|\\\|)*)")


def anchors(path):
    """The anchors of a text's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(FOLDER.parent)))
def test_links_lead_somewhere(path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if path != TOP and not target.is_relative_to(FOLDER):  # of a folder copied elsewhere the other is not there
            continue
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(FOLDER.parent)))
def test_commands_have_flags_that_exist(path, command):
    """A command in a text names a script of this folder with flags that its --help lists."""
    helps = {}
    for name, rest in COMMAND.findall(path.read_text(encoding="utf-8")):
        script = next((place / name for place in (path.parent, FOLDER, TOP.parent) if (place / name).is_file()), None)
        if script is None or script.parent != FOLDER:
            assert script or not re.match(r"(train|inference|fill_mask|visualize|abl|bench)", Path(name).name), name
            continue
        words = rest.split("…")[0].split("...")[0]
        try:
            words = shlex.split(words)
        except ValueError:  # part of a longer line, such as an apostrophe behind the command
            words = words.split()
        subcommand = [word for word in words[:1] if script.stem == "benchmark" and not word.startswith("-")]
        key = (script.name, *subcommand)
        if key not in helps:
            helps[key] = command(script.name, *subcommand, "--help").stdout
        for flag in [word.split("=")[0] for word in words if word.startswith("--")]:
            assert re.search(rf"{flag}\b", helps[key]), f"{name} {flag}"


def test_the_tour_names_what_is_there():
    """Every function, class and method that the tour names is defined in this folder."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    tour = text[text.index("## The tour") :].split("\n## ")[0]
    code = "\n".join(path.read_text(encoding="utf-8") for path in FOLDER.rglob("*.py") if "tests" not in path.parts)
    defined = set(re.findall(r"(?:def|class) (\w+)", code))
    named = [part for name in re.findall(r"`([A-Za-z]*\.?\w+)`", tour) for part in name.split(".") if part]
    assert len(named) > 8
    assert {name for name in named if len(name) > 1} - defined <= {"bpe", "PAD", "MASK"}
