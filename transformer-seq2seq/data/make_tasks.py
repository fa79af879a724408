"""Write four small tasks whose rule is known and whose answers can be checked, so that only the rule will do.

Command:   python3 data/make_tasks.py --output DIR

Writes TASK.train.tsv (20,000 pairs) and TASK.test.tsv (1,000 others)    source, target

    reversal           4 to 12 digits                            `3 1 4 1` -> `1 4 1 3`
    dates              1900 to 2099, in six ways of writing      `5 March 1987` -> `1987 - 03 - 05`
    addition           two numbers of three digits               `2 7 5 + 6 4 8` -> `9 2 3`
    addition-reversed  the same, least significant digit first   `2 7 5 + 6 4 8` -> `3 2 9`

Digits stand apart, and so do the parts of an ISO date, so that each is a token. The pairs are drawn with seed 0. No
digit string, date or sum of a test is in training, however a date is written; but a sum may be, its numbers swapped.
"""

import random
from calendar import month_name
from datetime import date, timedelta
from itertools import product

from splits import Pair, make_parser, output_folder, write_split

N_TRAIN, N_TEST = 20_000, 1_000
FIRST, LAST = date(1900, 1, 1), date(2099, 12, 31)
WRITINGS = (
    "{day} {month} {year}",
    "{month} {day}, {year}",
    "{day} {short} {year}",
    "{short} {day}, {year}",
    "the {ordinal} of {month} {year}",
    "{year}, {month} {day}",
)
ENDINGS = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}


def reversal() -> list[Pair]:
    """Draw digits, and turn them round."""
    rng, drawn = random.Random(0), {}
    while len(drawn) < N_TRAIN + N_TEST:
        digits = rng.choices("0123456789", k=rng.randint(4, 12))
        drawn[" ".join(digits)] = " ".join(reversed(digits))
    return list(drawn.items())


def dates() -> list[Pair]:
    """Draw dates, and a way of writing for each."""
    rng = random.Random(0)
    pairs = []
    for days in rng.sample(range((LAST - FIRST).days + 1), N_TRAIN + N_TEST):
        day = FIRST + timedelta(days)
        month, ordinal = month_name[day.month], f"{day.day}{ENDINGS.get(day.day, 'th')}"
        parts = {"day": day.day, "ordinal": ordinal, "month": month, "short": month[:3], "year": day.year}
        pairs.append((rng.choice(WRITINGS).format(**parts), f"{day:%Y - %m - %d}"))
    return pairs


def addition() -> list[Pair]:
    """Draw sums of two numbers from 100 to 999."""
    sums = random.Random(0).sample(list(product(range(100, 1000), repeat=2)), N_TRAIN + N_TEST)
    return [(" ".join(f"{a}+{b}"), " ".join(str(a + b))) for a, b in sums]


def addition_reversed() -> list[Pair]:
    """Draw the same sums, the digits of the answer in the order in which one computes them."""
    return [(source, target[::-1]) for source, target in addition()]


TASKS = {"reversal": reversal, "dates": dates, "addition": addition, "addition-reversed": addition_reversed}


def main(argv: list[str] | None = None) -> None:
    folder = output_folder(make_parser(__doc__).parse_args(argv))
    for name, draw in TASKS.items():
        pairs = draw()
        write_split(folder, name, pairs[:N_TRAIN], pairs[N_TRAIN:])


if __name__ == "__main__":
    main()
