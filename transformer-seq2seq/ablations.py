"""What is each mechanism good for? The default model is trained again with one of them taken out at a time.

    python3 ablations.py                              all of them, three seeds: about ten minutes on two cores
    python3 ablations.py --list                       what each takes out, and what it was predicted to do
    python3 ablations.py no-positions no-causal-mask  these alone, beside the default

Every run reads the bundled pairs for a quarter of train.py's epochs, in batches of half the size, and is
judged as its weights are at the end. Writes to --output (default: samples/ beside this file): ablations.jsonl
(a line for every finished run), ablations.md (the table), ablations.png (the learning curves). There are as
many processes as PyTorch would use threads (OMP_NUM_THREADS); the results do not depend on their number.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

import train
from seq2seq.common.command_line import Parser, pick_device, run, whole
from seq2seq.common.distributed import Team
from seq2seq.common.errors import InputError
from seq2seq.common.experiments import draw, read_results, scratch, side_by_side, table, write_results
from seq2seq.common.files import output_folder, write_text
from seq2seq.dataset import Batch
from seq2seq.metrics import answer_all, bleu_and_chrf, exact_match, exact_match_by_kind
from seq2seq.pairs import Pair
from seq2seq.tokenizer import IGNORE
from seq2seq.training import Run
from train import HERE
from transformer import MultiHeadAttention

EPOCHS, SEEDS, BATCH_TOKENS = 15, 3, 512
RECALL_EVERY, CURVE_EVERY = 5, 4  # of the training pairs, and of new answers and rewrites along the curve
EXAMPLE = "The child explains the lesson"  # held out
DEFAULT = "default"
MEASURES = {  # key of a result -> head of its column, format of a number
    "train_loss": ("training loss", ".3f"),
    "recall": ("training pairs", ".1%"),
    "answer": ("new answers", ".1%"),
    "rewrite": ("new rewrites", ".1%"),
    "bleu": ("BLEU", ".1f"),
}
LEGEND = """\
Mean over the seeds and, in brackets, the range. Training loss: of the last epoch, in nats a target token,
under teacher forcing, label smoothing's share left out. Training pairs, new answers, new rewrites: the share
of greedy outputs that are the reference to the letter, for every fifth training prompt, for known facts asked
in new ways, and for new active sentences. BLEU: of the outputs for all held-out prompts."""


@dataclass(frozen=True)
class Ablation:
    """What is taken out, what was predicted before it was tried, and the function that does it to a run that
    has not begun."""

    removes: str
    prediction: str
    take_out: Callable[[Run], None]


ABLATIONS: dict[str, Ablation] = {}


def ablation(prediction: str) -> Callable:
    """Make an ablation of the function below: its name is the ablation's, its docstring what it removes."""

    def add(take_out: Callable[[Run], None]) -> Callable[[Run], None]:
        removes = " ".join(take_out.__doc__.split())
        ABLATIONS[take_out.__name__.replace("_", "-")] = Ablation(removes, prediction, take_out)
        return take_out

    return add


@ablation("What the others are compared with.")
def default(state: Run) -> None:
    """Nothing."""


@ablation(
    "The training loss collapses, for the word to predict stands at the next position, in plain sight; the "
    "outputs are garbage, for nothing stands there when words are generated."
)
def no_causal_mask(state: Run) -> None:
    """The triangle: in training every target position sees all others, the later ones too."""

    def see_all(_layer, inputs: tuple) -> tuple:
        x, target, mask, *rest = inputs
        return x, target, None if mask is None else mask | True, *rest

    for layer in state.model.decoder:
        layer.register_forward_pre_hook(see_all)


@ablation(
    "The decoder becomes a language model: its output is fluent, the same for every prompt, and right for "
    "none. The training loss stops at the entropy of the answers."
)
def no_cross_attention(state: Run) -> None:
    """The decoder's attention to the source: its sublayer is LayerNorm(x), so that the prompt is not seen."""
    for layer in state.model.decoder:
        layer.cross_attention.forward = lambda x, *_: (torch.zeros_like(x), None)


