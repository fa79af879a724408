"""Which model is better after how long: ours against Hugging Face's BERT of the same shape, on the same text.

    python3 race.py --corpus my.txt --tokenizer bpe --n-layers 4 --d-model 256 --d-ff 1024 --minutes 30

Hugging Face's model trains for the given minutes, at that of three learning rates which is best after a sixth
of them; ours for a third of them. The other flags are those of train_mlm.py. Draws race.png into --output
(default: results/). It needs requirements-dev.txt.
"""

import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import train_mlm
from benchmark import HuggingFace, Ours
from cli import Parser, real, run
from corpus import IGNORE

LEARNING_RATES = 3e-4, 1e-3, 3e-3  # that Hugging Face's model is tried with


@torch.no_grad()
def held_out_loss(contestant: Ours | HuggingFace) -> float:
    """The mean loss at the held-out text's hidden tokens (nats), which are the same for all."""
    state, total, count = contestant.state, 0.0, 0
    generator = torch.Generator().manual_seed(state.args.seed)
    for rows in state.held_out.plan(state.args.batch_tokens, np.random.default_rng(state.args.seed)):
        inputs, labels = state.corrupt(state.held_out.rows(rows), generator)
        logits = contestant.logits(inputs)
        total += F.cross_entropy(logits.transpose(1, 2), labels, reduction="sum").item()
        count += int((labels != IGNORE).sum())
    return total / count


def train_for(contestant: Ours | HuggingFace, minutes: float, label: str, points: int = 10) -> list[float]:
    """Train for so long, without the time of evaluations -> the held-out losses after each of `points` equal
    parts of the time."""
    losses, tokens, spent = [], 0, 0.0
    with tqdm(total=points, desc=label, leave=False) as bar:
        while len(losses) < points:
            started = time.perf_counter()
            tokens += contestant.step(min(1.0, spent / (60 * minutes)))
            spent += time.perf_counter() - started
            if spent >= 60 * minutes * (len(losses) + 1) / points:
                losses.append(held_out_loss(contestant))
                bar.set_postfix(loss=f"{losses[-1]:.3f}")
                bar.update()
    shown = " ".join(f"{loss:.3f}" for loss in losses)
    print(f"{label}: {minutes:g} min, {tokens:,} tokens, held-out loss {shown}", flush=True)
    return losses


def draw_race(curves: dict[str, tuple[float, list[float]]], path: Path) -> None:
    """The held-out losses over the minutes: name -> (minutes in all, losses after equal parts of them)."""
    from matplotlib import pyplot as plt

    plt.switch_backend("Agg")
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for (name, (minutes, losses)), color, style in zip(
        curves.items(), ("#0072B2", "#D55E00"), ("o-", "s--"), strict=True
    ):
        times = [minutes * (i + 1) / len(losses) for i in range(len(losses))]
        axes.plot(times, losses, style, color=color, label=f"{name}: {losses[-1]:.2f} after {minutes:g} min")
    axes.set(
        xlabel="minutes of training",
        ylabel="loss (nats per hidden token)",
        title="Held-out text, 15 % of the tokens hidden",
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--minutes", type=real(0.01), default=30, help="for Hugging Face's model")
    own, rest = parser.parse_known_args()
    args, minutes = train_mlm.parse_args([*rest, "--device", own.device]), own.minutes
    theirs = Namespace(**{**vars(args), "precision": "fp32"})
    tried = {
        rate: train_for(HuggingFace(theirs, True, rate), minutes / 6, f"Hugging Face at {rate:g}", 1)[-1]
        for rate in LEARNING_RATES
    }
    best = min(tried, key=tried.get)
    curves = {
        f"ours, {args.learning_rate:g}": (minutes / 3, train_for(Ours(args), minutes / 3, "ours")),
        f"Hugging Face, {best:g}": (
            minutes,
            train_for(HuggingFace(theirs, True, best), minutes, f"Hugging Face at {best:g}"),
        ),
    }
    draw_race(curves, args.output / "race.png")


if __name__ == "__main__":
    run(main)
