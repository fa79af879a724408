"""What benchmark.py compares in training: our Trainer and Hugging Face's MarianMT."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from transformer import Transformer

from . import marian
from .common.benchmarking import MatrixProducts
from .common.distributed import DistributedContext
from .common.fast_cpu import best_precision
from .config import TrainConfig
from .dataset import Data
from .loss import IGNORE

PRODUCTS = "matrix products of ours, fp32"


class Trainer(Protocol):
    """The part of train.py's Trainer that is used here."""

    config: TrainConfig
    context: DistributedContext
    data: Data
    model: Transformer
    optimizers: list[torch.optim.Optimizer]

    def batches(self, epoch: int) -> Sequence[np.ndarray]: ...
    def update(self, indices: np.ndarray, fraction: float) -> None: ...


class Contestant(Protocol):
    """A model in training, step by step."""

    def step(self) -> int:
        """Make one update -> the number of its target tokens."""


class Ours:
    """The trainer's own steps."""

    def __init__(self, trainer: Trainer, compiled: bool = False):
        self.trainer = trainer
        self.batches = (indices for epoch in count() for indices in trainer.batches(epoch))
        if compiled:
            trainer.model.hidden_states = torch.compile(trainer.model.hidden_states, dynamic=True)

    def step(self) -> int:
        indices = next(self.batches)
        self.trainer.update(indices, fraction=0.5)
        return target_tokens(self.trainer, indices)


class WithoutFastCpu(Ours):
    """The same steps in fp32 without fast_cpu.py: PyTorch's dropout, and a loss that holds all logits."""

    def step(self) -> int:
        indices, trainer = next(self.batches), self.trainer
        batch = trainer.data.train.batch(indices).to(trainer.context.device)
        logits = trainer.model.train()(batch.source, batch.target)[..., :-1]  # <pad> is last, and has no share
        smoothing = trainer.config.label_smoothing
        loss = F.cross_entropy(logits.transpose(1, 2), batch.labels, label_smoothing=smoothing)
        trainer.model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        for optimizer in trainer.optimizers:
            optimizer.step()
        return target_tokens(trainer, indices)


class HuggingFace:
    """MarianMTModel of the same shape, trained in the usual way: its own loss, AdamW, as many pairs a batch
    as ours have on average, drawn at random or grouped by length as transformers.Trainer groups them."""

    def __init__(self, trainer: Trainer, grouped: bool):
        from transformers import AutoConfig, AutoModelForSeq2SeqLM

        self.trainer, self.grouped = trainer, grouped
        with tempfile.TemporaryDirectory() as folder:
            marian.save(Path(folder), trainer.model, trainer.data.tokenizer)
            config = AutoConfig.from_pretrained(folder, dropout=trainer.model.config.dropout)
        torch.manual_seed(trainer.config.seed)
        self.model = AutoModelForSeq2SeqLM.from_config(config).to(trainer.context.device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.batches = self.draw()

    def draw(self) -> Iterator[np.ndarray]:
        """Yield epoch after epoch of batches, as indices of pairs."""
        from transformers.trainer_pt_utils import get_length_grouped_indices

        pairs = self.trainer.data.train
        size = max(1, round(len(pairs) / len(self.trainer.batches(0))))
        while True:
            # grouped batches are shuffled as well: the first of every group are the longest
            if self.grouped:
                order = get_length_grouped_indices(pairs.source.lengths.tolist(), size)
            else:
                order = torch.randperm(len(pairs)).tolist()
            for start in (size * torch.randperm(-(-len(order) // size))).tolist():
                yield np.array(order[start : start + size])

    def step(self) -> int:
        indices, pairs, device = next(self.batches), self.trainer.data.train, self.trainer.context.device
        source = torch.from_numpy(pairs.source.padded(indices, pairs.pad_id)).to(device)
        labels = torch.from_numpy(pairs.target.padded(indices, IGNORE)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.trainer.config.precision == "bf16"):
            loss = self.model(input_ids=source, attention_mask=source != pairs.pad_id, labels=labels).loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return target_tokens(self.trainer, indices)


def target_tokens(trainer: Trainer, indices: np.ndarray) -> int:
    """Return the number of target tokens of these pairs."""
    return int(trainer.data.train.target.lengths[indices].sum())


def matrix_products(trainer: Trainer) -> MatrixProducts:
    """Return the matrix products of the trainer's first steps."""
    data, model = trainer.data.train, trainer.model.eval()

    def forward(indices: np.ndarray) -> None:
        batch = data.batch(indices).to(trainer.context.device)
        model.project(model.hidden_states(batch.source, batch.target)[batch.labels != IGNORE])

    batches = list(islice(trainer.batches(0), 8))
    steps = [(partial(forward, indices), target_tokens(trainer, indices)) for indices in batches]
    return MatrixProducts(steps, trainer.context.device)


def training_contestants(
    make_trainer: Callable[[str], Trainer], device: torch.device, precision: str | None
) -> dict[str, Callable[[], Contestant]]:
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
