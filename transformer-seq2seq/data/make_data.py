"""Write the training and the held-out pairs of the encoder-decoder model.

Command:   python3 data/make_data.py

Reads (beside this file)    facts.tsv, frames.tsv, free.tsv, rewrite_nouns.tsv, rewrite_verbs.tsv
Writes (beside this file)   train.tsv, held_out.tsv    source, target, kind

Each fact is asked with every question of its relation. One of these questions per fact is held out, and
it differs from fact to fact. Of all active-to-passive rewrites 400 are drawn for training and 100 others
are held out. Rewordings of free sources are held out too. If a rule is broken, nothing is written: one
line on stderr names the table line, and the exit status is 2.
"""

import argparse
import random
import re
import sys
from itertools import product
from pathlib import Path
from typing import NamedTuple, NoReturn

HERE = Path(__file__).resolve().parent
RANDOM = random.Random(7)
WORD = re.compile(r"\w+(?:[-']\w+)*")
Rows = list[tuple[str, list[str]]]  # (file and line number, cells)


class Pair(NamedTuple):
    source: str
    target: str
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
    needed = 2 if name == "free.tsv" else None
    for where, cells in rows:
        if name == "free.tsv" and len(cells) == 2:
            cells.append("")  # some editors drop the tab at the end of a line
        if len(cells) != len(columns.split()) or not all(cells[:needed]) or any('"' in cell for cell in cells):
            stop(where, f"needs these columns, separated by tabs, no double quotes: {columns}")
    if not rows or rows[0][1] != columns.split():
        stop(f"{name} line 1", f"must name these columns, separated by tabs: {columns}")
    return rows[1:]


def answers(all_facts: Rows, all_frames: Rows) -> tuple[list[Pair], list[Pair]]:
    """Ask for the facts; return the pairs for training and those held out."""
    train, held_out = [], []
    relations = list(dict.fromkeys(cells[0] for _, cells in all_facts + all_frames))
    if len(relations) < 10:
        stop("facts.tsv", f"has {len(relations)} relations and needs 10 or more")
    for relation in relations:
        facts = [(where, *cells[1:]) for where, cells in all_facts if cells[0] == relation]
        frames = [(where, *cells[1:]) for where, cells in all_frames if cells[0] == relation]
        if len(facts) < 12 or len(frames) < 6:
            have = f"{len(facts)} facts and {len(frames)} questions"
            stop((facts or frames)[-1][0], f"relation {relation} has {have}, it needs 12 and 6 or more")
        for row, (where, subject, value) in enumerate(facts):
            if not value.isalpha():
                stop(where, f"the value {value!r} must be one word of letters")
            for column, (frame_where, question, answer) in enumerate(frames):
                slots = (question.count("{subject}"), answer.count("{subject}"), answer.count("{value}"))
                if slots != (1, 1, 1) or "{value}" in question or answer != frames[0][2]:
                    stop(frame_where, "needs {subject} once, {value} only in the answer, one answer a relation")
                source = question.replace("{subject}", subject)
                target = answer.replace("{subject}", subject).replace("{value}", value)
                held = column == row % len(frames)
                (held_out if held else train).append(Pair(source, target, "answer", f"{where}, {frame_where}"))
    return train, held_out


def rewrites(nouns: Rows, verbs: Rows) -> tuple[list[Pair], list[Pair]]:
    """Draw 400 rewrites for training and 100 others whose word forms all occur in the 400."""
    for where, (role, *_) in nouns:
        if role not in ("subject", "object"):
            stop(where, f"the role {role!r} must be subject or object")
    subjects = [cells[1:] for _, cells in nouns if cells[0] == "subject"]
    objects = {cells[1]: cells[1:] for _, cells in nouns if cells[0] == "object"}
    drawn: list[tuple[Pair, set[tuple[str, str]]]] = []
    for where, (singular, plural, participle, names) in verbs:
        for name in names.split():
            if name not in objects:
                stop(where, f"the object {name!r} is not in rewrite_nouns.tsv")
            for subject, number, (what, be) in product(
                subjects, (0, 1), zip(objects[name], ("is", "are"), strict=True)
            ):
                who, verb = subject[number], (singular, plural)[number]
                source, target = f"The {who} {verb} the {what}", f"The {what} {be} {participle} by the {who}"
                forms = {("subject", who), ("verb", verb), ("object", what), (be, participle)}
                drawn.append((Pair(source, target, "rewrite", where), forms))
    RANDOM.shuffle(drawn)
    seen = set().union(*(forms for _, forms in drawn[:400]))
    held_out = [pair for pair, forms in drawn[400:] if forms <= seen][:100]
    if len(held_out) < 100:
        stop("rewrite_verbs.tsv", "has too few verbs and objects for 400 rewrites and 100 others")
    return [pair for pair, _ in drawn[:400]], held_out


def check(train: list[Pair], held_out: list[Pair]) -> None:
    """Stop at the first pair that breaks a rule."""
    made_by: dict[str, Pair] = {}
    for pair in train + held_out:
        if made_by.setdefault(pair.source, pair) is not pair:
            stop(pair.where, f"{pair.source!r} is there already, from {made_by[pair.source].where}")
        if pair.source.endswith(".") or pair.target.endswith("."):
            stop(pair.where, f"needs no full stop at the end: {pair.source!r}, {pair.target!r}")
        if pair.kind in ("free", "rephrasing") and not 4 <= len(WORD.findall(pair.target)) <= 14:
            stop(pair.where, f"a target of 4 to 14 words is needed, not {pair.target!r}")
    known = {word for pair in train for word in WORD.findall(f"{pair.source} {pair.target}")}
    for pair in held_out:
        unknown = {*WORD.findall(f"{pair.source} {pair.target}")} - known
        if unknown and pair.kind != "rephrasing":
            stop(pair.where, f"{pair.source!r} needs {sorted(unknown)}, in no training pair")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    facts = read_table("facts.tsv", "relation subject value")
    train, held_out = answers(facts, read_table("frames.tsv", "relation question answer"))
    nouns = read_table("rewrite_nouns.tsv", "role singular plural")
    known, new = rewrites(nouns, read_table("rewrite_verbs.tsv", "singular plural participle objects"))
    train, held_out = train + known, held_out + new
    for where, (source, target, rewording) in read_table("free.tsv", "source target rewording"):
        train.append(Pair(source, target, "free", where))
        if rewording:
            held_out.append(Pair(rewording, target, "rephrasing", where))
    check(train, held_out)
    RANDOM.shuffle(train)
    for name, pairs in (("train.tsv", train), ("held_out.tsv", held_out)):
        lines = ["source\ttarget\tkind", *("\t".join(pair[:3]) for pair in pairs)]
        try:
            (HERE / name).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        except OSError as error:
            stop(name, f"cannot be written: {error.strerror}")
        print(f"{name}: {len(pairs)} pairs")


if __name__ == "__main__":
    main()
