"""Write SCAN, commands and the actions that they ask for (Lake and Baroni 2018, arXiv:1711.00350), by its grammar.

Command:   python3 data/make_scan.py --output DIR

Writes SPLIT.train.tsv and SPLIT.test.tsv    source (the command), target (the actions)

    simple      four fifths of all pairs, drawn by a generator with seed 0, and the rest
    length      the pairs of at most 22 actions, and the longer ones
    length-26   the same with 26 for 22
    add-jump    the commands without `jump`, and `jump` alone as a tenth of the pairs; the other commands with `jump`

    C -> S and S | S after S | S          S1 after S2: first S2, then S1
    S -> V twice | V thrice | V
    V -> U D | U opposite D | U around D | one of U but turn
    U -> walk | look | run | jump | turn          turning takes no action but that of its direction
    D -> left | right
"""

import random
from itertools import product

from splits import Pair, make_parser, output_folder, write_split

ACTIONS = {"walk": ["I_WALK"], "look": ["I_LOOK"], "run": ["I_RUN"], "jump": ["I_JUMP"], "turn": []}
TURNS = {"left": ["I_TURN_LEFT"], "right": ["I_TURN_RIGHT"]}
TIMES = {"": 1, " twice": 2, " thrice": 3}
Phrases = dict[str, list[str]]  # a phrase -> its actions


def verb_phrases() -> Phrases:
    """Return the 34 phrases V, such as `jump around left`."""
    phrases = {verb: actions for verb, actions in ACTIONS.items() if actions}
    for (verb, action), (side, turn) in product(ACTIONS.items(), TURNS.items()):
        phrases[f"{verb} {side}"] = turn + action
        phrases[f"{verb} opposite {side}"] = turn + turn + action
        phrases[f"{verb} around {side}"] = 4 * (turn + action)
    return phrases


def all_pairs() -> list[Pair]:
    """Return the 20,910 commands, each with its actions."""
    verbs = product(verb_phrases().items(), TIMES.items())
    clauses: Phrases = {verb + word: times * actions for (verb, actions), (word, times) in verbs}
    commands = dict(clauses)
    for (first, actions), (second, others) in product(clauses.items(), clauses.items()):
        commands[f"{first} and {second}"] = actions + others
        commands[f"{first} after {second}"] = others + actions
    return [(command, " ".join(actions)) for command, actions in commands.items()]


def splits(pairs: list[Pair]) -> dict[str, tuple[list[Pair], list[Pair]]]:
    """Return the name of each split -> its pairs for training and for testing."""
    shuffled = random.Random(0).sample(pairs, len(pairs))
    parts = {"simple": (shuffled[: len(pairs) * 4 // 5], shuffled[len(pairs) * 4 // 5 :])}
    for name, most in (("length", 22), ("length-26", 26)):
        short = [pair for pair in pairs if len(pair[1].split()) <= most]
        parts[name] = short, [pair for pair in pairs if len(pair[1].split()) > most]
    jump = ("jump", *ACTIONS["jump"])
    others = [pair for pair in pairs if "jump" not in pair[0].split()]
    tests = [pair for pair in pairs if "jump" in pair[0].split() and pair != jump]
    parts["add-jump"] = others + len(others) // 9 * [jump], tests
    return parts


def main(argv: list[str] | None = None) -> None:
    folder = output_folder(make_parser(__doc__).parse_args(argv))
    for name, (train, test) in splits(all_pairs()).items():
        write_split(folder, name, train, test)


if __name__ == "__main__":
    main()
