"""The tour in README.md leads to the lines that it names."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent
TEXT = (FOLDER / "README.md").read_text(encoding="utf-8")
LINKS = re.findall(r"\[`([\w.]+)`\]\((\w+\.py)#L(\d+)\)", TEXT)


@pytest.mark.parametrize(("name", "file", "line"), LINKS, ids=[name for name, *_ in LINKS])
def test_a_link_leads_to_the_definition_it_names(name, file, line):
    definition = (FOLDER / file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
    assert re.match(rf"\s*(def|class) {name.split('.')[-1]}\b", definition)


def test_every_file_that_is_linked_is_there():
    files = re.findall(r"\]\(([\w/.]+?)(?:#L\d+)?\)", TEXT)
    assert len(files) > 10
    assert [file for file in files if not (FOLDER / file).exists()] == []
