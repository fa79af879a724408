"""Train the encoder-decoder Transformer on pairs: a prompt, and the text that should come of it.

    python3 train.py                                   the bundled pairs, about a minute
    python3 train.py --pairs my.tsv --tokenizer bpe --max-minutes 30 --output my-run
    python3 train.py --resume                          go on after an interruption

Writes to --output (default: this folder): model/ (a Hugging Face MarianMT directory), samples/metrics.jsonl
(a line for every evaluation), samples/metrics.json (the final figures), samples/loss_curve.png,
samples/outputs.tsv (held-out prompts, references, outputs), tokens/ (the pairs as token ids, used again while
they are the same), and, while it runs, checkpoint.pt and checkpoint.before.pt. The model directory is
replaced only when a run ends or is interrupted.

Memory does not grow with the corpus. Of more than 100 MB of pairs, the vocabulary is learnt from an evenly
spread part of about that size.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
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
from fast import CHUNK, best_precision, fast_training, token_losses
from marian_tokenizer import FILES, MarianTokenizer
from pairs import IGNORE, PAD, PairCorpus, load_tokenizer, tokenize, train_tokenizer
from parallel import Team, seed_all
from reading import Pairs
from store import Store, fingerprint
from transformer import Transformer, TransformerConfig

HERE = Path(__file__).parent
DEFAULT_EPOCHS = 60
VOCAB_SIZE = {"word": 30_000, "bpe": 8_000}
SMALL_BATCH, LARGE_BATCH = 1024, 4096
SAVE_SECONDS = 60  # a checkpoint is written at least so often
OF_INIT = "tokenizer", "vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "dropout"  # not with --init
FIXED = "seed", "batch_tokens", "learning_rate", "warmup_steps", "label_smoothing"  # when a run is resumed


def parse_args(flags: list[str] | None = None) -> argparse.Namespace:
    size = {f.name: f.default for f in fields(TransformerConfig)}
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--pairs", type=Path, nargs="+", metavar="TSV", help="UTF-8, a pair a line (default: data/train.tsv)")
    add("--held-out", type=Path, metavar="TSV", help="pairs to evaluate on (default: one source in 20)")
    add("--source-column", metavar="NAME", help="header or number (default: source, or the first)")
    add("--target-column", metavar="NAME", help="header or number (default: target, or the second)")
    add("--init", type=Path, metavar="DIR", help="go on with this MarianMT's weights, sizes and tokenizer")
    add("--tokenizer", choices=list(VOCAB_SIZE), default="word", help="what a token is")
    add("--vocab-size", type=whole(300, 1_000_000), help=f"at most so many tokens (default: {VOCAB_SIZE})")
    add("--d-model", type=whole(1, 65_536), default=size["d_model"], help="width")
    add("--n-layers", type=whole(1, 1_000), default=size["n_encoder_layers"], help="layers of each stack")
    add("--n-heads", type=whole(1, 65_536), default=size["n_heads"], help="attention heads a layer")
    add("--d-ff", type=whole(1, 1_000_000), default=size["d_ff"], help="inner width of the feed-forward part")
    add("--dropout", type=real(0, 0.99), default=size["dropout"], help="dropout rate")
    add("--max-length", type=whole(2, 100_000), default=size["max_length"], help="most tokens on a side")
    add(
        "--epochs",
        type=whole(1),
        help=f"passes over the pairs (default: {DEFAULT_EPOCHS} if no limit is set)",
    )
    add("--max-steps", type=whole(1), help="stop after so many updates")
    add("--max-minutes", type=real(0.001), help="stop after so many minutes")
    add(
        "--batch-tokens",
        type=whole(2),
        help=f"a batch's tokens on a side, with padding (default: {SMALL_BATCH:,}, or {LARGE_BATCH:,} for "
        f"pairs with more than {100 * LARGE_BATCH:,} target tokens)",
    )
    add("--learning-rate", type=real(1e-9, 10), default=2e-3, help="the highest learning rate")
    add("--warmup-steps", type=whole(0), default=100, help="updates until it is reached")
    add("--label-smoothing", type=real(0, 0.99), default=0.1, help="probability spread over all tokens")
    add("--precision", choices=["fp32", "bf16"], help="of the matrix products (default: fastest)")
    add("--seed", type=whole(0), default=0, help="of weights, order and dropout")
    add("--resume", action="store_true", help="go on from the checkpoint in --output")
    add("--output", type=Path, default=HERE, metavar="DIR", help="where to write")
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
    if args.pairs is None:
        args.pairs = [HERE / "data" / "train.tsv"]
        args.held_out = args.held_out or HERE / "data" / "held_out.tsv"
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
    model: Transformer
    optimizer: torch.optim.Optimizer
    pairs: Pairs
    corpus: PairCorpus
    held_out: PairCorpus
    identity: dict  # what may not change when the run is resumed
    progress: Progress = field(default_factory=Progress)
    kept: dict[str, Tensor] | None = None  # the weights chosen so far

    @property
    def device(self) -> torch.device:
        return self.team.device

    def update(self, indices: np.ndarray, done: float) -> None:
        """One step of the optimizer on the batch of the pairs with these indices."""
        args, progress, team = self.args, self.progress, self.team
        seed_all(args.seed, progress.step, team.rank)  # dropout
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(progress.step, done, args.learning_rate, args.warmup_steps)
        n_tokens = int(self.corpus.target.lengths[indices].sum())

        self.model.train()
        self.optimizer.zero_grad()
        loss = nll = torch.zeros(())
        if len(share := team.share(indices)):
            batch = self.corpus.batch(share).to(self.device)
            scored = batch.labels != IGNORE
            with fast_training(self.device, args.precision):
                states = self.model.states(batch.source, batch.target)[scored]  # (N, D)
            weight, bias = self.model.embeddings.token.weight, self.model.output_bias
            labels, smoothing = batch.labels[scored], args.label_smoothing
            loss, nll = token_losses(states, weight, bias, labels, smoothing, args.precision)
            (loss / n_tokens).backward()
        loss_sum, nll_sum = team.total(loss.item(), nll.item())
        if not math.isfinite(loss_sum):
            raise InputError(
                f"the loss is no longer finite at step {progress.step}; try a lower --learning-rate"
            )
        team.sum_gradients(self.model.parameters())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

        progress.step += 1
        progress.tokens += n_tokens
        progress.nll += nll_sum
        progress.nll_tokens += n_tokens

    @torch.no_grad()
    def evaluate(self) -> None:
        """Score the held-out pairs under teacher forcing, and keep the model unless one before it was
        better by more than a standard error: of equally good models the last, the longest trained."""
        self.model.eval()
        nll, right, count = 0.0, 0, 0
        for rows in self.held_out.plan(self.args.batch_tokens, 0):
            batch = self.held_out.batch(rows).to(self.device)
            scored = batch.labels != IGNORE
            states = self.model.states(batch.source, batch.target)[scored]  # (N, D)
            parts = states.split(CHUNK), batch.labels[scored].split(CHUNK)
            for part, labels in zip(*parts, strict=True):
                logits = self.model.project(part)  # (<= CHUNK, V)
                nll += F.cross_entropy(logits, labels, reduction="sum").item()
                right += int((logits.argmax(dim=-1) == labels).sum())
                count += len(labels)
        progress, accuracy = self.progress, right / count
        progress.curve.append(
            {
                "epoch": progress.epoch,
                "step": progress.step,
                "seconds": round(progress.seconds, 2),
                "tokens": progress.tokens,
                "train_loss": progress.nll / progress.nll_tokens,
                "held_out_loss": nll / count,
                "held_out_token_accuracy": accuracy,
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
        samples = self.args.output / "samples"
        samples.mkdir(exist_ok=True)
        (samples / "metrics.jsonl").write_text(lines, encoding="utf-8")

    def restore(self, state: dict) -> None:
        """Go back to a state that save wrote. Raises InputError where it is of another run."""
        checkpoint.check(self.args.output / "checkpoint.pt", state, self.identity)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.kept, self.progress = state["kept"], Progress(**state["progress"])


def new_model(args: argparse.Namespace, tokenizer: Tokenizer) -> Transformer:
    """Random weights for the vocabulary of a tokenizer."""
    config = TransformerConfig(
        vocab_size=tokenizer.get_vocab_size(),
        pad_id=tokenizer.token_to_id(PAD),
        n_encoder_layers=args.n_layers,
        n_decoder_layers=args.n_layers,
        **{name: getattr(args, name) for name in ("d_model", "n_heads", "d_ff", "dropout", "max_length")},
    )
    torch.manual_seed(args.seed)
    return Transformer(config)


def prepare(args: argparse.Namespace, team: Team) -> tuple[Run, Tokenizer | MarianTokenizer]:
    """A Run at its beginning or, with --resume, where its last state left it, and the tokenizer.

    The pairs are tokenized into tokens/ in the output directory, unless that was made from the same pairs in
    the same way.
    """
    check_output(args.output)
    path = args.output / "checkpoint.pt"
    last = checkpoint.load(path) if args.resume else None
    with team.leader_first():
        pairs = Pairs(args.pairs, args.held_out, (args.source_column, args.target_column), args.seed)
        vocabulary = [args.tokenizer, args.vocab_size or VOCAB_SIZE[args.tokenizer]]
        max_length = args.max_length
        if args.init:
            model, tokenizer = pretrained.load(args.init, team.device)
            if model.config.pad_id != model.config.vocab_size - 1:
                raise InputError(
                    f"{args.init}: <pad> is not the last id; such a model can be used, but not trained here"
                )
            files = FILES if isinstance(tokenizer, MarianTokenizer) else ["tokenizer.json"]
            vocabulary = [fingerprint(args.init / file)["sha256"] for file in files]
            max_length = min(max_length, model.config.max_length)
        recipe = pairs.recipe | {"vocabulary": vocabulary, "max_length": max_length}
        store = Store(args.output / "tokens", recipe)
        if last:
            checkpoint.check(path, last, {"seed": args.seed, "corpus": store.digest})
        if notes := store.read():
            pairs.recall(notes)
        else:
            pairs.hold_out()
        if not args.init:
            if notes:
                tokenizer = load_tokenizer(store.folder / "tokenizer.json")
            else:
                tokenizer = train_tokenizer(pairs.sample("learning the vocabulary"), *vocabulary)
            model = new_model(args, tokenizer).to(team.device)
        held_out = PairCorpus.of(pairs.held_out, tokenizer, max_length)
        if not notes:
            tokenize(pairs, tokenizer, max_length, store)
    corpus = PairCorpus.open(store, tokenizer)
    if team.leads:
        pairs.warn()
        if len(corpus) < pairs.kept or len(held_out) < len(pairs.held_out):
            warn(
                f"left out {pairs.kept - len(corpus)} training and {len(pairs.held_out) - len(held_out)} "
                f"held-out pairs of more than {max_length} tokens on a side; raise --max-length to keep them"
            )
    args.precision = args.precision or best_precision(team.device)
    large = len(corpus.target.ids) > 100 * LARGE_BATCH  # an epoch of large batches has 100 updates then
    args.batch_tokens = args.batch_tokens or (LARGE_BATCH if large else SMALL_BATCH)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98), eps=1e-9, fused=True)
    fixed = {name: getattr(args, name) for name in FIXED}
    identity = {**fixed, "corpus": store.digest, **asdict(model.config)}
    run = Run(args, team, model, optimizer, pairs, corpus, held_out, identity)
    if last:
        run.restore(last)
    return run, tokenizer


def main() -> None:
    args = parse_args()
    team = Team.join(pick_device(args.device))
    state, tokenizer = prepare(args, team)
    n_parameters = sum(parameter.numel() for parameter in state.model.parameters())
    if team.leads:
        print(
            f"{len(state.corpus):,} pairs to train on, {len(state.held_out):,} held out; "
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
        **{name: progress.curve[progress.kept][name] for name in ("train_loss", "held_out_loss")},
    }
    pairs = state.pairs
    evaluation.report(state.model, tokenizer, pairs, pairs.held_out, figures, args.output / "samples")
    evaluation.draw_curve(progress.curve, args.output / "samples" / "loss_curve.png")


if __name__ == "__main__":
    run(main)
