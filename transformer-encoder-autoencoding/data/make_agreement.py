"""Write sentences in which a verb agrees with its subject across other nouns, and minimal pairs of such sentences.

Command:   python3 data/make_agreement.py --output DIR

Writes   train.txt, held_out.txt    20,000 sentences and 500 others by the grammar, one a line
         pairs.tsv                  good, bad, distractors: 480 pairs of sentences for each number of distractors

    sentence -> subject verb adjective        the keys to the cabinet look old
    subject  -> the N | the N P the N | ...   at most three more nouns, each in the singular or the plural
    verb     -> is, was, looks, ... if the first noun is in the singular, are, were, look, ... if it is in the plural

A pair has the right verb and the wrong one (`look` and `looks`) after 0 to 3 distractors: nouns between subject and
verb that all have the other number. Of 24 nouns one form each is held out, the singular of 12 and the plural of 12. In
the corpus such a form is a subject only right before the verb (`the keys look old`); it also stands between other
subjects and their verbs. Only these forms are subjects of the pairs. So a model that has learnt what a subject is gets
all pairs right; one that knows only which words follow each other gets those without distractors right, and no others.

Prints how often 2-grams and 5-grams of train.txt prefer the good sentence; ties count as wrong.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from math import log
from pathlib import Path

N_TRAIN, N_HELD_OUT, N_HELD_OUT_NOUNS, N_PER_FORM = 20_000, 500, 24, 20
SHARES = [4, 3, 2, 1]  # of the sentences with no, one, two and three other nouns
NOUN_FORMS = """\
key cabinet lamp table bottle picture window garden bridge tower wheel basket candle mirror ladder hammer pencil letter
carpet engine anchor barrel blanket button camera carrot cloud coin desk door drum feather flower fountain hat house
island jacket kettle lock map mountain needle oven pillow road rope stone tree violin wall jewel
child/children woman/women man/men mouse/mice goose/geese knife/knives leaf/leaves box/boxes"""
VERB_FORMS = "is/are was/were looks/look seems/seem stays/stay becomes/become appears/appear remains/remain"
ADJECTIVE_WORDS = """\
old new large small clean dirty bright dark heavy light strange famous beautiful ugly cheap expensive cold warm dry wet
strong weak empty full"""

# singular and plural
NOUNS = [(one, several or f"{one}s") for one, _, several in (word.partition("/") for word in NOUN_FORMS.split())]
VERBS = [verb.split("/") for verb in VERB_FORMS.split()]
ADJECTIVES = ADJECTIVE_WORDS.split()
PREPOSITIONS = ["to", "near", "behind", "beside", "above", "below", "under", "around", "opposite", "from"]

Form = tuple[int, int]  # a noun, as its place in NOUNS, and its number: 0 for the singular, 1 for the plural
Pair = tuple[str, str]  # a sentence with the right verb, and the same with the wrong one


def stop(message: str) -> None:
    """Say what is wrong in one line, and end with status 2."""
    print(f"make_agreement.py: {message}", file=sys.stderr)
    sys.exit(2)


def draw(rng: random.Random, subject: Form, others: Sequence[int]) -> Pair:
    """Draw a sentence with this subject and, between it and its verb, other nouns of these numbers."""
    noun, number = subject
    words = ["the", NOUNS[noun][number]]
    for forms, other in zip(rng.sample(NOUNS[:noun] + NOUNS[noun + 1 :], len(others)), others, strict=True):
        words += [rng.choice(PREPOSITIONS), "the", forms[other]]
    verb, adjective = rng.choice(VERBS), rng.choice(ADJECTIVES)
    return tuple(" ".join([*words, verb[n], adjective]) for n in (number, 1 - number))


def draw_corpus(rng: random.Random, held_out: Container[Form]) -> list[str]:
    """Draw different sentences for train.txt and held_out.txt; forms that are held out have no noun behind them."""
    sentences: dict[str, None] = {}
    while len(sentences) < N_TRAIN + N_HELD_OUT:
        subject = rng.randrange(len(NOUNS)), rng.randrange(2)
        (n_others,) = rng.choices(range(len(SHARES)), SHARES)
        if not n_others or subject not in held_out:
            sentences[draw(rng, subject, rng.choices((0, 1), k=n_others))[0]] = None
    return list(sentences)


def draw_pairs(rng: random.Random, subjects: Iterable[Form], seen: Container[str]) -> list[tuple[Pair, int]]:
    """Draw different pairs with these subjects whose good sentence has not been seen, and their distractors' number."""
    pairs: dict[Pair, int] = {}
    for n_distractors in range(len(SHARES)):
        for noun, number in subjects:
            enough = len(pairs) + N_PER_FORM
            while len(pairs) < enough:
                pair = draw(rng, (noun, number), n_distractors * [1 - number])
                if pair[0] not in seen:
                    pairs[pair] = n_distractors
    return list(pairs.items())


class NGrams:
    """The counts of all sequences of up to `order` words, and what they say of a sentence by stupid backoff (Brants et
    al. 2007, section 4):

        S(w | context) = count(context w) / count(context) if that was seen, else 0.4 S(w | context but its first word)
    """

    def __init__(self, sentences: Iterable[str], order: int):
        self.order, self.counts = order, Counter()
        for words in map(self.split, sentences):
            for i in range(len(words)):
                self.counts.update(tuple(words[j : i + 1]) for j in range(max(0, i + 1 - order), i + 1))
        self.counts[()] = sum(count for gram, count in self.counts.items() if len(gram) == 1)

    def split(self, sentence: str) -> list[str]:
        """Return the words of a sentence between two that mark its ends."""
        return ["<s>", *sentence.split(), "</s>"]

    def score(self, sentence: str) -> float:
        """Return the sum of log S(w | the words before it) over a sentence of known words."""
        words, total = self.split(sentence), 0.0
        for i in range(1, len(words)):
            start = max(0, i + 1 - self.order)
            while not self.counts[tuple(words[start : i + 1])]:
                start += 1
                total += log(0.4)
            total += log(self.counts[tuple(words[start : i + 1])] / self.counts[tuple(words[start:i])])
        return total


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to write to")
    folder = parser.parse_args(argv).output
    rng = random.Random(0)
    held_out = [(noun, i % 2) for i, noun in enumerate(rng.sample(range(len(NOUNS)), N_HELD_OUT_NOUNS))]
    corpus = draw_corpus(rng, set(held_out))
    pairs = draw_pairs(rng, held_out, set(corpus))
    files = {
        "train.txt": corpus[:N_TRAIN],
        "held_out.txt": corpus[N_TRAIN:],
        "pairs.tsv": ["good\tbad\tdistractors", *(f"{good}\t{bad}\t{n}" for (good, bad), n in pairs)],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, lines in files.items():
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    except OSError as error:
        stop(f"{error.filename}: cannot be written: {error.strerror}")
    print(f"{N_TRAIN:,} sentences to train on, {N_HELD_OUT} held out, {len(pairs):,} pairs")
    for order in 2, 5:
        grams = NGrams(corpus[:N_TRAIN], order)
        right, ties = Counter(), 0
        for (good, bad), n_distractors in pairs:
            margin = grams.score(good) - grams.score(bad)
            right[n_distractors] += margin > 1e-9
            ties += abs(margin) <= 1e-9
        shares = (f"{right[n] / (N_PER_FORM * len(held_out)):.1%}" for n in range(len(SHARES)))
        print(f"{order}-grams, 0 to {len(SHARES) - 1} distractors: {', '.join(shares)} right; {ties} ties")


if __name__ == "__main__":
    main()
