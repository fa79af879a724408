"""mlm.training"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from encoder import MaskedLanguageModel
from masking import IGNORE, corrupt

from .common import checkpoint
from .common.checkpoint import Progress
from .common.command_line import Interrupt
from .common.distributed import Team, seed_all
from .common.errors import InputError
from .common.fast_cpu import fast_training
from .common.files import write_text
from .common.token_store import Sequences
from .dataset import Corpus
from .text import Text

SAVE_SECONDS = 60  # a checkpoint is written at least so often


def learning_rate(step: int, done: float, peak: float, warmup_steps: int) -> float:
    """Linear warm-up, times half a cosine down to zero, where BERT falls in a line (Devlin et al. 2018,
    appendix A.2); done goes from 0 to 1 as the budget is used up."""
    return peak * min(1.0, (step + 1) / max(1, warmup_steps)) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def within_chance(accuracy: float, best: float, count: int) -> bool:
    """Whether an accuracy over so many hidden tokens falls short of the best so far by no more than the
    standard error of their difference, corrected for continuity, which counts where they are few."""
    mean = (accuracy + best) / 2
    return best - accuracy <= math.sqrt(2 * mean * (1 - mean) / count) + 1 / count


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
    saved: bool = False  # whether there is a checkpoint of this run

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.team.device

    def corrupt(self, ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """ids (B, S) -> inputs and labels (B, S), on the device."""
        vocab_size = self.model.config.vocab_size
        inputs, labels = corrupt(ids, self.corpus.special, vocab_size, self.args.mask_prob, generator)
        return inputs.to(self.device), labels.to(self.device)

    def update(self, indices: np.ndarray, done: float, look: Callable[[], tuple[float, ...]] = tuple) -> list[float]:
        """One step of the optimizer on the batch of the windows with these indices, corrupted afresh;
        look gives numbers of this process -> their sums over the team."""
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
        loss_sum, *seen = team.sum_gradients(self.model.parameters(), loss.item(), *look())
        self.check_finite(loss_sum)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

        progress.step += 1
        progress.tokens += int(self.corpus.lengths[indices].sum())
        progress.nll += loss_sum
        progress.nll_tokens += n_hidden
        return seen

    @cached_property
    def held_out_masked(self) -> tuple[Sequences, Sequences]:
        """Inputs and labels of the held-out windows. Which tokens are hidden depends on the windows alone, so
        that runs on the same held-out text compare, whatever their --seed and --batch-tokens."""
        text = self.held_out
        inputs, labels = (Sequences(np.empty(len(text.ids), np.int32), text.lengths, text.offsets) for _ in range(2))
        for start in range(0, len(text), 1000):
            rows = np.arange(start, min(start + 1000, len(text)))
            within = slice(text.offsets[rows[0]], text.offsets[rows[-1] + 1])
            ids = text.rows(rows)
            there = np.arange(ids.size(1)) < text.lengths[rows, None]
            masked = self.corrupt(ids, torch.Generator().manual_seed(start))
            for sequences, values in zip((inputs, labels), masked, strict=True):
                sequences.ids[within] = values.cpu().numpy()[there]
        return inputs, labels

    def held_out_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels (B, S) of the held-out text, always under the same masks."""
        inputs, labels = self.held_out_masked
        for rows in self.held_out.plan(self.args.batch_tokens, 0):
            batch = inputs.rows(rows, self.corpus.special.pad), labels.rows(rows, IGNORE)
            yield tuple(torch.from_numpy(part).to(self.device) for part in batch)

    def check_finite(self, loss: float) -> None:
        """Raises InputError where a loss is infinite or no number."""
        if not math.isfinite(loss):
            remedy = ", or make a model of what is kept with --resume --max-steps 1" if self.saved else ""
            step = self.progress.step
            raise InputError(f"the loss is no longer finite at step {step}; try a lower --learning-rate{remedy}")

    @torch.no_grad()
    def evaluate(self) -> None:
        """Score the held-out sentences, always under the same masks, and keep the model unless one before it
        was better by more than chance: of equally good models the last, the longest trained."""
        self.model.eval()
        nll, right, count = 0.0, 0, 0
        for inputs, labels in self.held_out_batches():
            hidden = labels != IGNORE
            logits, targets = self.model(inputs, hidden), labels[hidden]
            nll += F.cross_entropy(logits, targets, reduction="sum").item()
            right += int((logits.argmax(dim=-1) == targets).sum())
            count += len(targets)
        self.check_finite(nll)
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
        if within_chance(accuracy, progress.best_accuracy, count):
            progress.kept = len(progress.curve) - 1
            self.kept = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
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

        def look() -> tuple[float, bool]:
            """The run's seconds by the leader's clock, and whether this process has been interrupted."""
            return team.leads * (time.monotonic() - started), interrupt.asked

        part = {name: getattr(args, name) for name in ("epochs", "max_steps", "max_minutes", "precision")}
        part |= {"device": self.device.type, "processes": team.size}
        changed = not progress.parts or part.items() - progress.parts[-1].items()
        if changed and spent() < 1:  # a continuation may have others
            progress.parts.append({"from_step": progress.step, **part})
        bar = tqdm(initial=progress.step, unit="step", dynamic_ncols=True, disable=not team.leads)
        bar.total = max_steps if max_steps < math.inf else None
        progress.seconds, asked = team.total(*look())
        try:
            while (done := spent()) < 1 and not asked:
                progress.seconds, asked = self.update(plan[progress.position], done, look)
                progress.position += 1
                if progress.position == len(plan):
                    progress.epoch, progress.position = progress.epoch + 1, 0
                    plan = self.plan(progress.epoch)
                if due := spent() >= 1 or progress.step % evaluate_every == 0:
                    if team.leads:
                        self.evaluate()
                        last = progress.curve[-1]
                        losses = {name: f"{last[name]:.3f}" for name in ("train_loss", "held_out_loss")}
                        bar.set_postfix(epoch=progress.epoch, refresh=False, **losses)
                    progress.seconds, asked = team.total(*look())
                if team.leads and (due or asked or progress.seconds > saved + SAVE_SECONDS):
                    self.save()
                    saved = time.monotonic() - started
                bar.update()
        except OSError:  # the bar cannot be written any more, as after `2>&1 | head`
            self.save()
            raise
        bar.close()
        return bool(asked)

    def save(self) -> None:
        """Write the checkpoint from which --resume goes on exactly here, and the curve so far."""
        state = {
            "identity": self.identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "kept": self.kept,
            "progress": asdict(self.progress),
        }
        checkpoint.save(self.args.output / "checkpoint.pt", state)
        self.saved = True
        self.save_curve()

    def save_curve(self) -> None:
        """Write the records of all evaluations so far."""
        lines = "".join(json.dumps(record) + "\n" for record in self.progress.curve)
        write_text(self.args.output / "metrics.jsonl", lines)

    def restore(self, state: dict) -> None:
        """Go back to a state that save wrote. Raises InputError where it is of another run."""
        checkpoint.check(self.args.output / "checkpoint.pt", state, self.identity)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.kept, self.progress, self.saved = state["kept"], Progress(**state["progress"]), True