@ablation(
    "Answers survive, for the words of a question tell it without their order; rewrites fail about half the "
    "time, for who does what to whom is told by order alone."
)
def no_positions(state: Run) -> None:
    """The position encoding, in the encoder and in the decoder: the prompt becomes a bag of words."""
    state.model.embeddings.positions.zero_()


@ablation(
    "Scores are sqrt(32) = 5.7 times as large, so that the softmax begins near one-hot and passes little "
    "gradient: learning is slower, and everything ends lower."
)
def no_scale(state: Run) -> None:
    """The division of the scores by sqrt(d_k), in all three attentions: the queries are multiplied by it."""
    for module in state.model.modules():
        if isinstance(module, MultiHeadAttention):
            module.query.register_forward_hook(lambda _m, _i, q, d_k=module.d_k: q * math.sqrt(d_k))


@ablation(
    "The training loss falls to almost nothing within a few epochs, for the word to predict is the word just "
    "read; the outputs are garbage, for all that is learnt is to repeat a word."
)
def no_shift(state: Run) -> None:
    """The shift of teacher forcing: the decoder reads the very word that it has to predict."""
    corpus, shifted = state.corpus, state.corpus.batch

    def batch(indices: np.ndarray) -> Batch:
        pairs = shifted(indices)
        return Batch(pairs.source, pairs.labels.where(pairs.labels != IGNORE, corpus.pad_id), pairs.labels)

    corpus.batch = batch


@ablation(
    "The training loss ends lower, for nothing keeps the model from being sure; exact match is about the "
    "same, for on so little text greedy outputs do not need modesty."
)
def no_label_smoothing(state: Run) -> None:
    """Label smoothing: all the probability belongs to the reference's word."""
    state.args.label_smoothing = 0.0


@ablation(
    "Little changes: sentences of like length share a batch, so that there is little padding to be attended "
    "to, and the model learns to ignore what is there. Outputs now depend on what shares their batch."
)
def no_padding_mask(state: Run) -> None:
    """The padding mask: the prompt's padding is attended to, in the encoder and from the decoder."""
    for layer in state.model.encoder:
        layer.register_forward_pre_hook(lambda _layer, inputs: (inputs[0], inputs[1] | True, *inputs[2:]))
    for layer in state.model.decoder:
        layer.register_forward_pre_hook(lambda _layer, inputs: (*inputs[:4], inputs[4] | True, *inputs[5:]))


@dataclass(frozen=True)
class Job:
    """One run: an ablation, by name, and a seed."""

    name: str
    seed: int
    epochs: int
    device: str


def prepare(job: Job) -> tuple[Run, Tokenizer]:
    """The default's run, as train.py begins it, without what the ablation takes out."""
    flags = {"--epochs": job.epochs, "--batch-tokens": BATCH_TOKENS, "--seed": job.seed}
    flags["--output"] = scratch().name
    args = train.parse_args([str(part) for flag in flags.items() for part in flag])
    state, tokenizer = train.prepare(args, Team(torch.device(job.device)))
    ABLATIONS[job.name].take_out(state)
    return state, tokenizer


def experiment(job: Job, epoch_done: Callable[[], None]) -> dict:
    """Train and measure on one thread: the result holds the job, every measure of MEASURES, the curve, and an
    example's output."""
    torch.set_num_threads(1)  # models this small gain little from a second one
    state, tokenizer = prepare(job)
    held_out, progress, stopped = state.pairs.held_out, state.progress, None

    def outputs(asked: list[Pair]) -> list[str]:
        if stopped is not None:  # a model whose numbers are no longer finite says nothing
            return [""] * len(asked)
        return answer_all(state.model, tokenizer, [pair.source for pair in asked])

    combinations = [pair for pair in held_out if pair.kind in ("answer", "rewrite")]
    some = combinations[::CURVE_EVERY]
    recalled = list(state.pairs)[::RECALL_EVERY]
    steps = job.epochs * len(state.plan(0))
    curve = []
    for epoch in range(1, job.epochs + 1):
        try:
            for indices in state.plan(epoch - 1):
                state.update(indices, progress.step / steps)
        except InputError:  # the loss is no longer finite
            stopped = progress.step
        if progress.nll_tokens or not curve:  # else it stopped where the last point is
            loss = progress.nll / max(1, progress.nll_tokens)
            combined = exact_match(outputs(some), some)
            curve.append({"epoch": epoch, "train_loss": loss, "combinations": combined})
            progress.nll, progress.nll_tokens = 0.0, 0
        epoch_done()
        if stopped is not None:
            break

    found = outputs(held_out)
    by_kind = exact_match_by_kind(found, held_out)
    return {
        **vars(job),
        "stopped": stopped,
        "train_loss": curve[-1]["train_loss"],
        "recall": exact_match(outputs(recalled), recalled),
        "answer": by_kind["answer"],
        "rewrite": by_kind["rewrite"],
        "bleu": bleu_and_chrf(found, [pair.target for pair in held_out])["bleu"],
        "example": found[[pair.source for pair in held_out].index(EXAMPLE)],
        "curve": curve,
    }


