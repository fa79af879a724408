"""Train a BERT-style encoder by masked language modelling: hide words, and learn to fill them in.

    python3 train_mlm.py                                    the bundled sentences, about a minute
    python3 train_mlm.py --corpus my.txt --tokenizer bpe --max-minutes 30 --output my-run
    python3 train_mlm.py --resume                           go on after an interruption

Writes to --output (default: results/ beside this file): model/ (a Hugging Face BERT directory),
metrics.jsonl (a line for every evaluation), metrics.json (the final figures), loss_curve.png, tokens/ (the
text as token ids, used again while it is the same), and, while it runs, checkpoint.pt and
checkpoint.before.pt. The model directory is replaced only when a run ends or is interrupted.

Memory does not grow with the corpus. Of more than 100 MB of text, the vocabulary is learnt from an evenly
spread part of about that size.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

import checkpoint
import evaluation
import pretrained
from checkpoint import Progress
from cli import InputError, Interrupt, Parser, check_output, pick_device, real, run, warn, whole
from corpus import IGNORE, PAD, Corpus, corrupt, tokenize, train_tokenizer
from encoder import EncoderConfig, MaskedLanguageModel
from evaluation import Cloze
from fast import best_precision, fast_training
from parallel import Team, seed_all
from reading import Text
from store import Store, fingerprint

HERE = Path(__file__).parent
DEFAULT_EPOCHS = 180
VOCAB_SIZE = {"word": 30_000, "bpe": 8_000}
SMALL_BATCH, LARGE_BATCH = 1024, 4096
SAVE_SECONDS = 60  # a checkpoint is written at least so often
OF_INIT = "tokenizer", "vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "dropout"  # not with --init
FIXED = "seed", "batch_tokens", "learning_rate", "warmup_steps", "mask_prob"  # when a run is resumed


def parse_args(flags: list[str] | None = None) -> argparse.Namespace:
    size = {f.name: f.default for f in fields(EncoderConfig)}
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "--corpus",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="UTF-8, a sentence a line (default: data/train.txt)",
    )
    add("--held-out", type=Path, metavar="FILE", help="text to evaluate on (default: one sentence in 20)")
    add("--init", type=Path, metavar="DIR", help="go on with this BERT's weights, sizes and tokenizer")
    add("--tokenizer", choices=list(VOCAB_SIZE), default="word", help="what a token is")
    add("--vocab-size", type=whole(300, 1_000_000), help=f"at most so many tokens (default: {VOCAB_SIZE})")
    add("--d-model", type=whole(1, 65_536), default=size["d_model"], help="width")
    add("--n-layers", type=whole(1, 1_000), default=size["n_layers"], help="layers")
    add("--n-heads", type=whole(1, 65_536), default=size["n_heads"], help="attention heads a layer")
    add("--d-ff", type=whole(1, 1_000_000), default=size["d_ff"], help="inner width of the feed-forward part")
    add("--dropout", type=real(0, 0.99), default=size["dropout"], help="dropout rate")
    add(
        "--max-length",
        type=whole(4, 100_000),
        default=size["max_length"],
        help="most tokens, [CLS] and [SEP] included",
    )
    add(
        "--epochs", type=whole(1), help=f"passes over the text (default: {DEFAULT_EPOCHS} if no limit is set)"
    )
    add("--max-steps", type=whole(1), help="stop after so many updates")
    add("--max-minutes", type=real(0.001), help="stop after so many minutes")
    add(
        "--batch-tokens",
        type=whole(4),
        help=f"a batch's tokens, with padding (default: {SMALL_BATCH:,}, or {LARGE_BATCH:,} for a corpus of "
        f"more than {100 * LARGE_BATCH:,})",
    )
    add("--learning-rate", type=real(1e-9, 10), default=3e-3, help="the highest learning rate")
    add("--warmup-steps", type=whole(0), default=100, help="updates until it is reached")
    add("--mask-prob", type=real(0.001, 0.999), default=0.15, help="share of the tokens to predict")
    add("--precision", choices=["fp32", "bf16"], help="of the matrix products (default: fastest)")
    add("--seed", type=whole(0), default=0, help="of weights, order, masks and dropout")
    add("--resume", action="store_true", help="go on from the checkpoint in --output")
    add("--output", type=Path, default=HERE / "results", metavar="DIR", help="where to write")
    args = parser.parse_args(flags)
    if args.d_model % args.n_heads:
        parser.error(f"--d-model {args.d_model} is not a multiple of --n-heads {args.n_heads}")
    if args.init and (
        own := [
            f"--{name}".replace("_", "-")
            for name in OF_INIT
            if getattr(args, name) != parser.get_default(name)
        ]
    ):
        parser.error(f"--init and {own[0]} exclude each other: the directory has its own")
    if args.epochs is args.max_steps is args.max_minutes is None:
        args.epochs = DEFAULT_EPOCHS
    if args.corpus is None:
        args.corpus = [HERE / "data" / "train.txt"]
        args.held_out = args.held_out or HERE / "data" / "held_out.txt"
    return args


def learning_rate(step: int, done: float, peak: float, warmup_steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero; done goes from 0 to 1 as the budget is used up."""
    return peak * min(1.0, (step + 1) / max(1, warmup_steps)) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@dataclass
