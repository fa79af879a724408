"""Fill the [MASK]s of your own sentences with a trained encoder, or score sentences word by word.

    python3 fill_mask.py "Transformers use [MASK] attention"
    python3 fill_mask.py --top-k 3 --model my-run/model < sentences.txt
    python3 fill_mask.py --score "Paris is the capital of France"
    python3 fill_mask.py --compare pairs.tsv

Sentences are arguments, or lines of standard input, or, on a terminal, what you type at the prompt. --compare reads two
sentences a line, the good one first, and says how often it is the likelier one. Writes to standard output; the total of
several scores goes to standard error.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mlm import MaskFiller
from mlm.common.command_line import Parser, describe, run_script
from mlm.common.errors import InputError, one_line, plural
from mlm.common.lines import numbered_lines
from mlm.common.standard_input import always, typed_lines, watch
from mlm.filler import TOP_K, TOP_K_RANGE, Sentence, pseudo_perplexity
from mlm.filling import known_surprisals
from mlm.minimal_pairs import compare, read_pairs, table
from mlm.tokenizer import MASK

FOLDER = Path(__file__).parent


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("sentences", nargs="*", metavar="SENTENCE", help=f"a sentence with {MASK} for every hidden word")
    add(
        "--model",
        type=Path,
        default=FOLDER / "results" / "model",
        metavar="DIR",
        help="the model directory (default: results/model)",
    )
    add("--top-k", type=TOP_K_RANGE, help=f"the number of words to show for each {MASK} (default: {TOP_K})")
    add(
        "--score",
        action="store_true",
        help="print pseudo-perplexity and each token's surprisal instead; a word's later pieces are hidden with it",
    )
    add(
        "--compare",
        type=Path,
        metavar="FILE",
        help="score the two sentences of each line (tab-separated, the good one first, perhaps a kind as the third "
        "column), and print how often the good one is likelier; ties count as wrong",
    )
    add("--json", action="store_true", help="print one JSON object a line")
    parser.add_device()
    args = parser.parse_args(argv)
    if args.score and args.top_k:
        parser.error("--score and --top-k cannot be combined: a score shows no other words")
    if args.compare and (args.sentences or args.score or args.top_k):
        parser.error("--compare takes its sentences from FILE; leave out other sentences, --score and --top-k")
    return args


def show(result: dict) -> None:
    """Print a result for a person to read."""
    if "masks" in result:
        print(result["filled"])
        for number, candidates in enumerate(result["masks"], start=1):
            if len(result["masks"]) > 1:
                print(f"  {MASK} {number}")
            for candidate in candidates:
                print(f"  {candidate['probability']:7.2%}  {candidate['token']}")
    else:
        print(f"{result['input']}\n  pseudo-perplexity {figure(result['pseudo_perplexity'], 2)}")
        for token in result["tokens"]:
            print(f"  {figure(token['surprisal'], 3):>7}  {token['token']}")


def figure(value: float | None, digits: int) -> str:
    """Return a number with so many decimal places, or a dash for what has no score."""
    return "—" if value is None else f"{value:.{digits}f}"


@dataclass
class Total:
    """The sums over the sentences that were scored."""

    sentences: int = 0
    tokens: int = 0
    unknown: int = 0  # tokens that have no score
    surprisal: float = 0.0

    def add(self, result: dict) -> None:
        """Add a sentence's result."""
        surprisals = known_surprisals(result["tokens"])
        self.sentences += 1
        self.tokens += len(surprisals)
        self.unknown += len(result["tokens"]) - len(surprisals)
        self.surprisal += sum(surprisals)

    def __str__(self) -> str:
        """Say the mean, as the pseudo-perplexity of all tokens together."""
        mean = self.surprisal / self.tokens
        unknown = f"; {plural(self.unknown, 'unknown word')} not scored" if self.unknown else ""
        return (
            f"{plural(self.sentences, 'sentence')}, {plural(self.tokens, 'token')}: mean surprisal {mean:.3f} nats, "
            f"pseudo-perplexity {pseudo_perplexity(mean):.2f}{unknown}"
        )


def read_sentences(stream: BinaryIO) -> Iterator[Sentence]:
    """Yield the lines of standard input that are not blank."""
    for number, line in numbered_lines(stream, "standard input"):
        if line := line.strip():
            yield Sentence(line, f"standard input, line {number}")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    filler = MaskFiller.load(args.model, args.device)
    if args.compare:
        pairs = read_pairs(args.compare)
        figures = compare(pairs, filler)
        print(json.dumps(figures, ensure_ascii=False) if args.json else table(figures, pairs.kind_name))
        return

    def answer(sentences: Iterable[Sentence], has_next: Callable[[], bool] = always) -> int:
        """Print the answers to sentences, and return their number; of several scores the total goes to stderr."""
        total = Total()
        if args.score:
            results = filler.score_each(sentences, has_next)
        else:
            results = filler.fill_each(sentences, args.top_k or TOP_K, has_next)
        answered = 0
        for result in results:
            answered += 1
            if args.score:
                total.add(result)
            if args.json:
                print(json.dumps(result, ensure_ascii=False))
            else:
                show(result)
            sys.stdout.flush()  # a program may be waiting for it
        if total.sentences and not total.tokens:
            raise InputError("the model knows none of the words, so there is nothing to score; give known ones")
        if total.sentences > 1:
            print(total, file=sys.stderr)
        return answered

    if args.sentences:
        answer(Sentence(text, f"sentence {i}") for i, text in enumerate(args.sentences, start=1))
    elif sys.stdin.isatty():
        wanted = "to score" if args.score else f"with {MASK}"
        for text in typed_lines(f"Type a sentence {wanted}; an empty line ends."):
            try:
                answer([Sentence(text, "what you typed")])
            except InputError as error:
                print(one_line(describe(error)), file=sys.stderr)
    else:
        stream, has_line = watch(sys.stdin.buffer)
        if not answer(read_sentences(stream), has_line):
            raise InputError("no sentence given; pass one as an argument or on standard input")


if __name__ == "__main__":
    run_script(main)
