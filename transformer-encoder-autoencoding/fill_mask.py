"""Fill the [MASK]s of your own sentences with a trained encoder, or score sentences word by word.

    python3 fill_mask.py "Transformers use [MASK] attention"
    python3 fill_mask.py --top-k 3 --model my-run/model < sentences.txt
    python3 fill_mask.py --score "Paris is the capital of France"

Sentences are arguments, or lines of standard input, or, on a terminal, what you type at the prompt. Writes
to standard output alone.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from mlm import bert as pretrained
from mlm.common.command_line import Parser, pick_device, run, whole
from mlm.common.errors import InputError, one_line
from mlm.common.lines import numbered_lines
from mlm.filling import Mistake, Sentence, fill, score
from mlm.tokenizer import MASK

HERE = Path(__file__).parent
TOP_K = 5
CHUNK, SCORED = 512, 64  # sentences read and held at a time, to fill and to score


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("sentences", nargs="*", metavar="SENTENCE", help="with a [MASK] for every hidden word")
    add("--model", type=Path, default=HERE / "results" / "model", metavar="DIR", help="default: results/model")
    add("--top-k", type=whole(1), help=f"so many words for each [MASK] (default: {TOP_K})")
    add("--score", action="store_true", help="pseudo-perplexity and each token's surprisal instead")
    add("--json", action="store_true", help="one JSON object a line")
    args = parser.parse_args()
    if args.score and args.top_k:
        parser.error("--score and --top-k exclude each other: a score shows no other words")
    return args


def show(result: dict) -> None:
    """A result as a person reads it."""
    if "masks" in result:
        print(result["filled"])
        for number, candidates in enumerate(result["masks"], start=1):
            if len(result["masks"]) > 1:
                print(f"  {MASK} {number}")
            for candidate in candidates:
                print(f"  {candidate['probability']:7.2%}  {candidate['token']}")
    else:
        print(f"{result['input']}\n  pseudo-perplexity {result['pseudo_perplexity']:.2f}")
        for token in result["tokens"]:
            print(f"  {token['surprisal']:7.3f}  {token['token']}")


def typed() -> Iterator[str]:
    """What a person types at the prompt, until an empty line or the end of input."""
    print(f"Type a sentence with {MASK}; an empty line ends.", file=sys.stderr)
    while True:
        try:
            sentence = input("> " if sys.stdout.isatty() else "").strip()
        except EOFError:
            return
        if not sentence:
            return
        yield sentence


def chunks(sentences: Iterable[Sentence], size: int) -> Iterator[list[Sentence]]:
    """Lists of so many sentences; where one cannot be read, those before it come first."""
    chunk = []
    try:
        for sentence in sentences:
            chunk.append(sentence)
            if len(chunk) == size:
                yield chunk
                chunk = []
    except InputError:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def main() -> None:
    args = parse_args()
    device = pick_device(args.device)
    model, tokenizer = pretrained.load(args.model, device)

    def answer(sentences: list[Sentence]) -> None:
        """Print the answers, and before a mistake those to the sentences that stand before it."""
        try:
            if args.score:
                results = score(sentences, model, tokenizer, device)
            else:
                results = fill(sentences, model, tokenizer, args.top_k or TOP_K, device)
        except Mistake as mistake:
            if mistake.index:
                answer(sentences[: mistake.index])
            raise
        for result in results:
            if args.json:
                print(json.dumps(result, ensure_ascii=False))
            else:
                show(result)

    if not args.sentences and sys.stdin.isatty():
        for text in typed():
            try:
                answer([Sentence(text, "what you typed")])
            except InputError as error:
                print(one_line(str(error)), file=sys.stderr)
        return
    if args.sentences:
        sentences = (Sentence(text, f"sentence {i}") for i, text in enumerate(args.sentences, start=1))
    else:
        lines = numbered_lines(sys.stdin.buffer, "standard input")
        sentences = (Sentence(text, f"standard input, line {number}") for number, text in lines)
    answered = 0
    for chunk in chunks(sentences, SCORED if args.score else CHUNK):
        answer(chunk)
        answered += len(chunk)
    if not answered:
        raise InputError("no sentence given; pass one as an argument or on standard input")


if __name__ == "__main__":
    run(main)
