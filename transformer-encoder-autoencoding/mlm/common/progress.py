"""The course of a training run: how far it has come, and its learning curve."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from .budget import significantly_worse
from .errors import InputError
from .files import write_text

CURVE, WATCHED = "metrics.jsonl", "watched.jsonl"  # the files of a run's records
MAX_WATCHED, MIN_READINGS = 2_000_000, 10  # bytes of the second, and readings of each text for which there is room


@dataclass
class Progress:
    """How far a run has come. Epoch and position, together with the seed, decide every later batch, and the step
    decides masks and dropout: nothing else has to be remembered for an exact continuation."""

    epoch: int = 0  # full passes made
    position: int = 0  # batches taken of the pass after them
    step: int = 0  # updates made
    tokens: int = 0  # trained on, padding not counted; of pairs the target's
    seconds: float = 0.0
    nll: float = 0.0  # -log p of the scored tokens since the last evaluation (nats), and their number
    nll_tokens: int = 0
    parts: list[dict] = field(default_factory=list)  # budget, device and precision, and from which step
    curve: list[dict] = field(default_factory=list)  # a record for every evaluation
    watched: list[dict] = field(default_factory=list)  # what the model made of the watched texts, at evaluations
    kept: int = 0  # index of the record whose weights are kept (the weights themselves are Trainer.kept)
    # of the evaluation with most tokens right: which are, (N,) bool
    best: Tensor | None = field(default=None, compare=False)

    def begin_part(self, **conditions: Any) -> None:
        """Note under which conditions the run continues, if they are not those of before."""
        if not self.parts or conditions.items() - self.parts[-1].items():
            self.parts.append({"from_step": self.step, **conditions})

    def add_record(self, loss: float, right: Tensor, learning_rate: float) -> bool:
        """Add a record to the curve: the loss over the held-out tokens, the share of them that is right, (N,) bool,
        and the mean loss in training since the record before.

        Return True if the weights are to be kept: unless earlier ones had significantly more tokens right. So of
        equally good weights the last are kept, which were trained longest. The loss would be a worse judge: on a small
        text it rises while accuracy does too, because the wrong answers grow surer.
        """
        self.curve.append(
            {
                "epoch": self.epoch,
                "step": self.step,
                "seconds": round(self.seconds, 2),
                "tokens": self.tokens,
                "train_loss": self.nll / self.nll_tokens,
                "held_out_loss": loss,
                "held_out_token_accuracy": int(right.sum()) / len(right),
                "learning_rate": learning_rate,
            }
        )
        self.nll, self.nll_tokens = 0.0, 0
        keep = self.best is None or not significantly_worse(right, self.best)
        if keep:
            self.kept = len(self.curve) - 1
        if self.best is None or right.sum() > self.best.sum():
            self.best = right
        return keep

    def add_readings(self, readings: list[dict]) -> None:
        """Add what the model made of each watched text at the last record. When all take more than MAX_WATCHED bytes,
        only those of every second record stay, then of every fourth, and so on, and always the last."""
        last = self.curve[-1]
        self.watched += [{"epoch": last["epoch"], "step": last["step"], **reading} for reading in readings]
        places, every = {record["step"]: i for i, record in enumerate(self.curve)}, 1
        while len(lines(self.watched)) > MAX_WATCHED and every < len(self.curve):
            every *= 2
            steps = {step for step, i in places.items() if i % every == 0} | {last["step"]}
            self.watched = [one for one in self.watched if one["step"] in steps]

    def write(self, folder: Path) -> None:
        """Write the records into a run's folder, a line of JSON for each, and what was made of watched texts."""
        write_text(folder / CURVE, lines(self.curve))
        if self.watched:
            write_text(folder / WATCHED, lines(self.watched))
        else:  # else those of the run before would be taken for this one's
            (folder / WATCHED).unlink(missing_ok=True)

    def figures(self, n_parameters: int, *scores: str) -> dict[str, Any]:
        """Return the figures of a finished run: its length, its size, and scores of the weights that are kept, under
        their names in the curve."""
        kept = self.curve[self.kept]
        figures = {
            "epochs": self.epoch,
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "parameters": n_parameters,
            **{name: kept[name] for name in scores},
        }
        if len(self.parts) > 1:  # a continuation had another budget, device or precision
            figures["parts"] = self.parts
        return figures


def check_watched(n_bytes: float) -> None:
    """Refuse texts to watch if one reading of all of them takes this many bytes, too many to keep some."""
    if n_bytes > (room := MAX_WATCHED / MIN_READINGS):
        raise InputError(
            f"the watched texts take {n_bytes / 1000:,.0f} kB at every evaluation, with room for {room / 1000:,.0f}; "
            "give fewer or shorter ones",
            "watch",
        )


def lines(records: list[dict]) -> str:
    """Return records as text, a line of JSON for each."""
    return "".join(json.dumps(record) + "\n" for record in records)


def show_record(record: dict[str, Any], bar: tqdm) -> None:
    """Show a record of the curve on the progress bar or, if there is none, as in a log file, in a line of its own."""
    losses = {name: f"{record[name]:.3f}" for name in ("train_loss", "held_out_loss")}
    if bar.disable:
        shown = ", ".join(f"{name} {loss}" for name, loss in losses.items())
        print(f"epoch {record['epoch']}, step {record['step']:,}: {shown}", file=sys.stderr, flush=True)
    else:
        bar.set_postfix(epoch=record["epoch"], refresh=False, **losses)
