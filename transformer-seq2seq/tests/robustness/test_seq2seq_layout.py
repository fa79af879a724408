"""Which module may import which: what teaches stays free of what serves, and the two experiments share no code."""

import ast
import filecmp
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2]
PACKAGE, READ, TRAIN = "seq2seq", ["transformer", "decoding"], "train"
SCRIPTS = ["train", "inference", "visualize_attention", "ablations", "benchmark"]
OTHER = FOLDER.parent / "transformer-encoder-autoencoding"


def imported(path):
    """The modules that a file imports, wherever in it, relative ones resolved: "seq2seq.common.lines"."""
    package = [*path.relative_to(FOLDER).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1] if node.level else [])
            module = ".".join(filter(None, [base, node.module]))
            names = [f"{module}.{alias.name}" for alias in node.names]
            found |= {name if is_module(name) else module for name in names}
    return found


def is_module(name):
    """Return True if a dotted name is a file of this folder."""
    return (FOLDER / (name.replace(".", "/") + ".py")).is_file()


def own(modules):
    """Those of the modules that are this folder's."""
    tops = {PACKAGE, *(file.stem for file in FOLDER.glob("*.py"))}
    return {name for name in modules if name.split(".")[0] in tops}


def test_the_folder_shows_what_to_read_and_to_run():
    """Whoever lists the folder sees the files to read, the scripts, one package, and no more."""
    assert sorted(file.stem for file in FOLDER.glob("*.py")) == sorted([*READ, *SCRIPTS])
    assert [file.parent.name for file in FOLDER.glob("*/__init__.py")] == [PACKAGE]


def test_files_to_read_import_torch_and_each_other_alone():
    """Nobody needs another file to understand them."""
    standard = sys.stdlib_module_names
    for i, name in enumerate(READ):
        outside = {module.split(".")[0] for module in imported(FOLDER / f"{name}.py")} - standard
        assert outside <= {"torch", *READ[:i]}, name


def test_the_package_imports_no_script():
    """Scripts are where everything comes together: what serves them does not depend on them."""
    for path in (FOLDER / PACKAGE).rglob("*.py"):
        assert own(imported(path)).isdisjoint(SCRIPTS), path


def test_the_model_side_needs_no_training():
    """Scripts import the training script only if they train."""
    for name in set(SCRIPTS) - {"ablations", "benchmark"}:
        assert own(imported(FOLDER / f"{name}.py")).isdisjoint(SCRIPTS), name
    for name in ("ablations", "benchmark"):
        assert own(imported(FOLDER / f"{name}.py")) & set(SCRIPTS) <= {TRAIN}, name


def test_common_knows_neither_model_nor_tokenizer():
    """It is the same in both experiments, so that it can know neither."""
    common = f"{PACKAGE}.common"
    for path in (FOLDER / PACKAGE / "common").glob("*.py"):
        assert {name for name in own(imported(path)) if not name.startswith(common)} == set(), path
    assert own(imported(FOLDER / PACKAGE / "common" / "errors.py")) == set()


def test_nothing_of_the_other_experiment_is_imported():
    """Each folder works where the other is not."""
    others = {file.stem for file in OTHER.glob("*.py")} | {file.parent.name for file in OTHER.glob("*/__init__.py")}
    others -= {*SCRIPTS, *READ, PACKAGE}
    for path in FOLDER.rglob("*.py"):
        assert {name.split(".")[0] for name in imported(path)}.isdisjoint(others), path


def test_common_is_the_same_in_both_experiments():
    """What both need alike lies in both, byte for byte, so that whatever differs is meant to. (Copied alone, a
    folder has nothing to be compared with.)"""
    for ours in [*(FOLDER / PACKAGE / "common").iterdir(), FOLDER / "tests" / "commands.py"]:
        for theirs in OTHER.glob("*/common" if ours.parent.name == "common" else "tests"):
            if ours.is_file():
                assert filecmp.cmp(ours, theirs / ours.name, shallow=False), ours.name
    for theirs in OTHER.glob("*/common/*.py"):
        assert (FOLDER / PACKAGE / "common" / theirs.name).is_file(), theirs.name
