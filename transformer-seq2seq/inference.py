"""Generate text from prompts with a trained encoder-decoder.

    python3 inference.py "AI improves healthcare"
    python3 inference.py --beam 5 --n-best 3 "What is self-attention?"
    python3 inference.py --sample --temperature 0.8 --seed 1 "In the future, AI will"
    python3 inference.py --model my-run/model --beam 5 --input in.txt --output out.txt --references ref.txt

Prompts are arguments, lines of --input or of standard input, or, on a terminal, what you type. Writes to
standard output, or to --output, which appears only when it is complete.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TextIO

import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from decoding import Hypothesis, Sampler, generate_all
from seq2seq import marian as pretrained
from seq2seq.common.command_line import Parser, pick_device, real, run, whole
from seq2seq.common.errors import InputError, one_line, warn
from seq2seq.common.files import replacing
from seq2seq.common.lines import decode_lines, open_text
from seq2seq.generation import encode, encoded_chunks, position, sound, warn_of
from seq2seq.tokenizer import to_text
from transformer import Transformer

HERE = Path(__file__).parent
BATCHES = 32  # so many are read and held at a time, and those of like length decoded together


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="the text to start from")
    add("--model", type=Path, default=HERE / "model", metavar="DIR", help="default: model/ beside this file")
    add(
        "--beam",
        type=whole(1, 1000),
        default=1,
        help="beam width; 1 is greedy decoding",
    )
    add(
        "--length-penalty",
        type=real(-10, 10),
        default=1.0,
        metavar="A",
        help="rank by log p / length^A",
    )
    add("--n-best", type=whole(1, 1000), default=1, help="so many outputs a prompt")
    add("--sample", action="store_true", help="draw the tokens at random instead")
    add(
        "--temperature",
        type=real(1e-3, 1e3),
        default=1.0,
        help="above 1 flatter, below 1 sharper",
    )
    add("--top-k", type=whole(0), default=0, help="draw from the k likeliest tokens alone; 0: from all")
    add(
        "--top-p",
        type=real(1e-6, 1),
        default=1.0,
        help="draw from the likeliest that add up to p",
    )
    add("--seed", type=whole(0), default=0, help="of the sampling")
    add("--max-length", type=whole(1, 100_000), help="tokens an output, </s> included (default: the model's)")
    add(
        "--batch-size",
        type=whole(1, 100_000),
        default=64,
        help="prompts decoded together",
    )
    add("--input", type=Path, metavar="FILE", help="prompts, a line each; one output line for each")
    add("--output", type=Path, metavar="FILE", help="where to write (default: standard output)")
    add("--references", type=Path, metavar="FILE", help="a reference a line: prints BLEU and chrF to stderr")
    add("--json", action="store_true", help="one JSON object a line")
    args = parser.parse_args()
    if args.input and args.prompts:
        parser.error("--input and prompts as arguments exclude each other")
    if args.references and args.prompts:
        parser.error("--references compares with lines of --input or of standard input, not with arguments")
    if args.n_best > args.beam and not args.sample:
        parser.error(f"--n-best {args.n_best} needs --beam {args.n_best} or more, or --sample")
    if args.n_best > 1 and not args.prompts and not args.json:
        parser.error("--n-best without prompts as arguments needs --json, as a line answers a line")
    if args.sample and args.beam > 1:
        parser.error("--sample and --beam exclude each other")
    if not args.sample and (args.temperature, args.top_k, args.top_p) != (1.0, 0, 1.0):
        parser.error("--temperature, --top-k and --top-p need --sample")
    return args


def decoder(model: Transformer, args: argparse.Namespace) -> Callable[[list[list[int]]], list[list[Hypothesis]]]:
    """What the flags ask for: a function from the ids of prompts to n_best outputs each, best first."""
    max_length = args.max_length or model.config.max_length
    if max_length > model.config.max_length:
        raise InputError(f"--max-length {max_length}: the model knows {model.config.max_length} positions; lower it")
    generator = torch.Generator().manual_seed(args.seed)

    def search(rows: list[list[int]]) -> list[list[Hypothesis]]:
        found = generate_all(model, rows, max_length, args.batch_size, args.beam, args.length_penalty)
        return [hypotheses[: args.n_best] for hypotheses in sound(found)]

    def sample(rows: list[list[int]]) -> list[list[Hypothesis]]:
        sampler = Sampler(generator, args.temperature, args.top_k, args.top_p)
        repeated = [row for row in rows for _ in range(args.n_best)]
        try:
            found = generate_all(model, repeated, max_length, args.batch_size, pick=sampler)
        except RuntimeError as error:
            if "probability tensor" not in str(error):  # which holds NaN
                raise
            found = [[]]
        drawn = [hypotheses[0] for hypotheses in sound(found)]
        groups = [drawn[i : i + args.n_best] for i in range(0, len(drawn), args.n_best)]
        return [sorted(group, key=lambda hypothesis: -hypothesis.log_probability) for group in groups]

    return sample if args.sample else search


def show(prompt: str, texts: list[str], hypotheses: list[Hypothesis], args: argparse.Namespace, out: TextIO) -> None:
    """Write the outputs of one prompt in the form that the flags ask for."""
    if args.json:
        outputs = [
            {"text": text, "log_probability": hypothesis.log_probability}
            for text, hypothesis in zip(texts, hypotheses, strict=True)
        ]
        print(json.dumps({"input": prompt, "outputs": outputs}, ensure_ascii=False), file=out)
    elif args.prompts:
        print(f"Input : {prompt}", *(f"Output: {text}" for text in texts), sep="\n", file=out)
    else:
        print(texts[0], file=out)


def converse(model: Transformer, tokenizer: Tokenizer, args: argparse.Namespace) -> None:
    """Answer what a person types, until an empty line or the end of input."""
    decode = decoder(model, args)
    print("Type a prompt; an empty line ends.", file=sys.stderr)
    while True:
        try:
            prompt = input("> " if sys.stdout.isatty() else "").strip()
        except EOFError:
            return
        if not prompt:
            return
        try:
            hypotheses = decode(encode([prompt], ["the prompt"], model, tokenizer))[0]
        except InputError as error:
            print(one_line(str(error)), file=sys.stderr)
            continue
        texts = [to_text(tokenizer, hypothesis.ids) for hypothesis in hypotheses]
        show(prompt, texts, hypotheses, args, sys.stdout)


def filter_lines(
    lines: Iterator[str],
    name: str,
    model: Transformer,
    tokenizer: Tokenizer,
    args: argparse.Namespace,
    out: TextIO,
) -> list[str]:
    """Answer every line, in order; a blank one gives a blank line. Returns the best outputs if there are
    references to compare them with."""
    decode, best, blank, unknown = decoder(model, args), [], 0, {}
    chunks = encoded_chunks(lines, name, model, tokenizer, BATCHES * args.batch_size, unknown)
    try:
        with tqdm(unit="line", delay=1, dynamic_ncols=True) as bar:
            for chunk, ids in chunks:
                found = dict(zip(ids, decode(list(ids.values())), strict=True))
                for i, prompt in enumerate(chunk):
                    hypotheses = found.get(i, [Hypothesis([], 0.0, 0.0)])
                    texts = [to_text(tokenizer, hypothesis.ids) for hypothesis in hypotheses]
                    show(prompt, texts, hypotheses, args, out)
                    if args.references:
                        best.append(texts[0])
                blank += len(chunk) - len(ids)
                bar.update(len(chunk))
    finally:  # also of lines before one that cannot be answered
        warn_of(unknown)
    if blank:
        warn(f"{name}: {blank} blank lines, left blank in the output")
    return best


@contextmanager
def output_to(path: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that takes its place only when it is complete; a pipe or a device, which
    cannot be replaced, is written to as it is."""
    if path in (None, Path("/dev/stdout")):
        yield sys.stdout
        return
    if path.is_dir():
        raise InputError(f"--output {path}: is a folder; name a file")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no part is left
    regular = path.is_file() or not path.exists()
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise InputError(f"--output {path}: {path.parent} is no folder; name a file in one") from None
        with (
            replacing(path) if regular else nullcontext(path) as part,
            part.open("w", encoding="utf-8", newline="\n") as file,
        ):
            yield file
        made = []
    finally:
        for folder in made:  # nothing is left of what failed
            with suppress(OSError):
                folder.rmdir()


