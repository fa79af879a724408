"""What benchmark.py compares in training: our Trainer and Hugging Face's BERT, step by step or in a race."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from encoder import MaskedLanguageModel
from masking import IGNORE

from . import bert
from .common.benchmarking import MatrixProducts
from .common.distributed import DistributedContext
from .common.fast_cpu import best_precision
from .config import TrainConfig
from .dataset import Corrupt, Data, FixedMasks

PRODUCTS = "matrix products of ours, fp32"


class Trainer(Protocol):
    """The part of train_mlm.py's Trainer that is used here."""

    config: TrainConfig
    context: DistributedContext
    data: Data
    model: MaskedLanguageModel
    optimizer: torch.optim.Optimizer
    corrupt: Corrupt
    held_out: FixedMasks

    def batches(self, epoch: int) -> Sequence[np.ndarray]: ...
    def update(self, indices: np.ndarray, fraction: float) -> None: ...


class Contestant(Protocol):
    """A model in training, step by step."""

    trainer: Trainer

    def step(self, fraction: float = 0.5) -> int:
        """Make one update, when this part of the budget is used up -> the number of its tokens."""

    def logits(self, inputs: Tensor) -> Tensor:
        """Return the logits (B, S, V) of inputs (B, S), without dropout."""


class Ours:
    """The trainer's own steps."""

    def __init__(self, trainer: Trainer, compiled: bool = False):
        self.trainer = trainer
        self.batches = (indices for epoch in count() for indices in trainer.batches(epoch))
        if compiled:
            trainer.model.encoder.compile(dynamic=True)

    def step(self, fraction: float = 0.5) -> int:
        indices = next(self.batches)
        self.trainer.update(indices, fraction)
        return n_tokens(self.trainer, indices)

    def logits(self, inputs: Tensor) -> Tensor:
        return self.trainer.model.eval()(inputs)


class WithoutFastCpu(Ours):
    """The same steps in fp32 without fast_cpu.py: PyTorch's dropout, and logits of all positions rather than of the
    hidden ones."""

    def step(self, fraction: float = 0.5) -> int:
        indices, trainer = next(self.batches), self.trainer
        inputs, labels = corrupted(trainer, indices)
        loss = F.cross_entropy(trainer.model.train()(inputs).transpose(1, 2), labels)
        trainer.model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        return n_tokens(trainer, indices)