class Run:
    """A model in training: update() makes one step, evaluate() adds a record to the curve and keeps the
    model if it is good, save() writes what a continuation needs."""

    args: argparse.Namespace
    team: Team
    model: MaskedLanguageModel
    optimizer: torch.optim.Optimizer
    text: Text
    corpus: Corpus
    held_out: Corpus
    identity: dict  # what may not change when the run is resumed
    progress: Progress = field(default_factory=Progress)
    kept: dict[str, Tensor] | None = None  # the weights chosen so far

    @property
    def device(self) -> torch.device:
        return self.team.device

    def corrupt(self, ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """ids (B, S) -> inputs and labels (B, S), on the device."""
        vocab_size = self.model.config.vocab_size
        inputs, labels = corrupt(ids, self.corpus.special, vocab_size, self.args.mask_prob, generator)
        return inputs.to(self.device), labels.to(self.device)

    def update(self, indices: np.ndarray, done: float) -> None:
        """One step of the optimizer on the batch of the windows with these indices, corrupted afresh."""
        args, progress, team = self.args, self.progress, self.team
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(progress.step, done, args.learning_rate, args.warmup_steps)
        seed_all(args.seed, progress.step)  # the masks do not depend on the number of processes, dropout does
        inputs, labels = self.corrupt(self.corpus.rows(indices), torch.default_generator)
        n_hidden = int((labels != IGNORE).sum())
        seed_all(args.seed, progress.step, 1 + team.rank)

        self.model.train()
        self.optimizer.zero_grad()
        loss = torch.zeros(())
        if len(inputs := team.share(inputs)):
            labels = team.share(labels)
            hidden = labels != IGNORE
            with fast_training(self.device, args.precision):
                logits = self.model(inputs, hidden)  # (N, V)
            loss = F.cross_entropy(logits.float(), labels[hidden], reduction="sum")
            (loss / n_hidden).backward()
        (loss_sum,) = team.total(loss.item())
        if not math.isfinite(loss_sum):
            raise InputError(
                f"the loss is no longer finite at step {progress.step}; try a lower --learning-rate"
            )
        team.sum_gradients(self.model.parameters())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

        progress.step += 1
        progress.tokens += int(self.corpus.lengths[indices].sum())
        progress.nll += loss_sum
        progress.nll_tokens += n_hidden

    def held_out_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels (B, S) of the held-out text, under masks that depend on the seed alone."""
        generator = torch.Generator().manual_seed(self.args.seed)
        for rows in self.held_out.plan(self.args.batch_tokens, self.args.seed):
            yield self.corrupt(self.held_out.rows(rows), generator)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Score the held-out sentences, under masks that depend on the seed alone, and keep the model unless
        one before it was better by more than a standard error: of equally good models the last, the longest
        trained."""
        self.model.eval()
        nll, right, count = 0.0, 0, 0
        for inputs, labels in self.held_out_batches():
            hidden = labels != IGNORE
            logits, targets = self.model(inputs, hidden), labels[hidden]
            nll += F.cross_entropy(logits, targets, reduction="sum").item()
            right += int((logits.argmax(dim=-1) == targets).sum())
            count += len(targets)
        progress, accuracy = self.progress, right / count
        progress.curve.append(
            {
                "epoch": progress.epoch,
                "step": progress.step,
                "seconds": round(progress.seconds, 2),
                "tokens": progress.tokens,
                "train_loss": progress.nll / progress.nll_tokens,
                "held_out_loss": nll / count,
                "held_out_accuracy": accuracy,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
            }
        )
        progress.nll, progress.nll_tokens = 0.0, 0
        if accuracy >= progress.best_accuracy - math.sqrt(accuracy * (1 - accuracy) / count):
            progress.kept = len(progress.curve) - 1
            self.kept = {
                name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()
            }
        progress.best_accuracy = max(accuracy, progress.best_accuracy)

    def plan(self, epoch: int) -> Sequence[np.ndarray]:
        """The batches of an epoch, as the seed has them."""
        return self.corpus.plan(self.args.batch_tokens, [self.args.seed, epoch])

    def train(self, interrupt: Interrupt) -> bool:
        """Update until a limit is reached or an interrupt asks to stop; evaluate and save on the way. Returns
        whether it was an interrupt."""
        args, progress, team = self.args, self.progress, self.team
        plan = self.plan(progress.epoch)
        max_steps = min(args.max_steps or math.inf, (args.epochs or math.inf) * len(plan))
        max_seconds = 60 * (args.max_minutes or math.inf)
        evaluate_every = min(max(len(plan), 50), 1000)
        started, saved = time.monotonic() - progress.seconds, progress.seconds

        def spent() -> float:
            return max(progress.step / max_steps, progress.seconds / max_seconds)

        def look_up() -> bool:
            """Read the leader's clock; whether anybody has been interrupted."""
            progress.seconds, asked = team.total(
                team.leads * (time.monotonic() - started), bool(interrupt.asked)
            )
            return asked > 0

        bar = tqdm(initial=progress.step, unit="step", dynamic_ncols=True, disable=not team.leads)
        bar.total = max_steps if max_steps < math.inf else None
        asked = look_up()
        while (done := spent()) < 1 and not asked:
            self.update(plan[progress.position], done)
            bar.update()
            progress.position += 1
            if progress.position == len(plan):
                progress.epoch, progress.position = progress.epoch + 1, 0
                plan = self.plan(progress.epoch)
            asked = look_up()
            if due := spent() >= 1 or progress.step % evaluate_every == 0:
                if team.leads:
                    self.evaluate()
                    last = progress.curve[-1]
                    losses = {name: f"{last[name]:.3f}" for name in ("train_loss", "held_out_loss")}
                    bar.set_postfix(epoch=progress.epoch, **losses)
                asked = look_up()
            if team.leads and (due or asked or progress.seconds > saved + SAVE_SECONDS):
                self.save()
                saved = progress.seconds
        bar.close()
        return asked

    def save(self) -> None:
        """Write the curve so far, and the checkpoint from which --resume goes on exactly here."""
        state = {
            "identity": self.identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "kept": self.kept,
            "progress": asdict(self.progress),
        }
        checkpoint.save(self.args.output / "checkpoint.pt", state)
        lines = "".join(json.dumps(record) + "\n" for record in self.progress.curve)
        (self.args.output / "metrics.jsonl").write_text(lines, encoding="utf-8")

    def restore(self, state: dict) -> None:
        """Go back to a state that save wrote. Raises InputError where it is of another run."""
        checkpoint.check(self.args.output / "checkpoint.pt", state, self.identity)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.kept, self.progress = state["kept"], Progress(**state["progress"])


def new_model(args: argparse.Namespace, tokenizer: Tokenizer) -> MaskedLanguageModel:
    """Random weights for the vocabulary of a tokenizer."""
    sizes = "d_model", "n_layers", "n_heads", "d_ff", "dropout", "max_length"
    config = EncoderConfig(
        vocab_size=tokenizer.get_vocab_size(),
        pad_id=tokenizer.token_to_id(PAD),
        **{name: getattr(args, name) for name in sizes},
    )
    torch.manual_seed(args.seed)
    return MaskedLanguageModel(config)


def prepare(args: argparse.Namespace, team: Team, clozes: Sequence[Cloze] = ()) -> tuple[Run, Tokenizer]:
    """A Run at its beginning or, with --resume, where its last state left it, and the tokenizer.

    The text is tokenized into tokens/ in the output directory, unless that was made from the same text in the
    same way. All that can be found wrong before that is: also cloze tests too long for the model.
    """
    check_output(args.output)
    path = args.output / "checkpoint.pt"
    last = checkpoint.load(path) if args.resume else None
    with team.leader_first():
        text = Text(args.corpus, args.held_out, args.seed)
        vocabulary = [args.tokenizer, args.vocab_size or VOCAB_SIZE[args.tokenizer]]
        max_length = args.max_length
        if args.init:
            model, tokenizer = pretrained.load(args.init, team.device)
            vocabulary = fingerprint(args.init / "tokenizer.json")["sha256"]
            max_length = min(max_length, model.config.max_length)
        recipe = text.recipe | {"vocabulary": vocabulary, "max_length": max_length}
        store = Store(args.output / "tokens", recipe)
        if last:
            checkpoint.check(path, last, {"seed": args.seed, "corpus": store.digest})
        if notes := store.read():
            text.recall(notes)
        else:
            text.hold_out()
        if not args.init:
            if notes:
                tokenizer = Tokenizer.from_file(str(store.folder / "tokenizer.json"))
            else:
                tokenizer = train_tokenizer(text.sample("learning the vocabulary"), *vocabulary)
            model = new_model(args, tokenizer).to(team.device)
        evaluation.check_lengths(clozes, tokenizer, model.config.max_length)
        held_out = Corpus.of(text.held_out, tokenizer, max_length)
        if not notes:
            tokenize(text, tokenizer, max_length, store)
    corpus = Corpus.open(store, tokenizer)
    if text.held_out_file and text.left_out and team.leads:
        warn(f"left {text.left_out} sentences out of training: they are in {text.held_out_file}")
    args.precision = args.precision or best_precision(team.device)
    large = corpus.tokens > 100 * LARGE_BATCH  # an epoch of large batches has 100 updates then
    args.batch_tokens = args.batch_tokens or (LARGE_BATCH if large else SMALL_BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    fixed = {name: getattr(args, name) for name in FIXED}
    identity = {**fixed, "corpus": store.digest, **asdict(model.config)}
    run = Run(args, team, model, optimizer, text, corpus, held_out, identity)
    if last:
        run.restore(last)
    return run, tokenizer


def main() -> None:
    args = parse_args()
    team = Team.join(pick_device(args.device))
    recall_tests = [cloze for path in args.corpus for cloze in evaluation.read_clozes(path)]
    held_out_tests = evaluation.read_clozes(args.held_out) if args.held_out else []
    state, tokenizer = prepare(args, team, recall_tests + held_out_tests)
    n_parameters = sum(parameter.numel() for parameter in state.model.parameters())
    if team.leads:
        print(
            f"{state.text.sentences:,} sentences to train on, {len(state.text.held_out):,} held out; "
            f"vocabulary of {tokenizer.get_vocab_size():,}; {n_parameters:,} parameters on {team}"
        )
    interrupted = state.train(Interrupt())
    team.leave()
    if not team.leads:
        return
    if not state.progress.step:
        raise KeyboardInterrupt("interrupted before the first step; nothing was written")
    if state.kept is None:
        state.evaluate()
    state.model.load_state_dict(state.kept)
    pretrained.save(args.output / "model", state.model, tokenizer)
    if interrupted:
        raise KeyboardInterrupt(
            f"interrupted; the model so far is in {args.output / 'model'}, --resume goes on"
        )

    progress = state.progress
    figures = {
        "epochs": progress.epoch,
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "parameters": n_parameters,
        **{
            name: progress.curve[progress.kept][name]
            for name in ("train_loss", "held_out_loss", "held_out_accuracy")
        },
    }
    evaluation.report(state.model, tokenizer, state.text, recall_tests, held_out_tests, figures, args.output)
    evaluation.draw_curve(progress.curve, args.output / "loss_curve.png")
    unigram = evaluation.unigram_loss(state.corpus, state.held_out, state.model.config.vocab_size)
    if (held_out_loss := figures["held_out_loss"]) > 0.9 * unigram:
        warn(
            f"the model knows little more than how frequent each token is (loss {held_out_loss:.2f}, from "
            f"frequencies alone {unigram:.2f}): train longer, or try another --learning-rate"
        )


if __name__ == "__main__":
    run(main)