def main() -> None:
    args = parse_args()
    device = pick_device(args.device)
    for flag, path in (("--input", args.input), ("--references", args.references)):
        if args.output and path and args.output.is_file() and path.exists() and path.samefile(args.output):
            raise InputError(f"--output {args.output}: is what {flag} names; name another file")
    references = None
    if args.references:
        with open_text(args.references) as stream:
            references = list(decode_lines(stream, str(args.references)))
    stream = open_text(args.input) if args.input else sys.stdin.buffer
    model, tokenizer = pretrained.load(args.model, device)
    from_terminal = sys.stdin.isatty() and not (args.prompts or args.input)
    if from_terminal and not (args.output or args.references):
        return converse(model, tokenizer, args)

    name = str(args.input or "standard input")
    if not args.prompts and (start := position(stream)) is not None:  # told before any line is answered
        size = BATCHES * args.batch_size
        for _ in encoded_chunks(decode_lines(stream, name), name, model, tokenizer, size, {}):
            pass
        stream.seek(start)
    lines = decode_lines(stream, name)
    if references is not None:  # which are held in memory as well
        prompts = list(lines)
        if len(references) != len(prompts):
            raise InputError(f"{args.references}: has {len(references)} lines, {name} has {len(prompts)}")
        lines = iter(prompts)
    with output_to(args.output) as out:
        if args.prompts:
            places = [f"prompt {i}" for i in range(1, len(args.prompts) + 1)]
            ids = encode(args.prompts, places, model, tokenizer)
            for prompt, hypotheses in zip(args.prompts, decoder(model, args)(ids), strict=True):
                show(prompt, [to_text(tokenizer, h.ids) for h in hypotheses], hypotheses, args, out)
            return
        best = filter_lines(lines, name, model, tokenizer, args, out)
    if references is not None:
        from seq2seq.metrics import bleu_and_chrf

        scores = bleu_and_chrf(best, references)
        print(", ".join(f"{key} {value:.2f}" for key, value in scores.items()), file=sys.stderr)


if __name__ == "__main__":
    run(main)
