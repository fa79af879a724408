"""Which model is better after how long: ours against Hugging Face's BERT of the same shape, on the same text.

    python3 race.py --corpus my.txt --tokenizer bpe --n-layers 4 --d-model 256 --d-ff 1024 --minutes 30

Ours trains for a third of the given minutes; Hugging Face's for all of them, once at each of the learning
rates given with --theirs, on a CPU in fp32. The other flags are those of train_mlm.py, but for its budgets.
Draws race.png into --output (default: results/) after each of them. It needs requirements-dev.txt.
"""

import time
from argparse import Namespace
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import train_mlm
from benchmark import BUDGETS, HuggingFace, Ours, need_transformers
from masking import IGNORE
from mlm.common.command_line import Parser, pick_device, real, run
from mlm.common.fast_cpu import best_precision
from mlm.common.files import output_folder, replacing

COLORS = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # told apart by colour-blind readers too


@torch.no_grad()
def held_out_loss(contestant: Ours | HuggingFace) -> float:
    """The mean loss at the held-out text's hidden tokens (nats), which are the same for all."""
    total, count = 0.0, 0
    for inputs, labels in contestant.state.held_out_batches():
        logits = contestant.logits(inputs)
        total += F.cross_entropy(logits.transpose(1, 2), labels, reduction="sum").item()
        count += int((labels != IGNORE).sum())
    return total / count


def train_for(contestant: Ours | HuggingFace, minutes: float, name: str) -> list[float]:
    """Train for so long, evaluations not counted -> the held-out losses after each tenth of the time."""
    losses, tokens, spent = [], 0, 0.0
    with tqdm(total=10, desc=name, leave=False) as bar:
        while len(losses) < 10:
            started = time.perf_counter()
            tokens += contestant.step(min(1.0, spent / (60 * minutes)))
            spent += time.perf_counter() - started
            if spent >= 6 * minutes * (len(losses) + 1):
                losses.append(held_out_loss(contestant))
                bar.set_postfix(loss=f"{losses[-1]:.3f}")
                bar.update()
    shown = " ".join(f"{loss:.3f}" for loss in losses)
    print(f"{name}: {minutes:g} min, {tokens:,} tokens, held-out loss {shown}", flush=True)
    return losses


def draw(curves: dict[str, tuple[float, list[float]]], task: str, path: Path) -> None:
    """The held-out losses over the minutes: name -> (minutes in all, losses after each tenth of them)."""
    from matplotlib import pyplot as plt

    plt.switch_backend("Agg")
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for i, (name, (minutes, losses)) in enumerate(curves.items()):
        times = [minutes * (tenth + 1) / len(losses) for tenth in range(len(losses))]
        label = f"{name}: {losses[-1]:.2f} after {minutes:g} min"
        axes.plot(times, losses, "s--" if i else "o-", color=COLORS[i % len(COLORS)], label=label)
    axes.set(
        xlabel="minutes of training",
        ylabel="loss (nats per hidden token)",
        title=f"Held-out text, {task}",
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with replacing(path) as part:
        figure.savefig(part, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--minutes", type=real(0.01), default=30, help="for Hugging Face's model, at every learning rate")
    add("--theirs", type=real(1e-9, 10), nargs="+", default=[3e-4, 1e-3, 3e-3], help="their learning rates")
    own, rest = parser.parse_known_args()
    for flag in rest:
        if flag.split("=")[0] in BUDGETS:
            parser.error(f"{flag} has no use here: --minutes is the budget")
    args = train_mlm.parse_args([*rest, "--device", own.device])
    need_transformers()
    output_folder(args.output)
    device = pick_device(args.device)  # on a CPU, PyTorch's attention is slow in bfloat16
    precision = "fp32" if device.type == "cpu" else args.precision or best_precision(device)
    theirs = Namespace(**vars(args) | {"precision": precision})
    racers = {"ours": (own.minutes / 3, lambda: Ours(args))}
    for rate in own.theirs:
        start = lambda rate=rate: HuggingFace(theirs, True, rate)  # noqa: E731
        racers[f"Hugging Face at {rate:g}"] = own.minutes, start
    curves = {}
    for name, (minutes, start) in racers.items():
        curves[name] = minutes, train_for(start(), minutes, name)
        draw(curves, f"{args.mask_prob:.0%} of the tokens hidden", args.output / "race.png")


if __name__ == "__main__":
    run(main)
