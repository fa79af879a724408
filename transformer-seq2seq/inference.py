"""Generate text from prompts with a trained encoder-decoder.

    python3 inference.py "AI improves healthcare"
    python3 inference.py --beam 5 --n-best 3 "What is self-attention?"
    python3 inference.py --sample --temperature 0.8 --seed 1 "In the future, AI will"
    python3 inference.py --model my-run/model --beam 5 --input in.txt --output out.txt --references ref.txt
    python3 inference.py --model my-run/model --engine ctranslate2 --input many.txt --output out.txt

Prompts are arguments, lines of --input or of standard input, or, on a terminal, what you type. Writes to standard
output, or to --output, which appears only when it is complete.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from tqdm import tqdm

from seq2seq import Translator
from seq2seq.common.command_line import Parser, add_flags, describe, from_flags, handle_signals, run_script
from seq2seq.common.errors import InputError, one_line, plural, warn
from seq2seq.common.files import atomic_write
from seq2seq.common.lines import is_rereadable, numbered_lines, open_text
from seq2seq.common.standard_input import typed_lines, watch
from seq2seq.common.unknown_words import collect_unknown
from seq2seq.config import GenerationConfig
from seq2seq.engines import ENGINES, PRECISIONS
from seq2seq.tokenizer import UNK
from seq2seq.translator import Output, Session

FOLDER = Path(__file__).parent
TOKENIZATIONS = ["13a", "char", "intl", "none", "zh"]  # sacreBLEU's, those that need no other package


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="the text to start from")
    add(
        "--model",
        type=Path,
        default=FOLDER / "samples" / "model",
        metavar="DIR",
        help="the model directory (default: samples/model)",
    )
    add_flags(parser, GenerationConfig)
    add("--input", type=Path, metavar="FILE", help="the file of prompts, a line each; one output line for each")
    add("--output", type=Path, metavar="FILE", help="the file to write to (default: -, standard output)")
    add(
        "--references",
        type=Path,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="files of references, one a line, for BLEU and chrF on stderr; several files: several references",
    )
    add("--bleu-tokenize", choices=TOKENIZATIONS, help="how sacreBLEU cuts texts into tokens (default: 13a)")
    add("--json", action="store_true", help="print one JSON object a line")
    parser.add_device()
    add(
        "--engine",
        choices=ENGINES,
        default="pytorch",
        help="what decodes; ctranslate2 is faster (pip install ctranslate2)",
    )
    add("--engine-precision", choices=PRECISIONS, help="the precision of ctranslate2 (default: float32)")
    args = parser.parse_args(argv)
    if args.input and args.prompts:
        parser.error("--input and prompts as arguments cannot be combined")
    if args.references and args.prompts:
        parser.error("--references compares with lines of --input or of standard input, not with arguments")
    if args.bleu_tokenize and not args.references:
        parser.error("--bleu-tokenize needs --references")
    args.typed = sys.stdin.isatty() and not (args.prompts or args.input or args.output or args.references)
    if args.n_best > 1 and not (args.prompts or args.typed or args.json):
        parser.error("--n-best with a file or a pipe of prompts needs --json, as a line answers a line")
    return args


def check_files(args: argparse.Namespace) -> None:
    """Refuse to write over a file that is read."""
    for flag, path in (("--input", args.input), *(("--references", path) for path in args.references or [])):
        if args.output and path and args.output.is_file() and path.exists() and path.samefile(args.output):
            raise InputError(f"--output {args.output}: is what {flag} names; name another file")
    for path in args.references or []:
        if not path.exists():
            raise InputError(f"--references {path}: no such file (prompts stand before --references)")


def show(prompt: str, outputs: list[Output], args: argparse.Namespace, out: TextIO) -> None:
    """Write the outputs for one prompt in the form that the flags ask for."""
    if args.json:
        shown = json.dumps({"input": prompt, "outputs": [vars(one) for one in outputs]}, ensure_ascii=False)
    elif args.prompts:
        shown = "\n".join([f"Input : {prompt}", *(f"Output: {output.text}" for output in outputs)])
    else:
        shown = "\n".join(output.text for output in outputs)
    print(shown, file=out, flush=True)  # a program may be waiting for it


def converse(session: Session, args: argparse.Namespace) -> None:
    """Answer what a person types, until an empty line or the end of input."""
    for prompt in typed_lines("Type a prompt; an empty line ends."):
        try:
            (outputs,) = session.answer([prompt], ["the prompt"])
        except InputError as error:
            print(one_line(describe(error)), file=sys.stderr)
        else:
            show(prompt, outputs, args, sys.stdout)


def filter_lines(stream: BinaryIO, name: str, session: Session, args: argparse.Namespace) -> None:
    """Answer every line, in order, a blank one with a blank line, and compare the answers with references if there
    are any."""
    stream, has_line = watch(stream)
    lines, references, best, blank, tabs = numbered_lines(stream, name), [], [], 0, 0
    if args.references:  # these are held in memory, and the prompts as well
        prompts = list(lines)
        references = [read_references(path, len(prompts), name) for path in args.references]
        lines = iter(prompts)
    with (
        output_to(args.output) as out,
        collect_unknown(UNK) as unknown,
        tqdm(unit="line", delay=1, dynamic_ncols=True, disable=None) as bar,
    ):
        for prompt, outputs in session.answer_lines(lines, name, unknown, has_line):
            show(prompt, outputs, args, out)
            blank += not prompt.strip()
            tabs += "\t" in prompt
            if references:
                best.append(outputs[0].text)
            bar.update()
    if blank:
        warn(f"{name}: {plural(blank, 'blank line')}, left blank in the output")
    if tabs:
        warn(
            f"{name}: {plural(tabs, 'line')} with a tab, read whole as a prompt; for pairs, give the first column alone"
        )
    if references:
        print_scores(best, list(zip(*references, strict=True)), args.bleu_tokenize or "13a")


def read_references(path: Path, n_lines: int, name: str) -> list[str]:
    """Return the lines of a file of references, as many as there are lines in the stream of this name."""
    with open_text(path) as file:
        references = [line for _, line in numbered_lines(file, str(path))]
    if len(references) != n_lines:
        raise InputError(f"{path}: has {plural(len(references), 'line')}, {name} has {n_lines:,}")
    return references


def print_scores(outputs: list[str], references: list[tuple[str, ...]], tokenize: str) -> None:
    """Print BLEU and chrF on stderr."""
    from seq2seq.metrics import bleu_and_chrf  # sacrebleu takes a while to import

    scores, signature = bleu_and_chrf(outputs, references, tokenize)
    shown = ", ".join(f"{key} {value:.2f}" for key, value in scores.items() if value is not None)
    if signature:
        shown += f" ({signature})"
    else:
        warn(f"no reference has four tokens by the tokenization {tokenize}, as BLEU needs; try --bleu-tokenize char")
    print(shown, file=sys.stderr)


@contextmanager
def output_to(path: Path | None) -> Iterator[TextIO]:
    """Yield standard output, or a file that takes its place only when it is complete; a pipe or a device, which cannot
    be replaced, is written to directly."""
    if path in (None, Path("-"), Path("/dev/stdout")):
        yield sys.stdout
        return
    if path.is_dir():
        raise InputError(f"--output {path}: is a folder; name a file")
    handle_signals(lambda kind, _: sys.exit(128 + kind), "SIGTERM", "SIGHUP")  # so that no part is left
    regular = path.is_file() or not path.exists()
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise InputError(f"--output {path}: {path.parent} is not a folder; name a file in a folder") from None
        with (
            atomic_write(path) if regular else nullcontext(path) as part,
            part.open("w", encoding="utf-8", newline="\n") as file,
        ):
            yield file
        made = []
    finally:
        for folder in made:  # nothing is left of what failed
            with suppress(OSError):
                folder.rmdir()


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    config = from_flags(GenerationConfig, args)
    check_files(args)
    stream, name = sys.stdin.buffer, "standard input"
    if args.input:
        stream, name = open_text(args.input), str(args.input)
    session = Translator.load(args.model, args.device, args.engine, args.engine_precision).session(config)
    if args.prompts:
        with output_to(args.output) as out:
            for prompt, outputs in zip(args.prompts, session.answer(args.prompts), strict=True):
                show(prompt, outputs, args, out)
    elif args.typed:
        converse(session, args)
    else:
        if sys.stdin.isatty() and not args.input:
            print("Type prompts, one a line; Ctrl-D ends.", file=sys.stderr)
        if is_rereadable(stream):  # not a pipe: refuse a line that cannot be answered before any is answered
            start = stream.tell()
            session.check_lines(numbered_lines(stream, name), name)
            stream.seek(start)
        filter_lines(stream, name, session, args)


if __name__ == "__main__":
    run_script(main)