class HuggingFace:
    """BertForMaskedLM of the same shape, trained in the usual way: DataCollatorForLanguageModeling, AdamW, linear
    warm-up and decay, as many windows a batch as ours have on average, drawn at random or grouped by length as
    transformers.Trainer groups them."""

    def __init__(self, trainer: Trainer, grouped: bool, learning_rate: float = 1e-4):
        from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, DataCollatorForLanguageModeling

        self.trainer, self.grouped, self.learning_rate, self.steps = trainer, grouped, learning_rate, 0
        dropout = trainer.model.config.dropout
        rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        with tempfile.TemporaryDirectory() as folder:
            bert.save(Path(folder), trainer.model, trainer.data.tokenizer)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            torch.manual_seed(trainer.config.seed)
            if trainer.config.init:  # both start from the same weights
                model = AutoModelForMaskedLM.from_pretrained(folder, **rates)
            else:
                model = AutoModelForMaskedLM.from_config(BertConfig.from_pretrained(folder, **rates))
        self.model = model.to(trainer.context.device)
        self.collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=trainer.config.mask_prob)
        weights = self.model.parameters()
        self.optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.01, fused=True)
        self.batches = self.draw()

    def draw(self) -> Iterator[list[list[int]]]:
        """Yield epoch after epoch of batches of windows."""
        from transformers.trainer_pt_utils import get_length_grouped_indices

        windows = self.trainer.data.train.sequences
        size = max(1, round(len(windows) / len(self.trainer.batches(0))))
        while True:
            # grouped batches are shuffled as well: the first of every group are the longest
            if self.grouped:
                order = get_length_grouped_indices(windows.lengths.tolist(), size)
            else:
                order = torch.randperm(len(windows)).tolist()
            for start in (size * torch.randperm(-(-len(order) // size))).tolist():
                spans = [(windows.offsets[i], windows.offsets[i + 1]) for i in order[start : start + size]]
                yield [windows.ids[begin:end].tolist() for begin, end in spans]

    def step(self, fraction: float = 0.5) -> int:
        windows, config, device = next(self.batches), self.trainer.config, self.trainer.context.device
        warm = min(1.0, (self.steps + 1) / max(1, config.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * min(warm, 1 - fraction)
        batch = self.collate([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in windows])
        self.model.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = self.model(**batch.to(device)).loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.steps += 1
        return sum(map(len, windows))

    def logits(self, inputs: Tensor) -> Tensor:
        mask = inputs != self.trainer.data.train.special.pad
        return self.model.eval()(input_ids=inputs, attention_mask=mask).logits


def n_tokens(trainer: Trainer, indices: np.ndarray) -> int:
    """Return the number of tokens in these windows."""
    return int(trainer.data.train.sequences.lengths[indices].sum())


def corrupted(trainer: Trainer, indices: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return inputs and labels (B, S) of these windows, on the device."""
    inputs, labels = trainer.corrupt(trainer.data.train.batch(indices), torch.default_generator)
    return inputs.to(trainer.context.device), labels.to(trainer.context.device)


def matrix_products(trainer: Trainer) -> MatrixProducts:
    """Return the matrix products of the trainer's first steps."""
    model = trainer.model.eval()

    def forward(indices: np.ndarray) -> None:
        inputs, labels = corrupted(trainer, indices)
        model(inputs, labels != IGNORE)

    batches = list(islice(trainer.batches(0), 8))
    steps = [(partial(forward, indices), n_tokens(trainer, indices)) for indices in batches]
    return MatrixProducts(steps, trainer.context.device)


def training_contestants(
    make_trainer: Callable[[str], Trainer], device: torch.device, precision: str | None
) -> dict[str, Callable[[], Contestant | MatrixProducts]]:
    """Return a function for each name that makes the contestant ready. make_trainer: precision -> a trainer."""
    best = precision or best_precision(device)
    contestants = {f"ours, {best}": lambda: Ours(make_trainer(best))}
    if best == "bf16":
        contestants["ours, fp32"] = lambda: Ours(make_trainer("fp32"))
    if device.type == "cuda":
        contestants[f"ours, {best}, torch.compile"] = lambda: Ours(make_trainer(best), compiled=True)
    contestants["ours, fp32, without fast_cpu.py"] = lambda: WithoutFastCpu(make_trainer("fp32"))
    for kind in dict.fromkeys(["fp32", best] if device.type == "cuda" else ["fp32"]):
        contestants[f"Hugging Face, {kind}, grouped"] = lambda kind=kind: HuggingFace(make_trainer(kind), grouped=True)
        contestants[f"Hugging Face, {kind}, random"] = lambda kind=kind: HuggingFace(make_trainer(kind), grouped=False)
    contestants[PRODUCTS] = lambda: matrix_products(make_trainer("fp32"))
    return contestants


# -------------------------------------------------------------------------------------------------- race


@torch.no_grad()
def held_out_loss(contestant: Contestant) -> float:
    """Return the mean loss at the hidden tokens of the held-out text (nats), which are the same for all."""
    trainer, total, n_hidden = contestant.trainer, 0.0, 0
    for batch in trainer.held_out.batches(trainer.config.batch_tokens):
        inputs, labels = (part.to(trainer.context.device) for part in batch)
        logits = contestant.logits(inputs)
        total += F.cross_entropy(logits.transpose(1, 2), labels, reduction="sum").item()
        n_hidden += int((labels != IGNORE).sum())
    return total / n_hidden


def train_for(contestant: Contestant, minutes: float, name: str) -> list[float]:
    """Train for some minutes, evaluations not counted -> the held-out losses after each tenth of the time."""
    losses, tokens, spent = [], 0, 0.0
    with tqdm(total=10, desc=name, leave=False, disable=None) as bar:
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


def draw_race(curves: dict[str, tuple[float, list[float]]], task: str, path: Path) -> None:
    """Draw held-out losses over the minutes: name -> (minutes in all, losses after each tenth of them)."""
    from .common.plots import COLOURS, plt, save_figure  # matplotlib takes a while to import

    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for i, (name, (minutes, losses)) in enumerate(curves.items()):
        times = [minutes * (tenth + 1) / len(losses) for tenth in range(len(losses))]
        label = f"{name}: {losses[-1]:.2f} after {minutes:g} min"
        axes.plot(times, losses, "s--" if i else "o-", color=COLOURS[i % len(COLOURS)], label=label)
    title = f"Held-out text, {task}"
    axes.set(xlabel="minutes of training", ylabel="loss (nats per hidden token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_figure(figure, path)
