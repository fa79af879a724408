"""seq2seq.training"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from transformer import Transformer

from .common import checkpoint
from .common.checkpoint import Progress
from .common.command_line import Interrupt
from .common.distributed import Team, seed_all
from .common.errors import InputError
from .common.fast_cpu import fast_training
from .common.files import write_text
from .dataset import PairCorpus
from .loss import CHUNK, token_losses
from .pairs import Pairs
from .tokenizer import IGNORE

SAVE_SECONDS = 60  # a checkpoint is written at least so often


def learning_rate(step: int, done: float, peak: float, warmup_steps: int) -> float:
    """Linear warm-up, times half a cosine down to zero, where the paper falls as step^-0.5 (Vaswani et al.
    2017, section 5.3), so that it is at zero just when the budget ends: done goes from 0 to 1 until then."""
    return peak * min(1.0, (step + 1) / max(1, warmup_steps)) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def within_chance(accuracy: float, best: float, count: int) -> bool:
    """Whether an accuracy over so many target tokens falls short of the best so far by no more than the
    standard error of their difference, corrected for continuity, which counts where they are few."""
    mean = (accuracy + best) / 2
    return best - accuracy <= math.sqrt(2 * mean * (1 - mean) / count) + 1 / count


@dataclass
class Run:
    """A model in training: update() makes one step, evaluate() adds a record to the curve and keeps the
    model if it is good, save() writes what a continuation needs."""

    args: argparse.Namespace
    team: Team
    model: Transformer
    optimizers: list[torch.optim.Optimizer]
    pairs: Pairs
    corpus: PairCorpus
    held_out: PairCorpus
    identity: dict  # what may not change when the run is resumed
    progress: Progress = field(default_factory=Progress)
    kept: dict[str, Tensor] | None = None  # the weights chosen so far
    saved: bool = False  # whether there is a checkpoint of this run

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.team.device

    def update(self, indices: np.ndarray, done: float, look: Callable[[], tuple[float, ...]] = tuple) -> list[float]:
        """One step of the optimizers on the batch of the pairs with these indices; look gives
        numbers of this process -> their sums over the team."""
        args, progress, team = self.args, self.progress, self.team
        seed_all(args.seed, progress.step, team.rank)  # dropout
        rate = learning_rate(progress.step, done, args.learning_rate, args.warmup_steps)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = rate
        n_tokens = int(self.corpus.target.lengths[indices].sum())

        self.model.train()
        self.model.zero_grad()
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
        losses = loss.item(), nll.item()
        loss_sum, nll_sum, *seen = team.sum_gradients(self.model.parameters(), *losses, *look())
        self.check_finite(loss_sum)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()

        progress.step += 1
        progress.tokens += n_tokens
        progress.nll += nll_sum
        progress.nll_tokens += n_tokens
        return seen

    def check_finite(self, loss: float) -> None:
        """Raises InputError where a loss is infinite or no number."""
        if not math.isfinite(loss):
            remedy = ", or make a model of what is kept with --resume --max-steps 1" if self.saved else ""
            step = self.progress.step
            raise InputError(f"the loss is no longer finite at step {step}; try a lower --learning-rate{remedy}")

    @torch.no_grad()
    def evaluate(self) -> None:
        """Score the held-out pairs under teacher forcing, and keep the model unless one before it was
        better by more than chance: of equally good models the last, the longest trained."""
        self.model.eval()
        nll, right, count = 0.0, 0, 0
        for rows in self.held_out.plan(self.args.batch_tokens, 0):
            batch = self.held_out.batch(rows).to(self.device)
            scored = batch.labels != IGNORE
            states = self.model.states(batch.source, batch.target)[scored]  # (N, D)
            parts = states.split(CHUNK), batch.labels[scored].split(CHUNK)
            for part, labels in zip(*parts, strict=True):
                logits = self.model.project(part)[:, :-1]  # (<= CHUNK, V - 1): <pad> is never generated
                nll += F.cross_entropy(logits, labels, reduction="sum").item()
                right += int((logits.argmax(dim=-1) == labels).sum())
                count += len(labels)
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
                "held_out_token_accuracy": accuracy,
                "learning_rate": self.optimizers[0].param_groups[0]["lr"],
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
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "kept": self.kept,
            "progress": asdict(self.progress),
        }
        checkpoint.save(self.args.output / "checkpoint.pt", state)
        self.saved = True
        self.save_curve()

    def save_curve(self) -> None:
        """Write the records of all evaluations so far."""
        lines = "".join(json.dumps(record) + "\n" for record in self.progress.curve)
        samples = self.args.output / "samples"
        samples.mkdir(exist_ok=True)
        write_text(samples / "metrics.jsonl", lines)

    def restore(self, state: dict) -> None:
        """Go back to a state that save wrote. Raises InputError where it is of another run."""
        checkpoint.check(self.args.output / "checkpoint.pt", state, self.identity)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.kept, self.progress, self.saved = state["kept"], Progress(**state["progress"]), True
