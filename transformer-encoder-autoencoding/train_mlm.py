"""Train a BERT-style encoder by masked language modelling: hide words, and learn to fill them in.

    python3 train_mlm.py                                    the bundled sentences, one to two minutes
    python3 train_mlm.py --corpus my.txt --tokenizer bpe --max-minutes 30 --output my-run
    python3 train_mlm.py --resume                           continue an interrupted run to its limit

Writes to --output (default: results/ beside this file): model/ (a Hugging Face BERT directory), metrics.jsonl
(a line for every evaluation), watched.jsonl (what the model then makes of the sentences of --watch), metrics.json
(the final figures), loss_curve.png, tokens/ (the text as token ids, used again while the text is the same),
checkpoint.pt and checkpoint.before.pt (for --resume). The model directory is replaced only when a run ends or is
interrupted.

Memory does not grow with the corpus. If the text exceeds 30 MB, the vocabulary is learnt from an evenly spread
part of about that size.
"""

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mlm.common.command_line import run_script  # isort: skip (before PyTorch: a quiet Ctrl-C)

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from encoder import MaskedLanguageModel
from masking import IGNORE, corrupt
from mlm import bert
from mlm.common import checkpoint
from mlm.common.budget import LIMITS, Budget
from mlm.common.command_line import Interrupt, Parser, add_flags, from_flags, pick_device
from mlm.common.distributed import DistributedContext, seed_all
from mlm.common.errors import InputError, plural, warn
from mlm.common.fast_cpu import fast_training
from mlm.common.files import check_writable, output_lock
from mlm.common.progress import Progress, show_record
from mlm.config import RESUME_INVARIANTS, TrainConfig
from mlm.dataset import Data, FixedMasks, prepare_data
from mlm.explorer.reading import encode_watched, read
from mlm.report import write_report
from mlm.tokenizer import PAD

MAX_WARMUP = 1 / 4  # of the budget; longer, and a short run never learns at its full rate
SAVE_SECONDS = 60  # the longest time between two checkpoints


