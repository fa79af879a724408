"""Write the training and the held-out sentences of the masked language model.

Command:   python3 data/make_data.py

Reads (beside this file)    facts.tsv, frames.tsv, free.tsv
Writes (beside this file)   train.txt, held_out.txt              one sentence a line
                            train.cloze.tsv, held_out.cloze.tsv  sentence, key, kind in the same order

Each fact is put into every frame of its relation. One of these sentences per fact is held out, and the
frame differs from fact to fact, so every fact and every frame is still seen in training. Rephrasings are
held out too. If a rule is broken, nothing is written: one line on stderr names the table line, and the
exit status is 2.
"""

import argparse
import random
import re
import sys
from pathlib import Path
from typing import NamedTuple, NoReturn

HERE = Path(__file__).resolve().parent
WORD = re.compile(r"\w+(?:[-'’]\w+)*")
Rows = list[tuple[str, list[str]]]  # (file and line number, cells)


class Item(NamedTuple):
    sentence: str
    key: str
    kind: str
    where: str  # the table lines it is made from


def stop(where: str, message: str) -> NoReturn:
    print(f"make_data.py: {where}: {message}", file=sys.stderr)
    sys.exit(2)


def read_table(name: str, columns: str) -> Rows:
    """Return all lines below the header; only the third cell of free.tsv may be empty."""
    try:
        lines = (HERE / name).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        stop(name, f"cannot be read: {error}")
    rows = [(f"{name} line {n}", [c.strip() for c in line.split("\t")]) for n, line in enumerate(lines, 1)]
    for where, cells in rows:
        if name == "free.tsv" and len(cells) == 2:
            cells.append("")  # some editors drop the tab at the end of a line
        if len(cells) != len(columns.split()) or not all(cells[:2]):
            stop(where, f"needs these columns, separated by tabs: {columns}")
    if not rows or rows[0][1] != columns.split():
        stop(f"{name} line 1", f"must name these columns, separated by tabs: {columns}")
    return rows[1:]


def fact_sentences(all_facts: Rows, all_frames: Rows) -> tuple[list[Item], list[Item]]:
    """Put the facts into the frames; return the sentences for training and those held out."""
    train, held_out = [], []
    relations = list(dict.fromkeys(cells[0] for _, cells in all_facts + all_frames))
    if len(relations) < 10:
        stop("facts.tsv", f"has {len(relations)} relations and needs 10 or more")
    for relation in relations:
        facts = [(where, *cells[1:]) for where, cells in all_facts if cells[0] == relation]
        frames = [(where, cells[1]) for where, cells in all_frames if cells[0] == relation]
        if len(facts) < 12 or len(frames) < 6:
            have = f"{len(facts)} facts and {len(frames)} frames"
            stop((facts or frames)[-1][0], f"relation {relation} has {have}, it needs 12 and 6 or more")
        for row, (where, subject, value) in enumerate(facts):
            if subject in [fact[1] for fact in facts[:row]] or not value.isalpha():
                stop(where, "a subject stands once in its relation, and its value is one word of letters")
            for column, (frame_where, frame) in enumerate(frames):
                if frame.count("{subject}") != 1 or frame.count("{value}") != 1:
                    stop(frame_where, "a frame needs {subject} and {value}, each exactly once")
                sentence = frame.replace("{subject}", subject).replace("{value}", value)
                held = column == row % len(frames)
                kind = "combination" if held else "systematic"
                (held_out if held else train).append(Item(sentence, value, kind, f"{where}, {frame_where}"))
    return train, held_out


def hide_key(item: Item) -> str:
    """Return the sentence with its key word hidden, wherever it stands."""
    return WORD.sub(lambda word: "[MASK]" if word[0] == item.key else word[0], item.sentence)


def check(train: list[Item], held_out: list[Item]) -> None:
    """Stop at the first sentence that breaks a rule."""
    made_by: dict[str, Item] = {}
    for item in train + held_out:
        if WORD.findall(item.sentence).count(item.key) != 1:
            stop(item.where, f"the key {item.key!r} must be one word that stands once in {item.sentence!r}")
        if not item.sentence[0].isupper() or item.sentence.endswith("."):
            stop(item.where, f"needs a capital at the beginning and no full stop: {item.sentence!r}")
        if made_by.setdefault(item.sentence, item) is not item:
            stop(item.where, f"{item.sentence!r} is there already, from {made_by[item.sentence].where}")
    patterns: dict[str, Item] = {}
    for item in train:
        other = patterns.setdefault(hide_key(item), item)
        if other.key != item.key:
            stop(item.where, f"{hide_key(item)!r} has another key in {other.where}")
    known = {word for item in train for word in WORD.findall(item.sentence)}
    for item in held_out:
        needed = WORD.findall(item.sentence) if item.kind == "combination" else [item.key]
        if not known.issuperset(needed):
            stop(item.where, f"{item.sentence!r} needs {sorted({*needed} - known)}, in no training sentence")
        if item.kind == "combination" and hide_key(item) in patterns:
            stop(item.where, f"{hide_key(item)!r} is a training pattern of {patterns[hide_key(item)].where}")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    facts = read_table("facts.tsv", "relation subject value")
    train, held_out = fact_sentences(facts, read_table("frames.tsv", "relation frame"))
    for where, (sentence, key, rephrasing) in read_table("free.tsv", "sentence key rephrasing"):
        train.append(Item(sentence, key, "free", where))
        if rephrasing:
            held_out.append(Item(rephrasing, key, "rephrasing", where))
    check(train, held_out)
    random.Random(7).shuffle(train)
    for name, items in (("train", train), ("held_out", held_out)):
        rows = ["sentence\tkey\tkind", *("\t".join(item[:3]) for item in items)]
        for file, lines in ((f"{name}.txt", [i.sentence for i in items]), (f"{name}.cloze.tsv", rows)):
            try:
                (HERE / file).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
            except OSError as error:
                stop(file, f"cannot be written: {error.strerror}")
        print(f"{name}: {len(items)} sentences")


if __name__ == "__main__":
    main()
