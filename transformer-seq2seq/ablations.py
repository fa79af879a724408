"""Train the default model again without one mechanism at a time, to see what each is good for.

    python3 ablations.py                              all of them, three seeds: about ten minutes on two cores
    python3 ablations.py --list                       what each takes out, and what it was predicted to do
    python3 ablations.py no-positions no-causal-mask  these alone, beside the default

Every run reads the bundled pairs for a quarter of train.py's epochs, in batches of half the size, and is
judged by its final weights. Writes to --output (default: samples/ beside this file): ablations.jsonl (a line for
every finished run), ablations.md (the table), ablations.png (the learning curves). There are as many processes as
PyTorch would use threads (OMP_NUM_THREADS); the results do not depend on their number.
"""

import inspect
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from textwrap import shorten

from seq2seq.common.command_line import run_script  # isort: skip (before PyTorch: a quiet Ctrl-C)

import numpy as np
import torch
from torch import Tensor, nn

from seq2seq.common.distributed import DistributedContext
from seq2seq.common.errors import InputError
from seq2seq.common.experiments import Job, Study
from seq2seq.config import TrainConfig
from seq2seq.loss import IGNORE
from seq2seq.metrics import Prompt, answer_all, bleu_and_chrf, exact_match, exact_match_by_kind, group
from train import Trainer, build_trainer
from transformer import MultiHeadAttention

BATCH_TOKENS = 512
RECALL_EVERY, CURVE_EVERY = 5, 4  # of the training pairs; of new answers and rewrites along the curve
EXAMPLE = "The child explains the lesson"  # held out

study = Study(
    epochs=15,
    seeds=3,
    measures={
        "train_loss": ("training loss", ".3f"),
        "recall": ("training pairs", ".1%"),
        "answer": ("new answers", ".1%"),
        "rewrite": ("new rewrites", ".1%"),
        "bleu": ("BLEU", ".1f"),
    },
    legend="""\
Mean over the seeds and, in brackets, the range. Training loss: of the last epoch, in nats a target token,
under teacher forcing, label smoothing's share left out. Training pairs, new answers, new rewrites: the share
of greedy outputs that are the reference to the letter, for every fifth training prompt, for known facts asked
in new ways, and for new active sentences. BLEU: of the outputs for all held-out prompts.""",
    above=("train_loss", "training loss (nats)"),
    below=("combinations", "new answers, rewrites"),
    output=Path(__file__).parent / "samples",
    remark=lambda result: f" `{EXAMPLE}` → `{shorten(result['example'], 60, placeholder=' ...')}`",
)