def learning_rate(step: int, fraction: float, peak: float, warmup_steps: int) -> float:
    """Return the learning rate: linear warm-up times half a cosine. BERT's falls in a straight line (Devlin et al.
    2018, appendix A.2). Ours ends at zero together with the budget, of which `fraction`, from 0 to 1, is used up; the
    warm-up takes at most MAX_WARMUP of it."""
    warm = min(1.0, max((step + 1) / max(1, warmup_steps), fraction / MAX_WARMUP))
    return peak * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov and Hutter 2019) whose weight decay leaves out biases and LayerNorm's gains, all the
    parameters of one dimension, as BERT's does (Devlin et al. 2018, appendix A.2, and its released code). The second
    beta is 0.98 (Vaswani et al. 2017, section 5.3); BERT's is 0.999."""
    groups = [
        {"params": [weight for weight in model.parameters() if weight.dim() > 1], "weight_decay": 0.01},
        {"params": [weight for weight in model.parameters() if weight.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


@dataclass
class Trainer:
    """A model in training: update() is a training step, evaluate() scores the held-out text and keeps the weights
    unless earlier ones were significantly better, train() is the loop around both, save() writes what restore() needs
    to continue exactly."""

    config: TrainConfig
    context: DistributedContext
    data: Data
    model: MaskedLanguageModel
    progress: Progress = field(default_factory=Progress)
    kept: dict[str, Tensor] | None = None  # the weights to keep so far
    watched: dict[str, list[int]] = field(default_factory=dict)  # texts and their ids
    saved: bool = False  # True if there is a checkpoint of this run
    spares: bool = False  # True if there is one of an earlier run, which an early interrupt must not replace
    interrupt: Interrupt | None = None
    interrupted: bool = False  # True if any process is

    def __post_init__(self):
        self.optimizer = make_optimizer(self.model)
        special, vocab_size, mask_prob = self.data.train.special, self.model.config.vocab_size, self.config.mask_prob
        # ids (B, S), generator -> inputs and labels (B, S)
        self.corrupt = lambda ids, generator: corrupt(ids, special.all, special.mask, vocab_size, mask_prob, generator)
        self.started = time.monotonic()
        invariants = {name: getattr(self.config, name) for name in RESUME_INVARIANTS}
        self.run_config = {**invariants, **asdict(self.model.config), **self.data.cache_key}

    def update(self, indices: np.ndarray, fraction: float) -> None:
        """Train on the windows with these indices, tokens hidden afresh. fraction: the part of the budget that is
        used up."""
        config, context, progress = self.config, self.context, self.progress
        rate = learning_rate(progress.step, fraction, config.learning_rate, config.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        seed_all(config.seed, progress.step)  # masks do not depend on the number of processes, dropout does
        inputs, labels = self.corrupt(self.data.train.batch(indices), torch.default_generator)
        n_hidden = int((labels != IGNORE).sum())  # in all processes together
        seed_all(config.seed, progress.step, 1 + context.rank)

        self.model.train()
        self.model.zero_grad()
        loss = torch.zeros(())
        if len(shard := context.shard(inputs)):
            loss = self.loss(shard.to(context.device), context.shard(labels).to(context.device))
            (loss / n_hidden).backward()
        loss_sum, *status = context.all_reduce_gradients(self.model.parameters(), loss.item(), *self.local_status())
        self.check_finite(loss_sum)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)  # as in BERT's released code
        self.optimizer.step()

        progress.step += 1
        progress.tokens += int(self.data.train.sequences.lengths[indices].sum())
        progress.nll += loss_sum
        progress.nll_tokens += n_hidden
        self.adopt_status(*status)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Compute -log p of the hidden tokens of a batch, summed (nats)."""
        hidden = labels != IGNORE
        with fast_training(self.context.device, self.config.precision):  # on a CPU, faster linear layers and attention
            logits = self.model(inputs, hidden)  # (N, V)
        return F.cross_entropy(logits.float(), labels[hidden], reduction="sum")

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

    @cached_property
    def held_out(self) -> FixedMasks:
        """The held-out text, the same tokens hidden in every evaluation."""
        return FixedMasks(self.data.held_out, self.corrupt)

    @torch.no_grad()
    def score_held_out(self) -> tuple[float, Tensor]:
        """Return the loss over all hidden tokens of the held-out text, and which of them are right, (N,) bool."""
        self.model.eval()
        nll, right = 0.0, []
        for batch in self.held_out.batches(self.config.batch_tokens):
            inputs, labels = (part.to(self.context.device) for part in batch)
            hidden = labels != IGNORE
            logits, targets = self.model(inputs, hidden), labels[hidden]  # (N, V), (N,)
            nll += F.cross_entropy(logits, targets, reduction="sum").item()
            right.append(logits.argmax(dim=-1) == targets)
        self.check_finite(nll)
        right = torch.cat(right).cpu()
        return nll / len(right), right

    def evaluate(self) -> None:
        """Score the held-out text, keep the weights unless earlier ones were significantly better, and record what the
        model makes of the sentences of --watch."""
        loss, right = self.score_held_out()
        if self.progress.add_record(loss, right, self.optimizer.param_groups[0]["lr"]):
            self.kept = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
        tokenizer = self.data.tokenizer
        self.progress.add_readings([read(text, ids, self.model, tokenizer) for text, ids in self.watched.items()])

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
            "optimizers": [self.optimizer.state_dict()],
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
        self.optimizer.load_state_dict(*state["optimizers"])
        self.kept, self.progress, self.saved = state["kept"], Progress(**state["progress"]), True


def build_trainer(config: TrainConfig, context: DistributedContext) -> Trainer:
    """Return a trainer at its beginning or, if the configuration says so, at its last checkpoint."""
    last = checkpoint.load(config.checkpoint) if config.resume else None
    with context.main_process_first():
        model = tokenizer = None
        if config.init:
            torch.manual_seed(config.seed)  # for the head, if it has none
            model, tokenizer = bert.load(config.init, context.device, "init", new_head=True)
            config = config.within(model.config.max_length)
        data = prepare_data(config, tokenizer, last)
    if model is None:
        torch.manual_seed(config.seed)
        tokenizer = data.tokenizer
        model = MaskedLanguageModel(config.model_config(tokenizer.get_vocab_size(), tokenizer.token_to_id(PAD)))
    spares = not last and checkpoint.warn_of_overwriting(config.checkpoint, config.output / "metrics.json")
    if config.init and config.init.resolve() == (config.output / "model").resolve():
        warn(f"{config.init}: this model is replaced when the run ends; another --output keeps it")
    config = config.resolve(context.device, data.train.n_tokens, last and last["progress"]["parts"][-1])
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
            f"{plural(data.n_sentences, 'sentence')} to train on, {len(data.text.held_out):,} held out; "
            f"vocabulary of {data.tokenizer.get_vocab_size():,}; {n_parameters:,} parameters on {context}"
        )
        print(f"held-out text: {data.coverage}")
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
    bert.save(directory, trainer.model, trainer.data.tokenizer)
    for name in ("metrics.json", "loss_curve.png"):
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
