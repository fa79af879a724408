"""What is each mechanism good for? The default model is trained again with one of them taken out at a time.

    python3 ablations.py                            all of them, three seeds: about ten minutes on two cores
    python3 ablations.py --list                     what each takes out, and what it was predicted to do
    python3 ablations.py no-positions one-head      these alone, beside the default

Every run makes 70 passes over the bundled text where train_mlm.py makes 180, at a third higher learning
rate, and is judged as its weights are at the end. Writes to --output (default: results/ beside
this file): ablations.jsonl (a line for every finished run), ablations.md (the table), ablations.png (the
learning curves). There are as many processes as PyTorch would use threads (OMP_NUM_THREADS); the results do
not depend on their number.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MethodType

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

import train_mlm
from encoder import EncoderLayer
from masking import IGNORE
from mlm import cloze as evaluation
from mlm.common.command_line import Parser, pick_device, run, whole
from mlm.common.distributed import Team
from mlm.common.errors import InputError
from mlm.common.experiments import draw, read_results, scratch, side_by_side, table, write_results
from mlm.common.files import output_folder, write_text
from mlm.training import Run
from train_mlm import HERE

EPOCHS, SEEDS, LEARNING_RATE = 70, 3, 4e-3
CURVE_EVERY = 5  # epochs
DEFAULT = "default"
MEASURES = {  # key of a result -> head of its column, format of a number
    "train_loss": ("training loss", ".3f"),
    "recall_loss": ("recall loss", ".3f"),
    "recall": ("recall", ".1%"),
    "combinations": ("new combinations", ".1%"),
    "visible": ("visible words", ".1%"),
}
LEGEND = """\
Mean over the seeds and, in brackets, the range. Training loss: of the last epochs, in nats, over the
positions that the run itself scores. Recall: the key words of the training sentences, hidden. New
combinations: those of known facts in frames never seen with them, hidden. Visible words: those of the
training sentences, none hidden, that the model names when asked what stands there."""


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
    "Recall stays high, for the words of a short sentence nearly tell their order; new combinations suffer, "
    "for frames that differ in the order of their words alone become one."
)
def no_positions(state: Run) -> None:
    """The position embeddings: a sentence becomes a bag of words."""
    state.model.encoder.embeddings.position.weight.requires_grad_(False).zero_()


@ablation(
    "Scores are sqrt(32) = 5.7 times as large, so that the softmax begins near one-hot and passes little "
    "gradient: learning is slower, recall and new combinations end lower."
)
def no_scale(state: Run) -> None:
    """The division of the scores by sqrt(d_k): the queries are multiplied by it first."""
    for layer in state.model.encoder.layers:
        width, d_k = layer.attention.output.in_features, layer.attention.d_k
        factor = torch.tensor([math.sqrt(d_k), 1.0, 1.0], device=state.device).repeat_interleave(width)
        layer.attention.qkv.register_forward_hook(lambda _module, _inputs, qkv, factor=factor: qkv * factor)


@ablation(
    "Little is lost: sentences of eight words ask for few things at once. New combinations are a little "
    "lower, for they need the relation and the subject from two places."
)
def one_head(state: Run) -> None:
    """The division into heads: the same matrices, read as one head of full width."""
    for layer in state.model.encoder.layers:
        layer.attention.n_heads, layer.attention.d_k = 1, layer.attention.output.in_features


@ablation(
    "Learning is much slower: gradients reach the embeddings through every sublayer alone, and what a word "
    "is must pass through attention even to its own place. Recall ends well below the default's."
)
def no_residual(state: Run) -> None:
    """The residual connections: LayerNorm(Sublayer(x)) instead of LayerNorm(x + Sublayer(x))."""

    def forward(self: EncoderLayer, x: Tensor, mask: Tensor, need_weights: bool = False):
        attended, weights = self.attention(x, mask, need_weights)
        x = self.attention_norm(self.dropout(attended))
        return self.feed_forward_norm(self.dropout(self.feed_forward(x))), weights

    for layer in state.model.encoder.layers:
        layer.forward = MethodType(forward, layer)


@ablation(
    "At this learning rate training is rough or diverges: nothing holds the size of the sums any more. If it "
    "survives, it ends well below the default."
)
def no_layer_norm(state: Run) -> None:
    """Layer normalisation, wherever it stands: in the layers, after the embeddings, in the head."""
    for module in list(state.model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LayerNorm):
                setattr(module, name, nn.Identity())


class Nothing(nn.Module):
    """A sublayer that adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@ablation(
    "Recall falls: the feed-forward part holds half of the layers' weights and is said to be where facts are "
    "kept. New combinations fall more."
)
def no_feed_forward(state: Run) -> None:
    """The feed-forward part: its sublayer is LayerNorm(x)."""
    for layer in state.model.encoder.layers:
        layer.feed_forward = Nothing()