def change_argument(layer: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Change an argument of a layer's forward, found by its name, before each call; None stays None."""
    signature = inspect.signature(layer.forward)
    if name not in signature.parameters:
        raise TypeError(f"{type(layer).__name__}.forward has no argument {name!r}")

    def hook(_layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        bound = signature.bind(*args, **kwargs)
        if (value := bound.arguments.get(name)) is not None:
            bound.arguments[name] = change(value)
        return bound.args, bound.kwargs

    layer.register_forward_pre_hook(hook, with_kwargs=True)


@study.ablation("What the others are compared with.")
def default(trainer: Trainer) -> None:
    """Nothing."""


@study.ablation(
    "The training loss collapses, for the word to predict stands at the next position, in plain sight; the "
    "outputs are garbage, for nothing stands there when words are generated."
)
def no_causal_mask(trainer: Trainer) -> None:
    """The triangle: in training every target position sees all others, the later ones too."""
    for layer in trainer.model.decoder:
        change_argument(layer, "target_mask", torch.ones_like)


@study.ablation(
    "The decoder becomes a language model: its output is fluent, the same for every prompt, and right for "
    "none. The training loss stops at the entropy of the answers."
)
def no_cross_attention(trainer: Trainer) -> None:
    """The decoder's attention to the source: its sublayer is LayerNorm(x), so that the prompt is not seen."""
    for layer in trainer.model.decoder:
        layer.cross_attention.register_forward_hook(lambda _m, _i, out: (torch.zeros_like(out[0]), out[1]))


@study.ablation(
    "Answers survive, for the words of a question tell it without their order; rewrites fail about half the "
    "time, for who does what to whom is told by order alone."
)
def no_positions(trainer: Trainer) -> None:
    """The position encoding, in the encoder and in the decoder: the prompt becomes a bag of words."""
    trainer.model.embeddings.positions.zero_()


@study.ablation(
    "Scores are sqrt(32) = 5.7 times as large, so that the softmax begins near one-hot and passes little "
    "gradient: learning is slower, and everything ends lower."
)
def no_scale(trainer: Trainer) -> None:
    """The division of the scores by sqrt(d_k), in all three attentions: the queries are multiplied by it."""
    for module in trainer.model.modules():
        if isinstance(module, MultiHeadAttention):
            module.query.register_forward_hook(lambda _m, _i, q, d_k=module.d_k: q * math.sqrt(d_k))


@study.ablation(
    "The training loss falls to almost nothing within a few epochs, for the word to predict is the word just "
    "read; the outputs are garbage, for all that is learnt is to repeat a word."
)
def no_shift(trainer: Trainer) -> None:
    """The shift of teacher forcing: the decoder reads the very word that it has to predict."""
    trainer.data.train.shift = lambda labels, pad_id: np.where(labels == IGNORE, pad_id, labels)


@study.ablation(
    "The training loss ends lower, for nothing keeps the model from being sure; exact match is about the "
    "same, for on so little text greedy outputs do not need modesty."
)
def no_label_smoothing(trainer: Trainer) -> None:
    """Label smoothing: all the probability belongs to the reference's word."""
    trainer.config = replace(trainer.config, label_smoothing=0.0)


@study.ablation(
    "Little changes: sentences of like length share a batch, so that there is little padding to be attended "
    "to, and the model learns to ignore what is there. Outputs now depend on what shares their batch."
)
def no_padding_mask(trainer: Trainer) -> None:
    """The padding mask: the prompt's padding is attended to, in the encoder and from the decoder."""
    for layer in trainer.model.encoder:
        change_argument(layer, "mask", torch.ones_like)
    for layer in trainer.model.decoder:
        change_argument(layer, "memory_mask", torch.ones_like)


def prepare(job: Job, folder: Path) -> Trainer:
    """Return the default's trainer, without what the ablation takes out. folder: a place for the token ids."""
    config = TrainConfig(epochs=job.epochs, batch_tokens=BATCH_TOKENS, seed=job.seed, output=folder)
    trainer = build_trainer(config, DistributedContext(torch.device(job.device)))
    study.ablations[job.name].apply(trainer)
    return trainer


def outputs(trainer: Trainer, prompts: list[Prompt], stopped: int | None) -> list[str]:
    """Return the greedy outputs for some prompts; they are empty if the loss has stopped being finite."""
    if stopped is not None:
        return [""] * len(prompts)
    return answer_all(trainer.model, trainer.data.tokenizer, prompts)


def learn(trainer: Trainer, epochs: int, epoch_done: Callable[[], None]) -> tuple[list[dict], int | None]:
    """Train for some epochs -> the curve, and the step at which the loss was no longer finite, else None."""
    combinations = [prompt for prompt in group(trainer.data.pairs.held_out) if prompt.kind in ("answer", "rewrite")]
    some, progress, curve, stopped = combinations[::CURVE_EVERY], trainer.progress, [], None
    n_steps = epochs * len(trainer.batches(0))
    for epoch in range(epochs):
        try:
            for indices in trainer.batches(epoch):
                trainer.update(indices, progress.step / n_steps)
        except InputError:  # the loss is no longer finite
            stopped = progress.step
        if progress.nll_tokens or not curve:  # else the last point is of this step
            loss = progress.nll / max(1, progress.nll_tokens)
            right = exact_match(outputs(trainer, some, stopped), some)
            curve.append({"epoch": epoch + 1, "train_loss": loss, "combinations": right})
            progress.nll, progress.nll_tokens = 0.0, 0
        epoch_done()
        if stopped is not None:
            break
    return curve, stopped


def experiment(job: Job, epoch_done: Callable[[], None]) -> dict:
    """Train and measure on one thread -> the fields of the job, the measures, the curve, and an example's output."""
    torch.set_num_threads(1)  # models this small gain little from a second one
    with tempfile.TemporaryDirectory() as folder:
        trainer = prepare(job, Path(folder))
        curve, stopped = learn(trainer, job.epochs, epoch_done)
        recalled, held_out = group(list(trainer.data.pairs)[::RECALL_EVERY]), group(trainer.data.pairs.held_out)
        found = outputs(trainer, held_out, stopped)
        by_kind = exact_match_by_kind(found, held_out)
        return {
            **vars(job),
            "stopped": stopped,
            "train_loss": curve[-1]["train_loss"],
            "recall": exact_match(outputs(trainer, recalled, stopped), recalled),
            "answer": by_kind["answer"],
            "rewrite": by_kind["rewrite"],
            "bleu": bleu_and_chrf(found, [prompt.references for prompt in held_out])[0]["bleu"],
            "example": found[[prompt.source for prompt in held_out].index(EXAMPLE)],
            "curve": curve,
        }


def main(argv: list[str] | None = None) -> None:
    study.main(__doc__, experiment, argv)


if __name__ == "__main__":
    run_script(main)
