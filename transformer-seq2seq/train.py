"""Train the encoder-decoder Transformer on pairs: a prompt, and the text to make of it.

    python3 train.py                                   the bundled pairs, one to two minutes
    python3 train.py --pairs my.tsv --tokenizer bpe --max-minutes 30 --output my-run
    python3 train.py --resume                          continue an interrupted run to its limit

Writes to --output (default: samples/ beside this file): model/ (a Hugging Face MarianMT directory), metrics.jsonl
(a line for every evaluation), watched.jsonl (what the model then makes of the prompts of --watch), metrics.json (the
final figures), loss_curve.png, outputs.tsv (held-out prompts, references, outputs), tokens/ (the pairs as token ids,
used again while the pairs are the same), checkpoint.pt and checkpoint.before.pt (for --resume). The model directory
is replaced only when a run ends or is interrupted.

Memory does not grow with the corpus. If the pairs exceed 30 MB, the vocabulary is learnt from an evenly spread
part of about that size.
"""

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from seq2seq.common.command_line import run_script  # isort: skip (before PyTorch: a quiet Ctrl-C)

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from seq2seq import marian
from seq2seq.common import checkpoint
from seq2seq.common.budget import LIMITS, Budget
from seq2seq.common.command_line import Interrupt, Parser, add_flags, from_flags, pick_device
from seq2seq.common.distributed import DistributedContext, seed_all
from seq2seq.common.errors import InputError, plural, warn
from seq2seq.common.fast_cpu import fast_training
from seq2seq.common.files import check_writable, output_lock
from seq2seq.common.progress import Progress, show_record
from seq2seq.config import RESUME_INVARIANTS, TrainConfig
from seq2seq.dataset import Batch, Data, prepare_data
from seq2seq.explorer.reading import encode_watched, read_watched
from seq2seq.loss import CHUNK, IGNORE, token_losses
from seq2seq.metrics import write_report
from seq2seq.muon import make_optimizers
from seq2seq.tokenizer import PAD
from transformer import Transformer

MAX_WARMUP = 1 / 4  # of the budget; longer, and a short run never learns at its full rate
SAVE_SECONDS = 60  # the longest time between two checkpoints


def learning_rate(step: int, fraction: float, peak: float, warmup_steps: int) -> float:
    """Return the learning rate: linear warm-up times half a cosine. The paper's falls as step^-0.5 (Vaswani et al.
    2017, section 5.3). Ours ends at zero together with the budget, of which `fraction`, from 0 to 1, is used up; the
    warm-up takes at most MAX_WARMUP of it."""
    warm = min(1.0, max((step + 1) / max(1, warmup_steps), fraction / MAX_WARMUP))
    return peak * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))