@ablation(
    "Recall and new combinations rise a little, for both are asked with [MASK], and nothing else is trained "
    "now. Visible words are lost: the model need not know any more what stands at a place that it sees."
)
def always_mask(state: Run) -> None:
    """The random and the unchanged tokens of 80/10/10: all that is to be predicted becomes [MASK]."""

    def corrupt(ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        _, labels = Run.corrupt(state, ids, generator)
        return ids.to(state.device).masked_fill(labels != IGNORE, state.corpus.special.mask), labels

    state.corrupt = corrupt


@ablation(
    "The training loss falls at once to a small value and looks wonderful, for six words of seven need only "
    "be copied; recall, the truth, ends far below the default's."
)
def all_positions(state: Run) -> None:
    """The restriction of the loss to the hidden positions: every token of a sentence is scored."""

    def corrupt(ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs, _ = Run.corrupt(state, ids, generator)
        return inputs, ids.masked_fill(ids == state.corpus.special.pad, IGNORE).to(state.device)

    state.corrupt = corrupt


@dataclass(frozen=True)
class Job:
    """One run: an ablation, by name, and a seed."""

    name: str
    seed: int
    epochs: int
    device: str


def prepare(job: Job) -> tuple[Run, Tokenizer]:
    """The default's run, as train_mlm.py begins it, without what the ablation takes out."""
    flags = {"--epochs": job.epochs, "--learning-rate": LEARNING_RATE, "--seed": job.seed}
    flags["--output"] = scratch().name
    args = train_mlm.parse_args([str(part) for flag in flags.items() for part in flag])
    state, tokenizer = train_mlm.prepare(args, Team(torch.device(job.device)))
    ABLATIONS[job.name].take_out(state)
    return state, tokenizer


@torch.no_grad()
def visible_words(state: Run) -> float:
    """The share of the training sentences' words, none of them hidden, that the model names."""
    state.model.eval()
    special = [state.corpus.special.pad, state.corpus.special.cls, state.corpus.special.sep]
    right, count = 0, 0
    for rows in state.corpus.plan(4096, seed=0):
        ids = state.corpus.rows(rows).to(state.device)
        words = ~torch.isin(ids, torch.tensor(special, device=ids.device))
        right += int((state.model(ids, words).argmax(dim=-1) == ids[words]).sum())
        count += int(words.sum())
    return right / count


def experiment(job: Job, epoch_done: Callable[[], None]) -> dict:
    """Train and measure on one thread: the result holds the job, every measure of MEASURES, and the curve."""
    torch.set_num_threads(1)  # models this small gain little from a second one
    state, tokenizer = prepare(job)
    progress = state.progress
    recall_tests, held_out_tests = (
        evaluation.read_clozes(HERE / "data" / name) for name in ("train.txt", "held_out.txt")
    )
    combination_tests = [cloze for cloze in held_out_tests if cloze.kind == "combination"]

    def share(tests: list[evaluation.Cloze], guesses: list[str]) -> float:
        return sum(guess == cloze.key for guess, cloze in zip(guesses, tests, strict=True)) / len(tests)

    steps = job.epochs * len(state.plan(0))
    curve, stopped = [], None
    for epoch in range(1, job.epochs + 1):
        try:
            for indices in state.plan(epoch - 1):
                state.update(indices, progress.step / steps)
        except InputError:  # the loss is no longer finite; the model is judged as it is
            stopped = progress.step
        epoch_done()
        due = stopped is not None or epoch % CURVE_EVERY == 0 or epoch == job.epochs
        if due and (progress.nll_tokens or not curve):  # else it stopped where the last point is
            answers = evaluation.ask(state.model, tokenizer, recall_tests)
            curve.append(
                {
                    "epoch": epoch,
                    "train_loss": progress.nll / max(1, progress.nll_tokens),
                    "recall_loss": answers.loss,
                    "recall": share(recall_tests, answers.guesses),
                }
            )
            progress.nll, progress.nll_tokens = 0.0, 0
        if stopped is not None:
            break
    guesses = evaluation.ask(state.model, tokenizer, combination_tests).guesses
    measures = {"combinations": share(combination_tests, guesses), "visible": visible_words(state)}
    return {**vars(job), "stopped": stopped, **curve[-1], **measures, "curve": curve}


def write(results: list[dict], args: argparse.Namespace) -> None:
    """The table, and the picture where the default is there to be compared with."""
    command = " ".join([f"python3 {Path(sys.argv[0]).name}", *args.names])
    for flag, value, usual in (("seeds", args.seeds, SEEDS), ("epochs", args.epochs, EPOCHS)):
        command += f" --{flag} {value}" if value != usual else ""
    text = f"`{command}`\n\n{table(results, MEASURES)}\n\n{LEGEND}\n\n"
    for name in dict.fromkeys(result["name"] for result in results if result["name"] != DEFAULT):
        entry = ABLATIONS[name]
        text += f"- **{name}** takes out: {entry.removes} Predicted: {entry.prediction}\n"
    write_text(args.output / "ablations.md", text)
    if {DEFAULT} < {result["name"] for result in results}:
        above, below = ("train_loss", "training loss (nats)"), ("recall", "recall (key words)")
        draw(results, DEFAULT, above, below, args.output / "ablations.png")


def parse_args(flags: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="which to run (default: all)")
    add("--list", action="store_true", help="name them, with what each takes out and was predicted to do")
    add("--seeds", type=whole(1, 1000), default=SEEDS, help="runs of each, with the seeds 0, 1, ...")
    add("--epochs", type=whole(1, 100_000), default=EPOCHS, help="passes over the text")
    add("--resume", action="store_true", help="keep what is finished in --output, and run what is missing")
    add("--output", type=Path, default=HERE / "results", metavar="DIR", help="where to write")
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