def write(results: list[dict], args: argparse.Namespace) -> None:
    """The table, and the picture where the default is there to be compared with."""
    command = " ".join([f"python3 {Path(sys.argv[0]).name}", *args.names])
    for flag, value, usual in (("seeds", args.seeds, SEEDS), ("epochs", args.epochs, EPOCHS)):
        command += f" --{flag} {value}" if value != usual else ""
    text = f"`{command}`\n\n{table(results, MEASURES)}\n\n{LEGEND}\n\n"
    for result in results:
        if result["seed"] == 0:
            entry = ABLATIONS[result["name"]]
            text += f"- **{result['name']}** takes out: {entry.removes} Predicted: {entry.prediction} "
            text += f"`{EXAMPLE}` → `{shorten(result['example'], 60, placeholder=' ...')}`\n"
    write_text(args.output / "ablations.md", text)
    if {DEFAULT} < {result["name"] for result in results}:
        above, below = ("train_loss", "training loss (nats)"), ("combinations", "new answers, rewrites")
        draw(results, DEFAULT, above, below, args.output / "ablations.png")


def parse_args(flags: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="which to run (default: all)")
    add("--list", action="store_true", help="name them, with what each takes out and was predicted to do")
    add("--seeds", type=whole(1, 1000), default=SEEDS, help="runs of each, with the seeds 0, 1, ...")
    add("--epochs", type=whole(1, 100_000), default=EPOCHS, help="passes over the pairs")
    add("--resume", action="store_true", help="keep what is finished in --output, and run what is missing")
    add("--output", type=Path, default=HERE / "samples", metavar="DIR", help="where to write")
    args = parser.parse_args(flags)
    for name in args.names:
        if name not in ABLATIONS:
            parser.error(f"no ablation is called {name!r}; there are {', '.join(ABLATIONS)}")
    return args


def main() -> None:
    args = parse_args()
    if args.list:
        for name, entry in ABLATIONS.items():
            print(f"{name}\n    takes out: {entry.removes}\n    predicted: {entry.prediction}")
        return
    device = pick_device(args.device)
    names = list(dict.fromkeys([DEFAULT, *(args.names or ABLATIONS)]))
    jobs = [Job(name, seed, args.epochs, device.type) for seed in range(args.seeds) for name in names]
    output_folder(args.output)
    path = args.output / "ablations.jsonl"
    results, others = read_results(path, jobs, MEASURES) if args.resume else ([], [])
    path.touch()  # what cannot be written to is found now, not after the first run
    finished = {(result["name"], result["seed"]) for result in results}
    missing = [job for job in jobs if (job.name, job.seed) not in finished]
    with tqdm(total=args.epochs * len(missing), unit="epoch", dynamic_ncols=True) as bar:
        for result in side_by_side(experiment, missing, torch.get_num_threads(), bar.update):
            results = sorted([*results, result], key=lambda r: (names.index(r["name"]), r["seed"]))
            write_results([*others, *results], path)
            shown = ", ".join(f"{head} {result[key]:{form}}" for key, (head, form) in MEASURES.items())
            bar.write(f"{result['name']}, seed {result['seed']}: {shown}")
    if results:
        write(results, args)
        print(f"\n{table(results, MEASURES)}")
    if len(results) < len(jobs):
        raise KeyboardInterrupt(
            f"interrupted; {len(results)} of {len(jobs)} runs are finished; --resume goes on with the others"
        )


if __name__ == "__main__":
    run(main)
