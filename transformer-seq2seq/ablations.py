"""Train the default model again without one mechanism at a time, to see what each is good for.

    python3 ablations.py                              all of them, three seeds: about ten minutes on two cores
    python3 ablations.py --list                       what each takes out or puts in, and was predicted to do
    python3 ablations.py no-positions no-causal-mask  these alone, beside the default
    python3 ablations.py relative-positions --pairs my.tsv --held-out other.tsv --output my-ablations

Some are exchanges, which put another mechanism in place of the paper's; they run when they are named.

Every run reads the bundled pairs, or those of --pairs, for a quarter of train.py's epochs, in batches of half the
size (512 tokens), and is judged by its final weights. Writes to --output (default: samples/ beside this file):
ablations.jsonl (a line for every finished run), ablations.md (the table), ablations.png (the learning curves). There
are as many processes as PyTorch would use threads (OMP_NUM_THREADS); the results do not depend on their number.
"""

import inspect
import math
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from textwrap import shorten
from types import MethodType

from seq2seq.common.command_line import run_script  # isort: skip (before PyTorch: a quiet Ctrl-C)

import numpy as np
import torch
from torch import Tensor, nn

from seq2seq.common.distributed import DistributedContext
from seq2seq.common.errors import InputError
from seq2seq.common.experiments import Job, Study
from seq2seq.config import LEARNING_RATE, TrainConfig
from seq2seq.dataset import short_enough
from seq2seq.loss import IGNORE
from seq2seq.metrics import MAX_COMPARED, Prompt, answer_all, bleu_and_chrf, exact_match, exact_match_by_kind, group
from seq2seq.muon import make_optimizers
from seq2seq.pairs import Pair
from seq2seq.relative_attention import RelativeAttention
from train import Trainer, build_trainer
from train import parse_args as parse_training_args
from transformer import Cache, DecoderLayer, EncoderLayer, MultiHeadAttention

BATCH_TOKENS = 512
RECALL_EVERY, CURVE_EVERY = 5, 4  # of the training pairs; of new answers and rewrites along the curve
MAX_RECALLED, MAX_ON_CURVE = 1000, 100  # the same in numbers, for pairs of one's own
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
    config=TrainConfig,
    own_flags=(
        "pairs",
        "held_out",
        "source_column",
        "target_column",
        "tokenizer",
        "vocab_size",
        "d_model",
        "n_layers",
        "n_heads",
        "d_ff",
        "dropout",
        "batch_tokens",
        "optimizer",
        "learning_rate",
        "warmup_steps",
    ),
    defaults={"batch_tokens": str(BATCH_TOKENS), "learning_rate": f"{LEARNING_RATE:g}"},
)
study.own = replace(  # it shares the dict of ablations, which the functions below fill
    study,
    measures={
        "train_loss": ("training loss", ".3f"),
        "recall": ("training pairs", ".1%"),
        "held_out": ("held-out pairs", ".1%"),
        "chrf": ("chrF", ".1f"),
    },
    legend=f"""\
Mean over the seeds and, in brackets, the range. Training loss: of the last epoch, in nats a target token,
under teacher forcing, label smoothing's share left out. Training pairs, held-out pairs: the share of greedy
outputs that are a reference to the letter, for at most {MAX_RECALLED:,} training prompts and for all that are held
out; the pictures have the latter for at most {MAX_ON_CURVE}. chrF: of the outputs for all held-out prompts.""",
    below=("combinations", "held-out pairs"),
    remark=lambda result: "",
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
    """The decoder's attention to the source: LayerNorm(x) is all that is left of its sublayer, and the prompt is not
    seen."""
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


def replace_forward(layer: nn.Module, forward: Callable) -> None:
    """Give a layer another forward, which must take the same arguments."""
    before, after = (list(inspect.signature(one).parameters) for one in (type(layer).forward, forward))
    if before != after:
        raise TypeError(f"{type(layer).__name__}.forward takes {before}, its replacement {after}")
    layer.forward = MethodType(forward, layer)


@study.exchange(
    "On the bundled pairs nothing changes, for no sentence there is longer than those in training. On SCAN's pairs of "
    "more than 26 actions, trained on the shorter ones, nearly all outputs come out right where the default has "
    "almost none: it has never seen the positions behind the 26th, and distances are as they were."
)
def relative_positions(trainer: Trainer) -> None:
    """Relative positions (Transformer-XL's) in the self-attention of encoder and decoder, for the sinusoids that are
    added to the embeddings."""
    trainer.model.embeddings.positions.zero_()
    for layer in [*trainer.model.encoder, *trainer.model.decoder]:
        relative = RelativeAttention(layer.self_attention, trainer.model.config.max_length)
        layer.self_attention = relative.to(trainer.context.device)


@study.exchange(
    "With two layers and a warm-up, post-norm trains well too: the first epochs are faster, and the end is within the "
    "range of the default's seeds."
)
def pre_norm(trainer: Trainer) -> None:
    """LayerNorm before each sublayer, x + Sublayer(LayerNorm(x)), and once more behind the last layer of each stack,
    for LayerNorm(x + Sublayer(x))."""

    def encoder(self: EncoderLayer, x: Tensor, mask: Tensor, need_weights: bool = False):
        normed = self.self_attention_norm(x)
        attended, weights = self.self_attention(normed, self.self_attention.keys_values(normed), mask, need_weights)
        x = x + self.dropout(attended)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), weights

    def decoder(
        self: DecoderLayer,
        x: Tensor,
        target_mask: Tensor | None,
        memory: Tensor,
        memory_mask: Tensor,
        cache: Cache | None = None,
        need_weights: bool = False,
    ):
        normed = self.self_attention_norm(x)
        target_kv, memory_kv = (Cache() if cache is None else cache).update(self, normed, memory)
        attended, self_weights = self.self_attention(normed, target_kv, target_mask, need_weights)
        x = x + self.dropout(attended)
        normed = self.cross_attention_norm(x)
        attended, cross_weights = self.cross_attention(normed, memory_kv, memory_mask, need_weights)
        x = x + self.dropout(attended)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), self_weights, cross_weights

    model = trainer.model
    for stack, forward in ((model.encoder, encoder), (model.decoder, decoder)):
        for layer in stack:
            replace_forward(layer, forward)
        stack[-1].last_norm = nn.LayerNorm(model.config.d_model, device=trainer.context.device)
        stack[-1].register_forward_hook(lambda layer, _args, out: (layer.last_norm(out[0]), *out[1:]))


