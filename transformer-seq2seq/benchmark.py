"""Measure the speed of training and of generation, side by side with other software for such models.

    python3 benchmark.py training                     the bundled pairs, the default model
    python3 benchmark.py training --pairs my.tsv --tokenizer bpe --n-layers 4 --dropout 0.3
    python3 benchmark.py generation                   the bundled held-out prompts, the model in samples/
    python3 benchmark.py generation --model my-run/model --input my.txt

Training is compared with Hugging Face's MarianMT of the same shape on the same text, and takes the flags of
train.py except those of its budget and its output; generation is compared with Hugging Face's generate and with
CTranslate2. The contestants take turns, so that what else the machine does hits all alike, and the tables
give medians; memory is the peak of a process that trains nothing else. It needs ../requirements-dev.txt.
"""

import argparse
import os
import tempfile
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from seq2seq.common.command_line import run_script  # isort: skip (before PyTorch: a quiet Ctrl-C)

import torch
from tokenizers import Tokenizer

from seq2seq import marian
from seq2seq.common.benchmarking import peak_memory, peak_memory_of, take_turns
from seq2seq.common.command_line import Parser, add_flags, from_flags, int_in, pick_device
from seq2seq.common.distributed import DistributedContext
from seq2seq.common.errors import InputError
from seq2seq.common.lines import numbered_lines, open_text
from seq2seq.config import TrainConfig
from seq2seq.contestants_generation import TASKS, agreement, generation_engines
from seq2seq.contestants_training import PRODUCTS, Ours, training_contestants
from seq2seq.pairs import read_pairs
from train import Trainer, build_trainer

FOLDER = Path(__file__).parent
OMITTED = "epochs", "max_steps", "max_minutes", "resume", "output"  # settings of train.py that have no use here
MEMORY_OF = "BENCHMARK_MEMORY_OF"  # the environment variable that names a contestant to be measured alone


def compare_training(args: argparse.Namespace) -> None:
    """Print the table of training: target tokens a second, and peak memory."""
    config, device = from_flags(TrainConfig, args), pick_device(args.device)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows removes no mapped file

        def make_trainer(precision: str) -> Trainer:
            return build_trainer(replace(config, precision=precision, output=Path(folder)), DistributedContext(device))

        contestants = training_contestants(make_trainer, device, config.precision)
        if alone := os.environ.get(MEMORY_OF):
            contestant = contestants[alone]()
            for _ in range(10):
                contestant.step()
            print(peak_memory(device))
            return
        running = {name: start() for name, start in contestants.items()}
        first = next(iter(contestants))
        describe(running[first])
        turns = {name: contestant.step for name, contestant in running.items()}
        medians, _ = take_turns(turns, args.rounds, float, "taking turns")
    print(f"\n{'training':34}{'tokens/s':>10}{'ratio':>8}{'of the products':>17}{'peak MiB':>10}")
    products = medians.pop(PRODUCTS)
    for name, rate in medians.items():
        row = f"{name:34}{rate:10,.0f}{medians[first] / rate:8.1f}{products / rate:17.2f}"
        print(f"{row}{peak_memory_of(name, MEMORY_OF):10,.0f}", flush=True)
    print(
        "\ntokens/s: of target tokens, padding not counted; ratio: the first line's tokens/s over these; of\n"
        "the products: a token's time over that of the fp32 matrix products that a step of ours consists of."
    )


def describe(ours: Ours) -> None:
    """Print what is trained, and on what."""
    data, model = ours.trainer.data.train, ours.trainer.model
    print(
        f"{len(data):,} pairs, {len(data.target.ids):,} target tokens in {len(ours.trainer.batches(0)):,} batches; "
        f"{sum(weight.numel() for weight in model.parameters()):,} parameters; {ours.trainer.context.device.type}, "
        f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    )


def compare_generation(args: argparse.Namespace) -> None:
    """Print a table for each task: generated tokens a second, and how far the outputs agree."""
    device = pick_device(args.device)
    model, tokenizer = marian.load(args.model, device)
    if not isinstance(tokenizer, Tokenizer):
        raise InputError(f"{args.model}: has SentencePiece models; the benchmark needs a tokenizer.json")
    prompts = [encoding.ids for encoding in tokenizer.encode_batch(read_prompts(args.input))]
    prompts = [ids for ids in prompts if len(ids) <= model.config.max_length]
    if not prompts:
        raise InputError("no prompt is short enough for the model; give it shorter ones", "input")
    engines = generation_engines(args.model, model, tokenizer, device)
    for task in TASKS:
        asked = [prompts[i % len(prompts)] for i in range(task.prompts)]
        turns = {name: partial(engine, asked, task.batch_size, task.beam) for name, engine in engines.items()}
        medians, answers = take_turns(
            turns, args.rounds, lambda found: sum(len(ids) + 1 for ids, _ in found), task.name
        )
        print(f"\n{task.name:34}{'tokens/s':>10}{'ratio':>8}   same output as ours")
        for name, rate in medians.items():
            same = agreement(answers["ours"], answers[name]) if name != "ours" else ""
            print(f"{name:34}{rate:10,.0f}{medians['ours'] / rate:8.1f}   {same}")
    print("\ntokens/s: generated, </s> included. ratio: how many times faster ours is.")
    print("x N: the number of batches at once; ours of a narrow model likewise, one a core, at most four. ours,")
    print("ctranslate2: smaller batches, as many for each core, and a beam search that waits longer (engines.py).")


def read_prompts(path: Path | None) -> list[str]:
    """Return the lines of a file, blank ones left out; without one the bundled held-out prompts."""
    if path is None:
        return [pair.source for pair in read_pairs(FOLDER / "data" / "held_out.tsv")]
    with open_text(path) as stream:
        if not (lines := [line for _, line in numbered_lines(stream, str(path)) if line.strip()]):
            raise InputError(f"{path}: contains no text; give it a prompt a line")
    return lines


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    training = commands.add_parser(
        "training", help="compare training", description="Compare training with Hugging Face's MarianMT."
    )
    add_flags(training, TrainConfig, omit=OMITTED)
    training.set_defaults(compare=compare_training, needed=["transformers"])
    generation = commands.add_parser(
        "generation", help="compare generation", description="Compare generation with Hugging Face and CTranslate2."
    )
    add, model = generation.add_argument, FOLDER / "samples" / "model"
    add("--model", type=Path, default=model, metavar="DIR", help="the model directory (default: samples/model)")
    add("--input", type=Path, metavar="FILE", help="prompts, a line each (default: those of data/held_out.tsv)")
    generation.set_defaults(compare=compare_generation, needed=["transformers", "ctranslate2"])
    for command in (training, generation):
        command.add_argument("--rounds", type=int_in(1), default=15, help="turns of each; the median counts")
        command.add_device()
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    for package in args.needed:
        if not find_spec(package):
            raise InputError(f"needs the package {package}; pip install -r ../requirements-dev.txt")
    args.compare(args)


if __name__ == "__main__":
    run_script(main)