@dataclass
class Trainer:
    """A model in training: update() is a training step, evaluate() scores the held-out pairs and keeps the weights
    unless earlier ones were significantly better, train() is the loop around both, save() writes what restore() needs
    to continue exactly."""

    config: TrainConfig
    context: DistributedContext
    data: Data
    model: Transformer
    progress: Progress = field(default_factory=Progress)
    kept: dict[str, Tensor] | None = None  # the weights to keep so far
    watched: dict[str, list[int]] = field(default_factory=dict)  # texts and their ids
    saved: bool = False  # True if there is a checkpoint of this run
    spares: bool = False  # True if there is one of an earlier run, which an early interrupt must not replace
    interrupt: Interrupt | None = None
    interrupted: bool = False  # True if any process is

    def __post_init__(self):
        self.optimizers = make_optimizers(self.model, self.config.optimizer, self.config.precision)
        self.started = time.monotonic()
        invariants = {name: getattr(self.config, name) for name in RESUME_INVARIANTS}
        self.run_config = {**invariants, **asdict(self.model.config), **self.data.cache_key}

    def update(self, indices: np.ndarray, fraction: float) -> None:
        """Train on the pairs with these indices. fraction: the part of the budget that is used up."""
        config, context, progress = self.config, self.context, self.progress
        seed_all(config.seed, progress.step, context.rank)  # dropout
        rate = learning_rate(progress.step, fraction, config.learning_rate, config.warmup_steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        n_tokens = int(self.data.train.target.lengths[indices].sum())  # in all processes together

        self.model.train()
        self.model.zero_grad()
        loss = nll = torch.zeros(())
        if len(shard := context.shard(indices)):
            batch = self.data.train.batch(shard).to(context.device)
            loss, nll = self.losses(batch)
            (loss / n_tokens).backward()
        loss_sum, nll_sum, *status = context.all_reduce_gradients(
            self.model.parameters(), loss.item(), nll.item(), *self.local_status()
        )
        self.check_finite(loss_sum)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)  # not in the paper
        for optimizer in self.optimizers:
            optimizer.step()

        progress.step += 1
        progress.tokens += n_tokens
        progress.nll += nll_sum
        progress.nll_tokens += n_tokens
        self.adopt_status(*status)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the label-smoothed loss and -log p of a batch's labels under teacher forcing, summed (nats)."""
        scored = batch.labels != IGNORE
        with fast_training(self.context.device, self.config.precision):  # on a CPU, faster linear layers and attention
            hidden_states = self.model.hidden_states(batch.source, batch.target)[scored]  # (N, D)
        weight, bias = self.model.embeddings.token.weight, self.model.output_bias
        labels, smoothing = batch.labels[scored], self.config.label_smoothing
        return token_losses(hidden_states, weight, bias, labels, smoothing, self.config.precision)

    def check_finite(self, loss: float) -> None:
        """Refuse a loss that is infinite or NaN."""
        if not math.isfinite(loss):
            remedy = ", or save the weights kept so far with --resume --max-steps 1" if self.saved else ""
            problem = f"the loss is no longer finite at step {self.progress.step}"
            raise InputError(f"{problem}; lower the learning rate{remedy}", "learning_rate")

    def local_status(self) -> tuple[float, bool]:
        """Return this process's part of two sums over all processes: the run's seconds, by rank 0's clock alone, and
        True if it is interrupted."""
        seconds = time.monotonic() - self.started if self.context.is_main else 0.0
        return seconds, self.interrupt is not None and self.interrupt.requested

    def adopt_status(self, seconds: float, interrupts: float) -> None:
        """Store these sums, the same in all processes, so that all stop at the same step."""
        self.progress.seconds, self.interrupted = seconds, interrupts > 0

    @torch.no_grad()
    def score_held_out(self) -> tuple[float, Tensor]:
        """Return the loss over all held-out target tokens under teacher forcing, and which are right, (N,) bool."""
        self.model.eval()
        nll, right = 0.0, []
        for indices in self.data.held_out.batches(self.config.batch_tokens, 0):
            batch = self.data.held_out.batch(indices).to(self.context.device)
            scored = batch.labels != IGNORE
            hidden_states = self.model.hidden_states(batch.source, batch.target)[scored]  # (N, D)
            parts = hidden_states.split(CHUNK), batch.labels[scored].split(CHUNK)
            for part, labels in zip(*parts, strict=True):
                logits = self.model.project(part)  # (<= CHUNK, V)
                nll += F.cross_entropy(logits, labels, reduction="sum").item()
                right.append(logits.argmax(dim=-1) == labels)
        self.check_finite(nll)
        right = torch.cat(right).cpu()
        return nll / len(right), right

    def evaluate(self) -> None:
        """Score the held-out pairs, keep the weights unless earlier ones were significantly better, and record what
        the model makes of the prompts of --watch."""
        loss, right = self.score_held_out()
        if self.progress.add_record(loss, right, self.optimizers[0].param_groups[0]["lr"]):
            self.kept = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
        tokenizer = self.data.tokenizer
        self.progress.add_readings(
            [read_watched(text, ids, self.model, tokenizer) for text, ids in self.watched.items()]
        )

    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        """Return the batches of an epoch, which the seed decides."""
        return self.data.train.batches(self.config.batch_tokens, [self.config.seed, epoch])

    def train(self, interrupt: Interrupt) -> None:
        """Update until the budget is used up or a process is interrupted; evaluate and save on the way."""
        config, progress, context = self.config, self.progress, self.context
        batches = self.batches(progress.epoch)
        budget = Budget.of(config.epochs, config.max_steps, config.max_minutes, len(batches))
        evaluate_every = min(max(len(batches), 50), 1000)  # steps: an epoch, within limits
        self.interrupt, last_save = interrupt, progress.seconds
        self.started = time.monotonic() - progress.seconds  # as if there had been no break
        if budget.fraction(progress.step, progress.seconds) < 1:
            conditions = {name: getattr(config, name) for name in (*LIMITS, "precision")}
            progress.begin_part(**conditions, device=context.device.type, processes=context.world_size)
        else:
            warn("this run has used up its budget already; to go on, give more --epochs, --max-steps or --max-minutes")
        self.adopt_status(*context.all_reduce(*self.local_status()))
        bar = tqdm(initial=progress.step, unit="step", dynamic_ncols=True, disable=None if context.is_main else True)
        bar.total = budget.max_steps if budget.max_steps < math.inf else None
        try:
            while (done := budget.fraction(progress.step, progress.seconds)) < 1 and not self.interrupted:
                self.update(batches[progress.position], done)
                progress.position += 1
                if progress.position == len(batches):
                    progress.epoch, progress.position = progress.epoch + 1, 0
                    batches = self.batches(progress.epoch)
                over = budget.fraction(progress.step, progress.seconds) >= 1
                due = over or progress.step % evaluate_every == 0
                if due:
                    if context.is_main:
                        self.evaluate()
                        show_record(progress.curve[-1], bar)
                    self.adopt_status(*context.all_reduce(*self.local_status()))
                ends = self.interrupted and (self.saved or not self.spares)
                if context.is_main and (due or ends or progress.seconds > last_save + SAVE_SECONDS):
                    self.save()
                    last_save = time.monotonic() - self.started
                bar.update()
        except OSError:  # most likely the bar cannot be written any more, as after `2>&1 | head`
            if context.is_main and (self.saved or not self.spares):
                self.save()
            raise
        bar.close()

    def save(self) -> None:
        """Write the checkpoint from which a run continues exactly here, and the curve so far."""
        state = {
            "run_config": self.run_config,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "kept": self.kept,
            "progress": asdict(self.progress),
        }
        checkpoint.save(self.config.checkpoint, state)
        self.saved = True
        self.progress.write(self.config.output)

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to the state that save() wrote."""
        checkpoint.check_run(self.config.checkpoint, state, self.run_config)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.kept, self.progress, self.saved = state["kept"], Progress(**state["progress"]), True


def build_trainer(config: TrainConfig, context: DistributedContext) -> Trainer:
    """Return a trainer at its beginning or, if the configuration says so, at its last checkpoint."""
    last = checkpoint.load(config.checkpoint) if config.resume else None
    with context.main_process_first():
        model = tokenizer = None
        if config.init:
            model, tokenizer = marian.load(config.init, context.device, "init")
            if model.config.pad_id != model.config.vocab_size - 1:
                raise InputError(
                    f"{config.init}: <pad> is not the last id; this model can be used, but not trained here"
                )
            config = config.within(model.config.max_length)
        data = prepare_data(config, tokenizer, last)
    if model is None:
        torch.manual_seed(config.seed)
        model = Transformer(config.model_config(data.tokenizer.get_vocab_size(), data.tokenizer.token_to_id(PAD)))
    spares = not last and checkpoint.warn_of_overwriting(config.checkpoint, config.output / "metrics.json")
    if config.init and config.init.resolve() == (config.output / "model").resolve():
        warn(f"{config.init}: this model is replaced when the run ends; another --output keeps it")
    config = config.resolve(context.device, len(data.train.target.ids), last and last["progress"]["parts"][-1])
    trainer = Trainer(config, context, data, model.to(context.device), spares=spares)
    trainer.watched = encode_watched(config, trainer.model, data.tokenizer)
    if last:
        trainer.restore(last)
    return trainer


def train(config: TrainConfig, context: DistributedContext) -> None:
    """Do a whole run: prepare, train, save the model, report."""
    if context.is_main:
        check_writable(config.output / "model")  # now, not when training has ended
    trainer = build_trainer(config, context)
    data, n_parameters = trainer.data, sum(weight.numel() for weight in trainer.model.parameters())
    if context.is_main:
        print(
            f"{plural(len(data.train), 'pair')} to train on, {len(data.held_out):,} held out; "
            f"vocabulary of {data.tokenizer.get_vocab_size():,}; {n_parameters:,} parameters on {context}"
        )
        print("held-out sources: {}; targets: {}".format(*data.coverage))
    interrupt = Interrupt()
    trainer.train(interrupt)
    context.destroy()
    if not context.is_main:
        return
    directory = config.output / "model"
    save_model(trainer, directory)
    interrupt.release()
    if trainer.interrupted or interrupt.requested:
        raise KeyboardInterrupt(f"interrupted; the model so far is in {directory}; continue with --resume")
    try:
        write_report(trainer.model, data, trainer.progress, config.output)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; the model is in {directory}; --resume writes the report") from None
    print(f"\nThe model is in {directory}")


def save_model(trainer: Trainer, directory: Path) -> None:
    """Write a model directory with the weights that were kept, and remove the figures of the model that was there."""
    if not trainer.progress.step:
        raise KeyboardInterrupt("interrupted before the first step; no model was written")
    if trainer.interrupted and not trainer.kept and (directory.exists() or not trainer.saved):
        rest = "; continue with --resume" if trainer.saved else ", and so is the checkpoint beside it"
        raise KeyboardInterrupt(f"interrupted before the first evaluation; {directory} is as it was{rest}")
    if not trainer.kept or (trainer.interrupted and trainer.progress.nll_tokens):  # updates since the last evaluation
        trainer.evaluate()
        trainer.progress.write(directory.parent)
    trainer.model.load_state_dict(trainer.kept)
    marian.save(directory, trainer.model, trainer.data.tokenizer)
    for name in ("metrics.json", "loss_curve.png", "outputs.tsv"):
        (directory.parent / name).unlink(missing_ok=True)


def parse_args(argv: list[str] | None = None) -> tuple[TrainConfig, str]:
    """Return the configuration that the flags ask for, and the name of the device."""
    parser = Parser(__doc__)
    add_flags(parser, TrainConfig)
    parser.add_device()
    args = parser.parse_args(argv)
    return from_flags(TrainConfig, args), args.device


def main(argv: list[str] | None = None) -> None:
    config, device = parse_args(argv)
    context = DistributedContext.join(pick_device(device))
    with output_lock(config.output) if context.is_main else nullcontext():
        train(config, context)


if __name__ == "__main__":
    run_script(main)