@study.exchange(
    "Beside positions of size 1 the words begin eleven times smaller, so that at first places are seen and words are "
    "not: learning is slower, and everything ends lower on the bundled pairs."
)
def no_embedding_scale(trainer: Trainer) -> None:
    """Embeddings as they are, for those times sqrt(d_model): a word begins much smaller than its position."""
    scale = math.sqrt(trainer.model.config.d_model)
    trainer.model.embeddings.token.register_forward_hook(lambda _m, _i, embedded: embedded / scale)


def prepare(job: Job, folder: Path) -> Trainer:
    """Return the default's trainer, changed as the ablation says. folder: a place for the token ids."""
    config, _ = parse_training_args(job.flags)
    size = config.batch_tokens or BATCH_TOKENS
    config = replace(config, epochs=job.epochs, batch_tokens=size, seed=job.seed, output=folder)
    trainer = build_trainer(config, DistributedContext(torch.device(job.device)))
    study.ablations[job.name].apply(trainer)
    config = trainer.config
    trainer.optimizers = make_optimizers(trainer.model, config.optimizer, config.precision)  # with what came in
    return trainer


def own_prompts(trainer: Trainer, pairs: Iterable[Pair], most: int = MAX_COMPARED) -> list[Prompt]:
    """Return at most so many prompts of pairs of one's own that fit the model, evenly spaced."""
    pairs = islice(pairs, MAX_COMPARED)
    prompts = group(short_enough(pairs, trainer.data.tokenizer, trainer.model.config.max_length))
    return prompts[:: max(1, -(-len(prompts) // most))]


def on_curve(trainer: Trainer, own: bool) -> list[Prompt]:
    """Return the held-out prompts that are answered after every epoch."""
    if own:
        return own_prompts(trainer, trainer.data.pairs.held_out, MAX_ON_CURVE)
    held_out = group(trainer.data.pairs.held_out)
    return [prompt for prompt in held_out if prompt.kind in ("answer", "rewrite")][::CURVE_EVERY]


def outputs(trainer: Trainer, prompts: list[Prompt], stopped: int | None) -> list[str]:
    """Return the greedy outputs for some prompts; they are empty if the loss, or what the model says, is not finite."""
    with suppress(InputError):
        if stopped is None:
            return answer_all(trainer.model, trainer.data.tokenizer, prompts)
    return [""] * len(prompts)


def learn(
    trainer: Trainer, epochs: int, some: list[Prompt], epoch_done: Callable[[], None]
) -> tuple[list[dict], int | None]:
    """Train for some epochs -> the curve, with the share of some prompts that are answered right, and the step at which
    the loss was no longer finite, else None."""
    progress, curve, stopped = trainer.progress, [], None
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


def measure(trainer: Trainer, stopped: int | None) -> dict:
    """Measure what a run on the bundled pairs has learnt -> the measures, and an example's output."""
    recalled, held_out = group(list(trainer.data.pairs)[::RECALL_EVERY]), group(trainer.data.pairs.held_out)
    found = outputs(trainer, held_out, stopped)
    by_kind = exact_match_by_kind(found, held_out)
    return {
        "recall": exact_match(outputs(trainer, recalled, stopped), recalled),
        "answer": by_kind["answer"],
        "rewrite": by_kind["rewrite"],
        "bleu": bleu_and_chrf(found, [prompt.references for prompt in held_out])[0]["bleu"],
        "example": outputs(trainer, [Prompt(EXAMPLE, [])], stopped)[0],
    }


def measure_own(trainer: Trainer, stopped: int | None) -> dict:
    """Measure what a run on one's own pairs has learnt -> the measures."""
    recalled = own_prompts(trainer, trainer.data.pairs, MAX_RECALLED)
    held_out = own_prompts(trainer, trainer.data.pairs.held_out)
    found = outputs(trainer, held_out, stopped)
    return {
        "recall": exact_match(outputs(trainer, recalled, stopped), recalled),
        "held_out": exact_match(found, held_out),
        "chrf": bleu_and_chrf(found, [prompt.references for prompt in held_out])[0]["chrf"],
    }


def experiment(job: Job, epoch_done: Callable[[], None]) -> dict:
    """Train and measure on one thread -> the fields of the job, the measures and the curve."""
    torch.set_num_threads(1)  # models this small gain little from a second one
    own = bool(job.files)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        trainer = prepare(job, Path(folder))
        curve, stopped = learn(trainer, job.epochs, on_curve(trainer, own), epoch_done)
        measures = (measure_own if own else measure)(trainer, stopped)
        del trainer  # and its memory maps: Windows removes no mapped file
    return {**vars(job), "stopped": stopped, "train_loss": curve[-1]["train_loss"], **measures, "curve": curve}


def main(argv: list[str] | None = None) -> None:
    study.main(__doc__, experiment, argv)


if __name__ == "__main__":
    run_script(main)
