"""Measure the speed of training and of filling masks, side by side with Hugging Face's, and race for the better model.

    python3 benchmark.py training                     the bundled text, the default model
    python3 benchmark.py training --corpus my.txt --tokenizer bpe --n-layers 4 --d-model 256 --d-ff 1024
    python3 benchmark.py filling                      the bundled held-out sentences, the model in results/
    python3 benchmark.py filling --model my-run/model --input my.txt
    python3 benchmark.py race --corpus my.txt --tokenizer bpe --n-layers 4 --d-model 256 --d-ff 1024 --minutes 30

training compares our steps with those of Hugging Face's BERT of the same shape on the same text, and takes the
flags of train_mlm.py except those of its budget and its output; filling compares filling masks and scoring with
Hugging Face's fill-mask pipeline. The contestants take turns, so that what else the machine does hits all alike, and
the tables give medians; memory is the peak of a process that trains nothing else.

race trains ours for a third of the given minutes, then Hugging Face's for all of them, once at each of
--their-learning-rates, on a CPU in fp32. It draws race.png into --output (default: results/) after each of them.
All of this needs ../requirements-dev.txt.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from mlm.common.command_line import run_script  # isort: skip (before PyTorch: a quiet Ctrl-C)

import torch

from mlm.common.benchmarking import peak_memory, peak_memory_of, take_turns
from mlm.common.command_line import Parser, add_flags, float_in, from_flags, int_in, pick_device
from mlm.common.distributed import DistributedContext
from mlm.common.errors import InputError
from mlm.common.fast_cpu import best_precision
from mlm.common.files import make_output_folder
from mlm.config import TrainConfig
from mlm.contestants_filling import agreement, filling_tasks
from mlm.contestants_training import PRODUCTS, HuggingFace, Ours, draw_race, train_for, training_contestants
from mlm.filler import MaskFiller
from mlm.text import TextFile
from train_mlm import Trainer, build_trainer

FOLDER = Path(__file__).parent
BUDGET = "epochs", "max_steps", "max_minutes", "resume"  # settings of train_mlm.py that have no use here
MEMORY_OF = "BENCHMARK_MEMORY_OF"  # the environment variable that names a contestant to be measured alone


@contextmanager
def trainers(args: argparse.Namespace) -> Iterator[Callable[[str | None], Trainer]]:
    """Yield a function that makes a trainer, precision -> trainer; their files are removed in the end."""
    config, context = from_flags(TrainConfig, args), DistributedContext(pick_device(args.device))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows removes no mapped file
        yield lambda precision: build_trainer(replace(config, precision=precision, output=Path(folder)), context)


def compare_training(args: argparse.Namespace) -> None:
    """Print the table of training: tokens a second, and peak memory."""
    device = pick_device(args.device)
    with trainers(args) as make_trainer:
        contestants = training_contestants(make_trainer, device, args.precision)
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
        "\ntokens/s: tokens, padding not counted; ratio: the first line's tokens/s over these; of\n"
        "the products: a token's time over that of the fp32 matrix products that a step of ours consists of."
    )


def describe(ours: Ours) -> None:
    """Print what is trained, and on what."""
    data, model = ours.trainer.data.train, ours.trainer.model
    print(
        f"{len(data):,} windows, {data.n_tokens:,} tokens in {len(ours.trainer.batches(0)):,} batches; "
        f"{sum(weight.numel() for weight in model.parameters()):,} parameters; {ours.trainer.context.device.type}, "
        f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    )


def compare_filling(args: argparse.Namespace) -> None:
    """Print a table for each task: sentences filled, and tokens scored, a second, and how far the answers agree."""
    sentences = list(TextFile(args.input))
    filler = MaskFiller.load(args.model, args.device)
    for task, turns in filling_tasks(filler, args.model, sentences).items():
        medians, results = take_turns(turns, args.rounds, lambda result: result[0], task)
        answers = {name: found for name, (_, found) in results.items()}
        same = "   same answer as ours" if answers["ours"] else ""
        print(f"\n{task + ' per second':34}{'rate':>10}{'ratio':>8}{same}")
        for name, rate in medians.items():
            same = agreement(answers["ours"], answers[name]) if answers["ours"] and name != "ours" else ""
            print(f"{name:34}{rate:10,.0f}{medians['ours'] / rate:8.1f}   {same}".rstrip())
    print("\nratio: how many times faster ours is.")


def race(args: argparse.Namespace) -> None:
    """Train one after the other; print and draw the held-out losses over the minutes."""
    make_output_folder(args.output)
    device = pick_device(args.device)  # on a CPU, PyTorch's attention is slow in bfloat16
    their_precision = "fp32" if device.type == "cpu" else args.precision or best_precision(device)
    curves = {}
    with trainers(args) as make_trainer:
        racers = {"ours": (args.minutes / 3, lambda: Ours(make_trainer(args.precision)))}
        for rate in args.their_learning_rates:
            start = lambda rate=rate: HuggingFace(make_trainer(their_precision), True, rate)  # noqa: E731
            racers[f"Hugging Face at {rate:g}"] = args.minutes, start
        for name, (minutes, start) in racers.items():
            curves[name] = minutes, train_for(start(), minutes, name)
            draw_race(curves, f"{args.mask_prob:.0%} of the tokens hidden", args.output / "race.png")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    training = commands.add_parser("training", help="compare training", description="Compare training.")
    add_flags(training, TrainConfig, omit=(*BUDGET, "output"))
    training.set_defaults(compare=compare_training)
    filling = commands.add_parser("filling", help="compare filling masks", description="Compare filling and scoring.")
    add, model, text = filling.add_argument, FOLDER / "results" / "model", FOLDER / "data" / "held_out.txt"
    add("--model", type=Path, default=model, metavar="DIR", help="the model directory (default: results/model)")
    add("--input", type=Path, default=text, metavar="FILE", help="sentences, a line each (default: data/held_out.txt)")
    filling.set_defaults(compare=compare_filling)
    for command in (training, filling):
        command.add_argument("--rounds", type=int_in(1), default=15, help="turns of each; the median counts")
    racing = commands.add_parser("race", help="compare the losses over time", description="Compare losses over time.")
    add_flags(racing, TrainConfig, omit=BUDGET)
    racing.add_argument(
        "--minutes", type=float_in(0.01), default=30, help="minutes for Hugging Face's model at every learning rate"
    )
    racing.add_argument(
        "--their-learning-rates",
        type=float_in(1e-9, 10),
        nargs="+",
        default=[3e-4, 1e-3, 3e-3],
        metavar="RATE",
        help="the highest learning rates for Hugging Face's model (default: 0.0003 0.001 0.003)",
    )
    racing.set_defaults(compare=race)
    for command in (training, filling, racing):
        command.add_device()
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if not find_spec("transformers"):
        raise InputError("needs the package transformers; pip install -r ../requirements-dev.txt")
    args.compare(args)


if __name__ == "__main__":
    run_script(main)
