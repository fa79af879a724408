"""Fill the [MASK]s of your own sentences with a trained encoder, or score sentences word by word.

    python3 fill_mask.py "Transformers use [MASK] attention"
    python3 fill_mask.py --top-k 3 --model my-run/model < sentences.txt
    python3 fill_mask.py --score "Paris is the capital of France"

Sentences are arguments, or lines of standard input, or, on a terminal, what you type at the prompt. Writes
to standard output alone.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Encoding, Tokenizer

import pretrained
from cli import InputError, Parser, pick_device, run, warn, whole
from corpus import MASK, SpecialIds, numbered_lines
from encoder import MaskedLanguageModel

HERE = Path(__file__).parent


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("sentences", nargs="*", metavar="SENTENCE", help="with a [MASK] for every hidden word")
    add(
        "--model", type=Path, default=HERE / "results" / "model", metavar="DIR", help="default: results/model"
    )
    add("--top-k", type=whole(1), default=5, help="so many words for each [MASK] (default: %(default)s)")
    add("--score", action="store_true", help="pseudo-perplexity and each token's surprisal instead")
    add("--json", action="store_true", help="one JSON object a line")
    return parser.parse_args()


def encode(sentence: str, model: MaskedLanguageModel, tokenizer: Tokenizer) -> Encoding:
    """Raises InputError where the sentence is empty or too long for the model."""
    try:
        sentence.encode()
    except UnicodeEncodeError:  # how Python holds bytes of the command line that are not UTF-8
        raise InputError("the sentence is not UTF-8 text") from None
    encoding = tokenizer.encode(sentence)
    special = SpecialIds.of(tokenizer)
    if all(token in (special.cls, special.sep) for token in encoding.ids):
        raise InputError("the sentence is empty; give one with words")
    if len(encoding) > model.config.max_length:
        raise InputError(
            f"the sentence has {len(encoding)} tokens, the model takes {model.config.max_length}; shorten it"
        )
    unknown = [
        sentence[start:end]
        for (start, end), token in zip(encoding.offsets, encoding.ids, strict=True)
        if token == special.unk
    ]
    if unknown:
        warn(f"unknown to the model, which sees [UNK] for it: {', '.join(dict.fromkeys(unknown))}")
    return encoding


def to_word(tokenizer: Tokenizer, token_id: int) -> str:
    """One token as it reads in a sentence."""
    return tokenizer.decode([token_id], skip_special_tokens=False).strip()


@torch.inference_mode()
def fill(sentence: str, model: MaskedLanguageModel, tokenizer: Tokenizer, top_k: int, device) -> dict:
    """The likeliest tokens for every [MASK], each given the sentence with all its [MASK]s.

    Returns {"input": the sentence, "filled": the sentence with the likeliest token at every [MASK],
    "masks": for each [MASK] a list of {"token": str, "probability": float}}.
    Raises InputError where there is no [MASK].
    """
    ids = torch.tensor([encode(sentence, model, tokenizer).ids], device=device)
    hidden = ids == SpecialIds.of(tokenizer).mask
    if not hidden.any():
        raise InputError(f"no {MASK} in {sentence!r}; write {MASK} for the word to fill in, or use --score")
    best = model(ids, hidden).softmax(dim=-1).topk(min(top_k, model.config.vocab_size))  # (N, k)
    masks = [
        [{"token": to_word(tokenizer, t), "probability": p} for t, p in zip(tokens, probs, strict=True)]
        for tokens, probs in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    pieces = sentence.split(MASK)
    filled = pieces[0] + "".join(m[0]["token"] + piece for m, piece in zip(masks, pieces[1:], strict=True))
    return {"input": sentence, "filled": filled, "masks": masks}


@torch.inference_mode()
def score(sentence: str, model: MaskedLanguageModel, tokenizer: Tokenizer, device) -> dict:
    """Hide one token after the other and ask how likely it was (Salazar et al. 2020, section 2).

        pseudo-perplexity = exp(-1/n sum_t log p(token_t | all the others))

    Returns {"input": the sentence, "pseudo_perplexity": float,
    "tokens": [{"token": str, "surprisal": -log p in nats}, ...]}.
    """
    encoding = encode(sentence, model, tokenizer)
    special = SpecialIds.of(tokenizer)
    ids = torch.tensor(encoding.ids, device=device)
    positions = ((ids != special.cls) & (ids != special.sep)).nonzero().flatten()  # (n,)
    surprisals = []
    for chunk in positions.split(64):
        rows = torch.arange(len(chunk), device=device)
        hidden = torch.zeros(len(chunk), len(ids), dtype=torch.bool, device=device)
        hidden[rows, chunk] = True
        log_probs = model(ids.expand(len(chunk), -1).masked_fill(hidden, special.mask), hidden).log_softmax(
            -1
        )
        surprisals += (-log_probs[rows, ids[chunk]]).tolist()
    tokens = [
        {"token": to_word(tokenizer, int(ids[position])), "surprisal": surprisal}
        for position, surprisal in zip(positions.tolist(), surprisals, strict=True)
    ]
    perplexity = math.exp(min(700.0, sum(surprisals) / len(surprisals)))
    return {"input": sentence, "pseudo_perplexity": perplexity, "tokens": tokens}


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
            sentence = input("> ").strip()
        except EOFError:
            return
        if not sentence:
            return
        yield sentence


def main() -> None:
    args = parse_args()
    device = pick_device(args.device)
    model, tokenizer = pretrained.load(args.model, device)
    interactive = not args.sentences and sys.stdin.isatty()
    if args.sentences or interactive:
        sentences = enumerate(args.sentences or typed(), start=1)
    else:
        sentences = numbered_lines(sys.stdin.buffer, "standard input")
    number = 0
    for number, sentence in sentences:
        try:
            if args.score:
                result = score(sentence, model, tokenizer, device)
            else:
                result = fill(sentence, model, tokenizer, args.top_k, device)
        except InputError as error:
            if not interactive:
                where = f"sentence {number}: " if args.sentences else f"standard input, line {number}: "
                raise InputError(f"{where}{error}") from None
            print(error, file=sys.stderr)
            continue
        if args.json:
            print(json.dumps(result, ensure_ascii=False))
        else:
            show(result)
    if number == 0 and not interactive:
        raise InputError("no sentence given; pass one as an argument or on standard input")


if __name__ == "__main__":
    run(main)
